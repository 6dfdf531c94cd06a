//! How long jobs turn out: what they take on average, and how much of its limit an output uses.

use ternfleet_proto::message::Input;

use super::event::{Answer, Task, Verdict};
use crate::quote::History;

/// Newest jobs weigh this much.
const SHARE: f64 = 0.01;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lengths {
    /// Tokens of a job as they turn out, prompt and output.
    pub(super) mean_job_tokens: f64,
    pub(super) outputs: History,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { mean_job_tokens: 128.0, outputs: History::default() }
    }
}

impl Lengths {
    /// `context_tokens` limits an output whose request names no limit.
    pub(super) fn learn(&mut self, answer: &Answer, task: Option<&Task>, context_tokens: u32) {
        let Verdict::Good { .. } = answer.verdict else { return };
        let made = f64::from(answer.prompt_tokens + answer.completion_tokens);
        self.mean_job_tokens += SHARE * (made - self.mean_job_tokens);
        let Some(task) = task else { return };
        let Input::Inline(generation) = &task.input else { return };
        let limited = generation.max_tokens.map(|each| each.saturating_mul(generation.prompt.choices()));
        let limit = limited.unwrap_or(context_tokens);
        if limit > 0 {
            let ratio = f64::from(answer.completion_tokens) / f64::from(limit);
            let model = answer.model.as_deref();
            self.outputs.learn(model, task.line.endpoint, limited.is_some(), ratio);
        }
    }
}
