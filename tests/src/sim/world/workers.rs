//! Workers: the real core, the shell's operations on the simulated server, and an engine that makes the same ids for
//! the same job wherever it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::bus::{BusError, Delivery, Publish, Result, Settle};
use ternfleet_proto::message::{
    Checkpoint, Control, Finish, Heartbeat, Input, JobResult, Work, WorkerCounters, WorkerState,
};
use ternfleet_proto::tag::CheckpointKey;
use ternfleet_proto::{JobKey, Lane, LeaderRevision, TenantId, TimeMs, UsdMicro, WorkerId, codec, table};
use ternfleet_worker::core::{
    Action, Completion, Config, Core, End, Event, HostFacts, Kept, Note, Output, PullOutcome, Read, Settled,
    SlotId, Steps, Tokens, Undecodable, Write,
};

use super::super::chance::mix;
use super::{Life, Occurrence, World};

const TICK_MS: u64 = 100;
const STEP_MS: u64 = 50;
/// How soon a waiting pull looks again.
const PULL_AGAIN_MS: u64 = 25;
const PROMPT_TOKENS: u32 = 12;
/// A killer job brings its worker down after so many tokens.
const KILLER_TOKENS: usize = 2;

/// A request on its way to the server.
#[derive(Debug)]
pub(super) enum Call {
    Pull { lane: Lane, stream: String, consumer: String, max: usize, until: TimeMs },
    ReadCheckpoint { slot: SlotId, job: JobKey, key: CheckpointKey },
    WriteCheckpoint { slot: SlotId, checkpoint: Box<Checkpoint>, key: CheckpointKey, expect: u64 },
    PublishResult { slot: SlotId, result: Box<JobResult> },
    ReadResult { slot: SlotId, tenant: TenantId, job: JobKey },
    Settle { slot: Option<SlotId>, delivery: Delivery, how: Settle },
}

/// A generation in the engine.
#[derive(Debug)]
struct Generation {
    job: JobKey,
    ids: Vec<u32>,
    made: usize,
    kept: u32,
    /// Steps until the prompt is computed; `None` once started.
    prefill_steps: Option<u32>,
    killer: bool,
}

#[derive(Debug)]
pub(super) struct WorkerNode {
    place: usize,
    lives: u32,
    core: Option<Core>,
    name: Option<WorkerId>,
    engine: BTreeMap<SlotId, Generation>,
    /// Fractions of tokens that are due, in thousandths.
    due: u64,
    /// What the core was told of the line.
    line_up: bool,
    /// Somebody waits for it to end and starts it again.
    pub(super) draining: bool,
    pub(super) paused: u32,
    pub(super) cut: u32,
    pub(super) slowed: u64,
    pub(super) skew_ms: i64,
}

impl WorkerNode {
    pub(super) fn off(place: usize) -> WorkerNode {
        WorkerNode {
            place,
            lives: 0,
            core: None,
            name: None,
            engine: BTreeMap::new(),
            due: 0,
            line_up: true,
            draining: false,
            paused: 0,
            cut: 0,
            slowed: 1,
            skew_ms: 0,
        }
    }

    /// `kill -9`.
    pub(super) fn stop(&mut self) {
        self.core = None;
        self.engine.clear();
    }

    pub(super) fn is_alive(&self) -> bool {
        self.core.is_some()
    }

    pub(super) fn life(&self) -> Option<Life> {
        self.core.is_some().then_some(Life { place: self.place, number: self.lives })
    }

    fn lives_as(&self, life: Life) -> bool {
        self.core.is_some() && self.lives == life.number
    }
}

/// The ids of a job: a function of its request, so that every run of it agrees to the bit, an audit's too.
fn ids_of(seed: u64, tokens_max: u32) -> Vec<u32> {
    let length = 1 + mix(seed) % u64::from(tokens_max.max(1));
    (0..length).map(|at| (mix(seed ^ (at + 1)) % 4096) as u32).collect()
}

impl World {
    pub(super) fn start_worker(&mut self, place: usize) {
        if self.workers[place].is_alive() {
            // Told to drain while it was paused, it ends only after it has continued.
            if self.workers[place].draining {
                self.at(500, Occurrence::StartWorker(place));
            }
            return;
        }
        let plan = self.scenario.workers[place].clone();
        let node = &mut self.workers[place];
        node.lives += 1;
        node.engine.clear();
        node.line_up = true;
        node.draining = false;
        let name: WorkerId =
            format!("w{place}-{}", node.lives).parse().expect("because w and digits make an id");
        node.name = Some(name.clone());
        let now = self.now;
        let profile = Heartbeat {
            worker: name,
            pod: format!("pod{}", plan.pod),
            host: format!("host{}", plan.pod),
            pod_class: "class".into(),
            price_usd_micro_per_hour: UsdMicro(plan.price_usd_micro_per_hour),
            state: WorkerState::Ready,
            model: "model".into(),
            model_digest: "digest".into(),
            numerics: "numerics".into(),
            context_tokens: 4096,
            slots: plan.slots as u32,
            slots_in_use: 0,
            kv_pages: 64,
            kv_pages_free: 64,
            checkpoint_age_ms: 0,
            threads: 1,
            isa: "simulated".into(),
            calibration: Vec::new(),
            prefill_tok_s: 0.0,
            decode_tok_s: (plan.rate_tok_s * plan.claims_percent) as f64 / 100.0,
            counters: WorkerCounters::default(),
            leader_seen: LeaderRevision(0),
            version: String::new(),
            started_at: now,
            at: now,
            mono: ternfleet_proto::MonoMs::default(),
            running: Vec::new(),
            needs_queues: false,
            canary: "c1-same".to_owned(),
            thread_scaling: Vec::new(),
        };
        let node = &mut self.workers[place];
        node.core = Some(Core::new(Config {
            profile,
            slots: plan.slots,
            kv_pages: 64,
            page_tokens: 16,
            checkpoint_tokens: 8,
            checkpoint_every: Duration::from_secs(2),
            heartbeat_every: Duration::from_secs(1),
            lease_every: Duration::from_secs(2),
            held_max: Duration::from_secs(10),
            drain_max: Duration::from_millis(3_500),
            pull_expires: Duration::from_secs(1),
        }));
        let life = Life { place, number: node.lives };
        self.at(0, Occurrence::WorkerTick(life));
        self.at(STEP_MS, Occurrence::EngineStep(life));
    }

    pub(super) fn worker_tick(&mut self, life: Life) {
        if !self.workers[life.place].lives_as(life) {
            return;
        }
        self.at(TICK_MS, Occurrence::WorkerTick(life));
        let node = &self.workers[life.place];
        if node.paused == 0 {
            // As the shell: it looks at its connection at each tick.
            let up = node.cut == 0 && self.server_down == 0;
            if up != std::mem::replace(&mut self.workers[life.place].line_up, up) {
                self.worker_on(life, Event::Bus { up });
            }
            self.worker_on(life, Event::Tick { host: HostFacts::default() });
        }
    }

    pub(super) fn worker_events(&mut self, life: Life, events: Vec<Event>) {
        if !self.workers[life.place].lives_as(life) {
            return;
        }
        if self.workers[life.place].paused > 0 {
            // A stopped process finds everything waiting when it continues.
            self.at(20, Occurrence::WorkerEvents(life, events));
            return;
        }
        for event in events {
            self.worker_on(life, event);
        }
    }

    fn worker_on(&mut self, life: Life, event: Event) {
        let now = self.skewed(self.workers[life.place].skew_ms);
        let Some(core) = self.workers[life.place].core.as_mut() else { return };
        let mut actions = Vec::new();
        core.on(now, event, &mut actions);
        for action in actions {
            self.worker_action(life, action);
        }
    }

    fn worker_action(&mut self, life: Life, action: Action) {
        let call = match action {
            Action::Pull { lane, stream, consumer, max, expires } => {
                Call::Pull { lane, stream, consumer, max, until: self.now.plus(expires) }
            }
            Action::ReadCheckpoint { slot, job, key } => Call::ReadCheckpoint { slot, job, key },
            Action::WriteCheckpoint { slot, checkpoint, key, expect } => {
                Call::WriteCheckpoint { slot, checkpoint, key, expect }
            }
            Action::PublishResult { slot, result } => Call::PublishResult { slot, result },
            Action::ReadResult { slot, tenant, job } => Call::ReadResult { slot, tenant, job },
            Action::Settle { slot, delivery, how } => Call::Settle { slot, delivery, how },
            Action::StartGeneration { slot, work, kept } => {
                return self.start_generation(life, slot, *work, kept);
            }
            Action::CancelGeneration { slot } => {
                if self.workers[life.place].engine.remove(&slot).is_some() {
                    let ended = Event::Ended { slot, end: End::Cancelled };
                    self.at(1, Occurrence::WorkerEvents(life, vec![ended]));
                }
                return;
            }
            Action::SendHeartbeat(mut beat) => {
                let plan = &self.scenario.workers[life.place];
                beat.price_usd_micro_per_hour = UsdMicro(plan.price_usd_micro_per_hour);
                return self.send_beat(life.place, *beat);
            }
            Action::SendTokens(_) => return,
            Action::Note(note) => {
                match note {
                    Note::Fenced { .. } => self.tally.fenced += 1,
                    Note::Duplicate { diverges: true, job } => self.check.diverged(&job),
                    _ => {}
                }
                return;
            }
            Action::Exit => {
                self.workers[life.place].stop();
                return;
            }
        };
        let delay = self.latency();
        self.at(delay, Occurrence::WorkerCall(life, call));
    }

    fn start_generation(&mut self, life: Life, slot: SlotId, work: Work, kept: Kept) {
        let tokens_max = match &work.input {
            Input::Inline(generation) => generation.max_tokens.unwrap_or(1),
            Input::Object(_) => 1,
        };
        let seed = match &work.input {
            Input::Inline(generation) => generation.seed,
            Input::Object(_) => work.job.seed(),
        };
        let mut ids = ids_of(seed, tokens_max);
        self.check.resumed(&work.job, &kept.ids, &ids);
        if self.scenario.workers[life.place].lies
            && let Some(last) = ids.last_mut()
        {
            *last ^= 1;
        }
        let made = kept.ids.len().min(ids.len());
        let killer = self.plans.get(&work.job.batch).and_then(|plan| plan.killer) == Some(work.job.index);
        let generation =
            Generation { job: work.job, made, kept: made as u32, ids, prefill_steps: Some(1), killer };
        self.workers[life.place].engine.insert(slot, generation);
    }

    /// One forward step: every running sequence gets its share of the tokens that are due.
    pub(super) fn engine_step(&mut self, life: Life) {
        if !self.workers[life.place].lives_as(life) {
            return;
        }
        self.at(STEP_MS, Occurrence::EngineStep(life));
        let rate = self.scenario.workers[life.place].rate_tok_s;
        let node = &mut self.workers[life.place];
        if node.paused > 0 || node.engine.is_empty() {
            return;
        }
        node.due += rate * STEP_MS / node.slowed.max(1);
        let each = (node.due / 1000) as usize / node.engine.len();
        if each > 0 {
            node.due = 0;
        }
        let (mut starts, mut made, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let mut ended = Vec::new();
        let mut killed = None;
        let mut steps = Steps { steps: 1, busy: Duration::from_millis(STEP_MS), ..Steps::default() };
        for (slot, generation) in &mut node.engine {
            steps.sequences += 1;
            if let Some(left) = generation.prefill_steps {
                generation.prefill_steps = left.checked_sub(1);
                if generation.prefill_steps.is_none() {
                    steps.prefill_tokens += u64::from(PROMPT_TOKENS + generation.kept);
                    let started =
                        Event::Started { slot: *slot, prompt_tokens: PROMPT_TOKENS, kept: generation.kept };
                    starts.push(started);
                }
                continue;
            }
            let until = (generation.made + each).min(generation.ids.len());
            let ids = generation.ids[generation.made..until].to_vec();
            generation.made = until;
            if generation.killer && generation.made >= KILLER_TOKENS.min(generation.ids.len()) {
                killed = Some(generation.job.clone());
            }
            if !ids.is_empty() {
                steps.decode_tokens += ids.len() as u64;
                made.push((*slot, ids.len() as u32));
                events.push(Event::Tokens { slot: *slot, tokens: Tokens { ids, ..Tokens::default() } });
            }
            if generation.made == generation.ids.len() {
                ended.push(*slot);
            }
        }
        if let Some(job) = killed {
            node.stop();
            self.check.killed(&job);
            self.at(2_000, Occurrence::StartWorker(life.place));
            return;
        }
        for slot in ended {
            let Some(generation) = node.engine.remove(&slot) else { continue };
            let completion = Completion {
                outputs: vec![Output {
                    text: format!("answer to {}", generation.job),
                    finish: Finish::Length,
                    ..Output::default()
                }],
                cached_tokens: 0,
            };
            events.push(Event::Ended { slot, end: End::Complete(Box::new(completion)) });
        }
        starts.push(Event::Steps { steps, made });
        starts.append(&mut events);
        self.worker_events(life, starts);
    }

    /// Heartbeats are core messages: lost with the connection, sometimes doubled.
    fn send_beat(&mut self, place: usize, beat: Heartbeat) {
        if self.workers[place].cut > 0 || self.server_down > 0 {
            return;
        }
        let copies = 1 + u32::from(self.doubling > 0);
        for _ in 0..copies {
            let delay = self.latency();
            self.at(delay, Occurrence::Beat(Box::new(beat.clone())));
        }
    }

    pub(super) fn hear_order(&mut self, to: Option<WorkerId>, control: Control) {
        for place in 0..self.workers.len() {
            let node = &self.workers[place];
            let meant = to.is_none() || to == node.name;
            if let (true, 0, Some(life)) = (meant, node.cut, node.life()) {
                self.worker_events(life, vec![Event::Order(control.clone())]);
            }
        }
    }

    /// At the server: what the request does, and the answer on its way back.
    pub(super) fn worker_call(&mut self, life: Life, call: Call) {
        if !self.workers[life.place].lives_as(life) && !matches!(call, Call::Settle { .. }) {
            // What a dead process had sent may still arrive; what it awaited nobody hears.
            let _ = self.call_outcome(life, call);
            return;
        }
        let Some((delay, events)) = self.call_outcome(life, call) else { return };
        if !events.is_empty() {
            self.at(delay, Occurrence::WorkerEvents(life, events));
        }
    }

    fn call_outcome(&mut self, life: Life, call: Call) -> Option<(u64, Vec<Event>)> {
        let cut = self.workers[life.place].cut > 0;
        match call {
            Call::Pull { lane, stream, consumer, max, until } => {
                if !self.workers[life.place].lives_as(life) {
                    return None;
                }
                let pulled = self.attempt(cut, |net, now| net.pull(now, &stream, &consumer, max));
                let delay = self.answer_delay(&pulled);
                let outcome = match pulled {
                    Ok(deliveries) if deliveries.is_empty() && self.now < until => {
                        let call = Call::Pull { lane, stream, consumer, max, until };
                        self.at(PULL_AGAIN_MS, Occurrence::WorkerCall(life, call));
                        return None;
                    }
                    Ok(deliveries) => {
                        let mut events: Vec<Event> =
                            deliveries.into_iter().map(|delivery| pulled_event(lane, delivery)).collect();
                        events.push(Event::PullEnded { lane, outcome: PullOutcome::Served });
                        return Some((delay, events));
                    }
                    Err(BusError::NotFound(_)) => PullOutcome::QueueGone,
                    Err(_) => PullOutcome::Unreachable,
                };
                Some((delay, vec![Event::PullEnded { lane, outcome }]))
            }
            Call::ReadCheckpoint { slot, job, key } => {
                let subject = table::checkpoint(&job);
                let found =
                    self.attempt(cut, |net, now| net.last_on_subject(now, table::CHECKPOINTS, &subject));
                let delay = self.answer_delay(&found);
                let outcome = match found {
                    Ok(Some(message)) => key
                        .open(&message.payload)
                        .map_or(Read::Unreadable(message.sequence), |c| Read::Found((message.sequence, c))),
                    Ok(None) => Read::Nothing,
                    Err(_) => Read::Unreachable,
                };
                Some((delay, vec![Event::CheckpointRead { slot, outcome }]))
            }
            Call::WriteCheckpoint { slot, checkpoint, key, expect } => {
                let subject = table::checkpoint(&checkpoint.job);
                let (delay, outcome) = self.publish(cut, &subject, key.seal(&checkpoint), expect);
                self.check.checkpoints(&self.net);
                Some((delay, vec![Event::CheckpointWritten { slot, outcome }]))
            }
            Call::PublishResult { slot, result } => {
                let subject = table::result(&result.tenant, &result.job, &result.worker);
                let (delay, outcome) = self.publish(cut, &subject, codec::encode(&*result), 0);
                self.check.results(&self.net);
                Some((delay, vec![Event::ResultWritten { slot, outcome }]))
            }
            Call::ReadResult { slot, tenant, job } => {
                let worker = self.workers[life.place].name.clone()?;
                let subject = table::result(&tenant, &job, &worker);
                let found = self.attempt(cut, |net, now| net.last_on_subject(now, table::RESULTS, &subject));
                let delay = self.answer_delay(&found);
                let outcome = match found {
                    Ok(Some(message)) => codec::decode::<JobResult>(&message.payload)
                        .map_or(Read::Unreadable(message.sequence), Read::Found),
                    Ok(None) => Read::Nothing,
                    Err(_) => Read::Unreachable,
                };
                Some((delay, vec![Event::ResultRead { slot, outcome }]))
            }
            Call::Settle { slot, delivery, how } => {
                let worker_now = self.skewed(self.workers[life.place].skew_ms).wall;
                let acked = matches!(how, Settle::Ack)
                    .then(|| self.net.message(&delivery.stream, delivery.sequence).ok().flatten())
                    .flatten();
                let settled = self.attempt(cut, |net, now| net.settle(now, &delivery, how));
                let gone = self.net.message(&delivery.stream, delivery.sequence).is_ok_and(|m| m.is_none());
                if let Some(message) = acked.filter(|_| gone) {
                    self.check.acked(worker_now, &message.payload);
                }
                let delay = self.answer_delay(&settled);
                let outcome = match settled {
                    Ok(()) | Err(BusError::NotFound(_)) => Settled::Done,
                    Err(_) => Settled::Unreachable,
                };
                let events = slot.map(|slot| vec![Event::Settled { slot, outcome }]).unwrap_or_default();
                Some((delay, events))
            }
        }
    }

    fn publish(&mut self, cut: bool, subject: &str, payload: Bytes, expect: u64) -> (u64, Write) {
        let how = Publish { expect_last_on_subject: Some(expect), ..Publish::default() };
        let stored: Result<_> = self.attempt(cut, |net, now| net.publish(now, subject, payload, &how));
        let delay = self.answer_delay(&stored);
        let outcome = match stored {
            Ok(stored) => Write::Stored(stored.sequence),
            Err(BusError::WrongLastSequence) => Write::Conflict,
            Err(BusError::Full { .. }) => Write::Full,
            Err(_) => Write::Unreachable,
        };
        (delay, outcome)
    }
}

fn pulled_event(lane: Lane, mut delivery: Delivery) -> Event {
    let work = codec::decode::<Work>(&delivery.payload).map(Box::new);
    let work = work.map_err(|fault| Undecodable { reason: fault.to_string(), identity: None });
    delivery.payload = Bytes::new();
    Event::WorkPulled { lane, delivery, work }
}
