//! How long an engine's steps take beside its calibration. Calibration runs two seconds on short contexts; real work has
//! longer ones, samplers, constraints and neighbours. The ratio of the two makes the calibrated speeds true.

use std::time::Duration;

use ternfleet_proto::message::{Heartbeat, WorkerCounters};

use crate::quote::Engine;

/// Busy time after which an old measurement weighs 1/e.
const MEMORY_S: f64 = 60.0;
/// Calibration counts as so much busy time.
const CALIBRATED_S: f64 = 2.0;
/// Measurements outside of this are no measurements.
const RANGE: std::ops::RangeInclusive<f64> = 0.1..=20.0;

/// Measured over calibrated time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tempo {
    ratio: f64,
    weight_s: f64,
}

impl Default for Tempo {
    fn default() -> Self {
        Self { ratio: 1.0, weight_s: CALIBRATED_S }
    }
}

impl Tempo {
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// What an engine did between two heartbeats.
    pub(super) fn measure(&mut self, beat: &Heartbeat, before: &WorkerCounters) {
        let after = &beat.counters;
        let grown = |read: fn(&WorkerCounters) -> u64| read(after).saturating_sub(read(before)) as f64;
        let (steps, sequences) = (grown(|c| c.steps), grown(|c| c.step_sequences));
        let (decoded, prefilled) = (grown(|c| c.decode_tokens), grown(|c| c.prefill_tokens));
        let busy_s = Duration::from_millis(grown(|c| c.busy_ms) as u64).as_secs_f64();
        if steps <= 0.0 || decoded <= 0.0 || busy_s < 0.05 || beat.calibration.is_empty() {
            return;
        }
        let calibrated = Engine::new(beat.slots, &beat.calibration, 0.0, 0.0, 1.0);
        let calibrated_s = calibrated.step_s(sequences / steps) * steps * decoded / sequences;
        let reading_s = if beat.prefill_tok_s > 0.0 { prefilled / beat.prefill_tok_s } else { 0.0 };
        let ratio = (busy_s - reading_s).max(0.0) / calibrated_s;
        if !RANGE.contains(&ratio) {
            return;
        }
        self.weight_s = self.weight_s * (-busy_s / MEMORY_S).exp() + busy_s;
        self.ratio += busy_s / self.weight_s * (ratio - self.ratio);
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::RatePoint;

    use super::*;

    #[test]
    fn an_engine_that_takes_twice_as_long_as_calibrated_is_known_for_it() {
        let mut beat: Heartbeat = serde_json::from_value(serde_json::json!({
            "worker": "w", "pod": "p", "host": "h", "pod_class": "c", "price_usd_micro_per_hour": 1, "state": "ready",
            "model": "m", "model_digest": "d", "numerics": "n", "context_tokens": 512, "slots": 8, "slots_in_use": 8,
            "kv_pages": 1, "kv_pages_free": 1, "threads": 1, "isa": "x", "calibration": [], "prefill_tok_s": 100.0,
            "decode_tok_s": 1.0, "counters": WorkerCounters::default(), "leader_seen": 0, "version": "0",
            "started_at": 0, "at": 0, "running": [],
        }))
        .unwrap();
        beat.calibration = vec![RatePoint { batch: 1, tok_s: 10.0 }, RatePoint { batch: 8, tok_s: 40.0 }];
        let mut tempo = Tempo::default();
        for _ in 0..60 {
            let before = beat.counters;
            // A second, of which a tenth reads prompts: 18 tokens in 0.9 s, for which 0.45 s were calibrated.
            beat.counters.busy_ms += 1_000;
            beat.counters.prefill_tokens += 10;
            beat.counters.steps += 2;
            beat.counters.step_sequences += 16;
            beat.counters.decode_tokens += 18;
            tempo.measure(&beat, &before);
        }
        assert!((tempo.ratio() - 2.0).abs() < 0.05, "{tempo:?}");
        let before = tempo;
        let nothing = beat.counters;
        tempo.measure(&beat, &nothing);
        assert_eq!(tempo, before, "an idle engine says nothing");
    }
}
