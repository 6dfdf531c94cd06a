//! Continuations scored by log-probability: last words and multiple choice, as the LM Evaluation Harness does.

use ternfleet_text::Tokenizer;

use super::formats::Question;
use super::{Error, best, log_sum_exp};
use crate::Engine;

/// A context and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// What comes first; may be empty.
    pub context: String,
    /// What is scored; begins with its own space where there is one.
    pub text: String,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Sum of ln p over its tokens.
    pub log_probability: f64,
    /// Its tokens.
    pub n_tokens: usize,
    /// Whether each of them is the model's first choice.
    pub greedy: bool,
}

impl Continuation {
    /// Scores it. The whole is tokenized at once and cut where the context's own tokens end, as the harness
    /// does it; spaces at the context's end belong to the continuation. What is longer than the model's context
    /// loses its beginning.
    pub fn score(&self, engine: &mut Engine, tokenizer: &Tokenizer) -> Result<Score, Error> {
        let kept = self.context.trim_end();
        let whole = format!("{}{}", self.context, self.text);
        let adds_bos = tokenizer.adds_bos();
        let mut n_context = tokenizer.encode(kept, adds_bos)?.len();
        let mut ids = tokenizer.encode(&whole, adds_bos)?;
        if n_context == 0 || ids.len() <= n_context {
            let reason = format!("'{}' adds no token to its context, or has none before it", self.text);
            return Err(Error::Nothing(reason));
        }
        // The last token is only predicted, so one more than the context fits.
        let excess = ids.len().saturating_sub(engine.info().max_context + 1);
        if excess >= n_context {
            return Err(Error::Nothing(format!(
                "a continuation of {} tokens is too long",
                ids.len() - n_context
            )));
        }
        ids.drain(..excess);
        n_context -= excess;

        let vocab = engine.info().hyper.vocab;
        let logits = engine.logits(&ids[..ids.len() - 1])?;
        let mut score = Score { log_probability: 0.0, n_tokens: ids.len() - n_context, greedy: true };
        for (row, &id) in logits.chunks_exact(vocab).skip(n_context - 1).zip(&ids[n_context..]) {
            score.log_probability += f64::from(row[id as usize]) - log_sum_exp(row);
            score.greedy &= best(row) == id as usize;
        }
        Ok(score)
    }
}

/// Running result over passages whose last word is to be guessed (LAMBADA).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LastWords {
    /// Passages.
    pub n: usize,
    /// Those whose last word the model's first choices spell.
    pub n_right: usize,
    /// Sum of ln p of the last words.
    pub log_probability: f64,
}

impl LastWords {
    /// Scores one passage: its last word, with the space before it, after all the rest.
    pub fn add(&mut self, engine: &mut Engine, tokenizer: &Tokenizer, passage: &str) -> Result<(), Error> {
        let passage = passage.trim();
        let Some((context, word)) = passage.rsplit_once(' ') else {
            return Err(Error::Nothing(format!("'{passage}' has one word only")));
        };
        let score =
            Continuation { context: context.into(), text: format!(" {word}") }.score(engine, tokenizer)?;
        self.n += 1;
        self.n_right += usize::from(score.greedy);
        self.log_probability += score.log_probability;
        Ok(())
    }

    /// Share of right guesses.
    pub fn accuracy(&self) -> f64 {
        self.n_right as f64 / self.n as f64
    }

    /// exp of the mean −ln p of a last word.
    pub fn perplexity(&self) -> f64 {
        (-self.log_probability / self.n as f64).exp()
    }
}

/// Running result over multiple-choice questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choices {
    /// Questions.
    pub n: usize,
    /// Right by the largest ln p.
    pub n_right: usize,
    /// Right by the largest ln p a character (`acc_norm`): long answers are not at a disadvantage.
    pub n_right_by_length: usize,
}

impl Choices {
    /// Scores one question.
    pub fn add(
        &mut self,
        engine: &mut Engine,
        tokenizer: &Tokenizer,
        question: &Question,
    ) -> Result<(), Error> {
        let mut scores = Vec::with_capacity(question.choices.len());
        for choice in &question.choices {
            let log_probability = choice.score(engine, tokenizer)?.log_probability;
            // The harness divides by the answer's length without the space that joins it to the question.
            let length = choice.text.trim_start().chars().count().max(1);
            scores.push((log_probability, log_probability / length as f64));
        }
        let largest = |value: fn(&(f64, f64)) -> f64| {
            (0..scores.len()).fold(
                0,
                |best, index| if value(&scores[index]) > value(&scores[best]) { index } else { best },
            )
        };
        self.n += 1;
        self.n_right += usize::from(largest(|score| score.0) == question.answer);
        self.n_right_by_length += usize::from(largest(|score| score.1) == question.answer);
        Ok(())
    }

    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.n_right as f64 / self.n as f64
    }

    /// The same by ln p a character.
    pub fn accuracy_by_length(&self) -> f64 {
        self.n_right_by_length as f64 / self.n as f64
    }
}
