//! Walks the tables of docs/reliability/bad-input.md: bad lines, bad files, bad messages, each with the answer that stands
//! beside it. `TERNFLEET_BLESS=1` writes the answers again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ternfleet_proto::message::{FailureCode, Outcome, Reply};
use ternfleet_proto::{JobKey, Lane, codec, table};
use ternfleet_tests::program::Service;

use super::*;

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability/bad-input.md")
}

/// Rows under a heading: what is in the first column, and in the second.
fn rows(heading: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(page()).unwrap();
    let part = text.split("\n## ").find(|part| part.starts_with(heading)).unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |line: &str| {
        let (first, second) = line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | ")?;
        Some((first.to_owned(), second.to_owned()))
    };
    rows.filter_map(cells).collect()
}

/// Compares the answers with those of the page, or writes them there.
fn walk(heading: &str, answers: &BTreeMap<String, String>) {
    let rows = rows(heading);
    assert!(rows.len() >= 5, "{heading}: {} rows", rows.len());
    if std::env::var_os("TERNFLEET_BLESS").is_some() {
        let mut text = std::fs::read_to_string(page()).unwrap();
        for (what, before) in &rows {
            text = text.replace(
                &format!("| {what} | {before} |"),
                &format!("| {what} | {} |", answers.get(what).unwrap_or(before)),
            );
        }
        std::fs::write(page(), text).unwrap();
        return;
    }
    for (what, expected) in &rows {
        assert_eq!(answers.get(what), Some(expected), "{heading}: {what}");
    }
}

/// What each line of the batch was answered: its message, or `answered`.
async fn answers(client: &Client, name: &str, content: Vec<u8>) -> (BatchView, BTreeMap<u32, String>) {
    let view = client.submit(name, content).await;
    let view = client.wait_end(&view.id).await;
    let told = client.follow(&view.id).await.into_iter().map(|result| {
        let answer = match result.outcome {
            Outcome::Text(_) => "answered".to_owned(),
            Outcome::Failed(failure) => {
                assert_eq!(failure.code, FailureCode::InvalidRequest, "{failure:?}");
                let message = failure.message.split_once(": ").map(|(_, message)| message.to_owned());
                message.unwrap_or_else(|| panic!("no line number: {failure:?}"))
            }
        };
        (result.job.index, answer)
    });
    let told = told.collect();
    (view, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_line_and_file_gets_the_answer_that_the_page_promises() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let _worker = InstantWorker::start(server.bus().await.unwrap(), "one", Manner::default()).await;
    let client = Client::new(server.bus().await.unwrap());

    // Each bad line stands between good ones, and touches none of them.
    let good = "{\"prompt\": \"good\", \"max_tokens\": 4}\n";
    let lines: Vec<String> =
        rows("Lines").into_iter().map(|(line, _)| line.trim_matches('`').to_owned()).collect();
    let content: String = lines.iter().map(|line| format!("{good}{line}\n")).collect();
    let (view, told) = answers(&client, "lines", content.into_bytes()).await;
    assert_eq!((view.state, view.total as usize), (BatchState::Completed, 2 * lines.len()));
    let mut found = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(told[&(2 * at as u32)], "answered", "the line before {line}");
        found.insert(format!("`{line}`"), told[&(2 * at as u32 + 1)].clone());
    }
    walk("Lines", &found);

    let mut found = BTreeMap::new();
    for (file, _) in rows("Files") {
        let content: Vec<u8> = match file.as_str() {
            "an empty file" => Vec::new(),
            "white space alone" => b" \n\t\n\n".to_vec(),
            "a file that is cut off" => format!("{good}{}", &good[..20]).into_bytes(),
            "invalid UTF-8" => [good.as_bytes(), b"{\"prompt\": \"\xff\xfe\"}\n", good.as_bytes()].concat(),
            "a NUL byte" => [good.as_bytes(), b"{\"prompt\": \"\0\"}\n"].concat(),
            "line ends of Windows and a byte order mark" => {
                [b"\xef\xbb\xbf", good.replace('\n', "\r\n").repeat(2).as_bytes()].concat()
            }
            "a repeated custom_id" => "{\"custom_id\": \"a\", \"prompt\": \"x\"}\n".repeat(2).into_bytes(),
            "a line of 200 MB" => {
                let long = [b"{\"prompt\": \"".to_vec(), vec![b'x'; 200 << 20], b"\"}\n".to_vec()].concat();
                [good.as_bytes(), &long, good.as_bytes()].concat()
            }
            "nested without end" => [&[b'['; 1 << 20][..], b"\n", good.as_bytes()].concat(),
            "blank lines between" => format!("\n{good}\n\n{good}\n").into_bytes(),
            other => panic!("{other}: nobody knows how to make that file"),
        };
        let (view, told) = answers(&client, &file.replace(' ', "-"), content).await;
        let told: Vec<String> =
            told.iter().map(|(at, answer)| format!("line {}: {answer}", at + 1)).collect();
        let told = told.join("; ");
        let state = format!("{:?}", view.state).to_lowercase();
        let reason = view.reason.map_or(String::new(), |reason| format!(" ({reason})"));
        let answer = format!("{state}{reason}, {} lines. {told}", view.total);
        found.insert(file, answer.trim().replace('\0', "NUL"));
    }
    walk("Files", &found);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_message_on_any_subject_stops_no_process() {
    let server = NatsServer::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = server.url();
    let log = |name: &str| folder.path().join(name);
    let coordinator = Service::start(&["coordinator", "--nats", &url], &log("coordinator.log")).unwrap();
    std::fs::write(log("worker.toml"), "engine = \"instant\"\ncalibrate_ms = 0\n").unwrap();
    let config = log("worker.toml").display().to_string();
    let worker =
        Service::start(&["worker", "--nats", &url, "--config", &config, "--pod", "p"], &log("worker.log"))
            .unwrap();
    let bus = server.bus().await.unwrap();
    let client = Client::new(Arc::clone(&bus));
    let view = client.submit("before", prompts(5)).await;
    assert_eq!(client.wait_end(&view.id).await.state, BatchState::Completed);

    let pods: Vec<ternfleet_proto::message::PodView> = client.ask(ApiVerb::Pods, &()).await.unwrap();
    let worker_id = pods[0].heartbeat.worker.clone();
    let job = JobKey { batch: view.id.clone(), index: 0 };
    let foreign = JobKey { batch: "batch_of_nobody".parse().unwrap(), index: 7 };
    let mut subjects = vec![
        table::heartbeat(&worker_id),
        table::heartbeat(&"stranger".parse().unwrap()),
        table::control(&worker_id),
        table::control_all().to_owned(),
        table::checkpoint(&job),
        table::checkpoint(&foreign),
        table::result(&client.tenant, &job, &worker_id),
        table::result(&client.tenant, &foreign, &worker_id),
        table::work(0, &worker_id, Lane::Batch),
        table::work(0, &worker_id, Lane::Interactive),
        table::dead(&client.tenant, &job),
        table::event("batch"),
        table::tokens(&job),
        table::done(&job),
    ];
    subjects.extend(ApiVerb::ALL.map(table::api));
    for (message, _) in rows("Messages") {
        let payload: Vec<u8> = match message.as_str() {
            "nothing at all" => Vec::new(),
            "text" => b"hello?".to_vec(),
            "a MessagePack map without end" => vec![0xdf, 0xff, 0xff, 0xff, 0xff],
            "another subject's message" => codec::encode(&pods[0].heartbeat).to_vec(),
            "a megabyte of zeros" => vec![0; 1_000_000],
            other => panic!("{other}: nobody knows how to make that message"),
        };
        for subject in &subjects {
            bus.send(subject, payload.clone().into()).await.unwrap();
        }
        for verb in ApiVerb::ALL {
            let asked = bus.request(&table::api(verb), payload.clone().into(), Duration::from_secs(10)).await;
            let answer = asked.unwrap_or_else(|error| panic!("{verb:?} with {message}: {error}"));
            let refused = codec::decode::<Reply<serde::de::IgnoredAny>>(&answer);
            // Only pods and the fleet may be asked for with anything.
            assert!(
                matches!(verb, ApiVerb::Pods | ApiVerb::Fleet) || refused.unwrap().is_err(),
                "{verb:?} takes {message}"
            );
        }
        // A record that cannot be read is left alone.
        let key = format!("batch_bad{}", message.len());
        bus.kv_put(table::KV_BATCHES, &key, payload.into()).await.unwrap();
    }
    let view = client.submit("after", prompts(50)).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed), (BatchState::Completed, 50));
    for (mut service, name) in [(coordinator, "coordinator.log"), (worker, "worker.log")] {
        let said = std::fs::read_to_string(log(name)).unwrap();
        assert!(service.is_alive() && !said.contains("panicked"), "{said}");
    }
}
