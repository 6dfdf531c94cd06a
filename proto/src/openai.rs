//! OpenAI's Batch file format: input lines in, output lines and batch objects out.
//!
//! Pure text work; the coordinator calls [`parse_line`] for each line it feeds, every reader of results calls
//! [`output_line`]. Parameters that this engine does not support are refused by name, never ignored.

use serde::{Deserialize, Serialize};

/// The two endpoints a batch line may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    #[serde(rename = "/v1/completions")]
    Completions,
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
}
