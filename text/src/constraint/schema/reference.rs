//! References within a schema, and the list of what they point to.

use serde_json::Value;
use std::collections::HashMap;

use super::{Place, limits};
use crate::constraint::Fault;

pub(super) struct References<'a> {
    root: &'a Value,
    /// By pointer: its place in the list.
    numbers: HashMap<String, usize>,
    targets: Vec<(String, &'a Value)>,
}

/// A part of a JSON pointer.
pub(super) fn escaped(key: &str) -> String {
    if key.contains(['~', '/']) { key.replace('~', "~0").replace('/', "~1") } else { key.to_owned() }
}

impl<'a> References<'a> {
    pub(super) fn new(root: &'a Value) -> References<'a> {
        References { root, numbers: HashMap::new(), targets: Vec::new() }
    }

    /// Whether the schema says that it is of a draft in which a reference stands alone.
    pub(super) fn stand_alone(&self) -> bool {
        let draft = self.root.get("$schema").and_then(Value::as_str).unwrap_or_default();
        ["draft-03", "draft-04", "draft-06", "draft-07"].iter().any(|old| draft.contains(old))
    }

    /// The `n`-th target and its pointer.
    pub(super) fn target(&self, n: usize) -> Option<(String, &'a Value)> {
        self.targets.get(n).cloned()
    }

    /// The place in the list of what `reference` points to.
    pub(super) fn number(&mut self, reference: &Value, place: &Place) -> Result<usize, Fault> {
        let (target, found) = self.resolve(reference, place)?;
        if let Some(&number) = self.numbers.get(&found.path) {
            return Ok(number);
        }
        let number = self.targets.len();
        if number >= limits::MAX_REFERENCES {
            let (found, most) = (number + 1, limits::MAX_REFERENCES);
            return Err(Fault::TooMuch {
                what: "the number of schemas referred to",
                found,
                most,
                path: place.shown(),
            });
        }
        self.numbers.insert(found.path.clone(), number);
        self.targets.push((found.path, target));
        Ok(number)
    }

    /// What `reference` points to. Its depth is one more than that of the reference, so that circles end.
    pub(super) fn resolve(&self, reference: &Value, place: &Place) -> Result<(&'a Value, Place), Fault> {
        let text = reference.as_str().ok_or_else(|| place.invalid("a reference must be a string"))?;
        let id = |key| self.root.get(key).and_then(Value::as_str).filter(|id| !id.is_empty());
        let own = id("$id").or_else(|| id("id")).map(|id| id.trim_end_matches('#'));
        let fragment = match text.split_once('#') {
            Some((base, fragment)) if base.is_empty() || Some(base) == own => fragment,
            None if Some(text) == own => "",
            _ => return Err(place.unsupported("$ref", &format!("to {text:?}, which is another document"))),
        };
        let fragment = decoded(fragment);
        let found = match fragment.strip_prefix('/') {
            Some(pointer) => self.root.pointer(&fragment).map(|target| (target, format!("/{pointer}"))),
            None if fragment.is_empty() => Some((self.root, String::new())),
            None => anchor(self.root, &fragment, &Place::ROOT),
        };
        match found {
            Some((target, path)) => Ok((target, Place { path, depth: place.depth + 1 })),
            None => Err(place.invalid(format!("the reference {text:?} points to nothing"))),
        }
    }
}

/// The schema that calls itself by this name.
fn anchor<'a>(schema: &'a Value, name: &str, place: &Place) -> Option<(&'a Value, String)> {
    let named = |key: &str, name: &str| schema.get(key).and_then(Value::as_str) == Some(name);
    if named("$anchor", name) || named("$id", &format!("#{name}")) || named("id", &format!("#{name}")) {
        return Some((schema, place.path.clone()));
    }
    match schema {
        Value::Object(keys) => keys.iter().find_map(|(key, value)| anchor(value, name, &place.at(key))),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, value)| anchor(value, name, &place.at(&i.to_string())))
        }
        _ => None,
    }
}

/// A fragment without percent signs.
fn decoded(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
