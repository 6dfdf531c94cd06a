//! A coordinator that starts on a batch half answered, and a standby that takes over.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ternfleet_proto::bus::{Bus, Publish};
use ternfleet_proto::message::{Finish, Generated, JobResult, Line, Outcome, Timing, Usage};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{Attempt, BatchId, Epoch, JobKey, TimeMs, WorkerId, codec};

use super::peak_mib;
use crate::caller::{Client, prompts};
use crate::instant::{InstantWorker, Manner};
use crate::program;
use crate::server::NatsServer;

/// A coordinator process beside the others of this fleet.
struct Coordinator(std::process::Child);

impl Coordinator {
    fn start(server: &NatsServer, name: &str, savepoint_ms: u32) -> anyhow::Result<Coordinator> {
        let mut command = program::command(&["coordinator", "--nats", &server.url(), "--name", name])?;
        for quota in ["QUEUED_LINES_MAX", "QUEUED_BYTES_MAX", "QUEUED_TOKENS_MAX", "STORED_BYTES_MAX"] {
            command.env(format!("TERNFLEET_QUOTAS__{quota}"), "4000000000");
        }
        command.env("TERNFLEET_SAVEPOINT_MS", savepoint_ms.to_string());
        Ok(Coordinator(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A batch of so many lines, every other one answered; then a coordinator starts from nothing.
///
/// # Errors
/// When the fleet does not work.
pub async fn restart(lines: u32) -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let bus = server.bus().await?;
    let client = Client::new(Arc::clone(&bus));
    // A small batch is saved sooner, so that it has not ended by then.
    let savepoint_ms = (lines / 20).clamp(5_000, 60_000);
    let first = Coordinator::start(&server, "first", savepoint_ms)?;
    let view = client.submit("input", prompts(lines as usize)).await;
    client.wait(&view.id, "the input to be looked through", |view| view.total_is_final).await;
    drop(first);
    answer_half(&bus, &view.id, lines).await?;

    let manner = Manner { slots: 4, takes: Duration::from_millis(20), ..Manner::default() };
    let worker = InstantWorker::start(server.bus().await?, "one", manner.clone()).await;
    let began = Instant::now();
    let second = Coordinator::start(&server, "second", savepoint_ms)?;
    let seen = client.wait(&view.id, "a leader", |view| view.completed >= lines / 2).await;
    let answered = began.elapsed();
    client.wait(&view.id, "work", |view| view.completed > seen.completed.max(lines / 2)).await;
    println!(
        "{lines} lines, half of them answered: all booked after {answered:?}, back at work after {:?}; the coordinator \
         held {} MiB at most",
        began.elapsed(),
        peak_mib(second.0.id())
    );
    // The same with a savepoint of the last minute.
    drop(worker);
    let head = format!("savepoint-{}", view.id);
    while bus.object_length(table::LEDGER, &head).await?.is_none() {
        ensure!(began.elapsed() < Duration::from_secs(300), "nothing was saved");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(second);
    let before = stored_answers(&bus).await?;
    let _worker = InstantWorker::start(server.bus().await?, "two", manner).await;
    let began = Instant::now();
    let third = Coordinator::start(&server, "third", savepoint_ms)?;
    let seen = client.wait(&view.id, "a leader", |view| view.completed >= lines / 2).await;
    let answered = began.elapsed();
    client.wait(&view.id, "work", |view| view.completed > seen.completed).await;
    println!(
        "with a savepoint, of {before} messages in RESULTS: all booked after {answered:?}, back at work after {:?}; the \
         coordinator held {} MiB at most",
        began.elapsed(),
        peak_mib(third.0.id())
    );
    Ok(())
}

async fn stored_answers(bus: &Arc<dyn Bus>) -> anyhow::Result<u64> {
    Ok(bus.stream_facts(table::RESULTS).await?.messages)
}

/// Answers every other line as a worker would have: with the tags that the fleet's key makes.
async fn answer_half(bus: &Arc<dyn Bus>, id: &BatchId, lines: u32) -> anyhow::Result<()> {
    let entry = bus.kv_get(table::KV_CONTROL, "assignment_key").await?.context("the fleet has no key")?;
    let key: AssignmentKey = codec::decode(&entry.value)?;
    let worker: WorkerId = "earlier".parse()?;
    let epoch = Epoch(1 << 12);
    let mut waiting = std::collections::VecDeque::new();
    for index in (0..lines).step_by(2) {
        let job = JobKey { batch: id.clone(), index };
        let result = JobResult {
            tag: key.sign(&job, epoch, &worker),
            tenant: ternfleet_proto::TenantId::default_tenant(),
            epoch,
            attempt: Attempt(1),
            worker: worker.clone(),
            line: Line::new(Some(format!("c{index}")), Endpoint::Completions, None),
            outcome: Outcome::Text(Generated {
                text: "an answer of the usual length, some sixteen tokens of it or so".to_owned(),
                finish: Finish::Stop,
                ids_digest: u64::from(index),
                ..Generated::default()
            }),
            usage: Usage { prompt_tokens: 5, completion_tokens: 16, ..Usage::default() },
            timing: Timing::default(),
            nondeterministic: false,
            finished_at: TimeMs::now(),
            traceparent: None,
            job,
            rejected: None,
        };
        let subject = table::result(&result.tenant, &result.job, &worker);
        waiting.push_back(bus.enqueue(&subject, codec::encode(&result), Publish::default()).await?);
        if waiting.len() > 2_000
            && let Some(ack) = waiting.pop_front()
        {
            ack.await?;
        }
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(())
}

/// The leader is killed with -9 in the middle of a batch: how long until the standby answers, and until work continues.
///
/// # Errors
/// When the fleet does not work.
pub async fn takeover() -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let client = Client::new(server.bus().await?);
    let manner =
        Manner { slots: 8, takes: Duration::from_millis(20), rate_tok_s: 5_000.0, ..Manner::default() };
    let worker = InstantWorker::start(server.bus().await?, "one", manner).await;
    let leader = Coordinator::start(&server, "leader", 60_000)?;
    let view = client.submit("input", prompts(20_000)).await;
    client.wait(&view.id, "work", |view| view.completed > 100).await;
    let standby = Coordinator::start(&server, "standby", 60_000)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(leader);
    let killed = Instant::now();
    // Asked again and again: a question that comes while nobody leads is never answered.
    let answered = loop {
        let asked = client
            .bus
            .request(&table::api(ApiVerb::Pods), codec::encode(&()), Duration::from_millis(100))
            .await;
        if asked.is_ok() {
            break killed.elapsed();
        }
        ensure!(killed.elapsed() < Duration::from_secs(60), "nobody leads");
    };
    // What the worker still had ends within its window; only then does the standby's own work show.
    let before = worker.done();
    let handed = loop {
        let view = client.get(&view.id).await;
        if u64::from(view.completed) > before + 100 || killed.elapsed() > Duration::from_secs(60) {
            break killed.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    println!("leader killed: the standby answers after {answered:?}, a hundred jobs later after {handed:?}");
    drop(standby);
    Ok(())
}
