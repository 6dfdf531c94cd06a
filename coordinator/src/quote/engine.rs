//! An engine's speed by how many sequences it runs at once. A few sequences go slower, all together, than many: so a
//! batch of three lines costs more a token than one of three thousand.

use ternfleet_proto::message::RatePoint;

/// Where only the speed at full slots is known, that at `n` of them is this power of their share.
const TYPICAL_POWER: f64 = 0.3;
/// Slots of an engine of which nothing is known.
const TYPICAL_SLOTS: u32 = 16;

/// One engine, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    pub slots: u32,
    /// Tokens per second, all sequences together, by their number; ascending.
    curve: Vec<RatePoint>,
    /// Prompt tokens per second.
    pub prefill_tok_s: f64,
    /// Mean of the measured speed: by this the router shares work out.
    pub rate_tok_s: f64,
}

impl Engine {
    /// As its calibration says, each step taking `tempo` times as long as then. Prefill is measured over real work.
    pub fn new(slots: u32, curve: &[RatePoint], prefill_tok_s: f64, rate_tok_s: f64, tempo: f64) -> Engine {
        let tempo = if tempo.is_finite() && tempo > 0.0 { tempo } else { 1.0 };
        let usable = |point: &&RatePoint| point.batch > 0 && point.tok_s.is_finite() && point.tok_s > 0.0;
        let mut curve: Vec<RatePoint> = curve
            .iter()
            .filter(usable)
            .map(|point| RatePoint { batch: point.batch, tok_s: point.tok_s / tempo })
            .collect();
        if curve.is_empty() {
            return Engine { prefill_tok_s, ..Engine::typical(slots, rate_tok_s) };
        }
        curve.sort_by_key(|point| point.batch);
        let full = curve.last().map_or(0.0, |point| point.tok_s);
        let rate_tok_s = if rate_tok_s > 0.0 { rate_tok_s } else { full };
        Engine { slots: slots.max(1), curve, prefill_tok_s, rate_tok_s }
    }

    /// One of which only the speed at full slots is known, or expected.
    pub fn typical(slots: u32, rate_tok_s: f64) -> Engine {
        let slots = if slots == 0 { TYPICAL_SLOTS } else { slots };
        let point = |batch: u32| {
            let share = f64::from(batch) / f64::from(slots);
            RatePoint { batch, tok_s: rate_tok_s * share.powf(TYPICAL_POWER) }
        };
        let mut sizes = vec![1, (slots / 4).max(1), (slots / 2).max(1), slots];
        sizes.dedup();
        let curve = sizes.into_iter().map(point).collect();
        Engine { slots, curve, prefill_tok_s: 0.0, rate_tok_s }
    }

    /// Of the same shape, with this speed at full slots.
    #[must_use]
    pub fn scaled_to(&self, rate_tok_s: f64) -> Engine {
        let factor = if self.full_tok_s() > 0.0 { rate_tok_s / self.full_tok_s() } else { 1.0 };
        let scaled = |point: &RatePoint| RatePoint { batch: point.batch, tok_s: point.tok_s * factor };
        Engine {
            slots: self.slots,
            curve: self.curve.iter().map(scaled).collect(),
            prefill_tok_s: self.prefill_tok_s * factor,
            rate_tok_s,
        }
    }

    /// Tokens per second of `n` sequences together.
    pub fn speed(&self, n: u32) -> f64 {
        let step_s = self.step_s(f64::from(n));
        if step_s > 0.0 { f64::from(n) / step_s } else { 0.0 }
    }

    /// How long a step takes, by the mean number of its sequences. A step takes a while whatever their number, and a while
    /// for each of them: so between two measured points lies a line, and a mean over steps is as good as each of them.
    pub fn step_s(&self, n: f64) -> f64 {
        let step_s = |point: &RatePoint| f64::from(point.batch) / point.tok_s;
        let Some(first) = self.curve.first() else { return 0.0 };
        let mut before = (0.0, step_s(first));
        for point in &self.curve {
            let (batch, step_s) = (f64::from(point.batch), step_s(point));
            if n <= batch {
                return before.1 + (step_s - before.1) * (n - before.0) / (batch - before.0);
            }
            before = (batch, step_s);
        }
        // More than were measured go no faster together.
        before.1 * n / before.0
    }

    pub fn full_tok_s(&self) -> f64 {
        self.speed(self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_lies_on_the_measured_points_and_between_them() {
        let points = [RatePoint { batch: 8, tok_s: 40.0 }, RatePoint { batch: 1, tok_s: 10.0 }];
        let engine = Engine::new(8, &points, 100.0, 0.0, 1.0);
        let speeds: Vec<f64> = [0, 1, 8, 20].map(|n| engine.speed(n)).into();
        assert_eq!(speeds, [0.0, 10.0, 40.0, 40.0]);
        // A step of one takes 0.1 s and one of eight 0.2 s.
        assert!((engine.step_s(4.5) - 0.15).abs() < 1e-9 && (engine.speed(4) - 28.0).abs() < 1e-9);
        let slowed = Engine::new(8, &points, 100.0, 0.0, 2.0);
        assert_eq!((slowed.speed(8), slowed.prefill_tok_s), (20.0, 100.0));
        assert_eq!(engine.scaled_to(80.0).speed(1), 20.0);
    }

    #[test]
    fn few_sequences_are_slower_together_than_many_on_any_engine() {
        let engine = Engine::typical(16, 100.0);
        assert_eq!(engine.full_tok_s(), 100.0);
        assert!(engine.speed(1) < 50.0 && engine.speed(1) < engine.speed(4));
    }
}
