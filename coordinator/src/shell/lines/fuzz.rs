//! A mutation fuzzer for what callers send: bytes are cut into lines, looked through for the index, and read as
//! requests. It draws from a fixed seed, and fails by panicking, by taking long, or by breaking one of the rules below.
//!
//! `TERNFLEET_FUZZ_ITERS` sets the number of inputs, `TERNFLEET_FUZZ_SEED` other draws. With
//! `TERNFLEET_FUZZ_KEEP=FOLDER` one small input for each new way of being answered is written there: that is how
//! `corpus/` came about. An input that failed goes there too, and is run by every test.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ternfleet_proto::message::{FailureCode, Generation};
use ternfleet_proto::openai::{ModelDefaults, is_blank, parse_line};
use ternfleet_proto::{JobKey, codec};
use tokio::io::BufReader;

use super::{RawLine, next_line, scan};
use crate::core::estimate;
use crate::random::Random;

const DEFAULT_ITERATIONS: u64 = 4_000;
/// No input is longer than a few KiB.
const TOO_LONG: Duration = Duration::from_secs(2);
const KEEP_BYTES: usize = 600;
/// What a bad line is answered with stays readable, whatever was in it.
const MESSAGE_BYTES_MAX: usize = 2048;

const SEEDS: [&str; 6] = [
    r#"{"prompt": "Once upon a time", "max_tokens": 50}"#,
    r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["\n", "ab"], "logprobs": 2, "logit_bias": {"50": -100}, "presence_penalty": 0.5, "frequency_penalty": -0.5, "n": 1, "echo": false}}"#,
    r#"{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi \ud83d\ude00"}]}], "max_completion_tokens": 9, "stream": false, "user": "u"}}"#,
    "{\"custom_id\": \"a\", \"prompt\": \"x\"}\r\n\n{\"custom_id\": \"a\", \"prompt\": \"y\"}\n",
    "\u{feff}{\"custom_id\": \"c\", \"prompt\": \"first\"}\n{\"custom_id\": \"c\", \"prompt\": \"second\"}",
    r#"{"messages": [{"role": "user", "content": "x"}], "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1}"#,
];

fn job(index: u32) -> JobKey {
    JobKey { batch: "batch_fuzz".parse().expect("because it is an id"), index }
}

/// The lines of an input, cut through a buffer of so many bytes.
async fn cut(bytes: &[u8], buffer: usize) -> Vec<Vec<u8>> {
    let mut input = BufReader::with_capacity(buffer, bytes);
    let (mut line, mut lines, mut total) = (Vec::new(), Vec::new(), 0);
    while let Some((raw, bytes)) = next_line(&mut input, &mut line, true).await.unwrap() {
        assert_eq!(raw, RawLine::Text);
        total += bytes;
        lines.push(line.clone());
    }
    assert_eq!(total, bytes.len() as u64, "the lines' bytes add up to the input's");
    lines
}

/// Checks every rule on one input; returns how its lines were answered, with numbers and names taken out.
async fn read(bytes: &[u8], buffer: usize) -> String {
    let lines = cut(bytes, buffer).await;
    let mut plain: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if plain.last().is_some_and(|last| last.is_empty()) {
        plain.pop();
    }
    assert_eq!(lines, plain, "the same lines as by splitting");
    let index = scan(BufReader::with_capacity(buffer, bytes), u32::MAX, None).await.unwrap().unwrap();
    let count = lines.iter().rposition(|line| !is_blank(line)).map_or(0, |last| last + 1);
    assert_eq!((index.lines as usize, index.offsets.len()), (count, count.div_ceil(1000)));

    let (mut answers, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !is_blank(line)) {
        answers.insert(match answer(line, at as u32) {
            Ok(id) => {
                let known = !ids.insert(id.clone());
                let own = id == format!("line-{}", at + 1);
                assert!(!known || own || index.repeated.contains(&(at as u32)), "{id:?} is there twice");
                "a request".to_owned()
            }
            Err(message) => message,
        });
    }
    let fixed = |word: &&str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    let answers: Vec<String> =
        answers.iter().map(|text| text.split(' ').filter(fixed).collect::<Vec<_>>().join(" ")).collect();
    answers.join("; ")
}

/// One line: the id of a request, or the message of its error line.
fn answer(line: &[u8], at: u32) -> Result<String, String> {
    let (number, job) = (u64::from(at) + 1, job(at));
    let parsed = parse_line(line, number, &job, &ModelDefaults::default());
    match parsed {
        Ok((line, generation)) => {
            let again: Generation = codec::decode(&codec::encode(&generation)).unwrap();
            assert_eq!(again, generation, "a worker reads what was written");
            assert!(estimate::tokens(&generation) > 0 && estimate::bytes(&generation) > 0);
            Ok(line.custom_id.expect("because every request has one"))
        }
        Err((_, failure)) => {
            assert_eq!(failure.code, FailureCode::InvalidRequest);
            let said = failure.message.strip_prefix(&format!("line {number}: "));
            let said = said.unwrap_or_else(|| panic!("{:?} names no line", failure.message));
            assert!(said.len() <= MESSAGE_BYTES_MAX, "{} bytes of message", said.len());
            assert!(!said.chars().any(char::is_control), "control characters in {said:?}");
            Err(said.to_owned())
        }
    }
}

fn below(random: &mut Random, bound: usize) -> usize {
    random.below(bound as u64) as usize
}

/// What JSON readers and line readers get wrong.
const PIECES: [&[u8]; 28] = [
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"1e-400",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"0.5",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\"custom_id\":\"a\",",
    b"\"prompt\":\"\",",
    b"\xf0\x9f\x98",
];

/// Changes `bytes` in one to six places.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=below(random, 6) {
        let at = below(random, bytes.len() + 1);
        let end = (at + below(random, 24)).min(bytes.len());
        match below(random, 9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(random, 8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = below(random, bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 => {
                let from = below(random, other.len());
                let piece = other[from..(from + below(random, 64)).min(other.len())].to_vec();
                bytes.splice(at..end, piece);
            }
            5 => {
                let long = b'a' + below(random, 26) as u8;
                bytes.splice(at..at, std::iter::repeat_n(long, below(random, 5000)));
            }
            6 => {
                let deep = [b'[', b'{'][below(random, 2)];
                bytes.splice(at..at, std::iter::repeat_n(deep, below(random, 400)));
            }
            _ => drop(bytes.splice(at..at, PIECES[below(random, PIECES.len())].iter().copied())),
        }
    }
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shell/lines/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: '{text}'")))
}

/// Runs [`read`]; `None` when a rule was broken.
fn survives(runtime: &tokio::runtime::Runtime, bytes: &[u8], buffer: usize) -> Option<String> {
    let began = Instant::now();
    let read = catch_unwind(AssertUnwindSafe(|| runtime.block_on(read(bytes, buffer)))).ok();
    read.filter(|_| began.elapsed() < TOO_LONG)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn every_file_of_the_corpus_is_answered_by_the_rules() {
    let (runtime, corpus) = (runtime(), corpus());
    assert!(!corpus.is_empty());
    for (path, bytes) in corpus {
        for buffer in [1, 7, 4096] {
            assert!(survives(&runtime, &bytes, buffer).is_some(), "{}", path.display());
        }
    }
}

#[test]
fn no_mutation_of_a_file_breaks_a_rule_of_reading_it() {
    let keep = std::env::var_os("TERNFLEET_FUZZ_KEEP").map(PathBuf::from);
    let mut random = Random::at(number_from_environment("TERNFLEET_FUZZ_SEED", 1));
    let runtime = runtime();
    let mut seeds: Vec<Vec<u8>> = SEEDS.map(|text| text.as_bytes().to_vec()).to_vec();
    seeds.extend(corpus().into_iter().map(|(_, bytes)| bytes));
    let mut known: BTreeSet<String> = seeds.iter().filter_map(|seed| survives(&runtime, seed, 64)).collect();
    for iteration in 0..number_from_environment("TERNFLEET_FUZZ_ITERS", DEFAULT_ITERATIONS) {
        let from = if below(&mut random, 2) == 0 {
            below(&mut random, SEEDS.len())
        } else {
            below(&mut random, seeds.len())
        };
        let mut bytes = seeds[from].clone();
        let other = below(&mut random, seeds.len());
        mutate(&mut random, &mut bytes, &seeds[other]);
        let buffer = 1 + below(&mut random, 200);
        let Some(outcome) = survives(&runtime, &bytes, buffer) else {
            let path = std::env::temp_dir().join(format!("ternfleet-fuzz-{iteration}.jsonl"));
            std::fs::write(&path, &bytes).unwrap();
            panic!(
                "iteration {iteration} breaks a rule or takes long; its input is {}: keep it in the corpus",
                path.display()
            );
        };
        if let Some(folder) = &keep
            && bytes.len() <= KEEP_BYTES
            && !outcome.contains(';')
            && known.insert(outcome.clone())
        {
            let words: Vec<&str> = outcome.split_whitespace().take(8).collect();
            let name = format!("{:03}-{}.jsonl", known.len(), words.join("-"));
            std::fs::write(folder.join(name), &bytes).unwrap();
            seeds.push(bytes);
        }
    }
}
