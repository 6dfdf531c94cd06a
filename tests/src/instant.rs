//! A worker that answers at once: the whole protocol of a worker, no engine.

#![allow(clippy::unwrap_used, missing_docs)] // A helper of tests: it may panic as they may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use ternfleet_proto::bus::{Bus, BusError, Delivery, Publish, Settle};
use ternfleet_proto::message::{
    Checkpoint, Control, Failure, FailureCode, Finish, Generated, Heartbeat, Input, JobResult, Order,
    Outcome, Prompt, RatePoint, Timing, Usage, Work, WorkerCounters, WorkerState,
};
use ternfleet_proto::{Attempt, JobKey, LeaderRevision, TimeMs, UsdMicro, WorkerId, codec, table};
use tokio_util::sync::CancellationToken;

/// How it behaves.
#[derive(Debug, Clone)]
pub struct Manner {
    pub host: String,
    pub slots: u32,
    pub rate_tok_s: f64,
    pub price: UsdMicro,
    /// Writes claims, as a real worker does.
    pub claims: bool,
    /// Time that each job takes.
    pub takes: Duration,
    /// Each takes between half and one and a half times as long, by its name: jobs that began together do not end together.
    pub varies: bool,
    pub model: String,
    /// Reports a fault on this prompt.
    pub faults_on: Option<String>,
    /// Answers with one word, whatever the prompt's length.
    pub brief: bool,
    /// Told of each job as it is pulled, and how long ago the server has stored its message.
    pub seen: Option<Seen>,
    /// Told of each job as its answer is stored, and for how long it was here.
    pub answered: Option<Seen>,
    /// Beats this often.
    pub beats_every: Duration,
    /// Waits so long for work at a time.
    pub pulls_for: Duration,
    /// Writes a checkpoint this often while a job runs.
    pub checkpoints_every: Duration,
}

/// What is to be done with a job.
#[derive(Clone)]
pub struct Seen(pub Arc<Told>);

type Told = dyn Fn(&JobKey, Duration) + Send + Sync;

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seen")
    }
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            host: "host-a".to_owned(),
            slots: 64,
            rate_tok_s: 100_000.0,
            price: UsdMicro(340_000),
            claims: true,
            takes: Duration::ZERO,
            varies: false,
            model: "instant".to_owned(),
            faults_on: None,
            brief: false,
            seen: None,
            answered: None,
            beats_every: Duration::from_millis(250),
            pulls_for: Duration::from_millis(500),
            checkpoints_every: Duration::MAX,
        }
    }
}

#[derive(Debug)]
struct Shared {
    done: AtomicU64,
    running: AtomicU32,
    leader: AtomicU64,
    pulling: AtomicBool,
}

/// Stops when dropped, as by kill -9: without a word.
#[derive(Debug)]
pub struct InstantWorker {
    pub id: WorkerId,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for InstantWorker {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl InstantWorker {
    pub async fn start(bus: Arc<dyn Bus>, name: &str, manner: Manner) -> Self {
        let id: WorkerId = name.parse().unwrap();
        let shared = Arc::new(Shared {
            done: AtomicU64::new(0),
            running: AtomicU32::new(0),
            leader: AtomicU64::new(0),
            pulling: AtomicBool::new(false),
        });
        let stop = CancellationToken::new();
        let mut orders = bus.subscribe(&table::control(&id)).await.unwrap();
        let beat = tokio::spawn(beat(Arc::clone(&bus), id.clone(), manner.clone(), Arc::clone(&shared)));
        let (work_bus, work_id, work_shared) = (Arc::clone(&bus), id.clone(), Arc::clone(&shared));
        let listen = tokio::spawn(async move {
            let mut pullers = tokio::task::JoinSet::new();
            while let Some(note) = orders.next().await {
                let Ok(control) = codec::decode::<Control>(&note.payload) else { continue };
                let Order::Assigned { shard, interactive, batch } = control.order else { continue };
                work_shared.leader.store(control.leader.0, Ordering::Relaxed);
                if work_shared.pulling.swap(true, Ordering::Relaxed) {
                    continue;
                }
                for consumer in [interactive, batch] {
                    pullers.spawn(pull(
                        Arc::clone(&work_bus),
                        work_id.clone(),
                        table::work_stream(shard),
                        consumer,
                        manner.clone(),
                        Arc::clone(&work_shared),
                    ));
                }
            }
        });
        Self { id, shared, stop, tasks: vec![beat, listen] }
    }

    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// It has its queues.
    pub fn is_pulling(&self) -> bool {
        self.shared.pulling.load(Ordering::Relaxed)
    }
}

/// The heartbeat of a worker that has just started and has its queues.
pub fn first_beat(id: &WorkerId, manner: &Manner, now: TimeMs) -> Heartbeat {
    Heartbeat {
        worker: id.clone(),
        pod: format!("pod-{id}"),
        host: manner.host.clone(),
        pod_class: "test".to_owned(),
        price_usd_micro_per_hour: manner.price,
        state: WorkerState::Ready,
        model: manner.model.clone(),
        model_digest: format!("digest-of-{}", manner.model),
        numerics: "test-1".to_owned(),
        context_tokens: 4096,
        slots: manner.slots,
        slots_in_use: 0,
        kv_pages: 0,
        kv_pages_free: 0,
        checkpoint_age_ms: 0,
        threads: 1,
        isa: "scalar".to_owned(),
        calibration: vec![RatePoint { batch: 1, tok_s: manner.rate_tok_s }],
        prefill_tok_s: manner.rate_tok_s,
        decode_tok_s: manner.rate_tok_s,
        counters: WorkerCounters::default(),
        leader_seen: LeaderRevision(0),
        version: "test".to_owned(),
        started_at: now,
        at: now,
        mono: ternfleet_proto::MonoMs::default(),
        running: Vec::new(),
        needs_queues: false,
        canary: String::new(),
        thread_scaling: Vec::new(),
        abilities: Default::default(),
    }
}

async fn beat(bus: Arc<dyn Bus>, id: WorkerId, manner: Manner, shared: Arc<Shared>) {
    let first = first_beat(&id, &manner, TimeMs::now());
    loop {
        let done = shared.done.load(Ordering::Relaxed);
        let heartbeat = Heartbeat {
            slots_in_use: shared.running.load(Ordering::Relaxed).min(manner.slots),
            counters: WorkerCounters { jobs_done: done, ..WorkerCounters::default() },
            leader_seen: LeaderRevision(shared.leader.load(Ordering::Relaxed)),
            at: TimeMs::now(),
            needs_queues: !shared.pulling.load(Ordering::Relaxed),
            ..first.clone()
        };
        let _ = bus.send(&table::heartbeat(&id), codec::encode(&heartbeat)).await;
        tokio::time::sleep(manner.beats_every).await;
    }
}

async fn pull(
    bus: Arc<dyn Bus>,
    id: WorkerId,
    stream: String,
    consumer: String,
    manner: Manner,
    shared: Arc<Shared>,
) {
    let manner = Arc::new(manner);
    let slots = Arc::new(tokio::sync::Semaphore::new(manner.slots as usize));
    // Four slots' worth is here at a time: what runs, and what comes next.
    let room = manner.slots as usize * 4;
    let mut jobs = tokio::task::JoinSet::new();
    loop {
        while jobs.try_join_next().is_some() {}
        if jobs.len() > room / 2 {
            jobs.join_next().await;
            continue;
        }
        let pulled = bus.pull(&stream, &consumer, room - jobs.len(), manner.pulls_for).await;
        let Ok(deliveries) = pulled else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for delivery in deliveries {
            let Ok(work) = codec::decode::<Work>(&delivery.payload) else {
                let _ = bus.settle(&delivery, Settle::Term).await;
                continue;
            };
            if let Some(seen) = &manner.seen {
                (seen.0)(&work.job, stored_ago(&delivery));
            }
            let (bus, id, shared) = (Arc::clone(&bus), id.clone(), Arc::clone(&shared));
            let (manner, slots, pulled) = (Arc::clone(&manner), Arc::clone(&slots), Instant::now());
            jobs.spawn(async move {
                let held = hold(&bus, &delivery);
                let ran = async {
                    let _slot = slots.acquire().await.unwrap();
                    shared.running.fetch_add(1, Ordering::Relaxed);
                    run(&bus, &id, &manner, &shared, work, &delivery, pulled).await;
                    shared.running.fetch_sub(1, Ordering::Relaxed);
                };
                tokio::select! {
                    () = ran => {}
                    () = held => {}
                }
            });
        }
    }
}

/// Keeps the message from coming again while its job waits or runs here, however long that takes.
async fn hold(bus: &Arc<dyn Bus>, delivery: &Delivery) {
    loop {
        tokio::time::sleep(table::ACK_WAIT / 3).await;
        let _ = bus.settle(delivery, Settle::Progress).await;
    }
}

/// By the server's clock, which is that of this machine.
fn stored_ago(delivery: &Delivery) -> Duration {
    // `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>`
    let stored_ns = delivery.reply.split('.').nth(7).and_then(|text| text.parse().ok()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(stored_ns))
}

fn time_of(manner: &Manner, work: &Work) -> Duration {
    if !manner.varies {
        return manner.takes;
    }
    manner.takes.mul_f64(0.5 + (work.job.seed() % 1024) as f64 / 1024.0)
}

/// Claim, answer, ack: in this order.
async fn run(
    bus: &Arc<dyn Bus>,
    id: &WorkerId,
    manner: &Manner,
    shared: &Shared,
    work: Work,
    delivery: &Delivery,
    pulled: Instant,
) {
    let claimed = if manner.claims { claim(bus, id, manner, &work).await } else { Some(0) };
    let Some(mut claimed) = claimed else {
        let _ = bus.settle(delivery, Settle::Ack).await;
        return;
    };
    let mut left = time_of(manner, &work);
    while !left.is_zero() {
        let step = left.min(manner.checkpoints_every);
        tokio::time::sleep(step).await;
        left -= step;
        if !left.is_zero() && manner.claims {
            let next = write_checkpoint(bus, id, manner, &work, Attempt(1), claimed, false).await;
            let Some(next) = next else {
                let _ = bus.settle(delivery, Settle::Ack).await;
                return;
            };
            claimed = next;
        }
    }
    let mut result = answer(id, &work, manner.brief);
    if let Some(prompt) = &manner.faults_on
        && matches!(&work.input, Input::Inline(generation) if generation.prompt == Prompt::Text(prompt.clone()))
    {
        let message = "this prompt is doomed here".to_owned();
        result.outcome = Outcome::Failed(Failure { code: FailureCode::WorkerFault, message });
    }
    let subject = table::result(&work.tenant, &work.job, id);
    let how = Publish { expect_last_on_subject: Some(0), ..Publish::default() };
    let stored = match bus.enqueue(&subject, codec::encode(&result), how).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match stored {
        Ok(_) | Err(BusError::WrongLastSequence) => {
            shared.done.fetch_add(1, Ordering::Relaxed);
            if let Some(answered) = &manner.answered {
                (answered.0)(&work.job, pulled.elapsed());
            }
            let _ = bus.settle(delivery, Settle::Ack).await;
        }
        Err(_) => {
            let _ = bus.settle(delivery, Settle::Nak(Duration::from_millis(100))).await;
        }
    }
}

/// As a real worker does: at first as if nobody had claimed the job before, and only after that failed by looking.
async fn claim(bus: &Arc<dyn Bus>, id: &WorkerId, manner: &Manner, work: &Work) -> Option<u64> {
    if work.attempts_before.0 == 0
        && let Some(claimed) = claim_after(bus, id, manner, work, None).await
    {
        return Some(claimed);
    }
    let subject = table::checkpoint(&work.job);
    let last = bus.last_on_subject(table::CHECKPOINTS, &subject).await.ok()?;
    claim_after(bus, id, manner, work, last).await
}

async fn claim_after(
    bus: &Arc<dyn Bus>,
    id: &WorkerId,
    manner: &Manner,
    work: &Work,
    last: Option<ternfleet_proto::bus::Message>,
) -> Option<u64> {
    let before = last.as_ref().and_then(|m| work.checkpoint_key.open(&m.payload));
    if before.as_ref().is_some_and(|before| before.epoch > work.epoch) {
        return None;
    }
    let attempt = Attempt(before.map_or(0, |before| before.attempt.0) + 1);
    write_checkpoint(bus, id, manner, work, attempt, last.map_or(0, |last| last.sequence), true).await
}

/// Over the one at this sequence alone; its own sequence.
async fn write_checkpoint(
    bus: &Arc<dyn Bus>,
    id: &WorkerId,
    manner: &Manner,
    work: &Work,
    attempt: Attempt,
    after: u64,
    claim: bool,
) -> Option<u64> {
    let checkpoint = Checkpoint {
        job: work.job.clone(),
        epoch: work.epoch,
        tag: Some(work.tag),
        attempt,
        owner: id.clone(),
        host: manner.host.clone(),
        leader: work.leader,
        model_digest: work.model_digest.clone(),
        numerics: work.numerics.clone(),
        generated: Vec::new(),
        logprobs: Vec::new(),
        choices: Vec::new(),
        generated_by: None,
        text: String::new(),
        claim,
        released: false,
        at: TimeMs::now(),
    };
    let how = Publish { expect_last_on_subject: Some(after), ..Publish::default() };
    let stored = bus.publish(&table::checkpoint(&work.job), work.checkpoint_key.seal(&checkpoint), how).await;
    stored.ok().map(|stored| stored.sequence)
}

/// The prompt, backwards: the same on every worker.
fn answer(id: &WorkerId, work: &Work, brief: bool) -> JobResult {
    let prompt = match &work.input {
        _ if brief => "ko".to_owned(),
        Input::Inline(generation) => match &generation.prompt {
            Prompt::Text(text) => text.clone(),
            other => format!("{other:?}"),
        },
        Input::Object(name) => name.clone(),
    };
    let text: String = prompt.chars().rev().collect();
    let ids: Vec<u32> = text.chars().map(u32::from).collect();
    JobResult {
        job: work.job.clone(),
        tenant: work.tenant.clone(),
        epoch: work.epoch,
        attempt: Attempt(work.attempts_before.0 + 1),
        worker: id.clone(),
        tag: work.tag,
        line: work.line.clone(),
        outcome: Outcome::Text(Generated {
            ids_digest: Generated::digest_of(&ids),
            text,
            finish: Finish::Stop,
            ..Generated::default()
        }),
        usage: Usage { prompt_tokens: 5, completion_tokens: 10, ..Usage::default() },
        timing: Timing::default(),
        nondeterministic: false,
        finished_at: TimeMs::now(),
        traceparent: None,
        rejected: None,
    }
}
