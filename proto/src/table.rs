//! The one table: every subject, stream, consumer, bucket and object store, with its settings.
//!
//! `subjects` builds and reads subjects, `settings` holds what each stream and bucket is set to, `durability` says
//! what an acceptance rests on. The coordinator creates what is listed here; nobody else creates anything.
//!
//! Architecture Invariant: a subject is built here and nowhere else.

use std::time::Duration;

mod durability;
mod permissions;
mod settings;
mod subjects;

pub use durability::{OLDEST_SERVER, SyncFacts, durability, server_is_new_enough, synced_after};
pub use permissions::{Permissions, Role, is_inbox, permissions};
pub use settings::{
    ACK_WAIT, CHECKPOINT_AGE_MAX, RESULT_AGE_MAX, WORK_MESSAGE_BYTES_MAX, WORKERS_PER_SHARD, answers_spec,
    files_spec, kv_specs, large_requests_spec, ledger_spec, streams, work_consumers, work_stream_spec,
};
pub use subjects::*;

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
/// Key-value bucket of who each worker is: its pod, host, class and price as they were when it came in; keys are worker
/// ids. In fleets with permissions alone.
pub const KV_GRANTS: &str = "grants";
/// Key-value bucket of what the scaler must not forget: intents of pods, settings, ledger.
pub const KV_SCALE: &str = "scale";

/// Object bucket of requests that are too large for a work message. Apart from the tenants' files, so that a worker
/// reads assigned work and nothing that a tenant has stored.
pub const LARGE_REQUESTS: &str = "requests";

/// Object bucket of what the ledger keeps outside of RESULTS: the answers of ended batches, savepoints of open ones.
pub const LEDGER: &str = "ledger";

/// Object bucket of answers that are remembered for other lines that ask for the same. A cache; the coordinator's alone.
pub const ANSWERS: &str = "answers";

/// Version of this table: of the streams, consumers and buckets and what they are set to. It grows when an older
/// coordinator must not touch what a newer one has set up. Kept in the control bucket under [`VERSION_KEY`].
pub const VERSION: u32 = 2;
pub const VERSION_KEY: &str = "table_version";
/// Key in the control bucket of the public key that checks proofs of batches, hexadecimal.
pub const PROOF_PUBLIC_KEY: &str = "proof_public_key";

/// Streams that nothing else can rebuild, by name: what a backup holds.
pub fn is_truth(stream: &str) -> bool {
    let is_bucket = ["KV_", "OBJ_"].iter().any(|prefix| stream.starts_with(prefix));
    is_bucket || [RESULTS, EVENTS, DEAD].contains(&stream)
}

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
    pub max_messages: Option<i64>,
    pub max_messages_per_subject: Option<i64>,
    pub max_message_bytes: Option<i32>,
    pub max_consumers: Option<i32>,
    pub duplicate_window: Duration,
    /// Refuse new messages when full, rather than drop old ones.
    pub discard_new: bool,
    /// The same for a subject that holds `max_messages_per_subject`.
    pub discard_new_per_subject: bool,
    /// Acknowledged before it is written, even where the server syncs always: for caches alone. Chosen when the stream
    /// is made.
    pub unsynced: bool,
}

impl StreamSpec {
    /// At a server that syncs each write before it acknowledges, a cache need not wait for that. A replicated stream has
    /// no such choice.
    #[must_use]
    pub fn at(self, syncs_always: bool) -> StreamSpec {
        let unsynced = syncs_always && self.keeps == Keeps::Cache && self.replicas == 1;
        StreamSpec { unsynced, ..self }
    }
}

/// A durable pull consumer with explicit acks. The server keeps its state in memory: on disk it would be a file that is
/// replaced for each message. A server that starts again has forgotten it, and whoever needs it makes it again.
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
    pub max_age: Option<Duration>,
}
