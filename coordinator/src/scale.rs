//! The scaler: turns a plan into what is to be rented and given back, and keeps the money safe while doing so.
//!
//! A pure function of what is written down (intents), what is seen (the provider's list, the workers' heartbeats) and
//! the plan. Asked twice in the same situation it answers the same, and whatever it asked for may be done once, twice
//! or not at all: the next answer starts from what is. So a coordinator may die at any point, and the next one adopts
//! what runs. It performs nothing itself; the coordinator's shell writes, orders and ends.
//!
//! # What holds, whatever happens
//!
//! An intent is written before a pod is ordered, and the pod bears its name. A pod of this fleet's name that no
//! intent claims is ended. While the provider's list cannot be read, nothing is ordered and nothing is reaped. A pod
//! that never becomes ready, or falls silent, is ended. The prices of all pods together never pass the fleet's hourly
//! limit, and what is spent today plus one lease of every pod never passes the daily one.

mod choose;
mod health;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ternfleet_proto::{TimeMs, UsdMicro, WorkerId};

use crate::plan::{Batch, ClassSet, Plan, PodClass, Problem};
use crate::quote::{Engine, Engines};

pub use choose::{decide, market};
pub use health::Health;
pub use settings::{Class, Refused, Settings};

/// A pod that somebody decided to have. Written (by compare-and-set) before anything is ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// `<fleet>-<class>-<number>`; never used again.
    pub name: String,
    pub class: String,
    /// Where it should be; `None` leaves it to the provider.
    pub data_center: Option<String>,
    /// Expected, then what the provider says.
    pub price_usd_micro_per_hour: UsdMicro,
    pub written_at: TimeMs,
    /// The provider's id, once it is known.
    pub provider_id: Option<String>,
    /// It shall end, for this reason; kept until the provider lists it no more.
    pub ending: Option<Why>,
}

/// Why a pod ends or an intent is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The plan does without it.
    NotNeeded,
    /// It bears this fleet's name, and no intent claims it.
    Orphan,
    /// Its worker did not register in time.
    NeverReady,
    /// Its worker has not been heard of for too long.
    Silent,
    /// The provider says that it stopped or failed; a stopped pod still pays for its disk.
    Stopped,
    /// It ran, and the provider lists it no more.
    Vanished,
    /// It was ordered, and no list ever held it.
    NeverCame,
    /// A limit of the fleet would be passed.
    Limit,
    /// It reported itself that its worker cannot run.
    StartFailed,
}

/// A pod in the provider's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPod {
    pub id: String,
    pub name: String,
    /// False when it has stopped or failed, but is still listed.
    pub computes: bool,
    pub price_usd_micro_per_hour: Option<UsdMicro>,
    pub data_center: Option<String>,
}

/// A pod as its workers' heartbeats show it, engines added up. Of pods that nobody rented (a worker that somebody
/// started by hand) this is all that is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenWorker {
    pub pod: String,
    pub class: String,
    pub price_usd_micro_per_hour: UsdMicro,
    pub rate_mean_tok_s: f64,
    pub rate_sd_tok_s: f64,
    /// For how long nothing was heard of it.
    pub silent: Duration,
    pub workers: Vec<WorkerId>,
    /// Some of its workers take work now.
    pub live: bool,
    /// What its workers serve, by name and by digest.
    pub models: Vec<String>,
    pub engines: Vec<Engine>,
    /// For how long none of its workers has had a job; `None` while one has.
    pub idle: Option<Duration>,
}

/// Work that waits for pods which serve one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Need {
    /// Its classes are those that the caller of the planner may choose among; the model narrows them further.
    pub batch: Batch,
    /// By name or digest; `None` for lines that any model may answer.
    pub model: Option<String>,
}

impl From<Batch> for Need {
    fn from(batch: Batch) -> Need {
        Need { batch, model: None }
    }
}

/// Pods that are alike for the planner: of one class, with the same models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodKind {
    pub class: String,
    /// By name and by digest. Empty: not known, so anything.
    pub models: Vec<String>,
}

impl PodKind {
    fn of(worker: &SeenWorker) -> PodKind {
        PodKind { class: worker.class.clone(), models: worker.models.clone() }
    }

    pub(crate) fn serves(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|served| served == model)
    }
}

/// What a quote is made from: the planner's problem as it stands, with the kinds of pods that its classes number, and
/// how fast engines are at how many sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prospect {
    pub problem: Problem,
    pub kinds: Vec<PodKind>,
    pub engines: Engines,
}

/// Those of `kinds` that are wanted, as the planner numbers them.
pub(crate) fn class_set(kinds: &[PodKind], is_wanted: impl Fn(&PodKind) -> bool) -> ClassSet {
    let wanted = kinds.iter().enumerate().filter(|(_, kind)| is_wanted(kind));
    ClassSet::of(&wanted.map(|(place, _)| PodClass::at(place)).collect::<Vec<_>>())
}

/// The situation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub now: TimeMs,
    /// `None` while the provider's list cannot be read.
    pub pods: Option<Vec<SeenPod>>,
    pub workers: Vec<SeenWorker>,
    pub needs: Vec<Need>,
    pub spent_today: UsdMicro,
    /// The provider said that there is no balance, or that the key is wrong: nothing is ordered.
    pub halted: bool,
    /// Heartbeats cannot be heard at all: silence says nothing about a worker.
    pub deaf: bool,
    /// The number of the next name.
    pub next_number: u64,
    /// Intents whose pod some list has held.
    pub shown: BTreeSet<String>,
    /// How old each intent is, whatever was done to the wall clock; by its date where that is not known.
    pub ages: BTreeMap<String, Duration>,
}

impl Seen {
    fn age(&self, intent: &Intent) -> Duration {
        self.ages.get(&intent.name).copied().unwrap_or_else(|| self.now.since(intent.written_at))
    }
}

/// What is to be done. Each may be repeated without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Write the intent, and only when that is durable order the pod.
    Write(Intent),
    /// Order the pod of a written intent (again): creating by name rents once.
    Order(String),
    /// Note the provider's id and price of a written intent.
    Adopt { name: String, id: String, price: Option<UsdMicro> },
    /// Mark the intent as ending, drain its worker, then end the pod.
    End { name: String, id: String, why: Why },
    /// Strike the intent out.
    Close { name: String, why: Why },
}

/// The answer, with the plan that it follows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    pub acts: Vec<Act>,
    pub plan: Plan,
    /// How many pods the plan has, by class and the model that they serve; every class that may be rented is there.
    pub wanted: BTreeMap<(String, String), u32>,
}

/// All intents by name.
pub type Intents = BTreeMap<String, Intent>;

#[cfg(test)]
mod tests;
