//! A worker's speed as measured over real work: an average that forgets, and a bound below it.

use std::time::Duration;

/// After this much busy time an old measurement weighs about 1/e.
const MEMORY_S: f64 = 10.0;
/// A slowdown is told against what the worker did over this much busy time before.
const USUAL_MEMORY_S: f64 = 120.0;
/// Below this share of its usual speed a worker is slow …
const SLOW_RATIO: f64 = 0.6;
/// … when it was so for this many measurements in a row.
const SLOW_MEASUREMENTS: u8 = 3;
/// The mean of a memory full of measurements of a second each is off by this share of their variance.
const MEAN_VARIANCE_SHARE: f64 = 0.05;
/// Speeds drift: nothing is known better than this share.
const DRIFT_RATIO: f64 = 0.03;
/// One-sided 95 % of a normal distribution.
const Z_LOW: f64 = 1.645;

/// About e^-x, by operations whose bits are the same on every machine: `exp` is not, and then a replay of the same events
/// would make other choices elsewhere.
fn decay(x: f64) -> f64 {
    1.0 / (1.0 + x + 0.5 * x * x)
}

/// Tokens per second over busy time, exponentially weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    mean_tok_s: f64,
    variance: f64,
    weight: f64,
    /// The speed over a longer memory, and how much of that memory is filled.
    usual_tok_s: f64,
    usual_weight: f64,
    slow_count: u8,
}

impl Rate {
    /// A first guess, worth `weight` (0 to 1) of a full memory of measurements.
    pub fn guess(tok_s: f64, weight: f64) -> Self {
        if tok_s.is_finite() && tok_s > 0.0 {
            Self { mean_tok_s: tok_s, variance: (0.1 * tok_s).powi(2), weight, ..Self::default() }
        } else {
            Self::default()
        }
    }

    /// `tokens` took `busy`. True when this shows a sudden slowdown that was not there before.
    pub fn measure(&mut self, tokens: u64, busy: Duration) -> bool {
        let busy_s = busy.as_secs_f64();
        if busy_s < 0.05 {
            return false;
        }
        let observed = tokens as f64 / busy_s;
        let slowed = self.watch(observed, busy_s);
        let old = decay(busy_s / MEMORY_S);
        let (kept, added) = (old * self.weight, 1.0 - old);
        let weight = kept + added;
        let share = added / weight;
        let difference = observed - self.mean_tok_s;
        self.mean_tok_s += share * difference;
        self.variance = (1.0 - share) * (self.variance + share * difference * difference);
        self.weight = weight;
        slowed
    }

    /// Compares with what is usual. A neighbour that takes memory bandwidth shows here long before the mean has
    /// forgotten the time before.
    fn watch(&mut self, observed: f64, busy_s: f64) -> bool {
        let known = self.usual_weight > 0.1;
        let was_slow = self.is_slow();
        if known && observed < SLOW_RATIO * self.usual_tok_s {
            self.slow_count = self.slow_count.saturating_add(1);
        } else {
            self.slow_count = 0;
        }
        let old = decay(busy_s / USUAL_MEMORY_S);
        let (kept, added) = (old * self.usual_weight, 1.0 - old);
        self.usual_weight = kept + added;
        self.usual_tok_s += added / self.usual_weight * (observed - self.usual_tok_s);
        self.is_slow() && !was_slow
    }

    /// Much slower than it used to be, for some measurements now.
    pub fn is_slow(&self) -> bool {
        self.slow_count >= SLOW_MEASUREMENTS
    }

    /// Standard deviation of the mean's error: what a plan over a longer time has to allow for. A guess may be off by
    /// its whole spread, a long measurement only by the drift.
    pub fn error_tok_s(&self) -> f64 {
        let share = 1.0 - self.weight.clamp(0.0, 1.0) * (1.0 - MEAN_VARIANCE_SHARE);
        (self.variance * share).sqrt().max(DRIFT_RATIO * self.mean_tok_s)
    }

    /// Mean; decides cost. 0 while nothing is known.
    pub fn mean_tok_s(&self) -> f64 {
        self.mean_tok_s
    }

    /// A bound that the speed is above with 95 %; decides deadlines. Never under a tenth of the mean.
    pub fn low_tok_s(&self) -> f64 {
        (self.mean_tok_s - Z_LOW * self.variance.sqrt()).max(0.1 * self.mean_tok_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_speed_is_found_and_its_bound_closes_in() {
        let mut rate = Rate::default();
        for _ in 0..60 {
            rate.measure(40, Duration::from_secs(1));
        }
        assert!((rate.mean_tok_s() - 40.0).abs() < 0.5, "{rate:?}");
        assert!(rate.low_tok_s() > 38.0, "{rate:?}");
    }

    #[test]
    fn a_slowdown_shows_within_a_few_memories() {
        let mut rate = Rate::guess(100.0, 1.0);
        for _ in 0..30 {
            rate.measure(10, Duration::from_secs(1));
        }
        assert!(rate.mean_tok_s() < 16.0, "{rate:?}");
    }

    #[test]
    fn a_sudden_slowdown_is_told_once_and_ends_when_the_speed_is_back() {
        let mut rate = Rate::default();
        for _ in 0..30 {
            assert!(!rate.measure(100, Duration::from_secs(1)));
        }
        let told: Vec<bool> = (0..6).map(|_| rate.measure(40, Duration::from_secs(1))).collect();
        assert_eq!(told, [false, false, true, false, false, false]);
        assert!(rate.is_slow());
        rate.measure(95, Duration::from_secs(1));
        assert!(!rate.is_slow());
    }

    #[test]
    fn a_guess_may_be_off_by_its_spread_and_a_long_measurement_by_the_drift_alone() {
        assert!(Rate::guess(100.0, 0.2).error_tok_s() > 8.0);
        let mut rate = Rate::guess(100.0, 0.2);
        for second in 0..120 {
            rate.measure(if second % 2 == 0 { 95 } else { 105 }, Duration::from_secs(1));
        }
        assert!((rate.error_tok_s() - 3.0).abs() < 0.1, "{rate:?}");
    }

    #[test]
    fn nonsense_is_no_guess() {
        assert_eq!(Rate::guess(f64::NAN, 1.0), Rate::default());
        assert_eq!(Rate::guess(-1.0, 1.0).mean_tok_s(), 0.0);
    }
}
