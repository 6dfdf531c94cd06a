//! `ternfleet launch --at local`: from a file of prompts to results and a bill, whatever is killed on the way, with
//! nothing left running.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ternfleet_tests::program::{self, Ended, LocalFleet, STORYTELLER, is_running, json_lines, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// A machine's own folder of launched fleets, and a file of prompts.
struct Laptop {
    folder: tempfile::TempDir,
    lines: usize,
}

impl Laptop {
    fn new(lines: usize, tokens: usize) -> Laptop {
        let folder = tempfile::tempdir().unwrap();
        let line =
            |n| format!("{{\"custom_id\": \"c{n}\", \"prompt\": \"Tale {n}.\", \"max_tokens\": {tokens}}}\n");
        let prompts: String = (0..lines).map(line).collect();
        std::fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
        Laptop { folder, lines }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(arguments).unwrap();
        command.env("TERNFLEET_STATE_DIR", self.path("fleets")).env("TERNFLEET_CALIBRATE_MS", "100");
        command.current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments)).unwrap()
    }

    /// Starts a launch; what it says goes to `launch.log`.
    fn launch(&self, more: &[&str]) -> Child {
        let log = std::fs::File::create(self.path("launch.log")).unwrap();
        let whole =
            [&["launch", "prompts.jsonl", "--at", "local", "--model", STORYTELLER, "--yes"], more].concat();
        let mut command = self.command(&whole);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn fleets(&self) -> Vec<Value> {
        let listed = self.run(&["fleets", "--all", "--json"]);
        listed.json().unwrap().as_array().unwrap().clone()
    }

    /// The one fleet of this machine, once it holds.
    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let found = wait_for(PATIENCE, || Ok(self.fleets().into_iter().find(|fleet| holds(fleet))));
        found.unwrap_or_else(|error| {
            panic!(
                "{what}: {error}; {}",
                std::fs::read_to_string(self.path("launch.log")).unwrap_or_default()
            )
        })
    }

    fn head(&self, fleet: &Value) -> PathBuf {
        self.path("fleets").join(fleet["name"].as_str().unwrap()).join("head")
    }

    /// Every line is answered once, in order.
    fn has_every_answer(&self) {
        let text = std::fs::read_to_string(self.path("prompts.answers.jsonl")).unwrap();
        let ids: Vec<String> = json_lines(&text)
            .unwrap()
            .iter()
            .map(|line| line["custom_id"].as_str().unwrap().to_owned())
            .collect();
        let wanted: Vec<String> = (0..self.lines).map(|n| format!("c{n}")).collect();
        assert_eq!(ids, wanted);
    }

    /// Nothing runs, and the bill is the sum of what each pod cost.
    fn has_nothing_left(&self) {
        for fleet in self.fleets() {
            assert!(fleet["ended_at"].is_u64(), "{fleet}");
            let processes: BTreeMap<String, i32> =
                serde_json::from_slice(&std::fs::read(self.head(&fleet).join("processes.json")).unwrap())
                    .unwrap();
            assert!(!processes.values().any(|process| is_running(*process)), "{processes:?}");
            for (pod, row) in fleet["bill"].as_object().unwrap() {
                if row["provider_id"].is_null() {
                    continue;
                }
                let card = std::fs::read(self.head(&fleet).join("pods").join(format!("{pod}.json"))).unwrap();
                let card: Value = serde_json::from_slice(&card).unwrap();
                assert!(!is_running(card["process"].as_i64().unwrap() as i32), "{card}");
                let price = card["price_usd_micro_per_hour"].as_i64().unwrap();
                let ms = card["ended_at_ms"].as_i64().unwrap() - card["created_at_ms"].as_i64().unwrap();
                assert_eq!(row["billed_usd_micro"].as_i64(), Some(price * ms / 3_600_000), "{row} {card}");
            }
        }
    }
}

fn end(mut child: Child, signal: Signal) -> Option<i32> {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn a_launch_shows_quote_results_and_bill_and_leaves_nothing() {
    let laptop = Laptop::new(12, 24);
    let refused = laptop.run(&["launch", "prompts.jsonl", "--model", STORYTELLER]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("add --yes"), "{refused:?}");
    assert!(refused.stdout.contains("plan\n") && refused.stdout.contains("lines     12"), "{refused:?}");
    assert!(laptop.fleets().is_empty(), "nothing is begun before somebody agrees");

    let began = Instant::now();
    let mut child = laptop.launch(&["--pods", "1"]);
    assert_eq!(
        child.wait().unwrap().code(),
        Some(0),
        "{}",
        std::fs::read_to_string(laptop.path("launch.log")).unwrap()
    );
    let took = began.elapsed();
    let said = std::fs::read_to_string(laptop.path("launch.log")).unwrap();
    for part in ["provider's bill", "total", "quoted  $"] {
        assert!(said.contains(part), "{said}");
    }
    laptop.has_every_answer();
    laptop.has_nothing_left();
    let fleet = &laptop.fleets()[0];
    assert!(
        fleet["bill"].as_object().unwrap().values().any(|row| row["metered_usd_micro"].as_i64() > Some(0)),
        "{fleet}"
    );
    assert!(took < Duration::from_secs(60), "{took:?}: {said}");
    let again = laptop.run(&["launch", "--resume", fleet["name"].as_str().unwrap()]);
    assert!(again.stderr.contains("has ended"), "{again:?}");
}

#[test]
fn a_killed_launch_is_gone_on_with_and_no_line_is_lost_or_doubled() {
    let laptop = Laptop::new(60, 60);
    let child = laptop.launch(&[]);
    let fleet = laptop.wait_for("a batch", |fleet| fleet["batch"].is_string());
    end(child, Signal::SIGKILL);
    let up: Value =
        serde_json::from_slice(&std::fs::read(laptop.head(&fleet).join("addresses.json")).unwrap()).unwrap();
    let up = i32::try_from(up["pid"].as_i64().unwrap()).unwrap();
    assert!(is_running(up), "the head works on");
    let listed = laptop.run(&["fleets"]);
    assert!(listed.stdout.contains("detached") && listed.stdout.contains("working"), "{listed:?}");

    // The head dies as well: the next command starts it again on what it had stored.
    kill(Pid::from_raw(up), Signal::SIGKILL).unwrap();
    wait_for(PATIENCE, || Ok((!is_running(up)).then_some(()))).unwrap();
    let resumed = laptop.run(&["launch", "--resume"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    laptop.has_every_answer();
    laptop.has_nothing_left();
}

#[test]
fn a_signal_detaches_and_down_keeps_what_was_answered() {
    let laptop = Laptop::new(400, 200);
    let child = laptop.launch(&["--out", "kept.jsonl"]);
    let fleet = laptop.wait_for("a batch", |fleet| fleet["batch"].is_string());
    assert_eq!(end(child, Signal::SIGINT), Some(130));
    let said = std::fs::read_to_string(laptop.path("launch.log")).unwrap();
    assert!(said.contains("continues without this command"), "{said}");
    let nats = std::fs::read(laptop.head(&fleet).join("addresses.json")).unwrap();
    let nats = serde_json::from_slice::<Value>(&nats).unwrap()["nats"].as_str().unwrap().to_owned();
    wait_for(PATIENCE, || {
        let status =
            laptop.run(&["status", fleet["batch"].as_str().unwrap(), "--json", "--nats", &nats]).json()?;
        Ok((status["request_counts"]["completed"].as_u64() > Some(0)).then_some(()))
    })
    .unwrap();
    let ended = laptop.run(&["down", "--all"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!json_lines(&std::fs::read_to_string(laptop.path("kept.jsonl")).unwrap()).unwrap().is_empty());
    laptop.has_nothing_left();
    assert_eq!(laptop.run(&["down"]).code, Some(1), "there is none left to end");
}

#[test]
fn a_launch_uses_a_coordinator_that_runs_and_leaves_it_running() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let laptop = Laptop::new(6, 16);
    let ended =
        laptop.run(&["launch", "prompts.jsonl", "--head", &fleet.addresses.nats, "--yes", "--anyway"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    laptop.has_every_answer();
    assert!(laptop.fleets()[0]["ended_at"].is_u64());
    assert_eq!(fleet.run(&["pods", "--json"]).unwrap().json().unwrap().as_array().unwrap().len(), 1);
    assert!(Path::new(&fleet.dir).join("addresses.json").exists());
}
