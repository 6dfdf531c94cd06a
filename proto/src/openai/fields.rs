//! A JSON object read field by field: each parameter is taken out once, what is left at the end is refused by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Why a request is refused: one sentence that names the field, without the line number.
pub(super) type Fault = String;

/// Parameters that OpenAI knows and this engine does not have. Named apart from misspelt ones.
const UNSUPPORTED: [&str; 18] = [
    "audio",
    "function_call",
    "functions",
    "grammar",
    "ignore_eos",
    "logits_processors",
    "metadata",
    "min_tokens",
    "modalities",
    "parallel_tool_calls",
    "prediction",
    "reasoning_effort",
    "repetition_penalty",
    "suffix",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
];

const SHOWN_CHARS: usize = 60;

#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Fields {
        Fields { map }
    }

    pub(super) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// A copy, to be shown again.
    pub(super) fn shown(&self) -> Value {
        Value::Object(self.map.clone())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// `null` means absent, as with OpenAI.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// As [`Fields::take`], and the field stays.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number as f32)),
            None => Err(format!(
                "`{name}` must be a number from {} to {}, not {}",
                range.start(),
                range.end(),
                shown(&value)
            )),
        }
    }

    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(format!(
                "`{name}` must be a whole number from {} to {}, not {}",
                range.start(),
                range.end(),
                shown(&value)
            )),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(format!("`{name}` must be true or false, not {}", shown(&other))),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{name}` must be a string, not {}", shown(&other))),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Fields>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields::new(map))),
            Some(other) => Err(format!("`{name}` must be an object, not {}", shown(&other))),
        }
    }

    /// Everything known has been taken: the first field left is unsupported or unknown. `within` names the object.
    pub(super) fn finish(self, within: &str) -> Result<(), Fault> {
        match self.map.iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str()) {
            None => Ok(()),
            Some(name) if UNSUPPORTED.contains(&name) => Err(format!("`{name}` is not supported: remove it")),
            Some(name) => Err(format!("`{}` is not a field of {within}", clipped(name).escape_debug())),
        }
    }
}

/// A whole number, also when written as 16.0.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
    })
}

/// A value as it is shown in an error: short, whatever came.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::String(text) => format!("{:?}", clipped(text)),
        other => clipped(&other.to_string()),
    }
}

pub(super) fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
