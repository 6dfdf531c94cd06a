//! SentencePiece vocabularies in a `tokenizer.json`: BPE over characters, with bytes for what no token covers.
//!
//! A GGUF has a score for each token where a `tokenizer.json` has merges in their order. Both say the same if all merges that
//! make a token stand together and none is missing; that is checked here, and other lists are refused.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Stands for a space.
const SPACE: &str = "▁";

/// Whether the model of a `tokenizer.json` is one.
pub(super) fn is(model: &Value) -> bool {
    model["byte_fallback"] == true
}

/// Whether a token stands for a byte, as `<0x0A>` does.
pub(super) fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether text gets a space in front; none if it is prepared in a way that a GGUF cannot say.
pub(super) fn space_prefix(json: &Value) -> Option<bool> {
    let (normalizer, splits) = (&json["normalizer"], &json["pre_tokenizer"]);
    if !splits.is_null() {
        let plain =
            splits["type"] == "Metaspace" && splits["replacement"] == SPACE && splits["split"] == false;
        let scheme = splits["prepend_scheme"].as_str()?;
        return (plain && normalizer.is_null()).then_some(scheme != "never");
    }
    let one = [normalizer.clone()];
    let steps = normalizer["normalizers"].as_array().map_or(&one[..], Vec::as_slice);
    let (replaces, first) = steps.split_last()?;
    let spaces =
        replaces["type"] == "Replace" && replaces["pattern"]["String"] == " " && replaces["content"] == SPACE;
    match first {
        [] if spaces => Some(false),
        [prepends] if spaces && prepends["type"] == "Prepend" && prepends["prepend"] == SPACE => Some(true),
        _ => None,
    }
}

/// The score of each token, from the merges that make it; `normal` says which tokens words are made of.
pub(super) fn scores(
    tokens: &[String],
    normal: impl Fn(usize) -> bool,
    merges: &[String],
) -> Result<Vec<f32>, String> {
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| normal(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    // A token that no merge makes is joined by none.
    let mut scores = vec![-(merges.len() as f32); tokens.len()];
    let (mut made, mut last, mut pairs) = (HashSet::new(), None, HashSet::new());
    for merge in merges {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(format!(
                "'{merge}' is not a \
                                                                                   pair"
            ));
        };
        let Some(&id) = ids.get(format!("{left}{right}").as_str()) else { continue };
        pairs.insert((left, right));
        if last == Some(id) {
            continue;
        }
        if !made.insert(id) {
            return Err(format!(
                "'{merge}' is not next to the other merges of its token: scores cannot express that"
            ));
        }
        scores[id] = -(made.len() as f32);
        last = Some(id);
    }
    for token in ids.keys() {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) && !pairs.contains(&(left, right)) {
                return Err(format!("'{left} {right}' is missing, but scores would merge it to '{token}'"));
            }
        }
    }
    Ok(scores)
}
