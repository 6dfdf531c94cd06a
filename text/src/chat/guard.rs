//! Marks in what users write, so that none of it becomes a control token of the rendered chat.

use serde_json::{Map, Value};

use crate::Error;
use crate::tokenizer::Tokenizer;

/// Puts marks into texts.
pub(super) struct Guard<'a> {
    tokenizer: &'a Tokenizer,
    mark: char,
}

impl<'a> Guard<'a> {
    /// A guard whose mark none of `texts` contains: one of the noncharacters. Texts hold none of the 32 as a rule; a user who
    /// sends them all is told so.
    pub(super) fn new<'b>(
        tokenizer: &'a Tokenizer,
        texts: impl Iterator<Item = &'b str> + Clone,
    ) -> Result<Guard<'a>, Error> {
        // JSON may have them as escapes.
        let has = |mark: char| {
            let escape = format!("\\u{:04x}", u32::from(mark));
            move |text: &str| {
                text.contains(mark) || (text.contains('\\') && text.to_ascii_lowercase().contains(&escape))
            }
        };
        let mark = ('\u{fdd0}'..='\u{fdef}').find(|&mark| !texts.clone().any(has(mark)));
        let all = "the messages contain all 32 noncharacters U+FDD0 to U+FDEF; remove one";
        Ok(Guard { tokenizer, mark: mark.ok_or_else(|| Error::Text(all.into()))? })
    }

    pub(super) fn mark(&self) -> char {
        self.mark
    }

    /// With a mark in each control token that `text` holds or ends with a part of, and before its first visible character where
    /// a control token could continue with it.
    pub(super) fn text(&self, text: &str) -> String {
        self.marked(text, false)
    }

    /// The same without the first: for what is compared by templates.
    pub(super) fn inside(&self, text: &str) -> String {
        self.marked(text, true)
    }

    /// Every text of a JSON value, keys included.
    pub(super) fn json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.inside(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.json(item)).collect(),
            Value::Object(map) => {
                let map = map.into_iter().map(|(key, value)| (self.inside(&key), self.json(value)));
                Value::Object(map.collect::<Map<_, _>>())
            }
            other => other,
        }
    }

    fn marked(&self, text: &str, mut visible: bool) -> String {
        let mut marked = String::with_capacity(text.len() + 16);
        // The template may trim what follows.
        let trimmed = text.trim_end();
        for (at, character) in text.char_indices() {
            if !visible && !character.is_whitespace() {
                visible = true;
                if self.tokenizer.continues_special(character) {
                    marked.push(self.mark);
                }
            }
            marked.push(character);
            if self.tokenizer.may_be_special(trimmed.get(at..).unwrap_or_default())
                || self.tokenizer.may_be_special(&text[at..])
            {
                marked.push(self.mark);
            }
        }
        marked
    }
}
