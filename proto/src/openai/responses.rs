//! `/v1/responses`: items in, one response out, whole or as events. Stateless: nothing of it is kept to be asked for later.

use serde_json::{Map, Value, json};

use super::chat::{self, Speaker};
use super::fields::{Fault, Fields, clipped, shown};
use super::inert;
use super::logprobs::token_logprob;
use super::output::{body_id, call_id, model_name};
use super::tools::{self, Form};
use crate::id::JobKey;
use crate::message::{
    Call, ChatMessage, Finish, Generated, JobResult, Line, PastCall, TokenLogprobs, Tools, Usage,
};

/// The one thing that may be asked for in `include`.
const WITH_LOGPROBS: &str = "message.output_text.logprobs";

/// What a body says besides what every request says.
pub(super) struct Asked {
    pub(super) messages: Vec<ChatMessage>,
    pub(super) tools: Option<Tools>,
    pub(super) max_tokens: Option<u32>,
    pub(super) logprobs: Option<u8>,
    /// Repeated in the response.
    pub(super) settings: Map<String, Value>,
}

/// Reads the fields of this endpoint's own. `max_tokens` is bounded by the caller's `tokens_max`.
pub(super) fn read(fields: &mut Fields, tokens_max: u64) -> Result<Asked, Fault> {
    let mut settings = Map::new();
    let mut messages = Vec::new();
    if let Some(instructions) = fields.text("instructions")? {
        settings.insert("instructions".into(), instructions.clone().into());
        messages.push(Speaker::System.says(instructions));
    }
    messages.extend(input(fields)?);
    stateless(fields)?;
    tools::settings(fields, &mut settings);
    let tools = tools::tools(fields, Form::Flat)?;
    // It counts calls of OpenAI's own tools, of which there are none.
    fields.take("max_tool_calls");
    for name in ["temperature", "top_p"] {
        settings.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    let max_tokens = fields.integer("max_output_tokens", 1..=tokens_max)?.map(|n| n as u32);
    settings.insert("max_output_tokens".into(), json!(max_tokens));
    let logprobs = logprobs(fields)?;
    settings.insert("top_logprobs".into(), json!(logprobs.unwrap_or(0)));
    let metadata = inert::pairs(fields, "metadata")?;
    settings.insert("metadata".into(), json!(metadata));
    Ok(Asked { messages, tools, max_tokens, logprobs, settings })
}

fn input(fields: &mut Fields) -> Result<Vec<ChatMessage>, Fault> {
    match fields.take("input") {
        None => Err("`input` is missing".into()),
        Some(Value::String(text)) => Ok(vec![Speaker::User.says(text)]),
        Some(Value::Array(items)) if items.is_empty() => Err("`input` is empty".into()),
        Some(Value::Array(items)) => {
            let mut messages = Vec::new();
            for (at, item) in items.into_iter().enumerate() {
                match read_item(item).map_err(|fault| format!("`input[{at}]`: {fault}"))? {
                    Item::Message(message) => messages.push(message),
                    Item::Call(call) => called(&mut messages, call),
                }
            }
            Ok(messages)
        }
        Some(other) => Err(format!("`input` must be a string or an array of items, not {}", shown(&other))),
    }
}

enum Item {
    Message(ChatMessage),
    Call(PastCall),
}

/// A call belongs to what the assistant said before it, as in the answer that it came from.
fn called(messages: &mut Vec<ChatMessage>, call: PastCall) {
    match messages.last_mut().filter(|message| message.role == "assistant") {
        Some(message) => message.calls.push(call),
        None => messages.push(ChatMessage { calls: vec![call], ..Speaker::Assistant.says(String::new()) }),
    }
}

fn read_item(item: Value) -> Result<Item, Fault> {
    let Value::Object(map) = item else { return Err(format!("must be an object, not {}", shown(&item))) };
    let mut fields = Fields::new(map);
    let kind = fields.text("type")?;
    // What an earlier response said of itself.
    for name in ["id", "status", "phase"] {
        fields.text(name)?;
    }
    let call_id = |fields: &mut Fields| fields.text("call_id")?.ok_or(Fault::from("`call_id` is missing"));
    match kind.as_deref() {
        None | Some("message") => {
            let speaker = Speaker::read(&mut fields)?;
            let content = chat::said(&mut fields, "content", part)?;
            fields.finish("a message")?;
            Ok(Item::Message(speaker.says(content)))
        }
        Some("function_call") => {
            let id = call_id(&mut fields)?;
            let call = tools::called(id, &mut fields)?;
            fields.finish("a function call")?;
            Ok(Item::Call(call))
        }
        Some("function_call_output") => {
            let id = call_id(&mut fields)?;
            let output = chat::said(&mut fields, "output", part)?;
            fields.finish("the output of a function call")?;
            Ok(Item::Message(chat::answers(id, output)))
        }
        Some(other) => Err(format!(
            "an item of type {:?} is not supported: use messages, function calls and their outputs",
            clipped(other)
        )),
    }
}

fn part(item: Value) -> Result<String, Fault> {
    let mut fields = chat::part_of_type(item, &["input_text", "output_text", "text"])?;
    let text = fields.text("text")?.ok_or("a part of `content` has no `text`")?;
    // Parts of an earlier response carry them; they are no part of what was said.
    fields.take("annotations");
    fields.take("logprobs");
    fields.finish("a part of `content`")?;
    Ok(text)
}

/// Nothing is kept between requests, so nothing may refer to what was kept.
fn stateless(fields: &mut Fields) -> Result<(), Fault> {
    for name in ["previous_response_id", "conversation", "prompt", "context_management", "moderation"] {
        if fields.take(name).is_some() {
            return Err(format!(
                "`{name}` is not supported: responses are not stored; send the whole conversation as `input`"
            ));
        }
    }
    for (name, why) in [
        ("store", "responses are not stored; remove it or set it to false"),
        ("background", "only synchronous responses are supported; use a batch for background work"),
    ] {
        if fields.boolean(name)? == Some(true) {
            return Err(format!("`{name}` cannot be true: {why}"));
        }
    }
    if let Some(truncation) = fields.text("truncation")?.filter(|how| how != "disabled") {
        return Err(format!(
            "`truncation` {:?} is not supported: an input that is too long is rejected",
            clipped(&truncation)
        ));
    }
    if let Some(mut reasoning) = fields.object("reasoning")? {
        if let Some(effort) = reasoning.text("effort")?.filter(|effort| effort != "none") {
            return Err(format!(
                "`reasoning.effort` {:?} is not supported: this model does not reason",
                clipped(&effort)
            ));
        }
        reasoning.finish("`reasoning`")?;
    }
    Ok(())
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, Fault> {
    let top = fields.integer("top_logprobs", 0..=20)?.map(|n| n as u8);
    let mut wanted = top.is_some_and(|top| top > 0);
    match fields.take("include") {
        None => {}
        Some(Value::Array(items)) => {
            for item in &items {
                match item.as_str() {
                    Some(WITH_LOGPROBS) => wanted = true,
                    _ => {
                        return Err(format!("`include` {} is not supported: remove it", shown(item)));
                    }
                }
            }
        }
        Some(other) => return Err(format!("`include` must be an array, not {}", shown(&other))),
    }
    Ok(wanted.then_some(top.unwrap_or(0)))
}

/// A whole response. `settings` is what the request said, as far as it is known.
pub(super) fn body(result: &JobResult, generated: &Generated, settings: &Map<String, Value>) -> Value {
    let mut whole = frame(&result.line, &result.job, result.finished_at.0 / 1000, settings);
    let cut = generated.finish == Finish::Length;
    whole["status"] = if cut { "incomplete" } else { "completed" }.into();
    whole["completed_at"] = json!((!cut).then_some(result.finished_at.0 / 1000));
    if cut {
        whole["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    }
    whole["output"] = output(&result.job, generated).into();
    whole["usage"] = usage(&result.usage);
    whole
}

/// A message, unless there are calls alone, and the calls. What was cut is the last of them.
fn output(job: &JobKey, generated: &Generated) -> Vec<Value> {
    let Generated { text, logprobs, calls, finish, .. } = generated;
    let last = calls.len();
    let status = |at: usize| match finish {
        Finish::Length if at == last => Status::Incomplete,
        _ => Status::Completed,
    };
    let speaks = !text.is_empty() || calls.is_empty();
    let message = speaks.then(|| message_item(job, Some((text.as_str(), logprobs.as_slice())), status(0)));
    let calls = calls.iter().enumerate().map(|(at, call)| call_item(job, at, call, status(at + 1)));
    message.into_iter().chain(calls).collect()
}

/// A response that has only begun.
pub(super) fn frame(line: &Line, job: &JobKey, created_s: u64, settings: &Map<String, Value>) -> Value {
    let mut frame = json!({
        "id": body_id(line.endpoint, job),
        "object": "response",
        "created_at": created_s,
        "completed_at": null,
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "max_output_tokens": null,
        "max_tool_calls": null,
        "metadata": {},
        "model": model_name(line),
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "service_tier": "default",
        "store": false,
        "temperature": 1.0,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": null,
    });
    if let Value::Object(fields) = &mut frame {
        fields.extend(settings.clone());
    }
    frame
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
    })
}

/// How far an item has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Incomplete => "incomplete",
        }
    }
}

/// What an event is about: an item of the response, by its place in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Message,
    /// A call by its number, and whether the message is before it.
    Call {
        call: usize,
        spoken: bool,
    },
}

impl Place {
    fn index(self) -> usize {
        match self {
            Place::Message => 0,
            Place::Call { call, spoken } => call + usize::from(spoken),
        }
    }

    fn id(self, job: &JobKey) -> String {
        match self {
            Place::Message => super::output::name("msg", job),
            Place::Call { call, .. } => format!("fc{}", call_id(job, 0, call).trim_start_matches("call")),
        }
    }

    /// An event about this item; one about a message is about its only part.
    fn event(self, kind: &str, job: &JobKey) -> Value {
        let mut event = json!({ "type": kind, "item_id": self.id(job), "output_index": self.index() });
        if self == Place::Message {
            event["content_index"] = 0.into();
        }
        event
    }
}

fn message_item(job: &JobKey, said: Option<(&str, &[TokenLogprobs])>, status: Status) -> Value {
    let content: Vec<Value> = said.iter().map(|(text, logprobs)| part_of(text, logprobs)).collect();
    json!({
        "id": Place::Message.id(job), "type": "message", "role": "assistant", "status": status.as_str(), "content": content,
    })
}

fn call_item(job: &JobKey, at: usize, call: &Call, status: Status) -> Value {
    json!({
        "id": Place::Call { call: at, spoken: false }.id(job), "type": "function_call", "status": status.as_str(),
        "call_id": call_id(job, 0, at), "name": call.name, "arguments": call.arguments,
    })
}

fn part_of(text: &str, tokens: &[TokenLogprobs]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(tokens) })
}

fn logprobs_of(tokens: &[TokenLogprobs]) -> Vec<Value> {
    tokens.iter().map(token_logprob).collect()
}

/// The events before the first item.
pub(super) fn opening(
    line: &Line,
    job: &JobKey,
    created_s: u64,
    settings: &Map<String, Value>,
) -> Vec<Value> {
    let response = frame(line, job, created_s, settings);
    vec![
        json!({ "type": "response.created", "response": response }),
        json!({ "type": "response.in_progress", "response": response }),
    ]
}

/// The events with which an item begins; a call is told by its name.
pub(super) fn begin(job: &JobKey, place: Place, name: &str) -> Vec<Value> {
    let item = match place {
        Place::Message => message_item(job, None, Status::InProgress),
        Place::Call { call, .. } => {
            let begun = Call { name: name.to_owned(), arguments: String::new() };
            call_item(job, call, &begun, Status::InProgress)
        }
    };
    let added = json!({ "type": "response.output_item.added", "output_index": place.index(), "item": item });
    if place != Place::Message {
        return vec![added];
    }
    let mut part = place.event("response.content_part.added", job);
    part["part"] = part_of("", &[]);
    vec![added, part]
}

pub(super) fn text_delta(job: &JobKey, text: &str, tokens: &[TokenLogprobs]) -> Value {
    let mut delta = Place::Message.event("response.output_text.delta", job);
    delta["delta"] = text.into();
    delta["logprobs"] = logprobs_of(tokens).into();
    delta
}

pub(super) fn call_delta(job: &JobKey, place: Place, arguments: &str) -> Value {
    let mut delta = place.event("response.function_call_arguments.delta", job);
    delta["delta"] = arguments.into();
    delta
}

/// The events with which the message ends.
pub(super) fn end_message(job: &JobKey, said: &str, tokens: &[TokenLogprobs], status: Status) -> Vec<Value> {
    let mut text = Place::Message.event("response.output_text.done", job);
    text["text"] = said.into();
    text["logprobs"] = logprobs_of(tokens).into();
    let mut part = Place::Message.event("response.content_part.done", job);
    part["part"] = part_of(said, tokens);
    let item = message_item(job, Some((said, tokens)), status);
    vec![text, part, json!({ "type": "response.output_item.done", "output_index": 0, "item": item })]
}

/// The events with which a call ends.
pub(super) fn end_call(job: &JobKey, place: Place, call: &Call, status: Status) -> Vec<Value> {
    let Place::Call { call: number, .. } = place else { return Vec::new() };
    let mut arguments = place.event("response.function_call_arguments.done", job);
    arguments["name"] = call.name.as_str().into();
    arguments["arguments"] = call.arguments.as_str().into();
    let item = call_item(job, number, call, status);
    vec![
        arguments,
        json!({ "type": "response.output_item.done", "output_index": place.index(), "item": item }),
    ]
}

/// The last event; `whole` is the response as it is answered without a stream.
pub(super) fn closing(finish: Finish, whole: &Value) -> Value {
    let kind = if finish == Finish::Length { "response.incomplete" } else { "response.completed" };
    json!({ "type": kind, "response": whole })
}
