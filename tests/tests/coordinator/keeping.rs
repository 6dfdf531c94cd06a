//! What is kept, and how long: nothing is told before it is stored, nothing stays forever.

use std::time::Duration;

use serde_json::{Value, json};
use ternfleet_coordinator::{Quotas, Retention, Streams};
use ternfleet_proto::bus::Publish;
use ternfleet_proto::message::{BatchRef, JobResult, ResultsPage, ResultsRequest};
use ternfleet_proto::{BatchId, TimeMs, codec};
use ternfleet_tests::http;

use super::*;

/// Sets how many bytes a stream may hold, as an operator would; -1 for no limit.
async fn limit(bus: &Arc<dyn Bus>, stream: &str, max_bytes: i64) {
    let ask = async |call: &str, body: Value| {
        let call = format!("$JS.API.STREAM.{call}.{stream}");
        let answer = bus.request(&call, body.to_string().into(), Duration::from_secs(5)).await.unwrap();
        serde_json::from_slice::<Value>(&answer).unwrap()
    };
    let mut config = ask("INFO", json!({})).await["config"].take();
    config["max_bytes"] = max_bytes.into();
    let updated = ask("UPDATE", config).await;
    assert!(updated["error"].is_null(), "{updated}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_answered_when_it_is_stored_and_not_before() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let client = Client::new(Arc::clone(&bus));
    let view = client.submit("input-1", prompts(50)).await;
    client.wait(&view.id, "the input to be looked through", |view| view.total_is_final).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    limit(&bus, "KV_batches", 1).await;

    let reference = codec::encode(&BatchRef { tenant: client.tenant.clone(), id: view.id.clone() });
    let subject = table::api(ApiVerb::BatchCancel);
    let ask = bus.request(&subject, reference, Duration::from_secs(20));
    let mut ask = std::pin::pin!(ask);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut ask).await;
    assert!(early.is_err(), "answered although nothing could be stored: {early:?}");
    limit(&bus, "KV_batches", -1).await;
    let answer: ternfleet_proto::message::Reply<BatchView> = codec::decode(&ask.await.unwrap()).unwrap();
    assert!(matches!(answer.unwrap().state, BatchState::Cancelling | BatchState::Cancelled));
    let stored = bus.kv_get(table::KV_BATCHES, view.id.as_str()).await.unwrap().unwrap();
    let record: ternfleet_coordinator::core::BatchRecord = codec::decode(&stored.value).unwrap();
    assert_eq!(record.ending, Some(ternfleet_coordinator::core::Ending::Cancelled));
    coordinator.stop().await;
}

/// All answers of a batch in RESULTS.
async fn answers_kept(bus: &Arc<dyn Bus>, id: &BatchId) -> usize {
    use futures::StreamExt;
    let filter = table::results_of(&ternfleet_proto::TenantId::default_tenant(), id);
    let mut replay = bus.replay(table::RESULTS, &filter, 1).await.unwrap();
    let mut count = 0;
    while let Some(Ok(ternfleet_proto::bus::Replayed::Message(message))) = replay.next().await {
        codec::decode::<JobResult>(&message.payload).unwrap();
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_batch_leaves_a_tombstone_and_a_new_one_keeps_everything() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let retention = Retention { files_ms: 4_000, ..Retention::default() };
    let coordinator = Coordinator::start_with(
        server.bus().await.unwrap(),
        Options { retention, audit_share: 0.0, ..Options::default() },
    );
    let worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(Arc::clone(&bus));
    let mut input = prompts(19);
    // Longer than a work message, so it travels as an object.
    let body = json!({ "prompt": "x".repeat(300_000), "max_tokens": 1 });
    let long = json!({ "custom_id": "long", "method": "POST", "url": "/v1/completions", "body": body });
    input.extend_from_slice(format!("{long}\nno request\n").as_bytes());
    let old = client.submit("shared", input.clone()).await;
    let alone = client.submit("alone", input.clone()).await;
    let old = client.wait_end(&old.id).await;
    client.wait_end(&alone.id).await;
    drop(worker);
    let began = std::time::Instant::now();
    while !bus.object_list(table::LARGE_REQUESTS).await.unwrap().is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "an ended batch keeps its index and its long requests"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Another batch of the same input, which cannot end: nobody is there to run it.
    let again = client.creation("shared", BatchOptions::default());
    let again = BatchCreate { idempotency_key: "again".to_owned(), ..again };
    let running: BatchView = client.ask(ApiVerb::BatchCreate, &again).await.unwrap();
    assert_eq!(answers_kept(&bus, &old.id).await, 21);

    client.wait(&old.id, "the sweep", |view| view.output_object.is_none()).await;
    client.wait(&alone.id, "the sweep", |view| view.output_object.is_none()).await;
    let files = table::files_bucket(&client.tenant);
    let names = || async {
        bus.object_list(&files).await.unwrap().into_iter().map(|facts| facts.name).collect::<Vec<_>>()
    };
    let left = names().await;
    assert!(!left.iter().any(|name| name.starts_with("output-") || name.starts_with("error-")), "{left:?}");
    assert!(left.contains(&"shared".to_owned()), "a running batch still needs its input: {left:?}");
    assert!(!left.contains(&"alone".to_owned()), "{left:?}");
    assert_eq!(answers_kept(&bus, &old.id).await, 0);

    // The tombstone: counts and costs stay, answers are said to be gone, the same creation is the same batch.
    let view = client.get(&old.id).await;
    assert_eq!((view.state, view.completed, view.failed), (BatchState::Completed, 20, 1));
    assert!(view.reason.unwrap().contains("deleted"));
    let request =
        ResultsRequest { tenant: client.tenant.clone(), id: old.id.clone(), after: 0, limit: 10, wait_ms: 0 };
    let refused = client.ask::<ResultsPage>(ApiVerb::Results, &request).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotFound, "{refused:?}");
    assert!(refused.message.contains("deleted"), "{refused:?}");
    let repeated = client.creation("shared", BatchOptions::default());
    let repeated: BatchView = client.ask(ApiVerb::BatchCreate, &repeated).await.unwrap();
    assert_eq!((repeated.id, repeated.completed), (old.id.clone(), 20));
    assert!(!client.get(&running.id).await.state.is_terminal());

    // A coordinator that starts again reads the tombstone as it is.
    coordinator.stop().await;
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let view = client.get(&old.id).await;
    assert_eq!((view.state, view.completed, view.output_object), (BatchState::Completed, 20, None));
    coordinator.stop().await;
}

/// Says of a file that its time is up then.
async fn expire_at(client: &Client, name: &str, at: TimeMs) {
    let record = json!({
        "filename": name, "purpose": "batch", "bytes": 1, "created_at": TimeMs::now(), "expires_at": at,
    });
    let key = table::file_key(&client.tenant, name);
    client.bus.kv_put(table::KV_FILES, &key, record.to_string().into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_when_their_time_is_up_and_inputs_not_before_their_batches_have_ended() {
    let server = NatsServer::start().unwrap();
    // So long that it plays no part; the leader looks each second for a time below ten seconds, and each hour else.
    let retention = Retention { files_ms: 9_000, ..Retention::default() };
    let options = Options { retention, ..Options::default() };
    let (options, address) = http::options(options);
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    http::wait_ready(&address).await;
    let client = Client::new(server.bus().await.unwrap());
    // Nobody runs it: there is no worker yet.
    let held = client.submit("held", prompts(3)).await;
    client.upload("loose", prompts(1)).await;
    client.upload("later", prompts(1)).await;
    let soon = TimeMs::now().plus(Duration::from_millis(1_500));
    for (name, at) in [("held", soon), ("loose", soon), ("later", soon.plus(Duration::from_secs(3_600)))] {
        expire_at(&client, name, at).await;
    }
    let status = async |name: &str| http::get(&address, &format!("/v1/files/{name}")).await.0;
    assert_eq!((status("loose").await, status("held").await), (200, 200));
    let files = table::files_bucket(&client.tenant);
    let gone = async |name: &str| client.bus.object_length(&files, name).await.unwrap().is_none();
    let wait_gone = async |name: &str| {
        let began = std::time::Instant::now();
        while !gone(name).await {
            assert!(began.elapsed() < Duration::from_secs(60), "{name} is still there");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    wait_gone("loose").await;
    // Its time is up and nobody reads it any more, but its batch does.
    assert_eq!((status("held").await, status("later").await), (404, 200));
    assert!(!gone("held").await);
    let options = BatchOptions { output_expires_after_s: Some(1), ..BatchOptions::default() };
    let short: BatchView =
        client.ask(ApiVerb::BatchCreate, &client.creation("later", options)).await.unwrap();
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let held = client.wait_end(&held.id).await;
    assert_eq!((held.state, held.completed), (BatchState::Completed, 3), "accepted means answered");
    wait_gone("held").await;
    let output = client.wait_end(&short.id).await.output_object;
    if let Some(output) = output {
        wait_gone(&output).await;
    }
    assert!(!gone("later").await, "its time is not up");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_files_take_too_much_is_told_so() {
    let server = NatsServer::start().unwrap();
    let quotas = Quotas { stored_bytes_max: 10_000, ..Quotas::default() };
    let coordinator =
        Coordinator::start_with(server.bus().await.unwrap(), Options { quotas, ..Options::default() });
    let client = Client::new(server.bus().await.unwrap());
    client.submit("small", prompts(10)).await;
    client.upload("large", prompts(1000)).await;
    let large = client.creation("large", BatchOptions::default());
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &large).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Busy, "{refused:?}");
    assert!(refused.message.contains("delete files"), "{refused:?}");
    // What is deleted makes room.
    client.bus.object_delete(&table::files_bucket(&client.tenant), "large").await.unwrap();
    client.upload("other", prompts(10)).await;
    let other = client.creation("other", BatchOptions::default());
    client.ask::<BatchView>(ApiVerb::BatchCreate, &other).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_are_not_synced_where_everything_else_is() {
    let server = NatsServer::start_with("sync_interval: always").unwrap();
    let bus = server.bus().await.unwrap();
    let mode = async |stream: &str| {
        let call = format!("$JS.API.STREAM.INFO.{stream}");
        let answer = bus.request(&call, "{}".into(), Duration::from_secs(5)).await.unwrap();
        let info: Value = serde_json::from_slice(&answer).unwrap();
        info["config"]["persist_mode"].as_str().unwrap_or("default").to_owned()
    };
    // One made before anybody knew how the server syncs keeps its ways.
    let advisories = table::streams(1).into_iter().find(|spec| spec.name == table::ADVISORIES).unwrap();
    bus.ensure_stream(&advisories).await.unwrap();
    let options = Options {
        nats_monitoring_url: Some(server.monitor_url()),
        strict_durability: true,
        ..Options::default()
    };
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(Arc::clone(&bus));
    let view = client.submit("input-1", prompts(50)).await;
    assert_eq!(view.durability, ternfleet_proto::message::Durability::Fsynced);
    assert_eq!(client.wait_end(&view.id).await.completed, 50);
    for cache in [table::CHECKPOINTS, &table::work_stream(0)] {
        assert_eq!(mode(cache).await, "async", "{cache}");
    }
    for other in [table::RESULTS, table::EVENTS, table::ADVISORIES, "KV_batches", "OBJ_files_default"] {
        assert_eq!(mode(other).await, "default", "{other}");
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_server_never_removes_is_taken_over_after_its_time() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    // As a server leaves it that was killed too often: there for good.
    let control = table::kv_specs(1).into_iter().find(|spec| spec.bucket == table::KV_CONTROL).unwrap();
    bus.ensure_kv(&control).await.unwrap();
    bus.kv_put(table::KV_CONTROL, "leader", codec::encode(&"long gone")).await.unwrap();
    let options = || Options { lease_ms: 1_000, ..Options::default() };
    let one = Coordinator::start_with(server.bus().await.unwrap(), options());
    let two = Coordinator::start_with(server.bus().await.unwrap(), options());
    let client = Client::new(Arc::clone(&bus));
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let view = client.submit("input-1", prompts(50)).await;
    assert_eq!(client.wait_end(&view.id).await.completed, 50);
    // One took it, and the other leaves it alone for as long as it is renewed.
    let term = async || {
        let entry = bus.kv_get(table::KV_CONTROL, "term").await.unwrap().unwrap();
        codec::decode::<u32>(&entry.value).unwrap()
    };
    assert_eq!(term().await, 1);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(term().await, 1);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_accepted_while_answers_have_no_room_and_nothing_is_lost() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let streams = Streams { results_bytes_max: 200_000, checkpoints_bytes_max: 50_000 };
    let options = Options { streams, audit_share: 0.0, ..Options::default() };
    let (options, address) = ternfleet_tests::http::options(options);
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(Arc::clone(&bus));
    let small = client.submit("small", prompts(20)).await;
    client.wait_end(&small.id).await;
    let limits = async || {
        let results = bus.stream_facts(table::RESULTS).await.unwrap().bytes_max;
        (results, bus.stream_facts(table::CHECKPOINTS).await.unwrap().bytes_max)
    };
    assert_eq!(limits().await, (Some(200_000), Some(50_000)));

    // More answers than there is room for: the checkpoints lose the oldest, the answers wait.
    let large = client.submit("large", prompts(1_000)).await;
    client.upload("more", prompts(1)).await;
    let began = std::time::Instant::now();
    let refused = loop {
        let key = format!("more-{}", began.elapsed().as_millis());
        let creation =
            BatchCreate { idempotency_key: key, ..client.creation("more", BatchOptions::default()) };
        match client.ask::<BatchView>(ApiVerb::BatchCreate, &creation).await {
            Err(refused) => break refused,
            // It was faster than the answers.
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(30), "nothing fills the stream"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(refused.code, RefusalCode::Busy);
    assert!(refused.message.contains("results_bytes_max"), "{refused}");
    let (status, body) =
        ternfleet_tests::http::post(&address, "/v1/completions", "{\"prompt\": \"x\"}").await;
    assert_eq!(status, 429, "{body}");
    // Streams are looked at every two seconds.
    loop {
        let (_, metrics) = ternfleet_tests::http::get(&address, "/metrics").await;
        if metrics.contains("ternfleet_nats_stream_bytes_max{stream=\"results\"} 200000") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{metrics}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    limit(&bus, table::RESULTS, -1).await;
    let view = client.wait_end(&large.id).await;
    assert_eq!((view.completed, view.failed), (1_000, 0));
    assert!(bus.stream_facts(table::CHECKPOINTS).await.unwrap().bytes <= 50_000);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_nobodys_answer_does_not_stay_in_results() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(Arc::clone(&bus));
    let view = client.submit("in", prompts(20)).await;
    client.wait_end(&view.id).await;
    let stored = bus.stream_facts(table::RESULTS).await.unwrap().messages;
    let job = ternfleet_proto::JobKey { batch: view.id.clone(), index: 3 };
    let subject = table::result(&client.tenant, &job, &"one".parse().unwrap());
    let real = bus.last_on_subject(table::RESULTS, &subject).await.unwrap().unwrap();
    let mut forged: JobResult = codec::decode(&real.payload).unwrap();
    forged.worker = "thief".parse().unwrap();
    for (index, payload) in [(3, codec::encode(&forged)), (4, "no answer".into())] {
        let job = ternfleet_proto::JobKey { index, ..job.clone() };
        let subject = table::result(&client.tenant, &job, &forged.worker);
        bus.publish(&subject, payload, Publish::default()).await.unwrap();
        // Nor is a second one taken under the subject of an answer.
        let again = bus.publish(&real.subject, "another".into(), Publish::default()).await;
        assert!(matches!(again, Err(ternfleet_proto::bus::BusError::Full { .. })), "{again:?}");
    }
    let began = std::time::Instant::now();
    while bus.stream_facts(table::RESULTS).await.unwrap().messages > stored {
        assert!(began.elapsed() < Duration::from_secs(10), "it stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_of_an_ended_batch_leave_the_stream_and_are_read_on_from_their_object() {
    // A server that syncs seldom keeps them for two minutes more.
    let server = NatsServer::start_with("sync_interval: always").unwrap();
    let bus = server.bus().await.unwrap();
    let options = Options { nats_monitoring_url: Some(server.monitor_url()), ..Options::default() };
    let options = Options { audit_share: 0.0, ..options };
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let client = Client::new(Arc::clone(&bus));
    let view = client.submit("in", prompts(1_500)).await;
    let page = async |after: u64, limit: u32| {
        let (tenant, id) = (client.tenant.clone(), view.id.clone());
        let request = ResultsRequest { tenant, id, after, limit, wait_ms: 20_000 };
        client.ask::<ResultsPage>(ApiVerb::Results, &request).await.unwrap()
    };
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let early = page(0, 40).await;
    client.wait_end(&view.id).await;
    let began = std::time::Instant::now();
    while answers_kept(&bus, &view.id).await > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "the answers stay in RESULTS");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(bus.stream_facts(table::CHECKPOINTS).await.unwrap().messages, 0);
    let requests = table::object_stream(table::LARGE_REQUESTS);
    assert_eq!(bus.stream_facts(&requests).await.unwrap().messages, 0, "the index is gone, its mark too");
    // Whoever has read a part goes on from there, and the order is the one that it was.
    let mut lines = early.lines;
    assert_eq!(page(0, lines.len() as u32).await.lines, lines);
    while lines.len() < 1_500 {
        let next = page(lines.len() as u64, 333).await;
        assert_eq!(next.next, (lines.len() + next.lines.len()) as u64);
        lines.extend(next.lines);
        assert_eq!(next.end, lines.len() == 1_500);
    }
    let answered: std::collections::BTreeSet<u32> = lines.iter().map(|line| line.job.index).collect();
    assert_eq!(answered.len(), 1_500);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_in_the_stream_when_the_object_that_should_hold_them_is_lost() {
    let server = NatsServer::start_with("sync_interval: always").unwrap();
    let bus = server.bus().await.unwrap();
    let options = Options { nats_monitoring_url: Some(server.monitor_url()), ..Options::default() };
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let client = Client::new(Arc::clone(&bus));
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let view = client.submit("in", prompts(20)).await;
    client.wait_end(&view.id).await;
    // As a server does that had not synced it when it lost power.
    bus.object_delete(table::LEDGER, &format!("answers-{}", view.id)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(answers_kept(&bus, &view.id).await, 20);
    let (tenant, id) = (client.tenant.clone(), view.id.clone());
    let request = ResultsRequest { tenant, id, after: 0, limit: 100, wait_ms: 1_000 };
    let page: ResultsPage = client.ask(ApiVerb::Results, &request).await.unwrap();
    assert_eq!((page.lines.len(), page.end), (20, true));
    coordinator.stop().await;
}
