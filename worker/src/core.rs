//! What a worker decides: which jobs it takes, how far each has come, what is said about it, when it stops.
//!
//! A plain state machine, driven by `shell` in production and by the simulation in tests: an event comes in with the
//! time, actions come out, and the outcome of each action comes back as an event. Every operation on the bus may be
//! lost, doubled or late; the rules that hold all the same are tested by name in `core/tests*`.
//!
//! Architecture Invariant: no clock, no randomness, no await, no lock, no hash map.

mod account;
mod answer;
mod event;
mod fleet;
mod intake;
mod progress;
mod rate;
mod retry;
mod slot;
mod stop;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ternfleet_proto::clock::StepWatch;
use ternfleet_proto::message::{Control, Heartbeat, WorkerCounters, WorkerState};
use ternfleet_proto::{BatchId, JobKey, Lane, LeaderRevision, MonoMs, Now};

pub use event::*;
pub use rate::Rate;
use slot::{Phase, Slot};

/// What the core is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The heartbeat's constant part: who this is, what it runs, what it costs.
    pub profile: Heartbeat,
    /// Jobs that generate at once.
    pub slots: usize,
    pub kv_pages: usize,
    /// Positions of one page.
    pub page_tokens: usize,
    /// A checkpoint goes out after so many tokens …
    pub checkpoint_tokens: usize,
    /// … or this long after the last one, whichever comes first.
    pub checkpoint_every: Duration,
    pub heartbeat_every: Duration,
    /// How often a lease is extended, if tokens advanced.
    pub lease_every: Duration,
    /// A job that waits this long for room is given back.
    pub held_max: Duration,
    /// From the first signal to the exit, at most.
    pub drain_max: Duration,
    /// How long a pull waits at the server.
    pub pull_expires: Duration,
    /// Checkpoints hold text beside ids, since nobody here could make one of the other.
    pub keeps_text: bool,
}

/// How many answered jobs are remembered, so that a redelivery whose ack was lost is not run again.
const ANSWERED_MAX: usize = 4096;
/// How many cancelled batches are remembered for work that was on its way.
const CANCELLED_MAX: usize = 256;
/// Answers that may wait for the bus, in slots; beyond that nothing is pulled.
const ANSWERING_PER_SLOT: usize = 4;

/// The state machine.
#[derive(Debug)]
pub struct Core {
    config: Config,
    state: WorkerState,
    slots: BTreeMap<SlotId, Slot>,
    /// The latest stay of each job; an older one of the same job may still be ending.
    by_job: BTreeMap<JobKey, SlotId>,
    next_slot: u64,
    queues: Option<Queues>,
    pulls: BTreeMap<Lane, PullState>,
    /// Pages that a job took lately, as an average; sizes the next pull.
    pages_a_job: f64,
    leader: Leader,
    cancelled: VecDeque<BatchId>,
    answered: BTreeSet<JobKey>,
    answered_order: VecDeque<JobKey>,
    counters: WorkerCounters,
    decode_rate: Rate,
    prefill_rate: Rate,
    /// Prompt positions computed since the start, by all jobs.
    prefilled: u64,
    busy: Duration,
    /// Engine time that no job was charged for yet.
    unshared: Duration,
    heartbeat_at: Option<MonoMs>,
    drain_until: Option<MonoMs>,
    steps: StepWatch,
    exited: bool,
    bus_up: bool,
    signals: u32,
    host: HostFacts,
    /// Of the server that computes for this worker, where there is one.
    server_heard_at: Option<MonoMs>,
}

/// The two consumers of this worker, as the coordinator named them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Queues {
    stream: String,
    interactive: String,
    batch: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct PullState {
    outstanding: bool,
    tries: u32,
    not_before: Option<MonoMs>,
}

/// The highest revision seen, and where in its stream work of that revision was first seen.
#[derive(Debug, Clone, Default)]
struct Leader {
    revision: LeaderRevision,
    first_work: Option<(String, u64)>,
}

impl Core {
    pub fn new(config: Config) -> Core {
        Core {
            decode_rate: Rate::starting_at(config.profile.decode_tok_s),
            prefill_rate: Rate::starting_at(config.profile.prefill_tok_s),
            config,
            state: WorkerState::Ready,
            slots: BTreeMap::new(),
            by_job: BTreeMap::new(),
            next_slot: 0,
            queues: None,
            pulls: Lane::ALL.into_iter().map(|lane| (lane, PullState::default())).collect(),
            pages_a_job: 1.0,
            leader: Leader::default(),
            cancelled: VecDeque::new(),
            answered: BTreeSet::new(),
            answered_order: VecDeque::new(),
            counters: WorkerCounters::default(),
            prefilled: 0,
            busy: Duration::ZERO,
            unshared: Duration::ZERO,
            heartbeat_at: None,
            drain_until: None,
            steps: StepWatch::default(),
            exited: false,
            bus_up: true,
            signals: 0,
            host: HostFacts::default(),
            server_heard_at: None,
        }
    }

    /// Takes one event in and appends what is to be done. After [`Action::Exit`] nothing more comes.
    pub fn on(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        if self.exited {
            return;
        }
        if let Some(by_ms) = self.steps.look(now) {
            actions.push(Action::Note(Note::ClockStepped { by_ms }));
        }
        match event {
            Event::WorkPulled { lane, delivery, work } => self.on_pulled(now, lane, delivery, work, actions),
            Event::PullEnded { lane, outcome } => self.on_pull_ended(now, lane, outcome, actions),
            Event::CheckpointRead { slot, outcome } => self.on_checkpoint_read(now, slot, outcome, actions),
            Event::CheckpointWritten { slot, outcome } => {
                self.on_checkpoint_written(now, slot, outcome, actions)
            }
            Event::Started { slot, prompt_tokens, kept } => self.on_started(now, slot, prompt_tokens, kept),
            Event::StartFailed { slot, why } => self.on_start_failed(now, slot, why, actions),
            Event::Tokens { slot, tokens } => self.on_tokens(now, slot, tokens, actions),
            Event::Ended { slot, end } => self.on_ended(now, slot, end, actions),
            Event::ResultWritten { slot, outcome } => self.on_result_written(now, slot, outcome, actions),
            Event::ResultRead { slot, outcome } => self.on_result_read(now, slot, outcome, actions),
            Event::Settled { slot, outcome } => self.on_settled(now, slot, outcome, actions),
            Event::Steps { steps, made } => self.on_steps(steps, &made),
            Event::Order(control) => self.on_order(now, control, actions),
            Event::Tick { host } => self.on_tick(now, host, actions),
            Event::HostFault { reason } => self.host_fault(now, &reason, actions),
            Event::Server { ready } => self.on_server(now, ready, actions),
            Event::Signal => self.on_signal(now, actions),
            Event::Bus { up } => self.on_bus(now, up, actions),
        }
        self.take_in(now, actions);
        self.leave_when_drained(now, actions);
    }

    pub fn state(&self) -> WorkerState {
        self.state
    }

    pub fn counters(&self) -> WorkerCounters {
        self.counters
    }

    /// Measured decode and prefill rates in tokens per second, all sequences together.
    pub fn rates(&self) -> (&Rate, &Rate) {
        (&self.decode_rate, &self.prefill_rate)
    }

    /// Jobs that hold a slot of the engine.
    pub fn slots_in_use(&self) -> usize {
        self.slots.values().filter(|slot| slot.phase.holds_engine()).count()
    }

    /// Key/value pages that no job has been promised.
    pub fn pages_free(&self) -> usize {
        let taken: usize = self.slots.values().filter(|s| s.phase.holds_engine()).map(|s| s.pages).sum();
        self.config.kv_pages.saturating_sub(taken)
    }

    /// Results that wait to be stored or acknowledged.
    pub fn answering(&self) -> usize {
        self.slots.values().filter(|slot| slot.phase.is_answering()).count()
    }

    /// Age of the oldest output that is in no checkpoint yet.
    pub fn checkpoint_age(&self, now: Now) -> Duration {
        let behind = self
            .slots
            .values()
            .filter(|s| matches!(s.phase, Phase::Running) && s.stored_tokens < s.ids.len());
        behind.map(|slot| now.since(slot.stored_at)).max().unwrap_or_default()
    }

    /// Ends a slot. Events that still come for it find nothing.
    fn remove(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.remove(&id)
            && self.by_job.get(&slot.work.job) == Some(&id)
        {
            self.by_job.remove(&slot.work.job);
        }
    }

    fn on_order(&mut self, now: Now, control: Control, actions: &mut Vec<Action>) {
        self.obey(now, control, actions);
    }

    fn on_bus(&mut self, now: Now, up: bool, actions: &mut Vec<Action>) {
        let came_back = up && !self.bus_up;
        self.bus_up = up;
        if came_back {
            self.heartbeat(now, actions);
            self.retry_due(now, true, actions);
            for pull in self.pulls.values_mut() {
                pull.not_before = None;
            }
        }
    }
}
