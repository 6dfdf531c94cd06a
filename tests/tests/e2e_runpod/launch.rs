//! `ternfleet launch --at runpod` over the stand-in: real pods from a stock image, whatever is killed on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use ternfleet_cloud::start::STOCK_IMAGE;
use ternfleet_tests::program::{self, Ended, STORYTELLER, json_lines, wait_for};
use ternfleet_tests::server::find_binary;
use ternfleet_tests::standin::{Fault, Image, StandIn};

use crate::stand_in;

const PATIENCE: Duration = Duration::from_secs(240);
/// A launch that was disturbed more often than this is not continued.
const LIVES: usize = 12;

/// A machine with a key, its folder of fleets, and the provider.
struct Laptop {
    folder: tempfile::TempDir,
    provider: StandIn,
    lines: usize,
}

/// The program without its symbols: what pods fetch is as small as it can be.
pub(crate) fn stripped_binary(folder: &Path) -> PathBuf {
    let (whole, stripped) = (program::binary().unwrap(), folder.join("ternfleet"));
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(&whole).status();
    if !status.is_ok_and(|status| status.success()) {
        std::fs::copy(&whole, &stripped).unwrap();
    }
    stripped
}

/// What pods fetch, by name.
pub(crate) fn pod_files(binary: &Path) -> BTreeMap<String, PathBuf> {
    let model = PathBuf::from(STORYTELLER);
    let files = [
        ("ternfleet", binary.to_owned()),
        ("nats-server", find_binary().unwrap()),
        ("manifest.toml", model.with_file_name("manifest.toml")),
        ("model.gguf", model),
    ];
    files.map(|(name, path)| (name.to_owned(), path)).into()
}

impl Laptop {
    fn new(lines: usize, tokens: usize) -> Option<Laptop> {
        let folder = tempfile::tempdir().unwrap();
        let line =
            |n| format!("{{\"custom_id\": \"c{n}\", \"prompt\": \"Tale {n}.\", \"max_tokens\": {tokens}}}\n");
        std::fs::write(folder.path().join("prompts.jsonl"), (0..lines).map(line).collect::<String>())
            .unwrap();
        let files = pod_files(&stripped_binary(folder.path()));
        let provider = stand_in([(STOCK_IMAGE.to_owned(), Image::default())].into(), files)?;
        Some(Laptop { folder, provider, lines })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(arguments).unwrap();
        command.env("TERNFLEET_STATE_DIR", self.path("fleets")).env("RUNPOD_API_KEY", self.provider.key());
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments)).unwrap()
    }

    /// Begins a launch, or continues with the one that was begun.
    fn launch(&self, more: &[&str]) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.path("launch.log")).unwrap();
        let open = self.fleet().map(|fleet| fleet["name"].as_str().unwrap().to_owned());
        let (base, files) = (self.provider.base(), self.provider.file(""));
        let binary = self.path("ternfleet").display().to_string();
        let mut words = vec!["launch"];
        match &open {
            Some(name) => words.extend(["--resume", name]),
            None => words.extend([
                "prompts.jsonl",
                "--at",
                "runpod",
                "--runpod-base",
                &base,
                "--files",
                &files,
                "--model",
                STORYTELLER,
                "--class",
                "cpu5c",
                "--pods",
                "2",
                "--budget",
                "1",
                "--yes",
                "--anyway",
            ]),
        }
        if open.is_none() {
            words.extend(more);
            if !more.contains(&"--binary") {
                words.extend(["--binary", &binary]);
            }
        }
        self.command(&words).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("launch.log")).unwrap_or_default()
    }

    fn fleet(&self) -> Option<Value> {
        let listed = self.run(&["fleets", "--all", "--json"]);
        listed.json().unwrap_or_else(|error| panic!("{error:#}")).as_array().unwrap().first().cloned()
    }

    fn pods(&self, part: &str) -> Vec<String> {
        let alive = self.provider.alive().into_iter().map(|(name, _)| name);
        alive.filter(|name| name.contains(part)).collect()
    }

    fn listed(&self, part: &str) -> Option<String> {
        let state = self.provider.state();
        let mut pods = state.pods.iter().filter(|pod| pod.ended_at.is_none() && pod.listed);
        pods.find(|pod| pod.name.contains(part)).map(|pod| pod.name.clone())
    }

    /// Every line once and in order, nothing rented, and a bill that is the sum of what each pod cost.
    fn holds(&self, what: &str) {
        let said = || {
            let pods: Vec<String> = self.provider.state().pods.iter().map(|pod| pod.name.clone()).collect();
            let logs: Vec<String> =
                pods.iter().map(|pod| format!("== {pod}\n{}", self.provider.log(pod))).collect();
            format!("{what}: {}\n{}", self.log(), logs.join("\n"))
        };
        let text = std::fs::read_to_string(self.path("prompts.answers.jsonl")).unwrap_or_default();
        let ids: Vec<String> = json_lines(&text)
            .unwrap()
            .iter()
            .map(|line| line["custom_id"].as_str().unwrap().to_owned())
            .collect();
        let wanted: Vec<String> = (0..self.lines).map(|n| format!("c{n}")).collect();
        assert_eq!(ids, wanted, "{}", said());
        assert_eq!(self.provider.alive(), [], "{}", said());
        let fleet = self.fleet().unwrap();
        assert!(fleet["ended_at"].is_u64(), "{}", said());
        let rows = fleet["bill"].as_object().unwrap().values();
        let billed: i64 = rows.filter_map(|row| row["billed_usd_micro"].as_i64()).sum();
        assert_eq!(billed, self.provider.billed_usd_micro(), "{fleet}\n{}", said());
        for order in &self.provider.state().orders {
            let bytes = order.to_string().len();
            assert!(bytes < 16 << 10, "an order of {bytes} bytes");
            assert!(order["env"].as_object().unwrap().len() <= 50);
        }
        assert_eq!(self.provider.state().faults, [""; 0], "{}", said());
        assert!(!self.log().contains(self.provider.key()), "the key is in the log");
        assert!(!fleet.to_string().contains(self.provider.key()), "the key is in the state");
    }
}

#[test]
fn launch_rents_a_head_and_workers_from_a_stock_image_and_gives_everything_back() {
    let Some(laptop) = Laptop::new(12, 24) else { return };
    let began = Instant::now();
    let mut child = laptop.launch(&[]);
    let ended = wait_for(PATIENCE, || Ok(child.try_wait()?));
    let code = ended.map(|status| status.code()).unwrap_or_else(|error| {
        let _ = child.kill();
        Some(i32::from(error.to_string().is_empty()))
    });
    let took = began.elapsed();
    laptop.holds("an undisturbed launch");
    assert_eq!(code, Some(0), "{}", laptop.log());
    let said = laptop.log();
    for part in ["a pod of 2 vCPUs (cpu5c)", "$0.0800 an hour", "provider's bill", "-head-1", "quoted  $"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    eprintln!("launch to results and all returned: {took:?}; the largest order {} bytes", {
        laptop.provider.state().orders.iter().map(|order| order.to_string().len()).max().unwrap_or(0)
    });
    let empty = laptop.run(&["down", "--all"]);
    assert_eq!(empty.code, Some(0), "{empty:?}");
}

#[test]
fn a_head_that_nobody_asks_gives_its_workers_back_and_ends_itself() {
    let Some(laptop) = Laptop::new(12, 24) else { return };
    let mut child = laptop.launch(&["--keep", "4s"]);
    let accepted = || Ok(laptop.fleet().filter(|fleet| fleet["batch"].is_string()));
    wait_for(PATIENCE, accepted).unwrap_or_else(|error| panic!("{error}: {}", laptop.log()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(PATIENCE, || Ok(laptop.provider.alive().is_empty().then_some(()))).unwrap_or_else(|error| {
        let logs: Vec<String> = laptop.pods("").iter().map(|pod| laptop.provider.log(pod)).collect();
        panic!("{error}: {}", logs.join("\n"))
    });
    assert!(laptop.provider.state().pods.iter().any(|pod| pod.name.contains("-w1-")), "a worker was rented");
    assert_eq!(laptop.run(&["down", "--all"]).code, Some(0), "what is gone is ended");
}

#[test]
fn a_wrong_digest_starts_no_program_and_costs_three_short_pods() {
    let Some(laptop) = Laptop::new(2, 8) else { return };
    let other = laptop.path("other");
    std::fs::write(&other, "another program").unwrap();
    let mut child = laptop.launch(&["--binary", &other.display().to_string()]);
    let status = wait_for(PATIENCE, || Ok(child.try_wait()?)).unwrap();
    let said = laptop.log();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("3 heads have ended before they answered"), "{said}");
    assert_eq!((laptop.provider.alive().len(), laptop.provider.state().pods.len()), (0, 3), "{said}");
    let first = laptop.provider.state().pods[0].name.clone();
    assert!(laptop.provider.log(&first).contains("is not the program"), "{}", laptop.provider.log(&first));
}

/// A seed's own sequence of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// One launch with two faults at seeded moments.
fn disturbed(seed: u64) {
    let Some(laptop) = Laptop::new(40, 40) else { return };
    let mut choices = Choices(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let fault = |choices: &mut Choices| match choices.below(8) {
        0 => Some(Fault::DoneBut(503)),
        1 => Some(Fault::DoneAndCut),
        2 => Some(Fault::Refuse(429)),
        _ => None,
    };
    laptop.provider.state().creations = (0..4).map(|_| fault(&mut choices)).collect();
    laptop.provider.state().lists = (0..6).map(|_| (choices.below(10) == 0).then_some(502)).collect();
    let mut told = vec![format!("seed {seed}")];
    let mut faults: Vec<(Duration, u64)> =
        (0..2).map(|_| (Duration::from_millis(500 + choices.below(12_000)), choices.below(5))).collect();
    faults.sort_unstable();
    let began = Instant::now();
    let mut child = laptop.launch(&[]);
    for life in 0..LIVES {
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "{}: {}", told.join(", "), laptop.log());
            if let Some((_, kind)) = faults.first().copied().filter(|(at, _)| began.elapsed() >= *at) {
                faults.remove(0);
                // A pod that is gone before any list has shown it is one that nobody can know of.
                let head = laptop.listed("-head-");
                let worker = laptop.listed("-w");
                match (kind, head, worker) {
                    (0, ..) => {
                        told.push(format!("laptop killed at {:?}", began.elapsed()));
                        child.kill().unwrap();
                    }
                    (1, Some(head), _) => {
                        told.push(format!("{head} killed at {:?}", began.elapsed()));
                        laptop.provider.kill(&head);
                    }
                    (2, Some(head), _) => {
                        told.push(format!("{head} vanished at {:?}", began.elapsed()));
                        laptop.provider.vanish(&head);
                    }
                    (3, _, Some(worker)) => {
                        told.push(format!("{worker} killed at {:?}", began.elapsed()));
                        laptop.provider.kill(&worker);
                    }
                    (4, _, Some(worker)) => {
                        told.push(format!("{worker} vanished at {:?}", began.elapsed()));
                        laptop.provider.vanish(&worker);
                    }
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        if status.code() == Some(0) {
            break;
        }
        // Killed, or given up: a person says `--resume`. A launch that gave up before it had a batch has ended.
        assert!(life + 1 < LIVES, "{}: {}", told.join(", "), laptop.log());
        let ended = laptop.fleet().is_some_and(|fleet| fleet["ended_at"].is_u64());
        if ended {
            assert_eq!(laptop.provider.alive(), [], "{}: {}", told.join(", "), laptop.log());
            std::fs::remove_dir_all(laptop.path("fleets")).unwrap();
            told.push("begun anew".to_owned());
        }
        child = laptop.launch(&[]);
    }
    if told.contains(&"begun anew".to_owned()) {
        // Two fleets have shared the provider: the bill of the first is in its own state, which is gone.
        assert_eq!(laptop.provider.alive(), []);
        return;
    }
    laptop.holds(&told.join(", "));
    eprintln!("{} after {:?}", told.join(", "), began.elapsed());
}

/// A few seeds; `TERNFLEET_TEST_LAUNCH_SEEDS=FROM..TO` runs others.
#[test]
fn whatever_is_killed_no_pod_is_left_and_no_line_is_lost_or_doubled() {
    let seeds = std::env::var("TERNFLEET_TEST_LAUNCH_SEEDS").unwrap_or_else(|_| "1..3".to_owned());
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        disturbed(seed);
    }
}
