//! The body of a request: every parameter checked, defaults filled in, one [`Generation`] out.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::fields::{Fault, Fields, clipped, shown};
use super::tools::{self, Form};
use super::{Endpoint, ModelDefaults, chat, choices, inert, responses, shape};
use crate::message::{Generation, OpenSampling, Sampling};

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
    /// The field that holds the answers to a form.
    pub(super) held_by: Option<&'static str>,
    /// What a response repeats of its request; empty for other endpoints.
    pub(super) settings: Map<String, Value>,
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
    if endpoint == Endpoint::Responses {
        return response(fields, model, seed, served, origin);
    }
    let prompts = match endpoint {
        Endpoint::Completions => choices::prompts(&mut fields, served)?,
        Endpoint::ChatCompletions | Endpoint::Responses => {
            let messages = chat::messages(&mut fields)?;
            vec![chat::prompt(messages, tools::tools(&mut fields, Form::Wrapped)?)]
        }
    };
    let prompt = choices::several(prompts, choices::n(&mut fields)?)?;
    let echo = endpoint == Endpoint::Completions && fields.boolean("echo")?.unwrap_or(false);
    let max_tokens = max_tokens(endpoint, &mut fields, served, echo)?;
    let sampling = sampling(&mut fields, served)?;
    let seed = seed_of(&mut fields)?.unwrap_or(seed);
    let no_cache = fields.boolean("cache")? == Some(false);
    let stop = stop(&mut fields)?;
    let logprobs = logprobs(endpoint, &mut fields)?;
    let (stream, include_usage) = stream(&mut fields, origin)?;
    let (form, constraint) = shape::constraint(&mut fields)?.unzip();
    tools::with_constraint(prompt.tools(), constraint.as_ref())?;
    let token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    let deterministic = deterministic(&mut fields)?;
    inert::take(&mut fields)?;
    fields.finish(match endpoint {
        Endpoint::Completions => "a completion request",
        Endpoint::ChatCompletions | Endpoint::Responses => "a chat completion request",
    })?;
    let held_by = prompt.tools().map(|_| "tools").or(form);
    let generation = Generation {
        prompt,
        max_tokens,
        sampling,
        seed,
        stop,
        logprobs,
        echo,
        stream,
        constraint,
        token_ids,
        deterministic,
        no_cache,
    };
    Ok(Request { model, generation, include_usage, held_by, settings: Map::new() })
}

/// What a request asks of this fleet alone, in the object `ternfleet`.
fn deterministic(fields: &mut Fields) -> Result<bool, Fault> {
    let Some(mut own) = fields.object("ternfleet")? else { return Ok(false) };
    let deterministic = own.boolean("deterministic").map_err(|fault| format!("`ternfleet`: {fault}"))?;
    own.finish("`ternfleet`")?;
    Ok(deterministic.unwrap_or(false))
}

fn response(
    mut fields: Fields,
    model: Option<String>,
    seed: u64,
    served: &ModelDefaults,
    origin: Origin,
) -> Result<Request, Fault> {
    let asked = responses::read(&mut fields, *MAX_TOKENS.end())?;
    let sampling = sampling(&mut fields, served)?;
    let seed = seed_of(&mut fields)?.unwrap_or(seed);
    let (stream, _) = stream(&mut fields, origin)?;
    let no_cache = fields.boolean("cache")? == Some(false);
    let mut settings = asked.settings;
    let mut constraint = None;
    if let Some(mut text) = fields.object("text")? {
        if let Some(format) = text.object("format")? {
            settings.insert("text".into(), serde_json::json!({ "format": format.shown() }));
            constraint = shape::text_format(format)?;
        }
        if let Some(verbosity) = text.text("verbosity")?.filter(|how| how != "medium") {
            return Err(format!("`text.verbosity` {:?} is not supported: remove it", clipped(&verbosity)));
        }
        text.finish("`text`")?;
    }
    let deterministic = deterministic(&mut fields)?;
    inert::take(&mut fields)?;
    fields.finish("a request for a response")?;
    tools::with_constraint(asked.tools.as_ref(), constraint.as_ref())?;
    let prompt = chat::prompt(asked.messages, asked.tools);
    let held_by = prompt.tools().map(|_| "tools").or(constraint.as_ref().map(|_| "text.format"));
    let (max_tokens, logprobs) = (asked.max_tokens, asked.logprobs);
    let generation = Generation {
        prompt,
        max_tokens,
        sampling,
        seed,
        logprobs,
        stream,
        constraint,
        deterministic,
        no_cache,
        ..Generation::default()
    };
    Ok(Request { model, generation, include_usage: false, held_by, settings })
}

fn max_tokens(
    endpoint: Endpoint,
    fields: &mut Fields,
    served: &ModelDefaults,
    echo: bool,
) -> Result<Option<u32>, Fault> {
    // An echo of the prompt may be all that is wanted: that is how prompts are scored.
    let least = if echo { 0 } else { *MAX_TOKENS.start() };
    let older = fields.integer("max_tokens", least..=*MAX_TOKENS.end())?.map(|n| n as u32);
    match endpoint {
        Endpoint::Completions => Ok(older.or(Some(served.completion_max_tokens))),
        Endpoint::ChatCompletions | Endpoint::Responses => {
            let newer = fields.integer("max_completion_tokens", MAX_TOKENS)?.map(|n| n as u32);
            match (older, newer) {
                (Some(a), Some(b)) if a != b => {
                    Err(format!("`max_tokens` is {a} and `max_completion_tokens` is {b}: use one of them"))
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
    let top_k = top_k(fields)?;
    let frequency_penalty = fields.number("frequency_penalty", PENALTY)?;
    let sampling = Sampling {
        temperature: temperature.unwrap_or(usual.temperature),
        top_p: top_p.unwrap_or(usual.top_p),
        top_k: top_k.unwrap_or(usual.top_k),
        open: OpenSampling {
            temperature: temperature.is_none(),
            top_p: top_p.is_none(),
            top_k: top_k.is_none(),
            frequency_penalty: frequency_penalty.is_none(),
        },
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(usual.min_p),
        presence_penalty: fields.number("presence_penalty", PENALTY)?.unwrap_or(usual.presence_penalty),
        frequency_penalty: frequency_penalty.unwrap_or(usual.frequency_penalty),
        logit_bias: logit_bias(fields, served)?,
    };
    if sampling.top_p <= 0.0 {
        return Err("`top_p` must be above 0: to select the most likely token, set `temperature` to 0".into());
    }
    Ok(sampling)
}

/// 0 turns it off, and so does vLLM's -1.
fn top_k(fields: &mut Fields) -> Result<Option<u32>, Fault> {
    if fields.get("top_k").and_then(Value::as_i64) == Some(-1) {
        fields.take("top_k");
        return Ok(Some(0));
    }
    Ok(fields.integer("top_k", 0..=u64::from(u32::MAX))?.map(|n| n as u32))
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
                Err(format!("`logit_bias` has the key {id:?}, which is not a token id below {limit}"))
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
            return Err(format!("`stop` must be a string or an array of strings, not {}", shown(&other)));
        }
    };
    if items.len() > STOPS_MAX {
        return Err(format!("`stop` has {} strings; at most {STOPS_MAX} are allowed", items.len()));
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
        Endpoint::ChatCompletions | Endpoint::Responses => {
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
        return Err("`stream` cannot be true in a batch".into());
    }
    let Some(mut options) = fields.object("stream_options")? else { return Ok((stream, false)) };
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    if options.boolean("include_obfuscation")? == Some(true) {
        return Err("`stream_options.include_obfuscation` is not supported: remove it".into());
    }
    options.finish("`stream_options`")?;
    if !stream {
        return Err("`stream_options` needs `stream` to be true".into());
    }
    Ok((stream, include_usage))
}
