//! The scaler's settings, and what it tells of itself: `tf.api.scale_show`, `scale_set` and `scale_plan`.

use serde::{Deserialize, Serialize};

use crate::id::TimeMs;
use crate::message::Binds;
use crate::money::UsdMicro;

/// `tf.api.scale_set` changes what is given and keeps it; `tf.api.scale_plan` tells what would be done under it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScaleDials {
    /// Pods that run even without work.
    pub pods_min: Option<u32>,
    /// Pods that run at once; 0 gives everything back.
    pub pods_max: Option<u32>,
    /// Only these of the configured classes may be rented; all when empty.
    pub classes: Option<Vec<String>>,
    /// Prices of all rented pods together; 0 lifts the limit.
    pub usd_micro_per_hour_max: Option<UsdMicro>,
    /// Spent between two midnights, UTC; 0 lifts the limit.
    pub usd_micro_per_day_max: Option<UsdMicro>,
    /// A pod without work is given back after so long.
    pub idle_limit_ms: Option<u64>,
}

impl ScaleDials {
    /// These, with what `later` gives laid over them.
    #[must_use]
    pub fn with(self, later: ScaleDials) -> ScaleDials {
        ScaleDials {
            pods_min: later.pods_min.or(self.pods_min),
            pods_max: later.pods_max.or(self.pods_max),
            classes: later.classes.or(self.classes),
            usd_micro_per_hour_max: later.usd_micro_per_hour_max.or(self.usd_micro_per_hour_max),
            usd_micro_per_day_max: later.usd_micro_per_day_max.or(self.usd_micro_per_day_max),
            idle_limit_ms: later.idle_limit_ms.or(self.idle_limit_ms),
        }
    }
}

/// The answer to all three verbs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScaleView {
    /// `local` or `runpod`.
    pub provider: String,
    /// Begins every rented pod's name.
    pub fleet: String,
    pub pods_min: u32,
    pub pods_max: u32,
    pub classes: Vec<ScaleClass>,
    pub usd_micro_per_hour_max: Option<UsdMicro>,
    pub usd_micro_per_day_max: Option<UsdMicro>,
    pub idle_limit_ms: u64,
    pub spent_today_usd_micro: UsdMicro,
    pub spent_usd_micro: UsdMicro,
    /// Why nothing is ordered, when nothing is.
    pub halted: Option<String>,
    /// No pod of any class may be rented any more within the limit of the day.
    #[serde(default)]
    pub limit_reached: bool,
    pub pods: Vec<ScalePod>,
    /// What the plan does next, and why.
    pub acts: Vec<ScaleAct>,
    /// What the plan holds for each batch.
    pub batches: Vec<ScaleBatch>,
    /// Cost of the plan above the bound, as a share of the bound.
    pub regret_ratio: f64,
    pub plan_usd_micro: UsdMicro,
    pub bound_usd_micro: UsdMicro,
}

/// A class of pods that may be rented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleClass {
    pub name: String,
    pub price_usd_micro_per_hour: UsdMicro,
    /// Measured on pods of the class, or as configured until one was.
    pub rate_tok_s: f64,
    pub pods: u32,
    pub pods_max: u32,
    /// False when `scale set --class` leaves it out.
    pub enabled: bool,
    /// Why no pod of it is ordered for now.
    pub refused: Option<String>,
    /// The latest of its pods that came to nothing.
    #[serde(default)]
    pub failed: Option<PodFailure>,
}

/// How a rented pod failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFailure {
    pub pod: String,
    pub at: TimeMs,
    pub why: String,
    /// The last lines that it wrote, oldest first.
    pub log: Vec<String>,
}

/// A rented pod, or one that is being rented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalePod {
    pub name: String,
    pub class: String,
    pub state: ScalePodState,
    pub data_center: Option<String>,
    pub price_usd_micro_per_hour: UsdMicro,
    pub since: TimeMs,
    pub provider_id: Option<String>,
    /// Why it is being given back.
    pub ending: Option<String>,
    pub rate_tok_s: f64,
    pub billed_usd_micro: UsdMicro,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalePodState {
    /// The intent is written; the provider has not confirmed the pod.
    Ordered,
    /// Rented; its worker has not registered.
    Booting,
    Working,
    Idle,
    /// Its worker drains, or the provider has been told to end it.
    Ending,
}

impl ScalePodState {
    pub const ALL: [ScalePodState; 5] = [
        ScalePodState::Ordered,
        ScalePodState::Booting,
        ScalePodState::Working,
        ScalePodState::Idle,
        ScalePodState::Ending,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ScalePodState::Ordered => "ordered",
            ScalePodState::Booting => "booting",
            ScalePodState::Working => "working",
            ScalePodState::Idle => "idle",
            ScalePodState::Ending => "ending",
        }
    }
}

/// One act of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleAct {
    /// `rent`, `order_again`, `adopt`, `give_back` or `forget`.
    pub what: String,
    pub pod: String,
    pub class: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleBatch {
    pub batch: String,
    pub tokens_left: f64,
    pub kept: bool,
    pub binds: Option<Binds>,
    pub finish_p50_ms: TimeMs,
    pub finish_p95_ms: TimeMs,
    pub cost_usd_micro: UsdMicro,
}
