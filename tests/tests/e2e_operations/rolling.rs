//! A rolling restart of everything while a batch runs: no line lost, none doubled, no token made twice.

use std::time::Duration;

use nix::sys::signal::Signal;
use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::program::{self, json_lines, wait_for};

use crate::fleet::{as_tenant, coordinator, prompts, wait_for_pods, with_connection, worker};

const JOBS: usize = 80;

#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    let cluster = Cluster::start(1).unwrap();
    let old = coordinator(&cluster, "c-old", &[]);
    let token = cluster.nats(&["token"]).unwrap();
    let start = |pod: &str| worker(&cluster, pod, token.trim(), &[]);
    let (mut first, mut second) = (start("pod-1"), start("pod-2"));
    wait_for_pods(&cluster, "acme", 2);

    let input = prompts(&cluster, "in.jsonl", JOBS, 60);
    let output = cluster.scratch("out.jsonl").display().to_string();
    let arguments = with_connection(&cluster, "acme", &["submit", &input, "--out", &output]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut submit = program::command(&arguments).unwrap().spawn().unwrap();
    let answered = || {
        let batches = as_tenant(&cluster, "acme", &["batches", "--json"]).json()?;
        Ok(batches[0]["request_counts"]["completed"].as_u64().filter(|done| *done > 0))
    };
    let done: u64 = wait_for(Duration::from_secs(60), answered).unwrap();
    assert!(done < JOBS as u64, "the batch must be long enough to be disturbed");

    // The coordinator first: the new one is warm before the old one goes.
    let _new = coordinator(&cluster, "c-new", &[]);
    old.signal(Signal::SIGTERM);
    for old in [&mut first, &mut second] {
        old.signal(Signal::SIGTERM).unwrap();
        let status = wait_for(Duration::from_secs(10), || Ok(old.try_wait()?)).unwrap();
        assert_eq!(status.code(), Some(0), "a worker hands everything back and ends well");
        *old = start("pod-again");
    }

    let status = wait_for(Duration::from_secs(180), || Ok(submit.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(0));
    let lines = json_lines(&std::fs::read_to_string(&output).unwrap()).unwrap();
    let mut ids: Vec<&str> = lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((lines.len(), ids.len()), (JOBS, JOBS), "each line once");
    assert!(lines.iter().all(|line| line["error"].is_null()));
}
