//! A running job: its tokens, its checkpoints, its lease.

use std::time::Duration;

use ternfleet_proto::Now;
use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Checkpoint, TokenChunk};

use super::Core;
use super::event::{Action, End, HostFacts, Note, Read, SlotId, Steps, Tokens, Write};
use super::slot::{Phase, Writing};

/// A server's first token of a job is waited for so long.
const SERVED_WITHIN: Duration = Duration::from_secs(600);
/// Times that a generation may fail in one stay before the job is given back.
const FAULTS_MAX: u32 = 3;

impl Core {
    pub(super) fn on_tokens(&mut self, now: Now, id: SlotId, tokens: Tokens, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if !matches!(slot.phase, Phase::Running) {
            return;
        }
        slot.first_token_at.get_or_insert(now.mono);
        if tokens.stream {
            let position = slot.position_of(tokens.choice);
            let unnamed = position == 0 && slot.work.line.model.is_none();
            actions.push(Action::SendTokens(Box::new(TokenChunk {
                job: slot.work.job.clone(),
                epoch: slot.work.epoch,
                position,
                count: tokens.ids.len() as u32,
                text: tokens.text.clone(),
                logprobs: tokens.logprobs.clone(),
                choice: tokens.choice.map_or(0, u32::from),
                prompt_logprobs: tokens.prompt_logprobs,
                model: unnamed.then(|| self.config.profile.model.clone()),
                calls: tokens.calls,
                ids: tokens.shown_ids,
                prompt_ids: tokens.prompt_ids,
            })));
        }
        if let Some(choice) = tokens.choice {
            slot.choices.extend(std::iter::repeat_n(choice, tokens.ids.len()));
        }
        slot.ids.extend(tokens.ids);
        slot.logprobs.extend(tokens.logprobs);
        if self.config.keeps_text {
            slot.keep_text(&tokens.text, tokens.is_whole);
        }
        self.checkpoint_if_due(now, id, actions);
    }

    fn checkpoint_if_due(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get(&id) else { return };
        // A rejected checkpoint may have held more.
        let fresh = slot.ids.len().saturating_sub(slot.stored_tokens);
        let due = fresh >= self.config.checkpoint_tokens
            || (fresh > 0 && now.since(slot.stored_at) >= self.config.checkpoint_every);
        let free = slot.writing == Writing::No && slot.retry_at.is_none();
        if due && free && matches!(slot.phase, Phase::Running) {
            self.write_checkpoint(now, id, actions);
        }
    }

    /// Writes the next checkpoint of a running job, or reads again what somebody else has written.
    pub(super) fn write_checkpoint(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.retry_at = None;
        if slot.writing == Writing::Rereading {
            return actions.push(slot.read_checkpoint(id));
        }
        slot.writing = Writing::InFlight(slot.ids.len());
        actions.push(slot.write_checkpoint(now, id, &self.config.profile, false, false));
    }

    pub(super) fn on_checkpoint_written(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: Write,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if matches!(slot.phase, Phase::Claiming) {
            return self.on_claim_written(now, id, outcome, actions);
        }
        let Writing::InFlight(tokens) = slot.writing else { return };
        slot.writing = Writing::No;
        let releasing = matches!(slot.phase, Phase::Releasing);
        match outcome {
            Write::Stored(sequence) => {
                slot.sequence = sequence;
                slot.stored_tokens = tokens;
                slot.stored_at = now.mono;
                slot.tries = 0;
                self.counters.checkpoints += 1;
                if releasing && slot.released_with == Some(tokens) {
                    return self.released(id, actions);
                }
                if slot.give_back {
                    return self.release(now, id, actions);
                }
                self.checkpoint_if_due(now, id, actions);
            }
            // An answer that is on its way is compared with whatever else is there.
            Write::Conflict if slot.phase.is_answering() => {}
            // A later owner, an earlier write of our own, or somebody who was never given the job.
            Write::Conflict => {
                slot.writing = Writing::Rereading;
                actions.push(slot.read_checkpoint(id));
            }
            Write::Full | Write::TooLarge { .. } => {
                slot.stored_at = now.mono;
                actions.push(Action::Note(Note::CheckpointSkipped { job: slot.work.job.clone() }));
                if slot.give_back || releasing {
                    self.released(id, actions);
                }
            }
            Write::Unreachable => {
                if slot.phase.is_answering() {
                    return;
                }
                if slot.give_back && !releasing {
                    return self.release(now, id, actions);
                }
                self.fail(now, id);
            }
        }
    }

    /// The subject was read again because somebody has written there.
    pub(super) fn on_checkpoint_reread(
        &mut self,
        now: Now,
        id: SlotId,
        outcome: Read<(u64, Checkpoint)>,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.writing != Writing::Rereading || slot.phase.is_answering() {
            return;
        }
        match outcome {
            Read::Found((sequence, found)) => {
                let own = found.owner == self.config.profile.worker && found.epoch == slot.work.epoch;
                // An earlier owner's: it was written back by somebody who could read it.
                if !own && found.epoch >= slot.work.epoch {
                    slot.writing = Writing::No;
                    return self.fenced(id, actions);
                }
                slot.sequence = sequence;
                slot.stored_tokens = if own { found.generated.len().min(slot.ids.len()) } else { 0 };
            }
            // Purged, or dropped by a full stream: nobody has claimed it since.
            Read::Nothing => (slot.sequence, slot.stored_tokens) = (0, 0),
            Read::Unreadable(sequence) => (slot.sequence, slot.stored_tokens) = (sequence, 0),
            Read::Withheld | Read::Unreachable => return self.fail(now, id),
        }
        slot.writing = Writing::No;
        slot.stored_at = now.mono;
        if matches!(slot.phase, Phase::Releasing) || slot.give_back {
            self.release(now, id, actions);
        } else {
            self.checkpoint_if_due(now, id, actions);
        }
    }

    pub(super) fn on_ended(&mut self, now: Now, id: SlotId, end: End, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.generating = false;
        match (&slot.phase, end) {
            (Phase::Ending, _) => self.remove(id),
            (Phase::Running, End::Complete(whole)) => {
                let result = slot.answer(now, &self.config.profile, *whole);
                self.answer(now, id, result, actions);
            }
            (Phase::Running, End::Failed(failure)) => self.answer_failure(now, id, failure, actions),
            (Phase::Running, End::HostFault(reason)) => {
                actions
                    .push(Action::Note(Note::Fault { job: slot.work.job.clone(), reason: reason.clone() }));
                self.host_fault(now, &reason, actions);
            }
            (Phase::Running, End::KeptDiffers) if !slot.give_back => {
                let tokens = slot.kept as u32;
                slot.reject_kept();
                let (job, author) = (slot.work.job.clone(), slot.rejected.clone());
                actions.push(Action::Note(Note::CheckpointRejected { job, author, tokens }));
                slot.enter(Phase::Starting);
                self.issue(now, id, actions);
            }
            (Phase::Running | Phase::Starting, end) if !slot.give_back => {
                let reason = match end {
                    End::Fault(reason) => reason,
                    _ => "the generation ended unexpectedly".to_owned(),
                };
                actions
                    .push(Action::Note(Note::Fault { job: slot.work.job.clone(), reason: reason.clone() }));
                slot.faults += 1;
                if slot.faults >= FAULTS_MAX {
                    return self.answer_fault(now, id, reason, actions);
                }
                // What is generated by now is kept; only a start is repeated.
                slot.kept_from.take_if(|_| slot.ids.len() > slot.kept);
                let kept = slot.kept().ids.len();
                slot.drop_after(kept);
                slot.begun_before = true;
                if slot.writing == Writing::No {
                    slot.enter(Phase::Starting);
                    self.fail(now, id);
                } else {
                    self.hand_back_faulty(id, actions);
                }
            }
            _ => {}
        }
    }

    pub(super) fn on_steps(&mut self, steps: Steps, made: &[(SlotId, u32)]) {
        self.share_out(&steps, made);
        self.prefilled += steps.prefill_tokens;
        self.counters.prefill_tokens += steps.prefill_tokens;
        self.counters.decode_tokens += steps.decode_tokens;
        self.counters.head_fallbacks += steps.head.full;
        self.counters.head_screened += steps.head.screened;
        self.counters.guessed_tokens += steps.speculation.drafted;
        self.counters.right_guesses += steps.speculation.accepted;
        self.counters.prefix_cache_hits += steps.prefix_cache_hits;
        self.counters.steps += u64::from(steps.steps);
        self.counters.step_sequences += steps.sequences;
        // Summed before it is cut to milliseconds: a small model's steps take less than one.
        self.busy += steps.busy;
        self.counters.busy_ms = self.busy.as_millis() as u64;
        // Steps that prefill say little about decoding, and the other way round.
        if steps.decode_tokens >= steps.prefill_tokens || steps.overlapping {
            self.decode_rate.observe(steps.decode_tokens, steps.busy);
        } else if steps.prefill_tokens >= 4 * steps.decode_tokens && !steps.overlapping {
            self.prefill_rate.observe(steps.prefill_tokens, steps.busy);
        }
    }

    pub(super) fn on_tick(&mut self, now: Now, host: HostFacts, actions: &mut Vec<Action>) {
        self.host = host;
        self.expire(now, actions);
        self.give_back_held(now, actions);
        self.retry_due(now, false, actions);
        let ids: Vec<SlotId> = self.slots.keys().copied().collect();
        for id in ids {
            self.checkpoint_if_due(now, id, actions);
            self.extend_lease(now, id, actions);
        }
        self.heartbeat_if_due(now, actions);
    }

    /// A lease is extended only if tokens advanced since it was last extended: generated ones; or, before the first
    /// one, prompt positions computed by the engine, bounded by what its whole cache holds, since the engine does
    /// not say whose they are. A server does not say either: there it is enough that it was heard of, for a while.
    fn extend_lease(&mut self, now: Now, id: SlotId, actions: &mut Vec<Action>) {
        let prefill_max = (self.config.kv_pages * self.config.page_tokens) as u64;
        let prefilled = self.prefilled;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if !matches!(slot.phase, Phase::Running) || now.since(slot.leased_at) < self.config.lease_every {
            return;
        }
        let generated = slot.ids.len() > slot.leased_tokens.max(slot.kept);
        let prefilling = slot.is_prefilling()
            && prefilled > slot.leased_prefill
            && prefilled - slot.prefill_mark <= prefill_max;
        let served = slot.is_prefilling()
            && self.server_heard_at.is_some_and(|heard| heard > slot.leased_at)
            && slot.started_at.is_some_and(|started| now.since(started) < SERVED_WITHIN);
        if generated || prefilling || served {
            slot.leased_at = now.mono;
            slot.leased_tokens = slot.ids.len();
            slot.leased_prefill = prefilled;
            actions.push(Action::Settle {
                slot: None,
                delivery: slot.delivery.clone(),
                how: Settle::Progress,
            });
        }
    }
}
