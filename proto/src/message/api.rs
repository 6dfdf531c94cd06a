//! What callers ask of the coordinator, by request and reply on `tf.api.<verb>`.

use serde::{Deserialize, Serialize};

use crate::id::{BatchId, TenantId, TimeMs, WorkerId};
use crate::message::{DeadJob, Generation, Heartbeat, JobResult, Line, Promise, Stall, WorkSample};
use crate::money::UsdMicro;
use crate::openai::Endpoint;

/// Every answer: the value, or a refusal in words with a closed code.
pub type Reply<T> = Result<T, Refusal>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: RefusalCode,
    pub message: String,
    /// When it is worth trying again.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The request itself is wrong.
    Invalid,
    NotFound,
    /// The same idempotency key came with other content, or the state does not allow it.
    Conflict,
    /// The tenant's quota is used up for now.
    Busy,
    /// Deadline, budget or capacity cannot be met; the message says which binds.
    Unaffordable,
    /// The fleet is less durable than the request demands.
    NotDurable,
    /// No worker serves the model, and no class of pods could.
    ModelNotFound,
    /// The coordinator is not ready.
    Unavailable,
}

/// `tf.api.batch_create`. The input object must be in `files.<tenant>` already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchCreate {
    pub tenant: TenantId,
    /// Repeating a creation with the same key answers with the first batch.
    pub idempotency_key: String,
    pub input_object: String,
    pub name: Option<String>,
    /// When given, a line that names another endpoint is an error line.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    #[serde(default)]
    pub options: BatchOptions,
    /// Caller's own pairs, returned unread.
    #[serde(default)]
    pub metadata: std::collections::BTreeMap<String, String>,
    /// W3C trace context, when the caller is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// When given, the batch is quoted first, and refused if it cannot be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkSample>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchOptions {
    /// Finish by then; `None` means the completion window alone.
    pub deadline: Option<TimeMs>,
    /// OpenAI's completion window, 24 h unless given.
    pub completion_window_ms: Option<u64>,
    pub budget_usd_micro: Option<UsdMicro>,
    /// -10 (last) to 10 (first); 0 unless given.
    pub priority: i8,
    /// Refuse unless the truth is at least this durable.
    pub durability: Option<Durability>,
    /// For the lines that name no model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Called at the end, with the batch object, until it takes it.
    pub webhook_url: Option<String>,
    /// Signs the call, as Standard Webhooks has it: `whsec_` and base64. Never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_secret: Option<String>,
    /// Accept the batch even if its quote says that it cannot be kept.
    pub accept_at_risk: bool,
    /// Accept the batch even if nobody serves its models yet; it waits for a worker that does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_model: bool,
    /// Output and error files are removed so many seconds after they were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_expires_after_s: Option<u64>,
}

/// What "accepted" rests on, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Memory storage: lost with the server.
    Memory,
    /// A file that is synced at intervals (NATS default: 2 minutes): survives a process, not a power cut.
    Stored,
    /// Stored on several servers.
    Replicated,
    /// Synced to disk before the acknowledgement, on every replica.
    Fsynced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    Validating,
    InProgress,
    /// Budget spent: waits for more of it, or for its deadline.
    PausedBudget,
    Finalizing,
    Completed,
    Failed,
    Expired,
    Cancelling,
    Cancelled,
}

impl BatchState {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }
}

/// A batch as callers see it; `openai::BatchObject` renders it as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchView {
    pub id: BatchId,
    pub tenant: TenantId,
    pub name: Option<String>,
    pub state: BatchState,
    pub input_object: String,
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// Set when finished.
    pub output_object: Option<String>,
    pub error_object: Option<String>,
    /// The signed manifest of both files; none of engines whose answers are not the same bits everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_object: Option<String>,
    /// Lines with a job; grows while the input is still being read.
    pub total: u32,
    pub completed: u32,
    pub failed: u32,
    pub total_is_final: bool,
    pub created_at: TimeMs,
    pub started_at: Option<TimeMs>,
    /// Somebody asked for its end.
    #[serde(default)]
    pub cancelling_at: Option<TimeMs>,
    /// Every line was answered, or its time was up; its output files are being written from then on.
    #[serde(default)]
    pub finalizing_at: Option<TimeMs>,
    pub ended_at: Option<TimeMs>,
    pub expires_at: TimeMs,
    pub options: BatchOptions,
    pub metadata: std::collections::BTreeMap<String, String>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub wasted_tokens: u64,
    pub cost_usd_micro: UsdMicro,
    /// What its last jobs cost beyond its budget. Nobody pays for it.
    #[serde(default)]
    pub over_budget_usd_micro: UsdMicro,
    /// Tokens per second over the last seconds.
    pub rate_tok_s: f64,
    /// None while it does not advance.
    pub finish_estimate: Option<TimeMs>,
    pub durability: Durability,
    pub replicas: u32,
    /// Why a batch failed as a whole, or what [`BatchView::stall`] says.
    pub reason: Option<String>,
    /// Why it does not advance; none while it does, and once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// What was quoted when it was accepted.
    #[serde(default)]
    pub quote: Option<Promise>,
    /// How the call at the end fares; `None` without a webhook.
    #[serde(default)]
    pub webhook: Option<WebhookState>,
    /// The model that answered, of the first good answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Prompt tokens that workers found computed already.
    #[serde(default)]
    pub cached_tokens: u64,
    /// When its output files go, if they do before old batches' files do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_expire_at: Option<TimeMs>,
    /// Some of its answers another run might give otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nondeterministic: bool,
}

/// Where the call at the end of a batch stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    /// The batch has not ended.
    Waiting,
    /// It is being called, again and again until it takes the call.
    Calling,
    Delivered,
    GivenUp(String),
}

/// `tf.api.batch_list`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchList {
    pub tenant: TenantId,
    pub after: Option<BatchId>,
    pub limit: u32,
}

/// `tf.api.batch_get`, `tf.api.batch_cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRef {
    pub tenant: TenantId,
    pub id: BatchId,
}

/// `tf.api.batch_set`: changes what is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchSet {
    pub tenant: TenantId,
    pub id: BatchId,
    pub budget_usd_micro: Option<UsdMicro>,
    pub deadline: Option<TimeMs>,
    pub priority: Option<i8>,
}

/// `tf.api.dead_list`: jobs that were given up, oldest first, as the stream DEAD keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadList {
    pub tenant: TenantId,
    /// Only those of this batch.
    pub batch: Option<BatchId>,
    /// [`DeadPage::next`] of the page before, 0 for the first.
    pub after: u64,
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadPage {
    pub jobs: Vec<DeadJob>,
    pub next: u64,
    pub end: bool,
}

/// `tf.api.results`: committed answers in the order of their commit, from `after` on; waits up to `wait_ms` for more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultsRequest {
    pub tenant: TenantId,
    pub id: BatchId,
    /// How many commits the caller has read.
    pub after: u64,
    pub limit: u32,
    pub wait_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultsPage {
    pub lines: Vec<JobResult>,
    /// Pass as `after` next time.
    pub next: u64,
    /// The batch has ended and nothing follows this page.
    pub end: bool,
    pub batch: BatchView,
}

/// `tf.api.job_create`: one job outside of any file, at high priority, for somebody who waits.
///
/// The caller makes up the batch id (index 0), subscribes to `tf.done.<batch>.0` and `tf.token.<batch>.0`, then asks.
/// The coordinator keeps no object for it; its answer is in RESULTS like any other. Whoever waits asks again from time to
/// time, with `again`: a new leader knows nothing of it until then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobCreate {
    pub tenant: TenantId,
    pub batch: BatchId,
    pub line: Line,
    pub generation: Generation,
    pub deadline: TimeMs,
    /// W3C trace context, when the caller is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The job was asked for before: it may be running, or answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// As in [`BatchOptions::wait_for_model`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_model: bool,
}

/// `tf.api.tenant_open`: makes the tenant's bucket for files, if it is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantOpen {
    pub tenant: TenantId,
}

/// `tf.api.file_delete`: a batch that has not ended keeps its input; the refusal names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    pub tenant: TenantId,
    /// Name of the object.
    pub object: String,
}

/// `tf.api.pods`: workers in the order of their names, as many as a message holds. `()` asks for the first page. An empty
/// page is the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodList {
    /// The last worker of the page before.
    #[serde(default)]
    pub after: Option<WorkerId>,
}

/// An element of the answer to [`PodList`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    pub heartbeat: Heartbeat,
    /// False while it is quiet: its heartbeats are late.
    pub live: bool,
    pub rate_tok_s: f64,
    pub usd_micro_per_million_tokens: Option<UsdMicro>,
    pub tokens: u64,
    pub cost_usd_micro: UsdMicro,
    pub busy_ratio: f64,
    pub queued_jobs: u32,
}
