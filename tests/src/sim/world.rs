//! The world of one simulation: a virtual clock, one server, coordinators and workers as their real cores, a network
//! between them that delays, loses and doubles, and faults from the scenario.
//!
//! Everything that happens is an [`Occurrence`] in one queue, ordered by time and then by number, so a seed always
//! gives the same run. The shells' part of the work is done here, operation by operation, as they do it.

mod coordinators;
mod faults;
mod inputs;
mod office;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ternfleet_coordinator::core as coordinator;
use ternfleet_proto::bus::{BusError, Result};
use ternfleet_proto::message::{Control, Heartbeat};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{BatchId, TimeMs, WorkerId, table};
use ternfleet_worker::core as worker;

use super::JetStream;
use super::chance::Chance;
use super::check::Checker;
use super::scenario::{BatchPlan, Scenario};
use coordinators::{CoordinatorNode, Duty};
use workers::{Call, WorkerNode};

pub(super) use coordinators::stored_record;
pub(super) use inputs::blanks;

/// Steps between two forged checkpoints, where there are any.
const FORGED_EVERY: u64 = 24;
/// Virtual time begins here rather than at zero, so that skewed clocks stay positive.
const BEGIN: TimeMs = TimeMs(1_000_000_000);
/// Virtual time from the last fault's end until everything must have ended.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// How long an operation waits for an answer that never comes.
const TIMEOUT_MS: u64 = 5_000;

/// One life of a node; what was meant for an earlier life finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    place: usize,
    number: u32,
}

/// Something that happens at a time.
#[derive(Debug)]
enum Occurrence {
    Fault(usize),
    FaultOver(usize),
    Submit(usize),
    CancelBatch(usize),
    RaiseBudgets,
    StartWorker(usize),
    WorkerTick(Life),
    EngineStep(Life),
    /// A request of a worker reaches the server, or would.
    WorkerCall(Life, Call),
    WorkerEvents(Life, Vec<worker::Event>),
    StartCoordinator(usize),
    CoordinatorTick(Life),
    /// A request of a coordinator reaches the server, or would.
    CoordinatorDuty(Life, Duty),
    CoordinatorEvent(Life, Box<coordinator::Event>),
    ReadResults(Life),
    Beat(Box<Heartbeat>),
    Order(Option<WorkerId>, Control),
}

#[derive(Debug)]
struct Scheduled {
    at: TimeMs,
    number: u64,
    what: Occurrence,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A batch as its caller knows it.
#[derive(Debug)]
struct Submitted {
    id: BatchId,
    plan: BatchPlan,
    stored: bool,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub steps: u64,
    pub virtual_s: f64,
    pub jobs: u64,
    pub good: u64,
    pub bad: u64,
    pub duplicates: u64,
    pub moved: u64,
    pub fenced: u64,
    pub repeated_tokens: u64,
    pub leaders: u64,
    pub dead: u64,
    pub audits_agreed: u64,
    pub audits_diverged: u64,
    pub quarantined_hosts: u64,
    /// Wrong answers that were committed: a liar's, before it was caught.
    pub wrong: u64,
}

pub(super) struct World {
    now: TimeMs,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    steps: u64,
    chance: Chance,
    scenario: Scenario,
    net: JetStream,
    key: AssignmentKey,
    workers: Vec<WorkerNode>,
    coordinators: Vec<CoordinatorNode>,
    batches: Vec<Submitted>,
    plans: BTreeMap<BatchId, BatchPlan>,
    check: Checker,
    server_down: u32,
    lose_requests: Vec<u64>,
    lose_answers: Vec<u64>,
    doubling: u32,
    faults_open: u32,
    calm_since: TimeMs,
    tally: Tally,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> World {
        let key = AssignmentKey([7; 32]);
        let mut net = JetStream::default();
        let ground = || "because the simulated server takes the table's settings";
        for spec in table::streams(1) {
            net.ensure_stream(&spec).unwrap_or_else(|_| panic!("{}", ground()));
        }
        net.ensure_stream(&table::work_stream_spec(0, 1)).unwrap_or_else(|_| panic!("{}", ground()));
        for spec in table::kv_specs(1) {
            net.ensure_kv(&spec).unwrap_or_else(|_| panic!("{}", ground()));
        }
        let mut world = World {
            now: BEGIN,
            queue: BinaryHeap::new(),
            number: 0,
            steps: 0,
            chance: Chance::new(scenario.seed ^ 0xfeed),
            net,
            workers: Vec::new(),
            coordinators: Vec::new(),
            batches: Vec::new(),
            plans: BTreeMap::new(),
            check: Checker::new(key.clone(), &scenario),
            key,
            server_down: 0,
            lose_requests: Vec::new(),
            lose_answers: Vec::new(),
            doubling: 0,
            faults_open: 0,
            calm_since: BEGIN,
            tally: Tally::default(),
            scenario,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        for place in 0..self.scenario.coordinators {
            self.coordinators.push(CoordinatorNode::off(place));
            self.at(10 * place as u64, Occurrence::StartCoordinator(place));
        }
        for place in 0..self.scenario.workers.len() {
            self.workers.push(WorkerNode::off(place));
            let delay = self.chance.within(0, 2_000);
            self.at(delay, Occurrence::StartWorker(place));
        }
        for place in 0..self.scenario.batches.len() {
            let at = self.scenario.batches[place].at_ms;
            self.at(at, Occurrence::Submit(place));
        }
        for at in 0..self.scenario.faults.len() {
            let (_, ms, _) = self.scenario.faults[at];
            self.faults_open += 1;
            self.at(ms, Occurrence::Fault(at));
        }
        self.at(5_000, Occurrence::RaiseBudgets);
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken invariant, or what has not ended in time.
    pub(super) fn run(mut self) -> std::result::Result<Tally, String> {
        loop {
            let Some(Reverse(Scheduled { at, what, .. })) = self.queue.pop() else {
                return Err("L1: nothing is left to happen".into());
            };
            self.now = self.now.max(at);
            self.steps += 1;
            self.happen(what);
            if self.scenario.forges && self.steps.is_multiple_of(FORGED_EVERY) {
                self.forge();
            }
            self.check.verdict().map_err(|broken| self.told(&broken))?;
            if self.faults_open > 0 {
                self.calm_since = self.now;
            }
            if self.steps.is_multiple_of(64) && self.all_ended() {
                break;
            }
            if self.now.since(self.calm_since) > PATIENCE {
                let unended = self.unended();
                return Err(self.told(&format!("L1: not ended: {unended}")));
            }
        }
        self.check.finish(&mut self.net, self.now).map_err(|broken| self.told(&broken))?;
        self.tally.steps = self.steps;
        self.tally.virtual_s = self.now.since(BEGIN).as_secs_f64();
        self.check.count(&mut self.tally);
        Ok(self.tally)
    }

    fn told(&self, broken: &str) -> String {
        format!("at {:.3} s, step {}: {broken}", self.now.since(BEGIN).as_secs_f64(), self.steps)
    }

    fn at(&mut self, delay_ms: u64, what: Occurrence) {
        self.number += 1;
        let at = TimeMs(self.now.0 + delay_ms);
        self.queue.push(Reverse(Scheduled { at, number: self.number, what }));
    }

    /// One way through the network.
    fn latency(&mut self) -> u64 {
        if self.chance.one_in(50) { self.chance.within(20, 400) } else { self.chance.within(1, 4) }
    }

    fn happen(&mut self, what: Occurrence) {
        match what {
            Occurrence::Fault(at) => self.begin_fault(at),
            Occurrence::FaultOver(at) => self.end_fault(at),
            Occurrence::Submit(place) => self.submit(place),
            Occurrence::CancelBatch(place) => self.cancel_batch(place),
            Occurrence::RaiseBudgets => self.raise_budgets(),
            Occurrence::StartWorker(place) => self.start_worker(place),
            Occurrence::WorkerTick(life) => self.worker_tick(life),
            Occurrence::EngineStep(life) => self.engine_step(life),
            Occurrence::WorkerCall(life, call) => self.worker_call(life, call),
            Occurrence::WorkerEvents(life, events) => self.worker_events(life, events),
            Occurrence::StartCoordinator(place) => self.start_coordinator(place),
            Occurrence::CoordinatorTick(life) => self.coordinator_tick(life),
            Occurrence::CoordinatorDuty(life, duty) => self.coordinator_duty(life, duty),
            Occurrence::CoordinatorEvent(life, event) => self.coordinator_event(life, *event),
            Occurrence::ReadResults(life) => self.read_results(life),
            Occurrence::Beat(beat) => self.hear_beat(*beat),
            Occurrence::Order(to, control) => self.hear_order(to, control),
        }
    }

    /// A request on the server's side: what the network and the faults make of it. `cut` is the caller's own line.
    fn attempt<T>(&mut self, cut: bool, act: impl FnOnce(&mut JetStream, TimeMs) -> Result<T>) -> Result<T> {
        let lost = || Err(BusError::Unreachable("simulated".into()));
        if cut || self.server_down > 0 || self.hit(&self.lose_requests.clone()) {
            return lost();
        }
        let done = act(&mut self.net, self.now);
        if self.hit(&self.lose_answers.clone()) { lost() } else { done }
    }

    fn hit(&mut self, rates: &[u64]) -> bool {
        rates.iter().any(|one_in| self.chance.one_in(*one_in))
    }

    /// When the outcome is known: at once, or when the caller has waited in vain.
    fn answer_delay<T>(&mut self, outcome: &Result<T>) -> u64 {
        match outcome {
            Err(BusError::Unreachable(_)) => self.chance.within(100, TIMEOUT_MS),
            _ => self.latency(),
        }
    }

    fn all_ended(&mut self) -> bool {
        if self.faults_open > 0 || self.batches.len() < self.scenario.batches.len() {
            return false;
        }
        let now = self.now;
        let ids: Vec<BatchId> = self.batches.iter().map(|batch| batch.id.clone()).collect();
        self.batches.iter().all(|batch| batch.stored)
            && ids
                .iter()
                .all(|id| stored_record(&mut self.net, now, id).is_some_and(|r| r.state.is_terminal()))
    }

    fn unended(&mut self) -> String {
        let now = self.now;
        let mut parts = Vec::new();
        for batch in &self.batches {
            let record = stored_record(&mut self.net, now, &batch.id);
            let state = record.as_ref().map(|record| record.state);
            if state.is_none_or(|state| !state.is_terminal()) {
                let answered = self.check.answered(&batch.id);
                let lines = batch.plan.lines;
                parts.push(format!("{} {state:?}, {answered} of {lines} lines answered", batch.id));
                let leader = self.coordinators.iter().find(|node| node.leads());
                if let Some(known) = leader.and_then(|node| node.batch(&batch.id)) {
                    parts.push(format!(
                        "its leader: {:?}, {} in flight, {} waiting, {} delayed, {} live, reading {} at {} of {:?}, \
                         spent {} of {:?}",
                        known.record.state,
                        leader.map_or(0, |node| node.in_flight(&batch.id)),
                        known.waiting(),
                        known.delayed.len(),
                        known.live.len(),
                        known.reading,
                        known.read_next,
                        known.record.lines,
                        known.totals.cost_usd_micro,
                        known.record.options.budget_usd_micro,
                    ));
                }
            }
        }
        if self.batches.len() < self.scenario.batches.len() {
            parts.push("a batch was never accepted".into());
        }
        let leaders = self.coordinators.iter().filter(|node| node.leads()).count();
        let alive = self.workers.iter().filter(|node| node.is_alive()).count();
        parts.push(format!("{leaders} leading, {alive} workers alive"));
        parts.join("; ")
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.now).field("steps", &self.steps).finish_non_exhaustive()
    }
}
