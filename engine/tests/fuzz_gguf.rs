//! A mutation fuzzer for everything that reads a model file: container, model check, vocabulary, tokenizer and
//! report. It needs no special compiler, draws from a fixed seed, and fails by panicking or by taking long.
//!
//! `TERNFLEET_FUZZ_ITERS` sets the number of inputs (a few thousand by default), `TERNFLEET_FUZZ_SEED` other
//! draws. With `TERNFLEET_FUZZ_KEEP=FOLDER` one small input for each new way of being refused is written
//! there: that is how `corpus/` came about. An input that crashed goes there too, and is run by every test.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ternfleet_engine::gguf::write::{Item, Plan};
use ternfleet_engine::gguf::{self, File, Kind};
use ternfleet_engine::model_file;

const DEFAULT_ITERATIONS: u64 = 4_000;
/// No input is longer than a few dozen KiB; reading one takes well under a millisecond.
const TOO_LONG: Duration = Duration::from_secs(5);
/// Inputs above this size are not kept: what they find is found by smaller ones.
const KEEP_BYTES: usize = 4096;

/// Reads `bytes` by every way there is; returns how it ended, numbers and names taken out.
fn read(bytes: &[u8]) -> String {
    let outcome = match File::from_bytes(bytes.to_vec()) {
        Err(fault) => fault.to_string(),
        Ok(file) => {
            for (key, _) in file.entries() {
                let _ = (
                    file.strings(key),
                    file.integers(key),
                    file.text(key),
                    file.float(key),
                    file.boolean(key),
                );
            }
            let report = model_file::examine(Path::new("fuzzed"), &file, None).to_string();
            assert!(!report.contains('\u{1b}'), "a report never carries a file's control characters");
            match (gguf::check_model(&file), gguf::vocabulary(&file)) {
                (Err(fault), _) => fault.to_string(),
                (_, Err(fault)) => fault.to_string(),
                (Ok(_), Ok(_)) => "a whole model".into(),
            }
        }
    };
    let plain = |word: &&str| {
        word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_alphabetic() || b",.;:".contains(&byte))
    };
    outcome.split(' ').filter(plain).collect::<Vec<_>>().join(" ")
}

/// The smallest file with every kind of metadata.
fn container() -> Vec<u8> {
    let mut plan = Plan::default();
    plan.entry("general.architecture", Item::Text("bitnet-b1.58".into()));
    plan.entry("general.alignment", Item::U32(32));
    plan.entry("a.u64", Item::U64(1));
    plan.entry("a.i32", Item::I32(-1));
    plan.entry("a.floats", Item::F32s(vec![1.0]));
    plan.tensor("t", &[32], Kind::Q8_0);
    written(&plan)
}

/// The smallest model: one layer, width 128, a vocabulary of 12 tokens.
fn model() -> Vec<u8> {
    let mut plan = Plan::default();
    plan.entry("general.architecture", Item::Text("bitnet-b1.58".into()));
    for (name, value) in [
        ("vocab_size", 12),
        ("context_length", 64),
        ("embedding_length", 128),
        ("block_count", 1),
        ("feed_forward_length", 128),
        ("rope.dimension_count", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        plan.entry(format!("bitnet-b1.58.{name}"), Item::U32(value));
    }
    plan.entry("bitnet-b1.58.attention.layer_norm_rms_epsilon", Item::F32(1e-5));
    plan.entry("bitnet-b1.58.rope.freq_base", Item::F32(500_000.0));
    plan.entry("tokenizer.ggml.model", Item::Text("gpt2".into()));
    plan.entry("tokenizer.ggml.pre", Item::Text("llama-bpe".into()));
    let tokens = [
        "a",
        "b",
        "c",
        "d",
        "Ġ",
        "ab",
        "abc",
        "Ġd",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "[x]",
    ];
    plan.entry("tokenizer.ggml.tokens", Item::Texts(tokens.map(str::to_owned).to_vec()));
    plan.entry("tokenizer.ggml.token_type", Item::I32s(vec![1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 4]));
    plan.entry("tokenizer.ggml.merges", Item::Texts(["a b", "ab c", "Ġ d"].map(str::to_owned).to_vec()));
    plan.entry("tokenizer.ggml.bos_token_id", Item::U32(8));
    plan.entry("tokenizer.ggml.eos_token_id", Item::U32(9));
    plan.entry("tokenizer.ggml.add_bos_token", Item::Bool(true));
    plan.tensor("token_embd.weight", &[128, 12], Kind::F16);
    plan.tensor("output_norm.weight", &[128], Kind::F32);
    for name in ["attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm"] {
        plan.tensor(format!("blk.0.{name}.weight"), &[128], Kind::F32);
    }
    for (name, rows) in [
        ("attn_q", 128),
        ("attn_k", 64),
        ("attn_v", 64),
        ("attn_output", 128),
        ("ffn_gate", 128),
        ("ffn_up", 128),
        ("ffn_down", 128),
    ] {
        plan.tensor(format!("blk.0.{name}.weight"), &[128, rows], Kind::I2S);
    }
    written(&plan)
}

fn written(plan: &Plan) -> Vec<u8> {
    let mut writer = plan.begin(Vec::new()).unwrap();
    while let Some(tensor) = writer.advance().unwrap() {
        writer.write(&vec![0; tensor.n_bytes() as usize]).unwrap();
    }
    writer.finish().unwrap()
}

/// SplitMix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A number that programs get wrong.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::MAX >> self.below(64),
            1 => 1 << self.below(64),
            2 => (1 << self.below(64)) - 1,
            3 => self.below(300) as u64,
            4 => (self.below(300) as u64).wrapping_neg(),
            _ => self.next(),
        }
    }
}

/// Changes `bytes` in one to eight places, mostly in the header, where the meaning is.
fn mutate(draw: &mut Draw, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=draw.below(8) {
        if bytes.is_empty() {
            return;
        }
        let within = if draw.below(8) == 0 { bytes.len() } else { bytes.len().min(1800) };
        let at = draw.below(within);
        match draw.below(10) {
            0 => bytes[at] ^= 1 << draw.below(8),
            1 => bytes[at] = draw.next() as u8,
            2..=4 => {
                let wide = draw.number().to_le_bytes();
                let width = [1, 2, 4, 8][draw.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&wide[..width]);
            }
            5 => bytes.truncate(at),
            6 => {
                let end = (at + draw.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            7 => {
                let end = (at + draw.below(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = draw.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            8 => {
                let from = draw.below(other.len().min(1800));
                let piece = &other[from..(from + draw.below(64)).min(other.len())];
                let end = (at + piece.len()).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            _ => {
                let end = (at + draw.below(8)).min(bytes.len());
                bytes[at..end].reverse();
            }
        }
    }
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: '{text}'")))
}

#[test]
fn the_seeds_are_what_they_should_be() {
    assert_eq!(read(&model()), "whole model");
    let file = File::from_bytes(model()).unwrap();
    let report = model_file::examine(Path::new("model.gguf"), &file, None);
    assert_eq!(report.faults, [""; 0]);
    assert!(report.tokenizer.unwrap().usable.is_ok());
    assert_ne!(read(&container()), "whole model");
}

#[test]
fn every_input_of_the_corpus_is_refused_or_read() {
    let corpus = corpus();
    assert!(!corpus.is_empty());
    for (path, bytes) in corpus {
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        assert!(outcome.is_ok(), "{} panics", path.display());
    }
}

#[test]
fn no_mutation_of_a_file_makes_the_reader_panic() {
    let keep = std::env::var_os("TERNFLEET_FUZZ_KEEP").map(PathBuf::from);
    let mut draw = Draw(number_from_environment("TERNFLEET_FUZZ_SEED", 1));
    let mut seeds = vec![container(), model()];
    seeds.extend(corpus().into_iter().map(|(_, bytes)| bytes));
    let mut outcomes: BTreeSet<String> = seeds.iter().map(|seed| read(seed)).collect();
    for iteration in 0..number_from_environment("TERNFLEET_FUZZ_ITERS", DEFAULT_ITERATIONS) {
        // Half of the inputs come from the two whole files.
        let from = if draw.below(2) == 0 { draw.below(2) } else { draw.below(seeds.len()) };
        let mut bytes = seeds[from].clone();
        let other = draw.below(seeds.len());
        mutate(&mut draw, &mut bytes, &seeds[other]);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        let took = start.elapsed();
        if outcome.is_err() || took > TOO_LONG {
            let path = std::env::temp_dir().join(format!("ternfleet-fuzz-{iteration}.bin"));
            std::fs::write(&path, &bytes).unwrap();
            panic!(
                "iteration {iteration} panics or takes {took:?}; its input is {}: keep it in the corpus",
                path.display()
            );
        }
        if let (Some(folder), Ok(outcome)) = (&keep, outcome)
            && bytes.len() <= KEEP_BYTES
            && outcomes.insert(outcome.clone())
        {
            let name: String = outcome.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect();
            let words: Vec<&str> = name.split_whitespace().skip(4).take(6).collect();
            let name = format!("{:03}-{}.bin", outcomes.len(), words.join("-"));
            std::fs::write(folder.join(name), &bytes).unwrap();
            seeds.push(bytes);
        }
    }
}
