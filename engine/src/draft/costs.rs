//! What a step costs by its columns, as this machine ran the last ones, and how many guesses are worth their columns.

/// Columns of the widest step that can have guesses.
const MAX_COLUMNS: usize = 64;
/// Weight of the newest step.
const SHARE: f64 = 0.25;
/// After so many steps a cost counts as unknown: the machine may do other things now.
const KEPT_STEPS: u64 = 256;

/// Seconds of steps that prefill nothing, by their columns.
#[derive(Debug, Clone)]
pub(crate) struct Costs {
    /// Seconds, and the step that was measured last.
    known: [Option<(f64, u64)>; MAX_COLUMNS + 1],
    step: u64,
}

impl Costs {
    pub(crate) fn new() -> Costs {
        Costs { known: [None; MAX_COLUMNS + 1], step: 0 }
    }

    /// Takes note of what a step of so many columns took.
    pub(crate) fn learn(&mut self, columns: usize, seconds: f64) {
        self.step += 1;
        if let Some(known) = self.known.get_mut(columns) {
            let before = known.map_or(seconds, |(before, _)| before);
            *known = Some((before + SHARE * (seconds - before), self.step));
        }
    }

    /// How many of up to `most` guesses make the step's tokens cheapest, when each is right with the probability `right` and
    /// a step without them has `columns` columns and is expected to give `tokens` tokens. The step that is one guess longer
    /// than any known is tried, and so is the step without guesses.
    pub(crate) fn worth(&self, columns: usize, tokens: f64, right: f64, most: usize) -> usize {
        let Some(alone) = self.seconds(columns) else { return 0 };
        let (mut best, mut lowest) = (0, alone / tokens);
        let (mut gain, mut chance) = (0.0, 1.0);
        for guesses in 1..=most {
            chance *= right;
            gain += chance;
            // A step that was never seen is taken to cost no more than the widest one that was.
            let Some(seconds) = self.between(columns + guesses) else { continue };
            if seconds.max(alone) / (tokens + gain) < lowest {
                (best, lowest) = (guesses, seconds.max(alone) / (tokens + gain));
            }
        }
        best
    }

    fn seconds(&self, columns: usize) -> Option<f64> {
        let known = self.known.get(columns)?.filter(|(_, step)| self.step - step < KEPT_STEPS);
        known.map(|(seconds, _)| seconds)
    }

    /// On the line between its known neighbours, or what the widest known one below took.
    fn between(&self, columns: usize) -> Option<f64> {
        let below = (0..=columns.min(MAX_COLUMNS)).rev().find_map(|n| Some((n, self.seconds(n)?)));
        let above = (columns..=MAX_COLUMNS).find_map(|n| Some((n, self.seconds(n)?)));
        match (below, above) {
            (Some((low, from)), Some((high, to))) if low < high => {
                Some(from + (to - from) * (columns - low) as f64 / (high - low) as f64)
            }
            (below, above) => below.or(above).map(|(_, seconds)| seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps take this long.
    fn measured(seconds: impl Fn(usize) -> f64) -> Costs {
        let mut costs = Costs::new();
        for columns in [1, 2, 4, 8, 16] {
            costs.learn(columns, seconds(columns));
        }
        costs
    }

    #[test]
    fn columns_that_cost_nothing_are_all_used_and_dear_ones_are_not() {
        let free = measured(|_| 0.03);
        assert_eq!(free.worth(1, 1.0, 0.7, 7), 7);
        let linear = measured(|columns| columns as f64 * 0.01);
        assert_eq!(linear.worth(1, 1.0, 0.9, 7), 0);
        // Reading the weights takes 30 ms, and each column 3: one guess too many costs more than it is expected to save.
        let both = measured(|columns| 0.03 + 0.003 * columns as f64);
        let (likely, doubtful) = (both.worth(1, 1.0, 0.9, 7), both.worth(1, 1.0, 0.3, 7));
        assert!(likely > doubtful && doubtful >= 1, "{likely} and {doubtful}");
        assert_eq!(both.worth(1, 1.0, 0.05, 7), 0);
    }

    #[test]
    fn what_is_unknown_is_tried_once_and_again_after_a_while() {
        let mut costs = Costs::new();
        assert_eq!(costs.worth(1, 1.0, 0.9, 7), 0, "first a step alone");
        costs.learn(1, 0.01);
        assert_eq!(costs.worth(1, 1.0, 0.9, 7), 7);
        costs.learn(8, 0.5);
        assert_eq!(costs.worth(1, 1.0, 0.9, 7), 0);
        for _ in 0..KEPT_STEPS {
            costs.learn(1, 0.01);
        }
        assert_eq!(costs.worth(1, 1.0, 0.9, 7), 7);
    }

    #[test]
    fn a_machine_that_has_become_busy_is_noticed() {
        let mut costs = measured(|_| 0.03);
        for _ in 0..12 {
            for columns in [1, 2, 4, 8, 16] {
                costs.learn(columns, 0.02 * columns as f64);
            }
        }
        assert_eq!(costs.worth(1, 1.0, 0.9, 7), 0);
    }
}
