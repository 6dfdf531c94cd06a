//! Several models in one fleet, and requests for a model that nobody serves.

use std::time::Duration;

use serde_json::Value;
use ternfleet_proto::message::{
    BatchOptions, BatchState, BatchView, FleetView, JobCreate, Line, PodList, Refusal,
};
use ternfleet_tests::http;
use ternfleet_tests::instant::first_beat;
use ternfleet_tests::program;

use super::*;

/// `lines` lines that name `model`, in one of the two forms in which a line is written.
fn lines(model: &str, lines: usize) -> Vec<u8> {
    let line = |n: usize| match n % 2 {
        0 => format!("{{\"prompt\": \"prompt {n}\", \"max_tokens\": 4, \"model\": \"{model}\"}}\n"),
        _ => format!(
            "{{\"custom_id\": \"{model}-{n}\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": \
             {{\"prompt\": \"prompt {n}\", \"max_tokens\": 4, \"model\": \"{model}\"}}}}\n"
        ),
    };
    (0..lines).map(line).collect::<String>().into_bytes()
}

fn refused_as_unknown(refused: &Refusal) {
    assert_eq!(refused.code, RefusalCode::ModelNotFound, "{refused:?}");
    let message = &refused.message;
    assert!(message.contains("Served: large, small") && message.contains("mean \"large\""), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_nobody_serves_is_refused_by_every_way_in_and_each_line_goes_to_its_own_model() {
    let server = NatsServer::start().unwrap();
    let (options, address) = http::options(Options::default());
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let manner = |model: &str| Manner { model: model.to_owned(), ..Manner::default() };
    let small = InstantWorker::start(server.bus().await.unwrap(), "one", manner("small")).await;
    let large = InstantWorker::start(server.bus().await.unwrap(), "two", manner("large")).await;
    let client = Client::new(server.bus().await.unwrap());
    http::wait_ready(&address).await;
    while client.ask::<Vec<PodView>>(ApiVerb::Pods, &()).await.unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A leader that has just begun refuses nothing: it may not have heard of every worker.
    tokio::time::sleep(Duration::from_millis(1_300)).await;

    // Over NATS: a batch, a quote, a single job.
    client.upload("wrong", lines("lagre", 4)).await;
    let create = client.creation("wrong", BatchOptions::default());
    refused_as_unknown(&client.ask::<BatchView>(ApiVerb::BatchCreate, &create).await.unwrap_err());
    let work = WorkSample {
        lines: 4,
        sample: vec![LineSize { prompt_tokens: 1, max_tokens: Some(4), endpoint: None, wanted: None }; 4],
        models: [("lagre".to_owned(), 4)].into(),
    };
    let ask = QuoteAsk {
        tenant: client.tenant.clone(),
        work,
        deadline: None,
        budget_usd_micro: None,
        classes: Vec::new(),
    };
    refused_as_unknown(&client.ask::<Quote>(ApiVerb::Quote, &ask).await.unwrap_err());
    let job = client.completion(1);
    let job = JobCreate { line: Line { model: Some("lagre".to_owned()), ..job.line.clone() }, ..job };
    refused_as_unknown(&client.ask::<()>(ApiVerb::JobCreate, &job).await.unwrap_err());
    let waits = JobCreate { wait_for_model: true, batch: "cmpl-2".parse().unwrap(), ..job };
    client.ask::<()>(ApiVerb::JobCreate, &waits).await.unwrap();

    // Over HTTP: a batch of requests, a completion.
    let batch = "{\"requests\": [{\"prompt\": \"x\", \"model\": \"lagre\"}], \"endpoint\": \"/v1/completions\", \
                 \"completion_window\": \"24h\"}";
    for (path, body) in
        [("/v1/batches", batch), ("/v1/completions", "{\"prompt\": \"x\", \"model\": \"lagre\"}")]
    {
        let (status, text) = http::post(&address, path, body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        let error = &error["error"];
        assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")), "{path}: {text}");
        assert_eq!(error["param"], "model", "{path}: {text}");
        assert!(error["message"].as_str().unwrap().contains("mean \"large\""), "{path}: {text}");
    }

    // On the command line.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.jsonl");
    std::fs::write(&file, lines("lagre", 4)).unwrap();
    let file = file.display().to_string();
    for command in ["submit", "quote"] {
        let (url, file) = (server.url(), file.clone());
        let ended =
            tokio::task::spawn_blocking(move || program::run(&[command, &file, "--nats", &url])).await;
        let ended = ended.unwrap().unwrap();
        assert!(ended.code != Some(0) && ended.stderr.contains("mean \"large\""), "{command}: {ended:?}");
    }

    // On purpose it waits, and it runs as soon as somebody serves the model.
    let patient = BatchOptions { wait_for_model: true, ..BatchOptions::default() };
    let create = BatchCreate { idempotency_key: "patient".to_owned(), ..client.creation("wrong", patient) };
    let waiting: BatchView = client.ask(ApiVerb::BatchCreate, &create).await.unwrap();

    // Each line goes to a worker of its own model.
    client.upload("right", [lines("small", 30), lines("large", 20)].concat()).await;
    let create = client.creation("right", BatchOptions::default());
    let right: BatchView = client.ask(ApiVerb::BatchCreate, &create).await.unwrap();
    let ended = client.wait_end(&right.id).await;
    assert_eq!((ended.state, ended.completed), (BatchState::Completed, 50));
    assert_eq!((small.done(), large.done()), (30, 20));

    let late = InstantWorker::start(server.bus().await.unwrap(), "three", manner("lagre")).await;
    let ended = client.wait_end(&waiting.id).await;
    assert_eq!((ended.state, ended.completed), (BatchState::Completed, 4));
    assert_eq!((small.done(), large.done()), (30, 20));
    drop((small, large, late));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_fills_no_single_message_is_told_in_pages_and_sums() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let client = Client::new(server.bus().await.unwrap());
    while client.ask::<Vec<PodView>>(ApiVerb::Pods, &()).await.is_err() {}
    // Together more than the server's default of 1 MiB.
    let point = |batch| ternfleet_proto::message::RatePoint { batch, tok_s: 9.5 };
    for n in 0..300 {
        let worker = format!("w-{n:03}").parse().unwrap();
        let manner = Manner { host: format!("host-{n}"), ..Manner::default() };
        let mut beat = first_beat(&worker, &manner, TimeMs::now());
        beat.calibration = (0..250).map(point).collect();
        client.bus.send(&table::heartbeat(&worker), codec::encode(&beat)).await.unwrap();
    }
    let view = async || client.ask::<FleetView>(ApiVerb::Fleet, &()).await.unwrap();
    let began = std::time::Instant::now();
    let first = loop {
        let view = view().await;
        if view.workers() == 300 {
            break view;
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{} workers", view.workers());
    };
    assert!(first.next.is_some() && first.pods.len() < 300);
    assert_eq!(first.models.iter().map(|model| model.workers).sum::<u32>(), 300);
    let mut after = first.next;
    let mut pods = first.pods;
    loop {
        let page: Vec<PodView> = client.ask(ApiVerb::Pods, &PodList { after }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.heartbeat.worker.clone());
        pods.extend(page);
    }
    assert_eq!(pods.len(), 300);
    coordinator.stop().await;
}
