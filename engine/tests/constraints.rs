//! Outputs that are held to a grammar: they belong to it, they end where it ends, and where they cannot continue it is said.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{RECORD, calls, load, prompt, run, tokenizer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ternfleet_engine::{Engine, Options, Request, Sampling, StopReason};
use ternfleet_text::constraint::{Compiler, DeadEnd, Grammar};
use ternfleet_text::{TokenType, Tokenizer, Vocabulary};

fn storyteller() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller/storyteller.gguf")
}

struct Teller {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    compiler: Arc<Compiler>,
}

impl Teller {
    fn new(max_sequences: usize) -> Teller {
        let path = storyteller();
        let tokenizer = tokenizer(&path).unwrap();
        let compiler = Arc::new(Compiler::new(Arc::clone(&tokenizer)).unwrap());
        Teller { engine: load(&path, Options { max_sequences, ..Options::default() }), tokenizer, compiler }
    }

    fn request(&self, grammar: &Grammar, seed: u64, max_new_tokens: usize) -> Request {
        Request {
            prompt: self.tokenizer.encode("The fox said:", true).unwrap(),
            max_new_tokens,
            sampling: Sampling::default(),
            seed,
            constraint: Some(self.compiler.constraint(grammar.clone())),
            ..Request::default()
        }
    }
}

#[test]
fn outputs_belong_to_their_grammars_and_end_with_them() {
    let mut teller = Teller::new(8);
    let grammars = [
        Grammar::JsonSchema(RECORD.to_owned()),
        Grammar::JsonSchema(
            r#"{"type":"array","items":{"type":["integer","null"]},"minItems":2,"maxItems":4}"#.into(),
        ),
        Grammar::Regex("[a-c]{2,5}( [x-z]+){1,2}!".into()),
        Grammar::Choice(vec!["yes".into(), "no".into(), "yes, but not today".into()]),
        Grammar::Lark("start: \"<\" start \">\" | /[0-9]{1,3}/".into()),
        calls(true, false),
    ];
    let requests: Vec<Request> = (0..4)
        .flat_map(|seed| grammars.iter().map(|grammar| (grammar, seed)).collect::<Vec<_>>())
        .map(|(grammar, seed)| teller.request(grammar, seed, 120))
        .collect();
    let outcomes = run(&mut teller.engine, &requests);
    let mut texts = Vec::new();
    for (outcome, grammar) in outcomes.iter().zip(grammars.iter().cycle()) {
        let text = teller.tokenizer.decode(&outcome.tokens);
        let whole = outcome.end == Some(StopReason::StopToken);
        assert!(whole || outcome.end == Some(StopReason::Length), "{:?}", outcome.end);
        assert_eq!(grammar.recogniser().unwrap().takes(&text), whole, "{grammar:?}: {text:?}");
        texts.push(text);
    }
    println!("{texts:#?}");
    let whole = outcomes.iter().filter(|outcome| outcome.end == Some(StopReason::StopToken)).count();
    assert!(whole >= 16, "{whole} of 24 came to their end");
}

#[test]
fn what_must_come_takes_no_step_of_its_own() {
    let mut teller = Teller::new(1);
    let schema = r#"{"type":"object","properties":{"name":{"const":"the miller and his daughter"},
        "a rather long key that says nothing":{"type":"boolean"}},
        "required":["name","a rather long key that says nothing"],"additionalProperties":false}"#;
    let request = teller.request(&Grammar::JsonSchema(schema.to_owned()), 3, 100);
    teller.engine.submit(request).unwrap();
    let (mut events, mut steps) = (Vec::new(), 0);
    while !teller.engine.is_idle() {
        teller.engine.step(&mut events);
        steps += 1;
    }
    let tokens = events.len() - 1;
    assert!(steps <= 4 && tokens > 15, "{tokens} tokens in {steps} steps");
}

#[test]
fn an_output_that_is_cut_says_so() {
    let mut teller = Teller::new(1);
    let request = teller.request(&Grammar::JsonSchema(RECORD.to_owned()), 1, 9);
    let outcome = run(&mut teller.engine, &[request]).remove(0);
    assert_eq!((outcome.tokens.len(), outcome.end), (9, Some(StopReason::Length)));
}

/// A vocabulary that can write `ab` and no `c`.
#[test]
fn a_dead_end_is_named_and_leaves_the_rest_of_the_batch_alone() {
    let mut teller = Teller::new(2);
    let tokens: Vec<String> = ["a", "b", "<end>"].map(str::to_owned).to_vec();
    let vocabulary = Vocabulary {
        token_types: vec![TokenType::Normal, TokenType::Normal, TokenType::Control],
        tokens,
        eos: Some(2),
        model: Some("gpt2".to_owned()),
        pre: Some("llama-bpe".to_owned()),
        ..Vocabulary::default()
    };
    let tokenizer = Arc::new(Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer);
    let poor = Arc::new(Compiler::new(tokenizer).unwrap());
    let lost = Request {
        prompt: prompt(1, 9, 100),
        constraint: Some(poor.constraint(Grammar::Regex("a[ab]{3}c".to_owned()))),
        max_new_tokens: 20,
        ..Request::default()
    };
    let other = teller.request(&Grammar::JsonSchema(RECORD.to_owned()), 5, 100);
    let outcomes = run(&mut teller.engine, &[lost, other.clone()]);
    assert_eq!(outcomes[0].end, Some(StopReason::DeadEnd(DeadEnd::NoToken)));
    assert_eq!(outcomes[0].tokens.len(), 4);
    let alone = run(&mut teller.engine, &[other]);
    assert_eq!((&outcomes[1].tokens, outcomes[1].end), (&alone[0].tokens, Some(StopReason::StopToken)));
}

#[test]
fn kept_output_of_another_grammar_and_a_grammar_that_cannot_be_compiled_end_at_once() {
    let mut teller = Teller::new(2);
    let kept = teller.tokenizer.encode("no JSON", false).unwrap();
    let foreign = Request { generated: kept, ..teller.request(&Grammar::JsonObject, 1, 50) };
    let broken = teller.request(&Grammar::Regex("(".into()), 1, 50);
    let outcomes = run(&mut teller.engine, &[foreign, broken]);
    assert_eq!(outcomes[0].end, Some(StopReason::KeptDiffers));
    assert_eq!(outcomes[1].end, Some(StopReason::DeadEnd(DeadEnd::Uncompiled)));
}
