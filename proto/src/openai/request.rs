//! The body of a request: every parameter checked, defaults filled in, one [`Generation`] out.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::chat::messages;
use super::fields::{Fault, Fields, clipped, shown};
use super::{Endpoint, ModelDefaults};
use crate::message::{Generation, OpenSampling, Prompt, Sampling};

/// Where a request comes from decides whether it may stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Batch,
    Single,
}

/// A body, understood.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) model: Option<String>,
    pub(super) generation: Generation,
    /// The caller of a stream asked for one more chunk, with the usage.
    pub(super) include_usage: bool,
}

const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 1024;
const LOGIT_BIAS_MAX: usize = 1024;
const COMPLETION_LOGPROBS_MAX: u64 = 5;
const CHAT_LOGPROBS_MAX: u64 = 20;
const PENALTY: RangeInclusive<f64> = -2.0..=2.0;
const MAX_TOKENS: RangeInclusive<u64> = 1..=1_000_000;

pub(super) fn request(
    endpoint: Endpoint,
    body: Map<String, Value>,
    seed: u64,
    served: &ModelDefaults,
    origin: Origin,
) -> Result<Request, Fault> {
    let mut fields = Fields::new(body);
    let model = fields.text("model")?;
    let prompt = match endpoint {
        Endpoint::Completions => prompt(&mut fields, served)?,
        Endpoint::ChatCompletions => Prompt::Chat(messages(&mut fields)?),
    };
    let max_tokens = max_tokens(endpoint, &mut fields, served)?;
    let sampling = sampling(&mut fields, served)?;
    let seed = seed_of(&mut fields)?.unwrap_or(seed);
    let stop = stop(&mut fields)?;
    let logprobs = logprobs(endpoint, &mut fields)?;
    let echo = endpoint == Endpoint::Completions && fields.boolean("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        return Err("`echo` together with `logprobs` is not supported: prompts are not scored".into());
    }
    let (stream, include_usage) = stream(&mut fields, origin)?;
    only_one(&mut fields)?;
    inert(&mut fields)?;
    fields.finish(match endpoint {
        Endpoint::Completions => "a completion request",
        Endpoint::ChatCompletions => "a chat completion request",
    })?;
    let generation =
        Generation { prompt, max_tokens, sampling, seed, stop, logprobs, echo, stream, constraint: None };
    Ok(Request { model, generation, include_usage })
}

fn prompt(fields: &mut Fields, served: &ModelDefaults) -> Result<Prompt, Fault> {
    if fields.has("messages") {
        return Err("`messages` belongs to /v1/chat/completions; a completion takes `prompt`".into());
    }
    match fields.take("prompt") {
        None => Err("`prompt` is missing".into()),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(items)) if items.is_empty() => Err("`prompt` is an empty array".into()),
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => tokens(&items, served),
        Some(Value::Array(items)) if items.iter().all(|item| item.is_string() || item.is_array()) => {
            Err(format!(
                "`prompt` holds {} prompts: write one line for each, so that each gets its own answer",
                items.len()
            ))
        }
        Some(other) => {
            Err(format!("`prompt` must be a string or an array of token ids, not {}", shown(&other)))
        }
    }
}

fn tokens(items: &[Value], served: &ModelDefaults) -> Result<Prompt, Fault> {
    let limit = served.vocabulary_tokens.unwrap_or(u32::MAX);
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < limit);
    let ids: Result<Vec<u32>, Fault> = items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            id(item).ok_or_else(|| format!("`prompt[{at}]` is not a token id below {limit}: {}", shown(item)))
        })
        .collect();
    Ok(Prompt::Tokens(ids?))
}

fn max_tokens(endpoint: Endpoint, fields: &mut Fields, served: &ModelDefaults) -> Result<Option<u32>, Fault> {
    let older = fields.integer("max_tokens", MAX_TOKENS)?.map(|n| n as u32);
    match endpoint {
        Endpoint::Completions => Ok(older.or(Some(served.completion_max_tokens))),
        Endpoint::ChatCompletions => {
            let newer = fields.integer("max_completion_tokens", MAX_TOKENS)?.map(|n| n as u32);
            match (older, newer) {
                (Some(a), Some(b)) if a != b => {
                    Err(format!("`max_tokens` is {a} and `max_completion_tokens` is {b}: give one of them"))
                }
                (older, newer) => Ok(newer.or(older)),
            }
        }
    }
}

fn sampling(fields: &mut Fields, served: &ModelDefaults) -> Result<Sampling, Fault> {
    let usual = Sampling::default();
    let temperature = fields.number("temperature", 0.0..=2.0)?;
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    let top_k = fields.integer("top_k", 0..=u64::from(u32::MAX))?;
    let sampling = Sampling {
        temperature: temperature.unwrap_or(usual.temperature),
        top_p: top_p.unwrap_or(usual.top_p),
        top_k: top_k.map_or(usual.top_k, |n| n as u32),
        open: OpenSampling {
            temperature: temperature.is_none(),
            top_p: top_p.is_none(),
            top_k: top_k.is_none(),
        },
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(usual.min_p),
        presence_penalty: fields.number("presence_penalty", PENALTY)?.unwrap_or(usual.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty", PENALTY)?.unwrap_or(usual.frequency_penalty),
        logit_bias: logit_bias(fields, served)?,
    };
    if sampling.top_p <= 0.0 {
        return Err("`top_p` must be above 0: for the likeliest token set `temperature` to 0".into());
    }
    Ok(sampling)
}

fn logit_bias(fields: &mut Fields, served: &ModelDefaults) -> Result<Vec<(u32, f32)>, Fault> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(format!("`logit_bias` must be an object, not {}", shown(&other))),
    };
    if map.len() > LOGIT_BIAS_MAX {
        return Err(format!("`logit_bias` has {} entries; at most {LOGIT_BIAS_MAX} are allowed", map.len()));
    }
    let limit = served.vocabulary_tokens.unwrap_or(u32::MAX);
    let entry = |(id, bias): (String, Value)| {
        let token = id.parse::<u32>().ok().filter(|token| *token < limit);
        let amount = bias.as_f64().filter(|amount| (-100.0..=100.0).contains(amount));
        match (token, amount) {
            (Some(token), Some(amount)) => Ok((token, amount as f32)),
            (None, _) => {
                let id = clipped(&id);
                Err(format!("`logit_bias` names {id:?}, which is not a token id below {limit}"))
            }
            (_, None) => {
                Err(format!("`logit_bias[{id}]` must be a number from -100 to 100, not {}", shown(&bias)))
            }
        }
    };
    let mut entries: Vec<(u32, f32)> = map.into_iter().map(entry).collect::<Result<_, Fault>>()?;
    entries.sort_unstable_by_key(|(token, _)| *token);
    Ok(entries)
}

/// Negative seeds are taken by their bits, as every 64-bit integer is a seed.
fn seed_of(fields: &mut Fields) -> Result<Option<u64>, Fault> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match (value.as_u64(), value.as_i64()) {
            (Some(seed), _) => Ok(Some(seed)),
            (None, Some(negative)) => Ok(Some(negative as u64)),
            (None, None) => Err(format!("`seed` must be a 64-bit whole number, not {}", shown(&value))),
        },
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Fault> {
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(one @ Value::String(_)) => vec![one],
        Some(Value::Array(items)) => items,
        Some(other) => {
            return Err(format!("`stop` must be a string or an array of them, not {}", shown(&other)));
        }
    };
    if items.len() > STOPS_MAX {
        return Err(format!("`stop` has {} texts; at most {STOPS_MAX} are allowed", items.len()));
    }
    let text = |(at, item): (usize, Value)| match item {
        Value::String(text) if text.is_empty() => Err(format!("`stop[{at}]` is empty")),
        Value::String(text) if text.len() > STOP_BYTES_MAX => {
            Err(format!("`stop[{at}]` is {} bytes long; at most {STOP_BYTES_MAX} are allowed", text.len()))
        }
        Value::String(text) => Ok(text),
        other => Err(format!("`stop[{at}]` must be a string, not {}", shown(&other))),
    };
    items.into_iter().enumerate().map(text).collect()
}

fn logprobs(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<u8>, Fault> {
    match endpoint {
        Endpoint::Completions => {
            Ok(fields.integer("logprobs", 0..=COMPLETION_LOGPROBS_MAX)?.map(|n| n as u8))
        }
        Endpoint::ChatCompletions => {
            let wanted = fields.boolean("logprobs")?.unwrap_or(false);
            let top = fields.integer("top_logprobs", 0..=CHAT_LOGPROBS_MAX)?.map(|n| n as u8);
            match (wanted, top) {
                (false, Some(1..)) => Err("`top_logprobs` needs `logprobs` to be true".into()),
                (false, _) => Ok(None),
                (true, top) => Ok(Some(top.unwrap_or(0))),
            }
        }
    }
}

fn stream(fields: &mut Fields, origin: Origin) -> Result<(bool, bool), Fault> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    if stream && origin == Origin::Batch {
        return Err("`stream` cannot be true in a batch: its answers are lines of a file".into());
    }
    let Some(mut options) = fields.object("stream_options")? else { return Ok((stream, false)) };
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    options.finish("`stream_options`")?;
    if !stream {
        return Err("`stream_options` needs `stream` to be true".into());
    }
    Ok((stream, include_usage))
}

/// One prompt, one answer: more choices would be more jobs.
fn only_one(fields: &mut Fields) -> Result<(), Fault> {
    for name in ["n", "best_of"] {
        if let Some(n) = fields.integer(name, 1..=128)?.filter(|n| *n != 1) {
            return Err(format!("`{name}` is {n}, and only 1 is supported: write one line for each answer"));
        }
    }
    Ok(())
}

/// Fields that may be there because they ask for what is done anyway.
fn inert(fields: &mut Fields) -> Result<(), Fault> {
    // An identifier of the caller's own customer: it changes no answer.
    fields.text("user")?;
    fields.text("safety_identifier")?;
    if fields.boolean("store")? == Some(true) {
        return Err("`store` is not supported here: leave it out".into());
    }
    if let Some(tier) = fields.text("service_tier")?.filter(|tier| tier != "auto" && tier != "default") {
        return Err(format!("`service_tier` {:?} is not offered here: leave it out", clipped(&tier)));
    }
    if let Some(mut format) = fields.object("response_format")? {
        match format.text("type")?.as_deref() {
            Some("text") => format.finish("`response_format`")?,
            Some(other) => {
                let other = clipped(other);
                return Err(format!("`response_format` {other:?} is not supported: only \"text\" is"));
            }
            None => return Err("`response_format` has no `type`".into()),
        }
    }
    Ok(())
}
