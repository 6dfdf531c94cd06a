//! What is durable of a batch: the value under its id in the bucket `batches`. Everything else about it follows
//! from RESULTS.

use serde::{Deserialize, Serialize};
use ternfleet_proto::message::{BatchCreate, BatchOptions, BatchState, Durability, Promise, WebhookState};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::{BatchId, LeaderRevision, TenantId, TimeMs, UsdMicro};

/// OpenAI's completion window.
pub const COMPLETION_WINDOW_MS: u64 = 24 * 3600 * 1000;

/// Why a batch ends before all of its jobs have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Cancelled,
    Expired,
}

/// Sums of a batch that has ended; while it runs, the core holds them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub completed: u32,
    pub failed: u32,
    pub blank: u32,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub wasted_tokens: u64,
    pub cost_usd_micro: UsdMicro,
    /// What its last jobs cost beyond its budget: nobody pays for it, and it is no idleness.
    pub over_budget_usd_micro: UsdMicro,
    pub cached_tokens: u64,
    /// Answers that another run might give otherwise.
    pub nondeterministic: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchRecord {
    pub id: BatchId,
    pub tenant: TenantId,
    pub name: Option<String>,
    pub input_object: String,
    pub input_bytes: u64,
    pub endpoint: Option<Endpoint>,
    pub options: BatchOptions,
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Digest of the creation, to tell a repetition from another request under the same key.
    pub creation_digest: u64,
    pub created_at: TimeMs,
    pub expires_at: TimeMs,
    /// Sequence of RESULTS after which this batch's first answer stands.
    pub results_after: u64,
    pub durability: Durability,
    pub replicas: u32,
    pub state: BatchState,
    pub ending: Option<Ending>,
    pub reason: Option<String>,
    /// Lines of the input, once it has been looked through.
    pub lines: Option<u32>,
    pub started_at: Option<TimeMs>,
    #[serde(default)]
    pub cancelling_at: Option<TimeMs>,
    #[serde(default)]
    pub finalizing_at: Option<TimeMs>,
    pub ended_at: Option<TimeMs>,
    pub output_object: Option<String>,
    pub error_object: Option<String>,
    /// All answers in the order of their commit, in the bucket `ledger`: RESULTS holds them no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers_object: Option<String>,
    /// The signed manifest of both files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_object: Option<String>,
    #[serde(default)]
    pub totals: Totals,
    /// What was quoted when it was accepted.
    #[serde(default)]
    pub quote: Option<Promise>,
    /// One job that somebody waits for; it has no input object and no output files.
    #[serde(default)]
    pub single: bool,
    /// Who wrote this: a later leader's record is never replaced by an earlier one's.
    #[serde(default)]
    pub leader: LeaderRevision,
    /// W3C trace context of the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// How the call at the end fares; `None` without a webhook.
    #[serde(default)]
    pub webhook: Option<WebhookState>,
    /// The model that answered, of the first good answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Files and answers were removed; what is left is a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aged_out_at: Option<TimeMs>,
}

/// What the shell finds out before a batch can be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFacts {
    pub input_bytes: u64,
    /// Of all the tenant's files, with the space that deleted ones still take.
    pub stored_bytes: u64,
    pub results_after: u64,
    pub durability: Durability,
    pub replicas: u32,
}

/// The id of the batch that this creation makes: the same for every repetition of it.
pub fn batch_id(tenant: &TenantId, idempotency_key: &str) -> BatchId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tenant.as_str().as_bytes()).update(&[0]).update(idempotency_key.as_bytes());
    let hex = hasher.finalize().to_hex();
    format!("batch_{}", &hex[..24]).parse().expect("because hexadecimal digits are id characters")
}

/// Digest of everything a creation asks for.
pub fn creation_digest(create: &BatchCreate) -> u64 {
    // A repetition has a trace of its own.
    let create = BatchCreate { traceparent: None, ..create.clone() };
    let digest = blake3::hash(&ternfleet_proto::codec::encode(&create));
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl BatchRecord {
    /// One job outside of any file, which is stored nowhere.
    pub(crate) fn single(
        now: TimeMs,
        id: BatchId,
        tenant: TenantId,
        endpoint: Endpoint,
        expires_at: TimeMs,
    ) -> Self {
        Self {
            id,
            tenant,
            name: None,
            input_object: String::new(),
            input_bytes: 0,
            endpoint: Some(endpoint),
            options: Default::default(),
            metadata: Default::default(),
            creation_digest: 0,
            created_at: now,
            expires_at,
            results_after: 0,
            durability: Durability::Memory,
            replicas: 1,
            state: BatchState::InProgress,
            ending: None,
            reason: None,
            lines: Some(1),
            started_at: None,
            cancelling_at: None,
            finalizing_at: None,
            ended_at: None,
            output_object: None,
            error_object: None,
            answers_object: None,
            proof_object: None,
            totals: Totals::default(),
            quote: None,
            single: true,
            leader: Default::default(),
            traceparent: None,
            webhook: None,
            model: None,
            aged_out_at: None,
        }
    }

    pub fn new(now: TimeMs, create: &BatchCreate, facts: BatchFacts) -> Self {
        let window = create.options.completion_window_ms.unwrap_or(COMPLETION_WINDOW_MS);
        let window_end = TimeMs(now.0.saturating_add(window));
        Self {
            id: batch_id(&create.tenant, &create.idempotency_key),
            tenant: create.tenant.clone(),
            name: create.name.clone(),
            input_object: create.input_object.clone(),
            input_bytes: facts.input_bytes,
            endpoint: create.endpoint,
            options: create.options.clone(),
            metadata: create.metadata.clone(),
            creation_digest: creation_digest(create),
            created_at: now,
            expires_at: create.options.deadline.map_or(window_end, |deadline| deadline.min(window_end)),
            results_after: facts.results_after,
            durability: facts.durability,
            replicas: facts.replicas,
            state: BatchState::Validating,
            ending: None,
            reason: None,
            lines: None,
            started_at: None,
            cancelling_at: None,
            finalizing_at: None,
            ended_at: None,
            output_object: None,
            error_object: None,
            answers_object: None,
            proof_object: None,
            totals: Totals::default(),
            quote: None,
            single: false,
            leader: LeaderRevision::default(),
            traceparent: create.traceparent.clone(),
            webhook: create.options.webhook_url.is_some().then_some(WebhookState::Waiting),
            model: None,
            aged_out_at: None,
        }
    }

    /// The fence of the books: a leader that was paused and followed by another gives way, and the other goes over what
    /// the first still wrote after waking.
    pub fn gives_way_to(&self, stored: &BatchRecord) -> bool {
        stored.leader > self.leader
    }

    /// What callers were told by an earlier leader that stored it late: an end, or other options. `changed_by` is the leader
    /// that has changed this version last.
    pub fn misses(&self, stored: &BatchRecord, changed_by: LeaderRevision) -> bool {
        let options = || changed_by <= stored.leader && self.options != stored.options;
        self.ending.is_none() && !self.state.is_terminal() && (stored.ending.is_some() || options())
    }
}
