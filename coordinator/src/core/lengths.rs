//! How long jobs turn out: what they take on average, and how much of its limit an output uses.

use ternfleet_proto::message::Input;

use super::event::{Answer, Task, Verdict};

/// Newest jobs weigh this much.
const SHARE: f64 = 0.01;
/// The ratio counts once so many jobs are answered.
const JOBS_SEEN: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Lengths {
    /// Tokens of a job as they turn out, prompt and output.
    pub(super) mean_job_tokens: f64,
    output_ratio: OutputRatio,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { mean_job_tokens: 128.0, output_ratio: OutputRatio::default() }
    }
}

/// Output ÷ limit over finished jobs, with its spread: an average that forgets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct OutputRatio {
    count: u64,
    mean: f64,
    variance: f64,
}

impl Lengths {
    pub(super) fn learn(&mut self, answer: &Answer, task: Option<&Task>) {
        let Verdict::Good { .. } = answer.verdict else { return };
        let made = f64::from(answer.prompt_tokens + answer.completion_tokens);
        self.mean_job_tokens += SHARE * (made - self.mean_job_tokens);
        let limit = task.and_then(|task| match &task.input {
            Input::Inline(generation) => generation.max_tokens,
            Input::Object(_) => None,
        });
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            self.output_ratio.learn((f64::from(answer.completion_tokens) / f64::from(limit)).min(1.0));
        }
    }

    /// Mean and spread, once enough is seen.
    pub(super) fn output_ratio(&self) -> Option<(f64, f64)> {
        let ratio = &self.output_ratio;
        (ratio.count >= JOBS_SEEN).then(|| (ratio.mean, ratio.variance.sqrt().max(0.02)))
    }
}

impl OutputRatio {
    fn learn(&mut self, ratio: f64) {
        self.count += 1;
        // The first ones count in full, so that the mean does not lean on the very first.
        let share = SHARE.max(1.0 / self.count as f64);
        let difference = ratio - self.mean;
        self.mean += share * difference;
        self.variance = (1.0 - share) * (self.variance + share * difference * difference);
    }
}
