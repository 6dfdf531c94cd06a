//! What the engine's integration tests share: small models, and running requests to their end.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // A test fails by panicking; each test binary uses a part of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ternfleet_engine::gguf;
use ternfleet_engine::synth::{self, Shape};
use ternfleet_engine::{Engine, Event, Options, Request, Sampling, SequenceId, StopReason, TokenLogprob};
use ternfleet_text::constraint::{Callable, Calls, Compiler, Grammar};
use ternfleet_text::{Manifest, Tokenizer, ToolFormat};

/// A synthetic model in a folder that lives as long as the returned guard.
pub fn synthetic(shape: &Shape, seed: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    synth::write(shape, seed, &mut std::fs::File::create(&path).unwrap()).unwrap();
    (folder, path)
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name).join("model.gguf")
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Option<TokenLogprob>>,
    pub end: Option<StopReason>,
    pub cached: usize,
    pub prompt: Vec<TokenLogprob>,
}

/// Submits all requests and steps until the engine is idle; outcomes in the order of the requests.
pub fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Outcome> {
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outcomes: BTreeMap<SequenceId, Outcome> = BTreeMap::new();
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.clear();
        let stats = engine.step(&mut events);
        assert!(stats.sequences > 0 || !events.is_empty(), "a step that is not idle does something");
        for event in events.drain(..) {
            match event {
                Event::Prompt { sequence, logprobs } => {
                    let outcome = outcomes.entry(sequence).or_default();
                    assert!(outcome.tokens.is_empty(), "the prompt comes before the output");
                    outcome.prompt = logprobs;
                }
                Event::Token { sequence, token, logprob } => {
                    let outcome = outcomes.entry(sequence).or_default();
                    assert!(outcome.end.is_none(), "no token follows the end");
                    outcome.tokens.push(token);
                    outcome.logprobs.push(logprob);
                }
                Event::Finished { sequence, reason, usage } => {
                    let outcome = outcomes.entry(sequence).or_default();
                    outcome.end = Some(reason);
                    outcome.cached = usage.cached_tokens;
                }
            }
        }
    }
    ids.iter().map(|id| outcomes.remove(id).unwrap_or_default()).collect()
}

/// A prompt that depends on `seed` and has `n` tokens below `vocab`.
pub fn prompt(seed: u32, n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 7) % vocab as u32)
        .collect()
}

/// Requests of every kind of sampling.
pub fn requests(vocab: usize, max_new_tokens: usize) -> Vec<Request> {
    let sampling = |temperature, top_k, top_p, min_p| Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        ..Sampling::default()
    };
    let kinds = [
        sampling(0.0, 0, 1.0, 0.0),
        sampling(0.7, 40, 0.9, 0.0),
        sampling(1.0, 0, 1.0, 0.0),
        sampling(0.8, 0, 0.9, 0.05),
        Sampling {
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            logit_bias: vec![(3, 2.5), (7, -100.0)],
            ..sampling(1.2, 5, 1.0, 0.0)
        },
        Sampling { frequency_penalty: 1.5, ..sampling(0.0, 0, 1.0, 0.0) },
        sampling(1.5, 200, 1.0, 0.1),
        sampling(1.0, 0, 0.9, 0.0),
    ];
    let mut requests: Vec<Request> = kinds
        .into_iter()
        .enumerate()
        .map(|(i, sampling)| Request {
            prompt: prompt(i as u32, [1, 9, 40, 130, 17, 3, 200, 60][i], vocab),
            max_new_tokens,
            sampling,
            seed: 1234 + i as u64,
            choice: i as u32 % 2,
            ..Request::default()
        })
        .collect();
    requests[3].top_logprobs = Some(3);
    requests
}

pub fn load(path: &Path, options: Options) -> Engine {
    Engine::load(path, &options).unwrap()
}

/// The tokenizer of a model; none where its file has no usable one.
pub fn tokenizer(path: &Path) -> Option<Arc<Tokenizer>> {
    let vocabulary = gguf::vocabulary(&gguf::File::open(path).unwrap()).ok()?;
    let manifest = Manifest::beside(path).unwrap();
    Some(Arc::new(Tokenizer::from_parts(&vocabulary, manifest.as_ref()).ok()?.tokenizer))
}

/// A schema whose structure is fixed, with a text, a number and a choice to fill in.
pub const RECORD: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},
    "age":{"type":"integer","minimum":0,"maximum":120},"kind":{"enum":["fox","hen","miller's daughter"]}},
    "required":["name","age","kind"],"additionalProperties":false}"#;

/// Requests of every kind of constraint and of sampling, where the model has a vocabulary for them.
pub fn constrained(path: &Path, vocab: usize, max_new_tokens: usize) -> Vec<Request> {
    let Some(tokenizer) = tokenizer(path) else { return Vec::new() };
    let compiler = Arc::new(Compiler::new(tokenizer).unwrap());
    let record = || Grammar::JsonSchema(RECORD.to_owned());
    let warm = |top_k, top_p| Sampling { temperature: 0.8, top_k, top_p, ..Sampling::default() };
    let penalties = Sampling {
        temperature: 1.1,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        logit_bias: vec![(3, 4.0), (9, -20.0), (40, 9.0)],
        ..Sampling::default()
    };
    let kinds = [
        (record(), Sampling::greedy()),
        (record(), Sampling::default()),
        (record(), warm(40, 0.9)),
        (Grammar::JsonObject, Sampling { temperature: 1.3, ..Sampling::default() }),
        (Grammar::JsonObject, penalties),
        (Grammar::Regex("[a-z]{3,9}( [a-z]{2,5}){2,4}\\.".to_owned()), warm(0, 0.95)),
        (Grammar::Choice(vec!["a fox in the henhouse".to_owned(), "a fox".to_owned()]), Sampling::default()),
        (Grammar::Lark("start: \"(\" start \")\" | /[^()]{1,8}/".to_owned()), Sampling::default()),
        (calls(true, true), Sampling::default()),
        (calls(false, false), warm(0, 0.95)),
    ];
    let mut requests: Vec<Request> = kinds
        .into_iter()
        .enumerate()
        .map(|(i, (grammar, sampling))| Request {
            prompt: prompt(50 + i as u32, [5, 33, 140, 9, 70, 2, 17, 200, 12, 60][i], vocab),
            max_new_tokens,
            sampling,
            seed: 77 + i as u64,
            constraint: Some(compiler.constraint(grammar)),
            ..Request::default()
        })
        .collect();
    requests[1].top_logprobs = Some(2);
    requests
}

/// Calls of functions: one at least, or a text and then calls; several, or one alone.
pub fn calls(must: bool, several: bool) -> Grammar {
    let function = |name: &str, parameters: Option<&str>| Callable {
        name: name.to_owned(),
        parameters: parameters.map(str::to_owned),
    };
    let functions = vec![function("record", Some(RECORD)), function("now", None)];
    Grammar::Calls(Calls { format: ToolFormat::Hermes, functions, must, several, text: None })
}

/// The tokens of one request that runs alone to its length.
pub fn generate(engine: &mut Engine, request: Request) -> Vec<u32> {
    let n = request.max_new_tokens;
    let id = engine.submit(request).unwrap();
    let (mut tokens, mut events) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        events.clear();
        engine.step(&mut events);
        for event in &events {
            match event {
                Event::Token { sequence, token, .. } if *sequence == id => tokens.push(*token),
                Event::Finished { reason, usage, .. } => {
                    assert_eq!((*reason, usage.completion_tokens), (StopReason::Length, n));
                }
                Event::Token { .. } | Event::Prompt { .. } => unreachable!("one sequence runs"),
            }
        }
    }
    tokens
}
