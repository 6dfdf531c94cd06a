//! A speed measured over real work: an exponentially weighted mean with a lower bound.

use std::time::Duration;

/// Busy time that one sample gathers, so that single steps do not count as measurements.
const SAMPLE: Duration = Duration::from_millis(250);
/// Busy time over which old samples lose most of their weight.
const MEMORY_S: f64 = 10.0;

/// Tokens per second of busy time.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    mean_tok_s: f64,
    variance: f64,
    measured: bool,
    tokens: u64,
    busy: Duration,
}

impl Rate {
    /// Starts at a calibrated speed, 0 if there is none; the first sample of real work then moves it, not sets it.
    pub fn starting_at(tok_s: f64) -> Rate {
        let known = tok_s.is_finite() && tok_s > 0.0;
        Rate {
            mean_tok_s: if known { tok_s } else { 0.0 },
            variance: 0.0,
            measured: known,
            tokens: 0,
            busy: Duration::ZERO,
        }
    }

    pub fn observe(&mut self, tokens: u64, busy: Duration) {
        self.tokens += tokens;
        self.busy += busy;
        if self.busy < SAMPLE {
            return;
        }
        let seconds = self.busy.as_secs_f64();
        let sample = self.tokens as f64 / seconds;
        (self.tokens, self.busy) = (0, Duration::ZERO);
        if !self.measured {
            self.measured = true;
            self.mean_tok_s = sample;
            return;
        }
        let weight = 1.0 - (-seconds / MEMORY_S).exp();
        let off = sample - self.mean_tok_s;
        self.mean_tok_s += weight * off;
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
    }

    /// For costs. 0 until measured.
    pub fn mean(&self) -> f64 {
        self.mean_tok_s
    }

    /// For deadlines: two standard deviations below the mean, never below zero.
    pub fn lower_bound(&self) -> f64 {
        (self.mean_tok_s - 2.0 * self.variance.sqrt()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_speed_is_its_own_lower_bound() {
        let mut rate = Rate::starting_at(0.0);
        for _ in 0..100 {
            rate.observe(10, Duration::from_millis(100));
        }
        assert!((rate.mean() - 100.0).abs() < 1e-6 && (rate.lower_bound() - 100.0).abs() < 1e-6);
    }

    #[test]
    fn a_slowdown_is_followed_within_a_few_times_the_memory() {
        let mut rate = Rate::starting_at(100.0);
        for _ in 0..300 {
            rate.observe(10, Duration::from_millis(200));
        }
        assert!((rate.mean() - 50.0).abs() < 2.0, "{}", rate.mean());
    }

    #[test]
    fn an_unsteady_speed_has_a_lower_bound_below_its_mean() {
        let mut rate = Rate::starting_at(0.0);
        for round in 0..200 {
            rate.observe(if round % 2 == 0 { 50 } else { 150 }, Duration::from_millis(500));
        }
        assert!(rate.lower_bound() < rate.mean() && rate.lower_bound() >= 0.0);
    }

    #[test]
    fn nothing_is_claimed_before_a_quarter_second_of_work() {
        let mut rate = Rate::starting_at(0.0);
        rate.observe(1000, Duration::from_millis(10));
        assert_eq!(rate.mean(), 0.0);
    }
}
