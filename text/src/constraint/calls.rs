//! The grammar of calls: the frame in which a model writes them, and in it each function's own schema.

use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use super::schema::Style;
use super::{Fault, Grammar, limits, schema};
use crate::tools::{AFTER_ARGUMENTS, BEFORE_ARGUMENTS, BEFORE_NAME, BETWEEN_CALLS, ToolFormat};

/// Calls of functions, alone or where a text might stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// How the model writes them.
    pub format: ToolFormat,
    /// What may be called.
    pub functions: Vec<Callable>,
    /// A call must come; otherwise a text may come, or a text and then calls.
    pub must: bool,
    /// More than one call may come.
    pub several: bool,
    /// JSON that the text must be, where one comes: a schema, or any object. No call follows it then.
    pub text: Option<Box<Grammar>>,
}

/// A function that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callable {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// The JSON schema of its arguments; without one it takes none.
    pub parameters: Option<String>,
}

impl Calls {
    pub(super) fn bytes(&self) -> usize {
        let functions = self.functions.iter();
        functions.map(|one| one.name.len() + one.parameters.as_deref().map_or(0, str::len)).sum()
    }

    /// In the form that the crate compiles. `control` is the id of a control token of this text, which is none of the text
    /// that an output has otherwise.
    pub(super) fn translate(&self, control: impl Fn(&str) -> Option<u32>) -> Result<GrammarWithLexer, Fault> {
        limits::at_most("the number of functions", self.functions.len(), limits::MAX_FUNCTIONS)?;
        limits::at_most(
            "the size of the functions' schemas in bytes",
            self.bytes(),
            limits::MAX_SCHEMA_BYTES,
        )?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.functions.is_empty() || !self.functions.iter().all(|one| one.name.chars().all(plain)) {
            return Err(Fault::invalid(
                "at least one function is needed, with a name of letters, digits, _ and -",
            ));
        }
        let tag = |text: &str| control(text).map_or_else(|| quoted(text), |id| format!("<[{id}]>"));
        let (open, close) = (tag(self.format.open()), tag(self.format.close()));
        let names: Vec<String> = (0..self.functions.len()).map(|n| format!("f{n}")).collect();
        let more =
            if self.several { format!("( {} {open} call )*", quoted(BETWEEN_CALLS)) } else { String::new() };
        let start = match (&self.text, self.must) {
            (_, true) => format!("start: {open} call {more}\n"),
            (Some(text), false) => {
                format!("start: {open} call {more} | text\ntext: %json {}\n", json_of(text)?)
            }
            (None, false) if control(self.format.open()).is_some() => {
                format!("start: TEXT | TEXT {open} call {more}\nTEXT: /(?s:.*)/\n")
            }
            // The first open tag is the end of the text: from there on, only a call can follow.
            (None, false) => format!(
                "start: TEXT | begun call {more}\nbegun[lazy]: /(?s:.*){tag}/\nTEXT: /(?s:.*)/ & \
                 ~/(?s:.*){tag}(?s:.*)/\n",
                tag = self.format.open(),
            ),
        };
        let mut lark = format!(
            "{start}call: {} ( {} ) {} {close}\n",
            quoted(BEFORE_NAME),
            names.join(" | "),
            quoted(AFTER_ARGUMENTS)
        );
        for (function, rule) in self.functions.iter().zip(&names) {
            let begin = quoted(&format!("{}{BEFORE_ARGUMENTS}", function.name));
            lark.push_str(&format!("{rule}: {begin} %json {}\n", arguments(function)?));
        }
        Ok(GrammarWithLexer::from_lark(lark))
    }
}

/// The schema of a function's arguments, which are an object whatever else it says.
fn arguments(function: &Callable) -> Result<Value, Fault> {
    let Some(text) = &function.parameters else {
        let mut none = json!({ "type": "object", "properties": {}, "additionalProperties": false });
        schema::set_style(&mut none, Style::Spaced);
        return Ok(none);
    };
    let translated = schema::translate(text, Style::Spaced);
    let mut schema =
        translated.map_err(|fault| fault.within(&format!("the parameters of {:?}", function.name)))?;
    if let Some(keywords) = schema.as_object_mut()
        && !keywords.contains_key("type")
    {
        keywords.insert("type".to_owned(), json!("object"));
    }
    match schema.get("type") {
        Some(kind) if kind == "object" => Ok(schema),
        _ => {
            let reason = format!("the parameters of {:?} must have the type object", function.name);
            Err(Fault::invalid(reason))
        }
    }
}

/// The schema that the text is held to.
fn json_of(text: &Grammar) -> Result<Value, Fault> {
    match text {
        Grammar::JsonSchema(text) => schema::translate(text, Style::Compact),
        Grammar::JsonObject => Ok(schema::any_object()),
        _ => Err(Fault::invalid("with tools, only JSON constraints are supported")),
    }
}

/// A literal of Lark's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
