//! `tokenizer.json` to the tokenizer's keys of a GGUF.

use std::path::Path;

use serde_json::Value;
use ternfleet_text::tokenizer::LLAMA3_SPLIT;

use super::{Error, read_json};
use crate::gguf::write::{Item, Plan};

/// ggml's numbers of token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Adds the keys of the tokenizer in `folder` to `plan`; a note if there is none, or if how it splits text has
/// no name that this engine knows. The chat template is left to the manifest.
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
            format!("{}, and byte-level BPE is needed", model["type"]),
        ));
    }
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; n_vocab];
    let mut put = |token: &str, id: &Value, kind: i32| {
        let place = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let place =
            place.ok_or_else(|| damaged("a token", &format!("id {id} is outside vocab_size {n_vocab}")))?;
        *place = Some((token.to_owned(), kind));
        Ok::<_, Error>(())
    };
    for (token, id) in model["vocab"].as_object().ok_or_else(|| damaged("model.vocab", "it is missing"))? {
        put(token, id, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().unwrap_or(&Vec::new()) {
        let token = added["content"].as_str().ok_or_else(|| damaged("added_tokens", "one has no content"))?;
        put(token, &added["id"], if added["special"] == true { CONTROL } else { USER_DEFINED })?;
    }
    let (tokens, types): (Vec<String>, Vec<i32>) = (0..)
        .zip(tokens)
        .map(|(id, token): (usize, _)| token.unwrap_or_else(|| (format!("[UNUSED_{id}]"), UNUSED)))
        .unzip();
    let merges = model["merges"].as_array().ok_or_else(|| damaged("model.merges", "it is missing"))?;
    let merges = merges.iter().map(merge).collect::<Option<Vec<String>>>();
    let merges = merges.ok_or_else(|| damaged("model.merges", "one is no pair of tokens"))?;

    let known = splits_as_llama3(&json);
    plan.entry("tokenizer.ggml.model", Item::Text("gpt2".into()));
    if known {
        plan.entry("tokenizer.ggml.pre", Item::Text("llama-bpe".into()));
    }
    plan.entry("tokenizer.ggml.scores", Item::F32s(vec![0.0; tokens.len()]));
    plan.entry("tokenizer.ggml.tokens", Item::Texts(tokens));
    plan.entry("tokenizer.ggml.token_type", Item::I32s(types));
    plan.entry("tokenizer.ggml.merges", Item::Texts(merges));
    let note = "tokenizer.json splits text in another way than Llama 3's, which a GGUF cannot say; write a manifest.toml";
    Ok((!known).then(|| note.to_owned()))
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

/// Whether the pre-tokenizer is Llama 3's: its regex, then bytes without a regex of their own; whole pieces
/// that are tokens taken as they are; nothing normalised.
fn splits_as_llama3(json: &Value) -> bool {
    let steps = match json["pre_tokenizer"]["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([split, bytes]) => (split, bytes),
        _ => return false,
    };
    steps.0["type"] == "Split"
        && steps.0["pattern"]["Regex"] == LLAMA3_SPLIT
        && steps.0["behavior"] == "Isolated"
        && steps.0["invert"] == false
        && steps.1["type"] == "ByteLevel"
        && steps.1["use_regex"] == false
        && steps.1["add_prefix_space"] == false
        && json["model"]["ignore_merges"] == true
        && json["normalizer"].is_null()
}

#[cfg(test)]
mod tests;
