//! JSON as Python writes it, for templates that show tools to the model: spaces after separators, no escapes that HTML wants,
//! keys in the order in which they came.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// The JSON of tools and of the arguments of calls, with its keys in their order.
pub(super) fn read(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|fault| format!("tools and calls must be JSON: {fault}"))
}

/// The same as templates see it.
pub(super) fn shown(json: serde_json::Value) -> Value {
    serde_json::from_value(json).expect("because templates have every kind of JSON value")
}

/// The filter `tojson`, with `indent` as in Python's `json.dumps`.
pub(super) fn write(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Templates may say what is the default here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine)),
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
    };
    let fault = |fault: String| Error::new(ErrorKind::BadSerialization, fault);
    written.map_err(|reason| fault(reason.to_string()))?;
    String::from_utf8(out).map_err(|reason| fault(reason.to_string()))
}

/// One line, with a space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
