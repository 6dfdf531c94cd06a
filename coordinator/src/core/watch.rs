//! Watching the fleet: heartbeats, liveness, what runs where, and everything that happens because time passes.

use std::time::Duration;

use ternfleet_proto::message::{BatchState, EventKind, Heartbeat, Order, WorkerState};
use ternfleet_proto::{Lane, Now, WorkerId, table};

use super::batch::{Flight, Stage};
use super::event::{Action, BatchSlot, JobRef, WorkerSlot};
use super::fleet::{LOST_AFTER, Liveness, QUIET_AFTER, RETIRED_AFTER, Worker};
use super::hand::Snapshot;
use super::next::{Next, cost_of, next_job};
use super::record::Ending;
use super::situation::weight;
use super::{Core, EPOCH_TERM_SHIFT};

/// A worker with jobs in its queue that runs nothing for this long has lost them or hangs.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Pods are billed, and rates sampled, this often.
const ACCRUE_EVERY: Duration = Duration::from_secs(1);
/// Weight of the newest second in a batch's shown rate.
const RATE_SHARE: f64 = 0.3;

impl Core {
    pub(super) fn heartbeat(&mut self, now: Now, beat: Heartbeat, actions: &mut Vec<Action>) {
        if Self::is_ours(&beat.worker) {
            self.counts.unusable_beats += 1;
            return;
        }
        // No worker any more, but a pod that costs money and cannot end itself.
        if beat.counters.dead_man_failures > 0 {
            self.counts.dead_man_failures += 1;
            return;
        }
        let beat = self.believed(beat);
        let slot = match self.fleet.slot(&beat.worker) {
            Some(slot) => slot,
            None if beat.state == WorkerState::Gone => return,
            None => {
                let shard = self.fleet.roomiest_shard(self.limits.workers_per_shard);
                let seen = EventKind::WorkerSeen {
                    worker: beat.worker.clone(),
                    pod: beat.pod.clone(),
                    pod_class: beat.pod_class.clone(),
                    price_usd_micro_per_hour: beat.price_usd_micro_per_hour,
                };
                self.act(actions, Action::Audit(seen));
                let slot = self.fleet.add(now, beat.clone(), shard);
                self.hear_canary(slot, &beat, actions);
                slot
            }
        };
        self.take_beat(now, slot, &beat);
        let worker = self.fleet.get(slot).expect("because it was found or added above");
        let (shard, registered) = (worker.shard, worker.registered);
        let behind = self.lead.is_some_and(|lead| beat.leader_seen < lead.revision);
        // An order is a core message and may be lost, and a retirement that came late takes the consumers away.
        if !registered || behind || beat.needs_queues {
            self.act(actions, Action::Register { worker: beat.worker.clone(), shard });
        }
        self.reconcile(now, slot, &beat, actions);
        if matches!(beat.state, WorkerState::Draining | WorkerState::Gone) {
            self.release_queued(slot, beat.state == WorkerState::Gone, actions);
        }
        if beat.state == WorkerState::Gone {
            self.lose(now, slot, "it said goodbye", actions);
        }
    }

    /// Facts and differences of counters.
    fn take_beat(&mut self, now: Now, slot: WorkerSlot, beat: &Heartbeat) {
        let Some(worker) = self.fleet.get_mut(slot) else { return };
        let before = &worker.beat.counters;
        let after = &beat.counters;
        let decoded = after.decode_tokens.saturating_sub(before.decode_tokens);
        let prefilled = after.prefill_tokens.saturating_sub(before.prefill_tokens);
        let busy_ms = after.busy_ms.saturating_sub(before.busy_ms);
        let reprefilled = after.reprefilled_tokens.saturating_sub(before.reprefilled_tokens);
        // Speed is counted in generated tokens; a prompt token counts by the time it takes.
        let prompt_weight = weight(beat.decode_tok_s, beat.prefill_tok_s).unwrap_or(1.0);
        let made = decoded + (prefilled as f64 * prompt_weight).round() as u64;
        if worker.rate.measure(made, Duration::from_millis(busy_ms)) {
            self.counts.slowdowns += 1;
        }
        let was_taking = worker.takes_work();
        worker.seen_at = now.mono;
        let came_back = worker.liveness == Liveness::Lost;
        worker.liveness = Liveness::Live;
        let price_before = worker.beat.price_usd_micro_per_hour;
        worker.beat = beat.clone();
        self.work_changed |= was_taking != worker.takes_work();
        self.counts.reprefilled_tokens += reprefilled;
        if came_back {
            let pod = self.fleet.join_pod(now, slot, beat);
            if let Some(worker) = self.fleet.get_mut(slot) {
                worker.pod = pod;
            }
        }
        if let Some(pod) = self.fleet.pods.get_mut(&beat.pod) {
            pod.busy_ms += busy_ms;
            // What is rented costs what the provider said.
            if pod.lease.is_some() {
                return;
            }
            if price_before != beat.price_usd_micro_per_hour
                || pod.bill.price() != beat.price_usd_micro_per_hour
            {
                pod.bill.set_price(beat.price_usd_micro_per_hour);
            }
        }
    }

    /// Compares what the worker says it runs with what the ledger says.
    fn reconcile(&mut self, now: Now, slot: WorkerSlot, beat: &Heartbeat, actions: &mut Vec<Action>) {
        for running in &beat.running {
            let Some(batch_slot) = self.slot_of(&running.job.batch) else { continue };
            let job = JobRef { batch: batch_slot, index: running.job.index };
            let Some(batch) = self.batches.get_mut(&batch_slot) else { continue };
            let revoke = Action::Tell {
                worker: Some(beat.worker.clone()),
                order: Order::Revoke { job: running.job.clone(), epoch: running.epoch },
            };
            if batch.record.lines.is_some_and(|lines| job.index >= lines) {
                continue;
            }
            if !batch.is_open(job.index) || batch.is_ended() {
                self.act(actions, revoke);
                continue;
            }
            // A worker's word is not enough: it shows what an earlier leader has signed.
            let shown = running
                .tag
                .is_some_and(|tag| self.key.verifies(tag, &running.job, running.epoch, &beat.worker));
            let adoptable = shown
                && batch.runs()
                && self.lead.is_some_and(|lead| running.epoch.0 >> EPOCH_TERM_SHIFT < lead.term);
            let live = batch.live.get_mut(&job.index);
            match live.and_then(|live| live.flight.as_mut()) {
                Some(flight) if flight.worker == slot && flight.epoch == running.epoch => {
                    flight.running = true;
                    if running.generated > flight.generated {
                        flight.progress_at = now.mono;
                        flight.generated = running.generated;
                        let fresh = running.generated.saturating_sub(flight.counted);
                        flight.counted += fresh;
                        if let Some(pod) = self.fleet.pods.get_mut(&beat.pod) {
                            pod.bill.made(batch_slot, u64::from(fresh));
                        }
                    }
                }
                Some(_) => self.act(actions, revoke),
                None if adoptable => {
                    self.adopt(now, slot, job, running.epoch, running.generated);
                }
                None => self.act(actions, revoke),
            }
        }
    }

    /// A job handed out by an earlier leader is running: leave it where it is.
    fn adopt(
        &mut self,
        now: Now,
        slot: WorkerSlot,
        job: JobRef,
        epoch: ternfleet_proto::Epoch,
        generated: u32,
    ) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let live = batch.live.entry(job.index).or_default();
        if live.answering || live.handovers > 0 {
            return;
        }
        let tokens = live.task.as_ref().map_or(self.mean_job_tokens as u32, |task| task.tokens_estimate);
        if live.task.is_some()
            && let Some(queue) = batch.queues.get_mut(live.queue)
        {
            queue.jobs.retain(|index| *index != job.index);
        }
        // Nothing is measured yet: then the bill alone keeps the budget.
        let cost = cost_of(tokens, self.fleet.kappa(slot).unwrap_or(0.0));
        live.flight = Some(Flight {
            worker: slot,
            epoch,
            stage: Stage::Handed,
            sequence: None,
            tokens,
            cost,
            since: now.mono,
            running: true,
            generated,
            progress_at: now.mono,
            counted: generated,
            blame: false,
        });
        batch.in_flight += 1;
        batch.commit(tokens, cost);
        if let Some(worker) = self.fleet.get_mut(slot) {
            worker.flights.insert(job);
            worker.held_tokens += u64::from(tokens);
        }
        self.counts.adopted_jobs += 1;
    }

    pub(super) fn registered(&mut self, worker: &WorkerId, shard: u16, actions: &mut Vec<Action>) {
        let Some(slot) = self.fleet.slot(worker) else { return };
        let Some(found) = self.fleet.get_mut(slot) else { return };
        found.registered = true;
        found.shard = shard;
        self.work_changed = true;
        let order = Order::Assigned {
            shard,
            interactive: table::work_consumer(worker, Lane::Interactive),
            batch: table::work_consumer(worker, Lane::Batch),
        };
        self.act(actions, Action::Tell { worker: Some(worker.clone()), order });
    }

    /// Takes back what waits in a worker's queue, and, if it is gone, what it ran.
    fn release_queued(&mut self, slot: WorkerSlot, all: bool, actions: &mut Vec<Action>) {
        let Some(worker) = self.fleet.get(slot) else { return };
        let jobs: Vec<JobRef> = worker.flights.iter().copied().collect();
        for job in jobs {
            let flight = self.flight(job);
            if all || flight.is_some_and(|flight| !flight.running) {
                self.withdraw(job, false, actions);
            }
        }
    }

    pub(super) fn flight(&self, job: JobRef) -> Option<&Flight> {
        self.batches.get(&job.batch)?.live.get(&job.index)?.flight.as_ref()
    }

    fn lose(&mut self, now: Now, slot: WorkerSlot, reason: &str, actions: &mut Vec<Action>) {
        self.accrue(now, actions);
        let Some(worker) = self.fleet.get_mut(slot) else { return };
        if worker.liveness == Liveness::Lost {
            return;
        }
        let orderly = worker.beat.state == WorkerState::Gone;
        worker.liveness = Liveness::Lost;
        let jobs: Vec<JobRef> = worker.flights.iter().copied().collect();
        let lost = EventKind::WorkerLost {
            worker: worker.beat.worker.clone(),
            pod: worker.beat.pod.clone(),
            reason: reason.to_owned(),
        };
        let pod = worker.beat.pod.clone();
        if let Some(pod) = self.fleet.pods.get_mut(&pod) {
            pod.workers.remove(&slot);
        }
        if !orderly {
            self.counts.lost_workers += 1;
        }
        self.act(actions, Action::Audit(lost));
        for job in jobs {
            self.withdraw(job, !orderly, actions);
        }
        self.work_changed = true;
    }

    pub(super) fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.watch_workers(now, actions);
        self.watch_batches(now, actions);
        if now.since(self.accrued_at) >= ACCRUE_EVERY {
            self.accrue(now, actions);
            self.sample_rates(now);
            self.rebalance(now, actions);
            self.sweep(now, actions);
            // A lost hint must not leave a job lying: look anew once a second.
            self.work_changed = true;
        }
    }

    fn watch_workers(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut lost = Vec::new();
        let mut retired = Vec::new();
        let mut stuck = Vec::new();
        for (slot, worker) in &mut self.fleet.workers {
            let silent = now.since(worker.seen_at);
            match worker.liveness {
                Liveness::Live if silent >= QUIET_AFTER => worker.liveness = Liveness::Quiet,
                Liveness::Quiet if silent >= LOST_AFTER => lost.push(*slot),
                Liveness::Lost if silent >= RETIRED_AFTER || worker.beat.state == WorkerState::Gone => {
                    if worker.flights.is_empty() {
                        retired.push(*slot);
                    }
                }
                Liveness::Live | Liveness::Quiet | Liveness::Lost => {}
            }
            let idle = worker.liveness == Liveness::Live && worker.beat.slots_in_use == 0;
            if !idle || worker.flights.is_empty() {
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
            let jobs: Vec<JobRef> =
                self.fleet.get(slot).map_or(Vec::new(), |w| w.flights.iter().copied().collect());
            for job in jobs {
                if self.flight(job).is_some_and(|flight| now.since(flight.since) >= STUCK_AFTER) {
                    self.withdraw(job, false, actions);
                }
            }
        }
        for slot in retired {
            if let Some(Worker { beat, shard, .. }) = self.fleet.remove(slot) {
                self.act(actions, Action::Retire { worker: beat.worker, shard });
            }
        }
    }

    fn watch_batches(&mut self, now: Now, actions: &mut Vec<Action>) {
        let slots: Vec<BatchSlot> = self.active.iter().copied().collect();
        // Taken when the first batch with a budget has nothing in flight.
        let mut snapshot: Option<Snapshot> = None;
        for slot in slots {
            let Some(batch) = self.batches.get_mut(&slot) else { continue };
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
                    let reason = format!("{spent} of the budget of {budget} is spent; raise it to go on");
                    self.pause(now, slot, reason, actions);
                }
            }
        }
    }

    /// True if nothing of the batch is in flight and its next job is too dear at every worker there is: then no
    /// answer will change that, only more money.
    fn nothing_affordable(&mut self, slot: BatchSlot, snapshot: &mut Option<Snapshot>) -> bool {
        let Some(batch) = self.batches.get_mut(&slot) else { return false };
        if !batch.runs() || batch.in_flight > 0 || batch.waiting() == 0 {
            return false;
        }
        let snapshot = snapshot.get_or_insert_with(|| Snapshot::take(&self.fleet));
        next_job(batch, &self.fleet, snapshot) == Next::TooDear
    }

    fn sample_rates(&mut self, now: Now) {
        for slot in &self.active {
            let Some(batch) = self.batches.get_mut(slot) else { continue };
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
