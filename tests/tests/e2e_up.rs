//! `ternfleet up`: its folder, its end, and that it leaves nothing behind.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "e2e_up/prometheus.rs"]
mod prometheus;
#[path = "e2e_up/trace.rs"]
mod trace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ternfleet_tests::program::{LocalFleet, command, is_running, json_lines, run, up_command, wait_for};

const END_WITHIN: Duration = Duration::from_secs(10);

/// Waits until none of the processes is there any more.
fn all_gone(processes: &BTreeMap<String, i32>) {
    wait_for(Duration::from_secs(5), || Ok((!processes.values().any(|pid| is_running(*pid))).then_some(())))
        .unwrap();
}

#[test]
fn a_signal_ends_it_with_0_and_leaves_no_process_but_its_state() {
    let here = tempfile::tempdir().unwrap();
    let folder = &here.path().join("ternfleet-data");
    let mut fleet = LocalFleet::start_in(folder, &[]).unwrap();
    assert_eq!(fleet.addresses.pid, fleet.pid());
    assert_eq!(http_status(&fleet.addresses.http, "/readyz"), 200);
    assert_eq!(http_status(&fleet.addresses.http, "/metrics"), 200);
    let input = fleet.write("in.jsonl", "{\"prompt\": \"A fox\", \"max_tokens\": 8}\n").unwrap();
    let id = fleet.run(&["submit", &input, "--detach"]).unwrap().stdout.trim().to_owned();
    fleet.wait_for_answers(&id, 1).unwrap();

    let second = up_command(folder, &[]).unwrap().output().unwrap();
    assert_eq!(second.status.code(), Some(1), "the folder is locked");
    let said = std::fs::read_to_string(folder.join("up.log")).unwrap();
    assert!(said.contains("in use by another"), "{said}");

    let processes = fleet.processes().unwrap();
    assert_eq!(processes.len(), 4, "{processes:?}");
    let began = Instant::now();
    fleet.signal(Signal::SIGINT).unwrap();
    let status = fleet.wait(END_WITHIN).unwrap();
    assert_eq!(status.code(), Some(0), "after {:?}", began.elapsed());
    all_gone(&processes);
    assert!(!folder.join("addresses.json").exists());

    // The next one finds what this one knew.
    let mut fleet = LocalFleet::start_in(folder, &[]).unwrap();
    let results = fleet.run(&["results", &id]).unwrap();
    assert_eq!(json_lines(&results.stdout).unwrap().len(), 1, "{results:?}");
    let dir = folder.display().to_string();
    let logs = run(&["logs", "--dir", &dir]).unwrap();
    assert!(logs.stdout.contains("coordinator  ") && logs.stdout.contains("worker-2  "), "{logs:?}");
    let one = run(&["logs", "coordinator", "-n", "1", "--dir", &dir]).unwrap();
    assert_eq!((one.code, one.stdout.lines().count()), (Some(0), 1), "{one:?}");
    let absent = run(&["logs", "worker-9", "--dir", &dir]).unwrap();
    assert!(absent.code == Some(1) && absent.stderr.contains("worker-1, worker-2"), "{absent:?}");
    let doctor = command(&["doctor", "--json"]).unwrap().current_dir(here.path()).output().unwrap();
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let durability = findings.iter().find(|found| found["check"] == "durability").unwrap();
    assert_eq!(durability["state"], "warning", "one server syncs every two minutes: {durability}");
    assert!(durability["detail"].as_str().unwrap().contains("every 120 s"), "{durability}");
    let processes = fleet.processes().unwrap();
    let down = run(&["down", "--dir", &dir]).unwrap();
    assert_eq!(down.code, Some(0), "{down:?}");
    assert_eq!(fleet.wait(END_WITHIN).unwrap().code(), Some(0));
    all_gone(&processes);
    let again = run(&["down", "--dir", &dir]).unwrap();
    assert!(again.code == Some(1) && again.stderr.contains("no fleet runs in"), "{again:?}");
}

#[test]
fn nothing_survives_even_when_it_is_killed() {
    let mut fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let processes = fleet.processes().unwrap();
    fleet.signal(Signal::SIGKILL).unwrap();
    fleet.wait(END_WITHIN).unwrap();
    all_gone(&processes);
}

#[test]
fn a_model_that_is_missing_or_broken_is_said_and_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display().to_string();
    let missing = run(&["up", "--dir", &dir, "--model", "no-such.gguf"]).unwrap();
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("no-such.gguf"), "{}", missing.stderr);

    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, "this is no model").unwrap();
    let ports = ["--nats-port", "0", "--http-port", "0"];
    let ended = run(&[
        &["up", "--dir", &dir, "--workers", "1", "--model", &broken.display().to_string()],
        &ports[..],
    ]
    .concat())
    .unwrap();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("GGUF"), "the worker's own words: {}", ended.stderr);
}

fn http_status(address: &str, path: &str) -> u16 {
    ternfleet_tests::http::get_blocking(address, path).0
}
