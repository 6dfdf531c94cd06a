//! `tokenizer.json` to the tokenizer's keys of a GGUF: byte-level BPE, and SentencePiece's BPE.

mod sentencepiece;

use std::path::Path;

use serde_json::Value;
use ternfleet_text::tokenizer::{Normalizer, name_of};

use super::{Error, read_json};
use crate::gguf::write::{Item, Plan};

/// ggml's numbers of token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Adds the keys of the tokenizer in `folder` to `plan`; a note if there is none, or if how it splits text has
/// no name that this engine knows. A manifest's chat template is preferred to the one written here.
pub(super) fn write(plan: &mut Plan, folder: &Path, n_vocab: usize) -> Result<Option<String>, Error> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        let note = "the checkpoint has no tokenizer.json, so the file can be run on token ids only";
        return Ok(Some(note.to_owned()));
    }
    let json = read_json(&path)?;
    let damaged = |field: &str, reason: &str| Error::damaged(&path, field, reason);
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(Error::unsupported(
            &path,
            "model.type",
            format!("{}; only byte-level BPE and SentencePiece BPE are supported", model["type"]),
        ));
    }
    let pieces = sentencepiece::is(model);
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; n_vocab];
    let mut put = |token: &str, id: &Value, kind: i32| {
        let place = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let place =
            place.ok_or_else(|| damaged("a token", &format!("id {id} is outside vocab_size {n_vocab}")))?;
        *place = Some((token.to_owned(), kind));
        Ok::<_, Error>(())
    };
    for (token, id) in model["vocab"].as_object().ok_or_else(|| damaged("model.vocab", "it is missing"))? {
        let kind = if pieces && sentencepiece::is_byte(token) { BYTE } else { NORMAL };
        put(token, id, kind)?;
    }
    for added in json["added_tokens"].as_array().unwrap_or(&Vec::new()) {
        let token = added["content"].as_str().ok_or_else(|| {
            damaged(
                "added_tokens",
                "an entry has no \
                                                                                     content",
            )
        })?;
        let kind = match &added["special"] {
            _ if pieces && added["content"] == model["unk_token"] => UNKNOWN,
            Value::Bool(true) => CONTROL,
            _ => USER_DEFINED,
        };
        put(token, &added["id"], kind)?;
    }
    let (tokens, types): (Vec<String>, Vec<i32>) = (0..)
        .zip(tokens)
        .map(|(id, token): (usize, _)| token.unwrap_or_else(|| (format!("[UNUSED_{id}]"), UNUSED)))
        .unzip();
    let merges = model["merges"].as_array().ok_or_else(|| damaged("model.merges", "it is missing"))?;
    let merges = merges.iter().map(merge).collect::<Option<Vec<String>>>();
    let merges = merges.ok_or_else(|| damaged("model.merges", "an entry is not a pair of tokens"))?;

    let unsupported = |field: &str, reason: String| Error::unsupported(&path, field, reason);
    let mut note = None;
    if pieces {
        let prefix = sentencepiece::space_prefix(&json).ok_or_else(|| {
            unsupported(
                "normalizer, pre_tokenizer",
                "they do more than replacing spaces by '▁', which is \
                                                      not supported"
                    .into(),
            )
        })?;
        if prefix && json["normalizer"].is_null() {
            let text = "text that begins with a space gets an additional space, as in SentencePiece; this \
                        tokenizer.json adds none";
            note = Some(text.to_owned());
        }
        let scores = sentencepiece::scores(&tokens, |id| types[id] == NORMAL, &merges)
            .map_err(|reason| unsupported("model.merges", reason))?;
        plan.entry("tokenizer.ggml.model", Item::Text("llama".into()));
        plan.entry("tokenizer.ggml.add_space_prefix", Item::Bool(prefix));
        plan.entry("tokenizer.ggml.scores", Item::F32s(scores));
    } else {
        plan.entry("tokenizer.ggml.model", Item::Text("gpt2".into()));
        match pre_tokenizer(&json) {
            Some(pre) => plan.entry("tokenizer.ggml.pre", Item::Text(pre.into())),
            None => {
                let text = "the pre-tokenizer of tokenizer.json has no known GGUF name; write a \
                            manifest.toml";
                note = Some(text.to_owned());
            }
        }
        plan.entry("tokenizer.ggml.scores", Item::F32s(vec![0.0; tokens.len()]));
        plan.entry("tokenizer.ggml.merges", Item::Texts(merges));
    }
    plan.entry("tokenizer.ggml.tokens", Item::Texts(tokens));
    plan.entry("tokenizer.ggml.token_type", Item::I32s(types));
    if let Some(template) = chat_template(folder)? {
        plan.entry("tokenizer.chat_template", Item::Text(template));
    }
    Ok(note)
}

/// The chat template: in a file of its own, or in `tokenizer_config.json`.
fn chat_template(folder: &Path) -> Result<Option<String>, Error> {
    let own = folder.join("chat_template.jinja");
    if own.exists() {
        return std::fs::read_to_string(&own).map(Some).map_err(Error::io(&own));
    }
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    Ok(read_json(&path)?["chat_template"].as_str().map(str::to_owned))
}

/// Merges are written as "a b" or as ["a", "b"].
fn merge(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    }
}

/// What a GGUF calls this way of splitting: splits by expressions that leave pieces alone, one after the other, then bytes
/// without an expression of their own; composed characters or none; whole pieces that are tokens taken as they are, or not.
fn pre_tokenizer(json: &Value) -> Option<&'static str> {
    let (bytes, splits) = json["pre_tokenizer"]["pretokenizers"].as_array()?.split_last()?;
    let by_bytes =
        bytes["type"] == "ByteLevel" && bytes["use_regex"] == false && bytes["add_prefix_space"] == false;
    let expression = |split: &'_ Value| -> Option<String> {
        let plain = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
        split["pattern"]["Regex"].as_str().filter(|_| plain).map(str::to_owned)
    };
    let splits: Vec<String> = splits.iter().map(expression).collect::<Option<_>>()?;
    let splits: Vec<&str> = splits.iter().map(String::as_str).collect();
    let normalizer = match &json["normalizer"] {
        Value::Null => Normalizer::None,
        named if named["type"] == "NFC" => Normalizer::Nfc,
        _ => return None,
    };
    name_of(&splits, normalizer, json["model"]["ignore_merges"] == true).filter(|_| by_bytes)
}

#[cfg(test)]
mod tests;
