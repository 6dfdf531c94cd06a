//! Two workers with different speeds and prices get work accordingly: plenty of it in proportion to their speed,
//! little of it where it is cheapest. Real processes, with engines that take a known time a step.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use ternfleet_tests::program::{Service, run, wait_for};
use ternfleet_tests::server::NatsServer;

const FAST_AND_DEAR: &str = "fast";
const SLOW_AND_CHEAP: &str = "slow";

#[test]
fn plenty_of_work_follows_speed_and_little_follows_price() {
    let nats = NatsServer::start().unwrap();
    let url = nats.url();
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str| folder.path().join(format!("{name}.log"));
    let _coordinator = Service::start(&["coordinator", "--nats", &url], &log("coordinator")).unwrap();
    // The same tokens per second cost ten times as much on the fast one.
    let worker = |pod: &str, engine: &str, price: &str| {
        let arguments = [
            "worker",
            "--nats",
            &url,
            "--pod",
            pod,
            "--slots",
            "4",
            "--price-usd-per-hour",
            price,
            "--set",
            engine,
            "--set",
            "calibrate_ms=300",
        ];
        Service::start(&arguments, &log(pod)).unwrap()
    };
    let _fast = worker(FAST_AND_DEAR, "engine=instant:5", "10");
    let _slow = worker(SLOW_AND_CHEAP, "engine=instant:20", "0.25");
    wait_for(Duration::from_secs(30), || {
        let pods = run(&["pods", "--json", "--nats", &url])?;
        let pods: Vec<Value> = serde_json::from_str(&pods.stdout).unwrap_or_default();
        let ready = pods.iter().filter(|pod| pod["live"] == true && pod["heartbeat"]["state"] == "ready");
        Ok((ready.count() == 2).then_some(()))
    })
    .unwrap();

    let little = submit(&url, folder.path(), 2);
    assert_eq!(little.get(FAST_AND_DEAR), None, "the cheap one takes it all: {little:?}");
    let plenty = submit(&url, folder.path(), 400);
    let (fast, slow) = (plenty[FAST_AND_DEAR], plenty[SLOW_AND_CHEAP]);
    assert_eq!(fast + slow, 400);
    // Four times the speed; the last windows and the measurement blur it.
    assert!(fast >= 2 * slow && slow >= 20, "fast {fast}, slow {slow}");
}

/// Runs a batch of so many jobs; answers how many each pod did.
fn submit(url: &str, folder: &std::path::Path, jobs: usize) -> BTreeMap<String, usize> {
    let input = folder.join("in.jsonl");
    let line = "{\"prompt\": \"A fox\", \"max_tokens\": 20}\n";
    std::fs::write(&input, line.repeat(jobs)).unwrap();
    let ended = run(&["submit", &input.display().to_string(), "--out", "-", "--nats", url]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let pods = run(&["pods", "--json", "--nats", url]).unwrap().json().unwrap();
    let pod_of: BTreeMap<&str, &str> = pods
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| (pod["heartbeat"]["worker"].as_str().unwrap(), pod["heartbeat"]["pod"].as_str().unwrap()))
        .collect();
    let mut done = BTreeMap::new();
    for line in ended.json_lines().unwrap() {
        let pod = pod_of[line["ternfleet"]["worker"].as_str().unwrap()];
        *done.entry(pod.to_owned()).or_insert(0) += 1;
    }
    done
}
