//! Taking work in: what is pulled, what is refused at once, how a job is claimed.
//!
//! The claim is the zeroth checkpoint, written by compare-and-set. A job of which no attempt had begun is claimed
//! without reading first; a conflict then leads to a read, and the read decides.

use std::time::Duration;

use ternfleet_proto::bus::{Delivery, Settle};
use ternfleet_proto::message::{
    Author, Checkpoint, Failure, FailureCode, Generation, Input, Work, WorkerState,
};
use ternfleet_proto::{Lane, Now};

use super::event::{
    Action, DropReason, Note, PullOutcome, Read, SlotId, StartFailure, Undecodable, WorkIdentity,
};
use super::retry::backoff;
use super::slot::{Phase, Slot, Writing, deadline_of};
use super::{ANSWERING_PER_SLOT, Core};

/// How long misrouted work stays away before it is offered again.
const MISROUTED_DELAY: Duration = Duration::from_secs(5);
/// Starts that may fail in a row before a job is given back.
const STARTS_MAX: u32 = 5;

impl Core {
    pub(super) fn on_pulled(
        &mut self,
        now: Now,
        lane: Lane,
        delivery: Delivery,
        work: Result<Box<Work>, Undecodable>,
        actions: &mut Vec<Action>,
    ) {
        let mut work = match work {
            Ok(work) => work,
            Err(fault) => return self.on_undecodable(now, delivery, fault, actions),
        };
        // The lane that it came by counts, not the one that it names.
        work.lane = lane;
        let settle = |how| Action::Settle { slot: None, delivery: delivery.clone(), how };
        if self.state != WorkerState::Ready {
            return actions.push(settle(Settle::Nak(Duration::ZERO)));
        }
        if let Some(why) = self.refusal(now, &work, &delivery) {
            self.note_drop(&work, why, actions);
            return actions.push(settle(Settle::Ack));
        }
        let profile = &self.config.profile;
        let runs = work.numerics == profile.numerics
            || work.numerics == ternfleet_text::constraint::numerics(&profile.numerics);
        if work.model_digest != profile.model_digest || !runs {
            let wants = format!("model {} with {}", work.model_digest, work.numerics);
            actions.push(Action::Note(Note::Misrouted { job: work.job.clone(), wants }));
            let delay = MISROUTED_DELAY + backoff(work.job.seed(), 1);
            return actions.push(settle(Settle::Nak(delay)));
        }
        if let Some(&id) = self.by_job.get(&work.job)
            && !self.make_way(now, id, &work, &delivery, actions)
        {
            return;
        }
        let pages = self.pages_for(work.tokens_estimate as usize);
        self.pages_a_job += (pages as f64 - self.pages_a_job) / 8.0;
        self.place(Slot::new(now, work, delivery, pages));
    }

    fn place(&mut self, slot: Slot) -> SlotId {
        let id = SlotId(self.next_slot);
        self.next_slot += 1;
        self.by_job.insert(slot.work.job.clone(), id);
        self.slots.insert(id, slot);
        id
    }

    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.config.page_tokens.max(1)).clamp(1, self.config.kv_pages.max(1))
    }

    /// Work that must not run, whatever room there is.
    fn refusal(&mut self, now: Now, work: &Work, delivery: &Delivery) -> Option<DropReason> {
        if self.is_of_deposed_leader(work, delivery) {
            Some(DropReason::DeposedLeader)
        } else if self.cancelled.contains(&work.job.batch) {
            Some(DropReason::Cancelled)
        } else if deadline_of(now, work).is_some_and(|deadline| deadline.passed(now)) {
            Some(DropReason::Expired)
        } else {
            None
        }
    }

    /// A stream is in order: work of a lower revision that lies *behind* work of a higher one was sent by a leader
    /// that had been deposed. Work that is before it was in the queue already, and is as good as ever.
    fn is_of_deposed_leader(&mut self, work: &Work, delivery: &Delivery) -> bool {
        let place = (delivery.stream.clone(), delivery.sequence);
        if work.leader > self.leader.revision {
            self.leader.revision = work.leader;
            self.leader.first_work = Some(place);
            return false;
        }
        match &mut self.leader.first_work {
            Some((stream, first)) if *stream == delivery.stream => {
                if work.leader < self.leader.revision {
                    return delivery.sequence > *first;
                }
                *first = delivery.sequence.min(*first);
            }
            _ if work.leader == self.leader.revision => self.leader.first_work = Some(place),
            _ => {}
        }
        false
    }

    /// The job is here already, in slot `id`. True if the delivery deserves a slot of its own.
    fn make_way(
        &mut self,
        now: Now,
        id: SlotId,
        work: &Work,
        delivery: &Delivery,
        actions: &mut Vec<Action>,
    ) -> bool {
        let drop = Action::Settle { slot: None, delivery: delivery.clone(), how: Settle::Ack };
        let Some(slot) = self.slots.get_mut(&id) else { return true };
        if work.epoch < slot.work.epoch {
            self.note_drop(work, DropReason::Stale, actions);
            actions.push(drop);
            return false;
        }
        if work.epoch == slot.work.epoch {
            // A redelivery: the old reply subject is void, the run continues under the new one.
            if matches!(slot.phase, Phase::Ending) {
                actions.push(drop);
                return false;
            }
            slot.delivery = delivery.clone();
            if matches!(slot.phase, Phase::Acking) {
                self.issue(now, id, actions);
            }
            return false;
        }
        if !slot.phase.is_answering() {
            // It went elsewhere and came back: the earlier run ends, and the later one waits for that.
            self.void(id, DropReason::Revoked, actions);
        }
        true
    }

    fn on_undecodable(
        &mut self,
        now: Now,
        delivery: Delivery,
        fault: Undecodable,
        actions: &mut Vec<Action>,
    ) {
        self.counters.undecodable_messages += 1;
        let Undecodable { reason, identity } = fault;
        actions.push(Action::Note(Note::Undecodable {
            subject: delivery.subject.clone(),
            reason: reason.clone(),
        }));
        let identity = identity.filter(|_| self.state == WorkerState::Ready);
        let Some(identity) = identity.filter(|identity| !self.by_job.contains_key(&identity.job)) else {
            return actions.push(Action::Settle { slot: None, delivery, how: Settle::Term });
        };
        let id = self.place(Slot::new(now, shell_of(*identity), delivery, 0));
        let failure = Failure {
            code: FailureCode::InvalidRequest,
            message: format!("the work message of this line could not be read: {reason}"),
        };
        self.answer_failure(now, id, failure, actions);
    }

    pub(super) fn on_pull_ended(
        &mut self,
        now: Now,
        lane: Lane,
        outcome: PullOutcome,
        actions: &mut Vec<Action>,
    ) {
        let started = self.config.profile.started_at.0;
        let Some(pull) = self.pulls.get_mut(&lane) else { return };
        pull.outstanding = false;
        match outcome {
            PullOutcome::Served => pull.tries = 0,
            PullOutcome::QueueGone => {
                self.queues = None;
                self.heartbeat(now, actions);
            }
            PullOutcome::Unreachable => {
                pull.tries += 1;
                pull.not_before = Some(now.mono.plus(backoff(started, pull.tries)));
            }
        }
    }

    /// Starts what has waited for room, then asks for more.
    pub(super) fn take_in(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.state != WorkerState::Ready {
            return;
        }
        let mut held: Vec<(Lane, SlotId)> = self
            .slots
            .iter()
            .filter(|(_, slot)| matches!(slot.phase, Phase::Held))
            .map(|(&id, slot)| (slot.work.lane, id))
            .collect();
        held.sort_by_key(|&(lane, id)| (lane != Lane::Interactive, id));
        let mut waiting = 0;
        let mut in_use = self.slots_in_use();
        let mut pages_free = self.pages_free();
        for (_, id) in held {
            let Some(slot) = self.slots.get(&id) else { continue };
            let job = slot.work.job.clone();
            let alone = self.slots.iter().all(|(&other, s)| other == id || s.work.job != job);
            if alone && self.answered.contains(&job) {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.enter(Phase::Recalling);
                }
                self.issue(now, id, actions);
                continue;
            }
            let fits = in_use < self.config.slots && (slot.pages <= pages_free || in_use == 0);
            if !fits || !alone {
                waiting += 1;
                // A large job at the head is not overtaken forever by small ones; one that waits for its own
                // earlier run blocks nobody.
                if alone {
                    pages_free = 0;
                    in_use = self.config.slots;
                }
                continue;
            }
            in_use += 1;
            pages_free = pages_free.saturating_sub(slot.pages);
            self.admit(now, id, actions);
        }
        self.pull(now, waiting, in_use, pages_free, actions);
    }

    fn admit(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let fresh = slot.work.attempts_before.0 == 0 && !slot.has_read;
        slot.enter(if fresh { Phase::Claiming } else { Phase::Reading });
        self.issue(now, id, actions);
    }

    /// Pulls what free slots and pages hold. The interactive lane may bring one job more than that: it waits
    /// unclaimed and takes the next place, before any of the batch lane.
    fn pull(
        &mut self,
        now: Now,
        waiting: usize,
        in_use: usize,
        pages_free: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(queues) = self.queues.clone() else { return };
        if waiting > 0 || !self.bus_up || self.answering() > self.config.slots * ANSWERING_PER_SLOT {
            return;
        }
        let by_pages = (pages_free as f64 / self.pages_a_job.max(1.0)) as usize;
        let by_pages = if in_use == 0 { by_pages.max(1) } else { by_pages };
        let room = self.config.slots.saturating_sub(in_use).min(by_pages);
        for lane in Lane::ALL {
            let Some(pull) = self.pulls.get_mut(&lane) else { continue };
            let (consumer, max) = match lane {
                Lane::Interactive => (&queues.interactive, (room / 4).max(1)),
                Lane::Batch => (&queues.batch, room),
            };
            if pull.outstanding || max == 0 || pull.not_before.is_some_and(|at| at > now.mono) {
                continue;
            }
            *pull = super::PullState { outstanding: true, not_before: None, ..*pull };
            actions.push(Action::Pull {
                lane,
                stream: queues.stream.clone(),
                consumer: consumer.clone(),
                max,
                expires: self.config.pull_expires,
            });
        }
    }

    pub(super) fn on_checkpoint_read(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: Read<(u64, Checkpoint)>,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if !matches!(slot.phase, Phase::Reading) {
            return self.on_checkpoint_reread(now, id, outcome, actions);
        }
        slot.has_read = true;
        match outcome {
            Read::Found((sequence, found)) => {
                let own = found.owner == self.config.profile.worker && found.epoch == slot.work.epoch;
                if found.epoch > slot.work.epoch || (found.epoch == slot.work.epoch && !own) {
                    return self.void(id, DropReason::Stale, actions);
                }
                slot.sequence = sequence;
                slot.begun_before |= !own || !found.claim;
                let after = found.attempt.0 + u32::from(!own && !found.released);
                slot.attempt.0 = slot.attempt.0.max(after);
                let profile = &self.config.profile;
                if found.model_digest == profile.model_digest && found.numerics == slot.work.numerics {
                    let owner = Author { worker: found.owner.clone(), host: found.host.clone() };
                    slot.kept_from = Some(found.generated_by.clone().unwrap_or(owner));
                    slot.take_over(found, self.config.keeps_text);
                } else {
                    slot.repeated = found.generated.len();
                }
            }
            Read::Nothing => slot.sequence = 0,
            Read::Unreadable(sequence) => {
                slot.sequence = sequence;
                slot.begun_before = true;
            }
            Read::Withheld | Read::Unreachable => return self.fail(now, id),
        }
        slot.enter(Phase::Claiming);
        self.issue(now, id, actions);
    }

    /// The outcome of a claim.
    pub(super) fn on_claim_written(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: super::Write,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match outcome {
            super::Write::Stored(sequence) => {
                slot.sequence = sequence;
                slot.stored_tokens = slot.ids.len();
                slot.stored_at = now.mono;
                if slot.give_back {
                    return self.release(now, id, actions);
                }
                slot.enter(Phase::Starting);
                self.issue(now, id, actions);
            }
            super::Write::Conflict => {
                slot.enter(Phase::Reading);
                self.issue(now, id, actions);
            }
            super::Write::Full | super::Write::TooLarge { .. } | super::Write::Unreachable => {
                self.fail(now, id)
            }
        }
    }

    pub(super) fn on_started(&mut self, now: Now, id: SlotId, prompt_tokens: u32, kept: u32) {
        let pages = self.pages_for(prompt_tokens as usize + 1);
        let prefilled = self.prefilled;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.prompt_tokens = prompt_tokens;
        slot.pages = slot.pages.max(pages);
        slot.prefill_mark = prefilled;
        slot.leased_prefill = prefilled;
        if !matches!(slot.phase, Phase::Starting) {
            return;
        }
        let kept = kept as usize;
        if kept < slot.ids.len() {
            slot.drop_after(kept);
        }
        if slot.begun_before {
            self.counters.reprefilled_tokens += u64::from(prompt_tokens) + kept as u64;
        }
        self.counters.repeated_tokens += slot.repeated as u64;
        slot.started_at = Some(now.mono);
        slot.stored_at = now.mono;
        slot.writing = Writing::No;
        slot.enter(Phase::Running);
    }

    pub(super) fn on_start_failed(
        &mut self,
        now: Now,
        id: SlotId,
        why: StartFailure,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.generating = false;
        match (&slot.phase, why) {
            (Phase::Starting, StartFailure::Permanent(failure)) => {
                self.answer_failure(now, id, failure, actions)
            }
            (Phase::Starting, StartFailure::Transient(reason)) => {
                actions.push(Action::Note(Note::Fault { job: slot.work.job.clone(), reason }));
                if slot.tries >= STARTS_MAX {
                    return self.hand_back_faulty(id, actions);
                }
                self.fail(now, id);
            }
            (Phase::Ending, _) => self.remove(id),
            _ => {}
        }
    }
}

/// A work message around an identity whose request could not be read; it is answered, never run.
fn shell_of(identity: WorkIdentity) -> Box<Work> {
    Box::new(Work {
        job: identity.job,
        tenant: identity.tenant,
        lane: Lane::Batch,
        epoch: identity.epoch,
        attempts_before: identity.attempts_before,
        leader: Default::default(),
        tag: identity.tag,
        checkpoint_key: Default::default(),
        model_digest: String::new(),
        numerics: String::new(),
        deadline: None,
        left_ms: None,
        tokens_estimate: 0,
        line: identity.line,
        input: Input::Inline(Generation::default()),
        traceparent: None,
    })
}
