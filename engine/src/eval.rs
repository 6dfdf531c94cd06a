//! How good a model's predictions are: perplexity, last words, multiple choice, and how far two engines'
//! predictions differ. `ternfleet eval` prints the results.
//!
//! The measures follow the harnesses whose figures are published, step by step, so that figures compare:
//! llama.cpp's perplexity (bitnet.cpp reports WikiText-2 with it) and the LM Evaluation Harness. They read
//! logits of the full head; sums are in f64 with the platform's `exp` and `ln`, so the last digits of a
//! result are not covered by the engine's promise of equal bits.

mod divergence;
mod formats;
mod perplexity;
mod scoring;

pub use self::divergence::{Divergence, divergence};
pub use self::formats::{Format, Question, UnknownFormat};
pub use self::perplexity::{Perplexity, Sliding, Windows, perplexity, sliding_perplexity};
pub use self::scoring::{Choices, Continuation, LastWords, Score};

/// Why an evaluation ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine refused a sequence.
    #[error(transparent)]
    Refused(#[from] crate::Refused),
    /// A text could not be tokenized.
    #[error(transparent)]
    Text(#[from] ternfleet_text::Error),
    /// There is nothing to measure.
    #[error("{0}")]
    Nothing(String),
    /// A line of the data is not what its format says.
    #[error("line {line} of the data: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is missing or wrong.
        reason: String,
    },
}

/// ln Σ exp over one row of logits: what turns a logit into a log-probability.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// The best token of a row; the lowest id among equals.
fn best(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best })
}
