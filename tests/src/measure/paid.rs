//! What is computed once although many lines ask for it, and how fast answers are run again: on the real engine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use ternfleet_engine::{Engine, Event, Options, Request, Speculation, gguf};
use ternfleet_text::{Manifest, Tokenizer};

use crate::http::get_blocking;
use crate::program::{self, LocalFleet, STORYTELLER};

/// Ids of a common start begin with this, those behind it lie elsewhere.
const FIRST_ID: usize = 10;
const OWN_TOKENS: usize = 100;

/// A fleet that audits nothing: second runs are not part of what is counted here.
fn start(arguments: &[&str]) -> anyhow::Result<(tempfile::TempDir, LocalFleet)> {
    let folder = tempfile::tempdir()?;
    let mut command = program::up_command(folder.path(), arguments)?;
    command.env("TERNFLEET_AUDIT_SHARE", "0");
    let fleet = LocalFleet::start_by(&mut command, folder.path())?;
    Ok((folder, fleet))
}

/// Tokens that the fleet's engines have computed so far: of prompts, and of outputs.
async fn computed(fleet: &LocalFleet) -> [f64; 2] {
    // Heartbeats bring them.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (_, metrics) = get_blocking(&fleet.addresses.http, "/metrics");
    ["prefill", "decode"].map(|phase| {
        let of_phase = format!("phase=\"{phase}\"");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("ternfleet_class_tokens_total{") && line.contains(&of_phase));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    })
}

/// Runs a batch of these lines; its answers, and the paths of its input and of its answers.
fn run(fleet: &LocalFleet, lines: impl Iterator<Item = Value>) -> anyhow::Result<(Vec<Value>, [String; 2])> {
    let input = fleet.write("in.jsonl", &lines.map(|line| format!("{line}\n")).collect::<String>())?;
    let out = fleet.dir.join("out.jsonl").display().to_string();
    let ended = fleet.run(&["submit", &input, "--out", &out, "--name", "measured"])?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok((program::json_lines(&std::fs::read_to_string(&out)?)?, [input, out]))
}

/// Tokens of an answer: of its prompt, and of its output.
fn tokens(answer: &Value) -> [u64; 2] {
    let usage = &answer["response"]["body"]["usage"];
    ["prompt_tokens", "completion_tokens"].map(|kind| usage[kind].as_u64().unwrap_or(0))
}

/// So many lines, of which every other one is the same.
///
/// # Errors
/// When the fleet does not work.
pub async fn twice(lines: usize) -> anyhow::Result<()> {
    let (_folder, fleet) = start(&["--workers", "2"])?;
    let before = computed(&fleet).await;
    let line = |n: usize| {
        let tale = if n.is_multiple_of(2) { 0 } else { n };
        json!({ "prompt": format!("{tale:06}: once upon a time"), "max_tokens": 16, "temperature": 0 })
    };
    let (answers, _) = run(&fleet, (0..lines).map(line))?;
    let after = computed(&fleet).await;
    let ran: f64 = (0..2).map(|place| after[place] - before[place]).sum();
    let all: u64 = answers.iter().flat_map(tokens).sum();
    println!(
        "{lines} lines, every other one the same: {ran:.0} of {all} tokens were computed, {:.2} %",
        100.0 * ran / all as f64
    );
    Ok(())
}

/// So many lines that begin with the same thousand tokens and end with a hundred of their own, on two workers.
///
/// # Errors
/// When the fleet does not work.
pub async fn shared(lines: usize) -> anyhow::Result<()> {
    const COMMON_TOKENS: usize = 1000;
    const PAGE_TOKENS: usize = 128;
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("tiny.gguf").display().to_string();
    let made = program::run(&["model", "synth", "--shape", "tiny", "--out", &model])?;
    ensure!(made.code == Some(0), "{made:?}");
    let (_folder, fleet) = start(&["--workers", "2", "--model", &model])?;
    let before = computed(&fleet).await;
    let line = |n: usize| {
        let common = (0..COMMON_TOKENS).map(|at| FIRST_ID + at * 7 % 200);
        let own = (0..OWN_TOKENS).map(|at| FIRST_ID + 200 + (n / 7_usize.pow(at as u32 % 5) + at) % 200);
        let ids: Vec<usize> = common.chain(own).collect();
        json!({ "prompt": ids, "max_tokens": 4, "temperature": 0 })
    };
    let (answers, _) = run(&fleet, (0..lines).map(line))?;
    let ran = computed(&fleet).await[0] - before[0];
    let all: u64 = answers.iter().map(|answer| tokens(answer)[0]).sum();
    // Of tokens, and of whole pages alone, as the engine's is.
    let perfect = |kept: usize| (2 * kept + lines * (COMMON_TOKENS - kept + OWN_TOKENS)) as f64;
    println!(
        "{lines} lines of {COMMON_TOKENS} common and {OWN_TOKENS} own tokens, two workers: {ran:.0} of {all} prompt tokens were \
         computed, {:.3} times what a perfect cache of each worker would compute, {:.3} times what one of whole pages would",
        ran / perfect(COMMON_TOKENS),
        ran / perfect(COMMON_TOKENS / PAGE_TOKENS * PAGE_TOKENS)
    );
    Ok(())
}

/// `verify` of so many lines, beside the engine alone with the same prompts: in turn, three times.
///
/// # Errors
/// When the fleet does not work, or an answer is not the same.
pub async fn again(lines: usize) -> anyhow::Result<()> {
    let (_folder, fleet) = start(&["--workers", "1"])?;
    let wanted = |n: usize| (format!("{n}. Once upon a time"), 100 + n * 37 % 200);
    let line = |n: usize| {
        let (prompt, most) = wanted(n);
        json!({ "prompt": prompt, "max_tokens": most, "temperature": 0 })
    };
    let (answers, [input, out]) = run(&fleet, (0..lines).map(line))?;
    let made: u64 = answers.iter().map(|answer| tokens(answer)[1]).sum();
    let proof = fleet.dir.join("proof.jsonl").display().to_string();
    let copied = fleet.dir.join("copied.jsonl").display().to_string();
    let fetched = fleet.run(&["results", "measured", "--out", &copied, "--proof", &proof])?;
    ensure!(fetched.code == Some(0), "{fetched:?}");
    // The worker would compute beside them.
    drop(fleet);
    for _ in 0..3 {
        let verified = program::run(&["verify", &out, "--manifest", &proof, "--input", &input, "--json"])?;
        ensure!(verified.code == Some(0), "{verified:?}");
        let verified = verified.json()?;
        let spent = verified["again"]["engine_s"].as_f64().context("verify tells no time")?;
        let (alone, tokens) = engine_alone((0..lines).map(wanted))?;
        ensure!(tokens == made, "the engine alone made {tokens} tokens, where the fleet made {made}");
        println!(
            "verify of {lines} lines: {spent:.3} s of the engine, which takes {alone:.3} s for the same prompts: {:.1} %",
            100.0 * alone / spent
        );
    }
    Ok(())
}

/// The engine with the options of `verify`, greedily, and nothing beside it; seconds of its steps, and tokens made.
fn engine_alone(wanted: impl Iterator<Item = (String, usize)>) -> anyhow::Result<(f64, u64)> {
    let path = Path::new(STORYTELLER);
    let vocabulary = gguf::vocabulary(&gguf::File::open(path)?)?;
    let manifest = Manifest::beside(path)?;
    let tokenizer = Tokenizer::from_parts(&vocabulary, manifest.as_ref())?.tokenizer;
    let options = Options {
        max_sequences: 32,
        prefix_cache: true,
        speculation: Speculation::TAIL,
        ..Options::default()
    };
    let mut engine = Engine::load(path, &options)?;
    for (prompt, max_new_tokens) in wanted {
        let prompt = tokenizer.encode(&prompt, tokenizer.adds_bos())?;
        let stop_ids = tokenizer.stop_ids().to_vec();
        engine.submit(Request { prompt, max_new_tokens, stop_ids, ..Request::default() })?;
    }
    let (mut spent, mut tokens, mut events) = (Duration::ZERO, 0, Vec::new());
    while !engine.is_idle() {
        spent += engine.step(&mut events).elapsed;
        tokens += events.drain(..).filter(|event| matches!(event, Event::Token { .. })).count() as u64;
    }
    Ok((spent.as_secs_f64(), tokens))
}
