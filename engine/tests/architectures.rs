//! Every architecture and file type against references that transformers computed, and files that must be refused by name;
//! the rules are in `tests/golden/README.md`. Each folder of `tests/golden/architectures` is met by one of these tests.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;
#[path = "architectures/file_types.rs"]
mod file_types;

use common::{generate, load};
use serde_json::Value;
use std::path::{Path, PathBuf};
use ternfleet_engine::{Engine, Isa, Options, Request, Sampling};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures")
}

struct Case {
    name: String,
    folder: PathBuf,
    json: Value,
}

/// All cases whose names begin so.
fn cases(beginning: &str) -> Vec<Case> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(beginning))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    let case = |name: String| {
        let folder = folder().join(&name);
        let json = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        Case { name, folder, json }
    };
    names.into_iter().map(case).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, id| if scores[id] > scores[best] { id } else { best })
}

/// How far scores lie from a reference, in standard deviations of it.
#[derive(Debug)]
struct Distance {
    rms: f64,
    most: f64,
    cosine: f64,
    same_best: f64,
}

impl Distance {
    fn new(found: &[f32], expected: &[f32], vocab: usize, sd: f64) -> Self {
        assert_eq!(found.len(), expected.len());
        let differences = || found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
        let square: f64 = differences().map(|difference| difference.powi(2)).sum();
        let (mut cosine, mut same) = (1.0f64, 0);
        for (a, b) in found.chunks(vocab).zip(expected.chunks(vocab)) {
            let dot = |x: &[f32], y: &[f32]| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            cosine = cosine.min(dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
            same += usize::from(best(a) == best(b));
        }
        Self {
            rms: (square / found.len() as f64).sqrt() / sd,
            most: differences().fold(0.0, f64::max) / sd,
            cosine,
            same_best: same as f64 / (found.len() / vocab) as f64,
        }
    }
}

/// One of a case's references: what its fields are called, and its tolerances.
struct Reference {
    ending: &'static str,
    first_most: f64,
    rms: f64,
    cosine: f64,
    same_best: f64,
    /// Gaps from which on greedy continuations must be equal.
    gap: f64,
}

impl Case {
    fn references(&self) -> Vec<Reference> {
        let read = |json: &Value, prefix: &str, ending, gap| {
            let number = |key: &str| json[format!("{prefix}{key}")].as_f64().unwrap();
            Reference {
                ending,
                first_most: number("first_max_sd"),
                rms: number("rms_sd"),
                cosine: number("cos_min"),
                same_best: number("same_best"),
                gap,
            }
        };
        let plain = read(&self.json, "tolerance_", "", 0.15);
        match &self.json["tolerance_int8_g128"] {
            Value::Null => vec![plain],
            // Float activations part from int8 ones at narrow gaps, so continuations are compared with int8 alone.
            int8 => {
                vec![Reference { gap: f64::INFINITY, ..plain }, read(int8, "", "_int8_g128", 0.15)]
            }
        }
    }

    /// The reference's scores at every position of a prompt; none if they were not kept.
    fn logits(&self, prompt: &Value, ending: &str) -> Option<Vec<f32>> {
        let path = self.folder.join(prompt[format!("logits{ending}")].as_str()?);
        let bytes = std::fs::read(path).ok()?;
        Some(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn check(&self, isa: Isa) {
        let options = Options { isa: Some(isa), ..Options::default() };
        let mut engine = load(&self.folder.join("model.gguf"), options);
        let vocab = engine.info().hyper.vocab;
        for (index, prompt) in self.json["prompts"].as_array().unwrap().iter().enumerate() {
            let (prompt_ids, sd) = (ids(&prompt["ids"]), prompt["logit_sd"].as_f64().unwrap());
            let found = engine.logits(&prompt_ids).unwrap();
            for reference in self.references() {
                let name = format!("{} {isa} prompt {index}{}", self.name, reference.ending);
                if let Some(expected) = self.logits(prompt, reference.ending) {
                    let distance = Distance::new(&found, &expected, vocab, sd);
                    println!("{name}: {distance:.5?}");
                    match index {
                        0 => assert!(distance.most <= reference.first_most, "{name}: {distance:?}"),
                        _ => assert!(
                            distance.rms <= reference.rms
                                && distance.cosine >= reference.cosine
                                && distance.same_best >= reference.same_best,
                            "{name}: {distance:?}"
                        ),
                    }
                }
                self.check_greedy(&mut engine, prompt, &reference, &name);
            }
        }
    }

    fn check_greedy(&self, engine: &mut Engine, prompt: &Value, reference: &Reference, name: &str) {
        let (prompt_ids, vocab) = (ids(&prompt["ids"]), engine.info().hyper.vocab);
        let greedy = ids(&prompt[format!("greedy{}", reference.ending)]);
        let gaps = prompt[format!("gaps{}", reference.ending)].as_array().unwrap();
        let gaps: Vec<f64> = gaps.iter().map(|gap| gap.as_f64().unwrap()).collect();
        let request = Request {
            prompt: prompt_ids.clone(),
            max_new_tokens: greedy.len(),
            sampling: Sampling::greedy(),
            ..Request::default()
        };
        let generated = generate(engine, request);
        let certain = gaps.iter().take_while(|gap| **gap >= reference.gap).count();
        assert_eq!(generated[..certain], greedy[..certain], "{name}: up to the first narrow gap");
        let mut all = prompt_ids.clone();
        all.extend_from_slice(&greedy[..greedy.len() - 1]);
        let scores = engine.logits(&all).unwrap();
        for (step, (expected, _)) in
            greedy.iter().zip(&gaps).enumerate().filter(|(_, (_, gap))| **gap >= reference.gap)
        {
            let position = prompt_ids.len() - 1 + step;
            let found = best(&scores[position * vocab..(position + 1) * vocab]);
            assert_eq!(found, *expected as usize, "{name}: step {step} of the reference's own tokens");
        }
    }
}

fn all_hold(beginning: &str) {
    for case in cases(beginning) {
        Isa::available().into_iter().for_each(|isa| case.check(isa));
    }
}

#[test]
fn llama_in_i2_s_agrees_with_the_reference() {
    all_hold("a");
}

#[test]
fn qwen3_with_group_scales_agrees_with_the_reference() {
    all_hold("b");
}

#[test]
fn llama_in_tq_agrees_with_the_reference() {
    all_hold("c");
}

#[test]
fn hostile_files_are_refused_by_name_and_their_twins_load() {
    let mut n_refused = 0;
    for case in cases("d") {
        let loaded = Engine::load(&case.folder.join("model.gguf"), &Options::default());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list =
            |key: &str| case.json[key].as_array().map_or(Vec::new(), |all| all.iter().map(text).collect());
        match (case.json["kind"].as_str().unwrap(), loaded) {
            ("accept", loaded) => drop(loaded.unwrap()),
            ("refuse", Ok(_)) => panic!("{}: it was loaded ({})", case.name, case.json["why"]),
            ("refuse-or-compute", Ok(_)) => {}
            (_, Err(refusal)) => {
                n_refused += 1;
                let refusal = refusal.to_string();
                println!("{}: {refusal}", case.name);
                let named = list("must_name").iter().all(|part| refusal.contains(part));
                let also = list("also").iter().any(|part| refusal.contains(part));
                assert!(named || also, "{}: {refusal}", case.name);
            }
            (kind, _) => panic!("{}: '{kind}' is no kind", case.name),
        }
    }
    assert_eq!(n_refused, 19);
}
