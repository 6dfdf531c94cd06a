//! How many tokens a file will take: counted on a sample of its lines, with an interval; output lengths from the
//! limits and from what has been seen.

pub use ternfleet_proto::message::LineSize as SampledLine;

use super::lengths::{self, History, Ratios};

/// What is known of a fleet's work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lengths {
    /// How long outputs turned out.
    pub history: History,
    /// Limit of a line without one.
    pub context_tokens: u32,
    /// Generated tokens that take as long as one prompt token: decode over prefill speed.
    pub prompt_weight: f64,
}

impl Lengths {
    /// The most tokens that a line's output may have.
    pub(super) fn limit(&self, line: &SampledLine) -> f64 {
        f64::from(line.max_tokens.unwrap_or(self.context_tokens))
    }

    pub(super) fn ratios(&self, model: Option<&str>, line: &SampledLine) -> Option<&Ratios> {
        self.history.of(model, line.endpoint, line.max_tokens.is_some())
    }

    /// What its prompt takes, in generated tokens.
    pub(super) fn reading(&self, line: &SampledLine) -> f64 {
        f64::from(line.prompt_tokens) * self.prompt_weight
    }
}

/// Two standard deviations: the interval that is shown.
const INTERVAL: f64 = 1.96;

/// Work in generated tokens: what the planner's speeds count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    pub tokens: f64,
    pub sd: f64,
}

impl Estimate {
    pub fn low(&self) -> f64 {
        (self.tokens - INTERVAL * self.sd).max(0.0)
    }

    pub fn high(&self) -> f64 {
        self.tokens + INTERVAL * self.sd
    }
}

/// Of the spread of one output, this share is the doubt about the mean of a whole batch: its jobs are alike.
pub(super) const COMMON_RATIO: f64 = 1.0 / 3.0;

/// Scales the sample up to `lines`, of which `model` is named by all or by none. The spread has two parts: that of the
/// sample's mean (none when every line was counted), and that of the lengths of outputs, of which the doubt about their
/// common mean does not average out.
pub fn estimate(sample: &[SampledLine], lines: u64, model: Option<&str>, lengths: &Lengths) -> Estimate {
    if sample.is_empty() || lines == 0 {
        return Estimate::default();
    }
    let (count, all) = (sample.len() as f64, lines as f64);
    let parts: Vec<(f64, f64)> = sample
        .iter()
        .map(|line| {
            let (mean, sd) = lengths::moments(lengths.ratios(model, line));
            let limit = lengths.limit(line);
            (lengths.reading(line) + limit * mean, limit * sd)
        })
        .collect();
    let mean = parts.iter().map(|part| part.0).sum::<f64>() / count;
    let variance = parts.iter().map(|part| (part.0 - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    // The finite population correction: a sample of all lines leaves no doubt.
    let uncounted = ((all - count) / (all - 1.0).max(1.0)).max(0.0);
    let sampling_sd = all * (variance / count * uncounted).sqrt();
    let lengths_sd = all * parts.iter().map(|part| part.1).sum::<f64>() / count;
    let (common_sd, own_sd) = (lengths_sd * COMMON_RATIO, lengths_sd / all.sqrt());
    Estimate { tokens: all * mean, sd: (sampling_sd.powi(2) + common_sd.powi(2) + own_sd.powi(2)).sqrt() }
}
