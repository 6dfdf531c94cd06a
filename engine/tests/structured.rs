//! Answers of the storyteller under public schemas, sampled at temperature 1 and held against their schemas by
//! Python's `jsonschema`. A few in the suite; `TERNFLEET_SCHEMAS=100` samples the number of schemas that the
//! report in docs/structured.md has.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use ternfleet_engine::{Event, Options, Request, Sampling, StopReason};
use ternfleet_text::constraint::{Compiler, Grammar};

const SEEDS: u64 = 5;
const MOST_TOKENS: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn sampled_answers_validate_with_pythons_jsonschema() {
    let python = root().join("target/clients/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/fetch-clients.sh", python.display());
    let n_schemas: usize = std::env::var("TERNFLEET_SCHEMAS").map_or(12, |n| n.parse().unwrap());

    let model = root().join("models/storyteller/storyteller.gguf");
    let tokenizer = common::tokenizer(&model).unwrap();
    let compiler = Arc::new(Compiler::new(Arc::clone(&tokenizer)).unwrap());
    let options = Options { max_sequences: 16, max_context: Some(512), ..Options::default() };
    let mut engine = common::load(&model, options);

    let corpus = std::fs::read_to_string(root().join("text/tests/data/json-schemas.jsonl")).unwrap();
    let rows: Vec<Value> = corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |row: &Value| Grammar::JsonSchema(row["schema"].to_string());
    let taken: Vec<&Value> = rows.iter().filter(|row| of(row).check().is_ok()).collect();
    // A model that was taught nothing but tales seldom ends a text or a list: what does is made likelier, where asked for.
    let bias: f32 = std::env::var("TERNFLEET_BIAS").map_or(4.0, |bias| bias.parse().unwrap());
    let ends = |&id: &u32| tokenizer.text_bytes(id).iter().any(|byte| b"\"]}".contains(byte));
    let ends: Vec<(u32, f32)> =
        (0..tokenizer.n_vocab() as u32).filter(ends).map(|id| (id, bias)).filter(|_| bias != 0.0).collect();
    let prompt = tokenizer.encode("Once upon a time there was", true).unwrap();
    let mut sequences = BTreeMap::new();
    for row in taken.iter().step_by((taken.len() / n_schemas).max(1)).take(n_schemas) {
        for seed in 0..SEEDS {
            let request = Request {
                prompt: prompt.clone(),
                max_new_tokens: MOST_TOKENS,
                sampling: Sampling { logit_bias: ends.clone(), ..Sampling::default() },
                seed,
                constraint: Some(compiler.constraint(of(row))),
                ..Request::default()
            };
            sequences.insert(engine.submit(request).unwrap(), (row, Vec::new()));
        }
    }

    let mut script = Command::new(python)
        .arg(root().join("tests/clients/structured.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = script.stdin.take().unwrap();
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { sequence, token, .. } => sequences.get_mut(&sequence).unwrap().1.push(token),
                Event::Finished { sequence, reason, .. } => {
                    let (row, tokens) = &sequences[&sequence];
                    let whole = reason == StopReason::StopToken;
                    let name = &row["name"];
                    assert!(whole || reason == StopReason::Length, "{name}: {reason:?}");
                    let (schema, text) = (&row["schema"], tokenizer.decode(tokens));
                    let answer = json!({ "name": name, "schema": schema, "whole": whole, "text": text });
                    writeln!(answers, "{answer}").unwrap();
                }
            }
        }
    }
    drop(answers);
    let output = script.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success() && said.contains("all rules hold"), "{said}");
}
