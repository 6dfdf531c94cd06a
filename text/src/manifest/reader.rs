//! A TOML table read key by key: notes each fault, and at the end each key that nobody asked for.

use std::ops::RangeInclusive;

use toml::{Table, Value};

/// A table being read. Each getter takes its key out; what is left at the end is unknown.
pub(super) struct Reader {
    table: Table,
    /// `[section] ` in front of a key, for messages.
    prefix: String,
    faults: Vec<String>,
}

impl Reader {
    pub(super) fn new(table: Table) -> Self {
        Self { table, prefix: String::new(), faults: Vec::new() }
    }

    /// All faults, with those of the keys left over.
    pub(super) fn finish(mut self) -> Vec<String> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            self.fault(&key, "unknown key");
        }
        self.faults
    }

    pub(super) fn fault(&mut self, key: &str, reason: &str) {
        self.faults.push(format!("{}{key}: {reason}", self.prefix));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Reads the table `key`, if it is there; its faults become this table's.
    pub(super) fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        match self.table.remove(key)? {
            Value::Table(table) => {
                let mut section = Self { table, prefix: format!("[{key}] "), faults: Vec::new() };
                let value = read(&mut section);
                self.faults.extend(section.finish());
                value
            }
            other => {
                self.fault(key, &format!("expected a section, found {}", other.type_str()));
                None
            }
        }
    }

    /// Takes `key` out and converts it; a value that does not convert is a fault.
    fn take<T>(&mut self, key: &str, wanted: &str, convert: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.table.remove(key)?;
        let converted = convert(&value);
        if converted.is_none() {
            self.fault(key, &format!("expected {wanted}, found {value}"));
        }
        converted
    }

    /// The same for a key that must be there.
    fn need<T>(&mut self, key: &str, wanted: &str, convert: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        if !self.has(key) {
            self.fault(key, &format!("it is missing ({wanted})"));
        }
        self.take(key, wanted, convert)
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.need(key, "text", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn optional_text(&mut self, key: &str) -> Option<String> {
        self.take(key, "text", |value| value.as_str().map(str::to_owned))
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.take(key, "text or a list of texts", |value| match value {
            Value::Array(all) => all.iter().map(text).collect(),
            one => text(one).map(|one| vec![one]),
        })
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.need(key, "true or false", Value::as_bool)
    }

    pub(super) fn id(&mut self, key: &str) -> Option<u32> {
        self.need(key, "a token id", as_id)
    }

    pub(super) fn ids(&mut self, key: &str) -> Option<Vec<u32>> {
        self.need(key, "a list of token ids", |value| value.as_array()?.iter().map(as_id).collect())
    }

    pub(super) fn optional_id(&mut self, key: &str) -> Option<u32> {
        self.take(key, "an integer of at least 0", as_id)
    }

    pub(super) fn optional_count(&mut self, key: &str) -> Option<u64> {
        self.take(key, "a positive integer", |value| {
            u64::try_from(value.as_integer()?).ok().filter(|&count| count > 0)
        })
    }

    pub(super) fn optional_float(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f32> {
        let wanted = format!("a number between {} and {}", range.start(), range.end());
        self.take(key, &wanted, |value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))?;
            range.contains(&number).then_some(number as f32)
        })
    }
}

fn as_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_integer()?).ok()
}
