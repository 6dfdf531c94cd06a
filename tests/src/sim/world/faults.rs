//! Faults as they begin and end, and what callers do in the meantime.

use std::time::Duration;

use ternfleet_coordinator::core::{BatchRecord, Change, Event, Ground};
use ternfleet_proto::bus::Publish;
use ternfleet_proto::message::{BatchCreate, BatchOptions, BatchState, Checkpoint, Durability};
use ternfleet_proto::{MonoMs, Now, TimeMs, UsdMicro, codec, table};
use ternfleet_worker::core as worker;

use super::super::scenario::Fault;
use super::{Occurrence, Submitted, World, stored_record};

impl World {
    /// Writes the last checkpoint of some job back with other ids, as somebody can who reads it and was not given the job.
    pub(super) fn forge(&mut self) {
        let jobs = self.check.claimed_jobs();
        if jobs.is_empty() {
            return;
        }
        let job = jobs[self.chance.within(0, jobs.len() as u64 - 1) as usize].clone();
        let subject = table::checkpoint(&job);
        let Ok(Some(last)) = self.net.last_on_subject(self.now, table::CHECKPOINTS, &subject) else { return };
        let Ok(mut found) = codec::decode::<Checkpoint>(&last.payload) else { return };
        found.generated = vec![u32::MAX; found.generated.len() + 3];
        (found.attempt.0, found.epoch.0) = (found.attempt.0 + 4, found.epoch.0 + 1);
        let seal = &last.payload[last.payload.len().saturating_sub(16)..];
        let payload = [&codec::encode(&found)[..], seal].concat();
        // Where the stream is full, it has tried.
        let _ = self.net.publish(self.now, &subject, payload.into(), &Publish::default());
    }

    pub(super) fn begin_fault(&mut self, at: usize) {
        let (_, _, fault) = self.scenario.faults[at];
        let ms = |span: Duration| span.as_millis() as u64;
        let lasting = match fault {
            Fault::CrashWorker { place, back_after } => {
                self.workers[place].stop();
                self.at(ms(back_after), Occurrence::StartWorker(place));
                back_after
            }
            Fault::DrainWorker { place, back_after } => {
                if let Some(life) = self.workers[place].life() {
                    self.workers[place].draining = true;
                    self.at(0, Occurrence::WorkerEvents(life, vec![worker::Event::Signal]));
                }
                // Back only after the longest drain.
                let back_after = back_after + Duration::from_secs(6);
                self.at(ms(back_after), Occurrence::StartWorker(place));
                back_after
            }
            Fault::PauseWorker { place, lasting } => {
                self.workers[place].paused += 1;
                lasting
            }
            Fault::CutWorker { place, lasting } => {
                self.workers[place].cut += 1;
                lasting
            }
            Fault::SlowWorker { place, factor, lasting } => {
                self.workers[place].slowed = factor;
                lasting
            }
            Fault::PriceChange { place, usd_micro_per_hour } => {
                self.scenario.workers[place].price_usd_micro_per_hour = usd_micro_per_hour;
                Duration::ZERO
            }
            Fault::CrashCoordinator { place, back_after } => {
                self.coordinators[place].stop();
                self.at(ms(back_after), Occurrence::StartCoordinator(place));
                back_after
            }
            Fault::PauseCoordinator { place, lasting } => {
                self.coordinators[place].paused += 1;
                lasting
            }
            Fault::CutCoordinator { place, lasting } => {
                self.coordinators[place].cut += 1;
                lasting
            }
            Fault::ServerDown { lasting } => {
                self.server_down += 1;
                lasting
            }
            Fault::FullStream { results, lasting } => {
                self.net.set_no_room(full_stream(results), true);
                lasting
            }
            Fault::LoseRequests { one_in, lasting } => {
                self.lose_requests.push(one_in);
                lasting
            }
            Fault::LoseAnswers { one_in, lasting } => {
                self.lose_answers.push(one_in);
                lasting
            }
            Fault::DoubleMessages { lasting } => {
                self.doubling += 1;
                lasting
            }
            Fault::SkewWorker { place, ms } => {
                self.workers[place].skew_ms = ms;
                Duration::ZERO
            }
            Fault::SkewCoordinator { place, ms } => {
                self.coordinators[place].skew_ms = ms;
                Duration::ZERO
            }
        };
        self.at(ms(lasting), Occurrence::FaultOver(at));
    }

    pub(super) fn end_fault(&mut self, at: usize) {
        self.faults_open -= 1;
        let (_, _, fault) = self.scenario.faults[at];
        match fault {
            Fault::PauseWorker { place, .. } => self.workers[place].paused -= 1,
            Fault::CutWorker { place, .. } => {
                self.workers[place].cut -= 1;
            }
            Fault::SlowWorker { place, .. } => self.workers[place].slowed = 1,
            Fault::PauseCoordinator { place, .. } => self.coordinators[place].paused -= 1,
            Fault::CutCoordinator { place, .. } => self.coordinators[place].cut -= 1,
            Fault::ServerDown { .. } => {
                self.server_down -= 1;
            }
            Fault::FullStream { results, .. } => self.net.set_no_room(full_stream(results), false),
            Fault::LoseRequests { one_in, .. } => forget_one(&mut self.lose_requests, one_in),
            Fault::LoseAnswers { one_in, .. } => forget_one(&mut self.lose_answers, one_in),
            Fault::DoubleMessages { .. } => self.doubling -= 1,
            Fault::CrashWorker { .. }
            | Fault::DrainWorker { .. }
            | Fault::PriceChange { .. }
            | Fault::CrashCoordinator { .. }
            | Fault::SkewWorker { .. }
            | Fault::SkewCoordinator { .. } => {}
        }
    }

    /// A caller creates a batch, trying until a leader takes it.
    pub(super) fn submit(&mut self, place: usize) {
        let plan = self.scenario.batches[place].clone();
        let leader = self.coordinators.iter().position(|node| node.leads() && node.reachable());
        let Some(leader) = leader.filter(|_| self.server_down == 0) else {
            self.at(500, Occurrence::Submit(place));
            return;
        };
        let create = BatchCreate {
            tenant: format!("t{}", plan.tenant).parse().expect("because t and a digit make an id"),
            idempotency_key: format!("batch-{place}"),
            input_object: format!("input-{place}.jsonl"),
            name: None,
            endpoint: None,
            options: BatchOptions {
                completion_window_ms: plan.window_ms,
                budget_usd_micro: plan.budget_usd_micro.map(UsdMicro),
                priority: plan.priority,
                ..BatchOptions::default()
            },
            metadata: Default::default(),
            traceparent: None,
            work: None,
        };
        let results_after = self.net.stream_facts(table::RESULTS).map_or(0, |facts| facts.last_sequence);
        let ground = Ground {
            input_bytes: u64::from(plan.lines) * 50,
            stored_bytes: u64::from(plan.lines) * 50,
            results_after,
            durability: Durability::Stored,
            replicas: 1,
        };
        let record = BatchRecord::new(self.now, &create, ground);
        let id = record.id.clone();
        let now = self.now;
        if self.net.kv_create(now, table::KV_BATCHES, id.as_str(), codec::encode(&record), None).is_err() {
            self.at(500, Occurrence::Submit(place));
            return;
        }
        self.check.accepted(&record, plan.lines);
        if let Some(cancel) = plan.cancel_at_ms {
            self.at(cancel.saturating_sub(plan.at_ms), Occurrence::CancelBatch(place));
        }
        self.plans.insert(id.clone(), plan.clone());
        self.tally.jobs += u64::from(plan.lines);
        self.batches.push(Submitted { id, plan, stored: true });
        if let Some(life) = self.coordinators[leader].life() {
            self.at(1, Occurrence::CoordinatorEvent(life, Box::new(Event::BatchKnown(Box::new(record)))));
        }
    }

    pub(super) fn cancel_batch(&mut self, place: usize) {
        let key = format!("batch-{place}");
        let tenant = self.scenario.batches[place].tenant;
        let tenant = format!("t{tenant}").parse().expect("because t and a digit make an id");
        let id = ternfleet_coordinator::core::batch_id(&tenant, &key);
        let done = stored_record(&mut self.net, self.now, &id)
            .is_some_and(|record| record.state.is_terminal() || record.ending.is_some());
        if done {
            return;
        }
        // Repeated until the record says so: a leader may die with the order in hand.
        self.at(1_000, Occurrence::CancelBatch(place));
        let leader = self.coordinators.iter().find(|node| node.leads() && node.reachable());
        let Some((life, slot)) = leader.and_then(|node| Some((node.life()?, node.find(&id)?))) else {
            return;
        };
        self.check.ending(&id);
        self.at(1, Occurrence::CoordinatorEvent(life, Box::new(Event::Cancel { batch: slot })));
    }

    /// Callers look after their batches: a leader that does not know one is told again, as by a repeated creation with
    /// the same key, and a paused one gets more money.
    pub(super) fn raise_budgets(&mut self) {
        self.at(5_000, Occurrence::RaiseBudgets);
        let now = self.now;
        let mut orders = Vec::new();
        for batch in &self.batches {
            let Some(record) = stored_record(&mut self.net, now, &batch.id) else { continue };
            let leader = self.coordinators.iter().find(|node| node.leads() && node.reachable());
            let unknown = leader.filter(|node| node.find(&batch.id).is_none()).and_then(|node| node.life());
            if let (Some(life), false) = (unknown, record.state.is_terminal()) {
                orders.push((life, Event::BatchKnown(Box::new(record))));
                continue;
            }
            let Some(budget) = record.options.budget_usd_micro else { continue };
            if record.state != BatchState::PausedBudget {
                continue;
            }
            let found = leader.and_then(|node| Some((node.life()?, node.find(&batch.id)?)));
            if let Some((life, slot)) = found {
                let budget = UsdMicro(budget.0 * 4 + 10_000);
                let change = Change { budget_usd_micro: Some(budget), ..Change::default() };
                orders.push((life, Event::Change { batch: slot, change }));
            }
        }
        for (life, event) in orders {
            self.at(1, Occurrence::CoordinatorEvent(life, Box::new(event)));
        }
    }

    pub(super) fn skewed(&self, ms: i64) -> Now {
        Now { mono: MonoMs(self.now.0), wall: TimeMs(self.now.0.saturating_add_signed(ms)) }
    }
}

fn full_stream(results: bool) -> &'static str {
    if results { table::RESULTS } else { table::CHECKPOINTS }
}

fn forget_one(rates: &mut Vec<u64>, rate: u64) {
    if let Some(at) = rates.iter().position(|other| *other == rate) {
        rates.remove(at);
    }
}
