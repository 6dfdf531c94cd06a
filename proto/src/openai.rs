//! OpenAI's formats: batch lines in, output lines and batch objects out, single requests and their streamed chunks.
//!
//! Pure text work. The coordinator calls [`parse_line`] for each line it feeds and [`parse_single`] for its gateway;
//! every reader of results calls [`output_line`]. Parameters that this engine does not support are refused by name,
//! never ignored.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::message::{Failure, FailureCode};

mod batch;
mod chat;
mod choices;
mod creation;
mod fields;
mod inert;
mod line;
mod lines;
mod logprobs;
mod output;
mod request;
mod responses;
mod shape;
mod single;
mod stream;
mod tools;

pub use batch::batch_object;
pub use creation::{BatchBody, BatchInput, expires_after, parse_batch};
pub use line::{LINE_BYTES_MAX, is_blank, line_too_long, model_named, parse_line};
pub use lines::{json_line, one_line};
pub use output::{output_line, output_value};
pub use single::{Single, parse_single, single_body};
pub use stream::{Spoken, Told};

/// The endpoints a batch line may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Endpoint {
    #[serde(rename = "/v1/completions")]
    Completions,
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
    #[serde(rename = "/v1/responses")]
    Responses,
}

impl Endpoint {
    pub const ALL: [Endpoint; 3] = [Endpoint::Completions, Endpoint::ChatCompletions, Endpoint::Responses];

    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Completions => "/v1/completions",
            Endpoint::ChatCompletions => "/v1/chat/completions",
            Endpoint::Responses => "/v1/responses",
        }
    }
}

/// What stands in for parameters that a request leaves out, and what is known of the model to check it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDefaults {
    /// Name reported for requests that name no model.
    pub name: Option<String>,
    /// OpenAI's 16 for completions; chat has no limit but the context.
    pub completion_max_tokens: u32,
    /// Token ids at or above it are refused.
    pub vocabulary_tokens: Option<u32>,
}

impl Default for ModelDefaults {
    fn default() -> Self {
        Self { name: None, completion_max_tokens: 16, vocabulary_tokens: None }
    }
}

/// The field that a refusal is about: what its message begins with, between backticks.
pub fn param(message: &str) -> Option<&str> {
    message.strip_prefix('`')?.split_once('`').map(|(name, _)| name)
}

/// The endpoint of this name, which is in `field`.
fn endpoint_of(field: &str, name: &str) -> Result<Endpoint, fields::Fault> {
    Endpoint::ALL.into_iter().find(|endpoint| endpoint.as_str() == name).ok_or_else(|| {
        let known = Endpoint::ALL.map(|endpoint| format!("\"{}\"", endpoint.as_str())).join(" or ");
        format!("`{field}` must be {known}, not {:?}", fields::clipped(name))
    })
}

fn refused(fault: fields::Fault) -> Failure {
    Failure { code: FailureCode::InvalidRequest, message: fault }
}

/// The body of a request, which is an object.
fn object_of(bytes: &[u8]) -> Result<Map<String, Value>, Failure> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(refused(format!("the body must be a JSON object, not {}", fields::shown(&other)))),
        Err(fault) => Err(refused(format!("the body is not JSON: {fault}"))),
    }
}
