//! OpenAI's formats: batch lines in, output lines and batch objects out, single requests and their streamed chunks.
//!
//! Pure text work. The coordinator calls [`parse_line`] for each line it feeds and [`parse_single`] for its gateway;
//! every reader of results calls [`output_line`]. Parameters that this engine does not support are refused by name,
//! never ignored.

use serde::{Deserialize, Serialize};

mod batch;
mod chat;
mod fields;
mod line;
mod output;
mod request;
mod single;

pub use batch::batch_object;
pub use line::{LINE_BYTES_MAX, is_blank, line_too_long, parse_line};
pub use output::{output_line, output_value};
pub use single::{Single, first_chunk, last_chunk, parse_single, single_body, token_chunk, usage_chunk};

/// The two endpoints a batch line may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    #[serde(rename = "/v1/completions")]
    Completions,
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
}

impl Endpoint {
    pub const ALL: [Endpoint; 2] = [Endpoint::Completions, Endpoint::ChatCompletions];

    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Completions => "/v1/completions",
            Endpoint::ChatCompletions => "/v1/chat/completions",
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
