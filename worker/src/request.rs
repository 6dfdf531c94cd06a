//! The one place where a message of the wire becomes a request of the engine.

use ternfleet_engine::{Refused, Request, Sampling};
use ternfleet_proto::message::{
    self as wire, Constraint, Failure, FailureCode, Finish, Generation, Prompt, ToolChoice, Tools,
};
use ternfleet_text::ToolFormat;
use ternfleet_text::constraint::{Callable, Calls, Grammar};

use crate::asked::Asked;
use crate::core::Kept;
use crate::language::Language;
use crate::transcript::Transcript;

/// The most alternatives that are reported for a token.
pub const TOP_LOGPROBS_MAX: u8 = 20;

/// A generation, ready to run.
#[derive(Debug)]
pub struct Prepared {
    /// One a choice, in the order of their numbers.
    pub choices: Vec<PreparedChoice>,
    /// All prompts together, each counted once.
    pub prompt_tokens: u32,
    /// Kept output that is used.
    pub kept: u32,
    pub stream: bool,
    /// The caller wants the ids of prompts and outputs.
    pub token_ids: bool,
    /// What its answer is a function of, besides model and numerics.
    pub asked: Asked,
}

/// One of the answers.
#[derive(Debug)]
pub struct PreparedChoice {
    pub request: Request,
    pub transcript: Transcript,
    /// Nothing is to be generated.
    pub done: Option<Finish>,
    /// Nothing is to be generated; the prompt's scores alone are wanted.
    pub scores_only: bool,
    /// The choice before it that has the same prompt.
    pub first: usize,
}

/// Turns a generation into requests that continue from `kept`. `context` is the number of positions that a sequence
/// may have. The failure is permanent.
pub fn prepare(
    generation: &Generation,
    kept: Kept,
    language: &Language,
    defaults: &ternfleet_text::Sampling,
    context: usize,
) -> Result<Prepared, Failure> {
    if generation.logprobs.is_some_and(|count| count > TOP_LOGPROBS_MAX) {
        return Err(Failure {
            code: FailureCode::InvalidRequest,
            message: format!("logprobs is above {TOP_LOGPROBS_MAX}: request fewer"),
        });
    }
    let n_choices = generation.prompt.choices() as usize;
    // The prompt's scores are in no checkpoint: where they are wanted, everything is computed again.
    let scored = generation.echo && generation.logprobs.is_some();
    let usable = kept.by_choice(n_choices, generation.logprobs.is_some()).filter(|_| !scored);
    let prepare = |outputs| prepare_with(generation, outputs, language, defaults, context);
    if let Some(prepared) = prepare(usable.unwrap_or_default())? {
        return Ok(prepared);
    }
    let afresh = prepare(Vec::new())?;
    Ok(afresh.expect("because no output continues beyond its end where none is kept"))
}

/// `None` when a kept output continues beyond the end of this request.
fn prepare_with(
    generation: &Generation,
    outputs: Vec<Vec<u32>>,
    language: &Language,
    defaults: &ternfleet_text::Sampling,
    context: usize,
) -> Result<Option<Prepared>, Failure> {
    let kept = outputs.iter().map(|ids| ids.len() as u32).sum();
    let mut outputs = outputs.into_iter();
    let each = generation.prompt.each();
    let encoded: Vec<Vec<u32>> =
        each.iter().map(|prompt| language.encode(prompt)).collect::<Result<_, _>>()?;
    let mut prepared = Prepared {
        choices: Vec::new(),
        prompt_tokens: encoded.iter().map(|ids| ids.len() as u32).sum(),
        kept,
        stream: generation.stream,
        token_ids: generation.token_ids,
        asked: Asked::of(
            generation,
            &encoded,
            &resolved(&generation.sampling, defaults),
            language.stop_ids(),
        ),
    };
    for (prompt, ids) in each.iter().zip(encoded) {
        let first = prepared.choices.len();
        for number in 0..generation.prompt.n() {
            let output = outputs.next().unwrap_or_default();
            let made = choice(generation, prompt, ids.clone(), output, language, defaults, context)?;
            let Some(made) = made else { return Ok(None) };
            prepared.choices.push(PreparedChoice {
                request: Request { choice: number, ..made.request },
                first,
                ..made
            });
        }
    }
    Ok(Some(prepared))
}

fn choice(
    generation: &Generation,
    prompt: &Prompt,
    ids: Vec<u32>,
    generated: Vec<u32>,
    language: &Language,
    defaults: &ternfleet_text::Sampling,
    context: usize,
) -> Result<Option<PreparedChoice>, Failure> {
    let room = context.saturating_sub(ids.len());
    let max_new_tokens = generation.max_tokens.map_or(room, |most| most as usize);
    if room == 0 || max_new_tokens > room {
        return Err(Failure {
            code: FailureCode::PromptTooLong,
            message: format!(
                "the prompt has {} tokens and up to {} will be generated, but the model's context has \
                 {context}: shorten the prompt or lower max_tokens",
                ids.len(),
                generation.max_tokens.map_or("some".to_owned(), |most| most.to_string()),
            ),
        });
    }
    let echo = match (prompt, generation.echo) {
        (Prompt::Text(text), true) => text.clone(),
        (Prompt::Tokens(ids), true) => language.decode(ids),
        _ => String::new(),
    };
    let tools = generation.prompt.tools().map(|tools| language.tools().map(|format| (tools, format)));
    let tools = tools.transpose()?;
    let mut transcript = Transcript::new(&generation.stop, echo, tools.map(|(_, format)| format));
    for &id in &generated {
        if transcript.stopped() {
            return Ok(None);
        }
        transcript.push(language, id);
    }
    let stop_ids = language.stop_ids().to_vec();
    let prompt_logprobs = generation.logprobs.filter(|_| generation.echo);
    let scores_only = max_new_tokens == 0 && prompt_logprobs.is_some();
    let done = (max_new_tokens == 0 && !scores_only).then_some(Finish::Length);
    // Output that a stop string has ended is computed again as it is, and no further.
    let max_new_tokens = if transcript.stopped() { generated.len() } else { max_new_tokens };
    let shape = generation.constraint.as_ref().map(grammar);
    let held_to = match tools {
        Some((tools, format)) => Some(Grammar::Calls(calls(tools, format, shape))),
        None => shape,
    };
    let constraint = held_to.map(|grammar| language.constraint(grammar));
    let sampling = resolved(&generation.sampling, defaults);
    Ok(Some(PreparedChoice {
        done,
        transcript,
        scores_only,
        first: 0,
        request: Request {
            prompt: ids,
            generated,
            // An engine that generates nothing has nothing to do; the one token is dropped.
            max_new_tokens: max_new_tokens.max(usize::from(scores_only)),
            sampling: Sampling {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                logit_bias: sampling.logit_bias,
            },
            seed: generation.seed,
            choice: 0,
            stop_ids,
            top_logprobs: generation.logprobs,
            prompt_logprobs,
            speculate: true,
            constraint: constraint.transpose()?,
        },
    }))
}

fn grammar(constraint: &Constraint) -> Grammar {
    match constraint.clone() {
        Constraint::JsonSchema(text) => Grammar::JsonSchema(text),
        Constraint::JsonObject => Grammar::JsonObject,
        Constraint::Regex(text) => Grammar::Regex(text),
        Constraint::Choice(texts) => Grammar::Choice(texts),
        Constraint::Lark(text) => Grammar::Lark(text),
    }
}

/// What may be called, and the JSON that a text in place of calls must be.
fn calls(tools: &Tools, format: ToolFormat, text: Option<Grammar>) -> Calls {
    let function =
        |one: &wire::Function| Callable { name: one.name.clone(), parameters: one.parameters.clone() };
    let one = matches!(tools.choice, ToolChoice::Function(_));
    Calls {
        format,
        functions: tools.callable().map(function).collect(),
        must: tools.choice != ToolChoice::Auto,
        several: tools.parallel && !one,
        text: text.map(Box::new),
    }
}

/// Parameters that the request does not set have the defaults of the model's manifest, if it has any.
fn resolved(asked: &wire::Sampling, defaults: &ternfleet_text::Sampling) -> wire::Sampling {
    let mut sampling = asked.clone();
    if asked.open.temperature {
        sampling.temperature = defaults.temperature.unwrap_or(asked.temperature);
    }
    if asked.open.top_p {
        sampling.top_p = defaults.top_p.unwrap_or(asked.top_p);
    }
    if asked.open.top_k {
        sampling.top_k = defaults.top_k.unwrap_or(asked.top_k);
    }
    if asked.open.frequency_penalty {
        sampling.frequency_penalty = defaults.frequency_penalty.unwrap_or(asked.frequency_penalty);
    }
    sampling
}

/// What a refusal of the engine means for the job; `None` if it is worth trying again.
pub fn failure_of(refused: &Refused) -> Option<Failure> {
    let code = match refused {
        Refused::TooLong { .. } | Refused::TooLarge { .. } => FailureCode::PromptTooLong,
        Refused::Busy { .. } => return None,
        _ => FailureCode::InvalidRequest,
    };
    Some(Failure { code, message: refused.to_string() })
}

#[cfg(test)]
mod tests;
