//! One job's stay in the worker: where it stands and what it has.

use std::time::Duration;

use ternfleet_proto::bus::Delivery;
use ternfleet_proto::message::{
    Author, Checkpoint, Evidence, Failure, Generated, Heartbeat, JobResult, Line, Outcome, Timing,
    TokenLogprobs, Usage, Work,
};
use ternfleet_proto::{Attempt, Deadline, MonoMs, Now};

use super::event::{Action, Completion, Kept, SlotId, split};

/// Where a job stands. The names say what is being waited for.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Delivered, not claimed: there is no room yet, or an earlier run of the same job is still here.
    Held,
    /// It was answered here before: the stored answer is looked for, since a server may lose what it had stored.
    Recalling,
    /// The last checkpoint is being read.
    Reading,
    /// The claim is being written.
    Claiming,
    /// The claim stands; the generation was asked for.
    Starting,
    Running,
    /// The generation was cancelled, and nothing more will be said about the job; only its end is waited for.
    Ending,
    /// The job goes back: its last checkpoint is being written.
    Releasing,
    /// The result is being published.
    Answering(Box<JobResult>),
    /// Something was there already: it is being read, to be compared.
    Comparing(Box<JobResult>),
    /// The result is stored; the work message is being acknowledged.
    Acking,
}

impl Phase {
    /// Takes a place and pages in the engine, now or in a moment.
    pub(super) fn holds_engine(&self) -> bool {
        matches!(self, Self::Reading | Self::Claiming | Self::Starting | Self::Running | Self::Ending)
    }

    pub(super) fn is_answering(&self) -> bool {
        matches!(self, Self::Answering(_) | Self::Comparing(_) | Self::Acking)
    }
}

/// A checkpoint on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    No,
    /// With so many tokens in it.
    InFlight(usize),
    /// Somebody has written meanwhile, ourselves unheard perhaps: the subject is being read again.
    Rereading,
}

/// The longest beginning of an output whose text is known to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Whole {
    ids: usize,
    text_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) work: Box<Work>,
    pub(super) deadline: Option<Deadline>,
    pub(super) delivery: Delivery,
    pub(super) phase: Phase,
    pub(super) attempt: Attempt,
    /// Key/value pages promised to it.
    pub(super) pages: usize,
    /// Output so far, that of earlier attempts first.
    pub(super) ids: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// Which choice each of `ids` belongs to; empty for a job with one.
    pub(super) choices: Vec<u16>,
    /// The text of the first ids, and how many they are, where a worker without a tokenizer keeps it.
    pub(super) text: String,
    pub(super) whole: Whole,
    /// How many of `ids` an earlier attempt generated.
    pub(super) kept: usize,
    /// Who generated those, as the checkpoint says.
    pub(super) kept_from: Option<Author>,
    /// Whose output was not what is computed here.
    pub(super) rejected: Option<Author>,
    /// Output of an earlier attempt that could not be used.
    pub(super) repeated: usize,
    /// An earlier attempt had begun.
    pub(super) begun_before: bool,
    pub(super) prompt_tokens: u32,
    /// Its share of the engine's time, in this stay.
    pub(super) engine: Duration,

    /// Sequence of the last checkpoint known on the subject, 0 if none.
    pub(super) sequence: u64,
    /// The subject has been read in this stay; until then a claim may be tried blindly.
    pub(super) has_read: bool,
    pub(super) writing: Writing,
    /// The outcome of publishing the result is unknown: a conflict may be with ourselves.
    pub(super) unheard: bool,
    pub(super) stored_tokens: usize,
    pub(super) stored_at: MonoMs,
    /// Give the job back as soon as its state allows.
    pub(super) give_back: bool,
    /// The engine works on it; the slot cannot go before it ends.
    pub(super) generating: bool,
    /// The engine was asked to end it.
    pub(super) cancelling: bool,
    /// Tokens in the last checkpoint that hands it back.
    pub(super) released_with: Option<usize>,

    pub(super) pulled_at: MonoMs,
    pub(super) started_at: Option<MonoMs>,
    pub(super) first_token_at: Option<MonoMs>,
    /// When, and at which counts of tokens, the lease was last extended.
    pub(super) leased_at: MonoMs,
    pub(super) leased_tokens: usize,
    pub(super) leased_prefill: u64,
    /// The worker's prefill counter when this job started.
    pub(super) prefill_mark: u64,

    /// The phase's operation failed and is tried again then.
    pub(super) retry_at: Option<MonoMs>,
    pub(super) tries: u32,
    /// Times that its generation failed in this stay.
    pub(super) faults: u32,
}

/// When the work is void. What its coordinator says is left counts beside this machine's wall clock.
pub(super) fn deadline_of(now: Now, work: &Work) -> Option<Deadline> {
    let at = work.deadline?;
    let told = work.left_ms.map(|left| Deadline::told(now, at, Duration::from_millis(left)));
    Some(told.unwrap_or_else(|| Deadline::new(now, at)))
}

impl Slot {
    pub(super) fn new(now: Now, work: Box<Work>, delivery: Delivery, pages: usize) -> Slot {
        Slot {
            attempt: work.attempts_before.next(),
            deadline: deadline_of(now, &work),
            work,
            delivery,
            phase: Phase::Held,
            pages,
            ids: Vec::new(),
            logprobs: Vec::new(),
            choices: Vec::new(),
            text: String::new(),
            whole: Whole::default(),
            kept: 0,
            kept_from: None,
            rejected: None,
            repeated: 0,
            begun_before: false,
            prompt_tokens: 0,
            engine: Duration::ZERO,
            sequence: 0,
            has_read: false,
            writing: Writing::No,
            unheard: false,
            stored_tokens: 0,
            stored_at: now.mono,
            give_back: false,
            generating: false,
            cancelling: false,
            released_with: None,
            pulled_at: now.mono,
            started_at: None,
            first_token_at: None,
            leased_at: now.mono,
            leased_tokens: 0,
            leased_prefill: 0,
            prefill_mark: 0,
            retry_at: None,
            tries: 0,
            faults: 0,
        }
    }

    /// Enters a phase with a clean record of failures.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.retry_at = None;
        self.tries = 0;
    }

    /// Its prompt is being computed: no token has come of it since it was started.
    pub(super) fn is_prefilling(&self) -> bool {
        matches!(self.phase, Phase::Running) && self.ids.len() == self.kept
    }

    /// Generated tokens of a choice.
    pub(super) fn position_of(&self, choice: Option<u16>) -> u32 {
        match choice {
            None => self.ids.len() as u32,
            Some(choice) => self.choices.iter().filter(|&&other| other == choice).count() as u32,
        }
    }

    /// The job starts over: what was kept is not what is computed here.
    pub(super) fn reject_kept(&mut self) {
        self.repeated += self.ids.len();
        self.kept = 0;
        self.rejected = self.kept_from.take();
        (self.ids, self.logprobs, self.choices) = Default::default();
        (self.text, self.whole) = Default::default();
        // The next checkpoint is written over the wrong one as soon as there is any output.
        self.stored_tokens = 0;
    }

    pub(super) fn kept(&self) -> Kept {
        let (ids, text) = match self.text.is_empty() {
            true => (self.ids.len(), 0),
            false => (self.whole.ids, self.whole.text_bytes),
        };
        Kept {
            ids: self.ids[..ids].to_vec(),
            logprobs: self.logprobs[..ids.min(self.logprobs.len())].to_vec(),
            choices: self.choices[..ids.min(self.choices.len())].to_vec(),
            text: self.text[..text].to_owned(),
        }
    }

    /// Takes over what an earlier attempt has left.
    pub(super) fn take_over(&mut self, left: Checkpoint, with_text: bool) {
        let text = if with_text { left.text } else { String::new() };
        self.kept = left.generated.len();
        self.whole = Whole { ids: self.kept, text_bytes: text.len() };
        self.ids = left.generated;
        self.logprobs = left.logprobs;
        self.choices = left.choices;
        self.text = text;
    }

    /// Drops output that cannot be continued from, all but the first `kept` ids. It is generated again.
    pub(super) fn drop_after(&mut self, kept: usize) {
        self.repeated += self.ids.len().saturating_sub(kept);
        self.ids.truncate(kept);
        self.logprobs.truncate(kept);
        self.choices.truncate(kept);
        self.text.truncate(if kept == self.whole.ids { self.whole.text_bytes } else { 0 });
        self.whole = Whole { ids: kept, text_bytes: self.text.len() };
        self.kept = kept;
        self.stored_tokens = self.stored_tokens.min(kept);
        self.leased_tokens = self.leased_tokens.min(kept);
    }

    /// Adds the text of new ids, to be kept with them.
    pub(super) fn keep_text(&mut self, text: &str, is_whole: bool) {
        self.text.push_str(text);
        if is_whole {
            self.whole = Whole { ids: self.ids.len(), text_bytes: self.text.len() };
        }
    }

    pub(super) fn read_checkpoint(&self, slot: SlotId) -> Action {
        Action::ReadCheckpoint { slot, job: self.work.job.clone(), key: self.work.checkpoint_key }
    }

    /// The next checkpoint, if nobody has written since the last that is known.
    pub(super) fn write_checkpoint(
        &self,
        now: Now,
        slot: SlotId,
        profile: &Heartbeat,
        claim: bool,
        released: bool,
    ) -> Action {
        let Kept { ids, logprobs, choices, text } = self.kept();
        // Its first new token says that what was kept is right.
        let generated_by = self.kept_from.clone().filter(|_| self.ids.len() == self.kept);
        let checkpoint = Box::new(Checkpoint {
            job: self.work.job.clone(),
            epoch: self.work.epoch,
            tag: Some(self.work.tag),
            attempt: self.attempt,
            owner: profile.worker.clone(),
            host: profile.host.clone(),
            leader: self.work.leader,
            model_digest: profile.model_digest.clone(),
            numerics: self.work.numerics.clone(),
            generated: ids,
            logprobs,
            choices,
            text,
            generated_by,
            claim,
            released,
            at: now.wall,
        });
        Action::WriteCheckpoint { slot, checkpoint, key: self.work.checkpoint_key, expect: self.sequence }
    }

    /// The answer of a finished generation.
    pub(super) fn answer(&self, now: Now, profile: &Heartbeat, whole: Completion) -> JobResult {
        let n_choices = whole.outputs.len();
        // Log-probabilities come for all tokens or for none.
        let ids = split(&self.ids, &self.choices, n_choices).unwrap_or_default();
        let mut logprobs = split(&self.logprobs, &self.choices, n_choices).unwrap_or_default().into_iter();
        let mut choices = whole.outputs.into_iter().zip(&ids).map(|(output, ids)| Generated {
            text: output.text,
            finish: output.finish,
            ids_digest: Generated::digest_of(ids),
            logprobs: logprobs.next().unwrap_or_default(),
            prompt_logprobs: output.prompt_logprobs,
            calls: output.calls,
            ids: if output.with_ids { ids.clone() } else { Vec::new() },
            prompt_ids: output.prompt_ids,
            ..Generated::default()
        });
        let mut generated = choices.next().unwrap_or_default();
        generated.more = choices.collect();
        let answer = Generated::answer_digest(&ids);
        generated.ids_digest = answer.short();
        generated.evidence = whole.asked.map(|asked| {
            let (model_digest, numerics) = (profile.model_digest.clone(), self.work.numerics.clone());
            let request = asked.request(&model_digest, &numerics);
            Box::new(Evidence { model_digest, numerics, request, seed: asked.seed, answer })
        });
        let prompt_tokens = whole.prompt_tokens.unwrap_or(self.prompt_tokens);
        let usage = Usage {
            prompt_tokens,
            completion_tokens: self.ids.len() as u32,
            repeated_tokens: self.repeated as u32,
            reprefilled_tokens: if self.begun_before { prompt_tokens + self.kept as u32 } else { 0 },
            cached_tokens: whole.cached_tokens,
            engine_us: self.engine_us(),
        };
        self.result(now, profile, Outcome::Text(generated), usage)
    }

    pub(super) fn engine_us(&self) -> u64 {
        self.engine.as_micros() as u64
    }

    pub(super) fn failure(&self, now: Now, profile: &Heartbeat, failure: Failure) -> JobResult {
        let usage =
            Usage { prompt_tokens: self.prompt_tokens, engine_us: self.engine_us(), ..Usage::default() };
        self.result(now, profile, Outcome::Failed(failure), usage)
    }

    fn result(&self, now: Now, profile: &Heartbeat, outcome: Outcome, usage: Usage) -> JobResult {
        let span = |from: MonoMs, to: MonoMs| u32::try_from(to.since(from).as_millis()).unwrap_or(u32::MAX);
        let started = self.started_at.unwrap_or(now.mono);
        JobResult {
            job: self.work.job.clone(),
            tenant: self.work.tenant.clone(),
            epoch: self.work.epoch,
            attempt: self.attempt,
            worker: profile.worker.clone(),
            tag: self.work.tag,
            // Whoever asked for no model learns which one answered.
            line: Line {
                model: self.work.line.model.clone().or_else(|| Some(profile.model.clone())),
                ..self.work.line.clone()
            },
            outcome,
            usage,
            timing: Timing {
                queued_ms: span(self.pulled_at, started),
                first_token_ms: span(self.pulled_at, self.first_token_at.unwrap_or(now.mono)),
                total_ms: span(self.pulled_at, now.mono),
            },
            nondeterministic: !profile.abilities.deterministic,
            finished_at: now.wall,
            traceparent: self.work.traceparent.clone(),
            rejected: self.rejected.clone(),
        }
    }
}
