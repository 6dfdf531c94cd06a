//! The router: which running worker gets which waiting job, as a pure function of measured speed and paid price.
//!
//! It is not the planner ([`crate::plan`]): which pods run at all, and for whose money, is decided there. Here the
//! pods run and are paid for, so letting one idle saves nothing. Called by the coordinator's core whenever a job
//! may be assigned.
//!
//! # The rule
//!
//! Time is cut into windows of 2 s of measured work. A job goes to the worker that would be through with it in the
//! earliest window; among workers of the same window to the one with the lowest κ, the price of a million tokens.
//! So plenty of work is shared in proportion to speed, scarce work lies with the cheapest pods (the idle ones are
//! then the expensive ones, which the planner may return), and nothing waits behind a cheap pod for longer than a window
//! while another one idles. Each worker holds what fills its slots, and beyond that at most a window of work.
//!
//! # What follows from the rule (and is tested)
//!
//! Scaling all prices changes no choice. The order of the pods does not matter. A worker that is slower and more expensive
//! than another is never given work that the other could begin. A small change of a speed moves at most a window.

mod steal;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ternfleet_proto::UsdMicro;

pub use steal::{Move, rebalance};

/// The most measured work that may wait at a worker beyond what its slots run.
pub const WINDOW_S: f64 = 2.0;

/// Workers with the same value run each other's jobs: same model digest, same numerics. Interned by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineKind(pub u16);

/// Place of a worker in the core; never reused within a process. Among equals the lowest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerSlot(pub u32);

/// One running worker, as the coordinator sees it now.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerLoad {
    pub worker: WorkerSlot,
    pub kind: EngineKind,
    /// Mean of the measured speed, all slots together; decides cost.
    pub rate_mean_tok_s: f64,
    /// Lower bound of the measured speed; decides how much may wait.
    pub rate_low_tok_s: f64,
    /// The pod's price, shared out over its workers by the caller.
    pub price_usd_micro_per_hour: UsdMicro,
    pub slots: u32,
    /// KV pages that no held job needs.
    pub free_pages: u32,
    /// Tokens still to come of all jobs assigned and not answered.
    pub held_tokens: u64,
    /// Jobs assigned and not answered, running or waiting.
    pub held_jobs: u32,
}

/// All workers that may be given work. Draining and quarantined ones are left out by the caller.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetSnapshot {
    pub workers: Vec<WorkerLoad>,
}

/// Size of a waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSize {
    /// Prompt and expected output.
    pub tokens: u32,
    /// KV pages it needs at its longest.
    pub pages: u32,
}

/// What the jobs at hand ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The fewest dollars: κ decides within a window.
    Thrifty,
    /// The batch is behind its deadline, or somebody waits: the earliest finish decides alone.
    Soonest,
}

/// Waiting jobs of one engine kind, in the order in which fairness wants them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand<'a> {
    pub kind: EngineKind,
    pub urgency: Urgency,
    pub jobs: &'a [JobSize],
}

/// Who gets what: `jobs[n]` goes to `fleet.workers[placed[n]]`, for a prefix of the jobs. The rest has to wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    pub placed: Vec<usize>,
}

/// κ of a worker in micro-dollars per million tokens, infinite while nothing was measured.
pub fn kappa(load: &WorkerLoad) -> f64 {
    if usable(load.rate_mean_tok_s) {
        load.price_usd_micro_per_hour.0 as f64 * 1e6 / (3600.0 * load.rate_mean_tok_s)
    } else {
        f64::INFINITY
    }
}

/// Hands over as many jobs as the workers' slots and windows hold. O((n + m) log n) for n workers and m jobs.
pub fn assign(fleet: &FleetSnapshot, demand: &Demand<'_>) -> Assignment {
    let mut placed = Vec::new();
    if demand.jobs.is_empty() {
        return Assignment { placed };
    }
    let typical_tokens =
        demand.jobs.iter().map(|job| f64::from(job.tokens)).sum::<f64>() / demand.jobs.len() as f64;
    let ranks = ranks_by_kappa(fleet);
    let mut rooms: Vec<Room<'_>> = fleet.workers.iter().map(Room::new).collect();
    let mut queue: BinaryHeap<Reverse<(Turn, usize)>> = (0..rooms.len())
        .filter(|&worker| fleet.workers[worker].kind == demand.kind)
        .map(|worker| Reverse((rooms[worker].turn(typical_tokens, demand.urgency, ranks[worker]), worker)))
        .collect();

    for job in demand.jobs {
        // A worker that has no room for this job is done for this round: later jobs do not overtake.
        let taker = loop {
            match queue.pop() {
                Some(Reverse((_, worker))) if rooms[worker].admits(job) => break Some(worker),
                Some(_) => {}
                None => break None,
            }
        };
        let Some(worker) = taker else { break };
        rooms[worker].take(job);
        queue.push(Reverse((rooms[worker].turn(typical_tokens, demand.urgency, ranks[worker]), worker)));
        placed.push(worker);
    }
    Assignment { placed }
}

/// How many jobs of so many tokens the worker would take now.
pub fn room(load: &WorkerLoad, tokens: u32) -> usize {
    let at_least = usize::from(load.held_jobs == 0);
    if !usable(load.rate_low_tok_s) {
        return at_least;
    }
    let free = load.slots.saturating_sub(load.held_jobs) as usize;
    let window = WINDOW_S * load.rate_low_tok_s - Room::new(load).waiting_tokens;
    // The cast saturates.
    (free + (window.max(0.0) / f64::from(tokens.max(1))) as usize).max(at_least)
}

/// Place of each worker when sorted by κ, then speed, then slot: a total order that ignores the order given.
fn ranks_by_kappa(fleet: &FleetSnapshot) -> Vec<u32> {
    let mut order: Vec<(f64, f64, WorkerSlot, usize)> = fleet
        .workers
        .iter()
        .enumerate()
        .map(|(index, load)| (kappa(load), -load.rate_mean_tok_s, load.worker, index))
        .collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut ranks = vec![0; order.len()];
    for (rank, (_, _, _, index)) in order.into_iter().enumerate() {
        ranks[index] = rank as u32;
    }
    ranks
}

/// When a worker's turn comes: the window in which it would be through with one more typical job, then κ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// Windows for [`Urgency::Thrifty`], microseconds for [`Urgency::Soonest`].
    through: u64,
    rank: u32,
}

/// A worker's free capacity while jobs are being assigned.
struct Room<'a> {
    load: &'a WorkerLoad,
    held_tokens: f64,
    held_jobs: u32,
    waiting_tokens: f64,
    free_pages: u32,
}

impl<'a> Room<'a> {
    fn new(load: &'a WorkerLoad) -> Self {
        // Beyond the slots, jobs wait; they are taken to be of the size of those that run.
        let waiting_jobs = load.held_jobs.saturating_sub(load.slots);
        let share =
            if load.held_jobs == 0 { 0.0 } else { f64::from(waiting_jobs) / f64::from(load.held_jobs) };
        Self {
            load,
            held_tokens: load.held_tokens as f64,
            held_jobs: load.held_jobs,
            waiting_tokens: load.held_tokens as f64 * share,
            free_pages: load.free_pages,
        }
    }

    fn starts_at_once(&self, job: &JobSize) -> bool {
        self.held_jobs < self.load.slots && job.pages <= self.free_pages
    }

    fn admits(&self, job: &JobSize) -> bool {
        if self.held_jobs == 0 {
            // An idle worker always takes one job, however large: otherwise nobody ever would.
            return true;
        }
        if !usable(self.load.rate_low_tok_s) {
            return false;
        }
        self.starts_at_once(job)
            || self.waiting_tokens + f64::from(job.tokens) <= WINDOW_S * self.load.rate_low_tok_s
    }

    fn take(&mut self, job: &JobSize) {
        if self.starts_at_once(job) {
            self.free_pages -= job.pages;
        } else if self.held_jobs > 0 {
            self.waiting_tokens += f64::from(job.tokens);
        }
        self.held_jobs += 1;
        self.held_tokens += f64::from(job.tokens);
    }

    fn turn(&self, typical_tokens: f64, urgency: Urgency, rank: u32) -> Turn {
        let through_s = if usable(self.load.rate_mean_tok_s) {
            (self.held_tokens + typical_tokens) / self.load.rate_mean_tok_s
        } else {
            f64::INFINITY
        };
        // Float to integer casts saturate: an unmeasured worker comes last.
        let through = match urgency {
            Urgency::Thrifty => (through_s / WINDOW_S) as u64,
            Urgency::Soonest => (through_s * 1e6) as u64,
        };
        Turn { through, rank }
    }
}

fn usable(rate_tok_s: f64) -> bool {
    rate_tok_s.is_finite() && rate_tok_s > 0.0
}

#[cfg(test)]
mod tests;
