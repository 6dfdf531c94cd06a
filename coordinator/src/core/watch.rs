//! Everything that happens because time passes: workers fall silent, jobs hang, batches expire, and the periodic duties.

use std::time::Duration;

use ternfleet_proto::Now;
use ternfleet_proto::message::{BatchState, WorkerState};

use super::Core;
use super::duty::Duty;
use super::event::{Action, BatchSlot, JobRef};
use super::fleet::{LOST_AFTER, Liveness, QUIET_AFTER, RETIRED_AFTER, Worker};
use super::flights::Flight;
use super::next::{Next, next_job};
use super::record::Ending;
use super::snapshot::Snapshot;

/// A worker with jobs in its queue that runs nothing for this long has lost them or hangs.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// A running job without a new token for this long goes elsewhere, however its worker's other jobs fare.
const NO_PROGRESS_AFTER: Duration = Duration::from_secs(60);
/// A job that its worker does not run, although it has free slots, was lost on the way if it stays so for this long.
const NOT_BEGUN_AFTER: Duration = Duration::from_secs(60);
/// Weight of the newest second in a batch's shown rate.
const RATE_SHARE: f64 = 0.3;

/// What is done periodically, whatever else happens.
#[derive(Debug)]
pub(super) struct Duties {
    pub(super) bill: Duty,
    pub(super) sample: Duty,
    pub(super) hang: Duty,
    pub(super) rebalance: Duty,
    /// What answered lines have left behind is removed.
    pub(super) clean: Duty,
    /// Ledger, streams and consumers are compared.
    pub(super) sweep: Duty,
    /// A lost hint must not leave a job lying.
    pub(super) look_anew: Duty,
}

impl Default for Duties {
    fn default() -> Self {
        let second = Duty::every(Duration::from_secs(1));
        Self {
            bill: second,
            sample: second,
            hang: second,
            rebalance: second,
            clean: second,
            sweep: Duty::every(Duration::from_secs(60)),
            look_anew: second,
        }
    }
}

impl Core {
    pub(super) fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.watch_workers(now, actions);
        self.watch_batches(now, actions);
        if self.duties.bill.is_due(now.mono) {
            self.bill(now, actions);
        }
        if self.duties.sample.is_due(now.mono) {
            self.sample_rates(now);
        }
        if self.duties.look_anew.is_due(now.mono) {
            self.work_changed = true;
        }
        if self.lead.is_none() {
            return;
        }
        if self.duties.hang.is_due(now.mono) {
            self.move_hanging(now, actions);
        }
        if self.duties.rebalance.is_due(now.mono) {
            self.rebalance(now, actions);
        }
        if self.duties.clean.is_due(now.mono) {
            self.clean(now, actions);
        }
        if self.duties.sweep.is_due(now.mono) {
            self.sweep(actions);
        }
    }

    fn watch_workers(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut lost = Vec::new();
        let mut retired = Vec::new();
        let mut stuck = Vec::new();
        for (slot, worker) in &mut self.fleet.workers {
            let silent = now.since(worker.seen_at);
            let (held, _) = self.flights.held(*slot);
            match worker.liveness {
                Liveness::Live if silent >= QUIET_AFTER => worker.liveness = Liveness::Quiet,
                Liveness::Quiet if silent >= LOST_AFTER => lost.push(*slot),
                Liveness::Lost if silent >= RETIRED_AFTER || worker.beat.state == WorkerState::Gone => {
                    if held == 0 {
                        retired.push(*slot);
                    }
                }
                Liveness::Live | Liveness::Quiet | Liveness::Lost => {}
            }
            let idle = worker.liveness == Liveness::Live && worker.beat.slots_in_use == 0;
            if !idle || held == 0 {
                worker.stuck_since = None;
            } else if now.since(*worker.stuck_since.get_or_insert(now.mono)) >= STUCK_AFTER {
                worker.stuck_since = None;
                stuck.push(*slot);
            }
        }
        for slot in lost {
            self.lose(now, slot, "no heartbeat", actions);
        }
        for slot in stuck {
            let jobs: Vec<JobRef> = self.flights.of_worker(slot).collect();
            for job in jobs {
                if self.flights.get(job).is_some_and(|flight| now.since(flight.since) >= STUCK_AFTER) {
                    self.withdraw(job, false, actions);
                }
            }
        }
        for slot in retired {
            self.flights.close_worker(slot);
            if let Some(Worker { beat, shard, .. }) = self.fleet.remove(slot) {
                self.act(actions, Action::Retire { worker: beat.worker, shard });
            }
        }
    }

    /// Takes jobs from workers that hang, jobs that hang alone, and jobs that were lost on their way.
    fn move_hanging(&mut self, now: Now, actions: &mut Vec<Action>) {
        let (mut hanging, mut lost) = (Vec::new(), Vec::new());
        for (slot, worker) in &mut self.fleet.workers {
            let occupied = worker.beat.slots_in_use > 0;
            worker.hangs |= worker.seems_hung(now);
            let free = worker.beat.slots_in_use < worker.beat.slots;
            for job in self.flights.of_worker(*slot) {
                let Some(flight) = self.flights.get(job).filter(|flight| flight.is_handed()) else {
                    continue;
                };
                let still = |since| now.since(since);
                match flight {
                    Flight { running: true, .. } if worker.hangs => hanging.push((job, true)),
                    _ if worker.hangs => hanging.push((job, false)),
                    Flight { running: true, progress_at, .. }
                        if occupied && still(*progress_at) >= NO_PROGRESS_AFTER =>
                    {
                        hanging.push((job, true));
                    }
                    Flight { running: false, since, .. } if free && still(*since) >= NOT_BEGUN_AFTER => {
                        lost.push(job);
                    }
                    _ => {}
                }
            }
        }
        self.counts.swept_jobs += lost.len() as u64;
        for (job, blame) in hanging.into_iter().chain(lost.into_iter().map(|job| (job, false))) {
            self.withdraw(job, blame, actions);
        }
    }

    fn watch_batches(&mut self, now: Now, actions: &mut Vec<Action>) {
        // Taken when the first batch with a budget has nothing in flight.
        let mut snapshot: Option<Snapshot> = None;
        for slot in self.ledger.active_slots() {
            let Some(batch) = self.ledger.get_mut(slot) else { continue };
            let mut due = Vec::new();
            while let Some((&(at, index), ())) = batch.delayed.first_key_value() {
                if at > now.mono {
                    break;
                }
                batch.delayed.remove(&(at, index));
                due.push(index);
            }
            let expired = batch.expiry.passed(now);
            let budget = batch.record.options.budget_usd_micro;
            let spent = batch.totals.cost_usd_micro;
            let paused = batch.record.state == BatchState::PausedBudget;
            for index in due {
                self.requeue(now, JobRef { batch: slot, index }, 0, actions);
            }
            if self.lead.is_none() {
                continue;
            }
            if expired {
                self.begin_ending(now, slot, Ending::Expired, actions);
            } else if let Some(budget) = budget
                && !paused
            {
                let spent_up = spent >= budget;
                let too_small = !spent_up && self.nothing_affordable(slot, &mut snapshot);
                if spent_up || too_small {
                    let reason = format!("{spent} of the budget of {budget} is spent; raise it to continue");
                    self.pause(slot, reason, actions);
                }
            }
        }
    }

    /// True if nothing of the batch is in flight and its next job is too expensive at every worker there is: then no
    /// answer will change that, only more money.
    fn nothing_affordable(&mut self, slot: BatchSlot, snapshot: &mut Option<Snapshot>) -> bool {
        let committed = self.flights.committed(slot);
        let Some(batch) = self.ledger.get(slot) else { return false };
        if !batch.runs() || committed.jobs > 0 || batch.waiting() == 0 {
            return false;
        }
        let snapshot = snapshot.get_or_insert_with(|| self.snapshot());
        let Some(batch) = self.ledger.get_mut(slot) else { return false };
        next_job(batch, committed.cost, &self.fleet, snapshot) == Next::TooDear
    }

    fn sample_rates(&mut self, now: Now) {
        for slot in self.ledger.active_slots() {
            let Some(batch) = self.ledger.get_mut(slot) else { continue };
            let (at, tokens) = batch.rate_sample;
            let span_s = now.since(at).as_secs_f64();
            if span_s > 0.0 {
                let rate = batch.tokens_made.saturating_sub(tokens) as f64 / span_s;
                batch.rate_tok_s += RATE_SHARE * (rate - batch.rate_tok_s);
                batch.rate_sample = (now.mono, batch.tokens_made);
            }
        }
    }
}
