//! Settings of the coordinator: what can be configured, with units in the names and defaults that work on one machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::gateway::GatewayOptions;

mod scale;

pub use scale::{
    ClassEngine, ClassOptions, LocalOptions, PodOptions, ProviderKind, RunpodOptions, ScaleOptions,
    VolumeOptions, resolved,
};

/// What one tenant may have queued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Batches that have not ended.
    pub batches_max: u32,
    /// Bytes of input lines without an answer.
    pub queued_bytes_max: u64,
    /// Tokens of input lines without an answer, estimated from their bytes.
    pub queued_tokens_max: u64,
    /// Lines of batches that have not ended, blank ones between others included; the ledger takes 16 bytes for each.
    pub queued_lines_max: u32,
    /// Single completions without an answer.
    pub completions_max: u32,
    /// What single completions may cost an hour; 0 is no limit.
    pub completions_usd_per_hour_max: f64,
    /// Bytes of all files, inputs and outputs, until they age out or are deleted.
    pub stored_bytes_max: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            batches_max: 1000,
            queued_bytes_max: 16 << 30,
            queued_tokens_max: 4 << 30,
            queued_lines_max: 10_000_000,
            completions_max: 512,
            completions_usd_per_hour_max: 0.0,
            stored_bytes_max: 256 << 30,
        }
    }
}

/// What streams may take of the server's disk; JetStream sets that aside when it makes them. 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streams {
    /// Answers. When it is nearly full nothing new is accepted; when it is full workers keep their answers and try again.
    pub results_bytes_max: u64,
    /// Checkpoints. When it is full the oldest go: their jobs start again, should they move.
    pub checkpoints_bytes_max: u64,
}

/// The calls at the end of batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhooks {
    /// Hosts (`host` or `host:port`) that tenants may have called although their addresses are private, and by
    /// `http://` too. All public hosts may be called by `https://`.
    pub allow: Vec<String>,
}

/// How long an ended batch is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Its input, its output files and its answers go so long after its end; 0 keeps them forever (answers stay 30 days
    /// at most).
    pub files_ms: u64,
    /// Its record goes so long after its end, and not before a day after its deadline: until then a late answer is
    /// known for one, and the same idempotency key names the same batch.
    pub records_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { files_ms: 30 * 86_400_000, records_ms: 90 * 86_400_000 }
    }
}

/// Answers that are remembered for lines that ask for the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheOptions {
    /// Answers that are known at a time, in memory; 0 remembers none. Lines of one batch that wait together for the same
    /// answer run once in any case.
    pub entries_max: u32,
    /// Bytes that are stored for a tenant; the oldest go first. With 0, answers are known while they are in RESULTS.
    pub bytes_max: u64,
    /// Stored answers go after so long.
    pub age_ms: u64,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { entries_max: 1_000_000, bytes_max: 256 << 20, age_ms: 7 * 86_400_000 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where the gateway, `/healthz`, `/readyz` and `/metrics` answer; nowhere when absent.
    pub http: Option<SocketAddr>,
    /// Name of this process among the coordinators; made up when absent.
    pub name: Option<String>,
    /// Replicas of the truth (streams RESULTS and EVENTS, buckets); 3 in a cluster.
    pub replicas: u32,
    /// NATS's monitoring address (`http://host:8222`), to read how often it syncs; unknown counts as seldom.
    pub nats_monitoring_url: Option<String>,
    /// Refuse to lead when the truth is not synced before it is acknowledged.
    pub strict_durability: bool,
    /// Work with a nats-server older than 2.14, which is known to lose acknowledged writes when it is killed.
    pub allow_old_server: bool,
    /// Share of good answers that are run a second time on another pod and compared; 0 turns audits off.
    pub audit_share: f64,
    /// Signing keys to let pods in with (`ternfleet nats init` writes it); without it join tokens are refused.
    pub issuer_file: Option<PathBuf>,
    /// Files that pods may fetch from `/dist/` with the token of their order, besides this program itself.
    pub dist_dir: Option<PathBuf>,
    /// Where `/dist/` alone is served, for pods that do not reach `http`; whoever has no token gets nothing there.
    pub dist_http: Option<SocketAddr>,
    /// How long a worker's credentials last; they are renewed at half of it.
    pub worker_token_ms: u64,
    /// How long a pod may be away and still come back without a new join token.
    pub pod_token_ms: u64,
    /// The leader's lease: a standby takes over about this long after the leader has died.
    pub lease_ms: u64,
    /// Text of jobs between reading and answer, in memory, over all batches.
    pub text_bytes_max: u64,
    /// How often the ledger of open batches is saved, so that a restart replays no more answers than that; 0 turns it off.
    pub savepoint_ms: u64,
    /// Where output files are put together before they go to the object store.
    pub scratch_dir: Option<PathBuf>,
    pub quotas: Quotas,
    pub streams: Streams,
    pub retention: Retention,
    pub cache: CacheOptions,
    pub webhooks: Webhooks,
    pub gateway: GatewayOptions,
    pub scale: ScaleOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http: None,
            name: None,
            replicas: 1,
            nats_monitoring_url: None,
            strict_durability: false,
            allow_old_server: false,
            audit_share: 0.01,
            issuer_file: None,
            dist_dir: None,
            dist_http: None,
            worker_token_ms: 6 * 3_600_000,
            pod_token_ms: 7 * 86_400_000,
            lease_ms: 3_000,
            text_bytes_max: 256 << 20,
            savepoint_ms: 60_000,
            scratch_dir: None,
            quotas: Quotas::default(),
            streams: Streams::default(),
            retention: Retention::default(),
            cache: CacheOptions::default(),
            webhooks: Webhooks::default(),
            gateway: GatewayOptions::default(),
            scale: ScaleOptions::default(),
        }
    }
}
