//! The table of conversions: each row a generation and what must come of it.

use ternfleet_proto::message::{OpenSampling, Sampling as WireSampling, TokenLogprobs};
use ternfleet_text::Sampling as Defaults;

use super::*;

const CONTEXT: usize = 100;

fn generation() -> Generation {
    Generation {
        prompt: Prompt::Text("ten bytes.".to_owned()),
        max_tokens: Some(8),
        sampling: WireSampling::default(),
        seed: 5,
        stop: Vec::new(),
        logprobs: None,
        echo: false,
        stream: false,
        constraint: None,
    }
}

fn kept(text: &str) -> Kept {
    Kept { ids: text.bytes().map(u32::from).collect(), logprobs: Vec::new() }
}

/// What a row must come to: tokens to generate and kept ones, or the code of a failure.
type Expected = Result<(usize, usize, Option<Finish>), FailureCode>;

#[test]
fn each_generation_becomes_the_request_that_the_table_says() {
    let base = generation();
    let rows: Vec<(&str, Generation, Kept, Expected)> = vec![
        ("plain", base.clone(), Kept::default(), Ok((8, 0, None))),
        (
            "no limit: the context decides",
            Generation { max_tokens: None, ..base.clone() },
            Kept::default(),
            Ok((90, 0, None)),
        ),
        (
            "exactly the context",
            Generation { max_tokens: Some(90), ..base.clone() },
            Kept::default(),
            Ok((90, 0, None)),
        ),
        (
            "one over",
            Generation { max_tokens: Some(91), ..base.clone() },
            Kept::default(),
            Err(FailureCode::PromptTooLong),
        ),
        (
            "a prompt that fills the context",
            Generation { prompt: Prompt::Tokens(vec![1; CONTEXT]), max_tokens: None, ..base.clone() },
            Kept::default(),
            Err(FailureCode::PromptTooLong),
        ),
        ("resumed", base.clone(), kept("abc"), Ok((8, 3, None))),
        ("resumed at its limit", base.clone(), kept("abcdefgh"), Ok((8, 8, Some(Finish::Length)))),
        (
            "resumed after its stop string",
            Generation { stop: vec!["bc".to_owned()], ..base.clone() },
            kept("abc"),
            Ok((8, 3, Some(Finish::Stop))),
        ),
        (
            "log-probabilities that were not kept: it starts over",
            Generation { logprobs: Some(2), ..base.clone() },
            kept("abc"),
            Ok((8, 0, None)),
        ),
        (
            "log-probabilities that were kept",
            Generation { logprobs: Some(0), ..base.clone() },
            Kept {
                logprobs: vec![TokenLogprobs {
                    id: 97,
                    text: "a".to_owned(),
                    logprob: -1.0,
                    top: Vec::new(),
                }],
                ..kept("a")
            },
            Ok((8, 1, None)),
        ),
        (
            "too many alternatives",
            Generation { logprobs: Some(21), ..base.clone() },
            Kept::default(),
            Err(FailureCode::InvalidRequest),
        ),
        (
            "nothing to generate",
            Generation { max_tokens: Some(0), ..base },
            Kept::default(),
            Ok((0, 0, Some(Finish::Length))),
        ),
    ];
    for (name, generation, kept, expected) in rows {
        let found = prepare(&generation, kept, &Language::Bytes, &Defaults::default(), CONTEXT)
            .map(|p| (p.request.max_new_tokens, p.kept, p.done))
            .map_err(|failure| failure.code);
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn every_sampling_parameter_reaches_the_engine() {
    let mut wanted = generation();
    wanted.sampling = WireSampling {
        temperature: 0.1,
        top_p: 0.2,
        top_k: 3,
        min_p: 0.4,
        presence_penalty: 0.5,
        frequency_penalty: 0.6,
        logit_bias: vec![(7, 0.8)],
        open: Default::default(),
    };
    let prepared =
        prepare(&wanted, Kept::default(), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap();
    let found = Sampling {
        temperature: 0.1,
        top_p: 0.2,
        top_k: 3,
        min_p: 0.4,
        presence_penalty: 0.5,
        frequency_penalty: 0.6,
        logit_bias: vec![(7, 0.8)],
    };
    assert_eq!((prepared.request.sampling, prepared.request.seed), (found, 5));
}

#[test]
fn what_the_caller_leaves_open_is_as_the_models_manifest_says() {
    let defaults = Defaults { temperature: Some(0.0), top_p: Some(0.5), top_k: None };
    let open = OpenSampling { temperature: true, top_p: true, top_k: true };
    let run = |sampling: WireSampling| {
        let asked = Generation { sampling, ..generation() };
        let sampling =
            prepare(&asked, Kept::default(), &Language::Bytes, &defaults, CONTEXT).unwrap().request.sampling;
        (sampling.temperature, sampling.top_p, sampling.top_k)
    };
    assert_eq!(run(WireSampling { open, ..WireSampling::default() }), (0.0, 0.5, 0));
    assert_eq!(run(WireSampling::default()), (1.0, 1.0, 0), "what was asked for stays");
}

#[test]
fn an_echo_repeats_the_prompt_before_the_output() {
    let prepared = {
        let asked = Generation { echo: true, ..generation() };
        prepare(&asked, kept("abc"), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap()
    };
    assert_eq!(prepared.transcript.finish(Finish::Length).0, "ten bytes.abc");
}

#[test]
fn a_busy_engine_is_no_answer_and_every_other_refusal_is() {
    assert_eq!(failure_of(&Refused::Busy { needed: 2, free: 1 }), None);
    let too_long = failure_of(&Refused::TooLong { tokens: 9, max_context: 8 }).unwrap();
    assert_eq!(too_long.code, FailureCode::PromptTooLong);
    assert_eq!(failure_of(&Refused::EmptyPrompt).unwrap().code, FailureCode::InvalidRequest);
}

#[test]
fn a_constraint_needs_a_vocabulary_with_an_end() {
    let generation = Generation { constraint: Some(Constraint::JsonObject), ..generation() };
    let failure = prepare(&generation, kept(""), &Language::Bytes, CONTEXT).unwrap_err();
    assert_eq!(failure.code, FailureCode::InvalidRequest);
}
