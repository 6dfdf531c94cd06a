//! The table of conversions: each row a generation and what must come of it.

use ternfleet_proto::message::{OpenSampling, Sampling as WireSampling, Several, TokenLogprobs};
use ternfleet_text::Sampling as Defaults;

use super::*;

const CONTEXT: usize = 100;

fn generation() -> Generation {
    Generation {
        prompt: Prompt::Text("ten bytes.".to_owned()),
        max_tokens: Some(8),
        seed: 5,
        ..Generation::default()
    }
}

fn kept(text: &str) -> Kept {
    Kept { ids: text.bytes().map(u32::from).collect(), ..Kept::default() }
}

/// What a row must come to: tokens to generate and kept ones, or the code of a failure.
type Expected = Result<(usize, u32, Option<Finish>), FailureCode>;

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
        (
            "resumed at its limit: it is computed again, to prove it",
            base.clone(),
            kept("abcdefgh"),
            Ok((8, 8, None)),
        ),
        (
            "resumed after its stop string: the same",
            Generation { stop: vec!["bc".to_owned()], ..base.clone() },
            kept("abc"),
            Ok((3, 3, None)),
        ),
        (
            "more than its stop string was kept: no honest worker generates that",
            Generation { stop: vec!["bc".to_owned()], ..base.clone() },
            kept("abcd"),
            Ok((8, 0, None)),
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
                    ..TokenLogprobs::default()
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
            .map(|p| (p.choices[0].request.max_new_tokens, p.kept, p.choices[0].done))
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
    let request = &prepared.choices[0].request;
    assert_eq!((&request.sampling, request.seed), (&found, 5));
}

#[test]
fn what_the_caller_leaves_open_is_as_the_models_manifest_says() {
    let defaults =
        Defaults { temperature: Some(0.0), top_p: Some(0.5), top_k: None, frequency_penalty: Some(0.6) };
    let open = OpenSampling { temperature: true, top_p: true, top_k: true, frequency_penalty: true };
    let run = |sampling: WireSampling| {
        let asked = Generation { sampling, ..generation() };
        let sampling = prepare(&asked, Kept::default(), &Language::Bytes, &defaults, CONTEXT)
            .unwrap()
            .choices
            .remove(0)
            .request
            .sampling;
        (sampling.temperature, sampling.top_p, sampling.top_k, sampling.frequency_penalty)
    };
    assert_eq!(run(WireSampling { open, ..WireSampling::default() }), (0.0, 0.5, 0, 0.6));
    assert_eq!(run(WireSampling::default()), (1.0, 1.0, 0, 0.0), "parameters of the request are kept");
}

#[test]
fn an_echo_repeats_the_prompt_before_the_output() {
    let wanted = Generation { echo: true, ..generation() };
    let mut prepared =
        prepare(&wanted, kept("abc"), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap();
    let choice = prepared.choices.remove(0);
    assert!(choice.request.prompt_logprobs.is_none());
    assert_eq!(choice.transcript.finish(Finish::Length).text, "ten bytes.abc");
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
    let failure =
        prepare(&generation, kept(""), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap_err();
    assert_eq!(failure.code, FailureCode::InvalidRequest);
}

#[test]
fn a_scored_prompt_is_computed_whatever_was_kept() {
    let wanted = |max_tokens| Generation {
        echo: true,
        logprobs: Some(1),
        max_tokens: Some(max_tokens),
        ..generation()
    };
    let only = prepare(&wanted(0), Kept::default(), &Language::Bytes, &Defaults::default(), CONTEXT)
        .unwrap()
        .choices
        .remove(0);
    assert!(only.scores_only && only.done.is_none());
    assert_eq!((only.request.max_new_tokens, only.request.prompt_logprobs), (1, Some(1)));
    let both = prepare(&wanted(3), Kept::default(), &Language::Bytes, &Defaults::default(), CONTEXT)
        .unwrap()
        .choices
        .remove(0);
    assert!(!both.scores_only);
    assert_eq!((both.request.max_new_tokens, both.request.prompt_logprobs), (3, Some(1)));
}

#[test]
fn each_choice_goes_on_from_its_own_tokens_with_its_own_draws() {
    let prompts = vec![Prompt::Text("one".into()), Prompt::Text("two!".into())];
    let several = Generation { prompt: Prompt::Several(Several { prompts, n: 2 }), ..generation() };
    let kept = |choices: &[u16]| Kept { choices: choices.to_vec(), ..kept("abcde") };
    let prepared =
        prepare(&several, kept(&[0, 3, 3, 0, 2]), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap();
    assert_eq!((prepared.prompt_tokens, prepared.kept), (7, 5));
    let generated: Vec<String> =
        prepared.choices.iter().map(|c| Language::Bytes.decode(&c.request.generated)).collect();
    assert_eq!(generated, ["ad", "", "e", "bc"]);
    let draws: Vec<(usize, u32, usize)> =
        prepared.choices.iter().map(|c| (c.request.prompt.len(), c.request.choice, c.first)).collect();
    assert_eq!(draws, [(3, 0, 0), (3, 1, 0), (4, 0, 2), (4, 1, 2)]);
    for unusable in [&[][..], &[0, 1, 2, 3, 4]] {
        let prepared =
            prepare(&several, kept(unusable), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap();
        assert_eq!(prepared.kept, 0, "what belongs to no choice is begun anew");
    }
}

#[test]
fn a_model_without_a_form_of_calls_refuses_tools_by_name() {
    let function = wire::Function { name: "f".into(), description: None, parameters: None };
    let tools = Tools { functions: vec![function], choice: ToolChoice::Auto, parallel: true };
    let conversation = wire::Conversation { messages: Vec::new(), tools: Some(tools) };
    let prompt = Prompt::Conversation(conversation);
    let asked = Generation { prompt, ..generation() };
    let failure =
        prepare(&asked, Kept::default(), &Language::Bytes, &Defaults::default(), CONTEXT).unwrap_err();
    assert_eq!(failure.code, FailureCode::InvalidRequest);
    assert!(
        failure.message.starts_with("`tools`") && failure.message.contains("manifest"),
        "{}",
        failure.message
    );
}
