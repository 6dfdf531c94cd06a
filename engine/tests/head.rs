//! The screened head draws the tokens of the full one, also where scores lie as close together as they can.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{Outcome, load, prompt, requests, run, synthetic};
use proptest::prelude::*;
use proptest::sample::select;
use std::path::Path;
use ternfleet_engine::gguf::File;
use ternfleet_engine::gguf::rows::{f16_to_f32, f32_to_f16};
use ternfleet_engine::synth::Shape;
use ternfleet_engine::{Head, HeadCounters, Isa, Options, Request, Sampling};

/// Rewrites a tensor of a model file by a function of its bytes.
fn with_tensor(path: &Path, name: &str, change: impl Fn(&mut [u8], usize)) {
    let mut bytes = std::fs::read(path).unwrap();
    let base = bytes.as_ptr() as usize;
    let copy = std::mem::take(&mut bytes);
    let file = File::from_bytes(copy).unwrap();
    let tensor = file.tensor(name).unwrap();
    let (start, len, width) = (tensor.data.as_ptr() as usize - base, tensor.data.len(), tensor.n_columns());
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes[start..start + len], width);
    std::fs::write(path, bytes).unwrap();
}

/// Rewrites the embedding of a model file by a function of (row, column, value).
fn with_embedding(path: &Path, change: impl Fn(usize, usize, f32) -> f32) {
    with_tensor(path, "token_embd.weight", |bytes, width| {
        for (i, half) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let value = f16_to_f32(u16::from_le_bytes(*half));
            *half = f32_to_f16(change(i / width, i % width, value)).to_le_bytes();
        }
    });
}

fn outcomes(
    path: &Path,
    head: Head,
    isa: Isa,
    threads: usize,
    requests: &[Request],
) -> (Vec<Outcome>, HeadCounters) {
    let options = Options { head, isa: Some(isa), threads: Some(threads), ..Options::default() };
    let mut engine = load(path, options);
    (run(&mut engine, requests), engine.head_counters())
}

fn heads_agree(change: impl Fn(usize, usize, f32) -> f32) {
    let shape = Shape { vocab: 2000, ..Shape::TINY };
    let (_folder, path) = synthetic(&shape, 3);
    with_embedding(&path, change);
    let requests = requests(2000, 20);
    let (expected, counters) = outcomes(&path, Head::Full, Isa::Scalar, 1, &requests);
    assert_eq!(
        counters.screened, 40,
        "one nucleus, and one sum of log-probabilities: the copy's for every head"
    );
    for (isa, threads) in Isa::available().into_iter().zip([1, 2, 3, 2]) {
        let (found, counters) = outcomes(&path, Head::Screened, isa, threads, &requests);
        assert_eq!(found, expected, "{isa}");
        assert_eq!((counters.full, counters.screened), (0, 20 * requests.len() as u64), "{counters:?}");
        assert!(counters.candidates >= counters.screened, "{counters:?}");
    }
}

#[test]
fn on_random_rows() {
    heads_agree(|_, _, value| value);
}

#[test]
fn on_rows_that_differ_in_their_last_bits() {
    heads_agree(|row, column, _| {
        let wave = ((column * 37 % 101) as f32 - 50.0) / 100.0;
        wave * (1.0 + ((row * 7 + column) % 3) as f32 / 1024.0)
    });
}

#[test]
fn on_equal_rows() {
    heads_agree(|row, column, value| if row > 1000 { ((column % 13) as f32 - 6.0) / 8.0 } else { value });
}

#[test]
fn on_rows_of_zeros_and_rows_with_one_outlier() {
    heads_agree(|row, column, value| match row % 4 {
        0 => 0.0,
        1 if column == row % 256 => 300.0,
        2 => value * 1e-6,
        _ => value,
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows of every awkward kind in any mixture, any sampling, and sometimes no activations at all: every score a tie.
    #[test]
    fn on_any_mixture_of_awkward_rows(
        kinds in prop::collection::vec(0..7u8, 48),
        temperature in select(vec![0.0f32, 0.01, 0.7, 1.0, 30.0]),
        top_k in select(vec![0u32, 1, 2, 40, 300]),
        top_p in select(vec![0.01f32, 0.9, 1.0]),
        min_p in select(vec![0.0f32, 0.05, 1.0]),
        top_logprobs in select(vec![None, Some(0), Some(1), Some(20)]),
        silent in prop::bool::weighted(0.2),
        seed in any::<u64>(),
        isa in select(Isa::available()),
    ) {
        const VOCAB: usize = 400;
        let shape: Shape = format!("1x128x128x2x1x{VOCAB}").parse().unwrap();
        let (_folder, path) = synthetic(&shape, seed % 5);
        let wave = |column: usize| ((column * 37 % 101) as f32 - 50.0) / 100.0;
        with_embedding(&path, |row, column, value| match kinds[row % kinds.len()] {
            0 => value,
            1 => 0.0,
            2 => wave(column),
            3 => wave(column) * (1.0 + ((row + column) % 2) as f32 / 1024.0),
            4 if column == row % 128 => 60_000.0,
            4 => value,
            5 => if (row + column).is_multiple_of(2) { 65_504.0 } else { -65_504.0 },
            _ => 6e-8 * ((row + column) % 3) as f32,
        });
        if silent {
            with_tensor(&path, "output_norm.weight", |bytes, _| bytes.fill(0));
        }
        let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
        let request = |n| Request { prompt: prompt(n, 5, VOCAB), max_new_tokens: 6, sampling: sampling.clone(), top_logprobs, seed, ..Request::default() };
        let requests = [request(1), request(2), request(3)];
        let (expected, _) = outcomes(&path, Head::Full, Isa::Scalar, 1, &requests);
        let (found, _) = outcomes(&path, Head::Screened, isa, 2, &requests);
        prop_assert_eq!(found, expected);
    }
}

/// A nucleus is measured on rounded scores and ends with a bin, so its edge is a little further out than the softmax's.
#[test]
fn a_nucleus_is_what_the_softmax_says() {
    const N: usize = 400;
    let (_folder, path) = synthetic(&Shape { vocab: 2000, ..Shape::TINY }, 3);
    let mut engine = load(&path, Options { max_sequences: 32, prefix_cache: true, ..Options::default() });
    let ids = prompt(4, 9, 2000);
    let logits = engine.logits(&ids).unwrap();
    let scores = &logits[logits.len() - 2000..];
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |score: f32| f64::from(score - best).exp();
    let all: f64 = scores.iter().map(|&score| weight(score)).sum();
    // The probability of the tokens that are better.
    let before = |token: u32| {
        let own = scores[token as usize];
        scores.iter().filter(|&&score| score > own).map(|&score| weight(score)).sum::<f64>() / all
    };
    let requests: Vec<Request> = (0..N as u64)
        .map(|seed| Request {
            prompt: ids.clone(),
            max_new_tokens: 1,
            sampling: Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() },
            seed,
            ..Request::default()
        })
        .collect();
    let drawn: Vec<f64> =
        run(&mut engine, &requests).iter().map(|outcome| before(outcome.tokens[0])).collect();
    let outermost = drawn.iter().copied().fold(0.0, f64::max);
    assert!((0.4..0.55).contains(&outermost), "{outermost}");
    // Within the nucleus tokens are as probable relative to one another as they were.
    let mass = |last: f64| -> f64 {
        let within = (0..2000).filter(|&token| before(token) <= last);
        within.map(|token| weight(scores[token as usize])).sum()
    };
    let expected = mass(0.25) / mass(outermost);
    let found = drawn.iter().filter(|&&before| before <= 0.25).count() as f64 / N as f64;
    assert!((found - expected).abs() < 0.1, "{found} for {expected}");
}

/// Their sum is taken from rounded scores, but for the likely tokens; the tokens are ranked by exact scores.
#[test]
fn log_probabilities_are_those_of_the_softmax_to_a_fiftieth() {
    for (sharpness, most) in [(1.0, 0.01), (8.0, 0.02), (60.0, 0.01)] {
        let (_folder, path) = synthetic(&Shape { vocab: 2000, ..Shape::TINY }, 3);
        with_embedding(&path, |_, _, value| value * sharpness);
        let mut engine = load(&path, Options { max_sequences: 32, ..Options::default() });
        for n in 0..12 {
            let ids = prompt(n, 9, 2000);
            let logits = engine.logits(&ids).unwrap();
            let scores = &logits[logits.len() - 2000..];
            let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = scores.iter().map(|&score| f64::from(score - best).exp()).sum();
            let expected = |token: u32| f64::from(scores[token as usize] - best) - sum.ln();
            let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            let request = Request {
                prompt: ids,
                max_new_tokens: 1,
                sampling,
                seed: u64::from(n),
                ..Request::default()
            };
            let plain = run(&mut engine, std::slice::from_ref(&request)).remove(0);
            let found = run(&mut engine, &[Request { top_logprobs: Some(5), ..request }]).remove(0);
            assert_eq!(plain.tokens, found.tokens, "they change no draw");
            let logprob = found.logprobs[0].as_ref().unwrap();
            let mut ranked: Vec<u32> = (0..2000).collect();
            ranked.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            assert_eq!(logprob.top.iter().map(|&(id, _)| id).collect::<Vec<u32>>(), ranked[..5]);
            let all = logprob.top.iter().copied().chain([(found.tokens[0], logprob.logprob)]);
            for (id, logprob) in all {
                let error = (f64::from(logprob) - expected(id)).abs();
                assert!(error < most && logprob <= 0.0, "{sharpness}: {logprob} is {error} off");
            }
        }
    }
}

#[test]
fn a_declared_lossy_head_has_its_own_name_and_gives_the_same_bits_everywhere() {
    let (_folder, path) = synthetic(&Shape { vocab: 700, ..Shape::TINY }, 3);
    let requests = requests(700, 8);
    let mut names = vec![load(&path, Options::default()).info().numerics];
    let mut bytes = Vec::new();
    for head in [Head::Q8, Head::Q6] {
        let info = load(&path, Options { head, ..Options::default() }).info().clone();
        names.push(info.numerics);
        bytes.push(info.bytes_per_token);
        let (expected, _) = outcomes(&path, head, Isa::Scalar, 1, &requests);
        for (isa, threads) in Isa::available().into_iter().zip([2, 3, 1, 2]) {
            assert_eq!(outcomes(&path, head, isa, threads, &requests).0, expected, "{head} {isa}");
        }
    }
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(bytes[1] < bytes[0]);
}
