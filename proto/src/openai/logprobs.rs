//! Log-probabilities in the forms of both endpoints.

use serde_json::{Map, Value, json};

use crate::message::TokenLogprobs;

/// OpenAI's floor for log-probabilities: JSON has no minus infinity.
const LOGPROB_MIN: f64 = -9999.0;

/// Six decimals say all that a 32-bit float knows.
fn rounded(logprob: f32) -> f64 {
    let value = f64::from(logprob);
    if value.is_finite() { ((value * 1e6).round() / 1e6).max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// Bytes that are no text, as OpenAI shows them.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// The alternatives at a token's place: text, own bytes if they are no text, log-probability.
fn alternatives(token: &TokenLogprobs) -> impl Iterator<Item = (&str, Option<&[u8]>, f32)> {
    token.top.iter().zip(0u32..).map(|((_, text, logprob), place)| {
        let own = token.top_bytes.iter().find(|(at, _)| *at == place).map(|(_, bytes)| bytes.as_slice());
        (text.as_str(), own, *logprob)
    })
}

/// The four parallel arrays of completions; `null` when none were asked for. `prompt` comes first, where it is echoed;
/// its first token has nothing before it, so that nothing can be said of it. `text` is what the tokens make, and begins
/// `offset` characters into the choice's text.
pub(super) fn completion_logprobs(
    prompt: &[TokenLogprobs],
    tokens: &[TokenLogprobs],
    text: &str,
    offset: usize,
) -> Value {
    if prompt.is_empty() && tokens.is_empty() {
        return Value::Null;
    }
    let all = || prompt.iter().chain(tokens);
    let name = |text: &str, own: Option<&[u8]>| match own {
        Some(bytes) => format!("bytes:{}", hexadecimal(bytes)),
        None => text.to_owned(),
    };
    let unsaid = |place: usize| place == 0 && !prompt.is_empty();
    let top = |(place, token): (usize, &TokenLogprobs)| match unsaid(place) {
        true => Value::Null,
        false => alternatives(token)
            .map(|(text, own, logprob)| (name(text, own), json!(rounded(logprob))))
            .collect::<Map<_, _>>()
            .into(),
    };
    let logprob = |(place, token): (usize, &TokenLogprobs)| match unsaid(place) {
        true => Value::Null,
        false => json!(rounded(token.logprob)),
    };
    json!({
        "tokens": all().map(|token| name(&token.text, token.bytes.as_deref())).collect::<Vec<_>>(),
        "token_logprobs": all().enumerate().map(logprob).collect::<Vec<_>>(),
        "top_logprobs": all().enumerate().map(top).collect::<Vec<_>>(),
        "text_offset": offsets(all(), text).map(|place| place + offset).collect::<Vec<_>>(),
    })
}

/// Where each token begins in `text`, in characters; a token that continues a character begins where that does. Tokens
/// that are no part of the text (such as the one that begins a prompt) take no room in it.
fn offsets<'a>(tokens: impl Iterator<Item = &'a TokenLogprobs>, text: &str) -> impl Iterator<Item = usize> {
    let is_begin = |byte: &&u8| **byte & 0xC0 != 0x80;
    let (mut at, mut begun) = (0, 0);
    tokens.map(move |token| {
        let offset = if text.is_char_boundary(at) { begun } else { begun.max(1) - 1 };
        let rest = text.as_bytes().get(at..).unwrap_or_default();
        if rest.starts_with(token.own_bytes()) {
            at += token.own_bytes().len();
            begun += token.own_bytes().iter().filter(is_begin).count();
        }
        offset
    })
}

pub(super) fn chat_logprobs(tokens: &[TokenLogprobs]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    json!({ "content": tokens.iter().map(token_logprob).collect::<Vec<_>>(), "refusal": null })
}

/// One token with its alternatives.
pub(super) fn token_logprob(token: &TokenLogprobs) -> Value {
    let one = |text: &str, own: Option<&[u8]>, logprob: f32| {
        let shown = own.map_or_else(|| text.to_owned(), hexadecimal);
        json!({ "token": shown, "logprob": rounded(logprob), "bytes": own.unwrap_or(text.as_bytes()) })
    };
    let mut entry = one(&token.text, token.bytes.as_deref(), token.logprob);
    entry["top_logprobs"] = alternatives(token).map(|(text, own, logprob)| one(text, own, logprob)).collect();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, logprob: f32) -> TokenLogprobs {
        TokenLogprobs {
            id: 1,
            text: text.into(),
            logprob,
            top: vec![(1, text.into(), logprob)],
            ..TokenLogprobs::default()
        }
    }

    fn part(bytes: &[u8]) -> TokenLogprobs {
        let text = String::from_utf8_lossy(bytes).into_owned();
        TokenLogprobs {
            top: vec![(2, "x".into(), -0.5), (1, text.clone(), -1.5)],
            text,
            bytes: Some(bytes.to_vec()),
            top_bytes: vec![(1, bytes.to_vec())],
            ..TokenLogprobs::default()
        }
    }

    #[test]
    fn log_probabilities_take_each_endpoints_form_and_stay_json() {
        let tokens = vec![token("é", -0.1), token("b", f32::NEG_INFINITY)];
        let completion = completion_logprobs(&[], &tokens, "éb", 3);
        assert_eq!(completion["token_logprobs"], json!([-0.1, -9999.0]));
        assert_eq!(completion["text_offset"], json!([3, 4]));
        let chat = chat_logprobs(&tokens);
        assert_eq!(chat["content"][0]["bytes"], json!([0xc3, 0xa9]));
        assert_eq!(chat["content"][1]["top_logprobs"][0]["logprob"], -9999.0);
    }

    #[test]
    fn a_part_of_a_character_has_its_own_bytes() {
        let tokens = vec![part(&[0xc3]), part(&[0xa9]), token("b", -1.0)];
        let chat = chat_logprobs(&tokens);
        assert_eq!(
            (&chat["content"][0]["bytes"], &chat["content"][0]["token"]),
            (&json!([0xc3]), &json!("\\xc3"))
        );
        assert_eq!(chat["content"][1]["top_logprobs"][1]["bytes"], json!([0xa9]));
        assert_eq!(chat["content"][1]["top_logprobs"][0]["bytes"], json!([b'x']));
        let completion = completion_logprobs(&[], &tokens, "éb", 0);
        assert_eq!(completion["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9", "b"]));
        assert_eq!(completion["text_offset"], json!([0, 0, 1]));
        assert_eq!(completion["top_logprobs"][0], json!({ "x": -0.5, "bytes:\\xc3": -1.5 }));
    }

    #[test]
    fn an_echoed_prompt_is_scored_but_for_its_first_token() {
        let prompt = vec![token("<bos>", 0.0), token("Once", -2.0), token(" upon", -1.0)];
        let echoed = completion_logprobs(&prompt, &[token(" a", -0.5)], "Once upon a", 0);
        assert_eq!(echoed["tokens"], json!(["<bos>", "Once", " upon", " a"]));
        assert_eq!(echoed["token_logprobs"], json!([null, -2.0, -1.0, -0.5]));
        assert_eq!(echoed["top_logprobs"][0], Value::Null);
        assert_eq!(echoed["text_offset"], json!([0, 0, 4, 9]));
    }
}
