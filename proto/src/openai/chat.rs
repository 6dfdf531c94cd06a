//! Chat messages: roles, text, calls and their answers.

use serde_json::Value;

use super::fields::{Fault, Fields, clipped, shown};
use super::tools;
use crate::message::{ChatMessage, Conversation, Prompt, Tools};

pub(super) fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, Fault> {
    if fields.has("prompt") {
        return Err("`prompt` is a field of /v1/completions; a chat completion needs `messages`".into());
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

/// Who speaks, as templates know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    User,
    Assistant,
}

impl Speaker {
    pub(super) fn read(fields: &mut Fields) -> Result<Speaker, Fault> {
        match fields.text("role")?.as_deref() {
            None => Err("`role` is missing".into()),
            // OpenAI's newer name of the same role.
            Some("system" | "developer") => Ok(Speaker::System),
            Some("user") => Ok(Speaker::User),
            Some("assistant") => Ok(Speaker::Assistant),
            Some(other) => Err(format!(
                "`role` {:?} is not supported: use system, user, assistant or tool",
                clipped(other)
            )),
        }
    }

    pub(super) fn says(self, content: String) -> ChatMessage {
        let role = match self {
            Speaker::System => "system",
            Speaker::User => "user",
            Speaker::Assistant => "assistant",
        };
        ChatMessage { role: role.to_owned(), content, ..ChatMessage::default() }
    }
}

/// What a tool said to a call.
pub(super) fn answers(call_id: String, content: String) -> ChatMessage {
    ChatMessage { role: "tool".to_owned(), content, call_id: Some(call_id), ..ChatMessage::default() }
}

/// The chat as a prompt: one with tools or calls is a conversation.
pub(super) fn prompt(messages: Vec<ChatMessage>, tools: Option<Tools>) -> Prompt {
    let plain = |message: &ChatMessage| message.calls.is_empty() && message.call_id.is_none();
    match tools.is_none() && messages.iter().all(plain) {
        true => Prompt::Chat(messages),
        false => Prompt::Conversation(Conversation { messages, tools }),
    }
}

fn message(item: Value) -> Result<ChatMessage, Fault> {
    let Value::Object(map) = item else {
        return Err(format!("must be an object with `role` and `content`, not {}", shown(&item)));
    };
    let mut fields = Fields::new(map);
    if fields.get("role").is_some_and(|role| role == "tool") {
        fields.take("role");
        let id = fields.text("tool_call_id")?.ok_or("`tool_call_id` is missing")?;
        fields.text("name")?;
        let content = said(&mut fields, "content", part)?;
        fields.finish("a message of a tool")?;
        return Ok(answers(id, content));
    }
    let speaker = Speaker::read(&mut fields)?;
    // Who of several users spoke changes nothing: templates have no place for it.
    fields.text("name")?;
    if fields.take("annotations").is_some_and(|value| value.as_array().is_none_or(|items| !items.is_empty()))
    {
        return Err("`annotations` are not supported: remove them".into());
    }
    let calls = if speaker == Speaker::Assistant { tools::past_calls(&mut fields)? } else { Vec::new() };
    // Whoever calls need not speak.
    let silent = !calls.is_empty() && fields.get("content").is_none();
    let content = if silent { String::new() } else { said(&mut fields, "content", part)? };
    fields.finish("a message")?;
    Ok(ChatMessage { calls, ..speaker.says(content) })
}

/// What a message or a tool says in `field`: a text, or parts, each of which `part` reads.
pub(super) fn said(
    fields: &mut Fields,
    field: &str,
    part: fn(Value) -> Result<String, Fault>,
) -> Result<String, Fault> {
    match fields.take(field) {
        None => Err(format!("`{field}` is missing")),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => parts.into_iter().map(part).collect(),
        Some(other) => Err(format!("`{field}` must be a string or text parts, not {}", shown(&other))),
    }
}

/// The fields of a part of one of these types.
pub(super) fn part_of_type(item: Value, types: &[&str]) -> Result<Fields, Fault> {
    let Value::Object(map) = item else {
        return Err(format!("a part of `content` must be an object, not {}", shown(&item)));
    };
    let mut fields = Fields::new(map);
    match fields.text("type")?.as_deref() {
        Some(kind) if types.contains(&kind) => Ok(fields),
        Some(other) => {
            Err(format!("a part of type {:?} is not supported: this model reads only text", clipped(other)))
        }
        None => Err("a part of `content` has no `type`".into()),
    }
}

fn part(item: Value) -> Result<String, Fault> {
    let mut fields = part_of_type(item, &["text"])?;
    let text = fields.text("text")?.ok_or_else(|| Fault::from("a part of type \"text\" has no `text`"))?;
    fields.finish("a part of `content`")?;
    Ok(text)
}
