//! What constraints cost: compiling, memory, and a batch and a single stream under a schema against the same without one,
//! in turn. `cargo bench -p ternfleet-engine --bench constraints -- MODEL`; without a model, the storyteller. Rounds and tokens of a
//! run: `TERNFLEET_BENCH_ROUNDS`, `TERNFLEET_BENCH_TOKENS`.
#![allow(clippy::unwrap_used, unused_crate_dependencies)] // A measurement fails by panicking.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use ternfleet_engine::{Engine, Event, Options, Request, Sampling, StopReason, gguf};
use ternfleet_text::constraint::{Compiler, Grammar, Matcher};
use ternfleet_text::{Manifest, Tokenizer};

/// Compilations that are averaged.
const COMPILES: u32 = 8;

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(format!("TERNFLEET_BENCH_{name}")).map_or(otherwise, |value| value.parse().unwrap())
}

fn main() {
    let storyteller =
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/storyteller/storyteller.gguf"));
    let path = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .map_or_else(storyteller, PathBuf::from);
    let vocabulary = gguf::vocabulary(&gguf::File::open(&path).unwrap()).unwrap();
    let manifest = Manifest::beside(&path).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_parts(&vocabulary, manifest.as_ref()).unwrap().tokenizer);
    println!("{}: {} tokens", path.display(), tokenizer.n_vocab());
    let begun = Instant::now();
    let compiler = Arc::new(Compiler::new(tokenizer).unwrap());
    println!("vocabulary prepared in {:.0?}, {:.1} MiB", begun.elapsed(), resident_mib());
    compiling(&compiler);
    memory(&compiler);
    speed(&path, &compiler);
}

/// An object of `n` required fields of every kind.
fn record(n: usize) -> Value {
    let kinds = [
        json!({ "type": "string", "maxLength": 20 }),
        json!({ "type": "integer", "minimum": 0, "maximum": 9999 }),
        json!({ "enum": ["low", "medium", "high"] }),
        json!({ "type": "boolean" }),
        json!({ "type": "array", "items": { "type": "string", "maxLength": 12 }, "maxItems": 3 }),
    ];
    let fields: Map<String, Value> =
        (0..n).map(|i| (format!("field_{i}_of_the_record"), kinds[i % kinds.len()].clone())).collect();
    let names: Vec<&String> = fields.keys().collect();
    json!({ "type": "object", "required": names, "additionalProperties": false, "properties": fields })
}

fn schema(value: &Value) -> Grammar {
    Grammar::JsonSchema(value.to_string())
}

fn compiling(compiler: &Arc<Compiler>) {
    let mut fields = Map::new();
    while Value::Object(fields.clone()).to_string().len() < 100_000 {
        for _ in 0..8 {
            fields.insert(format!("part_{}", fields.len()), record(12));
        }
    }
    let text = json!({ "type": "object", "properties": fields }).to_string();
    let grammar = Grammar::JsonSchema(text.clone());
    let (begun, cpu) = (Instant::now(), cpu_ms());
    for _ in 0..COMPILES {
        grammar.check().unwrap();
    }
    let checked = (begun.elapsed() / COMPILES, (cpu_ms() - cpu) / f64::from(COMPILES));
    let (begun, cpu) = (Instant::now(), cpu_ms());
    for i in 0..COMPILES {
        compiler
            .constraint(Grammar::JsonSchema(format!("{text}{}", " ".repeat(i as usize))))
            .matcher(&[])
            .unwrap();
    }
    let compiled = (begun.elapsed() / COMPILES, (cpu_ms() - cpu) / f64::from(COMPILES));
    println!(
        "schema of {} bytes: checked in {:.1?} ({:.0} ms of CPU), compiled in {:.1?} ({:.0} ms of CPU)",
        text.len(),
        checked.0,
        checked.1,
        compiled.0,
        compiled.1
    );
    let (begun, cpu) = (Instant::now(), cpu_ms());
    for _ in 0..1000 {
        compiler.constraint(grammar.clone()).matcher(&[]).unwrap();
    }
    println!(
        "each of the next thousand lines: {:.1?} ({:.0} µs of CPU)",
        begun.elapsed() / 1000,
        cpu_ms() - cpu
    );
}

/// CPU time of this process so far: what a busy machine leaves of a wall clock says little.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) * 10.0
}

fn memory(compiler: &Arc<Compiler>) {
    let before = resident_mib();
    let live: Vec<(Matcher, _)> = (0..256)
        .map(|i| {
            let (mut matcher, forced) =
                compiler.constraint(schema(&record(8 + i % 24))).matcher(&[]).unwrap();
            matcher.mask().unwrap();
            (matcher, forced)
        })
        .collect();
    println!("{} live constraints of 24 schemas: {:.1} MiB", live.len(), resident_mib() - before);
    let before = resident_mib();
    let live: Vec<(Matcher, _)> = (0..256)
        .map(|i| {
            let mut own = record(12);
            own["title"] = json!(i);
            let (mut matcher, forced) = compiler.constraint(schema(&own)).matcher(&[]).unwrap();
            matcher.mask().unwrap();
            (matcher, forced)
        })
        .collect();
    println!("{} live constraints of as many schemas: {:.1} MiB", live.len(), resident_mib() - before);
}

fn speed(path: &std::path::Path, compiler: &Arc<Compiler>) {
    let options = Options { max_sequences: 32, max_context: Some(512), ..Options::default() };
    let mut engine = Engine::load(path, &options).unwrap();
    let vocab = engine.info().hyper.vocab as u32;
    println!("{} threads, {}", engine.info().threads, engine.info().isa);
    let record = compiler.constraint(schema(&record(30)));
    let request = |i: u32, constrained: bool| Request {
        prompt: (0..16u32).map(|k| (k * 7919 + i * 104_729 + 11) % (vocab - 300)).collect(),
        max_new_tokens: setting("TOKENS", 48),
        sampling: Sampling { temperature: 1.0, ..Sampling::default() },
        seed: u64::from(i),
        speculate: false,
        constraint: constrained.then(|| Arc::clone(&record)),
        ..Request::default()
    };
    for n in [32, 1] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=setting("ROUNDS", 3) {
            for constrained in [false, true] {
                let (tokens, elapsed) = run(&mut engine, (0..n).map(|i| request(i, constrained)).collect());
                // The first round warms up.
                if round > 0 {
                    rates[usize::from(constrained)].push(tokens as f64 / elapsed.as_secs_f64());
                }
            }
        }
        let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
        let (free, held) = (best(&rates[0]), best(&rates[1]));
        println!(
            "{n} at once: free {:.1?} tok/s, held {:.1?} tok/s, best against best {:.3}",
            rates[0],
            rates[1],
            held / free
        );
    }
    println!("{:?}", engine.head_counters());
}

/// Tokens generated after the prompts, and how long that took.
fn run(engine: &mut Engine, requests: Vec<Request>) -> (usize, Duration) {
    for request in requests {
        engine.submit(request).unwrap();
    }
    let (mut events, mut tokens, mut begun) = (Vec::new(), 0, None);
    while !engine.is_idle() {
        let stats = engine.step(&mut events);
        // Prompts are alike: what follows the first tokens is compared.
        if begun.is_none() && stats.decode_tokens > 0 {
            begun = Some(Instant::now());
            continue;
        }
        tokens += stats.decode_tokens;
    }
    for event in events {
        if let Event::Finished { reason: StopReason::DeadEnd(end), .. } = event {
            panic!("{end}");
        }
    }
    (tokens, begun.map_or(Duration::ZERO, |begun| begun.elapsed()))
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
