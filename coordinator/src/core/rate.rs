//! A worker's speed as measured over real work: an average that forgets, and a bound below it.

use std::time::Duration;

/// After this much busy time an old measurement weighs 1/e.
const MEMORY_S: f64 = 10.0;
/// One-sided 95 % of a normal distribution.
const Z_LOW: f64 = 1.645;

/// Tokens per second over busy time, exponentially weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    mean_tok_s: f64,
    variance: f64,
    weight: f64,
}

impl Rate {
    /// A first guess, worth `weight` (0 to 1) of a full memory of measurements.
    pub fn guess(tok_s: f64, weight: f64) -> Self {
        if tok_s.is_finite() && tok_s > 0.0 {
            Self { mean_tok_s: tok_s, variance: (0.1 * tok_s).powi(2), weight }
        } else {
            Self::default()
        }
    }

    /// `tokens` took `busy`.
    pub fn measure(&mut self, tokens: u64, busy: Duration) {
        let busy_s = busy.as_secs_f64();
        if busy_s < 0.05 {
            return;
        }
        let observed = tokens as f64 / busy_s;
        let kept = (-busy_s / MEMORY_S).exp() * self.weight;
        let added = 1.0 - (-busy_s / MEMORY_S).exp();
        let weight = kept + added;
        let share = added / weight;
        let difference = observed - self.mean_tok_s;
        self.mean_tok_s += share * difference;
        self.variance = (1.0 - share) * (self.variance + share * difference * difference);
        self.weight = weight;
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
    fn nonsense_is_no_guess() {
        assert_eq!(Rate::guess(f64::NAN, 1.0), Rate::default());
        assert_eq!(Rate::guess(-1.0, 1.0).mean_tok_s(), 0.0);
    }
}
