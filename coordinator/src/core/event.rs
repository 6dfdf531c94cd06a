//! What the core is told and what it wants done. Nothing here acts: the shell performs actions and brings back
//! what came of them as events.

use std::sync::Arc;

use ternfleet_proto::message::{
    Abilities, Author, EventKind, FailedAttempt, Failure, FailureCode, Heartbeat, Input, JobCreate,
    JobResult, Line, Order, Outcome, Work,
};
use ternfleet_proto::tag::AssignmentTag;
use ternfleet_proto::{
    Attempt, BatchId, Epoch, JobKey, LeaderRevision, TenantId, TimeMs, UsdMicro, WorkerId,
};

use super::account::Account;
use super::record::BatchRecord;
use super::supply::Supply;
use super::wanted::{CacheKey, Place, Wanted};
pub use crate::route::WorkerSlot;

/// Place of a batch in the core; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchSlot(pub u32);

/// One job, in eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobRef {
    pub batch: BatchSlot,
    pub index: u32,
}

/// What makes this coordinator the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    pub revision: LeaderRevision,
    /// Which leadership this is since the fleet began, from 1. It makes every epoch of this leader higher than any
    /// of an earlier one, so that epochs need not be read back.
    pub term: u32,
}

/// A request of the input, ready to be assigned.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub line: Line,
    pub input: Input,
    /// Its output must belong to a language, so that its arithmetic is that of constraints too.
    pub constrained: bool,
    /// What an engine must be able to do for it.
    pub needs: Abilities,
    /// Prompt and expected output, in tokens.
    pub tokens_estimate: u32,
    /// What the task occupies in memory, about.
    pub bytes: u32,
    /// What it asks for, if another line's answer may be its own.
    pub wanted: Option<Wanted>,
    /// What its prompt begins with, if that is long: lines that begin alike are assigned together.
    pub start: Option<u64>,
}

/// A line of the input as the reader found it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fed {
    pub index: u32,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Blank,
    /// Not a request: the coordinator answers it itself.
    Bad(Box<(Line, Failure)>),
    Good(Arc<Task>),
}

/// The part of a [`JobResult`] that decides: everything but the text.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub job: JobKey,
    pub epoch: Epoch,
    pub attempt: Attempt,
    pub worker: WorkerId,
    pub tag: AssignmentTag,
    pub verdict: Verdict,
    /// Why the worker could not continue; of a fault alone.
    pub fault: Option<Box<str>>,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub repeated_tokens: u32,
    /// Time of its engine that it took, in all; zero from a worker that does not count it.
    pub engine_us: u64,
    pub cached_tokens: u32,
    /// The model that gave it.
    pub model: Option<Box<str>>,
    /// Whose checkpoint its worker found to be wrong.
    pub rejected: Option<Box<Author>>,
    /// Another run may give other ids.
    pub nondeterministic: bool,
    pub finished_at: TimeMs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Generated; the digest of the ids tells two runs of one job apart.
    Good { ids_digest: u64 },
    /// An error line.
    Bad,
    /// The worker could not continue: not an answer, the job goes elsewhere.
    Fault,
    /// The same, and its machine is to blame.
    HostFault,
}

impl Verdict {
    pub fn is_answer(self) -> bool {
        matches!(self, Verdict::Good { .. } | Verdict::Bad)
    }
}

/// Drops the text of a result, keeps what decides: the ledger's reading of RESULTS, in the shell and in the simulation.
impl From<&JobResult> for Answer {
    fn from(result: &JobResult) -> Answer {
        let verdict = match &result.outcome {
            Outcome::Text(generated) => Verdict::Good { ids_digest: generated.ids_digest },
            Outcome::Failed(failure) if failure.code == FailureCode::WorkerFault => Verdict::Fault,
            Outcome::Failed(failure) if failure.code == FailureCode::HostFault => Verdict::HostFault,
            Outcome::Failed(_) => Verdict::Bad,
        };
        let fault = match &result.outcome {
            Outcome::Failed(failure) if !verdict.is_answer() => Some(&failure.message),
            _ => None,
        };
        Answer {
            job: result.job.clone(),
            epoch: result.epoch,
            attempt: result.attempt,
            worker: result.worker.clone(),
            tag: result.tag,
            verdict,
            fault: fault.map(|message| message.as_str().into()),
            prompt_tokens: result.usage.prompt_tokens,
            completion_tokens: result.usage.completion_tokens,
            repeated_tokens: result.usage.repeated_tokens,
            engine_us: result.usage.engine_us,
            cached_tokens: result.usage.cached_tokens,
            model: result.line.model.as_deref().map(Into::into),
            rejected: result.rejected.clone().map(Box::new),
            nondeterministic: result.nondeterministic,
            finished_at: result.finished_at,
        }
    }
}

/// What the last checkpoint of a job says about who had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub attempt: Attempt,
    pub epoch: Epoch,
    pub owner: WorkerId,
    pub host: String,
    pub generated: u32,
    /// Given back in good order: not a fault.
    pub released: bool,
}

/// What a caller may change of a running batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Change {
    pub budget_usd_micro: Option<UsdMicro>,
    pub deadline: Option<TimeMs>,
    pub priority: Option<i8>,
}

/// Names of the written files; `None` where there was no line for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    pub output_object: Option<String>,
    pub error_object: Option<String>,
    /// All answers, for those who read them one by one: with it RESULTS need not hold them any longer.
    pub answers_object: Option<String>,
    /// The signed manifest of both.
    pub proof_object: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The lease is ours: begin to act.
    Lead(Lead),
    /// A batch has been stored: just created, or found in the bucket at the start.
    BatchKnown(Box<BatchRecord>),
    /// The input was looked through once: how many lines it has.
    Scanned {
        batch: BatchSlot,
        lines: u32,
    },
    /// The input cannot be read at all.
    InputLost {
        batch: BatchSlot,
        reason: String,
    },
    /// Lines from where the last read began, up to `next`.
    Lines {
        batch: BatchSlot,
        lines: Vec<Fed>,
        next: u32,
        end: bool,
    },
    Heartbeat(Box<Heartbeat>),
    /// The worker's consumers exist on this shard's stream.
    Registered {
        worker: WorkerId,
        shard: u16,
    },
    /// An answer at this sequence of RESULTS; must come in stream order.
    Answer {
        sequence: u64,
        answer: Box<Answer>,
    },
    /// The assignment is stored at this sequence of the shard's stream; `None`: it could not be stored.
    Handed {
        job: JobRef,
        epoch: Epoch,
        sequence: Option<u64>,
    },
    /// The message is gone from the stream; this is the job's last checkpoint.
    Withdrawn {
        job: JobRef,
        epoch: Epoch,
        trace: Option<Trace>,
    },
    /// The output files are written, or could not be.
    Written {
        batch: BatchSlot,
        outputs: Result<Outputs, String>,
    },
    /// The answer that was to be repeated is not where it was.
    NotRepeated {
        job: JobRef,
        key: CacheKey,
    },
    /// Answers are stored in this segment: key, first byte, bytes.
    SegmentKept {
        segment: u32,
        answers: Vec<(CacheKey, u32, u32)>,
    },
    SegmentGone {
        segment: u32,
    },
    Cancel {
        batch: BatchSlot,
    },
    Change {
        batch: BatchSlot,
        change: Change,
    },
    /// The webhook has taken the call, or was given up.
    Notified {
        batch: BatchId,
        outcome: Result<(), String>,
    },
    /// The record of an ended batch is stored, and its answers are in an object.
    Archived {
        batch: BatchId,
        tenant: TenantId,
    },
    /// Files and answers of an ended batch are gone; this is what is left of its record.
    AgedOut(Box<BatchRecord>),
    JobCreated(Box<JobCreate>),
    /// A pod is rented: it is paid for from `since` on, whether a worker is heard of or not. May be repeated.
    Leased(Box<Lease>),
    /// Nothing new is to be begun there: what it costs from now on is the price of giving it back.
    LeaseEnding {
        pod: String,
    },
    /// The provider bills it no longer.
    LeaseEnded {
        pod: String,
    },
    /// What the scaler can add to the fleet now.
    Supplied(Box<Supply>),
    /// What was spent and lost under earlier leaders; comes before [`Event::Lead`].
    AccountKnown(Box<Account>),
    /// A lost pod is to be shown no longer.
    Dismiss {
        pod: String,
    },
    /// Time has passed. The shell sends one every 200 ms.
    Tick,
    /// All available events are in: assign the jobs that can be assigned.
    Turn,
}

/// The terms of a rented pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub pod: String,
    pub class: String,
    pub price_usd_micro_per_hour: UsdMicro,
    /// From when on it is billed here: its creation, or the moment up to which an earlier leader has billed it.
    pub since: TimeMs,
}

/// A job to be put into a worker's queue.
#[derive(Debug, Clone, PartialEq)]
pub struct HandOut {
    pub job: JobRef,
    pub shard: u16,
    pub worker: WorkerId,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Look through the input of a new batch.
    Scan {
        batch: BatchSlot,
    },
    /// Read up to `lines` lines from line `from` on. A set bit in `skip` (bit n of word n / 64 for line `from` + n)
    /// marks a line that is answered already.
    Read {
        batch: BatchSlot,
        from: u32,
        lines: u32,
        skip: Vec<u64>,
    },
    /// Close the reader of this batch.
    StopReading {
        batch: BatchSlot,
    },
    Hand(Box<HandOut>),
    /// Delete the message, if its sequence is known, and read the job's last checkpoint.
    Withdraw {
        job: JobRef,
        key: JobKey,
        epoch: Epoch,
        shard: u16,
        sequence: Option<u64>,
    },
    Tell {
        worker: Option<WorkerId>,
        order: Order,
    },
    /// Publish an answer of the coordinator's own.
    Answer(Box<JobResult>),
    /// Remove the message at this sequence of RESULTS: it is no valid answer, or it is read no more.
    /// Publish the answer at this place as that of the result's job, in place of the result's own text.
    Repeat {
        job: JobRef,
        key: CacheKey,
        place: Place,
        result: Box<JobResult>,
    },
    /// Keep the answer at this sequence of RESULTS, for lines that will ask for the same.
    Remember {
        tenant: TenantId,
        key: CacheKey,
        sequence: u64,
    },
    /// Remove the message at this sequence of RESULTS: it is no valid answer.
    Discard {
        sequence: u64,
    },
    /// Make the worker's consumers.
    Register {
        worker: WorkerId,
        shard: u16,
    },
    /// Remove the consumers and messages of a worker that is gone.
    Retire {
        worker: WorkerId,
        shard: u16,
    },
    /// Write the output files of this batch.
    Write {
        batch: BatchSlot,
    },
    /// Store the record of a batch.
    Record(Box<BatchRecord>),
    /// Store a record in which only the totals have changed: the next one of the same batch may take its place.
    KeepTotals(Box<BatchRecord>),
    Audit(EventKind),
    /// Store what has been spent and lost.
    KeepAccount(Box<Account>),
    /// Keep a poison job with what is known of its attempts.
    Dead {
        tenant: TenantId,
        key: JobKey,
        line: Box<Line>,
        attempts: u32,
        hosts: Vec<String>,
        reason: String,
        log: Vec<FailedAttempt>,
    },
    /// Call the webhook of a batch that has ended.
    Notify(Box<BatchRecord>),
    /// Somebody waits for the answer at this sequence of RESULTS.
    Announce {
        key: JobKey,
        sequence: u64,
    },
    /// What earlier leaders left in the work streams is void.
    ClearWork,
    /// Make consumers that are missing, remove those of workers that nobody knows.
    Sweep {
        shards: std::collections::BTreeMap<u16, Vec<WorkerId>>,
    },
    /// Remove the checkpoints of these lines of an open batch: they are answered.
    Clean {
        batch: BatchId,
        lines: Vec<u32>,
    },
    /// Remove the answer of a completion, if it is still what is stored there.
    DropAnswer {
        batch: BatchId,
        sequence: u64,
    },
    /// Remove the answers of an ended batch from RESULTS, as soon as the object that holds them is on disk.
    DropAnswers {
        tenant: TenantId,
        batch: BatchId,
    },
    /// Remove what a closed batch left in the caches.
    Forget {
        batch: BatchId,
        /// It was read from a file, and its reader may have stored objects.
        read: bool,
        /// A job of it was taken back from a worker, which may be paused and still believe that the job is its own: what
        /// holds such a worker off stays for a while.
        fenced: bool,
    },
}
