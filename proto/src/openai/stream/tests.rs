//! What a caller of a stream reads.

use super::super::parse_single;
use super::*;
use crate::id::{Attempt, Epoch, TenantId, TimeMs};
use crate::message::{Finish, Timing, Usage};
use crate::tag::AssignmentTag;

fn job() -> JobKey {
    JobKey { batch: "cmpl-1".parse().unwrap(), index: 0 }
}

fn told(endpoint: Endpoint, body: &str) -> Told {
    Told::new(parse_single(endpoint, body.as_bytes(), &job()).unwrap(), job())
}

fn chunk(choice: u32, position: u32, count: u32, text: &str) -> TokenChunk {
    TokenChunk {
        job: job(),
        epoch: Epoch(1),
        position,
        count,
        text: text.into(),
        logprobs: Vec::new(),
        choice,
        prompt_logprobs: Vec::new(),
        model: Some("storyteller".into()),
        calls: Vec::new(),
        ids: Vec::new(),
        prompt_ids: Vec::new(),
    }
}

fn result(endpoint: Endpoint, texts: &[&str]) -> JobResult {
    let one =
        |text: &&str| Generated { text: (*text).to_owned(), finish: Finish::Length, ..Generated::default() };
    let mut choices = texts.iter().map(one);
    let mut first = choices.next().unwrap();
    first.more = choices.collect();
    JobResult {
        job: job(),
        tenant: TenantId::default_tenant(),
        epoch: Epoch(1),
        attempt: Attempt(1),
        worker: "w".parse().unwrap(),
        tag: AssignmentTag(0),
        line: crate::message::Line::new(None, endpoint, Some("storyteller".into())),
        outcome: Outcome::Text(first),
        usage: Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() },
        timing: Timing::default(),
        nondeterministic: false,
        finished_at: TimeMs(5),
        traceparent: None,
        rejected: None,
    }
}

fn values(spoken: &[Spoken]) -> Vec<Value> {
    spoken.iter().map(|spoken| serde_json::from_str(&spoken.data).unwrap()).collect()
}

fn text_of(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn a_stream_shows_no_gap_and_no_repeat() {
    let mut told = told(Endpoint::Completions, r#"{"prompt":"x","stream":true}"#);
    let mut spoken = told.accept(&chunk(0, 0, 2, "Once upon"));
    assert!(told.accept(&chunk(0, 0, 2, "Once upon")).is_empty(), "a repeat after resumption");
    assert!(told.accept(&chunk(0, 5, 1, " lived")).is_empty(), "a gap waits for the committed text");
    spoken.extend(told.accept(&chunk(0, 2, 1, " a")));
    spoken.extend(told.ending(&result(Endpoint::Completions, &["Once upon a time"])));
    let chunks = values(&spoken);
    assert_eq!(text_of(&chunks, 0), "Once upon a time");
    assert!(chunks.iter().all(|chunk| chunk["model"] == "storyteller" && chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn each_choice_is_told_by_its_index_and_ends_with_its_reason() {
    let mut told = told(Endpoint::Completions, r#"{"prompt":["x","y"],"n":2,"stream":true}"#);
    let mut spoken = told.accept(&chunk(3, 0, 1, "d"));
    spoken.extend(told.accept(&chunk(1, 0, 1, "b")));
    spoken.extend(told.accept(&chunk(3, 1, 1, "dd")));
    assert!(told.accept(&chunk(4, 0, 1, "e")).is_empty(), "there is no such choice");
    spoken.extend(told.ending(&result(Endpoint::Completions, &["a", "b", "c", "ddd"])));
    let chunks = values(&spoken);
    for (index, text) in ["a", "b", "c", "ddd"].into_iter().enumerate() {
        assert_eq!(text_of(&chunks, index), text);
    }
    let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length");
    assert_eq!(ends.count(), 4);
}

#[test]
fn usage_is_null_in_all_chunks_but_the_last() {
    let body = r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":{"include_usage":true}}"#;
    let mut told = told(Endpoint::ChatCompletions, body);
    let mut spoken = told.accept(&chunk(0, 0, 1, "a\u{2028}"));
    assert!(spoken.iter().all(|spoken| !spoken.data.contains('\u{2028}')));
    spoken.extend(told.ending(&result(Endpoint::ChatCompletions, &["a\u{2028}b"])));
    let chunks = values(&spoken);
    let (last, others) = chunks.split_last().unwrap();
    assert!(
        others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()),
        "{others:?}"
    );
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(7)));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
}

#[test]
fn a_response_is_told_in_named_and_numbered_events() {
    let body = r#"{"input":"x","instructions":"Be brief.","stream":true,"temperature":0}"#;
    let mut told = told(Endpoint::Responses, body);
    let mut spoken = told.accept(&chunk(0, 0, 1, "a"));
    spoken.extend(told.ending(&result(Endpoint::Responses, &["ab"])));
    assert!(!told.says_done());
    let events = values(&spoken);
    let kinds: Vec<&str> = spoken.iter().map(|spoken| spoken.event.as_deref().unwrap()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(kinds, expected);
    assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at), "{events:?}");
    assert_eq!((&events[4]["delta"], &events[5]["delta"]), (&json!("a"), &json!("b")));
    let response = &events[9]["response"];
    assert_eq!(response["output"][0]["content"][0]["text"], "ab");
    assert_eq!((&response["instructions"], &response["temperature"]), (&json!("Be brief."), &json!(0)));
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
}

fn piece(call: u32, name: Option<&str>, arguments: &str) -> CallPiece {
    CallPiece { call, name: name.map(str::to_owned), arguments: arguments.into() }
}

/// An answer with a text and two calls.
fn calling(endpoint: Endpoint, text: &str) -> JobResult {
    let call = |name: &str, arguments: &str| Call { name: name.into(), arguments: arguments.into() };
    let calls = vec![call("f", r#"{"a": 1}"#), call("g", "{}")];
    let generated = Generated { text: text.into(), calls, finish: Finish::Stop, ..Generated::default() };
    JobResult { outcome: Outcome::Text(generated), ..result(endpoint, &[""]) }
}

const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"f"}}],"stream":true"#;

/// What a client puts together from the deltas: text, and calls as (id, name, arguments).
fn gathered(chunks: &[Value]) -> (String, Vec<(String, String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::<(String, String, String)>::new());
    for delta in chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]) {
        text.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().unwrap_or(&Vec::new()) {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(call["type"], "function");
                let part = |value: &Value| value.as_str().unwrap().to_owned();
                calls.push((part(&call["id"]), part(&call["function"]["name"]), String::new()));
            } else {
                assert!(call.get("id").is_none() && call["function"].get("name").is_none(), "{call}");
            }
            calls[index].2.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    (text, calls)
}

#[test]
fn calls_are_streamed_in_openais_shape_whatever_was_heard_on_the_way() {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"x"}}],{TOOLS}}}"#);
    let first = TokenChunk { calls: vec![piece(0, Some("f"), r#"{"a"#)], ..chunk(0, 3, 2, "") };
    let rest = TokenChunk {
        calls: vec![piece(0, None, r#"": 1}"#), piece(1, Some("g"), "{")],
        ..chunk(0, 5, 2, "")
    };
    let all = [chunk(0, 0, 3, "Wait."), first, rest];
    for heard in 0..=all.len() {
        let mut told = told(Endpoint::ChatCompletions, &body);
        let mut spoken: Vec<Spoken> = all[..heard].iter().flat_map(|chunk| told.accept(chunk)).collect();
        spoken.extend(told.ending(&calling(Endpoint::ChatCompletions, "Wait.")));
        let chunks = values(&spoken);
        let (text, calls) = gathered(&chunks);
        assert_eq!(text, "Wait.", "{heard}");
        let wanted = [("call_cmpl-1_0", "f", r#"{"a": 1}"#), ("call_cmpl-1_0_0_1", "g", "{}")];
        let wanted =
            wanted.map(|(id, name, arguments)| (id.to_owned(), name.to_owned(), arguments.to_owned()));
        assert_eq!(calls, wanted, "{heard}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    // While a call is beginning, nothing is said.
    let mut told = told(Endpoint::ChatCompletions, &body);
    assert_eq!(told.accept(&chunk(0, 0, 3, "")).len(), 1, "the role alone");
    assert_eq!(told.accept(&chunk(0, 3, 2, "")).len(), 0);
}

#[test]
fn a_response_with_calls_ends_each_item_before_the_next_begins() {
    let body = r#"{"input":"x","tools":[{"type":"function","name":"f"}],"stream":true}"#;
    for (text, heard) in [("Wait.", true), ("Wait.", false), ("", true), ("", false)] {
        let mut told = told(Endpoint::Responses, body);
        let mut spoken = Vec::new();
        if heard {
            spoken.extend(told.accept(&chunk(0, 0, 3, text)));
            let calls = vec![piece(0, Some("f"), r#"{"a""#)];
            spoken.extend(told.accept(&TokenChunk { calls, ..chunk(0, 3, 2, "") }));
        }
        spoken.extend(told.ending(&calling(Endpoint::Responses, text)));
        let events = values(&spoken);
        let response = &events.last().unwrap()["response"];
        let output = response["output"].as_array().unwrap();
        assert_eq!(output.len(), if text.is_empty() { 2 } else { 3 });
        assert_eq!((&response["status"], &response["tools"][0]["name"]), (&json!("completed"), &json!("f")));
        let mut open: Option<usize> = None;
        let mut done = 0;
        let mut arguments = vec![String::new(); output.len()];
        for event in &events {
            let index = event["output_index"].as_u64().map(|index| index as usize);
            match event["type"].as_str().unwrap() {
                "response.output_item.added" => {
                    assert_eq!((open, index), (None, Some(done)), "{event}");
                    assert_eq!(event["item"]["id"], output[done]["id"]);
                    open = index;
                }
                "response.output_item.done" => {
                    assert_eq!((open, index), (Some(done), Some(done)), "{event}");
                    assert_eq!(event["item"], output[done]);
                    (open, done) = (None, done + 1);
                }
                "response.function_call_arguments.delta" => {
                    arguments[index.unwrap()].push_str(event["delta"].as_str().unwrap());
                }
                "response.function_call_arguments.done" => {
                    assert_eq!(event["arguments"], arguments[index.unwrap()].as_str());
                    assert_eq!(event["item_id"], output[done]["id"]);
                }
                _ => assert!(index.is_none() || index == open, "{event}"),
            }
        }
        assert_eq!((open, done), (None, output.len()));
    }
}
