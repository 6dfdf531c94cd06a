//! The shape of an answer: `response_format`, and vLLM's names for the same.

use serde_json::Value;

use super::fields::{Fault, Fields, clipped, shown};
use crate::message::Constraint;

/// Characters of a schema's name; OpenAI's limit.
const NAME_CHARS_MAX: usize = 64;

/// What the output is held to, and the field that says so; `None` when it is free. Whether a schema or a grammar can be
/// kept to is for whoever has a compiler to say.
pub(super) fn constraint(fields: &mut Fields) -> Result<Option<(&'static str, Constraint)>, Fault> {
    let mut found: Vec<(&'static str, Constraint)> = Vec::new();
    if let Some(format) = fields.object("response_format")? {
        found.extend(response_format(format)?.map(|constraint| ("response_format", constraint)));
    }
    if let Some(outputs) = fields.object("structured_outputs")? {
        found.push(("structured_outputs", structured_outputs(outputs)?));
    }
    for (name, kind) in [
        ("guided_json", Kind::Json),
        ("guided_regex", Kind::Regex),
        ("guided_choice", Kind::Choice),
        ("guided_grammar", Kind::Grammar),
    ] {
        if let Some(value) = fields.take(name) {
            found.push((name, of_kind(name, kind, value)?));
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [_] => Ok(found.pop()),
        [(first, _), (second, _), ..] => {
            Err(format!("`{second}` and `{first}` are both set: use one constraint"))
        }
    }
}

/// `text`, `json_object` or `json_schema` in the form of chat completions: the schema is in an object of its own.
fn response_format(mut format: Fields) -> Result<Option<Constraint>, Fault> {
    match format.text("type")?.as_deref() {
        Some("json_schema") => {
            let wrapped = format.object("json_schema").map_err(|fault| within("response_format", &fault))?;
            let wrapped = wrapped.ok_or("`response_format.json_schema` is missing")?;
            format.finish("`response_format`")?;
            json_schema(wrapped, "response_format.json_schema").map(Some)
        }
        kind => unnamed(kind, format, "response_format"),
    }
}

/// The same in the form of responses: the schema is next to its type.
pub(super) fn text_format(mut format: Fields) -> Result<Option<Constraint>, Fault> {
    match format.text("type")?.as_deref() {
        Some("json_schema") => json_schema(format, "text.format").map(Some),
        kind => unnamed(kind, format, "text.format"),
    }
}

fn unnamed(kind: Option<&str>, format: Fields, name: &str) -> Result<Option<Constraint>, Fault> {
    let constraint = match kind {
        Some("text") => None,
        Some("json_object") => Some(Constraint::JsonObject),
        Some(other) => {
            let other = clipped(other);
            return Err(format!("`{name}` {other:?} is unknown: use text, json_object or json_schema"));
        }
        None => return Err(format!("`{name}` has no `type`")),
    };
    format.finish(&format!("`{name}`"))?;
    Ok(constraint)
}

/// `strict` or not, the answer is held to its schema.
fn json_schema(mut fields: Fields, name: &str) -> Result<Constraint, Fault> {
    let named = fields.text("name").map_err(|fault| within(name, &fault))?;
    let named = named.ok_or_else(|| format!("`{name}.name` is missing"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if named.is_empty() || named.chars().count() > NAME_CHARS_MAX || !named.chars().all(plain) {
        return Err(format!(
            "`{name}.name` must have 1 to {NAME_CHARS_MAX} of the characters a-z A-Z 0-9 _ -, not {:?}",
            clipped(&named)
        ));
    }
    fields.text("description").map_err(|fault| within(name, &fault))?;
    fields.boolean("strict").map_err(|fault| within(name, &fault))?;
    let schema = match fields.take("schema") {
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(format!("`{name}.schema` must be an object, not {}", shown(&other))),
        None => return Err(format!("`{name}.schema` is missing")),
    };
    fields.finish(&format!("`{name}`"))?;
    Ok(Constraint::JsonSchema(schema.to_string()))
}

fn within(name: &str, fault: &str) -> Fault {
    format!("`{name}`: {fault}")
}

/// vLLM's.
fn structured_outputs(mut fields: Fields) -> Result<Constraint, Fault> {
    let mut found = Vec::new();
    for (name, kind) in
        [("json", Kind::Json), ("regex", Kind::Regex), ("choice", Kind::Choice), ("grammar", Kind::Grammar)]
    {
        if let Some(value) = fields.take(name) {
            found.push(of_kind(&format!("structured_outputs.{name}"), kind, value)?);
        }
    }
    if fields.boolean("json_object")? == Some(true) {
        found.push(Constraint::JsonObject);
    }
    fields.finish("`structured_outputs`")?;
    match found.pop() {
        Some(one) if found.is_empty() => Ok(one),
        Some(_) => Err("`structured_outputs` has several constraints: use one".into()),
        None => Err("`structured_outputs` is empty: use json, regex, choice, grammar or json_object".into()),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Json,
    Regex,
    Choice,
    Grammar,
}

fn of_kind(name: &str, kind: Kind, value: Value) -> Result<Constraint, Fault> {
    let expected = match (kind, value) {
        // A schema, or its text.
        (Kind::Json, schema @ Value::Object(_)) => return Ok(Constraint::JsonSchema(schema.to_string())),
        (Kind::Json, Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(_)) => return Ok(Constraint::JsonSchema(text)),
            _ => return Err(format!("`{name}` must be a JSON schema, not {:?}", clipped(&text))),
        },
        (Kind::Regex, Value::String(text)) => return Ok(Constraint::Regex(text)),
        (Kind::Grammar, Value::String(text)) => return Ok(Constraint::Lark(text)),
        (Kind::Choice, Value::Array(items)) if items.is_empty() => {
            return Err(format!("`{name}` is empty: it needs at least one text"));
        }
        (Kind::Choice, Value::Array(items)) => {
            let text = |(at, item): (usize, Value)| match item {
                Value::String(text) => Ok(text),
                other => Err(format!("`{name}[{at}]` must be a string, not {}", shown(&other))),
            };
            return items
                .into_iter()
                .enumerate()
                .map(text)
                .collect::<Result<_, Fault>>()
                .map(Constraint::Choice);
        }
        (Kind::Json, other) => ("a JSON schema", other),
        (Kind::Regex | Kind::Grammar, other) => ("a string", other),
        (Kind::Choice, other) => ("an array of strings", other),
    };
    Err(format!("`{name}` must be {}, not {}", expected.0, shown(&expected.1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Option<Constraint>, String> {
        let Value::Object(map) = value else { panic!("an object") };
        Ok(constraint(&mut Fields::new(map))?.map(|(_, constraint)| constraint))
    }

    #[test]
    fn every_spelling_says_the_same() {
        let schema = json!({ "type": "object" });
        let wanted = Some(Constraint::JsonSchema(schema.to_string()));
        let wrapped = json!({ "name": "cat", "strict": true, "schema": schema, "description": "a cat" });
        for spelling in [
            json!({ "response_format": { "type": "json_schema", "json_schema": wrapped } }),
            json!({ "structured_outputs": { "json": schema } }),
            json!({ "structured_outputs": { "json": schema.to_string() } }),
            json!({ "guided_json": schema }),
        ] {
            assert_eq!(read(spelling.clone()).unwrap(), wanted, "{spelling}");
        }
        for (spelling, wanted) in [
            (json!({ "response_format": { "type": "text" } }), None),
            (json!({ "response_format": { "type": "json_object" } }), Some(Constraint::JsonObject)),
            (json!({ "structured_outputs": { "json_object": true } }), Some(Constraint::JsonObject)),
            (json!({ "guided_regex": "a+" }), Some(Constraint::Regex("a+".into()))),
            (json!({ "structured_outputs": { "regex": "a+" } }), Some(Constraint::Regex("a+".into()))),
            (json!({ "guided_choice": ["a", "b"] }), Some(Constraint::Choice(vec!["a".into(), "b".into()]))),
            (json!({ "guided_grammar": "start: \"a\"" }), Some(Constraint::Lark("start: \"a\"".into()))),
            (json!({}), None),
        ] {
            assert_eq!(read(spelling.clone()).unwrap(), wanted, "{spelling}");
        }
    }

    #[test]
    fn each_refusal_names_its_field() {
        let schema =
            |change: Value| json!({ "response_format": { "type": "json_schema", "json_schema": change } });
        for (value, expected) in [
            (json!({ "response_format": "text" }), "`response_format` must be an object"),
            (json!({ "response_format": {} }), "`response_format` has no `type`"),
            (json!({ "response_format": { "type": "xml" } }), "`response_format` \"xml\" is unknown"),
            (
                json!({ "response_format": { "type": "json_schema" } }),
                "`response_format.json_schema` is missing",
            ),
            (schema(json!({ "schema": {} })), "`response_format.json_schema.name` is missing"),
            (schema(json!({ "name": "a b", "schema": {} })), "must have 1 to 64 of the characters"),
            (schema(json!({ "name": "a" })), "`response_format.json_schema.schema` is missing"),
            (
                schema(json!({ "name": "a", "schema": 7 })),
                "`response_format.json_schema.schema` must be an object",
            ),
            (schema(json!({ "name": "a", "schema": {}, "strict": 1 })), "`strict` must be true or false"),
            (json!({ "guided_json": "nonsense" }), "`guided_json` must be a JSON schema"),
            (json!({ "guided_choice": [] }), "`guided_choice` is empty"),
            (json!({ "guided_choice": ["a", 1] }), "`guided_choice[1]` must be a string, not 1"),
            (json!({ "guided_choice": "a" }), "`guided_choice` must be an array of strings"),
            (json!({ "structured_outputs": {} }), "`structured_outputs` is empty"),
            (json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }), "has several constraints"),
            (
                json!({ "guided_regex": "a", "guided_choice": ["a"] }),
                "`guided_choice` and `guided_regex` are both set",
            ),
            (
                json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }),
                "`guided_regex` and `response_format` are both set",
            ),
        ] {
            let message = read(value.clone()).unwrap_err();
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
