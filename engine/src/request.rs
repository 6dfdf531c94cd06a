//! What goes into the engine and what comes out of it: requests, events, statistics. Token ids only.
//!
//! Not here: text, stop strings (the caller matches those and cancels), wire messages.

use std::sync::Arc;
use std::time::Duration;
use ternfleet_text::constraint::{Constraint, DeadEnd};

/// One sequence's name, unique for the life of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, at least one; nothing is added to them.
    pub prompt: Vec<u32>,
    /// Output kept from an earlier run, to continue from. It counts against `max_new_tokens`, and is not reported again.
    pub generated: Vec<u32>,
    /// Tokens to generate in all, those of `generated` included.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// Which of several answers to one prompt this is: part of the random counter.
    pub choice: u32,
    /// Generation ends after one of these; the stop token itself is reported.
    pub stop_ids: Vec<u32>,
    /// Report the log-probability of each token and of this many best ones, at most 20.
    pub top_logprobs: Option<u8>,
    /// Report, once the prompt is computed, the log-probability of each of its tokens but the first, and of this many
    /// best ones at its place. Nothing of the prompt is taken from the prefix cache then.
    pub prompt_logprobs: Option<u8>,
    /// Guess ahead for this sequence, where the engine does that. Off for measuring.
    pub speculate: bool,
    /// What the output must belong to, by the vocabulary of this model. Where it is at its end, the output ends.
    pub constraint: Option<Arc<Constraint>>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            prompt: Vec::new(),
            generated: Vec::new(),
            max_new_tokens: 16,
            sampling: Sampling::default(),
            seed: 0,
            choice: 0,
            stop_ids: Vec::new(),
            top_logprobs: None,
            prompt_logprobs: None,
            speculate: true,
            constraint: None,
        }
    }
}

/// How a token is drawn from the scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the best token, the lowest id among equals.
    pub temperature: f32,
    /// Keep this many best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the best tokens up to this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Subtracted once from the score of every token generated before.
    pub presence_penalty: f32,
    /// Subtracted from the score of a token for each time that it was generated before.
    pub frequency_penalty: f32,
    /// Added to the scores of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// The best token each time.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

/// What a step produced.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Of the prompt's tokens from the second on; comes before the first token, where the request asks for it.
    Prompt {
        sequence: SequenceId,
        logprobs: Vec<TokenLogprob>,
    },
    Token {
        sequence: SequenceId,
        token: u32,
        logprob: Option<TokenLogprob>,
    },
    Finished {
        sequence: SequenceId,
        reason: StopReason,
        usage: Usage,
    },
}

/// Natural logarithms of probabilities under the softmax of the scores, before temperature, truncation and penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Of the token that was drawn.
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// `max_new_tokens` were generated.
    Length,
    /// A stop id was generated, or the token that ends a constrained output.
    StopToken,
    /// The context is full.
    Context,
    /// The caller asked for it.
    Cancelled,
    /// The constraint allows nothing more.
    DeadEnd(DeadEnd),
    /// The kept output is not what this engine draws: another model's, another request's, or forged.
    KeptDiffers,
    /// The scores were no numbers: weights that overflow, or a machine that computes wrongly. No token can be drawn.
    NotFinite,
}

/// What a sequence took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// All output, that of earlier runs included.
    pub completion_tokens: usize,
    /// Output kept from an earlier run: computed again, not generated again.
    pub resumed_tokens: usize,
    /// Prompt tokens that the prefix cache saved.
    pub cached_tokens: usize,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepStats {
    /// Positions computed that were known before.
    pub prefill_tokens: usize,
    /// Tokens produced, accepted guesses included.
    pub decode_tokens: usize,
    /// Sequences that took part.
    pub sequences: usize,
    pub speculation: SpeculationCounters,
    pub elapsed: Duration,
}

/// Tokens that speculation guessed, and how many of them were what was then drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpeculationCounters {
    pub drafted: u64,
    pub accepted: u64,
}
