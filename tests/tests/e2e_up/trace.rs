//! One trace from the caller through coordinator and worker and back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use ternfleet_proto::bus::Replayed;
use ternfleet_proto::message::JobResult;
use ternfleet_proto::nats::{ConnectOptions, connect};
use ternfleet_proto::{codec, table};
use ternfleet_tests::program::{LocalFleet, command, up_command, wait_for};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traceparent() -> String {
    format!("00-{TRACE_ID}-{CALLER}-01")
}

/// Submits one line in the caller's trace and waits for its answer; the batch's id.
fn submit(fleet: &LocalFleet) -> String {
    let input = fleet.write("in.jsonl", "{\"prompt\": \"A fox\", \"max_tokens\": 8}\n").unwrap();
    let ended = command(&["submit", &input, "--json", "--nats", &fleet.addresses.nats])
        .unwrap()
        .env("TRACEPARENT", traceparent())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let batch: Value = serde_json::from_slice(&ended.stdout).unwrap();
    batch["id"].as_str().unwrap().to_owned()
}

/// Every stored answer, and the head of its message as the server keeps it.
fn answers(nats: &str) -> Vec<(JobResult, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options =
            ConnectOptions { url: nats.to_owned(), name: "test".into(), ..ConnectOptions::default() };
        let bus = connect(&options).await.unwrap();
        let mut replay = bus.replay(table::RESULTS, table::results_all(), 1).await.unwrap();
        let mut found = Vec::new();
        while let Some(Ok(Replayed::Message(message))) = replay.next().await {
            let question = format!("{{\"seq\": {}}}", message.sequence).into();
            let stored = bus
                .request("$JS.API.STREAM.MSG.GET.RESULTS", question, Duration::from_secs(5))
                .await
                .unwrap();
            let stored: Value = serde_json::from_slice(&stored).unwrap();
            let head = stored["message"]["hdrs"].as_str().unwrap_or_default();
            found.push((codec::decode(&message.payload).unwrap(), plain(head)));
        }
        found
    })
}

/// Base64 as the server writes it.
fn plain(encoded: &str) -> String {
    let value = |c: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|k| *k == c)
    };
    let bits: Vec<usize> = encoded.bytes().filter_map(value).collect();
    let bytes = bits.chunks(4).flat_map(|four| {
        let all = four.iter().enumerate().fold(0, |all, (n, six)| all | six << (18 - 6 * n));
        [(all >> 16) as u8, (all >> 8) as u8, all as u8].into_iter().take(four.len() - 1)
    });
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn a_callers_trace_goes_through_every_part_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = up_command(folder.path(), &["--workers", "1"]).unwrap();
    let fleet = LocalFleet::start_by(up.env("TERNFLEET_LOG_FORMAT", "json"), folder.path()).unwrap();
    let batch = submit(&fleet);

    // Over HTTP, and once more without a trace.
    for head in [
        format!("Traceparent: {}\r\n", traceparent()),
        String::new(),
        "traceparent: 00-nonsense\r\n".to_owned(),
    ] {
        let body = "{\"prompt\": \"A crow\", \"max_tokens\": 4}";
        let host = fleet.addresses.http.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             {head}Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    let answers = answers(&fleet.addresses.nats);
    assert_eq!(answers.len(), 4);
    for (n, (result, head)) in answers.iter().enumerate() {
        let traced = n < 2;
        assert_eq!(result.traceparent, traced.then(traceparent), "{n}");
        assert_eq!(head.contains(&format!("traceparent: {}", traceparent())), traced, "{head}");
    }

    // Both parts' logs can be joined by the trace id, and one line says that the job is done.
    let lines = |part: &str| -> Vec<Value> {
        let log = std::fs::read_to_string(folder.path().join(format!("logs/{part}.log"))).unwrap();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let done = |line: &Value| line["span"]["batch"] == batch.as_str() && line["fields"]["message"] == "done";
    let worker: Vec<Value> = wait_for(Duration::from_secs(10), || {
        let lines = lines("worker-1");
        Ok(lines.iter().any(done).then_some(lines))
    })
    .unwrap();
    let job: Vec<&Value> = worker.iter().filter(|line| done(line)).collect();
    assert_eq!(job.len(), 1, "{job:?}");
    let span = &job[0]["span"];
    assert_eq!((span["name"].as_str(), span["trace_id"].as_str()), (Some("job"), Some(TRACE_ID)), "{span}");
    assert_eq!((span["index"].as_u64(), span["attempt"].as_u64()), (Some(0), Some(1)), "{span}");
    assert!(span["worker"].as_str().unwrap().starts_with("local-1"), "{span}");
    let told: Vec<Value> =
        lines("coordinator").into_iter().filter(|line| line["fields"]["batch"] == batch.as_str()).collect();
    let states: Vec<&str> = told.iter().filter_map(|line| line["fields"]["state"].as_str()).collect();
    assert_eq!(states.first(), Some(&"Validating"), "{told:?}");
    assert_eq!(states.last(), Some(&"Completed"), "{told:?}");
    assert!(told.iter().all(|line| line["fields"]["trace_id"] == TRACE_ID), "{told:?}");
}

/// A span as a collector gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    trace_id: String,
    id: String,
    parent: String,
    name: String,
}

#[test]
#[ignore = "needs a program with the feature otlp; `make test-otlp` builds it"]
fn spans_of_every_part_reach_a_collector_as_one_trace() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = mpsc::channel();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut part = [0; 65_536];
            // The request is whole when its announced length is there.
            let body = loop {
                let read = connection.read(&mut part).unwrap_or(0);
                request.extend_from_slice(&part[..read]);
                if let Some(body) = whole_body(&request) {
                    break Some(body.to_vec());
                }
                if read == 0 {
                    break None;
                }
            };
            let _ = connection.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n");
            if body.is_some_and(|body| sender.send(body).is_err()) {
                return;
            }
        }
    });

    let folder = tempfile::tempdir().unwrap();
    let mut up = up_command(folder.path(), &["--workers", "1"]).unwrap();
    up.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let fleet = LocalFleet::start_by(&mut up, folder.path()).unwrap();
    submit(&fleet);

    let mut spans: BTreeMap<String, Span> = BTreeMap::new();
    let wanted = ["accept", "hand_over", "job", "commit"];
    wait_for(Duration::from_secs(30), || {
        while let Ok(body) = bodies.try_recv() {
            let ours = spans_in(&body).into_iter().filter(|span| span.trace_id == TRACE_ID);
            spans.extend(ours.map(|span| (span.name.clone(), span)));
        }
        Ok(wanted.iter().all(|name| spans.contains_key(*name)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {spans:#?}"));
    assert_eq!(spans["accept"].parent, CALLER);
    for pair in wanted.windows(2) {
        let (cause, effect) = (&spans[pair[0]], &spans[pair[1]]);
        assert_eq!(effect.parent, cause.id, "{} follows {}: {spans:#?}", effect.name, cause.name);
    }
    let answered = answers(&fleet.addresses.nats);
    let own = format!("00-{TRACE_ID}-{}-01", spans["job"].id);
    assert_eq!(answered[0].0.traceparent, Some(own));
}

fn whole_body(request: &[u8]) -> Option<&[u8]> {
    let end = request.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&request[..end]).ok()?.to_lowercase();
    let length: usize = head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    assert!(head.starts_with("post /v1/traces "), "{head}");
    (request.len() >= end + length).then(|| &request[end..end + length])
}

/// Spans of an `ExportTraceServiceRequest`: resource_spans (1), scope_spans (2), spans (2).
fn spans_in(body: &[u8]) -> Vec<Span> {
    let nested = |bytes: &[u8], number: u64| -> Vec<Vec<u8>> {
        fields(bytes).into_iter().filter(|(n, _)| *n == number).map(|(_, value)| value).collect()
    };
    let scopes = nested(body, 1).into_iter().flat_map(|resource| nested(&resource, 2));
    let spans = scopes.flat_map(|scope| nested(&scope, 2));
    let hex = |bytes: Option<Vec<u8>>| bytes.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect();
    spans
        .map(|span| Span {
            trace_id: hex(nested(&span, 1).pop()),
            id: hex(nested(&span, 2).pop()),
            parent: hex(nested(&span, 4).pop()),
            name: String::from_utf8(nested(&span, 5).pop().unwrap_or_default()).unwrap(),
        })
        .collect()
}

/// Numbers and contents of the fields of a protobuf message that have a length; the others are passed over.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => drop(varint(&mut bytes)),
            1 => bytes = &bytes[8..],
            5 => bytes = &bytes[4..],
            2 => {
                let length = varint(&mut bytes) as usize;
                found.push((key >> 3, bytes[..length].to_vec()));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}
