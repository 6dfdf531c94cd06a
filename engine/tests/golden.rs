//! The engine against outputs that Hugging Face transformers computed; the rules are in `tests/golden/README.md`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::generate;
use serde_json::Value;
use std::path::PathBuf;
use ternfleet_engine::{Engine, Isa, Options, Request, Sampling};

struct Prompt {
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    gaps: Vec<f64>,
    sd: f64,
}

fn case(name: &str) -> (PathBuf, Vec<Prompt>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompts = case["prompts"].as_array().unwrap().iter().map(|prompt| {
        let bytes = std::fs::read(folder.join(prompt["logits"].as_str().unwrap())).unwrap();
        Prompt {
            ids: ids(&prompt["ids"]),
            logits: bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            greedy: ids(&prompt["greedy"]),
            gaps: prompt["gaps"].as_array().unwrap().iter().map(|gap| gap.as_f64().unwrap()).collect(),
            sd: prompt["logit_sd"].as_f64().unwrap(),
        }
    });
    (folder.join("model.gguf"), prompts.collect())
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, id| if scores[id] > scores[best] { id } else { best })
}

/// Root mean square of the difference in standard deviations, lowest cosine, share of equal best tokens.
fn compare(found: &[f32], expected: &[f32], vocab: usize, sd: f64) -> (f64, f64, f64) {
    assert_eq!(found.len(), expected.len());
    let square: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let rms = (square / found.len() as f64).sqrt() / sd;
    let mut lowest = 1.0f64;
    let mut same = 0;
    let rows = found.len() / vocab;
    for (a, b) in found.chunks(vocab).zip(expected.chunks(vocab)) {
        let dot =
            |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        lowest = lowest.min(dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
        same += usize::from(best(a) == best(b));
    }
    (rms, lowest, same as f64 / rows as f64)
}

fn check(name: &str) {
    let (path, prompts) = case(name);
    for isa in Isa::available() {
        let mut engine = Engine::load(&path, &Options { isa: Some(isa), ..Options::default() }).unwrap();
        let vocab = engine.info().hyper.vocab;
        for (index, prompt) in prompts.iter().enumerate() {
            let found = engine.logits(&prompt.ids).unwrap();
            let (rms, cosine, same) = compare(&found, &prompt.logits, vocab, prompt.sd);
            println!("{name} {isa} prompt {index}: rms {rms:.5} sd, cosine {cosine:.6}, same best {same:.3}");
            if prompt.ids.len() == 1 {
                assert!(
                    found
                        .iter()
                        .zip(&prompt.logits)
                        .all(|(a, b)| f64::from((a - b).abs()) <= 0.01 * prompt.sd)
                );
            } else {
                assert!(rms <= 0.06 && cosine >= 0.998 && same >= 0.9);
            }
            check_greedy(&mut engine, prompt, vocab);
        }
    }
}

fn check_greedy(engine: &mut Engine, prompt: &Prompt, vocab: usize) {
    let request = Request {
        prompt: prompt.ids.clone(),
        max_new_tokens: prompt.greedy.len(),
        sampling: Sampling::greedy(),
        ..Request::default()
    };
    let generated = generate(engine, request);
    for ((found, expected), gap) in generated.iter().zip(&prompt.greedy).zip(&prompt.gaps) {
        if *gap < 0.15 {
            break;
        }
        assert_eq!(found, expected, "greedy continuation before the first narrow gap");
    }
    let mut ids = prompt.ids.clone();
    ids.extend_from_slice(&prompt.greedy[..prompt.greedy.len() - 1]);
    let scores = engine.logits(&ids).unwrap();
    for (step, (expected, gap)) in prompt.greedy.iter().zip(&prompt.gaps).enumerate() {
        let position = prompt.ids.len() - 1 + step;
        if *gap >= 0.15 {
            assert_eq!(
                best(&scores[position * vocab..(position + 1) * vocab]),
                *expected as usize,
                "step {step}"
            );
        }
    }
}

#[test]
fn one_layer_agrees_with_the_reference() {
    check("one-layer");
}

#[test]
fn four_layers_agree_with_the_reference() {
    check("four-layers");
}
