//! The world of one simulation: a server, coordinators and workers as the shells that ship, callers, a network between
//! them, and faults from the scenario.
//!
//! Time goes in turns of a few milliseconds. In each, every process gets its turn in an order that is drawn anew, so a
//! seed always gives the same run.

mod faults;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ternfleet_coordinator::gateway::GatewayOptions;
use ternfleet_coordinator::{self as coordinator, Entropy, Metrics};
use ternfleet_proto::table::SyncFacts;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{TimeMs, codec, table};

use super::check::Checker;
use super::cloud::{Cloud, SimProvider};
use super::http::Client;
use super::jetstream::Unsynced;
use super::line::Line;
use super::network::Network;
use super::process::Process;
use super::scenario::Scenario;
use super::{callers, cloud, workers};

/// What the wall clocks say at the start.
const BEGIN: TimeMs = TimeMs(1_800_000_000_000);
/// Virtual time from the last fault's end until everything must have ended.
const PATIENCE_MS: u64 = 1_800_000;
/// Length of a turn, in milliseconds.
const TURN_MS: (u64, u64) = (4, 24);
/// How soon somebody starts a process again that has ended by itself, in milliseconds.
const RESTART_MS: u64 = 500;
/// A worker that a job has killed comes back after so long.
const REVIVE_MS: u64 = 2_000;
/// Turns between two forged checkpoints, where there are any.
const FORGED_EVERY: u64 = 40;
/// Far more often than in production, so that restarts meet savepoints of every age.
const SAVEPOINT_MS: u64 = 1_500;
/// The simulated server syncs what is no cache before it acknowledges.
const SYNC: SyncFacts = SyncFacts { always: true, interval_ns: 0, cluster_size: 1 };
/// Far more than in production, so that audits meet every fault.
const AUDIT_SHARE: f64 = 0.2;

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Turns of time.
    pub steps: u64,
    pub virtual_s: f64,
    pub jobs: u64,
    pub good: u64,
    pub duplicates: u64,
    pub moved: u64,
    pub leaders: u64,
    pub audits_agreed: u64,
    pub audits_diverged: u64,
    pub quarantined_hosts: u64,
    /// Wrong answers that were committed: a liar's, before it was caught.
    pub wrong: u64,
    /// Checkpoints of a liar that somebody else continued from.
    pub rejected: u64,
    /// That were rented.
    pub pods: u64,
    /// By the server's clock: when what the fleet has cost was last stored, and when the run ended.
    pub account_stored_at: TimeMs,
    pub ended_at: TimeMs,
}

/// A place where a process runs, life after life.
#[derive(Debug, Default)]
struct Node {
    process: Option<Process>,
    lives: u32,
    paused: u32,
    /// When somebody starts it.
    start_at_ms: Option<u64>,
    skew_ms: i64,
    /// Of a coordinator that runs.
    metrics: Option<Arc<Metrics>>,
    /// Of a worker.
    pace: Arc<super::generator::Pace>,
    /// When it goes on after it was stopped in the middle of an operation, and for how long it will be.
    goes_on_at_ms: Option<u64>,
    stop_ms: u64,
    /// Nobody starts it before, however it ends.
    away_until_ms: u64,
    /// What slows its engine down.
    slowed: Vec<u64>,
}

pub(super) struct World {
    /// Milliseconds since the start.
    now_ms: u64,
    steps: u64,
    scenario: Scenario,
    network: Network,
    /// Coordinators, then workers, then the callers.
    nodes: Vec<Node>,
    /// Faults that have not begun, the next one last, and when those that have end.
    to_come: Vec<(u64, usize)>,
    open: Vec<(u64, usize)>,
    full_streams: Vec<&'static str>,
    /// What is left when the power fails, by the fault.
    disk: Vec<(usize, Unsynced)>,
    calm_since_ms: u64,
    tally: Tally,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> World {
        let (coordinators, workers) = (scenario.coordinators, scenario.workers.len());
        // The fleet's key decides which answers are audited, so it is no random one.
        let key = AssignmentKey([7; 32]);
        let check = Checker::new(key.clone(), &scenario);
        let cloud = Cloud::new(scenario.rent.clone());
        let network = Network::new(scenario.seed, coordinators + workers + 1, BEGIN, check, cloud);
        network.bus.look(|net, now| {
            for spec in table::kv_specs(1).iter().filter(|spec| spec.bucket == table::KV_CONTROL) {
                let made = net.ensure_kv(spec);
                made.unwrap_or_else(|_| panic!("because the simulated server takes the table's settings"));
            }
            let _ = net.kv_set(now, table::KV_CONTROL, "assignment_key", codec::encode(&key), None, None);
        });
        let mut nodes: Vec<Node> = (0..=coordinators + workers).map(|_| Node::default()).collect();
        for (place, node) in nodes.iter_mut().enumerate() {
            let begins_ms = network.chance(|chance| chance.within(0, 2_000));
            node.start_at_ms = match place < coordinators {
                true => Some(10 * place as u64),
                false => scenario.rent.is_none().then_some(begins_ms),
            };
        }
        nodes[coordinators + workers].start_at_ms = Some(0);
        let mut to_come: Vec<(u64, usize)> =
            scenario.faults.iter().enumerate().map(|(at, (_, ms, _))| (*ms, at)).collect();
        to_come.sort_by(|one, other| other.cmp(one));
        let jobs = scenario.batches.iter().map(|plan| u64::from(plan.lines)).sum();
        World {
            now_ms: 0,
            steps: 0,
            scenario,
            network,
            nodes,
            to_come,
            open: Vec::new(),
            full_streams: Vec::new(),
            disk: Vec::new(),
            calm_since_ms: 0,
            tally: Tally { jobs, ..Tally::default() },
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken invariant, or what has not ended in time.
    pub(super) fn run(mut self) -> Result<Tally, String> {
        loop {
            self.sync();
            self.begin_faults();
            self.end_faults();
            self.boot_pods();
            self.start_nodes();
            let length = self.network.chance(|chance| chance.within(TURN_MS.0, TURN_MS.1));
            self.turn(self.now_ms + length);
            self.steps += 1;
            if self.scenario.forges && self.steps.is_multiple_of(FORGED_EVERY) {
                self.forge();
            }
            let verdict = self.network.check().verdict();
            verdict.map_err(|broken| self.told(&broken))?;
            if !self.to_come.is_empty() || !self.open.is_empty() {
                self.calm_since_ms = self.now_ms;
            }
            if !self.open.is_empty() || !self.all_run() {
                self.network.disturb();
            }
            let callers = self.nodes.last().and_then(|node| node.process.as_ref());
            let callers_left = callers.is_some_and(Process::has_ended);
            if callers_left && self.calm_since_ms < self.now_ms && self.all_ended() {
                break;
            }
            if self.now_ms - self.calm_since_ms > PATIENCE_MS {
                let check = self.network.check();
                let unended = self.network.bus.look(|net, now| check.unended(net, now));
                drop(check);
                let rented = self.network.cloud().names_alive();
                return Err(self.told(&format!("L1: not ended: {unended}; rented: {rented:?}")));
            }
        }
        for place in 0..self.scenario.coordinators {
            self.read_metrics(place);
        }
        let mut check = self.network.check();
        let rented = self.network.cloud().bill(self.network.now_ms());
        let finished = self.network.bus.look(|net, now| check.finish(net, now, rented));
        finished.and_then(|()| check.verdict()).map_err(|broken| self.told(&broken))?;
        check.count(&mut self.tally);
        drop(check);
        self.tally.pods = rented.pods as u64;
        self.tally.steps = self.steps;
        self.tally.virtual_s = self.now_ms as f64 / 1e3;
        self.tally.ended_at = TimeMs(BEGIN.0 + self.now_ms);
        let term = self.network.bus.look(|net, now| net.kv_get(now, table::KV_CONTROL, "term"));
        let term: Option<u64> = term.ok().flatten().and_then(|entry| codec::decode(&entry.value).ok());
        self.tally.leaders = term.unwrap_or(0);
        Ok(self.tally.clone())
    }

    fn told(&self, broken: &str) -> String {
        format!("at {:.3} s, turn {}: {broken}", self.now_ms as f64 / 1e3, self.steps)
    }

    fn all_ended(&self) -> bool {
        let check = self.network.check();
        self.network.cloud().names_alive().is_empty()
            && self.network.bus.look(|net, now| check.all_ended(net, now))
    }

    /// Nobody is down, paused, or stopped in the middle of something.
    fn all_run(&self) -> bool {
        let runs = |node: &Node| node.process.is_some() && node.paused == 0 && node.goes_on_at_ms.is_none();
        let others = self.scenario.rent.is_none().then_some(self.nodes.len() - 1);
        self.nodes[..others.unwrap_or(self.scenario.coordinators)].iter().all(runs)
    }

    /// The places of workers that run on rented pods.
    fn rented_places(&self) -> std::ops::Range<usize> {
        let first = self.scenario.coordinators;
        first..first + self.scenario.rent.as_ref().map_or(0, |_| self.scenario.workers.len())
    }

    /// Workers start where their pods have booted, and end with them.
    fn boot_pods(&mut self) {
        let places = self.rented_places();
        let booted = self.network.cloud().boot(self.network.now_ms(), places.clone());
        for place in booted {
            self.nodes[place].start_at_ms = Some(self.now_ms);
        }
        for place in places {
            if self.network.cloud().pod_at(place).is_none() {
                self.nodes[place].start_at_ms = None;
                if self.nodes[place].process.is_some() {
                    self.stop(place);
                }
            }
        }
    }

    fn worker(&self, place: usize) -> usize {
        self.scenario.coordinators + place
    }

    /// Everybody's time passes up to `to_ms`.
    fn turn(&mut self, to_ms: u64) {
        let from_ms = self.now_ms;
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.network.chance(|chance| chance.within(0, last as u64)) as usize);
        }
        for place in order {
            let node = &mut self.nodes[place];
            let Some(process) =
                node.process.as_mut().filter(|_| node.paused == 0 && node.goes_on_at_ms.is_none())
            else {
                continue;
            };
            process.turn(from_ms, to_ms);
            if self.network.is_stopped(place) {
                node.goes_on_at_ms = Some(to_ms + node.stop_ms);
            }
            self.look_after(place, to_ms);
        }
        self.now_ms = to_ms;
        self.network.now.store(BEGIN.0 + to_ms, Ordering::Relaxed);
        for place in 0..self.nodes.len() {
            if self.nodes[place].goes_on_at_ms.is_some_and(|at| at <= to_ms) {
                self.nodes[place].goes_on_at_ms = None;
                self.network.line(place, |line| line.stopped = false);
            }
        }
    }

    /// Restarts a process that has ended, as its supervisor would.
    fn look_after(&mut self, place: usize, now_ms: u64) {
        let node = &mut self.nodes[place];
        let killed_by = node.pace.killed_by.lock().expect("because no holder of this lock panics").take();
        if let Some(seed) = killed_by {
            node.process = None;
            node.start_at_ms = Some(now_ms + REVIVE_MS);
            self.network.check().killed(seed);
            return;
        }
        let is_caller = place + 1 == self.nodes.len();
        let node = &mut self.nodes[place];
        if !is_caller && node.process.as_mut().is_some_and(Process::ended) {
            node.start_at_ms.get_or_insert((now_ms + RESTART_MS).max(node.away_until_ms));
            if self.rented_places().contains(&place) {
                self.network.cloud().exited(place);
            }
            self.stop(place);
        }
    }

    /// `kill -9`.
    fn stop(&mut self, place: usize) {
        self.read_metrics(place);
        let node = &mut self.nodes[place];
        node.process = None;
        node.metrics = None;
        node.goes_on_at_ms = None;
        self.network.line(place, |line| line.stopped = false);
    }

    /// What a coordinator counts itself.
    fn read_metrics(&mut self, place: usize) {
        let Some(metrics) = &self.nodes[place].metrics else { return };
        let text = metrics.render();
        let value = |series: &str| -> u64 {
            let found = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
            found.unwrap_or_default() as u64
        };
        for id in ["J1", "J3", "M1", "M2"] {
            let count = value(&format!("ternfleet_invariant_violations_total{{id=\"{id}\"}}"));
            if count > 0 {
                self.network.check().fail(format!("{id}: the coordinator counted {count} violations itself"));
            }
        }
        let diverged = value("ternfleet_audits_total{outcome=\"diverged\"}");
        if diverged > 0 && self.scenario.liars().next().is_none() {
            self.network.check().fail("J1: two honest workers were told apart by an audit".to_owned());
        }
        let tally = &mut self.tally;
        tally.audits_agreed = tally.audits_agreed.max(value("ternfleet_audits_total{outcome=\"agreed\"}"));
        tally.audits_diverged = tally.audits_diverged.max(diverged);
        tally.quarantined_hosts = tally.quarantined_hosts.max(value("ternfleet_hosts_quarantined_total"));
    }

    fn start_nodes(&mut self) {
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            if node.start_at_ms.is_none_or(|at| at > self.now_ms) {
                continue;
            }
            node.start_at_ms = None;
            if node.process.is_some() {
                continue;
            }
            node.lives += 1;
            let wall = TimeMs((BEGIN.0 + self.now_ms).saturating_add_signed(node.skew_ms));
            let line = Line { network: self.network.clone(), place };
            let coordinators = self.scenario.coordinators;
            let process = match self.scenario.workers.get(place.wrapping_sub(coordinators)) {
                _ if place < coordinators => {
                    let metrics = Arc::new(Metrics::default());
                    node.metrics = Some(Arc::clone(&metrics));
                    let rent = self.scenario.rent.as_ref();
                    let options = coordinator::Options {
                        name: Some(format!("c{place}")),
                        audit_share: AUDIT_SHARE,
                        gateway: GatewayOptions { completion_timeout_s: 60, ..GatewayOptions::default() },
                        scale: rent.map(cloud::options).unwrap_or_default(),
                        savepoint_ms: SAVEPOINT_MS,
                        ..coordinator::Options::default()
                    };
                    let seed = self.scenario.seed ^ (u64::from(node.lives) << 32 | place as u64);
                    let network = &self.network;
                    Process::start(self.now_ms, wall, |clock, shutdown| {
                        let parts = coordinator::Parts {
                            metrics,
                            clock,
                            entropy: Entropy::seeded(seed),
                            provider: rent.map(|_| Arc::new(SimProvider(network.clone())) as Arc<_>),
                            connections: Some(network.open_door(place)),
                            sync: Some(SYNC),
                        };
                        coordinator::run_with(parts, line.bus(), options, shutdown)
                    })
                }
                Some(plan) => {
                    let (life, pace) = (node.lives, Arc::clone(&node.pace));
                    *pace.lie.lock().expect("because no holder of this lock panics") = plan.lies;
                    let plan = plan.clone();
                    let fixed = || (format!("pod{}", plan.pod), format!("host{}", plan.pod));
                    let pod = self.network.cloud().pod_at(place).unwrap_or_else(fixed);
                    Process::start(self.now_ms, wall, |clock, shutdown| {
                        workers::run(line, place - coordinators, life, pod, plan, pace, clock, shutdown)
                    })
                }
                None => {
                    let (batches, completions) =
                        (self.scenario.batches.clone(), self.scenario.completions.clone());
                    Process::start(self.now_ms, wall, |_, _| async move {
                        let batches = batches.into_iter().enumerate();
                        let client = |first| Client::new(line.network.clone(), coordinators, first);
                        let batches = batches.map(|(place, plan)| {
                            let by = (line.clone(), client(place));
                            async move {
                                match plan.over_http {
                                    true => callers::over_http(by.0.network, by.1, place, plan).await,
                                    false => callers::run(by.0, place, plan).await,
                                }
                            }
                        });
                        let singles = completions.into_iter().enumerate();
                        let singles = singles.map(|(number, plan)| {
                            callers::complete(line.network.clone(), client(number), number, plan)
                        });
                        tokio::join!(futures::future::join_all(batches), futures::future::join_all(singles));
                        Ok(())
                    })
                }
            };
            node.process = Some(process);
            if (coordinators..coordinators + self.scenario.workers.len()).contains(&place) {
                self.pace(place - coordinators);
            }
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now_ms", &self.now_ms)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// How long a fault lasts, in milliseconds.
fn ms(span: Duration) -> u64 {
    span.as_millis() as u64
}
