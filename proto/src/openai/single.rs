//! Single requests of the gateway: the same bodies as in a batch, answered whole or as streamed chunks.

use serde_json::{Value, json};

use super::output::{body, body_id, chat_logprobs, completion_logprobs, finish_reason, model_name, usage};
use super::request::{Origin, request};
use super::{Endpoint, ModelDefaults};
use crate::id::{JobKey, TimeMs};
use crate::message::{Failure, FailureCode, Generation, JobResult, Line, Outcome, TokenChunk};

/// A single request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Single {
    pub line: Line,
    pub generation: Generation,
    /// One more chunk at the end of the stream, with the usage.
    pub include_usage: bool,
    /// Every chunk of one answer carries the same time.
    pub created_at: TimeMs,
}

/// Reads a request's body.
///
/// # Errors
/// [`FailureCode::InvalidRequest`] with a sentence that names the field.
pub fn parse_single(endpoint: Endpoint, bytes: &[u8], job: &JobKey) -> Result<Single, Failure> {
    let invalid = |message: String| Failure { code: FailureCode::InvalidRequest, message };
    let value: Value =
        serde_json::from_slice(bytes).map_err(|fault| invalid(format!("the body is not JSON: {fault}")))?;
    let Value::Object(map) = value else { return Err(invalid("the body must be a JSON object".into())) };
    let read =
        request(endpoint, map, job.seed(), &ModelDefaults::default(), Origin::Single).map_err(invalid)?;
    Ok(Single {
        line: Line { custom_id: None, endpoint, model: read.model },
        generation: read.generation,
        include_usage: read.include_usage,
        created_at: TimeMs::now(),
    })
}

/// The whole answer. `null` when the job failed, which its [`Outcome`] tells better.
pub fn single_body(result: &JobResult, single: &Single) -> Value {
    let Outcome::Text(generated) = &result.outcome else { return Value::Null };
    let mut whole = body(result, generated);
    whole["created"] = json!(single.created_at.0 / 1000);
    whole["ternfleet"] = effort(result);
    whole
}

/// What a stream begins with: the role, for chat; nothing for completions.
pub fn first_chunk(single: &Single, job: &JobKey) -> Option<Value> {
    match single.line.endpoint {
        Endpoint::Completions => None,
        Endpoint::ChatCompletions => {
            let delta = json!({ "role": "assistant", "content": "" });
            Some(chunk(
                single,
                job,
                json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }]),
            ))
        }
    }
}

/// Some tokens of the answer.
pub fn token_chunk(single: &Single, job: &JobKey, tokens: &TokenChunk) -> Value {
    let choice = match single.line.endpoint {
        Endpoint::Completions => {
            let logprobs = completion_logprobs(&tokens.logprobs, 0);
            json!({ "index": 0, "text": tokens.text, "logprobs": logprobs, "finish_reason": null })
        }
        Endpoint::ChatCompletions => {
            let delta = json!({ "content": tokens.text });
            json!({ "index": 0, "delta": delta, "logprobs": chat_logprobs(&tokens.logprobs), "finish_reason": null })
        }
    };
    chunk(single, job, json!([choice]))
}

/// The end of the answer, with its reason.
pub fn last_chunk(single: &Single, result: &JobResult) -> Value {
    let reason = match &result.outcome {
        Outcome::Text(generated) => Some(finish_reason(generated.finish)),
        Outcome::Failed(_) => None,
    };
    let choice = match single.line.endpoint {
        Endpoint::Completions => json!({ "index": 0, "text": "", "logprobs": null, "finish_reason": reason }),
        Endpoint::ChatCompletions => {
            json!({ "index": 0, "delta": {}, "logprobs": null, "finish_reason": reason })
        }
    };
    chunk(single, &result.job, json!([choice]))
}

/// The usage, when the caller asked for it in the stream.
pub fn usage_chunk(single: &Single, result: &JobResult) -> Option<Value> {
    single.include_usage.then(|| {
        let mut last = chunk(single, &result.job, json!([]));
        last["usage"] = usage(&result.usage);
        last["ternfleet"] = effort(result);
        last
    })
}

/// Who gave the answer and what it took, as the worker counts it.
fn effort(result: &JobResult) -> Value {
    json!({
        "worker": result.worker,
        "attempt": result.attempt,
        "queued_ms": result.timing.queued_ms,
        "first_token_ms": result.timing.first_token_ms,
        "total_ms": result.timing.total_ms,
    })
}

fn chunk(single: &Single, job: &JobKey, choices: Value) -> Value {
    let object = match single.line.endpoint {
        Endpoint::Completions => "text_completion",
        Endpoint::ChatCompletions => "chat.completion.chunk",
    };
    json!({
        "id": body_id(single.line.endpoint, job),
        "object": object,
        "created": single.created_at.0 / 1000,
        "model": model_name(&single.line),
        "choices": choices,
    })
}
