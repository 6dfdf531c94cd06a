//! Clients that are not ours against a real local fleet: the `openai` packages of Python and npm, `async-openai`,
//! schemathesis over the OpenAPI document, nats-py as submitter and as worker over plain NATS, a terminal in front of `top`;
//! and the wheel's own Python module, with tables of other libraries.
//!
//! `make test` fetches them first (`scripts/fetch-clients.sh`, `scripts/fetch-npm-clients.sh`).

use std::path::{Path, PathBuf};
use std::process::Command;

use ternfleet_tests::program::{LocalFleet, binary};

#[path = "clients/openai_flow.rs"]
mod openai_flow;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("because tests/ is a folder of the repository")
        .to_owned()
}

fn fleet() -> LocalFleet {
    LocalFleet::start(&["--workers", "1"]).expect("because a fleet starts on this machine")
}

/// The same, with a model that calls functions.
fn fleet_with_tools() -> LocalFleet {
    LocalFleet::start_with_tools(&["--workers", "1"]).expect("because a fleet starts on this machine")
}

fn base(fleet: &LocalFleet) -> String {
    let http = &fleet.addresses.http;
    if http.starts_with("http") { http.clone() } else { format!("http://{http}") }
}

/// Runs a client to its end; what it prints is the message when a rule does not hold.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    said
}

fn fetched(program: &str) -> PathBuf {
    let path = root().join("target/clients/bin").join(program);
    assert!(path.exists(), "{} is missing: run scripts/fetch-clients.sh", path.display());
    path
}

/// Runs a script of `tests/clients`, which says at its end that all of its rules hold.
fn run_python(script: &str, arguments: &[&str]) {
    let mut command = Command::new(fetched("python"));
    command.arg(root().join("tests/clients").join(script)).args(arguments);
    let said = run(command);
    assert!(said.contains("all rules hold"), "{said}");
}

#[test]
fn the_openai_package_runs_batches_streams_and_errors_unchanged() {
    run_python("openai_flow.py", &[&base(&fleet_with_tools())]);
}

#[test]
fn small_things_that_break_clients_are_as_openai_has_them() {
    run_python("details.py", &[&base(&fleet_with_tools())]);
}

/// The same for a script of `tests/clients/matrix`.
fn run_matrix(script: &str, base: &str) {
    let python = root().join("target/matrix/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/fetch-matrix.sh", python.display());
    let mut command = Command::new(python);
    command.arg(root().join("tests/clients/matrix").join(script)).arg(base);
    let said = run(command);
    assert!(said.contains("all rules hold"), "{said}");
}

#[test]
fn litellm_langchain_instructor_llm_and_lm_evaluation_harness_do_what_their_users_do_first() {
    run_matrix("flow.py", &base(&fleet_with_tools()));
}

#[test]
fn tables_of_every_kind_go_through_the_module_of_the_wheel() {
    run_matrix("tables.py", &base(&fleet()));
}

#[test]
fn the_openai_npm_package_runs_batches_streams_and_errors_unchanged() {
    let modules = root().join("target/npm");
    if !modules.join("node_modules/openai").is_dir() {
        assert!(std::env::var_os("CI").is_none(), "npm is missing: scripts/fetch-npm-clients.sh got nothing");
        eprintln!("skipped: npm is not here, so the openai npm package could not be fetched");
        return;
    }
    let fleet = fleet_with_tools();
    let mut command = Command::new("node");
    command.arg(root().join("tests/clients/npm/openai_flow.mjs")).arg(base(&fleet)).arg(modules);
    let said = run(command);
    assert!(said.contains("all rules hold"), "{said}");
}

#[tokio::test]
async fn the_rust_client_async_openai_runs_batches_streams_and_errors_unchanged() {
    openai_flow::Flow::new(&base(&fleet_with_tools())).run().await;
}

#[test]
fn requests_made_from_the_openapi_document_find_no_server_error() {
    let fleet = fleet();
    let mut command = Command::new(fetched("schemathesis"));
    command.current_dir(&fleet.dir).args(["run", &format!("{}/openapi.json", base(&fleet))]);
    command.args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]);
    // The live feed never ends; embeddings are answered 501 on purpose, and a generation may wait for its turn.
    command.args(["--exclude-path", "/api/live", "--exclude-path", "/v1/embeddings"]);
    command.args(["--max-examples", "12", "--phases", "examples,coverage,fuzzing", "--seed", "1"]);
    command.args(["--max-time", "40", "--request-timeout", "30", "--no-color", "--continue-on-failure"]);
    run(command);
}

#[test]
fn the_examples_of_the_api_page_run_as_they_stand_there() {
    run_python("api_examples.py", &[&base(&fleet()), &root().join("docs/api.md").display().to_string()]);
}

#[test]
fn a_submitter_in_python_needs_only_the_documented_wire_format() {
    run_python("nats_flow.py", &[&fleet().addresses.nats]);
}

#[test]
fn a_worker_in_python_needs_only_the_documented_wire_format() {
    run_python("foreign_worker.py", &[&fleet().addresses.nats]);
}

#[test]
fn top_draws_on_a_terminal_follows_its_size_and_gives_it_back() {
    let fleet = fleet();
    let program = binary().expect("because the binary was built beside the tests");
    run_python("terminal_flow.py", &[&program.display().to_string(), &fleet.addresses.nats]);
}
