//! What workers say about themselves, and what the coordinator tells them outside of their queues.

use serde::{Deserialize, Serialize};

use super::abilities::Abilities;
use crate::clock::MonoMs;
use crate::id::{BatchId, Epoch, JobKey, LeaderRevision, TimeMs, WorkerId};
use crate::money::UsdMicro;
use crate::tag::AssignmentTag;

/// What a worker says about itself, each second and at every change, on the core subject `tf.fleet.heartbeat.<worker>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub worker: WorkerId,
    /// Engines of one pod share it: price is counted once a pod.
    pub pod: String,
    /// Machine identity, for poison and quarantine.
    pub host: String,
    /// Passed on unread by the worker.
    pub pod_class: String,
    pub price_usd_micro_per_hour: UsdMicro,
    pub state: WorkerState,
    pub model: String,
    pub model_digest: String,
    pub numerics: String,
    pub context_tokens: u32,
    pub slots: u32,
    pub slots_in_use: u32,
    pub kv_pages: u32,
    pub kv_pages_free: u32,
    /// Age of the oldest output that no checkpoint holds.
    #[serde(default)]
    pub checkpoint_age_ms: u64,
    pub threads: u32,
    pub isa: String,
    /// Calibration at start: tokens per second, all sequences together, by batch size.
    pub calibration: Vec<RatePoint>,
    pub prefill_tok_s: f64,
    /// EWMA over real work; 0 until measured.
    pub decode_tok_s: f64,
    /// Counters since start; the coordinator takes differences.
    pub counters: WorkerCounters,
    pub leader_seen: LeaderRevision,
    pub version: String,
    pub started_at: TimeMs,
    pub at: TimeMs,
    /// The same moment by its monotonic clock: what passed between two beats, whatever the network and the wall
    /// clocks did. Zero from a worker that does not say.
    #[serde(default)]
    pub mono: MonoMs,
    /// Jobs in the slots, so that the coordinator can reconcile.
    pub running: Vec<Running>,
    /// It has no queues to pull from: they were never assigned, or are gone.
    #[serde(default)]
    pub needs_queues: bool,
    /// Digest of what the engine made of some prompts that are the same everywhere; equal for all workers of one model
    /// and numerics. Empty: not judged.
    #[serde(default)]
    pub canary: String,
    /// Decode speed at all slots by number of threads, measured when the number was left to the worker.
    #[serde(default)]
    pub thread_scaling: Vec<ThreadPoint>,
    /// What its engine can do; everything, where nothing is said.
    #[serde(default, skip_serializing_if = "Abilities::is_all")]
    pub abilities: Abilities,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThreadPoint {
    pub threads: u32,
    pub tok_s: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    pub batch: u32,
    pub tok_s: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub job: JobKey,
    pub epoch: Epoch,
    /// Of the assignment, as it came with the work message: a new leader lets a job run on where it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<AssignmentTag>,
    pub generated: u32,
    /// As in [`crate::message::Usage`], so far.
    #[serde(default)]
    pub engine_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Calibrating,
    Ready,
    Draining,
    Gone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerCounters {
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub repeated_tokens: u64,
    pub reprefilled_tokens: u64,
    pub jobs_done: u64,
    pub jobs_failed: u64,
    pub jobs_released: u64,
    pub checkpoints: u64,
    pub fenced: u64,
    pub duplicates: u64,
    pub divergences: u64,
    pub undecodable_messages: u64,
    pub prefix_cache_hits: u64,
    pub head_fallbacks: u64,
    pub busy_ms: u64,
    pub throttled_ms: u64,
    /// Forward steps, and the sequences that took part in them: their quotient is the mean batch size.
    pub steps: u64,
    pub step_sequences: u64,
    /// Tokens drawn from the screened output head; [`WorkerCounters::head_fallbacks`] counts the others.
    pub head_screened: u64,
    /// Tokens guessed ahead, and how many of them were right.
    pub guessed_tokens: u64,
    pub right_guesses: u64,
    /// Tries to end a pod that nobody commands any more; the worker itself is gone.
    pub dead_man_failures: u64,
}

/// From the coordinator to one worker (`tf.fleet.control.<worker>`) or to all (`tf.fleet.control.all`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub leader: LeaderRevision,
    pub order: Order,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The job has gone to another worker: stop it unless it runs under a later epoch.
    Revoke { job: JobKey, epoch: Epoch },
    /// Stop every job of the batch and publish nothing more for it.
    Cancel { batch: BatchId },
    /// Finish by handing everything back, then exit.
    Drain,
    /// The worker's queues are there: pull from these consumers of this stream.
    Assigned { shard: u16, interactive: String, batch: String },
    /// Nothing is known of this worker (the coordinator restarted): send a heartbeat now.
    Identify,
}

/// Where a worker runs and what that costs. Said once, when it comes in; kept from then on, whatever heartbeats say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFacts {
    pub pod: String,
    pub host: String,
    pub pod_class: String,
    pub price_usd_micro_per_hour: UsdMicro,
}

/// `tf.join.<name>`: a pod with a join token, or a worker whose token runs out, asks for a worker's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Who it wants to be. Must be new, or the asker itself.
    pub worker: WorkerId,
    /// Public keys; the private halves stay where they were made.
    pub worker_key: String,
    #[serde(default)]
    pub pod_key: Option<String>,
    /// Left out by workers up to 0.1.0: then the first heartbeat is taken for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<WorkerFacts>,
}

/// The answer, inside a [`crate::message::Reply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// JWT for `worker_key`, named as the worker.
    pub worker_token: String,
    /// JWT for `pod_key`, to join again after a restart.
    #[serde(default)]
    pub pod_token: Option<String>,
    pub expires_at: TimeMs,
}

/// `tf.fleet.failed.<name>`: why the worker of a pod never ran. Nobody answers; the pod ends itself next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailed {
    /// What it calls itself; counts only where the name that it joins with says so too.
    pub pod: String,
    pub why: String,
    /// The last lines of its log, oldest first.
    #[serde(default)]
    pub log: Vec<String>,
}
