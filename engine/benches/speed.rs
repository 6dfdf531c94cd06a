//! Speed of one engine on this machine against its ceilings: `cargo bench -p ternfleet-engine --bench speed`.
//!
//! `TERNFLEET_BENCH_MODEL` names a model file; without it one of the 2B-4T shape is synthesised once into the target folder.
//! `TERNFLEET_BENCH_THREADS`, `TERNFLEET_BENCH_HEAD` and `TERNFLEET_ISA` do what they say; `TERNFLEET_BENCH_BATCH` is a list.
//! For a quick look while working on kernels; `ternfleet bench` is the tool that reports.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use ternfleet_engine::probe::Probe;
use ternfleet_engine::{Engine, Options, Request, Sampling, synth};

fn main() {
    let setting = |name: &str| std::env::var(format!("TERNFLEET_BENCH_{name}")).ok();
    let path = setting("MODEL").map_or_else(synthesised, PathBuf::from);
    let options = Options {
        threads: setting("THREADS").map(|threads| threads.parse().expect("a number of threads")),
        head: setting("HEAD").map_or_else(Default::default, |head| head.parse().expect("an output head")),
        max_sequences: 64,
        max_context: Some(1024),
        prefill_chunk: setting("CHUNK").map_or(128, |chunk| chunk.parse().expect("a number of tokens")),
        huge_pages: setting("HUGE").is_none_or(|huge| huge != "0"),
        ..Options::default()
    };
    let mut engine = Engine::load(&path, &options).expect("a model that loads");
    let info = engine.info().clone();
    println!(
        "{} threads, {}, head {}: load {:.2} s, weights {} MB, resident {} MB",
        info.threads,
        info.isa,
        info.head,
        info.load_s,
        info.weights_bytes / 1_000_000,
        resident_mb()
    );
    let probe = Probe::new(&mut engine).expect("memory for the probe");
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let read_gb_s = probe.read_gb_s(&mut engine);
        let rate = decode_tok_s(&mut engine, 1, 8, 32);
        let share = rate * info.bytes_per_token as f64 / 1e9 / read_gb_s;
        println!("read {read_gb_s:.1} GB/s; one stream {rate:.2} tok/s, {:.0} % of it", share * 100.0);
        ratios.push(share);
    }
    ratios.sort_by(f64::total_cmp);
    decode_tok_s(&mut engine, 1, 8, 65);
    println!("median {:.1} %", ratios[2] * 100.0);
    let prompt_macs = info.hyper.n_ternary_weights() as f64;
    compare(&probe, &mut engine, "prompt of 512", prompt_macs, &mut |engine| prompt_tok_s(engine, 512));
    let batches = setting("BATCH").unwrap_or_else(|| "2,4,8,16,32".to_owned());
    for batch in batches.split(',').map(|n| n.parse::<usize>().expect("a list of numbers")) {
        let name = format!("batch of {batch}");
        let run = &mut |engine: &mut Engine| decode_tok_s(engine, batch, 128, 64);
        compare(&probe, &mut engine, &name, info.macs_per_token as f64, run);
    }
    println!("resident {} MB", resident_mb());
}

/// Three runs, each between two measurements of the multiply-add rate: what they are of it, and where the last one's time went.
fn compare(
    probe: &Probe,
    engine: &mut Engine,
    name: &str,
    macs_per_token: f64,
    run: &mut dyn FnMut(&mut Engine) -> f64,
) {
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    let mut before = probe.mac_per_s(engine);
    for _ in 0..3 {
        let rate = run(engine);
        let after = probe.mac_per_s(engine);
        // Neighbours can only take away from a rate.
        let macs = before.max(after);
        println!(
            "{name}: {rate:.1} tok/s, {:.0} % of {:.0} GMAC/s",
            100.0 * rate * macs_per_token / macs,
            macs / 1e9
        );
        shares.push(rate * macs_per_token / macs);
        rates.push(rate);
        before = after;
    }
    shares.sort_by(f64::total_cmp);
    rates.sort_by(f64::total_cmp);
    println!("{name}: median {:.1} tok/s, {:.1} %", rates[1], shares[1] * 100.0);
}

/// Tokens a second of a prompt alone.
fn prompt_tok_s(engine: &mut Engine, tokens: u32) -> f64 {
    let before = engine.profile();
    let start = Instant::now();
    let mut events = Vec::new();
    engine.submit(request(tokens, 1)).expect("a prompt that fits");
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.3} s, {:.3?}", engine.profile().since(&before));
    f64::from(tokens) / seconds
}

fn request(prompt: u32, max_new_tokens: usize) -> Request {
    Request {
        prompt: (0..prompt).map(|i| i * 37 % 500).collect(),
        max_new_tokens,
        sampling: Sampling::greedy(),
        ..Request::default()
    }
}

/// Tokens a second of all sequences together, prompts not counted.
fn decode_tok_s(engine: &mut Engine, batch: usize, prompt: u32, tokens: usize) -> f64 {
    for _ in 0..batch {
        engine.submit(request(prompt, tokens)).expect("a prompt that fits");
    }
    let (mut events, mut count, mut seconds) = (Vec::new(), 0, 0.0);
    let mut before = engine.profile();
    while !engine.is_idle() {
        let stats = engine.step(&mut events);
        if stats.prefill_tokens == 0 {
            count += stats.decode_tokens;
            seconds += stats.elapsed.as_secs_f64();
        } else {
            before = engine.profile();
        }
    }
    if batch > 1 || tokens > 64 {
        println!("{seconds:.3} s, {:.3?}", engine.profile().since(&before));
    }
    count as f64 / seconds
}

fn synthesised() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("synthetic-2b4t.gguf");
    if !path.exists() {
        println!("synthesising {} once", path.display());
        let part = path.with_extension("part");
        let mut out = BufWriter::new(File::create(&part).expect("a file in the target folder"));
        synth::write(&synth::Shape::OFFICIAL, 1, &mut out).expect("room for 1.2 GB");
        out.flush().expect("room for 1.2 GB");
        std::fs::rename(&part, &path).expect("a rename within one folder");
    }
    path
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}
