//! `kill -9` in the middle of a batch, on real processes: nothing is lost, nothing is doubled, and the texts are the
//! ones that nobody's death would have changed.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use ternfleet_tests::chaos::{Plan, run};
use ternfleet_tests::program::{self, LocalFleet, Service, json_lines, wait_for};
use ternfleet_tests::server::NatsServer;

const JOBS: usize = 40;

fn choices(n: usize) -> usize {
    if n.is_multiple_of(4) { 3 } else { 1 }
}

/// Every fifth line has an answer that is JSON of a schema.
fn is_held(n: usize) -> bool {
    n.is_multiple_of(5)
}

fn long_batch() -> String {
    let text = json!({"type": "string", "minLength": 20, "maxLength": 40});
    let schema = json!({
        "type": "object", "properties": {"king": text, "queen": text}, "required": ["king", "queen"], "additionalProperties": false,
    });
    let form = json!({"type": "json_schema", "json_schema": {"name": "tale", "schema": schema}});
    let line = |n: usize| {
        let mut body = json!({
            // Every fourth line wants several answers.
            "prompt": format!("There was once a king who had {n} sons"), "max_tokens": 180, "seed": n, "n": choices(n), "cache": false,
        });
        if is_held(n) {
            body["response_format"] = form.clone();
        }
        json!({"custom_id": format!("job-{n}"), "method": "POST", "url": "/v1/completions", "body": body})
    };
    (0..JOBS).map(|n| format!("{}\n", line(n))).collect()
}

/// The texts of all choices by custom id; panics on an error line and on an id that comes twice.
fn texts(file: &str) -> BTreeMap<String, Vec<String>> {
    let mut texts = BTreeMap::new();
    for line in json_lines(&std::fs::read_to_string(file).unwrap()).unwrap() {
        assert!(line["error"].is_null(), "{line}");
        let choices = line["response"]["body"]["choices"].as_array().unwrap();
        let text = choices.iter().enumerate().map(|(index, choice)| {
            assert_eq!(choice["index"], index, "{line}");
            choice["text"].as_str().unwrap().to_owned()
        });
        let text = text.collect();
        let doubled = texts.insert(line["custom_id"].as_str().unwrap().to_owned(), text);
        assert!(doubled.is_none(), "answered twice: {line}");
    }
    texts
}

/// Runs the batch undisturbed, then again with a victim killed after the first answers; both must agree.
fn survives_the_death_of(victim: &str) {
    let fleet = LocalFleet::start(&["--workers", "2"]).unwrap();
    let input = fleet.write("in.jsonl", &long_batch()).unwrap();
    let file = |name: &str| fleet.dir.join(name).display().to_string();
    let calm = fleet.run(&["submit", &input, "--out", &file("calm.jsonl")]).unwrap();
    assert_eq!(calm.code, Some(0), "{calm:?}");

    // `submit` itself waits through it all.
    let mut waiting = fleet.spawn(&["submit", &input, "--out", &file("stormy.jsonl")]).unwrap();
    let batch = wait_for(Duration::from_secs(30), || {
        let batches = fleet.run(&["batches", "--json"])?.json()?;
        let newest = &batches[0];
        let fresh = batches.as_array().is_some_and(|all| all.len() == 2);
        Ok(fresh.then(|| newest["id"].as_str().unwrap_or_default().to_owned()))
    })
    .unwrap();
    let seen = fleet.wait_for_answers(&batch, 1).unwrap();
    assert_ne!(seen["status"], "completed", "the batch must be long enough to be disturbed");
    let before = fleet.processes().unwrap()[victim];
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();

    let status = wait_for(Duration::from_secs(180), || Ok(waiting.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(0), "submit survives it");
    let after = wait_for(Duration::from_secs(10), || Ok(fleet.processes()?.get(victim).copied())).unwrap();
    assert_ne!(before, after, "`up` has started it again");

    let (calm, stormy) = (texts(&file("calm.jsonl")), texts(&file("stormy.jsonl")));
    assert_eq!(stormy.len(), JOBS, "nothing is lost");
    for (id, texts) in &stormy {
        let n: usize = id.trim_start_matches("job-").parse().unwrap();
        let mut different = texts.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(
            (texts.len(), different.len()),
            (choices(n), choices(n)),
            "{id} has all of its choices, each its own"
        );
        for text in texts.iter().filter(|_| is_held(n)) {
            let tale: Value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{id}: {error}: {text}"));
            assert!(tale["king"].is_string() && tale["queen"].is_string(), "{id}: {text}");
        }
    }
    assert_eq!(calm, stormy, "the texts are the same to the letter");
    let ended = fleet.run(&["status", &batch, "--json"]).unwrap().json().unwrap();
    assert_eq!(ended["request_counts"], json!({"total": JOBS, "completed": JOBS, "failed": 0}));
}

#[test]
fn a_killed_worker_loses_and_doubles_nothing() {
    survives_the_death_of("worker-1");
}

#[test]
fn a_killed_coordinator_loses_and_doubles_nothing() {
    survives_the_death_of("coordinator");
}

/// Greedy lines, which are continued by their ids, and others, which start over.
fn mixed_batch() -> String {
    let line = |n: usize| {
        let mut body = json!({
            "prompt": format!("There was once a queen who had {n} daughters"), "max_tokens": 300, "temperature": 0,
            "frequency_penalty": 0, "seed": n, "cache": false,
        });
        match n % 4 {
            1 => body["temperature"] = json!(0.8),
            2 => body["stop"] = json!(["the king"]),
            _ => {}
        }
        json!({"custom_id": format!("job-{n}"), "method": "POST", "url": "/v1/completions", "body": body})
    };
    (0..8).map(|n| format!("{}\n", line(n))).collect()
}

#[test]
fn a_killed_worker_in_front_of_another_fleet_is_continued_by_ids_to_the_same_bytes() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let input = fleet.write("in.jsonl", &mixed_batch()).unwrap();
    let file = |name: &str| fleet.dir.join(name).display().to_string();
    let direct = fleet.run(&["submit", &input, "--out", &file("direct.jsonl")]).unwrap();
    assert_eq!(direct.code, Some(0), "{direct:?}");

    let nats = NatsServer::start().unwrap();
    let upstream = format!("{}/v1", fleet.addresses.http.trim_end_matches('/'));
    let start = |words: &[&str], log: &str| {
        let mut command = program::command(words).unwrap();
        command.env("TERNFLEET_CALIBRATE_MS", "200");
        Service::start_command(command, &fleet.dir.join(log)).unwrap()
    };
    let _coordinator = start(&["coordinator", "--nats", &nats.url()], "front.log");
    let worker = |log: &str| {
        let words =
            ["worker", "--engine", "openai", "--upstream", &upstream, "--slots", "4", "--nats", &nats.url()];
        start(&words, log)
    };
    let run = |words: &[&str]| program::run(&[words, &["--nats", &nats.url()]].concat());
    let first = worker("first.log");
    let words = ["submit", &input, "--out", &file("front.jsonl"), "--nats", &nats.url()];
    let mut waiting = program::command(&words).unwrap().spawn().unwrap();
    wait_for(Duration::from_secs(60), || {
        let pods = run(&["pods", "--json"])?.json().unwrap_or_default();
        let running = pods[0]["heartbeat"]["running"].as_array().cloned().unwrap_or_default();
        let far = running.iter().filter(|job| job["generated"].as_u64() > Some(50)).count();
        Ok((far >= 2).then_some(()))
    })
    .unwrap();
    first.signal(Signal::SIGKILL).unwrap();
    let _second = worker("second.log");
    let status = wait_for(Duration::from_secs(120), || Ok(waiting.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(0), "submit survives it");

    let read = |name: &str| {
        let lines = json_lines(&std::fs::read_to_string(file(name)).unwrap()).unwrap();
        let named = |line: Value| (line["custom_id"].as_str().unwrap().to_owned(), line);
        lines.into_iter().map(named).collect::<BTreeMap<String, Value>>()
    };
    let (direct, front) = (read("direct.jsonl"), read("front.jsonl"));
    assert_eq!(front.len(), direct.len());
    let mut continued = 0;
    for (id, line) in &front {
        let body = |line: &Value| {
            let body = &line["response"]["body"];
            (body["choices"].clone(), body["model"].clone(), body["usage"]["completion_tokens"].clone())
        };
        assert_eq!(body(line), body(&direct[id]), "{id}: the same as without a fleet in front");
        assert!(line["ternfleet"]["deterministic"].is_null(), "{line}");
        let n: usize = id.trim_start_matches("job-").parse().unwrap();
        let greedy = matches!(n % 4, 0 | 3);
        assert!(!greedy || line["ternfleet"]["repeated_tokens"] == 0, "{line}");
        continued += usize::from(greedy && line["ternfleet"]["reprefilled_tokens"].as_u64() > Some(30));
    }
    assert!(continued > 0, "the kill came in the middle of some: {front:?}");
}

/// Half a minute of everything at once; `make chaos` does it for a quarter of an hour, on a cluster too.
#[test]
fn half_a_minute_of_chaos_breaks_no_promise() {
    let plan = Plan {
        seed: 7,
        servers: 1,
        workers: 2,
        coordinators: 2,
        lasting: Duration::from_secs(30),
        lines_a_batch: 40,
        pause_ms: (800, 2_500),
        small_disks: false,
        long_stops: false,
        step_clocks: false,
        upstream: true,
    };
    let mut folder = tempfile::tempdir().unwrap();
    let outcome = run(&plan, folder.path());
    if !outcome.as_ref().is_ok_and(|outcome| outcome.broken.is_empty()) {
        folder.disable_cleanup(true);
    }
    let outcome = outcome.unwrap_or_else(|error| panic!("{error:#}; logs: {}", folder.path().display()));
    assert_eq!(outcome.broken, [] as [String; 0], "logs: {}", folder.path().display());
    assert!(outcome.batches > 0 && outcome.faults.len() > 3, "{outcome:?}");
}
