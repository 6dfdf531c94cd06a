//! Stopping: one job that has gone elsewhere, a batch that was cancelled, work that expired, the whole worker.

use std::time::Duration;

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Work, WorkerState};
use ternfleet_proto::{BatchId, Epoch, JobKey, Now};

use super::event::{Action, DropReason, Note, SlotId};
use super::slot::{Phase, Writing};
use super::{CANCELLED_MAX, Core};

/// How long a job that failed here stays away before it is offered again.
const FAULTY_DELAY: Duration = Duration::from_secs(5);

impl Core {
    /// The job is no longer this worker's business: nothing more is published for it, and its message, which is void
    /// by now, is cleared away.
    pub(super) fn void(&mut self, id: SlotId, why: DropReason, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get(&id) else { return };
        if matches!(slot.phase, Phase::Ending) {
            return;
        }
        let note = Note::Dropped { job: slot.work.job.clone(), epoch: slot.work.epoch, why };
        actions.push(Action::Note(note));
        self.leave(id, Settle::Ack, actions);
    }

    /// A compare-and-set was lost: somebody else owns the job.
    pub(super) fn fenced(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get(&id) else { return };
        self.counters.fenced += 1;
        actions.push(Action::Note(Note::Fenced { job: slot.work.job.clone(), epoch: slot.work.epoch }));
        self.leave(id, Settle::Ack, actions);
    }

    /// Settles the message and ends the slot, after the engine has let go of it.
    fn leave(&mut self, id: SlotId, how: Settle, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        actions.push(Action::Settle { slot: None, delivery: slot.delivery.clone(), how });
        if slot.generating {
            if !slot.cancelling {
                slot.cancelling = true;
                actions.push(Action::CancelGeneration { slot: id });
            }
            slot.enter(Phase::Ending);
        } else {
            self.remove(id);
        }
    }

    pub(super) fn note_drop(&self, work: &Work, why: DropReason, actions: &mut Vec<Action>) {
        if why == DropReason::DeposedLeader {
            actions.push(Action::Note(Note::StaleLeader { what: "work" }));
        }
        actions.push(Action::Note(Note::Dropped { job: work.job.clone(), epoch: work.epoch, why }));
    }

    pub(super) fn revoke(&mut self, job: &JobKey, epoch: Epoch, actions: &mut Vec<Action>) {
        let ids: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, s)| s.work.job == *job && s.work.epoch <= epoch && !s.phase.is_answering())
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.void(id, DropReason::Revoked, actions);
        }
    }

    pub(super) fn cancel(&mut self, batch: BatchId, actions: &mut Vec<Action>) {
        let ids: Vec<SlotId> =
            self.slots.iter().filter(|(_, s)| s.work.job.batch == batch).map(|(&id, _)| id).collect();
        for id in ids {
            self.void(id, DropReason::Cancelled, actions);
        }
        if !self.cancelled.contains(&batch) {
            self.cancelled.push_back(batch);
        }
        if self.cancelled.len() > CANCELLED_MAX {
            self.cancelled.pop_front();
        }
    }

    /// Expired work stops; an answer that is already on its way continues.
    pub(super) fn expire(&mut self, now: Now, actions: &mut Vec<Action>) {
        let ids: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, s)| {
                s.deadline.is_some_and(|deadline| deadline.passed(now)) && !s.phase.is_answering()
            })
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.void(id, DropReason::Expired, actions);
        }
    }

    /// What has waited too long for room goes back, so that the coordinator may give it to somebody else.
    pub(super) fn give_back_held(&mut self, now: Now, actions: &mut Vec<Action>) {
        let ids: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, s)| matches!(s.phase, Phase::Held) && now.since(s.pulled_at) >= self.config.held_max)
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.hand_back(id, actions);
        }
    }

    fn hand_back(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get(&id) else { return };
        self.counters.jobs_released += 1;
        actions.push(Action::Note(Note::Released {
            job: slot.work.job.clone(),
            epoch: slot.work.epoch,
            generated: slot.ids.len() as u32,
        }));
        self.leave(id, Settle::Nak(Duration::ZERO), actions);
    }

    /// The job cannot continue here. Its claim stays as it is, so that the attempt counts.
    pub(super) fn hand_back_faulty(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        self.leave(id, Settle::Nak(FAULTY_DELAY), actions);
    }

    /// Writes the job's last checkpoint, marked as released; when that stands, the message goes back.
    pub(super) fn release(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.generating && !slot.cancelling {
            slot.cancelling = true;
            actions.push(Action::CancelGeneration { slot: id });
        }
        if let Writing::InFlight(_) = slot.writing {
            slot.give_back = true;
            return;
        }
        slot.give_back = false;
        slot.released_with = Some(slot.ids.len());
        slot.enter(Phase::Releasing);
        self.issue(now, id, actions);
    }

    pub(super) fn released(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        self.hand_back(id, actions);
    }

    /// The first signal drains, the second ends at once.
    pub(super) fn on_signal(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.signals += 1;
        if self.signals > 1 {
            return self.exit(now, actions);
        }
        self.drain(now, actions);
    }

    /// Stops pulling and gives every job back with what it has; answers on their way are finished.
    pub(super) fn drain(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.state == WorkerState::Draining {
            return;
        }
        self.state = WorkerState::Draining;
        self.drain_until = Some(now.mono.plus(self.config.drain_max));
        self.heartbeat(now, actions);
        self.give_all_back(now, actions);
    }

    /// Without its server a worker takes nothing and gives back what it has, as it does at its end. No job is to blame.
    pub(super) fn on_server(&mut self, now: Now, ready: bool, actions: &mut Vec<Action>) {
        if ready {
            self.server_heard_at = Some(now.mono);
        }
        match (self.state, ready) {
            (WorkerState::Calibrating, true) => {
                self.state = WorkerState::Ready;
                self.heartbeat(now, actions);
            }
            (WorkerState::Ready, false) => {
                self.state = WorkerState::Calibrating;
                self.heartbeat(now, actions);
                self.give_all_back(now, actions);
            }
            _ => {}
        }
    }

    fn give_all_back(&mut self, now: Now, actions: &mut Vec<Action>) {
        let ids: Vec<SlotId> = self.slots.keys().copied().collect();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            match slot.phase {
                Phase::Held | Phase::Recalling | Phase::Reading => self.hand_back(id, actions),
                Phase::Claiming => {
                    slot.give_back = true;
                    if slot.retry_at.is_some() {
                        self.hand_back(id, actions);
                    }
                }
                Phase::Starting | Phase::Running => self.release(now, id, actions),
                _ => {}
            }
        }
    }

    pub(super) fn leave_when_drained(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.exited || self.state != WorkerState::Draining {
            return;
        }
        let late = self.drain_until.is_some_and(|until| now.mono >= until);
        let ended = self.slots.values().all(|slot| matches!(slot.phase, Phase::Ending));
        if ended || late {
            self.exit(now, actions);
        }
    }

    fn exit(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.state = WorkerState::Gone;
        self.heartbeat(now, actions);
        self.exited = true;
        actions.push(Action::Exit);
    }
}
