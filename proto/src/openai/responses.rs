//! `/v1/responses`: items in, one response out, whole or as events. Stateless: nothing of it is kept to be asked for later.

use serde_json::{Map, Value, json};

use super::chat::{self, Speaker};
use super::fields::{Fault, Fields, clipped, shown};
use super::inert;
use super::logprobs::token_logprob;
use super::output::{body_id, model_name};
use crate::id::JobKey;
use crate::message::{ChatMessage, Finish, Generated, JobResult, Line, Outcome, TokenLogprobs, Usage};

/// The one thing that may be asked for in `include`.
const WITH_LOGPROBS: &str = "message.output_text.logprobs";

/// What a body says besides what every request says.
pub(super) struct Asked {
    pub(super) messages: Vec<ChatMessage>,
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
    no_tools(fields)?;
    for name in ["temperature", "top_p"] {
        settings.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    let max_tokens = fields.integer("max_output_tokens", 1..=tokens_max)?.map(|n| n as u32);
    settings.insert("max_output_tokens".into(), json!(max_tokens));
    let logprobs = logprobs(fields)?;
    settings.insert("top_logprobs".into(), json!(logprobs.unwrap_or(0)));
    let metadata = inert::pairs(fields, "metadata")?;
    settings.insert("metadata".into(), json!(metadata));
    Ok(Asked { messages, max_tokens, logprobs, settings })
}

fn input(fields: &mut Fields) -> Result<Vec<ChatMessage>, Fault> {
    match fields.take("input") {
        None => Err("`input` is missing".into()),
        Some(Value::String(text)) => Ok(vec![Speaker::User.says(text)]),
        Some(Value::Array(items)) if items.is_empty() => Err("`input` is empty".into()),
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(at, item)| message(item).map_err(|fault| format!("`input[{at}]`: {fault}")))
            .collect(),
        Some(other) => Err(format!("`input` must be a string or an array of items, not {}", shown(&other))),
    }
}

fn message(item: Value) -> Result<ChatMessage, Fault> {
    let Value::Object(map) = item else { return Err(format!("must be an object, not {}", shown(&item))) };
    let mut fields = Fields::new(map);
    match fields.text("type")?.as_deref() {
        None | Some("message") => {}
        Some(other) => {
            return Err(format!("an item of type {:?} is not supported: use messages", clipped(other)));
        }
    }
    // What an earlier response said of itself.
    for name in ["id", "status", "phase"] {
        fields.text(name)?;
    }
    let speaker = Speaker::read(&mut fields)?;
    let content = chat::content(&mut fields, part)?;
    fields.finish("a message")?;
    Ok(speaker.says(content))
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
                "`{name}` is not supported here: nothing is kept, send the whole conversation as `input`"
            ));
        }
    }
    for (name, why) in [
        ("store", "nothing is kept; leave it out or say false"),
        ("background", "answers are waited for; use a batch for work in the background"),
    ] {
        if fields.boolean(name)? == Some(true) {
            return Err(format!("`{name}` cannot be true: {why}"));
        }
    }
    if let Some(truncation) = fields.text("truncation")?.filter(|how| how != "disabled") {
        return Err(format!(
            "`truncation` {:?} is not supported: what is too long is refused",
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

fn no_tools(fields: &mut Fields) -> Result<(), Fault> {
    if let Some(tools) = fields.take("tools") {
        let items =
            tools.as_array().ok_or_else(|| format!("`tools` must be an array, not {}", shown(&tools)))?;
        if let Some(kind) = items.first().map(|tool| tool["type"].as_str().unwrap_or("function").to_owned()) {
            return Err(format!("`tools` holds one of type {:?}, and none are served here", clipped(&kind)));
        }
    }
    fields.boolean("parallel_tool_calls")?;
    fields.take("max_tool_calls");
    match fields.take("tool_choice") {
        None => Ok(()),
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => Ok(()),
        Some(other) => {
            Err(format!("`tool_choice` needs `tools`, and none are served here: {}", shown(&other)))
        }
    }
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
                        return Err(format!("`include` {} is not supported here: leave it out", shown(item)));
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
    let item = item(&result.job, Some(generated));
    let mut whole = frame(&result.line, &result.job, result.finished_at.0 / 1000, settings);
    let cut = generated.finish == Finish::Length;
    whole["status"] = if cut { "incomplete" } else { "completed" }.into();
    whole["completed_at"] = json!((!cut).then_some(result.finished_at.0 / 1000));
    if cut {
        whole["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    }
    whole["output"] = json!([item]);
    whole["usage"] = usage(&result.usage);
    whole
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

fn item_id(job: &JobKey) -> String {
    super::output::name("msg", job)
}

fn item(job: &JobKey, generated: Option<&Generated>) -> Value {
    let status = match generated.map(|one| one.finish) {
        None => "in_progress",
        Some(Finish::Length) => "incomplete",
        Some(Finish::Stop) => "completed",
    };
    let content: Vec<Value> = generated.iter().map(|one| part_of(&one.text, &one.logprobs)).collect();
    json!({ "id": item_id(job), "type": "message", "role": "assistant", "status": status, "content": content })
}

fn part_of(text: &str, tokens: &[TokenLogprobs]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(tokens) })
}

fn logprobs_of(tokens: &[TokenLogprobs]) -> Vec<Value> {
    tokens.iter().map(token_logprob).collect()
}

/// Where one piece of text belongs.
fn placed(kind: &str, job: &JobKey) -> Value {
    json!({ "type": kind, "item_id": item_id(job), "output_index": 0, "content_index": 0 })
}

/// The events before the first text.
pub(super) fn opening(
    line: &Line,
    job: &JobKey,
    created_s: u64,
    settings: &Map<String, Value>,
) -> Vec<Value> {
    let response = frame(line, job, created_s, settings);
    let mut part = placed("response.content_part.added", job);
    part["part"] = part_of("", &[]);
    vec![
        json!({ "type": "response.created", "response": response }),
        json!({ "type": "response.in_progress", "response": response }),
        json!({ "type": "response.output_item.added", "output_index": 0, "item": item(job, None) }),
        part,
    ]
}

pub(super) fn delta(job: &JobKey, text: &str, tokens: &[TokenLogprobs]) -> Value {
    let mut delta = placed("response.output_text.delta", job);
    delta["delta"] = text.into();
    delta["logprobs"] = logprobs_of(tokens).into();
    delta
}

/// The events after the last text; `whole` is the response as it is answered without a stream.
pub(super) fn closing(result: &JobResult, whole: &Value) -> Vec<Value> {
    let Outcome::Text(generated) = &result.outcome else { return Vec::new() };
    let job = &result.job;
    let mut text = placed("response.output_text.done", job);
    text["text"] = generated.text.as_str().into();
    text["logprobs"] = logprobs_of(&generated.logprobs).into();
    let mut part = placed("response.content_part.done", job);
    part["part"] = part_of(&generated.text, &generated.logprobs);
    let item = json!({
        "type": "response.output_item.done", "output_index": 0, "item": item(job, Some(generated)),
    });
    let kind = if generated.finish == Finish::Length { "response.incomplete" } else { "response.completed" };
    vec![text, part, item, json!({ "type": kind, "response": whole })]
}
