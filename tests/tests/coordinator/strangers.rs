//! Strangers at the HTTP port and among the callers: what they send is bounded before it is kept.

use std::time::{Duration, Instant};

use ternfleet_coordinator::{Options, Quotas};
use ternfleet_proto::codec;
use ternfleet_proto::message::{BatchOptions, BatchState, BatchView, RefusalCode};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_tests::caller::{Client, prompts};
use ternfleet_tests::http;
use ternfleet_tests::instant::{InstantWorker, Manner};
use ternfleet_tests::server::NatsServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Coordinator;

const BOUNDARY: &str = "frontier";

/// As the coordinator stores it.
#[derive(serde::Serialize)]
struct Index {
    lines: u32,
    offsets: Vec<u64>,
    repeated: Vec<u32>,
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Sends a form whose one field goes on and on; answers the response and how much was taken.
async fn endless_field(address: &str, field: &str, bytes: usize) -> (String, usize) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n\
         content-length: {}\r\n\r\n--{BOUNDARY}\r\ncontent-disposition: form-data; {field}\r\n\r\n",
        bytes + 4096
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < bytes {
        match socket.write(&chunk).await {
            Ok(n) if n > 0 => sent += n,
            _ => break,
        }
    }
    let mut response = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut response)).await;
    (String::from_utf8_lossy(&response).into_owned(), sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_fields_of_a_form_are_small_and_its_file_obeys_the_quota_while_it_arrives() {
    let server = NatsServer::start().unwrap();
    let quotas = Quotas { stored_bytes_max: 1 << 20, ..Quotas::default() };
    let (options, address) = http::options(Options { quotas, ..Options::default() });
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    http::wait_ready(&address).await;

    let before = resident_bytes();
    for field in ["name=\"purpose\"", "name=\"expires_after\""] {
        let (response, sent) = endless_field(&address, field, 256 << 20).await;
        assert!(sent < 64 << 20, "{field}: {sent} bytes were taken: {response}");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more in memory");

    let file = "name=\"file\"; filename=\"a.jsonl\"";
    let (response, sent) = endless_field(&address, file, 256 << 20).await;
    assert!(sent < 128 << 20, "{sent} bytes were taken: {response}");
    let bus = server.bus().await.unwrap();
    let bucket = table::files_bucket(&Client::new(server.bus().await.unwrap()).tenant);
    let began = Instant::now();
    loop {
        let facts = bus.stream_facts(&table::object_stream(&bucket)).await.unwrap();
        if facts.bytes < 1 << 20 && bus.object_list(&bucket).await.unwrap().is_empty() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "what was refused is still there: {facts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newlines_cost_nothing_too_many_lines_are_refused_and_a_forged_index_is_not_read() {
    let server = NatsServer::start().unwrap();
    let quotas = Quotas { queued_lines_max: 1000, ..Quotas::default() };
    let coordinator =
        Coordinator::start_with(server.bus().await.unwrap(), Options { quotas, ..Options::default() });
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(server.bus().await.unwrap());

    // Thirty million newlines: nothing is kept of them, and nothing is refused.
    let view = client.submit("blank", vec![b'\n'; 30 << 20]).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.total), (BatchState::Completed, 0));

    // A prompt behind them makes it a file of too many lines, before it is accepted.
    let mut long = vec![b'\n'; 30 << 20];
    long.extend_from_slice(b"{\"prompt\": \"x\"}\n");
    client.upload("long", long).await;
    let long = client.creation("long", BatchOptions::default());
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &long).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Invalid, "{refused:?}");
    assert!(refused.message.contains("1000 lines"), "{refused:?}");

    // An index made by the tenant, who knows the batch's id beforehand: four billion lines.
    let tenant = client.tenant.clone();
    let id = ternfleet_coordinator::core::batch_id(&tenant, "forged");
    let forged = codec::encode(&Index { lines: u32::MAX, offsets: vec![0], repeated: Vec::new() });
    client.upload(&format!("index-{id}"), forged.to_vec()).await;
    let view = client.submit("forged", prompts(3)).await;
    assert_eq!(view.id, id);
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.total, view.completed), (BatchState::Completed, 3, 3));

    // Fields that are kept are bounded too.
    let mut wide = client.creation("wide", BatchOptions::default());
    wide.input_object = "forged".to_owned();
    wide.metadata.insert("k".to_owned(), "v".repeat(100_000));
    let refused = client.ask::<BatchView>(ApiVerb::BatchCreate, &wide).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Invalid, "{refused:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_completions_at_a_time() {
    let server = NatsServer::start().unwrap();
    let quotas = Quotas { completions_max: 2, ..Quotas::default() };
    let (options, address) = http::options(Options { quotas, ..Options::default() });
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    http::wait_ready(&address).await;
    // Nobody answers: there is no worker.
    let body = "{\"prompt\": \"x\", \"max_tokens\": 4}";
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { http::post(&address, "/v1/completions", body).await })
        })
        .collect();
    let began = Instant::now();
    loop {
        let third =
            tokio::time::timeout(Duration::from_secs(2), http::post(&address, "/v1/completions", body));
        if let Ok((status, text)) = third.await {
            assert_eq!(status, 429, "{text}");
            assert!(text.contains("completions"), "{text}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "a third completion is taken");
    }
    waiting.iter().for_each(|task| task.abort());
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_listed_origins_may_call_and_others_may_not() {
    let server = NatsServer::start().unwrap();
    let (mut options, address) = http::options(Options::default());
    options.gateway.cors_origins = vec!["https://app.example.com".into(), "http://localhost:3000".into()];
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    http::wait_ready(&address).await;
    let chats = "/v1/chat/completions";
    let preflight = |origin: &str| {
        format!(
            "origin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization, x-stainless-lang\r\n"
        )
    };
    for origin in ["https://app.example.com", "http://localhost:3000"] {
        let (status, head) = http::headers(&address, "OPTIONS", chats, &preflight(origin)).await;
        assert_eq!(status, 204, "{head}");
        for part in [
            &format!("access-control-allow-origin: {origin}\r\n")[..],
            "access-control-allow-methods: get, post, delete, options",
            "access-control-allow-headers: authorization, x-stainless-lang",
            "access-control-max-age: 600",
            "vary: origin",
        ] {
            assert!(head.contains(part), "{part}: {head}");
        }
        // What is asked then may be read, refusals too.
        let own = format!("origin: {origin}\r\n");
        for (method, path, wanted) in
            [("GET", "/v1/models", 200), ("POST", chats, 400), ("GET", "/v1/none", 404)]
        {
            let (status, head) = http::headers(&address, method, path, &own).await;
            assert_eq!(status, wanted, "{head}");
            assert!(head.contains(&format!("access-control-allow-origin: {origin}\r\n")), "{head}");
            assert!(head.contains("access-control-expose-headers: x-request-id"), "{head}");
        }
    }
    for origin in
        ["https://evil.example.com", "https://app.example.com.evil.org", "http://app.example.com", "null"]
    {
        let (status, head) = http::headers(&address, "OPTIONS", chats, &preflight(origin)).await;
        assert_eq!(status, 405, "{head}");
        assert!(!head.contains("access-control"), "{origin}: {head}");
        let (status, head) =
            http::headers(&address, "GET", "/v1/models", &format!("origin: {origin}\r\n")).await;
        assert_eq!(status, 200, "callers that are no browsers send what they want");
        assert!(!head.contains("access-control") && head.contains("vary: origin"), "{origin}: {head}");
    }
    coordinator.stop().await;
}
