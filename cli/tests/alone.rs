//! The commands that need no fleet, run as a person runs them: their output is a contract.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[path = "alone/measures.rs"]
mod measures;
#[path = "alone/pull.rs"]
mod pull;
#[path = "alone/server.rs"]
mod server;

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line, alone: {}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

fn run_with(environment: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternfleet"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TERNFLEET_")) {
        command.env_remove(name);
    }
    let output = command.args(arguments).envs(environment.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn run(arguments: &[&str]) -> Ended {
    run_with(&[], arguments)
}

/// A model of the smallest shape, in a folder that goes away.
fn tiny() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf").display().to_string();
    let made = run(&["model", "synth", "--shape", "tiny", "--seed", "7", "--out", &path]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    (folder, path)
}

fn storyteller() -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller/storyteller.gguf");
    path.display().to_string()
}

fn fields(value: &Value) -> Vec<&str> {
    let mut fields: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

#[test]
fn a_program_that_is_installed_alone_has_its_model_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("ternfleet");
    let built = env!("CARGO_BIN_EXE_ternfleet");
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(&home).env_clear().env("HOME", &home);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!run(&["generate", "-p", "Once upon a time", "-n", "8"]).trim().is_empty());
    let listed = run(&["model", "list"]);
    assert!(listed.starts_with("storyteller") && listed.contains("downloaded, 3.8 MB"), "{listed}");
    assert!(run(&["model", "verify"]).contains("storyteller"));
}

#[test]
fn generate_prints_one_object_with_its_fields() {
    let model = storyteller();
    let greedy =
        ["generate", "--model", &model, "-p", "Once upon a time", "-n", "12", "--temp", "0", "--json"];
    let first = run(&greedy).json();
    let expected = [
        "accepted_tokens",
        "decode_tok_s",
        "drafted_tokens",
        "generated_ids",
        "isa",
        "load_s",
        "prefill_tok_s",
        "prompt_ids",
        "stop_reason",
        "text",
        "threads",
    ];
    assert_eq!(fields(&first), expected);
    assert!(first["text"].as_str().unwrap().len() > 4, "{first}");
    assert!((1..=12).contains(&first["generated_ids"].as_array().unwrap().len()));
    assert!(first["decode_tok_s"].as_f64().unwrap() > 0.0);

    let again = run(&[&greedy[..], &["-t", "1"]].concat()).json();
    assert_eq!(first["generated_ids"], again["generated_ids"], "whatever the thread count");
    assert_eq!(again["threads"], 1);

    // The same ids, given as ids, continue the same way.
    let ids: Vec<String> = first["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let by_ids =
        run(&["generate", "--model", &model, "--ids", &ids.join(","), "-n", "12", "--temp", "0", "--json"])
            .json();
    assert_eq!(by_ids["prompt_ids"], first["prompt_ids"]);
    assert_eq!(by_ids["generated_ids"], first["generated_ids"]);
}

/// The largest number of times that four words in a row occur in a text.
fn repetitions(text: &str) -> usize {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut counts = std::collections::BTreeMap::new();
    words.windows(4).for_each(|four| *counts.entry(four).or_insert(0) += 1);
    counts.into_values().max().unwrap_or(0)
}

#[test]
fn the_storyteller_does_not_loop_at_temperature_0() {
    let model = storyteller();
    for prompt in ["Once upon a time", "The princess opened the door and saw", "A fox saw a crow in a tree."]
    {
        let greedy = ["generate", "--model", &model, "-p", prompt, "-n", "120", "--temp", "0"];
        let told = run(&greedy).stdout;
        assert!(repetitions(&told) < 4, "{told}");
    }
    let without = ["--frequency-penalty", "0", "-p", "Once upon a time", "-n", "120", "--temp", "0"];
    let looped = run(&[&["generate", "--model", &model][..], &without].concat()).stdout;
    assert!(repetitions(&looped) >= 4, "the default does something: {looped}");
}

#[test]
fn generate_streams_text_and_seeds_repeat() {
    let model = storyteller();
    let sampled = ["generate", "--model", &model, "-p", "A fox", "-n", "20", "--seed", "5"];
    let first = run(&sampled);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(first.stderr.contains("tok/s"), "{}", first.stderr);
    assert_eq!(first.stdout, run(&sampled).stdout);
    let other = run(&["generate", "--model", &model, "-p", "A fox", "-n", "20", "--seed", "6"]);
    assert_ne!(first.stdout, other.stdout);
}

#[test]
fn generate_says_why_it_stopped() {
    let (_folder, model) = tiny();
    let base = ["generate", "--model", &model, "--ids", "1,2,3", "--temp", "0", "--json"];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let length = with(&["-n", "5", "--ignore-eos"]).json();
    assert_eq!(length["stop_reason"], "length");
    assert_eq!(length["generated_ids"].as_array().unwrap().len(), 5);
    let full = with(&["-n", "100000", "--ignore-eos", "-t", "2"]).json();
    assert_eq!(full["stop_reason"], "context");

    let story = storyteller();
    let told = run(&[
        "generate",
        "--model",
        &story,
        "-p",
        "Once upon a time",
        "-n",
        "60",
        "--temp",
        "0",
        "--stop",
        "e",
        "--json",
    ])
    .json();
    assert_eq!(told["stop_reason"], "stop_string");
    assert!(!told["text"].as_str().unwrap().contains('e'), "{told}");
}

#[test]
fn generate_keeps_to_a_schema_an_expression_or_a_choice() {
    let (folder, model) = (tempfile::tempdir().unwrap(), storyteller());
    let file = |name: &str, schema: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, schema).unwrap();
        path.display().to_string()
    };
    let schema = file(
        "cat.json",
        r#"{"type":"object","properties":{"lives":{"type":"integer","minimum":1,"maximum":9},"coat":{"enum":["red","grey"]}},
            "required":["lives","coat"],"additionalProperties":false}"#,
    );
    let base = ["generate", "--model", &model, "-p", "A cat is", "-n", "60", "--json"];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let text = |more: &[&str]| {
        let told = with(more).json();
        assert_eq!(told["stop_reason"], "stop_token", "{told}");
        told["text"].as_str().unwrap().to_owned()
    };
    let cat: Value = serde_json::from_str(&text(&["--json-schema", &schema])).unwrap();
    assert_eq!(fields(&cat), ["coat", "lives"]);
    assert!((1..=9).contains(&cat["lives"].as_u64().unwrap()), "{cat}");
    assert!(["red", "grey"].contains(&cat["coat"].as_str().unwrap()), "{cat}");
    let code = text(&["--regex", "[A-C]{3}-[0-9]{2}"]);
    let (letters, digits) = code.split_once('-').unwrap();
    assert!(letters.len() == 3 && letters.chars().all(|c| ('A'..='C').contains(&c)), "{code}");
    assert!(digits.len() == 2 && digits.chars().all(|c| c.is_ascii_digit()), "{code}");
    assert!(["tame", "wild"].contains(&text(&["--choice", "tame,wild"]).as_str()));

    let both = with(&["--regex", "a", "--choice", "b"]);
    assert_eq!(both.code, Some(64), "{}", both.stderr);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
    let hopeless = file("hopeless.json", r#"{"properties":{"a":{"uniqueItems":true}}}"#);
    for (constraint, word) in [
        (["--json-schema", &hopeless], "`uniqueItems` at #/properties/a"),
        (["--json-schema", "/nowhere.json"], "/nowhere.json"),
        (["--regex", "("], "this constraint cannot be applied"),
    ] {
        let refused = with(&constraint);
        assert_eq!(
            (refused.code, refused.stdout.as_str()),
            (Some(1), ""),
            "{constraint:?}: {}",
            refused.stderr
        );
        assert!(refused.stderr.contains(word), "{constraint:?}: {}", refused.stderr);
    }
}

#[test]
fn generate_refuses_with_a_reason() {
    let (_folder, model) = tiny();
    for (arguments, code, word) in [
        (vec!["generate", "--model", "no-such.gguf", "-p", "x"], 1, "no-such.gguf"),
        (vec!["generate", "--model", &model, "--ids", "1,99999999"], 1, "vocabulary"),
        (vec!["generate", "--model", &model, "--ids", "one"], 64, "token id"),
        (vec!["generate", "--model", &model], 64, "--prompt"),
        (
            vec!["generate", "--model", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "-p", "x"],
            1,
            "GGUF",
        ),
    ] {
        let ended = run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn logits_are_rows_of_little_endian_floats() {
    let (folder, model) = tiny();
    let out = folder.path().join("logits.f32");
    let ended =
        run(&["logits", "--model", &model, "--ids", "5,6,7", "-t", "1", "--out", &out.display().to_string()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bytes = std::fs::read(&out).unwrap();
    // The tiny shape has 512 tokens.
    assert_eq!(bytes.len(), 3 * 512 * 4);
    let scores: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(scores.iter().all(|score| score.is_finite()));
    let greedy = run(&[
        "generate",
        "--model",
        &model,
        "--ids",
        "5,6,7",
        "-n",
        "1",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ])
    .json();
    let last = &scores[2 * 512..];
    let best = (0..512).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    assert_eq!(greedy["generated_ids"][0], best, "the best score is the token that greedy takes");
}

#[test]
fn bench_measures_and_refuses_what_the_machine_cannot_run() {
    let (folder, model) = tiny();
    let plot = folder.path().join("plot.svg").display().to_string();
    let ended = run(&[
        "bench",
        "--model",
        &model,
        "-t",
        "1,1000",
        "--batch",
        "1,2",
        "--prompt",
        "16",
        "--gen",
        "8",
        "--context",
        "16,40",
        "--repeat",
        "2",
        "--kernel",
        "all",
        "--head",
        "q6",
        "--price-usd-per-hour",
        "0.34",
        "--plot",
        &plot,
        "--allow-throttled",
        "--json",
    ]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report = ended.json();
    assert_eq!(report["model"]["numerics"], "ternfleet-3/f16kv/q6head");
    assert!(report["machine"]["read_gb_s"].as_f64().unwrap() > 0.1);
    assert!(report["memory"]["anonymous_bytes"].as_u64() > report["memory"]["weights_bytes"].as_u64());
    let row = &report["threads"][0];
    let decode = row["decode_tok_s"].as_f64().unwrap();
    assert_eq!(row["decode"]["median"].as_f64(), Some(decode));
    assert!(
        row["decode"]["min"].as_f64().unwrap() <= decode && row["decode"]["max"].as_f64().unwrap() >= decode
    );
    let ceiling = &row["decode"]["ceiling"];
    assert!(["memory", "arithmetic"].contains(&ceiling["binds"].as_str().unwrap()), "{ceiling}");
    let usd_micro = row["usd_micro_per_million_tokens"].as_f64().unwrap();
    assert!((usd_micro - 0.34e12 / (3600.0 * decode)).abs() <= 1.0, "{usd_micro} at {decode}");
    assert_eq!(fields(&report["threads"][1]), ["refused", "threads"]);
    let batch = report["batch"].as_array().unwrap();
    let sizes: Vec<_> = batch.iter().map(|row| (row["prompt"].as_u64(), row["batch"].as_u64())).collect();
    assert_eq!(sizes, [(16, 1), (16, 2), (40, 1), (40, 2)].map(|(prompt, n)| (Some(prompt), Some(n))));
    for row in batch {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(number("between_tokens_ms_p50") <= number("between_tokens_ms_p99"), "{row}");
        assert!(number("first_token_ms_p50") > 0.0 && number("attention_ms") > 0.0, "{row}");
        let shares: f64 =
            row["shares"].as_object().unwrap().values().map(|share| share.as_f64().unwrap()).sum();
        assert!((shares - 100.0).abs() < 1.0, "{row}");
    }
    assert!(report["kernels"].as_array().unwrap().iter().any(|row| row["isa"] == "scalar"), "{report}");
    let picture = std::fs::read_to_string(plot).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
}

#[test]
fn bench_tables_name_the_ceiling_and_a_sequence_that_does_not_fit_is_refused_in_its_row() {
    let (_folder, model) = tiny();
    let ended = run(&[
        "bench",
        "--model",
        &model,
        "-t",
        "1",
        "--prompt",
        "5000",
        "--gen",
        "4",
        "--repeat",
        "1",
        "--allow-throttled",
    ]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("use a shorter --prompt or --gen"), "{}", ended.stderr);
    let ended = run(&[
        "bench",
        "--model",
        &model,
        "-t",
        "1",
        "--prompt",
        "8",
        "--gen",
        "4",
        "--repeat",
        "1",
        "--allow-throttled",
    ]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in ["% of", "barrier us", "between tokens ms", "anonymous", "best"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    let (_, summary) = ended.stdout.split_once("\nsummary").unwrap_or_else(|| panic!("{}", ended.stdout));
    for part in ["  tiny on ", "one sequence: ", " tok/s with 1 thread; prompts "] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    assert_eq!(run(&["bench", "--model", &model, "--kernel", "magic"]).code, Some(1));
}

#[test]
fn bench_runs_a_workload_to_its_last_token() {
    let (folder, model) = tiny();
    let file = folder.path().join("mine.jsonl").display().to_string();
    let lines = "{\"prompt_tokens\": 40, \"output_tokens\": 6}\n{\"prompt_tokens\": 9, \"output_tokens\": 11, \"temperature\": 1.0}\n";
    std::fs::write(&file, lines).unwrap();
    let bench = ["bench", "--model", &model, "-t", "1", "--slots", "2", "--allow-throttled", "--workload"];
    let ended = run(&[&bench[..], &[&file, "--price-usd-per-hour", "0.34", "--json"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let run_of = &ended.json()["workload"];
    assert_eq!(
        (run_of["prompt_tokens"].as_u64(), run_of["output_tokens"].as_u64()),
        (Some(49), Some(17)),
        "{run_of}"
    );
    assert!(run_of["percent_of_mac_rate"].as_f64().unwrap() > 0.0, "{run_of}");
    let refused = run(&[&bench[..], &["sing"]].concat());
    assert!(
        refused.code == Some(1) && refused.stderr.contains("chat, extract or story"),
        "{}",
        refused.stderr
    );
}

#[test]
fn the_same_shape_and_seed_give_the_same_model_and_inspect_knows_it() {
    let (folder, model) = tiny();
    let twin = folder.path().join("twin.gguf").display().to_string();
    run(&["model", "synth", "--shape", "tiny", "--seed", "7", "--out", &twin]);
    assert_eq!(std::fs::read(&model).unwrap(), std::fs::read(&twin).unwrap());
    let facts = run(&["model", "inspect", &model, "--json"]).json();
    assert_eq!(facts["architecture"], "bitnet-b1.58", "{facts}");
    assert_eq!(facts["shape"]["vocab"], 512);
    assert_eq!(run(&["model", "inspect", "storyteller"]).code, Some(0), "by its name");
    let unknown = run(&["model", "inspect", "storytaler"]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("model list"), "{}", unknown.stderr);
    let told = run(&["model", "inspect", &storyteller()]);
    assert_eq!(
        told.code,
        Some(0),
        "the shipped model agrees with its manifest: {}{}",
        told.stdout,
        told.stderr
    );
    assert_eq!(run(&["model", "synth", "--shape", "1x2x3", "--out", &twin]).code, Some(64));
}

#[test]
fn topology_says_what_it_would_do() {
    let seen = run(&["topology", "--json"]).json();
    assert!(seen["plan"]["threads"].as_u64().unwrap() >= 1);
    assert!(!seen["plan"]["engines_auto"].as_array().unwrap().is_empty() && seen["smt_siblings"].is_array());
    let told = run(&["topology"]).stdout;
    assert!(
        told.contains("thread(s) pinned to") && told.contains("engines auto") && told.contains("huge pages"),
        "{told}"
    );
}

#[test]
fn a_new_key_is_told_once_and_only_its_hash_is_kept() {
    let made = run(&["key", "new", "--tenant", "acme"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let key = made.stderr.split_whitespace().find(|word| word.starts_with("tf-")).unwrap();
    assert!(made.stdout.contains("tenant = \"acme\"") && !made.stdout.contains(key), "{}", made.stdout);
    assert!(made.stdout.contains(&blake3::hash(key.as_bytes()).to_hex().to_string()), "{}", made.stdout);
    assert_eq!(run(&["key", "new", "--tenant", "a b"]).code, Some(64));
    let told = run(&["key", "new", "--json"]).json();
    let hash = blake3::hash(told["key"].as_str().unwrap().as_bytes()).to_hex().to_string();
    assert_eq!(told["blake3"], hash.as_str());
}

#[test]
fn completions_come_for_each_shell_and_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, Some(0), "{}", script.stderr);
        for command in ["submit", "top", "doctor", "nats-monitoring-url"] {
            assert!(script.stdout.contains(command), "{command} is not completed in {shell}");
        }
    }
    let unknown = run(&["completions", "tcsh"]);
    assert_eq!(unknown.code, Some(64));
    assert!(unknown.stderr.contains("bash"), "{}", unknown.stderr);
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("man1");
    let written = run(&["man", "--out", &into.display().to_string()]);
    assert_eq!((written.code, written.stdout.as_str()), (Some(0), ""), "{}", written.stderr);
    for page in ["ternfleet.1", "ternfleet-submit.1", "ternfleet-model-synth.1", "ternfleet-doctor.1"] {
        let text = std::fs::read_to_string(into.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH") && text.contains("OPTIONS"), "{page}");
    }
    assert!(!into.join("ternfleet-attached.1").exists(), "hidden commands have no page");
    assert!(run(&["man"]).stdout.contains(".TH"));
}

#[test]
fn doctor_says_of_each_fault_how_to_fix_it() {
    let (_folder, model) = tiny();
    // Nothing listens on port 1.
    let ill = run(&["doctor", "--nats", "127.0.0.1:1", "--model", &model, "--json"]);
    assert_eq!(ill.code, Some(1), "{}", ill.stderr);
    let told = ill.json();
    assert_eq!(told["ok"], false);
    let findings = told["findings"].as_array().unwrap();
    let state = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} is missing in {told}"))["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state("nats"), "fault");
    for unseen in ["streams", "coordinator", "workers", "durability"] {
        assert_eq!(state(unseen), "unknown", "{unseen}");
    }
    assert_eq!(state("model"), "ok");
    assert!(findings.iter().all(|finding| finding["state"] == "ok" || finding["fix"].is_string()), "{told}");
    let page = run(&["doctor", "--nats", "127.0.0.1:1", "--model", "/nowhere.gguf"]).stdout;
    assert!(
        page.contains("FAULT") && page.contains("ternfleet up") && page.contains("/nowhere.gguf"),
        "{page}"
    );
}

#[test]
fn a_slip_of_the_finger_is_named_and_exits_with_64() {
    for (typed, meant) in [("submt", "submit"), ("docter", "doctor"), ("wroker", "worker")] {
        let slip = run(&[typed]);
        assert_eq!(slip.code, Some(64), "{typed}");
        assert!(slip.stderr.contains(meant), "{typed}: {}", slip.stderr);
    }
    let flag = run(&["pods", "--jsno"]);
    assert_eq!(flag.code, Some(64));
    assert!(flag.stderr.contains("--json"), "{}", flag.stderr);
}

#[test]
fn configuration_is_layered_and_every_fault_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.toml").display().to_string();
    std::fs::write(&file, "slots = 3\nthreads = 2\npod_class = \"file\"\n").unwrap();
    let environment =
        [("TERNFLEET_THREADS", "1"), ("TERNFLEET_PRICE_USD_PER_HOUR", "0.5"), ("TERNFLEET_LEASE_MS", "3000")];
    let shown = run_with(
        &environment,
        &[
            "worker",
            "--config",
            &file,
            "--pod-class",
            "flag",
            "--nats",
            "nats://example:4222",
            "--print-config",
        ],
    );
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for line in [
        "slots = 3  # file",
        "threads = 1  # environment",
        "price_usd_per_hour = 0.5  # environment",
        "pod_class = \"flag\"  # flag",
        "nats = \"nats://example:4222\"  # flag",
    ] {
        assert!(shown.stdout.contains(line), "{line} is not in:\n{}", shown.stdout);
    }
    // What it prints is a configuration file.
    let again = folder.path().join("again.toml").display().to_string();
    std::fs::write(&again, &shown.stdout).unwrap();
    assert_eq!(run(&["worker", "--config", &again, "--print-config"]).code, Some(0));

    std::fs::write(&file, "slots = \"many\"\ncolour = 1\n").unwrap();
    let faulty =
        run_with(&[("TERNFLEET_THREADS", "few")], &["worker", "--config", &file, "--set", "nothing=1"]);
    assert_eq!(faulty.code, Some(1));
    for word in ["slots (file)", "colour (file)", "threads (environment)", "nothing (flag)"] {
        assert!(faulty.stderr.contains(word), "{word} is not in:\n{}", faulty.stderr);
    }

    let secret = run_with(&[("TERNFLEET_NATS_TOKEN", "hush")], &["coordinator", "--print-config"]);
    assert_eq!(secret.code, Some(0), "{}", secret.stderr);
    assert!(!secret.stdout.contains("hush"), "{}", secret.stdout);
    let nested = run_with(&[("TERNFLEET_QUOTAS__BATCHES_MAX", "5")], &["coordinator", "--print-config"]);
    assert!(nested.stdout.contains("batches_max = 5"), "{}{}", nested.stdout, nested.stderr);
}
