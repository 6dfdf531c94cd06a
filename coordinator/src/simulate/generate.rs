//! Random fleets, from a stated generator, for the studies and the property tests.
//!
//! A fleet has 2 to 6 classes of 1 to 8 pods. Of a class: speed log-uniform in 10 to 80 tok/s, price per million
//! tokens log-uniform in $2 to $16 (so price per hour follows), boot uniform in 30 to 180 s, pods spread by up to
//! 8 % around their class, ticks by 2 to 10 % around their pod, losses up to `loss_per_hour_max`. The work of one to
//! `batches_max` batches takes the whole fleet `boots_min` to twice as many boots of its slowest class; each deadline is
//! `slack` times the least time in which the whole fleet could do all that is due by then. With `gpus`, two classes in five
//! are servers on graphics cards: 1,000 to 20,000 tok/s, $0.01 to $0.50, boot 120 to 600 s.

use super::{BatchSpec, Fleet, LimitSpec, PodSpec};
use crate::random::Random;

/// Of the classes, where some have graphics cards.
const GPU_SHARE: f64 = 0.4;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generator {
    /// Deadline over the least possible time.
    pub slack: f64,
    /// Least length of the work, in boots.
    pub boots_min: f64,
    pub loss_per_hour_max: f64,
    pub batches_max: u32,
    /// Budgets around what the work costs, so that many do not suffice; `false` gives none.
    pub budgets: bool,
    /// Some classes compute on their graphics cards: a hundred times as fast, for a tenth of the price a token.
    pub gpus: bool,
}

impl Default for Generator {
    fn default() -> Self {
        Self {
            slack: 2.0,
            boots_min: 20.0,
            loss_per_hour_max: 0.05,
            batches_max: 3,
            budgets: false,
            gpus: false,
        }
    }
}

/// The fleet of a seed.
pub fn random_fleet(generator: &Generator, seed: u64) -> Fleet {
    let mut random = Random::new(seed, 77);
    let log_between = |random: &mut Random, low: f64, high: f64| random.between(low.ln(), high.ln()).exp();
    let mut pods = Vec::new();
    for class in 0..random.whole(2, 6) {
        let gpu = generator.gpus && random.unit() < GPU_SHARE;
        let (rates, prices, boots) = match gpu {
            true => ((1_000.0, 20_000.0), (0.01, 0.5), (120.0, 600.0)),
            false => ((10.0, 80.0), (2.0, 16.0), (30.0, 180.0)),
        };
        let rate_tok_s = log_between(&mut random, rates.0, rates.1);
        let usd_per_million = log_between(&mut random, prices.0, prices.1);
        pods.push(PodSpec {
            class: format!("class{class}"),
            count: random.whole(1, 8),
            price_usd_per_hour: (usd_per_million * rate_tok_s * 3600.0).round() / 1e6,
            rate_tok_s,
            rate_spread: random.between(0.0, 0.08),
            rate_noise: random.between(0.02, 0.10),
            boot_s: random.between(boots.0, boots.1),
            loss_per_hour: random.between(0.0, generator.loss_per_hour_max),
            vacancy_s: 900.0,
            restart_s: 30.0,
            checkpoint_tokens: 32,
            slots: if gpu { 128 } else { 16 },
            price_changes_per_hour: 0.0,
        });
    }
    let whole_rate: f64 = pods.iter().map(|pod| f64::from(pod.count) * pod.rate_tok_s).sum();
    let boot_s = pods.iter().map(|pod| pod.boot_s).fold(0.0, f64::max);
    let tokens = whole_rate * boot_s * random.between(generator.boots_min, 2.0 * generator.boots_min);
    let cheapest = pods
        .iter()
        .map(|pod| pod.price_usd_per_hour / (3600.0 * pod.rate_tok_s))
        .fold(f64::INFINITY, f64::min);

    let count = random.whole(1, generator.batches_max.max(1));
    let mut due_tokens = 0.0;
    let batches = (0..count)
        .map(|number| {
            let own = tokens / f64::from(count);
            due_tokens += own;
            let budget_usd = own * cheapest * random.between(0.5, 4.0);
            BatchSpec {
                name: format!("batch{number}"),
                tokens: own,
                arrives_s: 0.0,
                deadline_s: Some(generator.slack * (boot_s + due_tokens / whole_rate)),
                budget_usd: generator.budgets.then_some(budget_usd),
            }
        })
        .collect();
    Fleet { name: format!("random fleet {seed}"), pods, batches, limits: LimitSpec::default() }
}
