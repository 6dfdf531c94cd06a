//! Answers as OpenAI Batch output lines, and the response body inside them.

use serde_json::{Map, Value, json};

use super::Endpoint;
use crate::id::JobKey;
use crate::message::{Finish, Generated, JobResult, Line, Outcome, TokenLogprobs, Usage};

/// OpenAI's floor for log-probabilities: JSON has no minus infinity.
const LOGPROB_MIN: f64 = -9999.0;

/// One line of an output or error file, without its line ending.
pub fn output_line(result: &JobResult) -> String {
    let mut value = output_value(result);
    value.sort_all_objects();
    value.to_string()
}

/// As [`output_line`], as a value. Good lines have `response` and no `error`, bad ones `error` and no `response`; both
/// have `ternfleet`: where the answer stands (`index`, `line`), who gave it and what it took.
pub fn output_value(result: &JobResult) -> Value {
    let (response, error) = match &result.outcome {
        Outcome::Text(generated) => {
            let body = body(result, generated);
            let response =
                json!({ "status_code": 200, "request_id": name("req", &result.job), "body": body });
            (response, Value::Null)
        }
        Outcome::Failed(failure) => {
            (Value::Null, json!({ "code": failure.code, "message": failure.message }))
        }
    };
    json!({
        "id": name("batch_req", &result.job),
        "custom_id": result.line.custom_id,
        "response": response,
        "error": error,
        "ternfleet": {
            "index": result.job.index,
            "line": u64::from(result.job.index) + 1,
            "worker": result.worker,
            "attempt": result.attempt,
            "epoch": result.epoch,
            "queued_ms": result.timing.queued_ms,
            "first_token_ms": result.timing.first_token_ms,
            "total_ms": result.timing.total_ms,
            "repeated_tokens": result.usage.repeated_tokens,
            "reprefilled_tokens": result.usage.reprefilled_tokens,
        },
    })
}

/// Ids are made of the job's identity, so that the same answer carries the same id wherever it is read.
pub(super) fn name(prefix: &str, job: &JobKey) -> String {
    let batch = job.batch.as_str();
    format!("{prefix}_{}_{}", batch.strip_prefix("batch_").unwrap_or(batch), job.index)
}

/// The name of a response body: `cmpl-…` or `chatcmpl-…`. A single request's batch id has that form already.
pub(super) fn body_id(endpoint: Endpoint, job: &JobKey) -> String {
    let prefix = match endpoint {
        Endpoint::Completions => "cmpl-",
        Endpoint::ChatCompletions => "chatcmpl-",
    };
    let batch = job.batch.as_str();
    if batch.starts_with(prefix) {
        return batch.to_owned();
    }
    format!("{prefix}{}-{}", batch.strip_prefix("batch_").unwrap_or(batch), job.index)
}

/// The response body: `text_completion` or `chat.completion`.
pub(super) fn body(result: &JobResult, generated: &Generated) -> Value {
    let finish = finish_reason(generated.finish);
    let (object, choice) = match result.line.endpoint {
        Endpoint::Completions => {
            let logprobs = completion_logprobs(&generated.logprobs, 0);
            let choice =
                json!({ "index": 0, "text": generated.text, "logprobs": logprobs, "finish_reason": finish });
            ("text_completion", choice)
        }
        Endpoint::ChatCompletions => {
            let message = json!({ "role": "assistant", "content": generated.text, "refusal": null });
            let logprobs = chat_logprobs(&generated.logprobs);
            let choice =
                json!({ "index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish });
            ("chat.completion", choice)
        }
    };
    json!({
        "id": body_id(result.line.endpoint, &result.job),
        "object": object,
        "created": result.finished_at.0 / 1000,
        "model": model_name(&result.line),
        "choices": [choice],
        "usage": usage(&result.usage),
    })
}

/// The model that was asked for. OpenAI's clients expect a string, so one that was left to the fleet is an empty one.
pub(super) fn model_name(line: &Line) -> &str {
    line.model.as_deref().unwrap_or_default()
}

pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// Six decimals say all that a 32-bit float knows.
fn rounded(logprob: f32) -> f64 {
    let value = f64::from(logprob);
    if value.is_finite() { ((value * 1e6).round() / 1e6).max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// The four parallel arrays of completions; `null` when none were asked for. `offset` is where the text begins, in
/// characters.
pub(super) fn completion_logprobs(tokens: &[TokenLogprobs], offset: usize) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let top = |token: &TokenLogprobs| {
        token
            .top
            .iter()
            .map(|(_, text, logprob)| (text.clone(), json!(rounded(*logprob))))
            .collect::<Map<_, _>>()
    };
    let offsets: Vec<usize> = tokens
        .iter()
        .scan(offset, |at, token| {
            let start = *at;
            *at += token.text.chars().count();
            Some(start)
        })
        .collect();
    json!({
        "tokens": tokens.iter().map(|t| &t.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| rounded(t.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

pub(super) fn chat_logprobs(tokens: &[TokenLogprobs]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let one = |text: &str, logprob: f32| json!({ "token": text, "logprob": rounded(logprob), "bytes": text.as_bytes() });
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut entry = one(&token.text, token.logprob);
            entry["top_logprobs"] = token.top.iter().map(|(_, text, logprob)| one(text, *logprob)).collect();
            entry
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Attempt, Epoch, TenantId, TimeMs};
    use crate::message::{Failure, FailureCode, Line, Timing};
    use crate::tag::AssignmentTag;

    fn result(endpoint: Endpoint, outcome: Outcome) -> JobResult {
        JobResult {
            job: JobKey { batch: "batch_ab".parse().unwrap(), index: 6 },
            tenant: TenantId::default_tenant(),
            epoch: Epoch(2),
            attempt: Attempt(1),
            worker: "w".parse().unwrap(),
            tag: AssignmentTag(0),
            line: Line { custom_id: Some("mine".into()), endpoint, model: Some("storyteller".into()) },
            outcome,
            usage: Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() },
            timing: Timing::default(),
            finished_at: TimeMs(1_700_000_000_999),
            traceparent: None,
        }
    }

    fn text(logprobs: Vec<TokenLogprobs>) -> Outcome {
        Outcome::Text(Generated { text: "a\nb".into(), finish: Finish::Length, ids_digest: 1, logprobs })
    }

    #[test]
    fn the_keys_of_a_line_stand_in_order_so_that_files_keep_their_bytes() {
        let line = output_line(&result(Endpoint::Completions, text(Vec::new())));
        let value: Value = serde_json::from_str(&line).unwrap();
        for object in [&value, &value["response"]["body"]] {
            let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
            assert!(keys.is_sorted(), "{keys:?}");
        }
    }

    #[test]
    fn a_good_line_is_openais_with_one_more_object() {
        let value = output_value(&result(Endpoint::Completions, text(Vec::new())));
        assert_eq!(value["id"], "batch_req_ab_6");
        assert_eq!((&value["custom_id"], &value["error"]), (&json!("mine"), &Value::Null));
        assert_eq!(value["response"]["status_code"], 200);
        let body = &value["response"]["body"];
        assert_eq!((&body["object"], &body["created"]), (&json!("text_completion"), &json!(1_700_000_000)));
        let choice = json!({ "index": 0, "text": "a\nb", "logprobs": null, "finish_reason": "length" });
        assert_eq!(body["choices"], json!([choice]));
        assert_eq!(body["usage"]["total_tokens"], 7);
        assert_eq!((&value["ternfleet"]["index"], &value["ternfleet"]["line"]), (&json!(6), &json!(7)));
        assert!(!output_line(&result(Endpoint::Completions, text(Vec::new()))).contains('\n'));
    }

    #[test]
    fn a_chat_answer_is_a_message_of_the_assistant() {
        let value = output_value(&result(Endpoint::ChatCompletions, text(Vec::new())));
        let body = &value["response"]["body"];
        assert_eq!(body["id"], "chatcmpl-ab-6");
        assert_eq!(body["choices"][0]["message"]["content"], "a\nb");
        assert_eq!(body["choices"][0]["message"]["role"], "assistant");
    }

    #[test]
    fn an_error_line_has_no_response() {
        let failure = Failure { code: FailureCode::BatchExpired, message: "too late".into() };
        let value = output_value(&result(Endpoint::Completions, Outcome::Failed(failure)));
        assert_eq!(value["response"], Value::Null);
        assert_eq!(value["error"], json!({ "code": "batch_expired", "message": "too late" }));
    }

    #[test]
    fn log_probabilities_take_each_endpoints_form_and_stay_json() {
        let token = |text: &str, logprob| TokenLogprobs {
            id: 1,
            text: text.into(),
            logprob,
            top: vec![(1, text.into(), logprob)],
        };
        let tokens = vec![token("é", -0.1), token("b", f32::NEG_INFINITY)];
        let completion = completion_logprobs(&tokens, 0);
        assert_eq!(completion["token_logprobs"], json!([-0.1, -9999.0]));
        assert_eq!(completion["text_offset"], json!([0, 1]));
        let chat = chat_logprobs(&tokens);
        assert_eq!(chat["content"][0]["bytes"], json!([0xc3, 0xa9]));
        assert_eq!(chat["content"][1]["top_logprobs"][0]["logprob"], -9999.0);
    }
}
