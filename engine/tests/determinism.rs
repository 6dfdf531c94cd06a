//! The gate: the same bits whatever the instruction set, threads, batch, prefill chunk, head, and point of resumption.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{Outcome, golden, load, requests, run, synthetic};
use std::path::Path;
use ternfleet_engine::synth::Shape;
use ternfleet_engine::{Head, Isa, Options, Request};

const NEW_TOKENS: usize = 14;

fn options(isa: Isa, threads: usize, batch: usize, chunk: usize, head: Head) -> Options {
    Options {
        isa: Some(isa),
        threads: Some(threads),
        max_sequences: batch,
        prefill_chunk: chunk,
        head,
        max_context: Some(512),
        ..Options::default()
    }
}

/// The requests again and again until a batch is full, so that neighbours differ.
fn filled(requests: &[Request], batch: usize) -> Vec<Request> {
    requests.iter().cycle().take(requests.len().max(batch)).cloned().collect()
}

fn same_bits_everywhere(path: &Path) {
    let mut reference = load(path, options(Isa::Scalar, 1, 1, 512, Head::Full));
    let vocab = reference.info().hyper.vocab;
    let numerics = reference.info().numerics;
    let requests = requests(vocab, NEW_TOKENS);
    let expected = run(&mut reference, &requests);
    let ids = &requests[6].prompt;
    let expected_logits: Vec<u32> = reference.logits(ids).unwrap().iter().map(|x| x.to_bits()).collect();
    let mut checked = 0;
    for isa in Isa::available() {
        let configurations = [
            (1, 1, 128, Head::Screened, false),
            (2, 2, 7, Head::Screened, true),
            (3, 5, 64, Head::Screened, true),
            (2, 32, 100, Head::Screened, false),
            (3, 32, 1, Head::Full, true),
            (1, 5, 33, Head::Full, false),
        ];
        // The reference instruction set is slow, and was the reference already: two of them suffice.
        let n = if isa == Isa::Scalar { 2 } else { configurations.len() };
        for (threads, batch, chunk, head, prefix_cache) in configurations.into_iter().take(n) {
            let what = format!("{isa}, {threads} threads, batch {batch}, chunk {chunk}, head {head}");
            let mut engine =
                load(path, Options { prefix_cache, ..options(isa, threads, batch, chunk, head) });
            assert_eq!(engine.info().numerics, numerics);
            let found = run(&mut engine, &filled(&requests, batch));
            for (outcome, expected) in found.iter().zip(expected.iter().cycle()) {
                assert_eq!(
                    (&outcome.tokens, &outcome.logprobs),
                    (&expected.tokens, &expected.logprobs),
                    "{what}"
                );
            }
            let again = run(&mut engine, &resumed(&requests, &expected));
            for ((outcome, expected), kept) in again.iter().zip(&expected).zip(KEPT.into_iter().cycle()) {
                assert_eq!(outcome.tokens, expected.tokens[kept..], "{what}, resumed at {kept}");
            }
            let logits: Vec<u32> = engine.logits(ids).unwrap().iter().map(|x| x.to_bits()).collect();
            assert!(logits == expected_logits, "logits: {what}");
            checked += 1;
        }
    }
    println!("{checked} configurations gave one value");
}

const KEPT: [usize; 3] = [1, 5, 13];

/// The requests with a part of their output kept.
fn resumed(requests: &[Request], outcomes: &[Outcome]) -> Vec<Request> {
    requests
        .iter()
        .zip(outcomes)
        .zip(KEPT.into_iter().cycle())
        .map(|((request, outcome), kept)| Request {
            generated: outcome.tokens[..kept].to_vec(),
            ..request.clone()
        })
        .collect()
}

#[test]
fn a_tiny_synthetic_model_gives_the_same_bits_everywhere() {
    let (_folder, path) = synthetic(&Shape::TINY, 7);
    same_bits_everywhere(&path);
}

#[test]
fn four_golden_layers_give_the_same_bits_everywhere() {
    same_bits_everywhere(&golden("four-layers"));
}

#[test]
fn the_storyteller_gives_the_same_bits_everywhere() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller");
    let models = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in models.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        same_bits_everywhere(&path);
    }
}
