//! Handing out: fairness says whose job is next, the budget which workers may have it, the router which one gets it.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_proto::message::{FailedAttempt, Input, Work};
use ternfleet_proto::{Attempt, Epoch, JobKey, Lane, Now, UsdMicro};

use super::batch::{Flight, Stage};
use super::event::{Action, BatchSlot, HandOut, JobRef, WorkerSlot};
use super::next::{Next, Ready, cost_of, next_job};
use super::{Core, EPOCH_TERM_SHIFT, Fleet, HANDOVERS_MAX};
use crate::route::{self, Demand, EngineKind, FleetSnapshot, JobSize, Urgency, WINDOW_S, WorkerLoad};

/// Jobs drawn for the router at a time.
const DRAW_MAX: usize = 1024;
/// Rounds in one turn; the rest waits for the next turn, so that answers are not kept waiting.
const ROUNDS_MAX: usize = 16;

/// A job that fairness chose.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    job: JobRef,
    kind: EngineKind,
    tokens: u32,
    /// Set aside of the budget until the worker, and so the price, is known.
    cost: UsdMicro,
    interactive: bool,
}

/// Where a drawn job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Worker(usize),
    /// The workers that the budget allows are full.
    Later,
    /// Every worker has reported a fault on it.
    Nobody,
}

impl Drawn {
    fn of(job: JobRef, ready: Ready, interactive: bool) -> Self {
        let Ready { kind, tokens, cost, .. } = ready;
        Self { job, kind, tokens, cost, interactive }
    }
}

/// The fleet as the router sees it.
pub(super) struct Snapshot {
    pub(super) fleet: FleetSnapshot,
    /// Speed of each kind, by its number.
    kinds: Vec<f64>,
    /// Price of a million tokens at each worker, in micro-dollars, not finite while nothing was measured.
    kappas: Vec<f64>,
    /// Lowest known price of each kind, by its number.
    kappa_min: Vec<f64>,
    /// Highest known price of all.
    kappa_max: f64,
}

impl Snapshot {
    pub(super) fn take(fleet: &Fleet) -> Self {
        let mut pod_rates = vec![0.0; fleet.pod_numbers()];
        let any_quarantined = fleet.any_shut_out();
        for worker in fleet.workers.values().filter(|worker| worker.takes_work()) {
            pod_rates[worker.pod.0 as usize] += worker.rate.mean_tok_s();
        }
        let mut taken = Self {
            fleet: FleetSnapshot { workers: Vec::with_capacity(fleet.workers.len()) },
            kinds: vec![0.0; fleet.kinds.len()],
            kappas: Vec::with_capacity(fleet.workers.len()),
            kappa_min: vec![f64::INFINITY; fleet.kinds.len()],
            kappa_max: 0.0,
        };
        for (slot, worker) in &fleet.workers {
            if !worker.takes_work() || (any_quarantined && fleet.quarantined(worker)) {
                continue;
            }
            let mean = worker.rate.mean_tok_s();
            let pod_rate = pod_rates[worker.pod.0 as usize];
            let share = if pod_rate > 0.0 { mean / pod_rate } else { 1.0 };
            let price = UsdMicro((worker.beat.price_usd_micro_per_hour.0 as f64 * share).round() as i64);
            let load = WorkerLoad {
                worker: *slot,
                kind: worker.kind,
                rate_mean_tok_s: mean,
                rate_low_tok_s: worker.rate.low_tok_s(),
                price_usd_micro_per_hour: price,
                slots: worker.beat.slots,
                // The worker itself pulls by free pages.
                free_pages: u32::MAX,
                held_tokens: worker.held_tokens,
                held_jobs: worker.flights.len() as u32,
            };
            let kappa = route::kappa(&load);
            if kappa.is_finite() {
                taken.kappa_max = taken.kappa_max.max(kappa);
            }
            let lowest = &mut taken.kappa_min[usize::from(worker.kind.0)];
            *lowest = lowest.min(kappa);
            taken.kappas.push(kappa);
            taken.kinds[usize::from(worker.kind.0)] += mean.max(1e-9);
            taken.fleet.workers.push(load);
        }
        taken
    }

    /// The worker at this place.
    pub(super) fn slot(&self, place: usize) -> WorkerSlot {
        self.fleet.workers[place].worker
    }

    /// Speed of all workers of a kind, above zero as soon as there is one.
    pub(super) fn rate(&self, kind: EngineKind) -> f64 {
        self.kinds.get(usize::from(kind.0)).copied().unwrap_or(0.0)
    }

    pub(super) fn serves(&self, kind: EngineKind) -> bool {
        self.rate(kind) > 0.0
    }

    /// Price at a worker; one that nobody has measured is taken to be as dear as the dearest known, and when none is
    /// known, for nothing: somebody must try it, and the bill stops at the budget.
    pub(super) fn kappa(&self, place: usize) -> f64 {
        self.known_or_dearest(self.kappas[place])
    }

    /// Lowest price among the workers of a kind.
    pub(super) fn kappa_min(&self, kind: EngineKind) -> f64 {
        self.known_or_dearest(self.kappa_min.get(usize::from(kind.0)).copied().unwrap_or(f64::INFINITY))
    }

    fn known_or_dearest(&self, kappa: f64) -> f64 {
        if kappa.is_finite() { kappa } else { self.kappa_max }
    }

    /// About how many jobs the fleet has room for.
    fn room(&self, mean_job_tokens: f64) -> usize {
        let jobs: f64 = self
            .fleet
            .workers
            .iter()
            .map(|load| {
                let held = f64::from(load.held_jobs);
                let window = WINDOW_S * load.rate_low_tok_s / mean_job_tokens.max(1.0);
                (f64::from(load.slots) + window - held).max(if load.held_jobs == 0 { 1.0 } else { 0.0 })
            })
            .sum();
        jobs.ceil() as usize
    }
}

impl Core {
    pub(super) fn hand_out(&mut self, now: Now, actions: &mut Vec<Action>) {
        // A snapshot of a large fleet takes a while: then not at every turn.
        let gap_ms = self.fleet.workers.len() as u64 / 500;
        if !self.work_changed
            || self.lead.is_none()
            || now.mono < self.hand_after
            || now.mono.0 < self.handed_at.0 + gap_ms
        {
            return;
        }
        self.work_changed = false;
        self.handed_at = now.mono;
        let mut snapshot = Snapshot::take(&self.fleet);
        if snapshot.fleet.workers.is_empty() {
            return;
        }
        self.everybody_joins(now);
        // Batches that wait for room at the workers they can pay: they do not hold up the others.
        let mut held = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let room = snapshot.room(self.mean_job_tokens).min(DRAW_MAX);
            let drawn = self.draw(now, room, &snapshot, &held);
            if drawn.is_empty() {
                return;
            }
            if !self.place(now, drawn, &mut snapshot, &mut held, actions) {
                return;
            }
        }
        self.work_changed = true;
    }

    /// A batch that had nothing that could run has left the rings, and what kept it back goes away in many ways: an
    /// answer sets money free, a worker of its model comes, one gets faster. So nobody has to be told: whoever waits
    /// is asked again each time.
    fn everybody_joins(&mut self, now: Now) {
        for slot in &self.active {
            let batch = &self.batches[slot];
            if batch.runs() && !batch.is_interactive() && batch.waiting() > 0 {
                self.fair.join(now.mono, &batch.record.tenant, batch.record.options.priority, *slot);
            }
        }
    }

    /// Up to `room` jobs in the order that fairness wants; they have left their queues.
    fn draw(&mut self, now: Now, room: usize, snapshot: &Snapshot, held: &BTreeSet<BatchSlot>) -> Vec<Drawn> {
        let mut drawn = Vec::new();
        let Self { fair, batches, interactive, fleet, .. } = self;
        let mut waiting_on = Vec::new();
        while let Some(job) = interactive.pop_front() {
            let Some(batch) = batches.get_mut(&job.batch) else { continue };
            let Next::Ready(ready) = next_job(batch, fleet, snapshot) else {
                if batch.waiting() > 0 {
                    waiting_on.push(job);
                }
                continue;
            };
            batch.queues[ready.queue].jobs.pop_front();
            drawn.push(Drawn::of(job, ready, true));
            batch.commit(ready.tokens, ready.cost);
        }
        interactive.extend(waiting_on);
        while drawn.len() < room {
            let next = fair.next(now.mono, |slot| {
                if held.contains(&slot) {
                    return None;
                }
                match next_job(batches.get_mut(&slot)?, fleet, snapshot) {
                    Next::Ready(ready) => Some(ready.tokens),
                    Next::Nothing | Next::NoWorker | Next::TooDear => None,
                }
            });
            let Some(slot) = next else { break };
            let Some(batch) = batches.get_mut(&slot) else { continue };
            let Next::Ready(ready) = next_job(batch, fleet, snapshot) else { continue };
            let Some(index) = batch.queues[ready.queue].jobs.pop_front() else { continue };
            drawn.push(Drawn::of(JobRef { batch: slot, index }, ready, false));
            batch.commit(ready.tokens, ready.cost);
        }
        drawn
    }

    /// Lets the router choose; what finds no room goes back. False if the fleet is full; a batch that only the workers
    /// it can pay have no room for is put into `held`.
    fn place(
        &mut self,
        now: Now,
        drawn: Vec<Drawn>,
        snapshot: &mut Snapshot,
        held: &mut BTreeSet<BatchSlot>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let mut groups: BTreeMap<(bool, EngineKind), Vec<Drawn>> = BTreeMap::new();
        for job in drawn {
            groups.entry((!job.interactive, job.kind)).or_default().push(job);
        }
        let mut all = true;
        for ((patient, kind), jobs) in groups {
            let urgency = if patient { Urgency::Thrifty } else { Urgency::Soonest };
            // Who can pay only some of the workers chooses before those who can pay any.
            let dearest = snapshot.kappa_max;
            let (easy, tight): (Vec<Drawn>, Vec<Drawn>) =
                jobs.into_iter().partition(|job| self.can_pay(job, dearest));
            let mut back = Vec::new();
            for job in tight {
                let any = snapshot.fleet.workers.iter().position(|load| load.kind == kind);
                let choice = match any.and_then(|any| self.elsewhere(&job, any, snapshot)) {
                    None => Choice::Nobody,
                    Some(_) => self.choose_payable(&job, urgency, snapshot),
                };
                self.settle(now, job, choice, snapshot, &mut back, actions);
            }
            let sizes: Vec<JobSize> =
                easy.iter().map(|job| JobSize { tokens: job.tokens, pages: 0 }).collect();
            let placed = route::assign(&snapshot.fleet, &Demand { kind, urgency, jobs: &sizes }).placed;
            for (job, &place) in easy.iter().zip(&placed) {
                let choice = self.choose(job, place, urgency, snapshot);
                self.settle(now, *job, choice, snapshot, &mut back, actions);
            }
            held.extend(back.iter().map(|job| job.job.batch));
            all &= placed.len() == easy.len();
            back.extend_from_slice(&easy[placed.len()..]);
            for job in back.iter().rev() {
                self.give_back(now, job);
            }
        }
        all
    }

    /// Does with the job what was chosen for it; what has to wait is added to `back`.
    fn settle(
        &mut self,
        now: Now,
        mut job: Drawn,
        choice: Choice,
        snapshot: &mut Snapshot,
        back: &mut Vec<Drawn>,
        actions: &mut Vec<Action>,
    ) {
        match choice {
            Choice::Worker(place) => {
                let load = &mut snapshot.fleet.workers[place];
                load.held_jobs += 1;
                load.held_tokens += u64::from(job.tokens);
                let cost = cost_of(job.tokens, snapshot.kappa(place));
                let least = cost_of(job.tokens, snapshot.kappa_min(job.kind));
                self.counts.regret_usd_micro += (cost - least).0.max(0) as u64;
                if let Some(batch) = self.batches.get_mut(&job.job.batch) {
                    batch.release(job.tokens, job.cost);
                    batch.commit(job.tokens, cost);
                }
                job.cost = cost;
                self.hand(now, job, snapshot.slot(place), actions);
            }
            Choice::Later => back.push(job),
            Choice::Nobody => {
                // Nobody is left who could try: that is one more failed attempt.
                if let Some(batch) = self.batches.get_mut(&job.job.batch) {
                    batch.release(job.tokens, job.cost);
                }
                let failed = FailedAttempt {
                    at: now.wall,
                    worker: None,
                    host: None,
                    generated: 0,
                    reason: "every worker of its model has reported a fault on it".to_owned(),
                };
                self.failed_once(now, job.job, failed, actions);
            }
        }
    }

    /// True if the budget has room for the job at this price of a million tokens.
    fn can_pay(&self, drawn: &Drawn, kappa_usd_micro: f64) -> bool {
        self.batches.get(&drawn.job.batch).is_some_and(|batch| {
            // Its share was set aside when it was drawn.
            batch.affords(cost_of(drawn.tokens, kappa_usd_micro) - drawn.cost)
        })
    }

    /// The worker that the router proposes, or another one if the job has failed there or the budget forbids it.
    fn choose(&self, drawn: &Drawn, proposed: usize, urgency: Urgency, snapshot: &Snapshot) -> Choice {
        match self.elsewhere(drawn, proposed, snapshot) {
            None => Choice::Nobody,
            Some(place) if self.can_pay(drawn, snapshot.kappa(place)) => Choice::Worker(place),
            Some(_) => self.choose_payable(drawn, urgency, snapshot),
        }
    }

    /// Asks the router for a worker among those that the budget allows.
    fn choose_payable(&self, drawn: &Drawn, urgency: Urgency, snapshot: &Snapshot) -> Choice {
        let live = self.batches.get(&drawn.job.batch).and_then(|b| b.live.get(&drawn.job.index));
        let Some(live) = live else { return Choice::Later };
        let loads = &snapshot.fleet.workers;
        let mut payable: Vec<usize> = (0..loads.len())
            .filter(|&n| loads[n].kind == drawn.kind && !live.faulted.contains(&snapshot.slot(n)))
            .filter(|&n| self.can_pay(drawn, snapshot.kappa(n)))
            .collect();
        let failed_at = |n: usize| {
            self.fleet.get(snapshot.slot(n)).is_some_and(|worker| live.hosts.contains(&worker.beat.host))
        };
        if payable.iter().any(|&n| !failed_at(n)) {
            payable.retain(|&n| !failed_at(n));
        }
        let fleet = FleetSnapshot { workers: payable.iter().map(|&n| loads[n].clone()).collect() };
        let size = [JobSize { tokens: drawn.tokens, pages: 0 }];
        let placed = route::assign(&fleet, &Demand { kind: drawn.kind, urgency, jobs: &size }).placed;
        placed.first().map_or(Choice::Later, |&n| Choice::Worker(payable[n]))
    }

    /// A job that failed on a host goes to another one, if there is any; never to a worker that reported the fault.
    fn elsewhere(&self, drawn: &Drawn, place: usize, snapshot: &Snapshot) -> Option<usize> {
        let live = self.batches.get(&drawn.job.batch).and_then(|b| b.live.get(&drawn.job.index));
        let Some(live) = live.filter(|live| !live.hosts.is_empty() || !live.faulted.is_empty()) else {
            return Some(place);
        };
        // Worse is larger: a worker that cannot answer, a host where it failed.
        let doubt = |n: usize| {
            let slot = snapshot.slot(n);
            let failed_here =
                self.fleet.get(slot).is_some_and(|worker| live.hosts.contains(&worker.beat.host));
            (live.faulted.contains(&slot), failed_here)
        };
        if doubt(place) == (false, false) {
            return Some(place);
        }
        let loads = &snapshot.fleet.workers;
        let others = (0..loads.len()).filter(|&n| loads[n].kind == drawn.kind);
        let best = others.min_by_key(|&n| (doubt(n), loads[n].held_tokens, n))?;
        (!doubt(best).0).then_some(best)
    }

    fn give_back(&mut self, now: Now, drawn: &Drawn) {
        let Some(batch) = self.batches.get_mut(&drawn.job.batch) else { return };
        if let Some(live) = batch.live.get(&drawn.job.index) {
            batch.queues[live.queue].jobs.push_front(drawn.job.index);
        }
        batch.release(drawn.tokens, drawn.cost);
        if drawn.interactive {
            self.interactive.push_front(drawn.job);
            return;
        }
        let (tenant, priority) = (batch.record.tenant.clone(), batch.record.options.priority);
        self.fair.refund(&tenant, priority, drawn.job.batch, drawn.tokens);
        self.join(now, drawn.job.batch);
    }

    fn hand(&mut self, now: Now, drawn: Drawn, slot: WorkerSlot, actions: &mut Vec<Action>) {
        let Some(lead) = self.lead else { return };
        let job = drawn.job;
        let (Some(batch), Some(worker)) = (self.batches.get_mut(&job.batch), self.fleet.get_mut(slot)) else {
            return;
        };
        let lane = if batch.is_interactive() { Lane::Interactive } else { Lane::Batch };
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        let Some(task) = live.task.clone() else { return };
        if live.handovers >= HANDOVERS_MAX {
            let why = format!("it was handed over {HANDOVERS_MAX} times without an answer");
            self.answer_ourselves(
                now,
                job,
                None,
                ternfleet_proto::message::FailureCode::Poison,
                why,
                actions,
            );
            return;
        }
        live.handovers += 1;
        let epoch = Epoch((lead.term << EPOCH_TERM_SHIFT) | u32::from(live.handovers));
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        live.flight = Some(Flight {
            worker: slot,
            epoch,
            stage: Stage::Leaving,
            sequence: None,
            tokens: drawn.tokens,
            cost: drawn.cost,
            since: now.mono,
            running: false,
            generated: 0,
            progress_at: now.mono,
            counted: 0,
            blame: false,
        });
        batch.in_flight += 1;
        worker.flights.insert(job);
        worker.held_tokens += u64::from(drawn.tokens);
        let kind = &self.fleet.kinds[usize::from(drawn.kind.0)];
        let worker = self.fleet.get(slot).expect("because it was just there");
        let work = Work {
            tag: self.key.sign(&key, epoch, &worker.beat.worker),
            job: key,
            tenant: batch.record.tenant.clone(),
            lane,
            epoch,
            attempts_before: Attempt(live.attempts),
            leader: lead.revision,
            model_digest: kind.digest.clone(),
            numerics: numerics(&kind.numerics, &task.input),
            deadline: Some(batch.record.expires_at),
            tokens_estimate: drawn.tokens,
            line: task.line.clone(),
            input: task.input.clone(),
            traceparent: batch.record.traceparent.clone(),
        };
        if batch.record.started_at.is_none() {
            batch.record.started_at = Some(now.wall);
        }
        self.counts.handed_jobs += 1;
        let hand = HandOut { job, shard: worker.shard, worker: worker.beat.worker.clone(), work };
        actions.push(Action::Hand(Box::new(hand)));
    }

    /// The hand-over is stored, or could not be.
    pub(super) fn handed(
        &mut self,
        now: Now,
        job: JobRef,
        epoch: Epoch,
        sequence: Option<u64>,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        let flight = batch.live.get_mut(&job.index).and_then(|live| live.flight.as_mut());
        match (flight, sequence) {
            (Some(flight), Some(sequence)) if flight.epoch == epoch => {
                flight.sequence = Some(sequence);
                match flight.stage {
                    Stage::Leaving => flight.stage = Stage::Handed,
                    Stage::Handed => {}
                    // It was being taken back before its sequence was known.
                    Stage::Withdrawing => {
                        let shard = self.fleet.get(flight.worker).map_or(0, |worker| worker.shard);
                        self.act(
                            actions,
                            Action::Withdraw { job, key, epoch, shard, sequence: Some(sequence) },
                        );
                    }
                }
            }
            (Some(flight), None) if flight.epoch == epoch && flight.stage == Stage::Leaving => {
                self.counts.failed_handovers += 1;
                self.take_off(job);
                self.requeue(now, job, 1000, actions);
            }
            _ => {}
        }
    }

    /// The batch takes part in the next hand-outs.
    pub(super) fn join(&mut self, now: Now, slot: BatchSlot) {
        let Some(batch) = self.batches.get(&slot) else { return };
        if batch.runs() && !batch.is_interactive() && batch.waiting() > 0 {
            self.fair.join(now.mono, &batch.record.tenant, batch.record.options.priority, slot);
        }
        self.work_changed = true;
    }
}

/// The arithmetic that must run a task. A worker that knows no constraints, or other ones, does not take a constrained one.
fn numerics(engine: &str, input: &Input) -> String {
    match input {
        Input::Inline(generation) if generation.constraint.is_some() => {
            ternfleet_text::constraint::numerics(engine)
        }
        _ => engine.to_owned(),
    }
}
