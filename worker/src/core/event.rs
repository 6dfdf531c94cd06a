//! The core's language: events that come in, actions that go out, and the small types both use.
//!
//! Each action that can fail is answered by exactly one event that names its slot; an answer for a slot that is gone
//! is ignored. An outcome `Unreachable` means that the operation may or may not have happened.

use std::time::Duration;

use ternfleet_engine::{HeadCounters, SpeculationCounters};
use ternfleet_proto::bus::{Delivery, Settle};
use ternfleet_proto::message::{
    Author, Call, CallPiece, Checkpoint, Control, Failure, Finish, Heartbeat, JobResult, Line, TokenChunk,
    TokenLogprobs, Work,
};
use ternfleet_proto::tag::{AssignmentTag, CheckpointKey};
use ternfleet_proto::{Attempt, Epoch, JobKey, Lane, TenantId};

use crate::asked::Asked;

/// One stay of a job in this worker, from its delivery to its settlement. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u64);

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A message of a pull. `delivery.payload` is not read and may be empty.
    WorkPulled {
        lane: Lane,
        delivery: Delivery,
        work: Result<Box<Work>, Undecodable>,
    },
    /// The pull of this lane is over; its messages came before.
    PullEnded {
        lane: Lane,
        outcome: PullOutcome,
    },
    CheckpointRead {
        slot: SlotId,
        outcome: Read<(u64, Checkpoint)>,
    },
    CheckpointWritten {
        slot: SlotId,
        outcome: Write,
    },
    /// The generation was admitted. Its prompt has so many tokens, and so many of the kept ones could be used.
    Started {
        slot: SlotId,
        prompt_tokens: u32,
        kept: u32,
    },
    StartFailed {
        slot: SlotId,
        why: StartFailure,
    },
    Tokens {
        slot: SlotId,
        tokens: Tokens,
    },
    /// No generation of this slot runs any more.
    Ended {
        slot: SlotId,
        end: End,
    },
    ResultWritten {
        slot: SlotId,
        outcome: Write,
    },
    ResultRead {
        slot: SlotId,
        outcome: Read<JobResult>,
    },
    Settled {
        slot: SlotId,
        outcome: Settled,
    },
    /// What the engine did since the last such event, and the tokens that came of it by job. Comes after the starts
    /// and before the tokens and ends of the same steps.
    Steps {
        steps: Steps,
        made: Vec<(SlotId, u32)>,
    },
    Order(Control),
    Tick {
        host: HostFacts,
    },
    /// The machine is at fault: what runs here goes elsewhere, and nothing more is taken.
    HostFault {
        reason: String,
    },
    /// The server that computes for this worker was heard of just now, or is not there: then what runs goes back, and nothing
    /// is taken until it is.
    Server {
        ready: bool,
    },
    /// The process was asked to end: the first time in good order, the second at once.
    Signal,
    Bus {
        up: bool,
    },
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Action {
    Pull {
        lane: Lane,
        stream: String,
        consumer: String,
        max: usize,
        expires: Duration,
    },
    ReadCheckpoint {
        slot: SlotId,
        job: JobKey,
        key: CheckpointKey,
    },
    /// Compare-and-set on the job's checkpoint subject.
    WriteCheckpoint {
        slot: SlotId,
        checkpoint: Box<Checkpoint>,
        key: CheckpointKey,
        expect: u64,
    },
    StartGeneration {
        slot: SlotId,
        work: Box<Work>,
        kept: Kept,
    },
    CancelGeneration {
        slot: SlotId,
    },
    /// Publish on the worker's own result subject, expecting that nothing is there.
    PublishResult {
        slot: SlotId,
        result: Box<JobResult>,
    },
    ReadResult {
        slot: SlotId,
        tenant: TenantId,
        job: JobKey,
    },
    /// With a slot, the outcome comes back as [`Event::Settled`]; without, nobody waits.
    Settle {
        slot: Option<SlotId>,
        delivery: Delivery,
        how: Settle,
    },
    SendHeartbeat(Box<Heartbeat>),
    SendTokens(Box<TokenChunk>),
    /// Nothing to do: something worth a line in the log and a count.
    Note(Note),
    /// Close the bus and end.
    Exit,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullOutcome {
    Served,
    /// Stream or consumer is gone: wait to be assigned again.
    QueueGone,
    Unreachable,
}

/// How a read ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Read<T> {
    Found(T),
    Nothing,
    /// What is there cannot be decoded, or was written by a worker that was not assigned the job; its sequence, so that it can
    /// be written over.
    Unreadable(u64),
    /// This worker may not read there.
    Withheld,
    Unreachable,
}

/// How a conditional publish ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Stored(u64),
    /// Somebody else wrote there.
    Conflict,
    /// The stream has no room.
    Full,
    /// The message is larger than the server takes.
    TooLarge {
        bytes: usize,
        max_bytes: usize,
    },
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Done,
    Unreachable,
}

/// A work message that is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Undecodable {
    pub reason: String,
    /// Enough of it to answer the job, if that much could be read.
    pub identity: Option<Box<WorkIdentity>>,
}

/// The part of a work message that identifies the job and proves the assignment.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct WorkIdentity {
    pub job: JobKey,
    pub tenant: TenantId,
    pub epoch: Epoch,
    pub attempts_before: Attempt,
    pub tag: AssignmentTag,
    pub line: Line,
}

/// Output of an earlier attempt, to continue from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    pub ids: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    /// Which choice each id belongs to; empty for a job with one.
    pub choices: Vec<u16>,
    /// The text of the ids, from a worker without a tokenizer.
    pub text: String,
}

impl Kept {
    /// The ids of each choice; `None` when they cannot be used. Without the log-probabilities of the kept tokens the
    /// answer would lack them: then it starts over.
    pub fn by_choice(&self, n_choices: usize, with_logprobs: bool) -> Option<Vec<Vec<u32>>> {
        if with_logprobs && self.logprobs.len() != self.ids.len() {
            return None;
        }
        split(&self.ids, &self.choices, n_choices)
    }
}

/// Parts what came in the order of its coming by choice; `None` when it does not belong to so many choices.
pub fn split<T: Clone>(items: &[T], choices: &[u16], n_choices: usize) -> Option<Vec<Vec<T>>> {
    let mut parts = vec![Vec::new(); n_choices.max(1)];
    if n_choices <= 1 {
        parts[0] = items.to_vec();
        return Some(parts);
    }
    if choices.len() != items.len() {
        return None;
    }
    for (item, &choice) in items.iter().zip(choices) {
        parts.get_mut(usize::from(choice))?.push(item.clone());
    }
    Some(parts)
}

/// Output that has just come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Text that is certain by now; it may lag behind the ids.
    pub text: String,
    /// Parts of calls, after the text.
    pub calls: Vec<CallPiece>,
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt, before a choice's first tokens, where the caller asked for them.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Whose they are, where the job has several choices.
    pub choice: Option<u16>,
    /// The caller wants to see it as it comes.
    pub stream: bool,
    /// Ids for the caller, if it wants them: those whose text is complete, and those of the prompt.
    pub shown_ids: Vec<u32>,
    pub prompt_ids: Vec<u32>,
    /// `text` is all the text of the ids so far. Only where text is kept with the ids is it looked at.
    pub is_whole: bool,
}

/// How a generation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Complete(Box<Completion>),
    /// As asked for by [`Action::CancelGeneration`].
    Cancelled,
    /// The kept output is not what this engine computes for the request.
    KeptDiffers,
    /// No engine can continue with it: the answer of the job.
    Failed(Failure),
    /// The engine cannot continue with it.
    Fault(String),
    /// The machine is at fault, not the job.
    HostFault(String),
}

/// All outputs of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// One a choice, at least one.
    pub outputs: Vec<Output>,
    pub cached_tokens: u32,
    /// Where they were not known at the start.
    pub prompt_tokens: Option<u32>,
    /// None from an engine whose answers are not the same bits everywhere.
    pub asked: Option<Asked>,
}

/// A whole output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// All of it, that of earlier attempts included.
    pub text: String,
    pub calls: Vec<Call>,
    pub finish: Finish,
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Where the caller wants ids: those of the prompt, and whether those of the output are wanted.
    pub prompt_ids: Vec<u32>,
    pub with_ids: bool,
}

/// Why a generation did not start.
#[derive(Debug, Clone, PartialEq)]
pub enum StartFailure {
    /// It would fail again: the answer of the job.
    Permanent(Failure),
    /// Worth trying again.
    Transient(String),
}

/// Sums over forward steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steps {
    pub steps: u32,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    /// Sequences that took part, summed over the steps.
    pub sequences: u64,
    pub busy: Duration,
    pub head: HeadCounters,
    pub speculation: SpeculationCounters,
    pub prefix_cache_hits: u64,
    /// Prompts and outputs are computed at once, so that the steps say nothing of the speed of prompts.
    pub overlapping: bool,
}

/// What only the shell can see; passed on in heartbeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub throttled_ms: u64,
}

/// Something worth a line in the log and a count.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// One job is answered: its result is stored.
    Answered(Box<JobResult>),
    /// The job was answered under this worker's name before.
    Duplicate { job: JobKey, diverges: bool },
    /// Somebody else owns the job now.
    Fenced { job: JobKey, epoch: Epoch },
    /// The job went back in good order.
    Released { job: JobKey, epoch: Epoch, generated: u32 },
    /// The job was dropped without an answer of this worker.
    Dropped { job: JobKey, epoch: Epoch, why: DropReason },
    /// A message could not be decoded.
    Undecodable { subject: String, reason: String },
    /// A message of a deposed leader was refused.
    StaleLeader { what: &'static str },
    /// Results cannot be stored: the stream is full.
    ResultsFull { job: JobKey },
    /// A stored checkpoint was too large or had no room; the job continues without.
    CheckpointSkipped { job: JobKey },
    /// A generation could not start or continue; it is tried again.
    Fault { job: JobKey, reason: String },
    /// Somebody stepped this machine's wall clock.
    ClockStepped { by_ms: i64 },
    /// Output in a checkpoint was not what is computed here: so many tokens are dropped, and the job starts over.
    CheckpointRejected { job: JobKey, author: Option<Author>, tokens: u32 },
    /// Work for another model or other arithmetic came; it goes back.
    Misrouted { job: JobKey, wants: String },
}

/// Why a job left without an answer of this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    Stale,
    Revoked,
    Cancelled,
    Expired,
    DeposedLeader,
}

impl DropReason {
    pub const ALL: [DropReason; 5] =
        [Self::Stale, Self::Revoked, Self::Cancelled, Self::Expired, Self::DeposedLeader];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Revoked => "revoked",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::DeposedLeader => "deposed_leader",
        }
    }
}
