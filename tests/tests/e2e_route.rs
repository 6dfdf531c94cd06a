//! Which worker gets which job, with real processes. Two workers with different speeds and prices, whose engines take a
//! known time a step: plenty of work is shared in proportion to their speed, little of it goes where it is cheapest. Five
//! workers with a model each: a job goes to its own model alone.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ternfleet_tests::program::{STORYTELLER, Service, json_lines, run, wait_for};
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
    wait_for_pods(&url, 2);

    let little = submit(&url, folder.path(), 2);
    assert_eq!(little.get(FAST_AND_DEAR), None, "the cheap one takes it all: {little:?}");
    let plenty = submit(&url, folder.path(), 400);
    let (fast, slow) = (plenty[FAST_AND_DEAR], plenty[SLOW_AND_CHEAP]);
    assert_eq!(fast + slow, 400);
    // Four times the speed; the last windows and the measurement blur it.
    assert!(fast >= 2 * slow && slow >= 20, "fast {fast}, slow {slow}");
}

/// A small model of each architecture, as `model synth` makes them: name and shape. Heads of 64, of 80 (padded) and of 128,
/// which is not hidden ÷ heads.
const SHAPES: [(&str, &str); 4] = [
    ("relu-2b4t", "tiny"),
    ("silu-bitnet", "bitnet:2x256x512x4x2x512"),
    ("llama", "llama:2x256x512x8x4x512x80"),
    ("qwen", "qwen3:2x256x768x4x2x512x128"),
];

#[test]
fn each_model_of_a_fleet_runs_its_own_jobs_and_no_others() {
    let nats = NatsServer::start().unwrap();
    let url = nats.url();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: String| folder.path().join(name).display().to_string();
    let _coordinator =
        Service::start(&["coordinator", "--nats", &url], Path::new(&at("coordinator.log".into()))).unwrap();
    let mut models = vec![("storyteller", STORYTELLER.to_owned())];
    for (name, shape) in SHAPES {
        let path = at(format!("{name}.gguf"));
        let made = run(&["model", "synth", "--shape", shape, "--out", &path]).unwrap();
        assert_eq!(made.code, Some(0), "{made:?}");
        models.push((name, path));
    }
    let workers: Vec<Service> = models
        .iter()
        .map(|(name, path)| {
            let arguments = ["worker", "--nats", &url, "--model", path, "--pod", name, "--pod-class", name];
            let quick = ["--threads", "1", "--slots", "2", "--set", "calibrate_ms=0"];
            let log = at(format!("{name}.log"));
            Service::start(&[&arguments[..], &quick[..]].concat(), Path::new(&log)).unwrap()
        })
        .collect();
    wait_for_pods(&url, workers.len());

    // A batch for each model, all at once.
    const PROMPTS: [&str; 3] = ["Once upon a time", "A fox", "The king said"];
    let submitted: Vec<String> = models
        .iter()
        .map(|(name, _)| {
            let input = at(format!("{name}.jsonl"));
            let line =
                |prompt: &&str| json!({"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0});
            let lines: Vec<String> = PROMPTS.iter().map(|prompt| format!("{}\n", line(prompt))).collect();
            std::fs::write(&input, lines.concat()).unwrap();
            let ended = run(&["submit", &input, "--detach", "--nats", &url]).unwrap();
            assert_eq!(ended.code, Some(0), "{ended:?}");
            ended.stdout.trim().to_owned()
        })
        .collect();
    let pod_of = pod_of(&url);
    for ((name, path), batch) in models.iter().zip(&submitted) {
        let out = at(format!("{name}.out"));
        let ended = run(&["results", batch, "--wait", "--out", &out, "--nats", &url]).unwrap();
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
        let lines = json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(lines.len(), PROMPTS.len());
        for (line, prompt) in lines.iter().zip(PROMPTS) {
            assert_eq!(pod_of[line["ternfleet"]["worker"].as_str().unwrap()], *name, "{line}");
            assert_eq!(line["response"]["body"]["model"], *name, "{line}");
            let text = &line["response"]["body"]["choices"][0]["text"];
            let alone =
                ["generate", "--model", path, "-p", prompt, "-n", "12", "--temp", "0", "-t", "1", "--json"];
            assert_eq!(*text, run(&alone).unwrap().json().unwrap()["text"], "{name}: {prompt}");
        }
    }

    // One batch whose lines name different models, by name or by digest, or none: then any worker will do.
    let pods = run(&["pods", "--json", "--nats", &url]).unwrap().json().unwrap();
    let digest = |name: &str| {
        let pod = pods.as_array().unwrap().iter().find(|pod| pod["heartbeat"]["pod"] == name).unwrap();
        pod["heartbeat"]["model_digest"].as_str().unwrap().to_owned()
    };
    let asked = [Some("llama".to_owned()), Some(digest("qwen")), Some("silu-bitnet".to_owned()), None];
    let lines = asked.iter().map(|model| match model {
        Some(model) => format!("{}\n", json!({"model": model, "prompt": "A fox", "max_tokens": 4})),
        None => "{\"prompt\": \"A fox\", \"max_tokens\": 4}\n".to_owned(),
    });
    let input = at("mixed.jsonl".into());
    std::fs::write(&input, lines.collect::<String>()).unwrap();
    let out = at("mixed.out".into());
    let ended = run(&["submit", &input, "--out", &out, "--nats", &url]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let by: Vec<String> =
        lines.iter().map(|line| pod_of[line["ternfleet"]["worker"].as_str().unwrap()].clone()).collect();
    assert_eq!(by[..3], ["llama", "qwen", "silu-bitnet"]);
    assert_eq!(by.len(), 4);
}

/// Waits until so many pods are ready.
fn wait_for_pods(url: &str, count: usize) {
    wait_for(Duration::from_secs(60), || {
        let pods = run(&["pods", "--json", "--nats", url])?;
        let pods: Vec<Value> = serde_json::from_str(&pods.stdout).unwrap_or_default();
        let ready = pods.iter().filter(|pod| pod["live"] == true && pod["heartbeat"]["state"] == "ready");
        Ok((ready.count() == count).then_some(()))
    })
    .unwrap();
}

/// The pod of each worker.
fn pod_of(url: &str) -> BTreeMap<String, String> {
    let pods = run(&["pods", "--json", "--nats", url]).unwrap().json().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pods = pods.as_array().unwrap().iter();
    pods.map(|pod| (text(&pod["heartbeat"]["worker"]), text(&pod["heartbeat"]["pod"]))).collect()
}

/// Runs a batch of so many jobs; answers how many each pod did.
fn submit(url: &str, folder: &Path, jobs: usize) -> BTreeMap<String, usize> {
    let input = folder.join("in.jsonl");
    let line = "{\"prompt\": \"A fox\", \"max_tokens\": 20}\n";
    std::fs::write(&input, line.repeat(jobs)).unwrap();
    let ended = run(&["submit", &input.display().to_string(), "--out", "-", "--nats", url]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let pod_of = pod_of(url);
    let mut done = BTreeMap::new();
    for line in ended.json_lines().unwrap() {
        let pod = &pod_of[line["ternfleet"]["worker"].as_str().unwrap()];
        *done.entry(pod.clone()).or_insert(0) += 1;
    }
    done
}
