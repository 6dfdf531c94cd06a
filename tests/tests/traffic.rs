//! The coordinator's core beside a hundred completions a second: periodic duties are done in time, bills are right, and
//! steps of the wall clock change nothing but dates. No bus and no real time; workers are engines that share their speed
//! among their jobs, and their truth is kept by an account of its own.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ternfleet_coordinator::Quotas;
use ternfleet_coordinator::core::{
    Action, Answer, BatchFacts, BatchRecord, BatchSlot, Content, Core, Event, Fed, JobRef, Lead, Limits,
    Outputs, Task, Trace, Verdict,
};
use ternfleet_proto::message::{
    Abilities, BatchCreate, BatchOptions, Durability, EventKind, Generation, Input, JobCreate, Line, Prompt,
    Refusal, Running, Work,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{
    Attempt, BatchId, Epoch, Lane, LeaderRevision, MonoMs, Now, TenantId, TimeMs, UsdMicro, WorkerId,
};
use ternfleet_tests::account::Account;
use ternfleet_tests::instant::{Manner, first_beat};

const STEP: Duration = Duration::from_millis(10);
const PRICE: UsdMicro = UsdMicro(3_600_000);
const LINE_TOKENS: u32 = 100;
const COMPLETION_TOKENS: u32 = 5;

struct Run {
    work: Work,
    left: f64,
    made: f64,
    engine_us: f64,
}

struct Node {
    id: WorkerId,
    slots: usize,
    rate_tok_s: f64,
    queue: VecDeque<Work>,
    running: Vec<Run>,
    /// Its engine does not move; the rest of it does.
    hung: bool,
    decoded: f64,
    busy_ms: u64,
}

struct World {
    core: Core,
    now: Now,
    steps: u64,
    actions: Vec<Action>,
    nodes: Vec<Node>,
    account: Account,
    sequence: u64,
    lines: u32,
    /// Assignments that are stored and never reach their worker.
    lose: u32,
    spent: BTreeMap<BatchId, UsdMicro>,
    completions: u64,
}

impl World {
    fn new(nodes: &[(usize, f64)], limits: Limits) -> World {
        let mut world = World {
            core: Core::new(AssignmentKey([7; 32]), limits),
            now: Now { mono: MonoMs(5_000), wall: TimeMs(1_000_000_000) },
            steps: 0,
            actions: Vec::new(),
            nodes: Vec::new(),
            account: Account::default(),
            sequence: 0,
            lines: 0,
            lose: 0,
            spent: BTreeMap::new(),
            completions: 0,
        };
        for (n, (slots, rate_tok_s)) in nodes.iter().enumerate() {
            world.nodes.push(Node {
                id: format!("w{n}").parse().unwrap(),
                slots: *slots,
                rate_tok_s: *rate_tok_s,
                queue: VecDeque::new(),
                running: Vec::new(),
                hung: false,
                decoded: 0.0,
                busy_ms: 0,
            });
        }
        world.tell(Event::Lead(Lead { revision: LeaderRevision(1), term: 1 }));
        world
    }

    fn tell(&mut self, event: Event) {
        self.core.on(self.now, event, &mut self.actions);
    }

    fn submit(&mut self, lines: u32, options: BatchOptions) -> BatchSlot {
        self.lines = lines;
        let create = BatchCreate {
            tenant: TenantId::default_tenant(),
            idempotency_key: "traffic".to_owned(),
            input_object: "in".to_owned(),
            name: None,
            endpoint: None,
            options,
            metadata: BTreeMap::new(),
            traceparent: None,
            work: None,
        };
        let facts = BatchFacts {
            input_bytes: 1_000,
            stored_bytes: 1_000,
            results_after: 0,
            durability: Durability::Stored,
            replicas: 1,
        };
        let record = BatchRecord::new(self.now.wall, &create, facts);
        let id = record.id.clone();
        self.tell(Event::BatchKnown(Box::new(record)));
        self.core.find(&id).unwrap()
    }

    fn id(&self, slot: BatchSlot) -> BatchId {
        self.core.batch(slot).unwrap().record.id.clone()
    }

    /// One step of 10 ms; a completion comes with each if there is `traffic`.
    fn step(&mut self, traffic: bool) {
        self.now = self.now.plus(STEP);
        self.steps += 1;
        if traffic {
            let _ = self.complete(&TenantId::default_tenant());
        }
        for n in 0..self.nodes.len() {
            self.compute(n);
            // Workers beat once a second, one after the other.
            if self.steps % 100 == n as u64 * 30 {
                self.beat(n);
            }
        }
        if self.steps.is_multiple_of(20) {
            self.tell(Event::Tick);
        }
        self.tell(Event::Turn);
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.perform(action);
            }
        }
    }

    /// A completion comes, and is taken if there is no reason to refuse it.
    fn complete(&mut self, tenant: &TenantId) -> Result<BatchId, Refusal> {
        let batch: BatchId = format!("cmpl-{}", self.completions).parse().unwrap();
        let job = JobCreate {
            tenant: tenant.clone(),
            batch: batch.clone(),
            line: line(),
            generation: generation(COMPLETION_TOKENS),
            deadline: self.now.wall.plus(Duration::from_secs(60)),
            traceparent: None,
            again: false,
            wait_for_model: false,
        };
        self.core.admit_single(self.now, &job)?;
        self.completions += 1;
        self.tell(Event::JobCreated(Box::new(job)));
        Ok(batch)
    }

    fn run(&mut self, span: Duration, traffic: bool) {
        for _ in 0..span.as_millis() / STEP.as_millis() {
            self.step(traffic);
        }
    }

    fn compute(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        while node.running.len() < node.slots {
            let Some(work) = node.queue.pop_front() else { break };
            let tokens = match &work.input {
                Input::Inline(generation) => generation.max_tokens.unwrap(),
                Input::Object(_) => 1,
            };
            node.running.push(Run { work, left: f64::from(tokens), made: 0.0, engine_us: 0.0 });
        }
        if node.hung || node.running.is_empty() {
            return;
        }
        let share = 1.0 / node.running.len() as f64;
        let each = node.rate_tok_s * STEP.as_secs_f64() * share;
        for run in &mut node.running {
            run.left -= each;
            run.made += each;
            run.engine_us += STEP.as_micros() as f64 * share;
        }
        node.decoded += node.rate_tok_s * STEP.as_secs_f64();
        node.busy_ms += STEP.as_millis() as u64;
        let tokens: Vec<(BatchId, f64)> =
            node.running.iter().map(|run| (run.work.job.batch.clone(), each)).collect();
        self.account.worked(PRICE, 1, STEP, &tokens);
        let (done, running): (Vec<Run>, Vec<Run>) =
            std::mem::take(&mut node.running).into_iter().partition(|run| run.left <= 1e-9);
        node.running = running;
        let worker = node.id.clone();
        for run in done {
            self.sequence += 1;
            let answer = Answer {
                rejected: None,
                job: run.work.job,
                epoch: run.work.epoch,
                attempt: Attempt(1),
                worker: worker.clone(),
                tag: run.work.tag,
                verdict: Verdict::Good { ids_digest: 1 },
                fault: None,
                prompt_tokens: 0,
                completion_tokens: run.made.round() as u32,
                repeated_tokens: 0,
                cached_tokens: 0,
                model: None,
                engine_us: run.engine_us as u64,
                nondeterministic: false,
                finished_at: self.now.wall,
            };
            self.tell(Event::Answer { sequence: self.sequence, answer: Box::new(answer) });
        }
    }

    fn beat(&mut self, n: usize) {
        let node = &self.nodes[n];
        let manner = Manner {
            host: format!("host-{n}"),
            slots: node.slots as u32,
            rate_tok_s: node.rate_tok_s,
            ..Manner::default()
        };
        let mut beat = first_beat(&node.id, &manner, self.now.wall);
        beat.pod = format!("pod-{n}");
        beat.price_usd_micro_per_hour = PRICE;
        // Its own clock, which began at another time.
        beat.mono = MonoMs(self.now.mono.0 + 777);
        beat.leader_seen = LeaderRevision(1);
        beat.needs_queues = false;
        beat.slots_in_use = node.running.len() as u32;
        beat.counters.decode_tokens = node.decoded as u64;
        beat.counters.busy_ms = node.busy_ms;
        let running = |run: &Run| Running {
            job: run.work.job.clone(),
            epoch: run.work.epoch,
            tag: Some(run.work.tag),
            generated: run.made as u32,
            engine_us: run.engine_us as u64,
        };
        beat.running = node.running.iter().map(running).collect();
        self.tell(Event::Heartbeat(Box::new(beat)));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Scan { batch } => self.tell(Event::Scanned { batch, lines: self.lines }),
            Action::Read { batch, from, lines, .. } => {
                let to = (from + lines).min(self.lines);
                let fed = |index| Fed { index, content: Content::Good(Arc::new(task())) };
                let end = to == self.lines;
                self.tell(Event::Lines { batch, lines: (from..to).map(fed).collect(), next: to, end });
            }
            Action::Hand(hand) => {
                let epoch = hand.work.epoch;
                let node = self.nodes.iter_mut().find(|node| node.id == hand.worker).unwrap();
                if self.lose > 0 && hand.work.lane == Lane::Batch {
                    self.lose -= 1;
                } else {
                    node.queue.push_back(hand.work);
                }
                self.tell(Event::Handed { job: hand.job, epoch, sequence: Some(1) });
            }
            Action::Withdraw { job, key, epoch, .. } => {
                let mut trace = None;
                for node in &mut self.nodes {
                    node.queue.retain(|work| work.job != key || work.epoch != epoch);
                    if node.running.iter().any(|run| run.work.job == key && run.work.epoch == epoch) {
                        trace = Some(claim_of(node, epoch));
                    }
                    // The engine that hangs lets go of nothing; its worker is told all the same.
                    if !node.hung {
                        node.running.retain(|run| run.work.job != key || run.work.epoch != epoch);
                    }
                }
                self.tell(Event::Withdrawn { job, epoch, trace });
            }
            Action::Register { worker, shard } => self.tell(Event::Registered { worker, shard }),
            Action::Write { batch } => self.tell(Event::Written { batch, outputs: Ok(Outputs::default()) }),
            Action::Audit(EventKind::SpentByPods { pods }) => {
                for (batch, cost) in pods.into_iter().flat_map(|pod| pod.by_batch) {
                    *self.spent.entry(batch).or_default() += cost;
                }
            }
            _ => {}
        }
    }

    /// Jobs that the coordinator believes to be at a node.
    fn at(&self, n: usize) -> Vec<JobRef> {
        let slot = self.core.fleet().slot(&self.nodes[n].id);
        slot.map_or(Vec::new(), |slot| self.core.flights().of_worker(slot).collect())
    }

    fn check(&self) {
        assert_eq!(self.core.counts.violations, [0; 4]);
        assert!(self.core.money().pods().values().all(|pod| pod.bill.adds_up()));
    }
}

fn claim_of(node: &Node, epoch: Epoch) -> Trace {
    Trace {
        attempt: Attempt(1),
        epoch,
        owner: node.id.clone(),
        host: "host".to_owned(),
        generated: 0,
        released: false,
    }
}

fn line() -> Line {
    Line::new(None, Endpoint::Completions, None)
}

fn generation(max_tokens: u32) -> Generation {
    Generation {
        prompt: Prompt::Text("Once".to_owned()),
        max_tokens: Some(max_tokens),
        seed: 1,
        no_cache: true,
        ..Generation::default()
    }
}

fn task() -> Task {
    Task {
        wanted: None,
        start: None,
        line: line(),
        input: Input::Inline(generation(LINE_TOKENS)),
        constrained: false,
        needs: Abilities::NONE,
        tokens_estimate: LINE_TOKENS,
        bytes: 100,
    }
}

/// A slow pod, and a fast one that most completions go to.
fn two_pods() -> World {
    let mut world = World::new(&[(8, 200.0), (16, 2_000.0)], Limits::default());
    world.run(Duration::from_secs(1), false);
    world
}

#[test]
fn a_batchs_bill_is_within_one_percent_of_an_independent_account_beside_a_hundred_completions_a_second() {
    let mut world = two_pods();
    let batch = world.submit(100_000, BatchOptions::default());
    world.run(Duration::from_secs(60), true);
    let id = world.id(batch);
    let billed = world.core.batch(batch).unwrap().totals.cost_usd_micro;
    let owed = world.account.owed(&id);
    // What was made since the last heartbeats is pending, a second at most.
    let drift = Account::drift(owed, billed);
    assert!(owed > 50_000.0 && drift < 0.01 + 1.0 / 60.0, "{owed:.0} owed, {billed} billed");
    world.run(Duration::from_secs(240), true);
    let billed = world.core.batch(batch).unwrap().totals.cost_usd_micro;
    let owed = world.account.owed(&id);
    assert!(Account::drift(owed, billed) < 0.01, "{owed:.0} owed, {billed} billed");

    let single = |id: &BatchId| id.as_str().starts_with("cmpl-");
    let singles: UsdMicro = world.spent.iter().filter(|(id, _)| single(id)).map(|(_, cost)| *cost).sum();
    let owed = world.account.owed_by(single);
    assert!(Account::drift(owed, singles) < 0.01, "completions: {owed:.0} owed, {singles} billed");
    world.check();
}

#[test]
fn a_bill_at_the_end_of_a_batch_has_what_its_last_jobs_cost() {
    let mut world = two_pods();
    let batch = world.submit(500, BatchOptions::default());
    for _ in 0..12_000 {
        if world.core.batch(batch).unwrap().is_ended() {
            break;
        }
        world.step(true);
    }
    let ended = world.core.batch(batch).unwrap();
    assert!(ended.is_ended());
    let owed = world.account.owed(&ended.record.id);
    let billed = ended.record.totals.cost_usd_micro;
    assert!(Account::drift(owed, billed) < 0.01, "{owed:.0} owed, {billed} billed");
    world.check();
}

#[test]
fn a_batch_never_pays_more_than_its_budget_and_the_rest_is_shown() {
    let mut world = two_pods();
    let budget = UsdMicro(20_000);
    let options = BatchOptions { budget_usd_micro: Some(budget), ..BatchOptions::default() };
    let batch = world.submit(10_000, options);
    world.run(Duration::from_secs(60), true);
    let known = world.core.batch(batch).unwrap();
    let totals = known.totals;
    assert!(totals.cost_usd_micro <= budget);
    let owed = world.account.owed(&known.record.id);
    let whole = totals.cost_usd_micro + totals.over_budget_usd_micro;
    // What its jobs did between their last heartbeat and their withdrawal nobody hears of.
    assert!(Account::drift(owed, whole) < 0.12, "{owed:.0} owed, {totals:?}");
    world.check();
}

#[test]
fn a_hung_workers_jobs_move_within_fifteen_seconds_beside_a_hundred_completions_a_second() {
    let mut world = two_pods();
    world.submit(100_000, BatchOptions::default());
    world.run(Duration::from_secs(10), true);
    let held = world.at(0);
    assert!(held.len() >= 8, "{held:?}");
    world.nodes[0].hung = true;
    let mut after = None;
    for step in 0..3_000u32 {
        world.step(true);
        if world.at(0).is_empty() {
            after = Some(STEP * step);
            break;
        }
    }
    let after = after.expect("its jobs go elsewhere");
    assert!(after < Duration::from_secs(15), "{after:?}");
    // It gets nothing while it hangs, and work again when it continues.
    world.run(Duration::from_secs(5), true);
    assert_eq!(world.at(0), []);
    world.nodes[0].hung = false;
    world.run(Duration::from_secs(5), true);
    assert!(!world.at(0).is_empty());
    assert_eq!(world.core.counts.dead_jobs, 0);
    world.check();
}

#[test]
fn a_lost_hand_over_is_found_within_its_time_whatever_the_traffic() {
    let mut world = two_pods();
    world.lose = 3;
    let batch = world.submit(30, BatchOptions::default());
    world.run(Duration::from_secs(75), true);
    assert_eq!(world.lose, 0);
    assert!(world.core.batch(batch).unwrap().is_ended());
    world.check();
}

#[test]
fn steps_of_the_wall_clock_lose_no_worker_blame_no_job_and_stop_no_hand_out() {
    let mut world = two_pods();
    let batch = world.submit(100_000, BatchOptions::default());
    let mut handed = world.core.counts.handed_jobs;
    for (second, by_ms) in
        (0..40).zip([10_000, 10_000, 10_000, 10_000, 10_000, 10_000, -60_000].into_iter().cycle())
    {
        if second % 5 == 0 {
            world.now.wall = TimeMs(world.now.wall.0.saturating_add_signed(by_ms));
        }
        world.run(Duration::from_secs(1), true);
        let now = world.core.counts.handed_jobs;
        assert!(now > handed, "nothing was assigned in second {second}");
        handed = now;
    }
    let counts = world.core.counts;
    assert_eq!((counts.lost_workers, counts.failed_attempts), (0, 0), "{counts:?}");
    assert_eq!(counts.clock_steps, 8);
    let owed = world.account.owed(&world.id(batch));
    let billed = world.core.batch(batch).unwrap().totals.cost_usd_micro;
    assert!(Account::drift(owed, billed) < 0.04, "{owed:.0} owed, {billed} billed");
    world.check();
}

#[test]
fn a_step_forward_ends_no_batch_before_as_much_time_has_passed_as_it_had_left() {
    let mut world = two_pods();
    let options = BatchOptions { completion_window_ms: Some(30_000), ..BatchOptions::default() };
    let batch = world.submit(100_000, options);
    world.run(Duration::from_secs(5), false);
    world.now.wall = world.now.wall.plus(Duration::from_secs(3600));
    world.run(Duration::from_secs(24), false);
    assert!(world.core.batch(batch).unwrap().record.ending.is_none());
    world.run(Duration::from_secs(2), false);
    assert!(world.core.batch(batch).unwrap().record.ending.is_some());
}

#[test]
fn one_tenants_flood_of_completions_keeps_no_other_tenant_waiting() {
    let mut world = World::new(&[(2, 100.0)], Limits::default());
    world.run(Duration::from_secs(1), false);
    let (flood, other) = ("flood".parse().unwrap(), "other".parse().unwrap());
    // Twenty seconds of work.
    for _ in 0..400 {
        world.complete(&flood).unwrap();
    }
    world.run(Duration::from_secs(1), false);
    let wanted = world.complete(&other).unwrap();
    let answered = |world: &World| {
        let slot = world.core.find(&wanted).unwrap();
        world.core.batch(slot).unwrap().is_ended()
    };
    let mut steps = 0;
    while !answered(&world) {
        world.step(false);
        steps += 1;
        assert!(steps < 3_000, "never answered");
    }
    // What lay at the worker already goes first, and nothing else of the twenty seconds.
    assert!(STEP * steps < Duration::from_secs(10), "{:?}", STEP * steps);
    world.run(Duration::from_secs(25), false);
    assert_eq!(world.core.counts.committed, [401, 0]);
    world.check();
}

#[test]
fn completions_cost_their_tenant_no_more_than_its_hour_allows() {
    let quotas = Quotas { completions_usd_per_hour_max: 0.01, ..Quotas::default() };
    let mut world = World::new(&[(4, 200.0)], Limits { quotas, audit_share_ppm: 0, ..Limits::default() });
    world.run(Duration::from_secs(1), false);
    let (greedy, modest) = ("greedy".parse().unwrap(), "modest".parse().unwrap());
    let mut refused = None;
    for step in 0..6_000 {
        if step % 3 == 0
            && let Err(refusal) = world.complete(&greedy)
        {
            refused = Some(refusal);
        }
        world.step(false);
    }
    // A minute of the pod costs 60,000; the hour's 10,000 grow back by 167 a minute.
    let spent: UsdMicro = world.spent.values().copied().sum();
    assert!((9_000..=10_200).contains(&spent.0), "{spent}");
    let refused = refused.expect("the allowance is used up");
    assert!(refused.retry_after_ms.is_some_and(|wait| wait > 0), "{refused:?}");
    assert!(refused.message.contains("greedy") && refused.message.contains("per hour"), "{refused}");
    world.complete(&modest).unwrap();
    world.run(Duration::from_secs(2), false);
    world.check();
}
