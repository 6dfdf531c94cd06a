//! An average that forgets, with its spread.

/// Newest values weigh a fixed share. The first ones count in full, so that the mean does not lean on the very first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Average {
    /// Values ever taken in.
    pub(crate) count: f64,
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

impl Average {
    /// Takes in a value, of which the newest weigh `share`; answers what this one weighs.
    pub(crate) fn learn(&mut self, value: f64, share: f64) -> f64 {
        self.count += 1.0;
        let share = share.max(1.0 / self.count);
        let difference = value - self.mean;
        self.mean += share * difference;
        self.variance = (1.0 - share) * (self.variance + share * difference * difference);
        share
    }
}
