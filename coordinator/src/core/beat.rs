//! Heartbeats: what a worker says of itself, and of the jobs that it runs.

use std::time::Duration;

use ternfleet_proto::message::{EventKind, Heartbeat, Order, Running, WorkerCounters, WorkerState};
use ternfleet_proto::{Lane, Now, WorkerId, table};

use super::event::{Action, JobRef, WorkerSlot};
use super::fleet::Liveness;
use super::flights::{Flight, Size, Used};
use super::next::cost_of;
use super::situation::weight;
use super::{Core, EPOCH_TERM_SHIFT};

/// Queues that are being made are not asked for again: a whole fleet that comes at once keeps NATS busy for longer than it
/// takes until the next heartbeat.
const REGISTERING: Duration = Duration::from_secs(10);

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
        let beat = self.money.believed(beat);
        let slot = match self.fleet.slot(&beat.worker) {
            Some(slot) => slot,
            None if beat.state == WorkerState::Gone => return,
            None => self.greet(now, &beat, actions),
        };
        self.take_beat(now, slot, &beat);
        if let Some(lead) = self.lead {
            let worker = self.fleet.get_mut(slot).expect("because it was found or added above");
            // An order is a core message and may be lost, and a retirement that came late takes the consumers away.
            let needs = !worker.registered || beat.leader_seen < lead.revision || beat.needs_queues;
            let asked = worker.registering.is_some_and(|at| now.since(at) < REGISTERING);
            if needs && !asked {
                worker.registering = Some(now.mono);
                actions.push(Action::Register { worker: beat.worker.clone(), shard: worker.shard });
            }
        }
        for running in &beat.running {
            self.reconcile(now, slot, &beat.worker, running, actions);
        }
        // One whose server is away calibrates again: what waits for it need not wait for that.
        if beat.state != WorkerState::Ready {
            self.release_queued(slot, beat.state == WorkerState::Gone, actions);
        }
        if beat.state == WorkerState::Gone {
            self.lose(now, slot, "it announced its end", actions);
        }
    }

    /// A worker that was not known.
    fn greet(&mut self, now: Now, beat: &Heartbeat, actions: &mut Vec<Action>) -> WorkerSlot {
        let shard = self.fleet.roomiest_shard(self.limits.workers_per_shard);
        self.act(
            actions,
            Action::Audit(EventKind::WorkerSeen {
                worker: beat.worker.clone(),
                pod: beat.pod.clone(),
                pod_class: beat.pod_class.clone(),
                price_usd_micro_per_hour: beat.price_usd_micro_per_hour,
            }),
        );
        self.welcome(beat);
        let (slot, price) = (self.fleet.next_slot(), beat.price_usd_micro_per_hour);
        let pod = self.money.join(now, slot, &beat.pod, price, &beat.pod_class);
        self.fleet.add(now.mono, beat.clone(), shard, pod);
        self.hear_canary(slot, beat, actions);
        slot
    }

    /// Facts and differences of counters.
    fn take_beat(&mut self, now: Now, slot: WorkerSlot, beat: &Heartbeat) {
        let came_back = self.fleet.get(slot).is_some_and(|worker| worker.liveness == Liveness::Lost);
        if came_back {
            self.welcome(beat);
        }
        let Some(worker) = self.fleet.get_mut(slot) else { return };
        let before = &worker.beat.counters;
        let after = &beat.counters;
        let decoded = after.decode_tokens.saturating_sub(before.decode_tokens);
        let prefilled = after.prefill_tokens.saturating_sub(before.prefill_tokens);
        let busy_ms = after.busy_ms.saturating_sub(before.busy_ms);
        let reprefilled = after.reprefilled_tokens.saturating_sub(before.reprefilled_tokens);
        let ended = |counters: &WorkerCounters| counters.jobs_done + counters.jobs_failed + counters.steps;
        let moved = decoded + prefilled + busy_ms > 0 || ended(before) != ended(after);
        // Speed is counted in generated tokens; a prompt token counts by the time it takes.
        let prompt_weight = weight(beat.decode_tok_s, beat.prefill_tok_s).unwrap_or(1.0);
        let made = decoded + (prefilled as f64 * prompt_weight).round() as u64;
        if worker.rate.measure(made, Duration::from_millis(busy_ms)) {
            self.counts.slowdowns += 1;
        }
        worker.tempo.measure(beat, &worker.beat.counters);
        let was_taking = worker.takes_work();
        if moved || beat.slots_in_use == 0 || worker.beat.slots_in_use == 0 {
            worker.advanced_at = now.mono;
            worker.hangs = false;
        }
        worker.seen_at = now.mono;
        worker.liveness = Liveness::Live;
        self.fleet.hear(slot, beat);
        let Some(worker) = self.fleet.get_mut(slot) else { return };
        self.work_changed |= was_taking != worker.takes_work();
        self.counts.reprefilled_tokens += reprefilled;
        let price = worker.price();
        if came_back {
            worker.advanced_at = now.mono;
            worker.pod = self.money.join(now, slot, &beat.pod, price, &beat.pod_class);
        }
        self.money.set_price(now.mono, worker.pod_name(), price);
    }

    /// Compares what the worker says it runs with what is known of the job.
    fn reconcile(
        &mut self,
        now: Now,
        slot: WorkerSlot,
        worker: &WorkerId,
        running: &Running,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch_slot) = self.ledger.find(&running.job.batch) else { return };
        let Some(batch) = self.ledger.get(batch_slot) else { return };
        let job = JobRef { batch: batch_slot, index: running.job.index };
        let revoke = Action::Tell {
            worker: Some(worker.clone()),
            order: Order::Revoke { job: running.job.clone(), epoch: running.epoch },
        };
        if batch.record.lines.is_some_and(|lines| job.index >= lines) {
            return;
        }
        if !batch.is_open(job.index) || batch.is_ended() {
            self.act(actions, revoke);
            return;
        }
        // A worker's claim is not enough: it shows what an earlier leader has signed.
        let shown =
            running.tag.is_some_and(|tag| self.key.verifies(tag, &running.job, running.epoch, worker));
        let adoptable = shown
            && batch.runs()
            && self.lead.is_some_and(|lead| running.epoch.0 >> EPOCH_TERM_SHIFT < lead.term);
        let used = Used { engine_us: running.engine_us, tokens: running.generated };
        match self.flights.get_mut(job) {
            Some(flight) if flight.worker() == slot && flight.epoch == running.epoch => {
                flight.running = true;
                if running.generated > flight.generated {
                    flight.progress_at = now.mono;
                    flight.generated = running.generated;
                }
                let fresh = flight.used.take(used);
                self.charge(now, slot, batch_slot, fresh);
            }
            None if adoptable => self.adopt(now, slot, job, running, used),
            Some(_) | None => self.act(actions, revoke),
        }
    }

    /// A job assigned by an earlier leader is running: leave it where it is.
    fn adopt(&mut self, now: Now, slot: WorkerSlot, job: JobRef, running: &Running, used: Used) {
        // Nothing is measured yet: then the bill alone keeps the budget.
        let kappa = self.kappa(slot).unwrap_or(0.0);
        let mean_job_tokens = self.lengths.mean_job_tokens;
        let Some(batch) = self.ledger.get_mut(job.batch) else { return };
        let live = batch.live.entry(job.index).or_default();
        if live.answering || live.handovers > 0 {
            return;
        }
        let tokens = live.task.as_ref().map_or(mean_job_tokens as u32, |task| task.tokens_estimate);
        let size = Size { tokens, cost: cost_of(tokens, kappa) };
        self.ledger.unqueue(job);
        self.flights.depart(job, Flight::found(now.mono, slot, running.epoch, size, running.generated, used));
        self.counts.adopted_jobs += 1;
    }

    /// Price of a million tokens at a worker, in micro-dollars: its pod's price over the speed of all that run there.
    fn kappa(&self, slot: WorkerSlot) -> Option<f64> {
        let pod = self.money.pods().get(self.fleet.get(slot)?.pod_name())?;
        let speeds = pod.workers.iter().filter_map(|slot| Some(self.fleet.get(*slot)?.rate.mean_tok_s()));
        let rate: f64 = speeds.sum();
        (rate > 0.0).then(|| pod.bill.price().0 as f64 * 1e6 / (3600.0 * rate))
    }

    pub(super) fn registered(&mut self, worker: &WorkerId, shard: u16, actions: &mut Vec<Action>) {
        let Some(slot) = self.fleet.slot(worker) else { return };
        self.fleet.registered(slot, shard);
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
        let jobs: Vec<JobRef> = self.flights.of_worker(slot).collect();
        for job in jobs {
            if all || self.flights.get(job).is_some_and(|flight| !flight.running) {
                self.withdraw(job, false, actions);
            }
        }
    }

    pub(super) fn lose(&mut self, now: Now, slot: WorkerSlot, reason: &str, actions: &mut Vec<Action>) {
        let Some(worker) = self.fleet.get_mut(slot) else { return };
        if worker.liveness == Liveness::Lost {
            return;
        }
        let orderly = worker.beat.state == WorkerState::Gone;
        worker.liveness = Liveness::Lost;
        let lost = EventKind::WorkerLost {
            worker: worker.beat.worker.clone(),
            pod: worker.pod_name().to_owned(),
            reason: reason.to_owned(),
        };
        self.money.leave(worker.pod_name(), slot);
        if !orderly {
            self.counts.lost_workers += 1;
            self.note_loss(now, slot);
        }
        self.act(actions, Action::Audit(lost));
        let jobs: Vec<JobRef> = self.flights.of_worker(slot).collect();
        for job in jobs {
            self.withdraw(job, !orderly, actions);
        }
        self.work_changed = true;
    }
}
