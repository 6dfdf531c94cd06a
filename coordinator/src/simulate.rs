//! The simulator: a virtual fleet under a virtual clock, to compare policies before any dollar is spent.
//!
//! Pods boot, run at noisy speeds, vanish and change their price; batches arrive with deadlines and budgets. Work is a
//! fluid of tokens, time goes in ticks, and everything random comes from one seed, so that a run can be repeated to
//! the bit. It is not the simulation of the job machinery (that one runs the real cores on a simulated bus); here
//! only money, speed and time are at stake. Called by `ternfleet simulate` and by the studies under `docs/routing`.

mod fleet;
mod generate;
mod plot;
mod policy;
mod study;
mod trace;
mod world;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use fleet::{BatchSpec, Fleet, FleetError, LimitSpec, PodSpec};
pub use generate::{Generator, random_fleet};
pub use plot::plot_svg;
pub use study::{Study, StudyOptions, render_markdown, study};
pub use trace::{Trace, TraceEvent, TraceKind};

/// Who decides which pods run and how the work is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The planner and the router of this crate.
    Ours,
    /// Pods of all makes in turn, as many as it takes; every pod gets the same share of the work.
    RoundRobin,
    /// The same pods; every pod takes work as fast as it can.
    LeastLoaded,
    /// Pods with the lowest price per hour first.
    Cheapest,
    /// Pods with the highest speed first.
    Fastest,
}

impl Policy {
    pub const ALL: [Policy; 5] =
        [Policy::Ours, Policy::RoundRobin, Policy::LeastLoaded, Policy::Cheapest, Policy::Fastest];

    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Ours => "ours",
            Policy::RoundRobin => "round-robin",
            Policy::LeastLoaded => "least-loaded",
            Policy::Cheapest => "cheapest",
            Policy::Fastest => "fastest",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a policy; choose one of ours, round-robin, least-loaded, cheapest, fastest")]
pub struct UnknownPolicy(String);

impl FromStr for Policy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Policy::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text.trim())
            .ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// How to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub policies: Vec<Policy>,
    /// Of speeds, losses and prices; the same for every policy.
    pub seed: u64,
    /// What happens at set times, beside what the seed brings.
    pub trace: Trace,
    /// A deadline may be missed with this probability.
    pub epsilon: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { policies: Policy::ALL.to_vec(), seed: 0, trace: Trace::default(), epsilon: 0.05 }
    }
}

/// How a policy fared. The field names are a contract of `ternfleet simulate --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub policy: Policy,
    /// All that was billed: boot, busy, idle and drain.
    pub cost_usd_micro: i64,
    /// The relaxed problem with true speeds, and one boot for each pod that it uses.
    pub bound_usd_micro: i64,
    /// Batches that were not finished by their deadline.
    pub missed_deadlines: u32,
    /// Batches for which more was spent than their budget.
    pub budget_violations: u32,
    /// Tokens generated again after a loss, as a share of all that were generated.
    pub wasted_tokens_ratio: f64,
    /// When the last batch ended, finished or not.
    pub finish_s: f64,
}

/// A report with what the plot needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub report: Report,
    /// Billed to no batch: pods that ran while nothing was to be done.
    pub idle_usd_micro: i64,
    pub boots: u32,
    pub losses: u32,
    pub timeline: Vec<Point>,
}

/// The state of a run at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub at_s: f64,
    pub tokens: f64,
    pub cost_usd_micro: f64,
    pub pods: u32,
}

/// Runs every policy on the same fleet with the same fate.
pub fn simulate(fleet: &Fleet, options: &Options) -> Vec<Report> {
    simulate_runs(fleet, options).into_iter().map(|run| run.report).collect()
}

/// As [`simulate`], with the course of each run.
pub fn simulate_runs(fleet: &Fleet, options: &Options) -> Vec<Run> {
    options.policies.iter().map(|&policy| world::run(fleet, options, policy)).collect()
}

#[cfg(test)]
mod tests;
