//! What a screen shows: batches found by state and text, and the fleet with its money. `tf.api.batch_find`, `fleet` and
//! `pod_dismiss`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{TenantId, TimeMs};
use crate::message::{BatchState, BatchView, PodView};
use crate::money::UsdMicro;

/// `tf.api.batch_find`: a tenant's batches, open ones first, each group newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchFind {
    pub tenant: TenantId,
    /// Only batches in one of these states; all when empty.
    #[serde(default)]
    pub states: Vec<BatchState>,
    /// Only batches whose name or id contains this, in any case.
    #[serde(default)]
    pub text: Option<String>,
    /// [`BatchPage::next`] of the page before.
    #[serde(default)]
    pub after: Option<String>,
    pub limit: u32,
}

/// The answer to [`BatchFind`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchPage {
    pub batches: Vec<BatchView>,
    /// Where the next page begins; none at the end. A page may be shorter than asked for, or empty, and not the last.
    pub next: Option<String>,
    /// All batches of the tenant by state, whatever was asked for.
    pub counts: BTreeMap<BatchState, u64>,
    /// Lines of all its batches without an answer.
    pub open_lines: u64,
    /// When the oldest batch with such a line was accepted.
    pub oldest_open: Option<TimeMs>,
}

/// The answer to `tf.api.fleet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    pub pods: Vec<PodView>,
    /// Pods that were lost, and neither replaced nor dismissed since; the latest last.
    pub lost: Vec<LostPod>,
    /// None until the leader has read the ledger.
    pub spent: Option<Spent>,
}

/// What all pods have cost, whoever led and whether they are still there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// When counting began.
    pub since: TimeMs,
    pub total_usd_micro: UsdMicro,
    /// Since midnight, UTC.
    pub today_usd_micro: UsdMicro,
    /// Of the total, what the scaler rented: the figure of `scale_show`.
    pub rented_usd_micro: UsdMicro,
}

/// A pod that went away without having been told to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostPod {
    pub pod: String,
    pub class: String,
    pub host: String,
    pub model: String,
    pub price_usd_micro_per_hour: UsdMicro,
    /// When it was last heard of.
    pub at: TimeMs,
    pub why: String,
    pub tokens: u64,
    pub cost_usd_micro: UsdMicro,
}

/// `tf.api.pod_dismiss`: a lost pod that nobody needs to see any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub pod: String,
}
