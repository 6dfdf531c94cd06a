//! The answer of a job: published under the worker's own name, acknowledged only after it is stored.

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Failure, FailureCode, JobResult, Outcome};
use ternfleet_proto::{JobKey, Now};

use super::event::{Action, Note, Read, Settled, SlotId, Write};
use super::slot::{Phase, Slot};
use super::{ANSWERED_MAX, Core};

/// Tries of an ack; after that the redelivery is acknowledged, since the answer is remembered.
const ACKS_MAX: u32 = 8;

impl Core {
    pub(super) fn answer(&mut self, now: Now, id: SlotId, result: JobResult, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.give_back = false;
        slot.enter(Phase::Answering(Box::new(result)));
        self.issue(now, id, actions);
    }

    pub(super) fn answer_failure(
        &mut self,
        now: Now,
        id: SlotId,
        failure: Failure,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get(&id) else { return };
        let result = slot.failure(now, &self.config.profile, failure);
        self.answer(now, id, result, actions);
    }

    /// This worker cannot do the job, and another one may: the coordinator is told, and hands it over.
    pub(super) fn answer_fault(&mut self, now: Now, id: SlotId, reason: String, actions: &mut Vec<Action>) {
        let failure = Failure { code: FailureCode::WorkerFault, message: reason };
        self.answer_failure(now, id, failure, actions);
    }

    /// Nothing that is computed here can be trusted: what runs is told to be the host's fault, the rest goes back, and the
    /// worker ends, to be restarted.
    pub(super) fn host_fault(&mut self, now: Now, reason: &str, actions: &mut Vec<Action>) {
        let running = |slot: &Slot| matches!(slot.phase, Phase::Running | Phase::Starting);
        let ids: Vec<SlotId> =
            self.slots.iter().filter(|(_, slot)| running(slot)).map(|(&id, _)| id).collect();
        for id in ids {
            if let Some(slot) = self.slots.get_mut(&id)
                && slot.generating
                && !std::mem::replace(&mut slot.cancelling, true)
            {
                actions.push(Action::CancelGeneration { slot: id });
            }
            let failure = Failure { code: FailureCode::HostFault, message: reason.to_owned() };
            self.answer_failure(now, id, failure, actions);
        }
        self.drain(now, actions);
    }

    pub(super) fn on_result_written(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: Write,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Phase::Answering(result) = &slot.phase else { return };
        match outcome {
            Write::Stored(_) => {
                let result = result.clone();
                self.stored(now, id, result, actions);
            }
            Write::Conflict => {
                let result = result.clone();
                slot.enter(Phase::Comparing(result));
                self.issue(now, id, actions);
            }
            Write::Full => {
                actions.push(Action::Note(Note::ResultsFull { job: slot.work.job.clone() }));
                self.fail(now, id);
            }
            Write::TooLarge { bytes, max_bytes } => {
                if matches!(result.outcome, Outcome::Failed(_)) {
                    // Not even the failure fits; its message repeats something huge of the line.
                    return self.fail(now, id);
                }
                let failure = Failure {
                    code: FailureCode::InvalidRequest,
                    message: format!(
                        "the answer has {bytes} bytes, but a message has at most {max_bytes}: request \
                         fewer tokens or fewer log-probabilities"
                    ),
                };
                self.answer_failure(now, id, failure, actions);
            }
            Write::Unreachable => {
                slot.unheard = true;
                self.fail(now, id);
            }
        }
    }

    pub(super) fn on_result_read(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: Read<JobResult>,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if matches!(slot.phase, Phase::Recalling) {
            return self.recalled(now, id, outcome, actions);
        }
        let Phase::Comparing(result) = &slot.phase else { return };
        let result = result.clone();
        let diverges = match outcome {
            Read::Found(stored) => {
                let diverges = !result.nondeterministic && differ(&stored.outcome, &result.outcome);
                // An earlier publish of ours had been stored unheard.
                if slot.unheard && stored.epoch == result.epoch && !diverges {
                    return self.stored(now, id, result, actions);
                }
                diverges
            }
            Read::Unreadable(_) => true,
            // What is under our own name is ours; whether it is right is for the coordinator's audits to find.
            Read::Withheld if slot.unheard => return self.stored(now, id, result, actions),
            Read::Withheld => false,
            Read::Nothing => {
                slot.enter(Phase::Answering(result));
                return self.fail(now, id);
            }
            Read::Unreachable => return self.fail(now, id),
        };
        self.counters.duplicates += 1;
        self.counters.divergences += u64::from(diverges);
        actions.push(Action::Note(Note::Duplicate { job: result.job.clone(), diverges }));
        self.acknowledge(now, id, actions);
    }

    /// A job came that was answered here before. If the answer is where it was stored, the message has had its answer;
    /// otherwise the job is run again. Who may not look runs it again too: an answer that is there after all refuses the
    /// second.
    fn recalled(&mut self, now: Now, id: SlotId, outcome: Read<JobResult>, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match outcome {
            Read::Found(_) | Read::Unreadable(_) => {
                let delivery = slot.delivery.clone();
                self.remove(id);
                actions.push(Action::Settle { slot: None, delivery, how: Settle::Ack });
            }
            Read::Nothing | Read::Withheld => {
                slot.enter(Phase::Held);
                let job = slot.work.job.clone();
                self.answered.remove(&job);
                self.answered_order.retain(|other| *other != job);
            }
            Read::Unreachable => self.fail(now, id),
        }
    }

    fn stored(&mut self, now: Now, id: SlotId, result: Box<JobResult>, actions: &mut Vec<Action>) {
        match &result.outcome {
            Outcome::Text(_) => self.counters.jobs_done += 1,
            Outcome::Failed(_) => self.counters.jobs_failed += 1,
        }
        actions.push(Action::Note(Note::Answered(result)));
        self.acknowledge(now, id, actions);
    }

    fn acknowledge(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.enter(Phase::Acking);
        let job = slot.work.job.clone();
        self.remember(job);
        self.issue(now, id, actions);
    }

    fn remember(&mut self, job: JobKey) {
        if self.answered.insert(job.clone()) {
            self.answered_order.push_back(job);
        }
        while self.answered_order.len() > ANSWERED_MAX {
            if let Some(oldest) = self.answered_order.pop_front() {
                self.answered.remove(&oldest);
            }
        }
    }

    pub(super) fn on_settled(&mut self, now: Now, id: SlotId, outcome: Settled, _actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if !matches!(slot.phase, Phase::Acking) {
            return;
        }
        if outcome == Settled::Done || slot.tries >= ACKS_MAX {
            self.remove(id);
        } else {
            self.fail(now, id);
        }
    }
}

/// Two answers to one job must agree: in the ids of a text, in the code of a failure.
fn differ(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Text(one), Outcome::Text(other)) => {
            one.ids_digest != other.ids_digest || one.finish != other.finish
        }
        (Outcome::Failed(one), Outcome::Failed(other)) => one.code != other.code,
        _ => true,
    }
}
