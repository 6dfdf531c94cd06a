//! Answers as OpenAI Batch output lines, and the response body inside them.

use serde_json::{Value, json};

use super::logprobs::{chat_logprobs, completion_logprobs};
use super::{Endpoint, json_line, responses};
use crate::id::JobKey;
use crate::message::{Call, Evidence, Finish, Generated, JobResult, Line, Outcome, Usage};

/// One line of an output or error file, without its line ending.
pub fn output_line(result: &JobResult) -> String {
    let mut value = output_value(result);
    value.sort_all_objects();
    json_line(&value)
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
    let mut line = json!({
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
            "engine_us": result.usage.engine_us,
        },
    });
    mark(result, &mut line["ternfleet"]);
    let Outcome::Text(generated) = &result.outcome else { return line };
    if generated.copy_of.is_some() {
        line["ternfleet"]["cached"] = json!(true);
    }
    if let Some(evidence) = &generated.evidence {
        let Evidence { request, seed, answer, .. } = &**evidence;
        line["ternfleet"]["proof"] = json!({ "request": request, "seed": seed, "answer": answer });
    }
    line
}

/// Says of an answer that its engine may answer otherwise the next time.
pub(super) fn mark(result: &JobResult, about: &mut Value) {
    if result.nondeterministic {
        about["deterministic"] = false.into();
    }
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
        Endpoint::Responses => "resp_",
    };
    let batch = job.batch.as_str();
    if batch.starts_with(prefix) {
        return batch.to_owned();
    }
    format!("{prefix}{}-{}", batch.strip_prefix("batch_").unwrap_or(batch), job.index)
}

/// The response body: `text_completion` or `chat.completion`.
pub(super) fn body(result: &JobResult, generated: &Generated) -> Value {
    let object = match result.line.endpoint {
        Endpoint::Completions => "text_completion",
        Endpoint::ChatCompletions => "chat.completion",
        Endpoint::Responses => {
            let settings = serde_json::from_str(&result.line.settings).unwrap_or_default();
            return responses::body(result, generated, &settings);
        }
    };
    let choices = generated.choices().enumerate().map(|(index, one)| choice(result, index, one));
    json!({
        "id": body_id(result.line.endpoint, &result.job),
        "object": object,
        "created": result.finished_at.0 / 1000,
        "model": model_name(&result.line),
        "choices": choices.collect::<Vec<_>>(),
        "usage": usage(&result.usage),
    })
}

fn choice(result: &JobResult, index: usize, one: &Generated) -> Value {
    let finish = finish_reason(one);
    let mut choice = match result.line.endpoint {
        Endpoint::Completions => {
            let logprobs = completion_logprobs(&one.prompt_logprobs, &one.logprobs, &one.text, 0);
            json!({ "index": index, "text": one.text, "logprobs": logprobs, "finish_reason": finish })
        }
        Endpoint::ChatCompletions | Endpoint::Responses => {
            let mut message = json!({ "role": "assistant", "content": one.text, "refusal": null });
            if !one.calls.is_empty() {
                if one.text.is_empty() {
                    message["content"] = Value::Null;
                }
                let calls = one.calls.iter().enumerate();
                message["tool_calls"] =
                    calls.map(|(at, call)| tool_call(&result.job, index, at, call)).collect();
            }
            let logprobs = chat_logprobs(&one.logprobs);
            json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
        }
    };
    ids(&mut choice, &one.prompt_ids, &one.ids);
    choice
}

/// Adds the ids that were asked for, under vLLM's names.
pub(super) fn ids(choice: &mut Value, prompt: &[u32], output: &[u32]) {
    if !prompt.is_empty() {
        choice["prompt_token_ids"] = json!(prompt);
    }
    if !output.is_empty() {
        choice["token_ids"] = json!(output);
    }
}

/// The model that answered. Answers of workers that came before it was told have the one that was asked for.
pub(super) fn model_name(line: &Line) -> &str {
    line.model.as_deref().unwrap_or_default()
}

pub(super) fn finish_reason(one: &Generated) -> &'static str {
    match one.finish {
        Finish::Stop if !one.calls.is_empty() => "tool_calls",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// The id of a call: choice and number within it belong to it, where they are not the first.
pub(super) fn call_id(job: &JobKey, choice: usize, call: usize) -> String {
    let name = name("call", job);
    if (choice, call) == (0, 0) { name } else { format!("{name}_{choice}_{call}") }
}

fn tool_call(job: &JobKey, choice: usize, at: usize, call: &Call) -> Value {
    json!({
        "id": call_id(job, choice, at), "type": "function",
        "function": { "name": call.name, "arguments": call.arguments },
    })
}

pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": 0 },
    })
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
            line: Line::new(Some("mine".into()), endpoint, Some("storyteller".into())),
            outcome,
            usage: Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() },
            timing: Timing::default(),
            nondeterministic: false,
            finished_at: TimeMs(1_700_000_000_999),
            traceparent: None,
            rejected: None,
        }
    }

    fn text() -> Outcome {
        let finish = Finish::Length;
        Outcome::Text(Generated { text: "a\nb".into(), finish, ids_digest: 1, ..Generated::default() })
    }

    #[test]
    fn the_keys_of_a_line_stand_in_order_so_that_files_keep_their_bytes() {
        let line = output_line(&result(Endpoint::Completions, text()));
        let value: Value = serde_json::from_str(&line).unwrap();
        for object in [&value, &value["response"]["body"]] {
            let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
            assert!(keys.is_sorted(), "{keys:?}");
        }
    }

    #[test]
    fn a_good_line_is_openais_with_one_more_object() {
        let value = output_value(&result(Endpoint::Completions, text()));
        assert_eq!(value["id"], "batch_req_ab_6");
        assert_eq!((&value["custom_id"], &value["error"]), (&json!("mine"), &Value::Null));
        assert_eq!(value["response"]["status_code"], 200);
        let body = &value["response"]["body"];
        assert_eq!((&body["object"], &body["created"]), (&json!("text_completion"), &json!(1_700_000_000)));
        let choice = json!({ "index": 0, "text": "a\nb", "logprobs": null, "finish_reason": "length" });
        assert_eq!(body["choices"], json!([choice]));
        assert_eq!(body["usage"]["total_tokens"], 7);
        assert_eq!((&value["ternfleet"]["index"], &value["ternfleet"]["line"]), (&json!(6), &json!(7)));
        assert!(!output_line(&result(Endpoint::Completions, text())).contains('\n'));
    }

    #[test]
    fn a_chat_answer_is_a_message_of_the_assistant() {
        let value = output_value(&result(Endpoint::ChatCompletions, text()));
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
    fn several_choices_stand_in_one_answer_by_their_index() {
        let Outcome::Text(mut first) = text() else { panic!("a text") };
        first.more = vec![Generated { text: "c".into(), ..Generated::default() }];
        let value = output_value(&result(Endpoint::ChatCompletions, Outcome::Text(first)));
        let choices = &value["response"]["body"]["choices"];
        assert_eq!((&choices[1]["index"], &choices[1]["message"]["content"]), (&json!(1), &json!("c")));
        assert_eq!(choices.as_array().map(Vec::len), Some(2));
    }
}
