//! Nothing that was accepted is forgotten when its leader goes, or is paused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ternfleet_coordinator::Options;
use ternfleet_coordinator::core::{BatchFacts, BatchRecord};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{BatchList, BatchOptions, BatchState, BatchView, Durability};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TimeMs, codec};
use ternfleet_tests::caller::{Client, prompts};
use ternfleet_tests::http;
use ternfleet_tests::instant::{InstantWorker, Manner};
use ternfleet_tests::server::NatsServer;

use super::{Coordinator, CoordinatorProcess};

/// What a killed leader may cost a completion in flight.
const DELAY_MAX: Duration = Duration::from_secs(6);

/// One leader that is killed while a completion runs, and a standby whose gateway the caller uses. Answers how much
/// later than by itself the answer came.
async fn delay(takes: Duration, stream: bool) -> Duration {
    let server = NatsServer::start().unwrap();
    let mut leader = CoordinatorProcess::start(&server);
    let client = Client::new(server.bus().await.unwrap());
    let manner = Manner { takes, ..Manner::default() };
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", manner).await;
    // The process leads, and takes work in.
    while client.ask::<serde::de::IgnoredAny>(ApiVerb::Pods, &()).await.is_err() {}
    let (options, address) = http::options(Options::default());
    let standby = Coordinator::start_with(server.bus().await.unwrap(), options);
    http::wait_ready(&address).await;

    let body = format!("{{\"prompt\": \"abc\", \"max_tokens\": 4, \"stream\": {stream}}}");
    let began = Instant::now();
    let asked = tokio::spawn(async move { http::post(&address, "/v1/completions", &body).await });
    let began_to_run = async {
        while server_side_claims(&*client.bus).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), began_to_run).await.unwrap();
    leader.kill();
    let (status, text) = tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap().unwrap();
    let took = began.elapsed();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("cba"), "{text}");
    assert!(!stream || text.contains("[DONE]"), "{text}");
    standby.stop().await;
    took.saturating_sub(takes)
}

async fn server_side_claims(bus: &dyn Bus) -> u64 {
    bus.stream_facts(table::CHECKPOINTS).await.map_or(0, |facts| facts.last_sequence)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_survives_its_leader_within_seconds() {
    // Answered while nobody leads, and answered under the next leader.
    let delays = [
        delay(Duration::from_millis(700), false).await,
        delay(Duration::from_millis(700), true).await,
        delay(Duration::from_secs(7), false).await,
    ];
    eprintln!("a killed leader delays a completion by {delays:?}");
    assert!(delays.iter().all(|delay| *delay < DELAY_MAX), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_nobody_announced_is_found_by_whoever_leads() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(Arc::clone(&bus));
    let first = client.submit("first", prompts(3)).await;
    client.wait_end(&first.id).await;

    // As a leader leaves it that was paused between its check and its write, and has been followed by another.
    client.upload("late", prompts(5)).await;
    let results = bus.stream_facts(table::RESULTS).await.unwrap();
    let facts = BatchFacts {
        input_bytes: prompts(5).len() as u64,
        stored_bytes: 0,
        results_after: results.last_sequence,
        durability: Durability::Stored,
        replicas: 1,
    };
    let record = BatchRecord::new(TimeMs::now(), &client.creation("late", BatchOptions::default()), facts);
    bus.kv_create(table::KV_BATCHES, record.id.as_str(), codec::encode(&record), None).await.unwrap();
    let view = client.wait_end(&record.id).await;
    assert_eq!((view.state, view.completed), (BatchState::Completed, 5));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_batches_are_listed_however_many_completions_came_after() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(server.bus().await.unwrap());
    for name in ["a", "b", "c"] {
        let view = client.submit(name, prompts(2)).await;
        client.wait_end(&view.id).await;
    }
    for number in 0..230u64 {
        client.ask::<()>(ApiVerb::JobCreate, &client.completion(number)).await.unwrap();
    }
    let list = BatchList { tenant: client.tenant.clone(), after: None, limit: 10 };
    let listed = async || {
        let views: Vec<BatchView> = client.ask(ApiVerb::BatchList, &list).await.unwrap();
        views.into_iter().filter_map(|view| view.name).collect::<Vec<_>>()
    };
    for _ in 0..20 {
        assert_eq!(listed().await, ["c", "b", "a"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_from_a_savepoint_unless_the_stream_has_lost_its_end() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let start = async || {
        let options = Options { savepoint_ms: 200, audit_share: 0.0, ..Options::default() };
        Coordinator::start_with(server.bus().await.unwrap(), options)
    };
    let coordinator = start().await;
    let client = Client::new(Arc::clone(&bus));
    let worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let view = client.submit("input", prompts(8_000)).await;
    client.wait(&view.id, "some answers", |view| view.completed > 3_000).await;
    drop(worker);
    let objects = ["", "-0", "-1"].map(|part| format!("savepoint-{}{part}", view.id));
    let began = Instant::now();
    while bus.object_length(table::LEDGER, &objects[0]).await.unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing was saved");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What the worker had sent is read by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answered = client.get(&view.id).await.completed;
    assert!(answered < 8_000, "the batch is open");
    coordinator.stop().await;

    // A replay would miss these; the savepoint has them.
    let first = bus.stream_facts(table::RESULTS).await.unwrap().first_sequence;
    let filter = table::results_of(&client.tenant, &view.id);
    assert_eq!(bus.purge_before(table::RESULTS, &filter, first + 300).await.unwrap(), 300);
    let coordinator = start().await;
    client.wait(&view.id, "the savepoint", |view| view.completed == answered).await;
    coordinator.stop().await;

    // The server has lost the end of the stream: what is saved is of a stream that is not there.
    let last = bus.stream_facts(table::RESULTS).await.unwrap().last_sequence;
    for sequence in last - 19..=last {
        assert!(bus.delete_message(table::RESULTS, sequence).await.unwrap());
    }
    let coordinator = start().await;
    client.wait(&view.id, "the replay", |view| view.completed == answered - 320).await;
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "two", Manner::default()).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed), (BatchState::Completed, 8_000));
    let began = Instant::now();
    while bus.object_length(table::LEDGER, &objects[0]).await.unwrap().is_some() {
        assert!(began.elapsed() < Duration::from_secs(60), "its savepoint goes with the batch");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    coordinator.stop().await;
}
