//! What is done again and again, each with a due time of its own: no event hurries it, none keeps it waiting.

use std::time::Duration;

use ternfleet_proto::MonoMs;

#[derive(Debug, Clone, Copy)]
pub(super) struct Duty {
    every: Duration,
    due: MonoMs,
}

impl Duty {
    pub(super) const fn every(every: Duration) -> Duty {
        Duty { every, due: MonoMs(0) }
    }

    /// True when its time has come; the next time is one period from now. What was missed is not made up for.
    pub(super) fn is_due(&mut self, now: MonoMs) -> bool {
        if now < self.due {
            return false;
        }
        self.due = now.plus(self.every);
        true
    }

    /// The period starts again.
    pub(super) fn rest(&mut self, now: MonoMs) {
        self.due = now.plus(self.every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_is_done_once_a_period_however_often_it_is_asked() {
        let mut duty = Duty::every(Duration::from_secs(1));
        let done: Vec<u64> = (0..=50).map(|n| n * 100).filter(|ms| duty.is_due(MonoMs(*ms))).collect();
        assert_eq!(done, [0, 1_000, 2_000, 3_000, 4_000, 5_000]);
        assert!(duty.is_due(MonoMs(60_000)) && !duty.is_due(MonoMs(60_100)));
    }
}
