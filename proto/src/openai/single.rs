//! Single requests of the gateway: the same bodies as in a batch, answered whole. What is streamed is `stream`'s affair.

use serde_json::{Map, Value, json};

use super::output::{body, mark};
use super::request::{Origin, request};
use super::{Endpoint, ModelDefaults, responses};
use crate::id::{JobKey, TimeMs};
use crate::message::{Failure, Generation, JobResult, Line, Outcome};

/// A single request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Single {
    pub line: Line,
    pub generation: Generation,
    /// One more chunk at the end of the stream, with the usage.
    pub include_usage: bool,
    /// Every chunk of one answer carries the same time.
    pub created_at: TimeMs,
    /// The field that holds the answers to a form.
    pub held_by: Option<&'static str>,
    /// What a response repeats of its request; empty for other endpoints.
    pub settings: Map<String, Value>,
}

/// Reads a request's body.
///
/// # Errors
/// [`crate::message::FailureCode::InvalidRequest`] with a sentence that names the field.
pub fn parse_single(endpoint: Endpoint, bytes: &[u8], job: &JobKey) -> Result<Single, Failure> {
    let body = super::object_of(bytes)?;
    let read = request(endpoint, body, job.seed(), &ModelDefaults::default(), Origin::Single);
    let read = read.map_err(super::refused)?;
    Ok(Single {
        line: Line::new(None, endpoint, read.model),
        held_by: read.held_by,
        generation: read.generation,
        include_usage: read.include_usage,
        created_at: TimeMs::now(),
        settings: read.settings,
    })
}

/// The whole answer. `null` when the job failed, which its [`Outcome`] tells better.
pub fn single_body(result: &JobResult, single: &Single) -> Value {
    let Outcome::Text(generated) = &result.outcome else { return Value::Null };
    let (mut whole, created) = match single.line.endpoint {
        Endpoint::Responses => (responses::body(result, generated, &single.settings), "created_at"),
        Endpoint::Completions | Endpoint::ChatCompletions => (body(result, generated), "created"),
    };
    whole[created] = json!(single.created_at.0 / 1000);
    whole["ternfleet"] = effort(result);
    whole
}

/// Who gave the answer and what it took, as the worker counts it.
pub(super) fn effort(result: &JobResult) -> Value {
    let mut effort = json!({
        "worker": result.worker,
        "attempt": result.attempt,
        "queued_ms": result.timing.queued_ms,
        "first_token_ms": result.timing.first_token_ms,
        "total_ms": result.timing.total_ms,
    });
    mark(result, &mut effort);
    effort
}
