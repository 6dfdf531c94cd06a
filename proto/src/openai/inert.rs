//! Fields that may be there because they ask for what is done anyway. Any other value of theirs is refused by name.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fault, Fields, shown};

/// OpenAI's limits of `metadata`.
const PAIRS_MAX: usize = 16;
const KEY_CHARS_MAX: usize = 64;
const VALUE_CHARS_MAX: usize = 512;

/// Which values ask for nothing.
enum Asks {
    /// Any text: a name of the caller's own, or a hint that changes no answer.
    Text,
    /// Any pairs within OpenAI's limits.
    Pairs,
    Boolean(bool),
    /// Where nothing can be called, whether calls may be made together is no question.
    EitherBoolean,
    Number(f64),
    OneOf(&'static [&'static str]),
    /// An array of these texts at most.
    ArrayOf(&'static [&'static str]),
}

const INERT: [(&str, Asks); 29] = [
    ("echo", Asks::Boolean(false)),
    ("user", Asks::Text),
    ("safety_identifier", Asks::Text),
    ("prompt_cache_key", Asks::Text),
    ("prompt_cache_retention", Asks::Text),
    ("metadata", Asks::Pairs),
    ("store", Asks::Boolean(false)),
    ("service_tier", Asks::OneOf(&["auto", "default"])),
    ("suffix", Asks::OneOf(&[""])),
    ("modalities", Asks::ArrayOf(&["text"])),
    ("tools", Asks::ArrayOf(&[])),
    ("tool_choice", Asks::OneOf(&["none", "auto"])),
    ("parallel_tool_calls", Asks::EitherBoolean),
    ("functions", Asks::ArrayOf(&[])),
    ("function_call", Asks::OneOf(&["none", "auto"])),
    ("reasoning_effort", Asks::OneOf(&["none"])),
    ("verbosity", Asks::OneOf(&["medium"])),
    // vLLM's.
    ("ignore_eos", Asks::Boolean(false)),
    ("min_tokens", Asks::Number(0.0)),
    ("repetition_penalty", Asks::Number(1.0)),
    ("length_penalty", Asks::Number(1.0)),
    ("use_beam_search", Asks::Boolean(false)),
    ("early_stopping", Asks::Boolean(false)),
    ("skip_special_tokens", Asks::Boolean(true)),
    ("spaces_between_special_tokens", Asks::Boolean(true)),
    ("include_stop_str_in_output", Asks::Boolean(false)),
    ("add_generation_prompt", Asks::Boolean(true)),
    ("continue_final_message", Asks::Boolean(false)),
    ("logits_processors", Asks::ArrayOf(&[])),
];

/// Takes what asks for nothing.
pub(super) fn take(fields: &mut Fields) -> Result<(), Fault> {
    for (name, asks) in &INERT {
        if let Asks::Pairs = asks {
            pairs(fields, name)?;
            continue;
        }
        let Some(value) = fields.take(name) else { continue };
        let for_nothing = match (asks, &value) {
            (Asks::Text, Value::String(_)) => true,
            (Asks::EitherBoolean, Value::Bool(_)) => true,
            (Asks::Boolean(usual), Value::Bool(value)) => value == usual,
            (Asks::Number(usual), value) => value.as_f64() == Some(*usual),
            (Asks::OneOf(usual), Value::String(text)) => usual.contains(&text.as_str()),
            (Asks::ArrayOf(usual), Value::Array(items)) => {
                items.iter().all(|item| item.as_str().is_some_and(|text| usual.contains(&text)))
            }
            _ => false,
        };
        match asks {
            _ if for_nothing => {}
            Asks::Text => return Err(format!("`{name}` must be a string, not {}", shown(&value))),
            _ => return Err(format!("`{name}` is not supported as {}: remove it", shown(&value))),
        }
    }
    Ok(())
}

/// The caller's own pairs, within OpenAI's limits.
pub(super) fn pairs(fields: &mut Fields, name: &str) -> Result<BTreeMap<String, String>, Fault> {
    let Some(map) = fields.object(name)? else { return Ok(BTreeMap::new()) };
    let map = map.into_map();
    if map.len() > PAIRS_MAX {
        return Err(format!("`{name}` has {} pairs; at most {PAIRS_MAX} are kept", map.len()));
    }
    map.into_iter()
        .map(|(key, value)| {
            let shown_key = super::fields::clipped(&key);
            if key.chars().count() > KEY_CHARS_MAX {
                return Err(format!(
                    "`{name}` has the key {shown_key:?}, longer than {KEY_CHARS_MAX} characters"
                ));
            }
            match value {
                Value::String(text) if text.chars().count() > VALUE_CHARS_MAX => {
                    Err(format!("`{name}[{shown_key:?}]` is longer than {VALUE_CHARS_MAX} characters"))
                }
                Value::String(text) => Ok((key, text)),
                other => Err(format!("`{name}[{shown_key:?}]` must be a string, not {}", shown(&other))),
            }
        })
        .collect()
}
