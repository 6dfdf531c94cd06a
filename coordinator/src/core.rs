//! The coordinator's decisions as one state machine without I/O: what it is told goes in through [`Core::on`], what
//! it wants done comes out as [`Action`]s. No clock, no randomness, no await, no lock.
//!
//! The shell (`shell.rs`) drives it over a real bus, the simulation over a simulated one. A standby feeds it
//! the same events; without a [`Lead`] it keeps the ledger and the fleet warm and asks for nothing.
//!
//! What it knows belongs to five owners, whose invariants are theirs: [`Ledger`] has the batches, their lines and
//! answers, [`Flights`] which job is where, [`Fleet`] workers and hosts, [`Money`] the bills, `audit` the second runs;
//! [`Account`] is what has been spent in all.
//! [`Core`] composes them: its files hold rules that need more than one.

mod account;
mod audit;
mod balance;
mod batch;
mod beat;
mod cache;
mod canary;
mod checks;
mod duty;
pub mod estimate;
mod event;
mod fair;
mod feed;
mod fleet;
mod flights;
mod hand;
mod ledger;
mod leftovers;
mod lengths;
mod life;
mod money;
mod next;
mod quota;
mod rate;
mod record;
mod savepoint;
mod settle;
mod situation;
mod snapshot;
mod spend;
mod stall;
mod summary;
mod supply;
mod tempo;
mod view;
mod wanted;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use ternfleet_proto::clock::StepWatch;
use ternfleet_proto::message::EventKind;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{BatchId, MonoMs, Now, WorkerId, table};

pub use account::Account;
pub(crate) use account::day_of;
pub use batch::{Batch, Cell, CellState, MODELS_MAX, Origin};
pub use checks::QuoteCheck;
pub use event::{
    Action, Answer, BatchSlot, Change, Content, Event, Fed, HandOut, JobRef, Lead, Lease, Outputs, Task,
    Trace, Verdict, WorkerSlot,
};
pub use fleet::{Fleet, Liveness, Worker};
pub use flights::{Committed, Flight, Flights, Size, Stage, Used};
pub use ledger::{Commit, Kept, Ledger};
pub use money::{Bill, Claim, ClosedBills, LeasePhase, Money, Pod, PodNumber, Share, Spent};
pub use record::{BatchFacts, BatchRecord, COMPLETION_WINDOW_MS, Ending, Totals, batch_id, creation_digest};
pub use savepoint::Savepoint;
pub use situation::Situation;
pub use summary::Summary;
pub use supply::Supply;
pub use view::{Gauges, view_of};
pub use wanted::{CacheKey, Place, Wanted, start_of};

use crate::options::Quotas;

/// The name under which the coordinator answers lines that never run.
pub const COORDINATOR: &str = "coordinator";

/// An epoch is the leader's term and, below it, the number of the assignment: 2^20 terms of 4,096 assignments a job.
pub(crate) const EPOCH_TERM_SHIFT: u32 = 12;
/// Assignments of one job by one leader; one more and it is poison.
pub(crate) const HANDOVERS_MAX: u16 = (1 << EPOCH_TERM_SHIFT) - 1;

/// Settings that decisions depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub quotas: Quotas,
    /// Text of jobs between reading and answer, over all batches.
    pub text_bytes_max: u64,
    /// Workers that share a work stream.
    pub workers_per_shard: usize,
    /// Share of good answers that are run a second time elsewhere, in parts per million.
    pub audit_share_ppm: u32,
    /// Answers that are remembered for lines that ask for the same.
    pub cache_entries_max: usize,
    /// After a change of leader, wait this long for workers to say what they run before assigning.
    pub settle_ms: u64,
    /// The models of the classes of pods that may be rented and whose engine can do everything; `None` is any model.
    pub able_classes: Vec<Option<String>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quotas: Quotas::default(),
            text_bytes_max: 256 << 20,
            workers_per_shard: table::WORKERS_PER_SHARD,
            audit_share_ppm: 0,
            cache_entries_max: 1_000_000,
            settle_ms: 1_200,
            able_classes: Vec::new(),
        }
    }
}

/// Counters since the process began, for metrics and invariants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Good and error answers committed.
    pub committed: [u64; 2],
    pub duplicate_answers: u64,
    pub divergent_answers: u64,
    /// Answers whose tag was never given out.
    pub forged_answers: u64,
    pub answers_without_batch: u64,
    /// Lines that were answered with the answer of another.
    pub cached_answers: u64,
    /// Jobs whose turn it was, whether a worker had room for them or not.
    pub drawn_jobs: u64,
    pub handed_jobs: u64,
    pub moved_jobs: u64,
    /// Moved because the sweeper found them lost.
    pub swept_jobs: u64,
    pub failed_handovers: u64,
    pub failed_attempts: u64,
    pub worker_faults: u64,
    /// Tokens of answers, counted for the workers that made them.
    pub worker_tokens: u64,
    pub dead_jobs: u64,
    pub lost_workers: u64,
    /// Workers that were suddenly much slower than usual.
    pub slowdowns: u64,
    pub quarantined_hosts: u64,
    pub last_host_suspect: u64,
    /// Answers that are being run a second time, and what came of it.
    pub audits_begun: u64,
    pub audits_agreed: u64,
    pub audits_diverged: u64,
    /// No other pod could do it, or it came to nothing.
    pub audits_skipped: u64,
    /// Hosts whose workers' canary is not that of the others.
    pub canaries_diverged: u64,
    /// Checkpoints that a worker found to be wrong.
    pub checkpoints_rejected: u64,
    /// Heartbeats of gone workers that cannot end their pods.
    pub dead_man_failures: u64,
    pub adopted_jobs: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub wasted_duplicate_tokens: u64,
    pub wasted_repeated_tokens: u64,
    pub reprefilled_tokens: u64,
    pub handover_ms_sum: u64,
    /// What the jobs were estimated to cost beyond the cheapest worker of their kind, when they were assigned.
    pub regret_usd_micro: u64,
    pub unusable_beats: u64,
    /// Times that the wall clock was stepped.
    pub clock_steps: u64,
    /// By number of the invariant: J1, J3, M1, M2.
    pub violations: [u64; 4],
}

/// Ledger, fleet and the rules between them.
#[derive(Debug)]
pub struct Core {
    key: AssignmentKey,
    limits: Limits,
    lead: Option<Lead>,
    ledger: Ledger,
    flights: Flights,
    fleet: Fleet,
    money: Money,
    account: Account,
    audits: audit::Audits,
    leftovers: leftovers::Leftovers,
    lengths: lengths::Lengths,
    orders: fair::Orders,
    allowances: quota::Allowances,
    checks: checks::Checks,
    known: cache::Known,
    /// Newest answers to jobs that nobody knows: single jobs of an earlier leader, mostly.
    strays: VecDeque<(u64, Answer)>,
    /// What the scaler said last; none without one.
    supply: Option<Supply>,
    /// Something has changed that may let a job be assigned.
    work_changed: bool,
    handed_at: MonoMs,
    /// Since when jobs could have been assigned, while they have not been.
    hand_due: Option<MonoMs>,
    /// How long what was assigned last had been due.
    hand_waited: Duration,
    hand_after: MonoMs,
    /// When this process began to lead.
    leads_since: MonoMs,
    duties: watch::Duties,
    steps: StepWatch,
    results_read_to: u64,
    pub counts: Counts,
}

impl Core {
    pub fn new(key: AssignmentKey, limits: Limits) -> Self {
        Self {
            key,
            allowances: quota::Allowances::new(&limits.quotas),
            limits,
            lead: None,
            ledger: Ledger::default(),
            flights: Flights::default(),
            fleet: Fleet::default(),
            money: Money::default(),
            account: Account::default(),
            audits: audit::Audits::default(),
            leftovers: leftovers::Leftovers::default(),
            lengths: lengths::Lengths::default(),
            orders: fair::Orders::default(),
            checks: checks::Checks::default(),
            known: cache::Known::default(),
            strays: VecDeque::new(),
            supply: None,
            work_changed: false,
            handed_at: MonoMs(0),
            hand_due: None,
            hand_waited: Duration::ZERO,
            hand_after: MonoMs(0),
            leads_since: MonoMs(0),
            duties: watch::Duties::default(),
            steps: StepWatch::default(),
            results_read_to: 0,
            counts: Counts::default(),
        }
    }

    /// Takes in one event; what is to be done about it is appended to `actions`.
    pub fn on(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        if let Some(by_ms) = self.steps.look(now) {
            self.counts.clock_steps += 1;
            self.act(actions, Action::Audit(EventKind::ClockStepped { by_ms }));
        }
        match event {
            Event::Lead(lead) => self.begin_to_lead(now, lead, actions),
            Event::BatchKnown(record) => self.batch_known(now, *record, actions),
            Event::Scanned { batch, lines } => self.scanned(now, batch, lines, actions),
            Event::InputLost { batch, reason } => self.input_lost(now, batch, reason, actions),
            Event::Lines { batch, lines, next, end } => {
                self.lines_read(now, batch, lines, next, end, actions)
            }
            Event::Heartbeat(beat) => self.heartbeat(now, *beat, actions),
            Event::Registered { worker, shard } => self.registered(&worker, shard, actions),
            Event::Answer { sequence, answer } => self.answer(now, sequence, &answer, actions),
            Event::Handed { job, epoch, sequence } => self.handed(now, job, epoch, sequence, actions),
            Event::Withdrawn { job, epoch, trace } => self.withdrawn(now, job, epoch, trace, actions),
            Event::Written { batch, outputs } => self.written(now, batch, outputs, actions),
            Event::NotRepeated { job, key } => self.not_repeated(now, job, key, actions),
            Event::SegmentKept { segment, answers } => self.segment_kept(segment, answers),
            Event::SegmentGone { segment } => self.segment_gone(segment),
            Event::Cancel { batch } => self.cancel(now, batch, actions),
            Event::Change { batch, change } => self.change(now, batch, change, actions),
            Event::Notified { batch, outcome } => self.notified(&batch, outcome, actions),
            Event::Archived { batch, tenant } => {
                self.ledger.archived(&batch);
                self.act(actions, Action::DropAnswers { tenant, batch });
            }
            Event::AgedOut(record) => self.ledger.age_out(*record),
            Event::JobCreated(job) => self.job_created(now, *job, actions),
            Event::Leased(lease) => self.money.leased(now, &lease),
            Event::LeaseEnding { pod } => self.money.lease_ending(now.mono, &pod),
            Event::LeaseEnded { pod } => self.lease_ended(now, &pod, actions),
            Event::Supplied(supply) => self.supply = Some(*supply),
            Event::AccountKnown(account) => self.account = *account,
            Event::Dismiss { pod } => {
                self.account.dismiss(&pod);
            }
            Event::Tick => self.tick(now, actions),
            Event::Turn => self.turn(now, actions),
        }
    }

    /// All available events are in: assign jobs, then read on where lines run short.
    fn turn(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.hand_out(now, actions);
        self.read_on(actions);
    }

    pub fn is_leading(&self) -> bool {
        self.lead.is_some()
    }

    pub fn batch(&self, slot: BatchSlot) -> Option<&Batch> {
        self.ledger.get(slot)
    }

    pub fn find(&self, id: &BatchId) -> Option<BatchSlot> {
        self.ledger.find(id)
    }

    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub fn flights(&self) -> &Flights {
        &self.flights
    }

    pub fn money(&self) -> &Money {
        &self.money
    }

    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Highest sequence of RESULTS taken in.
    pub fn results_read_to(&self) -> u64 {
        self.results_read_to
    }

    /// Only a leader acts.
    fn act(&self, actions: &mut Vec<Action>, action: Action) {
        if self.lead.is_some() {
            actions.push(action);
        }
    }
}

/// The worker name of the coordinator's own answers.
pub fn coordinator_name() -> WorkerId {
    COORDINATOR.parse().expect("because the name is made of id characters")
}
