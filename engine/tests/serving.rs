//! Admission, waiting, cancelling, refusing, and the prefix cache, as a caller sees them.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{load, prompt, requests, run, synthetic};
use ternfleet_engine::synth::Shape;
use ternfleet_engine::{
    Engine, Event, Head, LoadError, Options, Refused, Request, Sampling, Speculation, StopReason, gguf,
};

const VOCAB: usize = 512;

fn engine(options: Options) -> (tempfile::TempDir, Engine) {
    let (folder, path) = synthetic(&Shape::TINY, 5);
    let engine = load(&path, Options { threads: Some(2), max_context: Some(512), ..options });
    (folder, engine)
}

fn request(seed: u32, n_prompt: usize, max_new_tokens: usize) -> Request {
    Request {
        prompt: prompt(seed, n_prompt, VOCAB),
        max_new_tokens,
        sampling: Sampling::greedy(),
        ..Request::default()
    }
}

/// One page of the tiny model.
fn page_bytes() -> u64 {
    let (_folder, engine) = engine(Options::default());
    engine.info().kv_bytes / engine.info().kv_pages as u64
}

#[test]
fn a_sequence_that_does_not_fit_waits_and_then_runs() {
    let budget = Some(3 * page_bytes());
    let (_folder, mut engine) =
        engine(Options { kv_budget_bytes: budget, max_sequences: 4, ..Options::default() });
    assert_eq!(engine.info().kv_pages, 3);
    for seed in 0..3 {
        engine.submit(request(seed, 150, 6)).unwrap();
    }
    let mut events = Vec::new();
    engine.step(&mut events);
    assert_eq!((engine.active(), engine.waiting(), engine.free_pages()), (1, 2, 1));
    let mut finished = 0;
    while !engine.is_idle() {
        engine.step(&mut events);
        assert!(engine.active() <= 1);
    }
    for event in events {
        if let Event::Finished { reason, usage, .. } = event {
            assert_eq!((reason, usage.completion_tokens, usage.prompt_tokens), (StopReason::Length, 6, 150));
            finished += 1;
        }
    }
    assert_eq!((finished, engine.free_pages()), (3, 3));
}

#[test]
fn what_can_never_run_is_refused_with_a_reason() {
    let budget = Some(2 * page_bytes());
    let (_folder, mut engine) = engine(Options { kv_budget_bytes: budget, ..Options::default() });
    let refused = |engine: &mut Engine, request: Request| engine.submit(request).unwrap_err();
    assert_eq!(refused(&mut engine, request(0, 0, 5)), Refused::EmptyPrompt);
    assert!(matches!(refused(&mut engine, request(0, 200, 100)), Refused::TooLarge { needed: 3, total: 2 }));
    assert!(matches!(refused(&mut engine, request(0, 600, 1)), Refused::TooLong { .. }));
    assert_eq!(refused(&mut engine, request(0, 5, 0)), Refused::NothingToDo);
    let unknown = Request { prompt: vec![VOCAB as u32], ..Request::default() };
    assert!(matches!(refused(&mut engine, unknown), Refused::UnknownToken { .. }));
    for sampling in [
        Sampling { temperature: f32::NAN, ..Sampling::default() },
        Sampling { top_p: 0.0, ..Sampling::default() },
        Sampling { min_p: 2.0, ..Sampling::default() },
        Sampling { logit_bias: vec![(1, f32::INFINITY)], ..Sampling::default() },
    ] {
        let faulty = Request { sampling, ..request(0, 5, 5) };
        assert!(matches!(refused(&mut engine, faulty), Refused::Parameter { .. }));
    }
    assert!(matches!(engine.logits(&prompt(0, 300, VOCAB)), Err(Refused::Busy { needed: 3, free: 2 })));
    assert!(engine.is_idle() && engine.free_pages() == 2);
}

#[test]
fn a_cancelled_sequence_ends_once_and_frees_its_pages() {
    let (_folder, mut engine) = engine(Options { max_sequences: 1, ..Options::default() });
    let total = engine.free_pages();
    let ids = [engine.submit(request(0, 9, 400)).unwrap(), engine.submit(request(1, 9, 400)).unwrap()];
    let mut events = Vec::new();
    engine.step(&mut events);
    assert!(engine.cancel(ids[0]) && engine.cancel(ids[1]) && !engine.cancel(ids[0]));
    events.clear();
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let cancelled = |event: &Event| matches!(event, Event::Finished { reason: StopReason::Cancelled, .. });
    assert_eq!((events.len(), events.iter().filter(|event| cancelled(event)).count()), (2, 2));
    assert_eq!(engine.free_pages(), total);
    assert!(!engine.cancel(ids[1]));
}

#[test]
fn generation_ends_at_a_stop_id_and_at_the_end_of_the_context() {
    let (_folder, mut engine) = engine(Options::default());
    let free = run(&mut engine, &[request(3, 20, 30)]).remove(0);
    let stop = free.tokens[4];
    let first = free.tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = run(&mut engine, &[Request { stop_ids: vec![stop], ..request(3, 20, 30) }]).remove(0);
    assert_eq!((stopped.tokens, stopped.end), (free.tokens[..=first].to_vec(), Some(StopReason::StopToken)));
    let full = run(&mut engine, &[request(4, 500, 100)]).remove(0);
    assert_eq!((full.tokens.len(), full.end), (12, Some(StopReason::Context)));
}

#[test]
fn the_prefix_cache_saves_work_and_changes_nothing() {
    let (_folder, mut plain) = engine(Options::default());
    let requests: Vec<Request> = (0..4)
        .map(|i| {
            let mut request = request(8, 300, 10);
            request.prompt[299] = i;
            request
        })
        .collect();
    let expected = run(&mut plain, &requests);
    let (_folder, mut engine) =
        engine(Options { prefix_cache: true, max_sequences: 2, ..Options::default() });
    let total = engine.free_pages();
    let found = run(&mut engine, &requests);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.tokens, expected.tokens);
    }
    assert_eq!(found.iter().map(|outcome| outcome.cached).collect::<Vec<_>>(), [0, 299, 299, 299]);
    assert_eq!(engine.free_pages(), total, "kept pages count as free");
    let others: Vec<Request> = (20..30).map(|seed| request(seed, 400, 8)).collect();
    assert_eq!(run(&mut engine, &others), run(&mut plain, &others), "kept pages give way");
}

#[test]
fn a_beginning_that_many_share_is_computed_once_and_holds_nobody_else_up() {
    let options = Options { prefix_cache: true, max_sequences: 16, ..Options::default() };
    let (_folder, mut engine) = engine(options);
    let (n, n_prompt, n_shared) = (40, 400, 384);
    let alike = |last: usize| {
        let mut request = request(8, n_prompt, 4);
        request.prompt[n_prompt - 1] = last as u32;
        request
    };
    (0..n).for_each(|last| _ = engine.submit(alike(last)).unwrap());
    let other = engine.submit(request(9, 20, 4)).unwrap();
    let (mut events, mut prefilled, mut first_end) = (Vec::new(), 0, None);
    while !engine.is_idle() {
        prefilled += engine.step(&mut events).prefill_tokens;
        let ended = events.iter().find_map(|event| match event {
            Event::Finished { sequence, .. } => Some(*sequence),
            _ => None,
        });
        first_end = first_end.or(ended);
    }
    let least = n_shared + n * (n_prompt - n_shared) + 20;
    assert!(prefilled <= least, "{prefilled} tokens of prompts, and {least} suffice");
    assert_eq!(first_end, Some(other), "what shares nothing goes first");
}

/// A request that can only say one word, which is what guessing is good at.
fn one_word(n_prompt: usize, max_new_tokens: usize) -> Request {
    let sampling = Sampling { logit_bias: vec![(11, 100.0)], ..Sampling::greedy() };
    Request { sampling, ..request(1, n_prompt, max_new_tokens) }
}

#[test]
fn right_guesses_save_steps_and_stop_where_the_sequence_does() {
    let (_folder, mut engine) = engine(Options { speculation: Speculation::ALWAYS, ..Options::default() });
    let steps = |engine: &mut Engine, request: Request| {
        engine.submit(request).unwrap();
        let (mut events, mut steps) = (Vec::new(), 0);
        while !engine.is_idle() {
            engine.step(&mut events);
            steps += 1;
        }
        let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        (steps, tokens)
    };
    let (n_steps, tokens) = steps(&mut engine, one_word(9, 40));
    assert_eq!(tokens, 40, "guesses never lead beyond the length asked for");
    assert!(n_steps <= 12, "{n_steps} steps");
    let counters = engine.speculation_counters();
    assert!(counters.accepted == counters.drafted && counters.accepted >= 28, "{counters:?}");
    // At the end of the context, and at a stop id, too.
    assert_eq!(steps(&mut engine, one_word(490, 100)).1, 22);
    let stopped = Request { stop_ids: vec![11], ..one_word(9, 40) };
    assert_eq!(steps(&mut engine, stopped).1, 1);
    let asked_not_to = Request { speculate: false, ..one_word(9, 40) };
    assert_eq!(steps(&mut engine, asked_not_to), (40, 40));
    assert_eq!(engine.free_pages(), engine.info().kv_pages);
}

#[test]
fn nobody_guesses_while_many_sequences_run() {
    let (_folder, mut engine) =
        engine(Options { speculation: Speculation::ALWAYS, max_sequences: 4, ..Options::default() });
    for n in [20, 20, 40] {
        engine.submit(one_word(9, n)).unwrap();
    }
    let mut events = Vec::new();
    while engine.active() + engine.waiting() > 2 {
        assert_eq!(engine.step(&mut events).speculation.drafted, 0);
    }
    let mut drafted = 0;
    while !engine.is_idle() {
        drafted += engine.step(&mut events).speculation.drafted;
    }
    assert!(drafted > 10, "the last one of a batch is alone: {drafted}");
}

#[test]
fn sixty_four_sequences_run_at_once_within_the_pages_that_were_said() {
    let requests: Vec<Request> = (0..70).map(|seed| request(seed, 3 + seed as usize % 9, 5)).collect();
    let (_folder, mut alone) = engine(Options { max_sequences: 1, ..Options::default() });
    let expected = run(&mut alone, &requests[..3]);
    let budget = Some(64 * page_bytes());
    let (_folder, mut engine) =
        engine(Options { max_sequences: 64, kv_budget_bytes: budget, ..Options::default() });
    assert_eq!(engine.info().kv_bytes, 64 * page_bytes());
    for request in &requests {
        engine.submit(request.clone()).unwrap();
    }
    engine.step(&mut Vec::new());
    assert_eq!((engine.active(), engine.waiting(), engine.free_pages()), (64, 6, 0));
    while !engine.is_idle() {
        engine.step(&mut Vec::new());
    }
    assert_eq!(run(&mut engine, &requests)[..3], expected);
}

/// The log-probability of each of a prompt's tokens but the first, from the scores of a plain pass.
fn reference(engine: &mut Engine, prompt: &[u32]) -> Vec<f64> {
    let scores = engine.logits(prompt).unwrap();
    let rows = scores.chunks_exact(VOCAB).zip(&prompt[1..]);
    rows.map(|(row, &token)| {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&score| f64::from(score - highest).exp()).sum();
        f64::from(row[token as usize] - highest) - sum.ln()
    })
    .collect()
}

#[test]
fn a_prompt_is_scored_the_same_alone_in_company_and_with_a_warm_cache() {
    let (_folder, mut engine) =
        engine(Options { prefix_cache: true, max_sequences: 4, prefill_chunk: 96, ..Options::default() });
    let scored = Request { prompt_logprobs: Some(2), top_logprobs: Some(2), ..request(7, 300, 3) };
    let alone = run(&mut engine, std::slice::from_ref(&scored)).remove(0);
    let expected = reference(&mut engine, &scored.prompt);
    assert_eq!((alone.prompt.len(), alone.tokens.len()), (299, 3));
    for (found, expected) in alone.prompt.iter().zip(&expected) {
        assert!((f64::from(found.logprob) - expected).abs() < 1e-4, "{found:?} is not {expected}");
        assert_eq!(found.top.len(), 2);
    }
    let plain = run(&mut engine, &[request(7, 300, 3)]).remove(0);
    assert_eq!(plain.tokens, alone.tokens, "scoring changes no draw");
    assert!(plain.prompt.is_empty());
    let warm = run(&mut engine, &[request(7, 300, 3)]).remove(0);
    assert!(warm.cached > 0 && warm.tokens == plain.tokens, "the cache is warm");
    let resumed = Request { generated: alone.tokens[..2].to_vec(), ..scored.clone() };
    let all = [
        scored.clone(),
        request(1, 40, 30),
        resumed,
        Request { prompt_logprobs: Some(2), ..request(9, 1, 2) },
    ];
    let company = run(&mut engine, &all);
    assert_eq!(company[0], alone);
    assert_eq!((&company[2].prompt, &company[2].tokens[..]), (&alone.prompt, &alone.tokens[2..]));
    assert!(company[3].prompt.is_empty(), "a prompt of one token has nothing to score");
}

#[test]
fn weights_that_overflow_end_a_sequence_by_name_and_the_engine_lives() {
    let (_folder, path) = synthetic(&Shape::TINY, 5);
    let mut bytes = std::fs::read(&path).unwrap();
    let norm = gguf::File::open(&path).unwrap().tensor("output_norm.weight").unwrap().data.to_vec();
    let at = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
    for weight in bytes[at..at + norm.len()].chunks_exact_mut(4) {
        weight.copy_from_slice(&3e38f32.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    for head in [Head::Screened, Head::Full, Head::Q8, Head::Q6] {
        let mut engine = load(&path, Options { threads: Some(2), head, ..Options::default() });
        for outcome in run(&mut engine, &requests(VOCAB, 8)) {
            assert_eq!((outcome.tokens.len(), outcome.end), (0, Some(StopReason::NotFinite)), "{head:?}");
        }
        assert_eq!(engine.active(), 0);
    }
}

#[test]
fn a_request_without_a_limit_runs_to_the_end_of_the_context() {
    let (_folder, mut engine) = engine(Options::default());
    let outcome = &run(&mut engine, &[request(3, 500, usize::MAX)])[0];
    assert_eq!((outcome.tokens.len(), outcome.end), (12, Some(StopReason::Context)));
}

#[test]
fn heads_that_are_wider_together_than_any_layer_are_refused_at_load() {
    let (_folder, path) = synthetic(&"1x128x128x1032x1x259x128".parse().unwrap(), 1);
    let refused = Engine::load(&path, &Options::default()).unwrap_err();
    assert!(matches!(&refused, LoadError::Shape(text) if text.contains("wide")), "{refused}");
}
