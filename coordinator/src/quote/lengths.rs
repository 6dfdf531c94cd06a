//! How long outputs turn out, as a share of their limits: a distribution for each model and kind of request, learned
//! from every answer. The core keeps it; a quote draws from it.

use std::collections::BTreeMap;

use ternfleet_proto::openai::Endpoint;

use crate::average::Average;
use crate::random::Random;

/// Newest answers weigh this much.
const SHARE: f64 = 0.01;
/// A distribution counts once it holds so many answers.
const ANSWERS_MIN: f64 = 20.0;
/// Two bins for each halving of the share, so that short outputs under a large limit are told apart.
const BINS: usize = 26;
/// Models and kinds that are kept apart; beyond that, answers go to the kind alone.
const KINDS_MAX: usize = 256;
/// Before any answer was seen, outputs are taken to be as long as their limits allow, give or take this share.
const UNSEEN: (f64, f64) = (1.0, 0.15);

/// Requests whose outputs are alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// `None` stands for all models together.
    model: Option<String>,
    endpoint: Option<Endpoint>,
    /// The request names a limit. Without one, the context is the limit, and few outputs come near it.
    limited: bool,
}

/// Output ÷ limit over answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ratios {
    average: Average,
    /// Weight and mean of the answers in each bin.
    bins: Vec<(f64, f64)>,
}

impl Ratios {
    fn learn(&mut self, ratio: f64) {
        let ratio = if ratio.is_finite() { ratio.clamp(0.0, 1.0) } else { return };
        let share = self.average.learn(ratio, SHARE);
        self.bins.resize(BINS, (0.0, 0.0));
        self.bins.iter_mut().for_each(|bin| bin.0 *= 1.0 - share);
        let (weight, mean) = &mut self.bins[bin_of(ratio)];
        *weight += share;
        *mean += share / *weight * (ratio - *mean);
    }

    fn is_known(&self) -> bool {
        self.average.count >= ANSWERS_MIN
    }

    /// One of the ratios that were seen.
    fn draw(&self, random: &mut Random) -> f64 {
        let all: f64 = self.bins.iter().map(|bin| bin.0).sum();
        let mut left = random.unit() * all;
        for (weight, mean) in &self.bins {
            left -= weight;
            if left < 0.0 {
                return *mean;
            }
        }
        self.average.mean
    }
}

/// Bin 0 holds outputs that used their whole limit; each two of the others halve the ratio.
fn bin_of(ratio: f64) -> usize {
    if ratio >= 0.999 {
        return 0;
    }
    (1.0 + (-2.0 * ratio.max(1e-9).log2()).floor()).clamp(1.0, (BINS - 1) as f64) as usize
}

/// What is known of all outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    kinds: BTreeMap<Kind, Ratios>,
}

impl History {
    pub fn learn(&mut self, model: Option<&str>, endpoint: Endpoint, limited: bool, ratio: f64) {
        let whole = Kind { model: None, endpoint: Some(endpoint), limited };
        let all = Kind { endpoint: None, ..whole.clone() };
        let own = Kind { model: model.map(str::to_owned), ..whole.clone() };
        for kind in [all, whole] {
            self.kinds.entry(kind).or_default().learn(ratio);
        }
        if model.is_some() && (self.kinds.len() < KINDS_MAX || self.kinds.contains_key(&own)) {
            self.kinds.entry(own).or_default().learn(ratio);
        }
    }

    /// What comes nearest to requests of this kind: of their own model, of any model, of any endpoint.
    pub(super) fn of(
        &self,
        model: Option<&str>,
        endpoint: Option<Endpoint>,
        limited: bool,
    ) -> Option<&Ratios> {
        let own = Kind { model: model.map(str::to_owned), endpoint, limited };
        let whole = Kind { model: None, endpoint, limited };
        let all = Kind { model: None, endpoint: None, limited };
        [own, whole, all].iter().filter_map(|kind| self.kinds.get(kind)).find(|ratios| ratios.is_known())
    }
}

/// Mean and standard deviation of a ratio.
pub(super) fn moments(ratios: Option<&Ratios>) -> (f64, f64) {
    ratios.map_or(UNSEEN, |ratios| (ratios.average.mean, ratios.average.variance.sqrt().max(0.02)))
}

/// A ratio by chance.
pub(super) fn draw(ratios: Option<&Ratios>, random: &mut Random) -> f64 {
    match ratios {
        Some(ratios) => ratios.draw(random),
        None => (UNSEEN.0 + UNSEEN.1 * random.normal()).clamp(0.05, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_kind_that_is_known_is_taken() {
        let mut history = History::default();
        assert_eq!(history.of(Some("m"), Some(Endpoint::Completions), true), None);
        (0..30).for_each(|_| history.learn(Some("m"), Endpoint::Completions, true, 0.5));
        (0..30).for_each(|_| history.learn(Some("n"), Endpoint::ChatCompletions, true, 0.1));
        let mean = |model, endpoint| moments(history.of(Some(model), Some(endpoint), true)).0;
        assert!((mean("m", Endpoint::Completions) - 0.5).abs() < 1e-9);
        assert!((mean("other", Endpoint::ChatCompletions) - 0.1).abs() < 1e-9, "of any model");
        assert!(mean("m", Endpoint::Responses) < 0.5, "of any endpoint");
        assert_eq!(history.of(Some("m"), Some(Endpoint::Completions), false), None);
    }

    #[test]
    fn draws_have_the_shape_that_was_seen() {
        let mut ratios = Ratios::default();
        for n in 0..1_000 {
            // A third stops early, the rest runs to the limit.
            ratios.learn(if n % 3 == 0 { 0.01 } else { 1.0 });
        }
        let mut random = Random::new(1, 1);
        let drawn: Vec<f64> = (0..3_000).map(|_| ratios.draw(&mut random)).collect();
        let short = drawn.iter().filter(|ratio| **ratio < 0.1).count();
        assert!((850..1_150).contains(&short), "{short}");
        assert!(drawn.iter().all(|ratio| (ratio - 0.01).abs() < 1e-6 || (ratio - 1.0).abs() < 1e-6));
        let (mean, sd) = moments(Some(&ratios));
        assert!((mean - 0.67).abs() < 0.03 && (sd - 0.47).abs() < 0.03, "{mean} {sd}");
    }
}
