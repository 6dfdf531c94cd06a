//! What a server says of one choice, in an event of a stream or in a whole answer, whichever of the two endpoints it is of.

use serde_json::Value;
use ternfleet_proto::message::{CallPiece, Finish, TokenLogprobs};

/// A part of one choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Piece {
    /// The place of the choice among those of its prompt.
    pub(super) choice: usize,
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
    pub(super) prompt_ids: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) calls: Vec<CallPiece>,
    pub(super) finish: Option<Finish>,
}

/// Counts of a whole request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u32,
    pub(super) completion_tokens: u32,
    pub(super) cached_tokens: u32,
}

/// The choices of an event or answer.
///
/// # Errors
/// What it has that no answer should.
pub(super) fn pieces(said: &Value) -> Result<Vec<Piece>, String> {
    let Some(choices) = said["choices"].as_array() else {
        return Err("the server's answer has no `choices`".to_owned());
    };
    choices.iter().map(|choice| piece(said, choice)).collect()
}

fn piece(said: &Value, choice: &Value) -> Result<Piece, String> {
    let message = ["delta", "message"].iter().find_map(|name| choice.get(*name));
    let text = message.map_or(&choice["text"], |message| &message["content"]);
    let calls = message.and_then(|message| message["tool_calls"].as_array());
    let prompt_ids = ids_of(&choice["prompt_token_ids"]).or_else(|| ids_of(&said["prompt_token_ids"]));
    let ids = ids_of(&choice["token_ids"]).unwrap_or_default();
    Ok(Piece {
        choice: choice["index"].as_u64().unwrap_or(0) as usize,
        text: text.as_str().unwrap_or_default().to_owned(),
        logprobs: logprobs(&choice["logprobs"], &ids),
        ids,
        prompt_ids: prompt_ids.unwrap_or_default(),
        calls: calls.into_iter().flatten().enumerate().map(call).collect(),
        finish: finish(&choice["finish_reason"])?,
    })
}

fn ids_of(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn call((at, said): (usize, &Value)) -> CallPiece {
    let function = &said["function"];
    CallPiece {
        call: said["index"].as_u64().unwrap_or(at as u64) as u32,
        name: function["name"].as_str().filter(|name| !name.is_empty()).map(str::to_owned),
        arguments: function["arguments"].as_str().unwrap_or_default().to_owned(),
    }
}

fn finish(reason: &Value) -> Result<Option<Finish>, String> {
    match reason.as_str() {
        None => Ok(None),
        Some("stop" | "tool_calls" | "function_call" | "eos_token") => Ok(Some(Finish::Stop)),
        Some("length") => Ok(Some(Finish::Length)),
        Some(other) => Err(format!("the server ended the answer with the reason {other:?}")),
    }
}

/// Log-probabilities in either endpoint's form. Ids are known of the tokens alone, not of their alternatives.
fn logprobs(said: &Value, ids: &[u32]) -> Vec<TokenLogprobs> {
    let id = |at: usize| ids.get(at).copied().unwrap_or(0);
    if let Some(tokens) = said["content"].as_array() {
        return tokens.iter().enumerate().map(|(at, token)| of_chat(token, id(at))).collect();
    }
    let Some(tokens) = said["tokens"].as_array() else { return Vec::new() };
    let token = |(at, text): (usize, &Value)| {
        let top = said["top_logprobs"][at].as_object();
        let top = top.into_iter().flatten().map(|(text, logprob)| (0, text.clone(), number(logprob)));
        TokenLogprobs {
            id: id(at),
            text: text.as_str().unwrap_or_default().to_owned(),
            logprob: number(&said["token_logprobs"][at]),
            top: top.collect(),
            ..TokenLogprobs::default()
        }
    };
    tokens.iter().enumerate().map(token).collect()
}

fn of_chat(token: &Value, id: u32) -> TokenLogprobs {
    let text = |said: &Value| said["token"].as_str().unwrap_or_default().to_owned();
    let mut top_bytes = Vec::new();
    let alternatives = token["top_logprobs"].as_array();
    let top = alternatives.into_iter().flatten().zip(0u32..).map(|(said, place)| {
        top_bytes.extend(own_bytes(said, &text(said)).map(|bytes| (place, bytes)));
        (0, text(said), number(&said["logprob"]))
    });
    let top = top.collect();
    let bytes = own_bytes(token, &text(token));
    TokenLogprobs { id, text: text(token), logprob: number(&token["logprob"]), top, bytes, top_bytes }
}

/// The bytes of a token, where its text does not say them.
fn own_bytes(token: &Value, text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> =
        token["bytes"].as_array()?.iter().map(|byte| Some(byte.as_u64()? as u8)).collect();
    bytes.filter(|bytes| bytes != text.as_bytes())
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap_or(0.0) as f32
}

/// The counts, where an event or answer has them.
pub(super) fn counts(said: &Value) -> Option<Counts> {
    let usage = said.get("usage").filter(|usage| usage.is_object())?;
    let count = |place: &str| usage.pointer(place).and_then(Value::as_u64).unwrap_or(0) as u32;
    Some(Counts {
        prompt_tokens: count("/prompt_tokens"),
        completion_tokens: count("/completion_tokens"),
        cached_tokens: count("/prompt_tokens_details/cached_tokens"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_endpoints_say_the_same_in_their_own_forms() {
        let of_text = json!({ "choices": [{ "index": 1, "text": "ab", "token_ids": [5], "prompt_token_ids": [1, 2],
            "finish_reason": "length", "logprobs": { "tokens": ["ab"], "token_logprobs": [-0.5],
            "top_logprobs": [{ "ab": -0.5 }], "text_offset": [0] } }] });
        let of_chat = json!({ "prompt_token_ids": [1, 2], "choices": [{ "index": 1, "delta": { "content": "ab" },
            "token_ids": [5], "finish_reason": "length", "logprobs": { "content": [{ "token": "ab", "logprob": -0.5,
            "bytes": [97, 98], "top_logprobs": [{ "token": "ab", "logprob": -0.5, "bytes": [97, 98] }] }] } }] });
        let text = pieces(&of_text).unwrap();
        assert_eq!(text, pieces(&of_chat).unwrap());
        assert_eq!((text[0].choice, text[0].finish), (1, Some(Finish::Length)));
        assert_eq!(text[0].logprobs[0].top, [(0, "ab".to_owned(), -0.5)]);
    }

    #[test]
    fn calls_come_in_pieces_and_odd_ends_are_told() {
        let delta = json!({ "tool_calls": [{ "index": 1, "function": { "name": "f", "arguments": "{" } }] });
        let found =
            pieces(&json!({ "choices": [{ "delta": delta, "finish_reason": "tool_calls" }] })).unwrap();
        assert_eq!((found[0].calls[0].call, found[0].calls[0].name.as_deref()), (1, Some("f")));
        assert_eq!(found[0].finish, Some(Finish::Stop));
        let odd = json!({ "choices": [{ "text": "", "finish_reason": "content_filter" }] });
        assert!(pieces(&odd).unwrap_err().contains("content_filter"));
        assert!(pieces(&json!({ "id": 3 })).is_err());
        let usage = json!({ "usage": { "prompt_tokens": 3, "completion_tokens": 4 } });
        let counts = counts(&usage).unwrap();
        assert_eq!((counts.prompt_tokens, counts.completion_tokens, counts.cached_tokens), (3, 4, 0));
    }
}
