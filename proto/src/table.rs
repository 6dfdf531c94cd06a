//! The one table: every subject, stream, consumer, bucket and object store, with its settings.
//!
//! Architecture Invariant: a subject is built here and nowhere else.

use std::time::Duration;

use crate::id::{BatchId, JobKey, Lane, TenantId, WorkerId};

pub const CHECKPOINTS: &str = "CHECKPOINTS";
pub const RESULTS: &str = "RESULTS";
pub const EVENTS: &str = "EVENTS";
pub const DEAD: &str = "DEAD";
pub const ADVISORIES: &str = "ADVISORIES";
/// Key-value bucket of [`crate::message::BatchView`]s' durable part, one key a batch.
pub const KV_BATCHES: &str = "batches";
/// Key-value bucket of the leader's lease, the assignment key and the fleet's identity.
pub const KV_CONTROL: &str = "control";
/// Key-value bucket of what is known of uploaded files besides their content; keys `<tenant>.<object>`.
pub const KV_FILES: &str = "files";

/// Which copy is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// File storage, replicated in production; nothing else can rebuild it.
    Truth,
    /// Rebuilt from the truth.
    Cache,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Limits,
    WorkQueue,
}

/// Settings of a stream. Everything not named here is the server's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: String,
    pub subjects: Vec<String>,
    pub keeps: Keeps,
    pub retention: Retention,
    pub replicas: usize,
    pub max_age: Option<Duration>,
    pub max_bytes: Option<i64>,
    pub max_messages_per_subject: Option<i64>,
    pub max_message_bytes: Option<i32>,
    pub max_consumers: Option<i32>,
    pub duplicate_window: Duration,
    /// Refuse new messages when full, rather than drop old ones.
    pub discard_new: bool,
}

/// A durable pull consumer with explicit acks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    pub stream: String,
    pub name: String,
    pub filter: String,
    pub ack_wait: Duration,
    pub max_ack_pending: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    pub bucket: String,
    pub replicas: usize,
    pub history: i64,
    pub max_age: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSpec {
    pub bucket: String,
    pub replicas: usize,
    pub max_bytes: Option<i64>,
}

/// Name of a work stream. At most 500 workers share one: 1,000 consumers is the server's default limit.
pub fn work_stream(shard: u16) -> String {
    format!("WORK-{shard}")
}

/// `tf.work.<shard>.<worker>.<lane>`: the shard is a token because streams must not overlap in subjects.
pub fn work(shard: u16, worker: &WorkerId, lane: Lane) -> String {
    format!("tf.work.{shard}.{worker}.{}", lane.as_str())
}

pub fn work_consumer(worker: &WorkerId, lane: Lane) -> String {
    format!("{worker}-{}", lane.as_str())
}

pub fn checkpoint(job: &JobKey) -> String {
    format!("tf.ckpt.{}.{}", job.batch, job.index)
}

pub fn checkpoints_of(batch: &BatchId) -> String {
    format!("tf.ckpt.{batch}.>")
}

pub fn result(tenant: &TenantId, job: &JobKey, worker: &WorkerId) -> String {
    format!("tf.result.{tenant}.{}.{}.{worker}", job.batch, job.index)
}

pub fn results_of(tenant: &TenantId, batch: &BatchId) -> String {
    format!("tf.result.{tenant}.{batch}.>")
}

pub fn results_all() -> &'static str {
    "tf.result.>"
}

pub fn event(kind: &str) -> String {
    format!("tf.event.{kind}")
}

pub fn dead(tenant: &TenantId, job: &JobKey) -> String {
    format!("tf.dead.{tenant}.{}.{}", job.batch, job.index)
}

pub fn heartbeat(worker: &WorkerId) -> String {
    format!("tf.fleet.heartbeat.{worker}")
}

pub fn heartbeats() -> &'static str {
    "tf.fleet.heartbeat.*"
}

pub fn control(worker: &WorkerId) -> String {
    format!("tf.fleet.control.{worker}")
}

pub fn control_all() -> &'static str {
    "tf.fleet.control.all"
}

pub fn tokens(job: &JobKey) -> String {
    format!("tf.token.{}.{}", job.batch, job.index)
}

/// Core subject on which the coordinator announces the committed answer (`JobResult`) of a job that somebody waits for.
pub fn done(job: &JobKey) -> String {
    format!("tf.done.{}.{}", job.batch, job.index)
}

pub fn api(verb: ApiVerb) -> String {
    format!("tf.api.{}", verb.as_str())
}

pub fn api_all() -> &'static str {
    "tf.api.*"
}

/// The coordinator's verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiVerb {
    BatchCreate,
    BatchGet,
    BatchList,
    BatchCancel,
    BatchSet,
    Results,
    Pods,
    JobCreate,
}

impl ApiVerb {
    pub const ALL: [ApiVerb; 8] = [
        ApiVerb::BatchCreate,
        ApiVerb::BatchGet,
        ApiVerb::BatchList,
        ApiVerb::BatchCancel,
        ApiVerb::BatchSet,
        ApiVerb::Results,
        ApiVerb::Pods,
        ApiVerb::JobCreate,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ApiVerb::BatchCreate => "batch_create",
            ApiVerb::BatchGet => "batch_get",
            ApiVerb::BatchList => "batch_list",
            ApiVerb::BatchCancel => "batch_cancel",
            ApiVerb::BatchSet => "batch_set",
            ApiVerb::Results => "results",
            ApiVerb::Pods => "pods",
            ApiVerb::JobCreate => "job_create",
        }
    }

    pub fn parse(subject: &str) -> Option<ApiVerb> {
        let verb = subject.strip_prefix("tf.api.")?;
        Self::ALL.into_iter().find(|v| v.as_str() == verb)
    }
}

/// Bucket of a tenant's inputs and outputs.
pub fn files_bucket(tenant: &TenantId) -> String {
    format!("files_{tenant}")
}
