//! A world of a few hundred lines for the core's tests: streams as vectors, workers as lists of jobs, faults on demand.
//! It is not the simulation of the `tests` crate, which runs the real worker core on a simulated JetStream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::message::{
    Abilities, BatchCreate, BatchOptions, BatchState, Durability, EventKind, FailedAttempt, Failure,
    FailureCode, Generation, Heartbeat, Input, JobResult, Line, Outcome, Prompt, Running, Sampling, Work,
    WorkerCounters, WorkerState,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{
    Attempt, BatchId, Epoch, JobKey, LeaderRevision, MonoMs, Now, TenantId, TimeMs, UsdMicro, WorkerId,
};

use crate::core::*;

pub(super) const KEY: AssignmentKey = AssignmentKey([7; 32]);

/// Small numbers from a seed; the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15))
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug)]
pub(super) struct SimWorker {
    pub(super) id: WorkerId,
    pub(super) host: String,
    pub(super) up: bool,
    /// Every job fails here.
    pub(super) sick: bool,
    /// Says that its machine is at fault.
    pub(super) broken: bool,
    /// Dies at every job that it begins.
    pub(super) crashes: bool,
    /// Answers with other ids than it should.
    pub(super) lies: bool,
    pub(super) canary: String,
    pub(super) running: Vec<Work>,
    pub(super) generation: u32,
    pub(super) decoded: u64,
    pub(super) busy_ms: u64,
    pub(super) price: UsdMicro,
    pub(super) model: String,
    pub(super) abilities: Abilities,
    pub(super) started_at: TimeMs,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) core: Core,
    pub(super) now: Now,
    pub(super) dice: Dice,
    pub(super) term: u32,
    pub(super) actions: Vec<Action>,
    pub(super) inputs: BTreeMap<String, Vec<Content>>,
    pub(super) records: BTreeMap<String, BatchRecord>,
    pub(super) work: BTreeMap<u64, (WorkerId, Work)>,
    pub(super) next_sequence: u64,
    pub(super) checkpoints: BTreeMap<JobKey, Trace>,
    pub(super) results: Vec<Answer>,
    pub(super) results_told: usize,
    pub(super) workers: Vec<SimWorker>,
    pub(super) dead: Vec<JobKey>,
    pub(super) dead_logs: Vec<Vec<FailedAttempt>>,
    /// Batches whose webhook was to be called.
    pub(super) called: Vec<BatchId>,
    /// Batches whose checkpoints were to be cleared away, and whether those that hold off a paused worker stay a while.
    pub(super) forgotten: Vec<(BatchId, bool)>,
    pub(super) audited: Vec<EventKind>,
    /// Jobs that kill the worker that runs them.
    pub(super) poisonous: Vec<u32>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            core: Core::new(KEY, Limits::default()),
            now: Now { mono: MonoMs(1_000), wall: TimeMs(1_000_000) },
            dice: Dice::new(seed),
            term: 0,
            actions: Vec::new(),
            inputs: BTreeMap::new(),
            records: BTreeMap::new(),
            work: BTreeMap::new(),
            next_sequence: 1,
            checkpoints: BTreeMap::new(),
            results: Vec::new(),
            results_told: 0,
            workers: Vec::new(),
            dead: Vec::new(),
            dead_logs: Vec::new(),
            called: Vec::new(),
            forgotten: Vec::new(),
            audited: Vec::new(),
            poisonous: Vec::new(),
        };
        world.lead();
        world
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.core.on(self.now, event, &mut self.actions);
    }

    fn lead(&mut self) {
        self.term += 1;
        self.work.clear();
        self.tell(Event::Lead(Lead { revision: LeaderRevision(u64::from(self.term) * 10), term: self.term }));
    }

    /// The coordinator dies and comes back with nothing but what is stored.
    pub(super) fn restart_coordinator(&mut self) {
        self.core = Core::new(KEY, Limits::default());
        self.actions.clear();
        for record in self.records.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::BatchKnown(Box::new(record)));
        }
        self.results_told = 0;
        self.tell_results(usize::MAX);
        self.lead();
    }

    pub(super) fn add_worker(&mut self, name: &str, host: &str, price: i64) {
        self.workers.push(SimWorker {
            id: name.parse().unwrap(),
            host: host.to_owned(),
            up: true,
            sick: false,
            broken: false,
            crashes: false,
            lies: false,
            canary: "c1-same".to_owned(),
            running: Vec::new(),
            generation: 0,
            decoded: 0,
            busy_ms: 0,
            price: UsdMicro(price),
            model: "m".to_owned(),
            abilities: Abilities::ALL,
            started_at: TimeMs(0),
        });
    }

    /// A batch of so many lines; every seventh is bad, every eleventh blank.
    pub(super) fn submit(
        &mut self,
        name: &str,
        tenant: &str,
        lines: u32,
        options: BatchOptions,
    ) -> BatchSlot {
        let content = (0..lines).map(|n| match n {
            n if n % 7 == 6 => Content::Bad(Box::new((line(n), failure()))),
            n if n % 11 == 10 => Content::Blank,
            n => Content::Good(Arc::new(task(n))),
        });
        let content = content.collect();
        self.submit_content(name, tenant, content, options)
    }

    pub(super) fn submit_content(
        &mut self,
        name: &str,
        tenant: &str,
        content: Vec<Content>,
        options: BatchOptions,
    ) -> BatchSlot {
        let create = BatchCreate {
            tenant: tenant.parse().unwrap(),
            idempotency_key: name.to_owned(),
            input_object: name.to_owned(),
            name: None,
            endpoint: None,
            options,
            metadata: BTreeMap::new(),
            traceparent: None,
            work: None,
        };
        let facts = BatchFacts {
            input_bytes: content.len() as u64 * 100,
            stored_bytes: content.len() as u64 * 100,
            results_after: self.results.len() as u64,
            durability: Durability::Stored,
            replicas: 1,
        };
        let record = BatchRecord::new(self.now.wall, &create, facts);
        let id = record.id.clone();
        self.records.insert(id.to_string(), record.clone());
        self.inputs.insert(id.to_string(), content);
        self.tell(Event::BatchKnown(Box::new(record)));
        self.core.find(&id).unwrap()
    }

    /// Performs one waiting action, any of them; but records of a batch are stored in their order, as the shell does.
    pub(super) fn perform_one(&mut self) -> bool {
        if self.actions.is_empty() {
            return false;
        }
        let mut place = self.dice.below(self.actions.len() as u64) as usize;
        let stores = |action: &Action| match action {
            Action::Record(record) | Action::KeepTotals(record) => Some(record.id.clone()),
            _ => None,
        };
        if let Some(chosen) = stores(&self.actions[place]) {
            let same = |action: &Action| stores(action).is_some_and(|other| other == chosen);
            place = self.actions.iter().position(same).expect("because the chosen one is there");
        }
        let action = self.actions.remove(place);
        self.perform(action);
        true
    }

    pub(super) fn perform_all(&mut self) {
        while !self.actions.is_empty() {
            let action = self.actions.remove(0);
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Scan { batch } => {
                let lines = self.input(batch).len() as u32;
                self.tell(Event::Scanned { batch, lines });
            }
            Action::Read { batch, from, lines, skip } => {
                let input = self.input(batch);
                let to = (from + lines).min(input.len() as u32);
                let wanted = |n: &u32| skip[((n - from) / 64) as usize] >> ((n - from) % 64) & 1 == 0;
                let fed = (from.min(to)..to)
                    .filter(wanted)
                    .map(|index| Fed { index, content: input[index as usize].clone() })
                    .collect();
                let end = to as usize == input.len();
                self.tell(Event::Lines { batch, lines: fed, next: to, end });
            }
            Action::Hand(hand) => {
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                let epoch = hand.work.epoch;
                self.work.insert(sequence, (hand.worker, hand.work));
                self.tell(Event::Handed { job: hand.job, epoch, sequence: Some(sequence) });
            }
            Action::Withdraw { job, key, epoch, sequence, .. } => {
                if let Some(sequence) = sequence {
                    self.work.remove(&sequence);
                }
                let trace = self.checkpoints.get(&key).cloned();
                self.tell(Event::Withdrawn { job, epoch, trace });
            }
            Action::Audit(kind) => self.audited.push(kind),
            Action::Answer(result) => {
                let verdict = match &result.outcome {
                    Outcome::Text(text) => Verdict::Good { ids_digest: text.ids_digest },
                    Outcome::Failed(_) => Verdict::Bad,
                };
                self.results.push(Answer {
                    job: result.job.clone(),
                    epoch: result.epoch,
                    attempt: result.attempt,
                    worker: result.worker.clone(),
                    tag: result.tag,
                    verdict,
                    fault: None,
                    rejected: None,
                    prompt_tokens: 0,
                    completion_tokens: 0,
                    repeated_tokens: 0,
                    engine_us: 0,
                    cached_tokens: 0,
                    model: None,
                    nondeterministic: false,
                    finished_at: self.now.wall,
                });
            }
            Action::Repeat { job, key, place, result } => {
                // Segments are lost here.
                let Place::Results(sequence) = place else {
                    return self.tell(Event::NotRepeated { job, key });
                };
                let known = self.results[sequence as usize - 1].clone();
                let JobResult { job, epoch, worker, tag, .. } = *result;
                self.results.push(Answer { job, epoch, worker, tag, ..known });
            }
            Action::Register { worker, shard } => self.tell(Event::Registered { worker, shard }),
            Action::Write { batch } => {
                let outputs = Ok(Outputs::default());
                self.tell(Event::Written { batch, outputs });
            }
            Action::Record(record) | Action::KeepTotals(record) => {
                self.records.insert(record.id.to_string(), *record);
            }
            Action::Dead { key, log, .. } => {
                self.dead_logs.push(log);
                self.dead.push(key);
            }
            Action::Notify(record) => self.called.push(record.id.clone()),
            Action::Forget { batch, fenced, .. } => self.forgotten.push((batch, fenced)),
            Action::Tell { .. }
            | Action::Clean { .. }
            | Action::DropAnswer { .. }
            | Action::DropAnswers { .. }
            | Action::Discard { .. }
            | Action::StopReading { .. }
            | Action::Retire { .. }
            | Action::Announce { .. }
            | Action::ClearWork
            | Action::KeepAccount(_)
            | Action::Remember { .. }
            | Action::Sweep { .. } => {}
        }
    }

    fn input(&self, batch: BatchSlot) -> Vec<Content> {
        self.inputs[self.core.batch(batch).unwrap().record.id.as_str()].clone()
    }

    /// Lets the core read up to so many further answers, in stream order.
    pub(super) fn tell_results(&mut self, count: usize) {
        let to = self.results.len().min(self.results_told.saturating_add(count));
        while self.results_told < to {
            let answer = Box::new(self.results[self.results_told].clone());
            self.results_told += 1;
            let sequence = self.results_told as u64;
            self.tell(Event::Answer { sequence, answer });
        }
    }

    pub(super) fn beat(&mut self, n: usize) {
        if self.workers[n].up {
            self.beat_in(n, WorkerState::Ready);
        }
    }

    /// A heartbeat of a worker in this state.
    pub(super) fn beat_in(&mut self, n: usize, state: WorkerState) {
        let worker = &self.workers[n];
        let running = worker.running.iter().map(|work| Running {
            job: work.job.clone(),
            epoch: work.epoch,
            tag: Some(work.tag),
            generated: 1,
            engine_us: 0,
        });
        let beat = Heartbeat {
            worker: format!("{}-{}", worker.id, worker.generation).parse().unwrap(),
            pod: format!("pod-{}", worker.id),
            host: worker.host.clone(),
            pod_class: "test".to_owned(),
            price_usd_micro_per_hour: worker.price,
            state,
            model: worker.model.clone(),
            model_digest: "d".to_owned(),
            numerics: if worker.abilities.is_all() { "n" } else { "server" }.to_owned(),
            context_tokens: 4096,
            slots: 4,
            slots_in_use: worker.running.len() as u32,
            kv_pages: 0,
            kv_pages_free: 0,
            checkpoint_age_ms: 0,
            threads: 1,
            isa: "scalar".to_owned(),
            calibration: Vec::new(),
            prefill_tok_s: 0.0,
            decode_tok_s: 100.0,
            counters: WorkerCounters {
                decode_tokens: worker.decoded,
                busy_ms: worker.busy_ms,
                ..WorkerCounters::default()
            },
            leader_seen: LeaderRevision(u64::MAX),
            version: "test".to_owned(),
            started_at: worker.started_at,
            at: self.now.wall,
            mono: self.now.mono,
            running: running.collect(),
            needs_queues: false,
            canary: worker.canary.clone(),
            thread_scaling: Vec::new(),
            abilities: worker.abilities,
        };
        self.tell(Event::Heartbeat(Box::new(beat)));
    }

    pub(super) fn name(&self, n: usize) -> WorkerId {
        format!("{}-{}", self.workers[n].id, self.workers[n].generation).parse().unwrap()
    }

    /// The worker takes the oldest message of its queue and claims the job.
    pub(super) fn pull(&mut self, n: usize) {
        let name = self.name(n);
        if !self.workers[n].up || self.workers[n].running.len() >= 4 {
            return;
        }
        let running: Vec<JobKey> = self.workers[n].running.iter().map(|work| work.job.clone()).collect();
        let mine =
            |(_, (worker, work)): &(&u64, &(WorkerId, Work))| *worker == name && !running.contains(&work.job);
        let Some((_, (_, work))) = self.work.iter().find(mine) else { return };
        let work = work.clone();
        let before = self.checkpoints.get(&work.job);
        if before.is_some_and(|before| before.epoch > work.epoch) {
            self.work.retain(|_, (_, other)| other.job != work.job || other.epoch != work.epoch);
            return;
        }
        let attempt = Attempt(before.map_or(0, |before| before.attempt.0) + 1);
        let host = self.workers[n].host.clone();
        let trace = Trace { attempt, epoch: work.epoch, owner: name, host, generated: 0, released: false };
        self.checkpoints.insert(work.job.clone(), trace);
        if self.workers[n].crashes || self.poisonous.contains(&work.job.index) {
            self.crash(n);
        } else {
            self.workers[n].running.push(work);
        }
    }

    /// The worker finishes its oldest job.
    pub(super) fn finish(&mut self, n: usize) {
        if !self.workers[n].up || self.workers[n].running.is_empty() {
            return;
        }
        let work = self.workers[n].running.remove(0);
        self.workers[n].decoded += 10;
        self.workers[n].busy_ms += 100;
        let worker = self.name(n);
        let ids_digest = if self.workers[n].lies { 2 } else { 1 };
        let verdict = match &self.workers[n] {
            SimWorker { broken: true, .. } => Verdict::HostFault,
            SimWorker { sick: true, .. } => Verdict::Fault,
            _ => Verdict::Good { ids_digest },
        };
        // The same worker never answers a job twice: its subject is taken.
        if !self.results.iter().any(|answer| answer.job == work.job && answer.worker == worker) {
            self.results.push(Answer {
                job: work.job.clone(),
                epoch: work.epoch,
                attempt: Attempt(1),
                worker,
                tag: work.tag,
                verdict,
                fault: None,
                rejected: None,
                prompt_tokens: 5,
                completion_tokens: 10,
                repeated_tokens: 0,
                engine_us: 100_000,
                cached_tokens: 0,
                model: None,
                nondeterministic: !self.workers[n].abilities.deterministic,
                finished_at: self.now.wall,
            });
        }
        self.work.retain(|_, (_, other)| other.job != work.job || other.epoch != work.epoch);
    }

    /// kill -9, and a new process on the same host.
    pub(super) fn crash(&mut self, n: usize) {
        self.workers[n].running.clear();
        self.workers[n].generation += 1;
        self.workers[n].decoded = 0;
        self.workers[n].busy_ms = 0;
    }

    /// Everything that a fifth of a second brings when nothing is wrong.
    pub(super) fn run_quietly(&mut self) {
        self.now = self.now.plus(Duration::from_millis(200));
        for n in 0..self.workers.len() {
            self.beat(n);
            for _ in 0..8 {
                self.pull(n);
            }
            for _ in 0..4 {
                self.finish(n);
            }
        }
        self.tell(Event::Tick);
        self.perform_all();
        self.tell_results(usize::MAX);
        self.tell(Event::Turn);
        self.perform_all();
    }

    /// Without further faults every batch ends.
    pub(super) fn run_to_the_end(&mut self) {
        for _ in 0..5_000 {
            if self.records.values().all(|record| record.state.is_terminal()) {
                return;
            }
            self.run_quietly();
        }
        let stuck: Vec<_> = self.records.values().filter(|record| !record.state.is_terminal()).collect();
        panic!("faults have stopped and these batches do not end: {stuck:#?}\n{:#?}", self.core.gauges());
    }

    /// J1: every line has one terminal record; the ledger and the stream agree.
    pub(super) fn check(&self, slot: BatchSlot) {
        let batch = self.core.batch(slot).unwrap();
        let mut first: BTreeMap<u32, Verdict> = BTreeMap::new();
        for answer in &self.results[batch.record.results_after as usize..] {
            if answer.job.batch == batch.record.id && answer.verdict.is_answer() {
                first.entry(answer.job.index).or_insert(answer.verdict);
            }
        }
        let good = first.values().filter(|verdict| matches!(verdict, Verdict::Good { .. })).count() as u32;
        let totals = batch.record.totals;
        assert_eq!(totals.completed, good, "good answers");
        assert_eq!(totals.failed, first.len() as u32 - good, "error answers");
        let lines = self.inputs[batch.record.id.as_str()].len() as u32;
        assert_eq!(totals.completed + totals.failed + totals.blank, lines, "accepted = committed + errored");
        if let Some(budget) = batch.record.options.budget_usd_micro {
            assert!(totals.cost_usd_micro <= budget, "M1: {} of {budget}", totals.cost_usd_micro);
        }
        assert_eq!(self.core.counts.violations, [0; 4]);
        let gauges = self.core.gauges();
        assert!(self.core.money().pods().values().all(|pod| pod.bill.adds_up()), "M2");
        assert!(self.core.flights().sums_agree());
        if self.records.values().all(|record| record.state.is_terminal()) {
            assert_eq!((gauges.text_bytes, gauges.jobs_in_flight, gauges.tokens_in_flight), (0, 0, 0));
        }
    }

    pub(super) fn state(&self, slot: BatchSlot) -> BatchState {
        self.core.batch(slot).unwrap().record.state
    }
}

pub(super) fn line(n: u32) -> Line {
    Line::new(Some(format!("c{n}")), Endpoint::Completions, None)
}

fn failure() -> Failure {
    Failure { code: FailureCode::InvalidRequest, message: "bad".to_owned() }
}

pub(super) fn task(n: u32) -> Task {
    let generation = Generation {
        prompt: Prompt::Text(format!("prompt {n}")),
        max_tokens: Some(16),
        sampling: Sampling::default(),
        seed: 1,
        stop: Vec::new(),
        logprobs: None,
        echo: false,
        stream: false,
        constraint: None,
        token_ids: false,
        deterministic: false,
        no_cache: false,
    };
    Task {
        wanted: None,
        start: None,
        line: line(n),
        input: Input::Inline(generation),
        constrained: false,
        needs: Abilities::NONE,
        tokens_estimate: 20,
        bytes: 100,
    }
}

pub(super) fn good_lines(count: u32) -> Vec<Content> {
    (0..count).map(|n| Content::Good(Arc::new(task(n)))).collect()
}

pub(super) fn tenant() -> TenantId {
    TenantId::default_tenant()
}

pub(super) fn epoch_zero() -> Epoch {
    Epoch(0)
}
