//! What follows the end of a batch, with the real program as the caller: dead letters, failed lines sent again, the
//! webhook, the command.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use ternfleet_tests::program::{self, Ended};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Runs the program against the server, off the async threads.
async fn ternfleet(server: &NatsServer, arguments: &[&str]) -> Ended {
    let url = server.url();
    let arguments: Vec<String> =
        arguments.iter().copied().chain(["--nats", &url]).map(str::to_owned).collect();
    let run = tokio::task::spawn_blocking(move || {
        program::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    });
    run.await.unwrap().unwrap()
}

/// Custom ids of an output file, with whether each line is good.
fn lines_of(file: &std::path::Path) -> BTreeMap<String, bool> {
    let lines = program::json_lines(&std::fs::read_to_string(file).unwrap()).unwrap();
    lines
        .iter()
        .map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line["error"].is_null()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_job_is_listed_with_every_attempt_and_sent_again() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let sick = |host: &str| Manner {
        host: host.to_owned(),
        faults_on: Some("doom".to_owned()),
        ..Manner::default()
    };
    let one = InstantWorker::start(server.bus().await.unwrap(), "one", sick("host-a")).await;
    let two = InstantWorker::start(server.bus().await.unwrap(), "two", sick("host-b")).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let input =
        "{\"prompt\": \"fine\", \"max_tokens\": 4}\n{\"prompt\": \"doom\", \"max_tokens\": 4}\nno request\n";
    std::fs::write(path("in.jsonl"), input).unwrap();

    let ended =
        ternfleet(&server, &["submit", &path("in.jsonl"), "--out", &path("first.jsonl"), "--json"]).await;
    assert_eq!(ended.code, Some(2), "two of three lines are error lines: {ended:?}");
    let id = ended.json().unwrap()["id"].as_str().unwrap().to_owned();

    let listed = ternfleet(&server, &["dead", "list", "--json"]).await.json_lines().unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["job"]["index"], 1);
    let log = listed[0]["log"].as_array().unwrap();
    assert!(log.len() >= 3, "{log:?}");
    let told: Vec<&str> = log.iter().filter_map(|attempt| attempt["host"].as_str()).collect();
    assert!(told.contains(&"host-a") && told.contains(&"host-b"), "{log:?}");
    assert!(log[0]["reason"].as_str().unwrap().contains("doomed"), "{log:?}");
    let shown = ternfleet(&server, &["dead", "show", &id, "2"]).await;
    assert!(shown.stdout.contains("host-a") && shown.stdout.contains("doomed"), "{shown:?}");
    let none = ternfleet(&server, &["dead", "show", &id, "1"]).await;
    assert_eq!(none.code, Some(1), "line 1 is alive and well: {none:?}");

    // The fleet gets well; what died goes again, then all that failed.
    drop((one, two));
    let _three = InstantWorker::start(server.bus().await.unwrap(), "three", Manner::default()).await;
    let retried = ternfleet(&server, &["dead", "retry", &id, "--out", &path("retried.jsonl")]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    assert_eq!(lines_of(std::path::Path::new(&path("retried.jsonl"))), [("line-2".to_owned(), true)].into());
    let valid = ternfleet(&server, &["resubmit", &id, "--failed", "--out", &path("valid.jsonl")]).await;
    assert_eq!(valid.code, Some(0), "a malformed line would only fail again: {valid:?}");
    assert!(valid.stderr.contains("1 invalid line(s) left out"), "{valid:?}");
    let (out, code) = (path("again.jsonl"), "invalid_request");
    let again = ["resubmit", &id, "--failed", "--code", code, "--code", "poison", "--out", &out, "--json"];
    let again = ternfleet(&server, &again).await;
    assert_eq!(again.code, Some(2), "what is no request stays none: {again:?}");
    assert_eq!(again.json().unwrap()["metadata"]["resubmitted_from"], Value::from(id.as_str()));
    let text = std::fs::read_to_string(path("again.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    let poison = ["resubmit", &id, "--failed", "--code", "batch_expired"];
    let poison = ternfleet(&server, &poison).await;
    assert!(poison.stderr.contains("no line was selected"), "{poison:?}");
    coordinator.stop().await;
}

/// One HTTP request as it came: head and body.
async fn receive(listener: &TcpListener, status: &str) -> (String, Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0u8; 4096];
        let count = stream.read(&mut chunk).await.unwrap();
        bytes.extend_from_slice(&chunk[..count]);
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if bytes.len() >= head + 4 + length.parse::<usize>().unwrap() {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            return (text, bytes[head + 4..].to_vec());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_is_called_until_it_takes_the_call_and_the_command_runs_here() {
    let server = NatsServer::start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut options = Options::default();
    options.webhooks.allow = vec![address.clone()];
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("in.jsonl"), prompts(3)).unwrap();
    std::fs::write(path("secret"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();

    let inward = ["submit", &path("in.jsonl"), "--webhook", "https://169.254.169.254/latest"];
    let inward = ternfleet(&server, &inward).await;
    assert_eq!(inward.code, Some(1));
    assert!(inward.stderr.contains("not a public address"), "{inward:?}");

    let (url, secret, out) = (format!("http://{address}/done?x=1"), path("secret"), path("out.jsonl"));
    let then = format!("echo \"$TERNFLEET_BATCH $TERNFLEET_STATUS $TERNFLEET_RESULTS\" > {}", path("then"));
    let input = path("in.jsonl");
    let submit = [
        "submit",
        &input,
        "--out",
        &out,
        "--webhook",
        &url,
        "--webhook-secret-file",
        &secret,
        "--then",
        &then,
        "--json",
    ];
    let ended = ternfleet(&server, &submit).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let object = ended.json().unwrap();
    let id = object["id"].as_str().unwrap();
    assert!(!ended.stdout.contains("whsec"), "the secret is not shown: {ended:?}");
    assert_eq!(std::fs::read_to_string(path("then")).unwrap(), format!("{id} completed {out}\n"));

    let (first, _) = receive(&listener, "503 Service Unavailable").await;
    let (second, body) = tokio::time::timeout(Duration::from_secs(20), receive(&listener, "204 No Content"))
        .await
        .expect("it is called again");
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&event["type"], &event["data"]["id"]), (&"batch.completed".into(), &Value::from(id)));
    let header = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    assert!(second.starts_with("post /done?x=1 http/1.1"), "{second}");
    assert_eq!(header(&first, "webhook-id"), header(&second, "webhook-id"), "a repetition is told by its id");
    assert!(header(&second, "webhook-signature").is_some_and(|signature| signature.starts_with("v1,")));
    let client = Client::new(server.bus().await.unwrap());
    let id = id.parse().unwrap();
    let delivered = Some(ternfleet_proto::message::WebhookState::Delivered);
    client.wait(&id, "the webhook's end", |view| view.webhook == delivered).await;
    coordinator.stop().await;
}
