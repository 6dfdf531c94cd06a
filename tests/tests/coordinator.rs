//! The coordinator against a real nats-server, with workers that answer at once.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "coordinator/bad_input.rs"]
mod bad_input;
#[path = "coordinator/ends.rs"]
mod ends;
#[path = "coordinator/faults.rs"]
mod faults;
#[path = "coordinator/keeping.rs"]
mod keeping;
#[path = "coordinator/models.rs"]
mod models;
#[path = "coordinator/strangers.rs"]
mod strangers;
#[path = "coordinator/takeover.rs"]
mod takeover;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ternfleet_coordinator::Options;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{
    BatchCreate, BatchOptions, BatchState, BatchView, Binds, LineSize, PodView, Quote, QuoteAsk, RefusalCode,
    WorkSample,
};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TimeMs, UsdMicro, codec};
use ternfleet_tests::caller::{Client, prompts};
use ternfleet_tests::instant::{InstantWorker, Manner};
use ternfleet_tests::server::NatsServer;
use tokio_util::sync::CancellationToken;

/// A coordinator in this process.
struct Coordinator {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Coordinator {
    /// Without audits, so that workers run what was asked for and nothing twice.
    fn start(bus: Arc<dyn Bus>) -> Self {
        Self::start_with(bus, Options { audit_share: 0.0, ..Options::default() })
    }

    fn start_with(bus: Arc<dyn Bus>, options: Options) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(ternfleet_coordinator::run(bus, options, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A coordinator in a process of its own, to be killed.
struct CoordinatorProcess(Child);

impl CoordinatorProcess {
    fn start(server: &NatsServer) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_coordinator_of_its_own", "--ignored", "--nocapture"])
            .env("TERNFLEET_TEST_NATS", server.url())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for CoordinatorProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a test: the body of [`CoordinatorProcess`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests that kill it"]
async fn a_coordinator_of_its_own() {
    let Ok(url) = std::env::var("TERNFLEET_TEST_NATS") else { return };
    let options = ternfleet_proto::nats::ConnectOptions { url, ..Default::default() };
    let bus = ternfleet_proto::nats::connect(&options).await.unwrap();
    ternfleet_coordinator::run(bus, Options::default(), CancellationToken::new()).await.unwrap();
}

/// Every line answered once, in order, with the answer that belongs to it.
async fn check_outputs(client: &Client, view: &BatchView, good: usize, bad: usize) {
    let mut indexes = Vec::new();
    for (name, count) in [(&view.output_object, good), (&view.error_object, bad)] {
        let lines = match name {
            Some(name) => client.object_lines(name).await,
            None => Vec::new(),
        };
        assert_eq!(lines.len(), count, "{name:?}");
        let numbers: Vec<u64> = lines.iter().map(|l| l["ternfleet"]["index"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted(), "{name:?} is not in input order");
        indexes.extend(numbers);
        for line in lines.iter().filter(|line| line["error"].is_null()) {
            let index = line["ternfleet"]["index"].as_u64().unwrap();
            let expected: String = format!("prompt {index}").chars().rev().collect();
            assert_eq!(line["response"]["body"]["choices"][0]["text"], expected.as_str());
        }
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), good + bad, "a line was answered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_out_to_two_workers_and_comes_back_in_input_order() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    // Slow enough that no window holds the whole batch: scarce work would all go to one of them.
    let manner = Manner { rate_tok_s: 2_000.0, ..Manner::default() };
    let one = InstantWorker::start(server.bus().await.unwrap(), "one", manner.clone()).await;
    let two = InstantWorker::start(server.bus().await.unwrap(), "two", manner).await;
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("input-1", prompts(3000)).await;
    let lines = client.follow(&view.id).await;
    assert_eq!(lines.len(), 3000);
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed, view.failed, view.total), (BatchState::Completed, 3000, 0, 3000));
    check_outputs(&client, &view, 3000, 0).await;
    assert_eq!(one.done() + two.done(), 3000);
    assert!(one.done() > 0 && two.done() > 0, "{} and {}", one.done(), two.done());
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_line_is_one_error_line() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(server.bus().await.unwrap());
    let input = b"{\"custom_id\": \"a\", \"prompt\": \"prompt 0\"}\n{broken\n\n\
                  {\"custom_id\": \"a\", \"prompt\": \"prompt 3\"}\n\xff\xfe\n{\"prompt\": \"prompt 5\"}"
        .to_vec();
    let view = client.submit("input-1", input).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed, view.failed, view.total), (BatchState::Completed, 2, 3, 5));
    check_outputs(&client, &view, 2, 3).await;
    let errors = client.object_lines(view.error_object.as_ref().unwrap()).await;
    let lines: Vec<u64> = errors.iter().map(|e| e["ternfleet"]["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 4, 5]);
    assert!(errors[1]["error"]["message"].as_str().unwrap().contains("custom_id"), "{:?}", errors[1]);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_with_the_same_key_is_the_same_batch_and_with_other_content_a_conflict() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let client = Client::new(server.bus().await.unwrap());
    let first = client.submit("input-1", prompts(3)).await;
    let again = client.submit("input-1", prompts(3)).await;
    assert_eq!(first.id, again.id);
    let other = client.creation("input-1", BatchOptions { priority: 3, ..BatchOptions::default() });
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &other).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Conflict);
    let lost = client.creation("never-uploaded", BatchOptions::default());
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &lost).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotFound);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_batch_keeps_what_is_done_and_answers_the_rest() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let manner = Manner {
        slots: 4,
        rate_tok_s: 100.0,
        takes: std::time::Duration::from_millis(20),
        ..Manner::default()
    };
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", manner).await;
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("input-1", prompts(3000)).await;
    client.wait(&view.id, "ten answers", |view| view.completed >= 10).await;
    let reference = ternfleet_proto::message::BatchRef { tenant: client.tenant.clone(), id: view.id.clone() };
    let cancelling: BatchView = client.ask(ApiVerb::BatchCancel, &reference).await.unwrap();
    assert_eq!(cancelling.state, BatchState::Cancelling);
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed + view.failed), (BatchState::Cancelled, 3000));
    assert!(view.completed >= 10);
    check_outputs(&client, &view, view.completed as usize, view.failed as usize).await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_coordinator_in_the_middle_of_a_batch_loses_and_doubles_nothing() {
    let server = NatsServer::start().unwrap();
    let mut process = CoordinatorProcess::start(&server);
    let manner = Manner {
        slots: 8,
        takes: std::time::Duration::from_millis(10),
        rate_tok_s: 20_000.0,
        ..Manner::default()
    };
    let worker = InstantWorker::start(server.bus().await.unwrap(), "one", manner).await;
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("input-1", prompts(4000)).await;
    for kill in 1..=2u32 {
        client.wait(&view.id, "a part of the answers", |view| view.completed >= kill * 1000).await;
        process.kill();
        process = CoordinatorProcess::start(&server);
    }
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed, view.failed), (BatchState::Completed, 4000, 0));
    check_outputs(&client, &view, 4000, 0).await;
    assert_eq!(client.follow(&view.id).await.len(), 4000);
    assert!(worker.done() >= 4000);
    process.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_worker_that_died_go_to_another() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let slow = Manner { takes: std::time::Duration::from_secs(600), slots: 8, ..Manner::default() };
    let doomed = InstantWorker::start(server.bus().await.unwrap(), "doomed", slow).await;
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("input-1", prompts(200)).await;
    client.wait(&view.id, "the start", |view| view.started_at.is_some()).await;
    drop(doomed);
    let other = Manner { host: "host-b".to_owned(), ..Manner::default() };
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "other", other).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed, view.failed), (BatchState::Completed, 200, 0));
    check_outputs(&client, &view, 200, 0).await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_quoted_and_one_that_cannot_be_kept_is_refused_unless_it_is_wanted_anyway() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let manner = Manner { rate_tok_s: 1_000.0, price: UsdMicro(3_600_000), ..Manner::default() };
    let worker = InstantWorker::start(server.bus().await.unwrap(), "one", manner).await;
    let client = Client::new(server.bus().await.unwrap());
    client.upload("in", prompts(100)).await;
    while client.ask::<Vec<PodView>>(ApiVerb::Pods, &()).await.unwrap().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    // 100 lines of 1,000 tokens at 1,000 tok/s and $3.60/h: 100 s and $0.10, as far as anybody can know.
    let size = LineSize { prompt_tokens: 0, max_tokens: Some(1_000), endpoint: None, wanted: None };
    let work = WorkSample { lines: 100, sample: vec![size; 100], ..WorkSample::default() };
    let now = TimeMs::now();
    let mut ask = QuoteAsk {
        tenant: client.tenant.clone(),
        work: work.clone(),
        deadline: None,
        budget_usd_micro: None,
        classes: Vec::new(),
    };
    let quote: Quote = client.ask(ApiVerb::Quote, &ask).await.unwrap();
    assert!(quote.kept, "{quote:?}");
    assert!((90_000..110_000).contains(&quote.cost_p50_usd_micro.0), "{quote:?}");
    assert!((90..110).contains(&quote.finish_p50_ms.since(now).as_secs()), "{quote:?}");
    assert_eq!(quote.pods.iter().map(|used| (used.pods, used.started)).collect::<Vec<_>>(), [(1, 0)]);

    ask.budget_usd_micro = Some(UsdMicro(50_000));
    let quote: Quote = client.ask(ApiVerb::Quote, &ask).await.unwrap();
    assert_eq!((quote.kept, quote.binds), (false, Some(Binds::Budget)), "{quote:?}");
    ask.classes = vec!["b200".to_owned()];
    assert_eq!(client.ask::<Quote>(ApiVerb::Quote, &ask).await.unwrap_err().code, RefusalCode::Invalid);

    let due = BatchOptions {
        deadline: Some(now.plus(std::time::Duration::from_secs(30))),
        ..BatchOptions::default()
    };
    let create = BatchCreate { work: Some(work), ..client.creation("in", due.clone()) };
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &create).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Unaffordable, "{refused:?}");
    assert!(refused.message.contains("too slow for the deadline"), "{}", refused.message);

    let anyway = BatchOptions { accept_at_risk: true, ..due };
    let create = BatchCreate { options: anyway, ..create };
    let view: BatchView = client.ask(ApiVerb::BatchCreate, &create).await.unwrap();
    assert_eq!(view.quote.unwrap().binds, Some(Binds::Capacity));
    let ended = client.wait_end(&view.id).await;
    assert!(ended.quote.is_some(), "the quote stands beside the bill at the end");
    drop(worker);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_refuses_streams_of_a_newer_version() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    let read = async || bus.kv_get(table::KV_CONTROL, table::VERSION_KEY).await.unwrap().unwrap();
    let coordinator = Coordinator::start(Arc::clone(&bus));
    wait_for_version(&bus).await;
    coordinator.stop().await;
    assert_eq!(codec::decode::<u32>(&read().await.value).unwrap(), table::VERSION);

    // An older table's streams are brought up to this one's settings.
    let mut old = table::streams(1).into_iter().find(|spec| spec.name == table::DEAD).unwrap();
    old.max_messages = Some(7);
    bus.ensure_stream(&old).await.unwrap();
    bus.kv_put(table::KV_CONTROL, table::VERSION_KEY, codec::encode(&0u32)).await.unwrap();
    let coordinator = Coordinator::start(Arc::clone(&bus));
    wait_for_version(&bus).await;
    coordinator.stop().await;

    // A newer one's are not touched.
    let newer = codec::encode(&(table::VERSION + 1));
    bus.kv_put(table::KV_CONTROL, table::VERSION_KEY, newer.clone()).await.unwrap();
    let refused = ternfleet_coordinator::run(Arc::clone(&bus), Options::default(), CancellationToken::new());
    let said = format!("{:#}", refused.await.unwrap_err());
    assert!(said.contains("upgrade this coordinator"), "{said}");
    assert_eq!(read().await.value, newer);
}

/// The version that this program knows is written once the streams are as it wants them.
async fn wait_for_version(bus: &Arc<dyn Bus>) {
    for _ in 0..200 {
        let found = bus.kv_get(table::KV_CONTROL, table::VERSION_KEY).await.ok().flatten();
        if found.is_some_and(|entry| codec::decode(&entry.value).ok() == Some(table::VERSION)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the coordinator did not set up its streams");
}
