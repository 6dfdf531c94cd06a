//! Whose time it was: each step of the engine is split among the jobs that took part in it, by their tokens.
//!
//! The counts only grow, and travel with heartbeats and answers. They are what a coordinator bills by.

use std::time::Duration;

use super::Core;
use super::event::{SlotId, Steps};

impl Core {
    /// `made` is how many tokens each job got in these steps. Prompts share what is left by their length, and a prompt's
    /// token counts by the time that it takes.
    pub(super) fn share_out(&mut self, steps: &Steps, made: &[(SlotId, u32)]) {
        let time = self.unshared + steps.busy;
        let (decode, prefill) = (self.decode_rate.mean(), self.prefill_rate.mean());
        let weight = if decode > 0.0 && prefill > 0.0 { (decode / prefill).min(1.0) } else { 1.0 };
        let prompts: f64 = self.prompts().map(|(_, length)| length).sum();
        let reading = if prompts > 0.0 { steps.prefill_tokens as f64 * weight } else { 0.0 };
        let drawn: f64 = made.iter().map(|(_, count)| f64::from(*count)).sum();
        if reading + drawn <= 0.0 {
            // A step whose token comes with a later step is charged with that. The last prompt tokens of a cancelled job
            // are charged to nobody.
            self.unshared = if steps.prefill_tokens == 0 { time } else { Duration::ZERO };
            return;
        }
        self.unshared = Duration::ZERO;
        let each = time.div_f64(reading + drawn);
        let mut shares: Vec<(SlotId, f64)> =
            self.prompts().map(|(id, length)| (id, reading * length / prompts)).collect();
        shares.extend(made.iter().map(|(id, count)| (*id, f64::from(*count))));
        for (id, share) in shares {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.engine += each.mul_f64(share);
            }
        }
    }

    /// Jobs whose prompt is being computed, with its length.
    fn prompts(&self) -> impl Iterator<Item = (SlotId, f64)> {
        let slots = self.slots.iter().filter(|(_, slot)| slot.is_prefilling());
        slots.map(|(id, slot)| (*id, f64::from(slot.prompt_tokens.max(1)) + slot.kept as f64))
    }
}
