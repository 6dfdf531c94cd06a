//! Clients that are not ours against a real local fleet: the `openai` package over HTTP, nats-py over plain NATS.
//!
//! `make test` puts them into `target/clients` first (`scripts/fetch-clients.sh`).

use std::path::{Path, PathBuf};
use std::process::Command;

use ternfleet_tests::program::LocalFleet;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("because tests/ is a folder of the repository")
        .to_owned()
}

/// Runs a client script; what it prints is the message when a rule does not hold.
fn run_client(script: &str, address: &str) {
    let python = root().join("target/clients/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/fetch-clients.sh", python.display());
    let output = Command::new(python)
        .arg(root().join("tests/clients").join(script))
        .arg(address)
        .output()
        .expect("because the interpreter is there");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("all rules hold"), "{said}\n{complained}");
}

#[test]
fn the_openai_package_runs_batches_streams_and_errors_unchanged() {
    let fleet = LocalFleet::start(&["--workers", "1"]).expect("because a fleet starts on this machine");
    let http = &fleet.addresses.http;
    let base = if http.starts_with("http") { http.clone() } else { format!("http://{http}") };
    run_client("openai_flow.py", &base);
}

#[test]
fn a_submitter_in_python_needs_only_the_documented_wire_format() {
    let fleet = LocalFleet::start(&["--workers", "1"]).expect("because a fleet starts on this machine");
    run_client("nats_flow.py", &fleet.addresses.nats);
}
