//! Trying again: when, and what each phase does again.

use std::time::Duration;

use ternfleet_proto::Now;
use ternfleet_proto::bus::Settle;

use super::Core;
use super::event::{Action, SlotId};
use super::slot::{Phase, Writing};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait before try number `tries` (from 1): doubling, between half and the whole of it. The jitter comes
/// from `seed`, the identity of job or worker, so that jobs that failed together do not return together and a replay sees the same times.
pub(super) fn backoff(seed: u64, tries: u32) -> Duration {
    let whole = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(LONGEST);
    let mixed = seed.wrapping_add(u64::from(tries)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    whole / 2 + Duration::from_millis(mixed % (whole.as_millis() as u64 / 2 + 1))
}

impl Core {
    /// Notes that the operation of the slot's phase failed; a tick will do it again.
    pub(super) fn fail(&mut self, now: Now, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.tries += 1;
            slot.retry_at = Some(now.mono.plus(backoff(slot.work.job.seed(), slot.tries)));
        }
    }

    /// Does again what is due; all that waits, when the bus has just come back.
    pub(super) fn retry_due(&mut self, now: Now, all: bool, actions: &mut Vec<Action>) {
        let due: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.retry_at.is_some_and(|at| all || at <= now.mono))
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            self.issue(now, id, actions);
        }
    }

    /// Emits the operation that the slot's phase waits for.
    pub(super) fn issue(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let profile = &self.config.profile;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.retry_at = None;
        match &slot.phase {
            Phase::Held | Phase::Ending => {}
            Phase::Reading => actions.push(slot.read_checkpoint(id)),
            Phase::Claiming => actions.push(slot.write_checkpoint(now, id, profile, true, false)),
            Phase::Starting => {
                slot.generating = true;
                actions.push(Action::StartGeneration {
                    slot: id,
                    work: slot.work.clone(),
                    kept: slot.kept(),
                });
            }
            Phase::Running => self.write_checkpoint(now, id, actions),
            Phase::Releasing => {
                if slot.writing == Writing::Rereading {
                    actions.push(slot.read_checkpoint(id));
                } else {
                    slot.writing = Writing::InFlight(slot.ids.len());
                    actions.push(slot.write_checkpoint(now, id, profile, false, true));
                }
            }
            Phase::Answering(result) => {
                actions.push(Action::PublishResult { slot: id, result: result.clone() });
            }
            Phase::Comparing(_) | Phase::Recalling => {
                let (tenant, job) = (slot.work.tenant.clone(), slot.work.job.clone());
                actions.push(Action::ReadResult { slot: id, tenant, job });
            }
            Phase::Acking => {
                let delivery = slot.delivery.clone();
                actions.push(Action::Settle { slot: Some(id), delivery, how: Settle::Ack });
            }
        }
    }
}
