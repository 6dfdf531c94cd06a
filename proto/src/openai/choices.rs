//! One request, several choices: `n`, `best_of`, and arrays of prompts.

use serde_json::Value;

use super::ModelDefaults;
use super::fields::{Fault, Fields, shown};
use crate::message::{Prompt, Several};

const N_MAX: u64 = 16;
/// Choices of one request, its prompts times `n`: all of them travel in one answer.
const CHOICES_MAX: usize = 128;

/// The prompts of a completion, at least one.
pub(super) fn prompts(fields: &mut Fields, served: &ModelDefaults) -> Result<Vec<Prompt>, Fault> {
    if fields.has("messages") {
        return Err("`messages` is a field of /v1/chat/completions; a completion needs `prompt`".into());
    }
    match fields.take("prompt") {
        None => Err("`prompt` is missing".into()),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if items.is_empty() => Err("`prompt` is an empty array".into()),
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => {
            Ok(vec![tokens("prompt", &items, served)?])
        }
        Some(Value::Array(items)) if items.iter().all(|item| item.is_string() || item.is_array()) => {
            items.into_iter().enumerate().map(|(at, item)| one_of_many(at, item, served)).collect()
        }
        Some(other) => Err(format!(
            "`prompt` must be a string, an array of token ids, or an array of these, not {}",
            shown(&other)
        )),
    }
}

fn one_of_many(at: usize, item: Value, served: &ModelDefaults) -> Result<Prompt, Fault> {
    match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err(format!("`prompt[{at}]` is an empty array")),
        Value::Array(ids) => tokens(&format!("prompt[{at}]"), &ids, served),
        other => {
            Err(format!("`prompt[{at}]` must be a string or an array of token ids, not {}", shown(&other)))
        }
    }
}

fn tokens(name: &str, items: &[Value], served: &ModelDefaults) -> Result<Prompt, Fault> {
    let limit = served.vocabulary_tokens.unwrap_or(u32::MAX);
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < limit);
    let ids: Result<Vec<u32>, Fault> = items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            id(item).ok_or_else(|| format!("`{name}[{at}]` is not a token id below {limit}: {}", shown(item)))
        })
        .collect();
    Ok(Prompt::Tokens(ids?))
}

/// Answers for each prompt. `best_of` may say the same number: choosing among more is not done.
pub(super) fn n(fields: &mut Fields) -> Result<u32, Fault> {
    let n = fields.integer("n", 1..=N_MAX)?.unwrap_or(1) as u32;
    match fields.integer("best_of", 1..=128)? {
        Some(best_of) if best_of != u64::from(n) => {
            Err(format!("`best_of` is {best_of} and `n` is {n}: `best_of` is not supported, remove it"))
        }
        _ => Ok(n),
    }
}

pub(super) fn several(mut prompts: Vec<Prompt>, n: u32) -> Result<Prompt, Fault> {
    let choices = prompts.len() * n as usize;
    if choices > CHOICES_MAX {
        return Err(format!(
            "`prompt` has {} prompts and `n` is {n}: that makes {choices} choices, but one answer has at \
             most {CHOICES_MAX}",
            prompts.len()
        ));
    }
    match prompts.pop() {
        Some(one) if choices == 1 => Ok(one),
        last => {
            prompts.extend(last);
            Ok(Prompt::Several(Several { prompts, n }))
        }
    }
}
