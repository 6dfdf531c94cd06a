//! Assigning: fairness says whose job is next, the budget which workers may have it, the router which one gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ternfleet_proto::message::{FailedAttempt, FailureCode, Work};
use ternfleet_proto::{Attempt, Epoch, JobKey, Lane, Now};

use super::batch::Live;
use super::event::{Action, BatchSlot, HandOut, JobRef, WorkerSlot};
use super::fair::Offer;
use super::flights::{Flight, Size, Stage};
use super::next::{Ready, cost_of, next_job};
use super::snapshot::Snapshot;
use super::{Core, EPOCH_TERM_SHIFT, HANDOVERS_MAX};
use crate::route::{self, Demand, EngineKind, FleetSnapshot, JobSize, Urgency};

/// After a change of leader, all workers have been heard of by then.
const ALL_HEARD_AFTER: Duration = Duration::from_secs(10);
/// Jobs drawn for the router at a time, at most.
const DRAW_MAX: usize = 1024;
/// Rounds in one turn; the rest waits for the next turn, so that answers are not kept waiting.
const ROUNDS_MAX: usize = 16;

/// A job that fairness chose.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    job: JobRef,
    kind: EngineKind,
    /// Set aside of the budget until the worker, and so the price, is known.
    size: Size,
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

/// Who waits for room until the next turn, and holds up nobody else.
#[derive(Debug, Default)]
struct Full {
    kinds: BTreeSet<EngineKind>,
    /// The workers that they can pay have no room.
    batches: BTreeSet<BatchSlot>,
}

impl Core {
    pub(super) fn hand_out(&mut self, now: Now, actions: &mut Vec<Action>) {
        // A snapshot of a large fleet takes a while: then not at every turn.
        let gap_ms = self.fleet.workers.len() as u64 / 500;
        if !self.work_changed || self.lead.is_none() || now.mono < self.hand_after {
            return;
        }
        let due = *self.hand_due.get_or_insert(now.mono);
        if now.mono.0 < self.handed_at.0 + gap_ms {
            return;
        }
        self.work_changed = false;
        self.hand_due = None;
        self.hand_waited = now.since(due);
        self.handed_at = now.mono;
        self.refuse_what_nobody_can(now, actions);
        let mut snapshot = self.snapshot();
        if snapshot.fleet.workers.is_empty() {
            return;
        }
        self.everybody_joins(now);
        let mut full = Full::default();
        for _ in 0..ROUNDS_MAX {
            let drawn = self.draw(now, &mut snapshot, &mut full);
            if drawn.is_empty() {
                return;
            }
            self.place(now, drawn, &mut snapshot, &mut full, actions);
        }
        self.work_changed = true;
    }

    /// How long the jobs that were assigned last could have been assigned before: since when a worker had room for them.
    pub fn hand_waited(&self) -> Duration {
        self.hand_waited
    }

    /// Answers jobs that need what no engine of their model can do. Workers that have just been heard of, or will be, and
    /// classes of pods whose engine can do everything, are waited for.
    fn refuse_what_nobody_can(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut refused = Vec::new();
        for (slot, batch) in self.ledger.active() {
            if !batch.runs() || batch.record.options.wait_for_model {
                continue;
            }
            for queue in batch.queues.iter().filter(|queue| !queue.jobs.is_empty()) {
                let model = queue.model.as_deref();
                let Some(words) = self.fleet.nobody_can(model, &queue.needs) else { continue };
                let serves =
                    |class: &Option<String>| model.is_none() || class.is_none() || class.as_deref() == model;
                if self.limits.able_classes.iter().any(serves) {
                    continue;
                }
                let of_model = model.map_or(String::new(), |model| format!(" of the model {model:?}"));
                let why =
                    format!("no worker{of_model} can {words}: leave that out, or run a worker that can");
                refused.extend(queue.jobs.iter().map(|&index| (JobRef { batch: slot, index }, why.clone())));
            }
        }
        if now.mono < self.hand_after.plus(ALL_HEARD_AFTER) {
            self.work_changed |= !refused.is_empty();
            return;
        }
        for (job, why) in refused {
            self.answer_ourselves(now, job, None, FailureCode::InvalidRequest, why, actions);
        }
    }

    /// A batch that had nothing that could run has left the rings, and what kept it back goes away in many ways: an
    /// answer sets money free, a worker of its model comes, one gets faster. So nobody has to be told: whoever waits
    /// is asked again each time.
    fn everybody_joins(&mut self, now: Now) {
        for (slot, batch) in self.ledger.active() {
            self.orders.join(now.mono, slot, batch);
        }
    }

    /// About as many jobs as there is room for, in the order that fairness wants, first those that somebody waits for; they
    /// have left their queues. Kinds that have no room for their next job are put into `full`.
    fn draw(&mut self, now: Now, snapshot: &mut Snapshot, full: &mut Full) -> Vec<Drawn> {
        let mut drawn: Vec<Drawn> = Vec::new();
        let mut open: BTreeSet<EngineKind> =
            snapshot.serving().filter(|kind| !full.kinds.contains(kind)).collect();
        let Self { orders, ledger, flights, fleet, .. } = self;
        for interactive in [true, false] {
            let order = orders.of(interactive);
            // What is left for jobs of the size of the first. Those that can pay only some of the workers may find no room
            // there, so they take none of the others'.
            let mut rooms: BTreeMap<(EngineKind, bool), usize> = BTreeMap::new();
            while drawn.len() < DRAW_MAX {
                // The batch that is asked last is the one that is chosen.
                let mut chosen = None;
                let next = order.next(now.mono, |slot| {
                    if open.is_empty() {
                        return Offer::Enough;
                    }
                    if full.batches.contains(&slot) {
                        return Offer::Later;
                    }
                    let Some(batch) = ledger.get_mut(slot) else { return Offer::Nothing };
                    let promised = flights.committed(slot).cost;
                    let next = next_job(batch, promised, fleet, snapshot);
                    let Some(Ready { queue, kind, size }) = next.ready() else { return Offer::Nothing };
                    if !open.contains(&kind) {
                        return Offer::Later;
                    }
                    let pays_any = batch.affords(promised, cost_of(size.tokens, snapshot.kappa_max));
                    let room = rooms.entry((kind, pays_any)).or_insert_with(|| {
                        let others =
                            drawn.iter().filter(|job| job.kind == kind && job.interactive != interactive);
                        let room = snapshot.room(kind, size.tokens).saturating_sub(others.count());
                        if room == 0 {
                            full.kinds.insert(kind);
                            open.remove(&kind);
                        }
                        room
                    });
                    if *room == 0 {
                        return Offer::Later;
                    }
                    *room -= 1;
                    if *room == 0 && pays_any {
                        open.remove(&kind);
                    }
                    chosen = Some((queue, kind, size));
                    Offer::Job(size.tokens)
                });
                let (Some(slot), Some((queue, kind, size))) = (next, chosen) else { break };
                let Some(batch) = ledger.get_mut(slot) else { continue };
                let Some(index) = batch.queues[queue].jobs.pop_front() else { continue };
                let job = JobRef { batch: slot, index };
                drawn.push(Drawn { job, kind, size, interactive });
                flights.reserve(slot, size);
                snapshot.reserve(kind);
            }
        }
        self.orders.come_back();
        self.counts.drawn_jobs += drawn.len() as u64;
        drawn
    }

    /// Lets the router choose; what finds no room goes back, and its kind or its batch is put into `full`.
    fn place(
        &mut self,
        now: Now,
        drawn: Vec<Drawn>,
        snapshot: &mut Snapshot,
        full: &mut Full,
        actions: &mut Vec<Action>,
    ) {
        let mut groups: BTreeMap<(bool, EngineKind), Vec<Drawn>> = BTreeMap::new();
        for job in drawn {
            groups.entry((!job.interactive, job.kind)).or_default().push(job);
        }
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
                self.apply(now, job, choice, snapshot, &mut back, actions);
            }
            let sizes: Vec<JobSize> =
                easy.iter().map(|job| JobSize { tokens: job.size.tokens, pages: 0 }).collect();
            let placed = route::assign(&snapshot.fleet, &Demand { kind, urgency, jobs: &sizes }).placed;
            for (job, &place) in easy.iter().zip(&placed) {
                let choice = self.choose(job, place, urgency, snapshot);
                self.apply(now, *job, choice, snapshot, &mut back, actions);
            }
            full.batches.extend(back.iter().map(|job| job.job.batch));
            if placed.len() < easy.len() {
                full.kinds.insert(kind);
            }
            back.extend_from_slice(&easy[placed.len()..]);
            for job in back.iter().rev() {
                snapshot.release(job.kind);
                self.give_back(now, job);
            }
        }
    }

    /// Does with the job what was chosen for it; what has to wait is added to `back`.
    fn apply(
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
                snapshot.fill(place, job.size.tokens);
                let cost = cost_of(job.size.tokens, snapshot.kappa(place));
                let least = cost_of(job.size.tokens, snapshot.kappa_min(job.kind));
                self.counts.regret_usd_micro += (cost - least).0.max(0) as u64;
                self.flights.release(job.job.batch, job.size);
                job.size.cost = cost;
                self.hand(now, job, snapshot.slot(place), actions);
            }
            Choice::Later => back.push(job),
            Choice::Nobody => {
                // Nobody is left who could try: that is one more failed attempt.
                self.flights.release(job.job.batch, job.size);
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
        self.ledger.get(drawn.job.batch).is_some_and(|batch| {
            // Its share was set aside when it was drawn.
            let more = cost_of(drawn.size.tokens, kappa_usd_micro) - drawn.size.cost;
            batch.affords(self.flights.committed(drawn.job.batch).cost, more)
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
        let live = self.ledger.live(drawn.job);
        let Some(live) = live else { return Choice::Later };
        let loads = &snapshot.fleet.workers;
        let mut payable: Vec<usize> = (0..loads.len())
            .filter(|&n| loads[n].kind == drawn.kind && !live.faulted.contains(&snapshot.slot(n)))
            .filter(|&n| self.can_pay(drawn, snapshot.kappa(n)))
            .collect();
        let failed_at = |n: usize| self.has_failed_at(live, snapshot.slot(n));
        if payable.iter().any(|&n| !failed_at(n)) {
            payable.retain(|&n| !failed_at(n));
        }
        let fleet = FleetSnapshot { workers: payable.iter().map(|&n| loads[n].clone()).collect() };
        let size = [JobSize { tokens: drawn.size.tokens, pages: 0 }];
        let placed = route::assign(&fleet, &Demand { kind: drawn.kind, urgency, jobs: &size }).placed;
        placed.first().map_or(Choice::Later, |&n| Choice::Worker(payable[n]))
    }

    /// A job that failed on a host goes to another one, if there is any; never to a worker that reported the fault.
    fn elsewhere(&self, drawn: &Drawn, place: usize, snapshot: &Snapshot) -> Option<usize> {
        let live = self.ledger.live(drawn.job);
        let Some(live) = live.filter(|live| !live.hosts.is_empty() || !live.faulted.is_empty()) else {
            return Some(place);
        };
        // Worse is larger: a worker that cannot answer, a host where it failed.
        let doubt = |n: usize| {
            let slot = snapshot.slot(n);
            (live.faulted.contains(&slot), self.has_failed_at(live, slot))
        };
        if doubt(place) == (false, false) {
            return Some(place);
        }
        let loads = &snapshot.fleet.workers;
        let others = (0..loads.len()).filter(|&n| loads[n].kind == drawn.kind);
        let best = others.min_by_key(|&n| (doubt(n), loads[n].held_tokens, n))?;
        (!doubt(best).0).then_some(best)
    }

    /// An attempt of the job has failed on this worker's host.
    fn has_failed_at(&self, live: &Live, slot: WorkerSlot) -> bool {
        self.fleet.get(slot).is_some_and(|worker| live.hosts.iter().any(|host| host == worker.host()))
    }

    fn give_back(&mut self, now: Now, drawn: &Drawn) {
        self.flights.release(drawn.job.batch, drawn.size);
        self.ledger.queue(drawn.job, true);
        let Some(batch) = self.ledger.get(drawn.job.batch).filter(|batch| batch.runs()) else { return };
        let (order, priority) = (self.orders.of(drawn.interactive), batch.record.options.priority);
        order.refund(now.mono, &batch.record.tenant, priority, drawn.job.batch, drawn.size.tokens);
        self.join(now, drawn.job.batch);
    }

    fn hand(&mut self, now: Now, drawn: Drawn, slot: WorkerSlot, actions: &mut Vec<Action>) {
        let Some(lead) = self.lead else { return };
        let job = drawn.job;
        let (Some(batch), Some(worker)) = (self.ledger.get_mut(job.batch), self.fleet.get(slot)) else {
            return;
        };
        let lane = if batch.is_interactive() { Lane::Interactive } else { Lane::Batch };
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        let Some(task) = live.task.clone() else { return };
        if live.handovers >= HANDOVERS_MAX {
            let why = format!("it was assigned {HANDOVERS_MAX} times without an answer");
            self.answer_ourselves(now, job, None, FailureCode::Poison, why, actions);
            return;
        }
        live.handovers += 1;
        let epoch = Epoch((lead.term << EPOCH_TERM_SHIFT) | u32::from(live.handovers));
        let attempts_before = Attempt(live.attempts);
        batch.record.started_at.get_or_insert(now.wall);
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        let kind = &self.fleet.kinds[usize::from(drawn.kind.0)];
        let work = Work {
            tag: self.key.sign(&key, epoch, &worker.beat.worker),
            checkpoint_key: self.key.checkpoint_key(&key),
            job: key,
            tenant: batch.record.tenant.clone(),
            lane,
            epoch,
            attempts_before,
            leader: lead.revision,
            model_digest: kind.digest.clone(),
            numerics: numerics(&kind.numerics, task.constrained),
            deadline: Some(batch.record.expires_at),
            left_ms: Some(batch.expiry.left(now).as_millis() as u64),
            tokens_estimate: drawn.size.tokens,
            line: task.line.clone(),
            input: task.input.clone(),
            traceparent: batch.record.traceparent.clone(),
        };
        self.flights.depart(job, Flight::leaving(now.mono, slot, epoch, drawn.size));
        self.counts.handed_jobs += 1;
        let hand = HandOut { job, shard: worker.shard, worker: worker.beat.worker.clone(), work };
        actions.push(Action::Hand(Box::new(hand)));
    }

    /// The assignment is stored, or could not be.
    pub(super) fn handed(
        &mut self,
        now: Now,
        job: JobRef,
        epoch: Epoch,
        sequence: Option<u64>,
        actions: &mut Vec<Action>,
    ) {
        let Some(flight) = self.flights.get_mut(job).filter(|flight| flight.epoch == epoch) else { return };
        match (flight.stage, sequence) {
            (Stage::Leaving, Some(_)) => {
                flight.sequence = sequence;
                flight.stage = Stage::Handed;
            }
            (Stage::Handed, Some(_)) => flight.sequence = sequence,
            // It was being taken back before its sequence was known.
            (Stage::Withdrawing, Some(_)) => {
                flight.sequence = sequence;
                let worker = flight.worker();
                let shard = self.fleet.get(worker).map_or(0, |worker| worker.shard);
                if let Some(key) = self.key_of(job) {
                    self.act(actions, Action::Withdraw { job, key, epoch, shard, sequence });
                }
            }
            (Stage::Leaving, None) => {
                self.counts.failed_handovers += 1;
                self.take_off(job);
                self.requeue(now, job, 1000, actions);
            }
            (Stage::Handed | Stage::Withdrawing, None) => {}
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.fleet, &self.flights, self.money.pod_numbers())
    }

    /// The batch takes part in the next assignments.
    pub(super) fn join(&mut self, now: Now, slot: BatchSlot) {
        let Some(batch) = self.ledger.get(slot) else { return };
        self.orders.join(now.mono, slot, batch);
        self.work_changed = true;
    }
}

/// The arithmetic that must run a task. A worker that knows no constraints, or other ones, does not take a constrained one.
fn numerics(engine: &str, constrained: bool) -> String {
    if constrained { ternfleet_text::constraint::numerics(engine) } else { engine.to_owned() }
}
