//! What a screen shows: batches found by state and text, and the fleet with its money. `tf.api.batch_find`, `fleet` and
//! `pod_dismiss`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{TenantId, TimeMs, WorkerId};
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
    /// The first page of workers, in the order of their names.
    pub pods: Vec<PodView>,
    /// Where the next page begins ([`crate::message::PodList`]); none when `pods` are all.
    #[serde(default)]
    pub next: Option<WorkerId>,
    /// Sums over all workers, by class of pod. At most a second old.
    #[serde(default)]
    pub classes: Vec<ClassView>,
    /// What the live workers serve, by name.
    #[serde(default)]
    pub models: Vec<ModelView>,
    /// Tokens that all workers have made since the leader began.
    #[serde(default)]
    pub tokens: u64,
    /// Pods that were lost, and neither replaced nor dismissed since; the latest last.
    pub lost: Vec<LostPod>,
    /// None until the leader has read the ledger.
    pub spent: Option<Spent>,
}

/// Sums over the workers of one class of pod, lost ones left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassView {
    pub class: String,
    pub workers_live: u32,
    /// Their heartbeats are late.
    pub workers_quiet: u32,
    /// Of the live ones, up to `usd_micro_per_hour`.
    pub slots: u32,
    pub slots_in_use: u32,
    pub rate_tok_s: f64,
    /// Of their pods, each of which is paid once.
    pub usd_micro_per_hour: UsdMicro,
    /// Assigned to a worker, and in no slot yet.
    pub queued_jobs: u32,
    pub cost_usd_micro: UsdMicro,
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    pub model: String,
    pub digest: String,
    pub numerics: String,
    pub context_tokens: u32,
    /// The same request has the same answer each time, whichever of the workers runs it.
    pub deterministic: bool,
    /// When the first worker that serves it started.
    pub since: TimeMs,
    pub workers: u32,
}

impl FleetView {
    /// The sums over all classes.
    pub fn total(&self) -> ClassView {
        self.classes.iter().fold(ClassView::default(), |sum, class| ClassView {
            class: String::new(),
            workers_live: sum.workers_live + class.workers_live,
            workers_quiet: sum.workers_quiet + class.workers_quiet,
            slots: sum.slots + class.slots,
            slots_in_use: sum.slots_in_use + class.slots_in_use,
            rate_tok_s: sum.rate_tok_s + class.rate_tok_s,
            usd_micro_per_hour: sum.usd_micro_per_hour + class.usd_micro_per_hour,
            queued_jobs: sum.queued_jobs + class.queued_jobs,
            cost_usd_micro: sum.cost_usd_micro + class.cost_usd_micro,
        })
    }

    /// Workers that are not lost.
    pub fn workers(&self) -> usize {
        let total = self.total();
        (total.workers_live + total.workers_quiet) as usize
    }
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
