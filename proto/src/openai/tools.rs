//! `tools`, `tool_choice` and `parallel_tool_calls`, and calls in a chat's history.
//!
//! Chat completions put a function's fields into an object of its own, responses put them beside the type. Functions alone
//! are served: whatever else a tool may be is refused by its name.

use serde_json::{Map, Value, json};

use super::fields::{Fault, Fields, clipped, shown};
use crate::message::{Constraint, Function, PastCall, ToolChoice, Tools};

const TOOLS_MAX: usize = 128;
const NAME_CHARS_MAX: usize = 64;

/// Where a function's fields stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"type": "function", "function": {"name": …}}`
    Wrapped,
    /// `{"type": "function", "name": …}`
    Flat,
}

/// What may be called; `None` where nothing is offered, or `tool_choice` is `none`: the model then sees no tools, so that
/// it calls none.
pub(super) fn tools(fields: &mut Fields, form: Form) -> Result<Option<Tools>, Fault> {
    let items = match fields.take("tools") {
        None => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(format!("`tools` must be an array, not {}", shown(&other))),
    };
    if items.len() > TOOLS_MAX {
        return Err(format!("`tools` has {} functions; at most {TOOLS_MAX} are allowed", items.len()));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        let function = function(item, form).map_err(|fault| format!("`tools[{at}]`: {fault}"))?;
        if functions.iter().any(|other| other.name == function.name) {
            return Err(format!("`tools[{at}]`: an earlier tool has the same name {:?}", function.name));
        }
        functions.push(function);
    }
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = choice(fields, form)?;
    match choice {
        Some(None) => Ok(None),
        Some(Some(ToolChoice::Function(name))) if !functions.iter().any(|one| one.name == name) => {
            Err(format!("`tool_choice` names {:?}, which is not in `tools`", clipped(&name)))
        }
        Some(Some(ToolChoice::Required)) if functions.is_empty() => {
            Err("`tool_choice` is \"required\", but `tools` is empty".into())
        }
        _ if functions.is_empty() => Ok(None),
        choice => {
            Ok(Some(Tools { functions, choice: choice.flatten().unwrap_or(ToolChoice::Auto), parallel }))
        }
    }
}

/// Beside calls, a text can be held to JSON alone: there is no telling a call from a text that may be anything.
pub(super) fn with_constraint(tools: Option<&Tools>, constraint: Option<&Constraint>) -> Result<(), Fault> {
    match (tools, constraint) {
        (Some(_), Some(Constraint::Regex(_) | Constraint::Choice(_) | Constraint::Lark(_))) => Err(
            "`tools` cannot be combined with a regular expression, a choice or a grammar: with tools, only \
             JSON constraints are supported"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// What a response repeats of its tools.
pub(super) fn settings(fields: &Fields, settings: &mut Map<String, Value>) {
    for name in ["tools", "tool_choice", "parallel_tool_calls"] {
        settings.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    // The published form has each field, said or not.
    if let Some(Value::Array(tools)) = settings.get_mut("tools") {
        for tool in tools.iter_mut().filter_map(Value::as_object_mut) {
            for (name, unsaid) in
                [("description", Value::Null), ("parameters", json!({})), ("strict", json!(true))]
            {
                tool.entry(name).or_insert(unsaid);
            }
        }
    }
}

fn function(item: Value, form: Form) -> Result<Function, Fault> {
    let Value::Object(map) = item else { return Err(format!("must be an object, not {}", shown(&item))) };
    let mut outer = Fields::new(map);
    match outer.text("type")?.as_deref() {
        Some("function") => {}
        Some(other) => {
            return Err(format!("a tool of type {:?} is not supported: use functions", clipped(other)));
        }
        None => return Err("`type` is missing: it must be \"function\"".into()),
    }
    let mut fields = match form {
        Form::Flat => outer,
        Form::Wrapped => {
            let inner = outer.object("function")?.ok_or("`function` is missing")?;
            outer.finish("a tool")?;
            inner
        }
    };
    let name = fields.text("name")?.ok_or("`name` is missing")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(plain) {
        return Err(format!(
            "`name` must have 1 to {NAME_CHARS_MAX} of the characters a-z A-Z 0-9 _ -, not {:?}",
            clipped(&name)
        ));
    }
    let description = fields.text("description")?;
    // Strict or not, arguments are held to their schema.
    fields.boolean("strict")?;
    let parameters = match fields.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => Some(schema.to_string()),
        Some(other) => return Err(format!("`parameters` must be a JSON schema, not {}", shown(&other))),
    };
    fields.finish("a function")?;
    Ok(Function { name, description, parameters })
}

/// `Some(None)` is a choice of none.
fn choice(fields: &mut Fields, form: Form) -> Result<Option<Option<ToolChoice>>, Fault> {
    let map = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(text)) => {
            return match text.as_str() {
                "none" => Ok(Some(None)),
                "auto" => Ok(Some(Some(ToolChoice::Auto))),
                "required" => Ok(Some(Some(ToolChoice::Required))),
                other => Err(format!(
                    "`tool_choice` {:?} is unknown: use none, auto, required or a function",
                    clipped(other)
                )),
            };
        }
        Some(Value::Object(map)) => map,
        Some(other) => {
            return Err(format!("`tool_choice` must be a string or an object, not {}", shown(&other)));
        }
    };
    let within = |fault: Fault| format!("`tool_choice`: {fault}");
    let mut outer = Fields::new(map);
    match outer.text("type").map_err(within)?.as_deref() {
        Some("function") => {}
        kind => {
            let kind =
                kind.map_or("without a type".to_owned(), |kind| format!("of type {:?}", clipped(kind)));
            return Err(format!("`tool_choice` {kind} is not supported: name a function"));
        }
    }
    let mut named = match form {
        Form::Flat => outer,
        Form::Wrapped => {
            let inner =
                outer.object("function").map_err(within)?.ok_or("`tool_choice.function` is missing")?;
            outer.finish("`tool_choice`")?;
            inner
        }
    };
    let name = named.text("name").map_err(within)?.ok_or("`tool_choice` names no function")?;
    named.finish("`tool_choice`")?;
    Ok(Some(Some(ToolChoice::Function(name))))
}

/// The calls of an assistant's message.
pub(super) fn past_calls(fields: &mut Fields) -> Result<Vec<PastCall>, Fault> {
    let items = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(format!("`tool_calls` must be an array, not {}", shown(&other))),
    };
    let one =
        |(at, item): (usize, Value)| past_call(item).map_err(|fault| format!("`tool_calls[{at}]`: {fault}"));
    items.into_iter().enumerate().map(one).collect()
}

fn past_call(item: Value) -> Result<PastCall, Fault> {
    let Value::Object(map) = item else { return Err(format!("must be an object, not {}", shown(&item))) };
    let mut fields = Fields::new(map);
    if let Some(other) = fields.text("type")?.filter(|kind| kind != "function") {
        return Err(format!("a call of type {:?} is not supported: use function calls", clipped(&other)));
    }
    let id = fields.text("id")?.ok_or("`id` is missing")?;
    let mut function = fields.object("function")?.ok_or("`function` is missing")?;
    fields.finish("a call")?;
    let call = called(id, &mut function)?;
    function.finish("a call")?;
    Ok(call)
}

/// The name and the arguments of a call.
pub(super) fn called(id: String, fields: &mut Fields) -> Result<PastCall, Fault> {
    let name = fields.text("name")?.ok_or("`name` is missing")?;
    let arguments = fields.text("arguments")?.unwrap_or_default();
    // Some clients say so that there are none.
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    match serde_json::from_str(&arguments) {
        Ok(Value::Object(_)) => Ok(PastCall { id, name, arguments }),
        _ => Err(format!("`arguments` must be a JSON object in a string, not {:?}", clipped(&arguments))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value, form: Form) -> Result<Option<Tools>, String> {
        let Value::Object(map) = value else { panic!("an object") };
        let mut fields = Fields::new(map);
        let tools = tools(&mut fields, form)?;
        fields.finish("a request").map(|()| tools)
    }

    fn one() -> Value {
        json!({ "type": "function", "function": {
            "name": "add", "description": "adds", "strict": true, "parameters": { "type": "object" },
        } })
    }

    fn flat() -> Value {
        json!({ "type": "function", "name": "add", "description": "adds", "parameters": { "type": "object" } })
    }

    #[test]
    fn both_forms_say_the_same() {
        for (choice, wrapped, beside) in [
            (ToolChoice::Auto, json!(null), json!("auto")),
            (ToolChoice::Required, json!("required"), json!("required")),
            (
                ToolChoice::Function("add".into()),
                json!({ "type": "function", "function": { "name": "add" } }),
                json!({ "type": "function", "name": "add" }),
            ),
        ] {
            let function = Function {
                name: "add".into(),
                description: Some("adds".into()),
                parameters: Some(r#"{"type":"object"}"#.into()),
            };
            let wanted = Some(Tools { functions: vec![function], choice, parallel: false });
            let asked = json!({ "tools": [one()], "tool_choice": wrapped, "parallel_tool_calls": false });
            assert_eq!(read(asked, Form::Wrapped).unwrap(), wanted);
            let asked = json!({ "tools": [flat()], "tool_choice": beside, "parallel_tool_calls": false });
            assert_eq!(read(asked, Form::Flat).unwrap(), wanted);
        }
        for nothing in [
            json!({}),
            json!({ "tools": [], "tool_choice": "auto" }),
            json!({ "tools": [one()], "tool_choice": "none" }),
            json!({ "parallel_tool_calls": true }),
        ] {
            assert_eq!(read(nothing.clone(), Form::Wrapped).unwrap(), None, "{nothing}");
        }
    }

    #[test]
    fn each_refusal_names_its_field() {
        let with = |function: Value| json!({ "tools": [{ "type": "function", "function": function }] });
        for (value, expected) in [
            (json!({ "tools": {} }), "`tools` must be an array"),
            (
                json!({ "tools": [{ "type": "web_search" }] }),
                "`tools[0]`: a tool of type \"web_search\" is not supported",
            ),
            (json!({ "tools": [{}] }), "`tools[0]`: `type` is missing"),
            (json!({ "tools": [{ "type": "function" }] }), "`tools[0]`: `function` is missing"),
            (with(json!({})), "`tools[0]`: `name` is missing"),
            (with(json!({ "name": "a b" })), "must have 1 to 64 of the characters"),
            (with(json!({ "name": "a", "parameters": [] })), "`parameters` must be a JSON schema"),
            (with(json!({ "name": "a", "colour": 1 })), "`colour` is not a field of a function"),
            (json!({ "tools": [one(), one()] }), "`tools[1]`: an earlier tool has the same name \"add\""),
            (json!({ "tool_choice": "required" }), "`tool_choice` is \"required\", but `tools` is empty"),
            (json!({ "tools": [one()], "tool_choice": "always" }), "`tool_choice` \"always\" is unknown"),
            (
                json!({ "tools": [one()], "tool_choice": { "type": "allowed_tools" } }),
                "of type \"allowed_tools\"",
            ),
            (
                json!({ "tools": [one()], "tool_choice": { "type": "function", "function": { "name": "sub" } } }),
                "`tool_choice` names \"sub\"",
            ),
            (json!({ "tools": vec![one(); 129] }), "at most 128"),
            (json!({ "parallel_tool_calls": "no" }), "`parallel_tool_calls` must be true or false"),
        ] {
            let message = read(value.clone(), Form::Wrapped).unwrap_err();
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
