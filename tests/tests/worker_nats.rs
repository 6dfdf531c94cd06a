//! The worker against a real nats-server: from the queue to the result, drain, and what a `kill -9` costs.
//!
//! The part of the coordinator is played by a few lines here: it makes the queues, sends work, reads results. The
//! engine makes its letters up, so that only the worker and the bus are tested.

#[path = "worker_nats/upstream.rs"]
mod upstream;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use ternfleet_proto::bus::{BusStream, Note, Publish, Replayed};
use ternfleet_proto::message::{
    Checkpoint, Control, Generated, Generation, Heartbeat, Input, JobResult, Line, Order, Outcome, Prompt,
    TokenChunk, Work, WorkerState,
};
use ternfleet_proto::nats::{ConnectOptions, connect};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{Attempt, Bus, Epoch, JobKey, Lane, LeaderRevision, TenantId, WorkerId, codec, table};
use ternfleet_tests::hostile;
use ternfleet_tests::server::NatsServer;
use ternfleet_worker::Options;
use tokio_util::sync::CancellationToken;

const KEY: AssignmentKey = AssignmentKey([7; 32]);
/// Set in the environment of a child: the server that it works for.
const CHILD_URL: &str = "TERNFLEET_TEST_WORKER_URL";
const STEP_MS: u64 = 4;
const SLOTS: usize = 4;
const CHECKPOINT_TOKENS: usize = 32;

fn options(engine: &str) -> Options {
    Options {
        engine: engine.to_owned(),
        slots: Some(SLOTS),
        calibrate_ms: 0,
        heartbeat_ms: 200,
        checkpoint_tokens: CHECKPOINT_TOKENS,
        ..Options::default()
    }
}

/// The coordinator's part.
struct Desk {
    bus: Arc<dyn Bus>,
    beats: BusStream<Note>,
}

impl Desk {
    async fn open(server: &NatsServer) -> anyhow::Result<Desk> {
        let bus = server.bus().await?;
        for spec in table::streams(1) {
            bus.ensure_stream(&spec).await?;
        }
        bus.ensure_stream(&table::work_stream_spec(0, 1)).await?;
        let beats = bus.subscribe(table::heartbeats()).await?;
        Ok(Desk { bus, beats })
    }

    /// Waits for a heartbeat that fits.
    async fn beat(&mut self, fits: impl Fn(&Heartbeat) -> bool) -> anyhow::Result<Heartbeat> {
        let found = async {
            while let Some(note) = self.beats.next().await {
                let beat: Heartbeat = codec::decode(&note.payload)?;
                if fits(&beat) {
                    return Ok(beat);
                }
            }
            bail!("the subscription ended")
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.context("no such heartbeat came")?
    }

    /// Makes the queues of a worker that has not been seen before.
    async fn welcome(&mut self, known: &[WorkerId]) -> anyhow::Result<WorkerId> {
        let beat =
            self.beat(|beat| beat.state == WorkerState::Ready && !known.contains(&beat.worker)).await?;
        let consumers = table::work_consumers(0, &beat.worker);
        for spec in &consumers {
            self.bus.ensure_consumer(spec).await?;
        }
        let [interactive, batch] = consumers.map(|spec| spec.name);
        self.tell(&beat.worker, Order::Assigned { shard: 0, interactive, batch }).await?;
        Ok(beat.worker)
    }

    async fn tell(&self, worker: &WorkerId, order: Order) -> anyhow::Result<()> {
        let control = Control { leader: LeaderRevision(1), order };
        Ok(self.bus.send(&table::control(worker), codec::encode(&control)).await?)
    }

    async fn hand(
        &self,
        worker: &WorkerId,
        index: u32,
        epoch: u32,
        tokens: u32,
        lane: Lane,
    ) -> anyhow::Result<()> {
        let work = work(worker, index, epoch, tokens, lane);
        let how =
            Publish { message_id: Some(table::work_message_id(&work.job, work.epoch)), ..Publish::default() };
        self.bus.publish(&table::work(0, worker, lane), codec::encode(&work), how).await?;
        Ok(())
    }

    /// The first `count` results, in the order of the stream.
    async fn results(&self, count: usize) -> anyhow::Result<Vec<JobResult>> {
        let mut replay = self.bus.replay(table::RESULTS, table::results_all(), 1).await?;
        let mut results = Vec::new();
        let gather = async {
            while results.len() < count {
                match replay.next().await.context("the replay ended")?? {
                    Replayed::Message(message) => results.push(codec::decode::<JobResult>(&message.payload)?),
                    Replayed::CaughtUp => {}
                }
            }
            anyhow::Ok(())
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), gather).await;
        outcome.with_context(|| format!("{} of {count} results came", results.len()))??;
        Ok(results)
    }

    async fn until_the_queue_holds(&self, messages: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let held = self.bus.stream_facts(&table::work_stream(0)).await?.messages;
            if held == messages {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the queue holds {held} messages, not {messages}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn checkpoint(&self, index: u32) -> anyhow::Result<Option<Checkpoint>> {
        let found = self.bus.last_on_subject(table::CHECKPOINTS, &table::checkpoint(&job(index))).await?;
        Ok(found.map(|message| codec::decode(&message.payload)).transpose()?)
    }
}

fn job(index: u32) -> JobKey {
    JobKey { batch: "batch_test".parse().expect("because it is an id"), index }
}

fn work(worker: &WorkerId, index: u32, epoch: u32, tokens: u32, lane: Lane) -> Work {
    let job = job(index);
    Work {
        tenant: TenantId::default_tenant(),
        lane,
        epoch: Epoch(epoch),
        attempts_before: Attempt(epoch - 1),
        leader: LeaderRevision(1),
        tag: KEY.sign(&job, Epoch(epoch), worker),
        model_digest: "instant".to_owned(),
        numerics: "instant".to_owned(),
        deadline: None,
        left_ms: None,
        checkpoint_key: KEY.checkpoint_key(&job),
        tokens_estimate: tokens + 4,
        line: Line::new(Some(format!("line-{index}")), Endpoint::Completions, None),
        input: Input::Inline(Generation {
            prompt: Prompt::Text("once".to_owned()),
            max_tokens: Some(tokens),
            seed: u64::from(index),
            stream: true,
            ..Generation::default()
        }),
        traceparent: None,
        job,
    }
}

/// The text that an uninterrupted run gives.
fn expected(index: u32, tokens: usize) -> String {
    use ternfleet_worker::generator::{Generator as _, Instant as Engine};
    let mut engine = Engine::new(Duration::ZERO);
    let request = ternfleet_engine::Request {
        prompt: vec![1],
        max_new_tokens: tokens,
        seed: u64::from(index),
        ..Default::default()
    };
    engine.submit(request).expect("because it fits");
    let mut events = Vec::new();
    engine.step(&mut events);
    let token = |event: &ternfleet_engine::Event| match event {
        ternfleet_engine::Event::Token { token, .. } => char::from_u32(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn text(result: &JobResult) -> &str {
    match &result.outcome {
        Outcome::Text(generated) => &generated.text,
        Outcome::Failed(failure) => panic!("{} failed: {}", result.job, failure.message),
    }
}

fn start_worker(
    bus: Arc<dyn Bus>,
    options: Options,
) -> (CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(ternfleet_worker::run(bus, options, shutdown.clone()));
    (shutdown, running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_go_from_the_queue_to_results_and_leave_the_queue() -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let mut desk = Desk::open(&server).await?;
    let (shutdown, running) = start_worker(server.bus().await?, options("instant"));
    let worker = desk.welcome(&[]).await?;
    for index in 0..60 {
        let lane = if index % 5 == 0 { Lane::Interactive } else { Lane::Batch };
        desk.hand(&worker, index, 1, 20, lane).await?;
    }
    let results = desk.results(60).await?;
    desk.until_the_queue_holds(0).await?;
    for result in &results {
        assert_eq!(text(result), expected(result.job.index, 20));
        assert!(KEY.verifies(result.tag, &result.job, result.epoch, &result.worker));
        assert_eq!((result.usage.prompt_tokens, result.usage.completion_tokens), (4, 20));
    }
    let beat = desk.beat(|beat| beat.counters.jobs_done == 60).await?;
    assert_eq!((beat.counters.duplicates, beat.counters.undecodable_messages), (0, 0));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(4), running).await???;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_leaves_released_checkpoints_and_messages_within_four_seconds() -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let mut desk = Desk::open(&server).await?;
    let (shutdown, running) = start_worker(server.bus().await?, options("instant:20"));
    let worker = desk.welcome(&[]).await?;
    for index in 0..SLOTS as u32 {
        desk.hand(&worker, index, 1, 2000, Lane::Batch).await?;
    }
    desk.beat(|beat| beat.running.iter().filter(|r| r.generated > 40).count() == SLOTS).await?;
    let asked = Instant::now();
    shutdown.cancel();
    running.await??;
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    desk.beat(|beat| beat.state == WorkerState::Gone).await?;
    for index in 0..SLOTS as u32 {
        let checkpoint = desk.checkpoint(index).await?.context("no checkpoint")?;
        assert!(checkpoint.released && checkpoint.generated.len() > 40);
    }
    desk.until_the_queue_holds(SLOTS as u64).await?;

    // Another worker continues from there, and comes to the same text.
    let (shutdown, running) = start_worker(server.bus().await?, options("instant"));
    let second = desk.welcome(std::slice::from_ref(&worker)).await?;
    for index in 0..SLOTS as u32 {
        desk.hand(&second, index, 2, 2000, Lane::Batch).await?;
    }
    for result in desk.results(SLOTS).await? {
        assert_eq!(text(&result), expected(result.job.index, 2000));
        assert!(result.usage.reprefilled_tokens > 40 && result.usage.repeated_tokens == 0);
    }
    shutdown.cancel();
    running.await??;
    Ok(())
}

/// A liar that was given a job leaves a checkpoint in good form: whoever continues the job computes what is in it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liars_checkpoint_is_dropped_by_whoever_continues_its_job_and_the_liar_is_named()
-> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let mut desk = Desk::open(&server).await?;
    let liar: WorkerId = "liar".parse()?;
    // Some output, all of it, and more than there may be.
    for (index, tokens) in [(0, 50), (1, 200), (2, 300)] {
        let given = work(&liar, index, 1, 200, Lane::Batch);
        let (subject, payload) = hostile::poisoned_checkpoint(&liar, &given, tokens);
        desk.bus.publish(&subject, payload, Publish::default()).await?;
    }
    let (shutdown, running) = start_worker(server.bus().await?, options("instant"));
    let honest = desk.welcome(&[]).await?;
    for index in 0..3 {
        desk.hand(&honest, index, 2, 200, Lane::Batch).await?;
    }
    for result in desk.results(3).await? {
        assert_eq!(text(&result), expected(result.job.index, 200), "as if there had been no liar");
        assert_eq!(result.rejected.as_ref().map(|author| &author.worker), Some(&liar));
        assert!(result.usage.repeated_tokens >= 50, "{:?}", result.usage);
    }
    shutdown.cancel();
    running.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_message_stops_nobody() -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let mut desk = Desk::open(&server).await?;
    let (shutdown, running) = start_worker(server.bus().await?, options("instant"));
    let worker = desk.welcome(&[]).await?;
    let subject = table::work(0, &worker, Lane::Batch);
    for rubbish in [&b""[..], b"\xff\xff\xff", b"\x81\xa3job", b"{\"job\":1}"] {
        desk.bus.publish(&subject, rubbish.to_vec().into(), Publish::default()).await?;
        desk.bus.send(&table::control(&worker), rubbish.to_vec().into()).await?;
    }
    desk.hand(&worker, 0, 1, 5, Lane::Batch).await?;
    assert_eq!(text(&desk.results(1).await?[0]), expected(0, 5));
    desk.beat(|beat| beat.counters.undecodable_messages == 4).await?;
    desk.until_the_queue_holds(0).await?;
    shutdown.cancel();
    running.await??;
    Ok(())
}

/// Not a test of its own: the process that the kill test kills. Without the variable it returns at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_worker() -> anyhow::Result<()> {
    let Ok(url) = std::env::var(CHILD_URL) else { return Ok(()) };
    let bus = connect(&ConnectOptions { url, name: "child".to_owned(), ..ConnectOptions::default() }).await?;
    ternfleet_worker::run(bus, options(&format!("instant:{STEP_MS}")), CancellationToken::new()).await
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_costs_at_most_k_tokens_a_slot_and_those_of_a_round_trip() -> anyhow::Result<()> {
    const TOKENS: u32 = 400;
    let server = NatsServer::start()?;
    let mut desk = Desk::open(&server).await?;
    let mut streams = Vec::new();
    for index in 0..SLOTS as u32 {
        streams.push(desk.bus.subscribe(&table::tokens(&job(index))).await?);
    }
    let child = Command::new(std::env::current_exe()?)
        .args(["--exact", "child_worker", "--nocapture"])
        .env(CHILD_URL, server.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut child = KilledOnDrop(child);
    let first = desk.welcome(&[]).await?;
    for index in 0..SLOTS as u32 {
        desk.hand(&first, index, 1, TOKENS, Lane::Batch).await?;
    }
    desk.beat(|beat| beat.running.iter().filter(|r| r.generated > 150).count() == SLOTS).await?;
    child.0.kill()?;
    child.0.wait()?;

    let (shutdown, running) = start_worker(server.bus().await?, options("instant"));
    let second = desk.welcome(std::slice::from_ref(&first)).await?;
    for index in 0..SLOTS as u32 {
        desk.hand(&second, index, 2, TOKENS, Lane::Batch).await?;
    }
    let results = desk.results(SLOTS).await?;
    for result in &results {
        assert_eq!(text(result), expected(result.job.index, TOKENS as usize), "as without the kill");
        let Outcome::Text(Generated { ids_digest, .. }) = &result.outcome else { bail!("no text") };
        let ids: Vec<u32> = expected(result.job.index, TOKENS as usize).chars().map(u32::from).collect();
        assert_eq!(*ids_digest, Generated::digest_of(&ids));
    }
    let mut twice = BTreeMap::new();
    for (index, stream) in streams.iter_mut().enumerate() {
        twice.insert(index, generated_twice(stream, TOKENS).await?);
    }
    // Steps that fit into a slow round trip of this busy machine; the first bound is the promise's k.
    let round_trip_tokens = 200 / STEP_MS as u32;
    println!("tokens generated twice, by slot: {twice:?} (k = {CHECKPOINT_TOKENS})");
    for tokens in twice.values() {
        assert!(*tokens <= CHECKPOINT_TOKENS as u32 + round_trip_tokens, "{twice:?}");
    }
    shutdown.cancel();
    running.await??;
    Ok(())
}

/// Positions that both epochs streamed. The chunks of the second epoch join on without a gap.
async fn generated_twice(stream: &mut BusStream<Note>, tokens: u32) -> anyhow::Result<u32> {
    let (mut first_end, mut second_start, mut second_end) = (0, None, 0);
    while second_end < tokens {
        let next = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
        let note =
            next.with_context(|| format!("the stream stopped at {second_end}"))?.context("it ended")?;
        let chunk: TokenChunk = codec::decode(&note.payload)?;
        if chunk.epoch == Epoch(1) {
            assert_eq!(chunk.position, first_end, "no gap and no repeat");
            first_end = chunk.position + chunk.count;
        } else {
            let expected = *second_start.get_or_insert(chunk.position);
            assert_eq!(
                chunk.position,
                if second_end == 0 { expected } else { second_end },
                "no gap and no repeat"
            );
            second_end = chunk.position + chunk.count;
        }
    }
    Ok(first_end.saturating_sub(second_start.unwrap_or(0)))
}
