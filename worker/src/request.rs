//! The one place where a message of the wire becomes a request of the engine.

use ternfleet_engine::{Refused, Request, Sampling};
use ternfleet_proto::message::{self as wire, Constraint, Failure, FailureCode, Finish, Generation, Prompt};
use ternfleet_text::constraint::Grammar;

use crate::core::Kept;
use crate::language::Language;
use crate::transcript::Transcript;

/// The most alternatives that are reported for a token.
pub const TOP_LOGPROBS_MAX: u8 = 20;

/// A generation, ready to run.
#[derive(Debug)]
pub struct Prepared {
    pub request: Request,
    pub transcript: Transcript,
    /// Kept output that is used.
    pub kept: usize,
    /// The kept output is whole already: nothing is left to run.
    pub done: Option<Finish>,
    pub stream: bool,
}

/// Turns a generation into a request that goes on from `kept`. `context` is the number of positions that a sequence
/// may have. The failure is permanent.
pub fn prepare(
    generation: &Generation,
    kept: Kept,
    language: &Language,
    defaults: &ternfleet_text::Sampling,
    context: usize,
) -> Result<Prepared, Failure> {
    let prompt = language.encode(&generation.prompt)?;
    let room = context.saturating_sub(prompt.len());
    let max_new_tokens = generation.max_tokens.map_or(room, |most| most as usize);
    if room == 0 || max_new_tokens > room {
        return Err(Failure {
            code: FailureCode::PromptTooLong,
            message: format!(
                "the prompt has {} tokens and {} are to be generated, but the model's context holds {context}: \
                 shorten the prompt or lower max_tokens",
                prompt.len(),
                generation.max_tokens.map_or("some".to_owned(), |most| most.to_string()),
            ),
        });
    }
    if generation.logprobs.is_some_and(|count| count > TOP_LOGPROBS_MAX) {
        return Err(Failure {
            code: FailureCode::InvalidRequest,
            message: format!("logprobs is above {TOP_LOGPROBS_MAX}: ask for fewer"),
        });
    }
    // Without the log-probabilities of the kept tokens the answer would lack them: then it starts over.
    let usable = generation.logprobs.is_none() || kept.logprobs.len() == kept.ids.len();
    let generated = if usable { kept.ids } else { Vec::new() };

    let echo = match (&generation.prompt, generation.echo) {
        (_, false) | (Prompt::Chat(_), true) => String::new(),
        (Prompt::Text(text), true) => text.clone(),
        (Prompt::Tokens(ids), true) => language.decode(ids),
    };
    let mut transcript = Transcript::new(&generation.stop, echo);
    for &id in &generated {
        transcript.push(language, id);
    }
    let stop_ids = language.stop_ids().to_vec();
    let done = if transcript.stopped() || generated.last().is_some_and(|last| stop_ids.contains(last)) {
        Some(Finish::Stop)
    } else if generated.len() >= max_new_tokens {
        Some(Finish::Length)
    } else {
        None
    };
    let constraint = generation.constraint.as_ref().map(grammar).map(|grammar| language.constraint(grammar));
    let sampling = resolved(&generation.sampling, defaults);
    Ok(Prepared {
        kept: generated.len(),
        done,
        transcript,
        stream: generation.stream,
        request: Request {
            prompt,
            generated,
            max_new_tokens,
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
            speculate: true,
            constraint: constraint.transpose()?,
        },
    })
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

/// What the caller left open is as the model's manifest says, as far as it says anything.
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
