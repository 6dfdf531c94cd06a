//! Chat messages: roles and text, nothing else.

use serde_json::Value;

use super::fields::{Fault, Fields, clipped, shown};
use crate::message::ChatMessage;

pub(super) fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, Fault> {
    if fields.has("prompt") {
        return Err("`prompt` belongs to /v1/completions; a chat completion takes `messages`".into());
    }
    let items = match fields.take("messages") {
        None => return Err("`messages` is missing".into()),
        Some(Value::Array(items)) if items.is_empty() => return Err("`messages` is empty".into()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(format!("`messages` must be an array, not {}", shown(&other))),
    };
    items
        .into_iter()
        .enumerate()
        .map(|(at, item)| message(item).map_err(|fault| format!("`messages[{at}]`: {fault}")))
        .collect()
}

fn message(item: Value) -> Result<ChatMessage, Fault> {
    let Value::Object(map) = item else {
        return Err(format!("must be an object with `role` and `content`, not {}", shown(&item)));
    };
    let mut fields = Fields::new(map);
    let role = match fields.text("role")?.as_deref() {
        None => return Err("`role` is missing".into()),
        // OpenAI's newer word for the same thing.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some(other) => {
            return Err(format!(
                "`role` {:?} is not supported: use system, user or assistant",
                clipped(other)
            ));
        }
    };
    let content = match fields.take("content") {
        None => return Err("`content` is missing".into()),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.into_iter().map(part).collect::<Result<String, Fault>>()?,
        Some(other) => {
            return Err(format!("`content` must be a string or text parts, not {}", shown(&other)));
        }
    };
    fields.finish("a message")?;
    Ok(ChatMessage { role: role.to_owned(), content })
}

fn part(item: Value) -> Result<String, Fault> {
    let Value::Object(map) = item else {
        return Err(format!("a part of `content` must be an object, not {}", shown(&item)));
    };
    let mut fields = Fields::new(map);
    match fields.text("type")?.as_deref() {
        Some("text") => {}
        Some(other) => {
            return Err(format!(
                "a part of type {:?} is not supported: this model reads text",
                clipped(other)
            ));
        }
        None => return Err("a part of `content` has no `type`".into()),
    }
    let text = fields.text("text")?.ok_or_else(|| Fault::from("a part of type \"text\" has no `text`"))?;
    fields.finish("a part of `content`")?;
    Ok(text)
}
