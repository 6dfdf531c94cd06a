//! What is answered over HTTP, read by the types of the Rust client `async-openai`: it skips nothing that it knows.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use async_openai::types::batches::{Batch, BatchStatus};
use async_openai::types::chat::{CreateChatCompletionResponse, CreateChatCompletionStreamResponse};
use async_openai::types::completions::CreateCompletionResponse;
use async_openai::types::responses::{Response, ResponseStreamEvent};
use serde_json::Value;
use ternfleet_proto::message::*;
use ternfleet_proto::openai::{Endpoint, Told, batch_object, output_value, parse_single, single_body};
use ternfleet_proto::tag::AssignmentTag;
use ternfleet_proto::{Attempt, Epoch, JobKey, TenantId, TimeMs, UsdMicro};

fn job() -> JobKey {
    JobKey { batch: "batch_1".parse().unwrap(), index: 0 }
}

fn logprobs() -> Vec<TokenLogprobs> {
    let top = vec![(1, "a".into(), -0.5), (2, "\u{fffd}".into(), -1.5)];
    let top_bytes = vec![(1, vec![0xc3])];
    vec![TokenLogprobs { id: 1, text: "a".into(), logprob: -0.5, top, bytes: None, top_bytes }]
}

fn result(endpoint: Endpoint) -> JobResult {
    let one = |text: &str| Generated {
        text: text.into(),
        finish: Finish::Length,
        logprobs: logprobs(),
        ..Generated::default()
    };
    JobResult {
        job: job(),
        tenant: TenantId::default_tenant(),
        epoch: Epoch(1),
        attempt: Attempt(1),
        worker: "w".parse().unwrap(),
        tag: AssignmentTag(0),
        line: Line::new(Some("a".into()), endpoint, Some("storyteller".into())),
        outcome: Outcome::Text(Generated { more: vec![one("b")], ..one("a") }),
        usage: Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1, ..Usage::default() },
        timing: Timing::default(),
        nondeterministic: false,
        finished_at: TimeMs(1_700_000_000_000),
        traceparent: None,
        rejected: None,
    }
}

fn view(state: BatchState, endpoint: Option<Endpoint>) -> BatchView {
    BatchView {
        id: "batch_1".parse().unwrap(),
        tenant: TenantId::default_tenant(),
        name: None,
        state,
        input_object: "file-1".into(),
        endpoint,
        output_object: Some("output-batch_1.jsonl".into()),
        error_object: None,
        proof_object: None,
        total: 2,
        completed: 2,
        failed: 0,
        total_is_final: true,
        created_at: TimeMs(1_000),
        started_at: Some(TimeMs(2_000)),
        cancelling_at: None,
        finalizing_at: Some(TimeMs(3_000)),
        ended_at: Some(TimeMs(4_000)),
        expires_at: TimeMs(86_400_000),
        options: BatchOptions::default(),
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        prompt_tokens: 30,
        completion_tokens: 40,
        wasted_tokens: 0,
        cost_usd_micro: UsdMicro(18),
        over_budget_usd_micro: UsdMicro::ZERO,
        rate_tok_s: 0.0,
        finish_estimate: None,
        durability: Durability::Stored,
        replicas: 1,
        reason: Some("broken".into()),
        stall: None,
        webhook: None,
        quote: None,
        model: Some("storyteller".into()),
        cached_tokens: 7,
        outputs_expire_at: None,
        nondeterministic: false,
    }
}

#[test]
fn calls_of_functions_are_read_whole_and_in_chunks() {
    let calling = |endpoint| {
        let calls = vec![Call { name: "f".into(), arguments: "{\"a\":1}".into() }];
        let generated = Generated { calls, ..Generated::default() };
        JobResult { outcome: Outcome::Text(generated), ..result(endpoint) }
    };
    let body = |endpoint| output_value(&calling(endpoint))["response"]["body"].take();
    let chat: CreateChatCompletionResponse = serde_json::from_value(body(Endpoint::ChatCompletions)).unwrap();
    assert_eq!(chat.choices[0].message.tool_calls.as_ref().map(Vec::len), Some(1));
    let response: Response = serde_json::from_value(body(Endpoint::Responses)).unwrap();
    assert_eq!(response.output.len(), 1);
    for (endpoint, request) in [
        (
            Endpoint::ChatCompletions,
            r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"tools":[{"type":"function","function":{"name":"f"}}]}"#,
        ),
        (Endpoint::Responses, r#"{"input":"x","stream":true,"tools":[{"type":"function","name":"f"}]}"#),
    ] {
        let single = parse_single(endpoint, request.as_bytes(), &job()).unwrap();
        for spoken in Told::new(single, job()).ending(&calling(endpoint)) {
            let read = match endpoint {
                Endpoint::Responses => serde_json::from_str::<ResponseStreamEvent>(&spoken.data).map(drop),
                _ => serde_json::from_str::<CreateChatCompletionStreamResponse>(&spoken.data).map(drop),
            };
            read.unwrap_or_else(|error| panic!("{}: {error}", spoken.data));
        }
    }
}

#[test]
fn batches_are_read_with_their_usage() {
    for state in [BatchState::Validating, BatchState::InProgress, BatchState::Failed, BatchState::Completed] {
        for endpoint in Endpoint::ALL.map(Some).into_iter().chain([None]) {
            let batch: Batch = serde_json::from_value(batch_object(&view(state, endpoint))).unwrap();
            let usage = batch.usage.unwrap();
            assert_eq!((usage.total_tokens, usage.input_tokens_details.cached_tokens), (70, 7));
            assert_eq!(batch.model.as_deref(), Some("storyteller"));
            assert_eq!(batch.status == BatchStatus::Completed, state == BatchState::Completed);
        }
    }
}

#[test]
fn answers_are_read_whole_and_in_chunks() {
    let body = |endpoint| output_value(&result(endpoint))["response"]["body"].take();
    let completion: CreateCompletionResponse = serde_json::from_value(body(Endpoint::Completions)).unwrap();
    assert_eq!((completion.choices.len(), completion.choices[1].text.as_str()), (2, "b"));
    let chat: CreateChatCompletionResponse = serde_json::from_value(body(Endpoint::ChatCompletions)).unwrap();
    assert_eq!(chat.choices[1].message.content.as_deref(), Some("b"));
    let response: Response = serde_json::from_value(body(Endpoint::Responses)).unwrap();
    assert_eq!(response.output_text().as_deref(), Some("a"));

    let events = |endpoint, request: &str| -> Vec<Value> {
        let single = parse_single(endpoint, request.as_bytes(), &job()).unwrap();
        let whole = single_body(&result(endpoint), &single);
        assert_eq!(whole["model"], "storyteller");
        let spoken = Told::new(single, job()).ending(&result(endpoint));
        spoken.iter().map(|spoken| serde_json::from_str(&spoken.data).unwrap()).collect()
    };
    let usage = r#""stream":true,"n":2,"stream_options":{"include_usage":true}"#;
    let chunks = events(
        Endpoint::ChatCompletions,
        &format!(r#"{{"messages":[{{"role":"user","content":"x"}}],{usage}}}"#),
    );
    for chunk in &chunks {
        serde_json::from_value::<CreateChatCompletionStreamResponse>(chunk.clone()).unwrap();
    }
    for chunk in events(Endpoint::Completions, &format!(r#"{{"prompt":"x",{usage}}}"#)) {
        serde_json::from_value::<CreateCompletionResponse>(chunk).unwrap();
    }
    for event in events(Endpoint::Responses, r#"{"input":"x","instructions":"y","stream":true}"#) {
        let shown = event.to_string();
        serde_json::from_value::<ResponseStreamEvent>(event)
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
    }
}
