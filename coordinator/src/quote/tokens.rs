//! How many tokens a file will take: counted on a sample of its lines, with an interval; output lengths from the
//! limits and from what has been seen.

pub use ternfleet_proto::message::LineSize as SampledLine;

/// What is known of outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lengths {
    /// Mean and standard deviation of output ÷ limit over finished jobs; `None` before any was seen.
    pub seen_ratio: Option<(f64, f64)>,
    /// Limit of a line without one.
    pub context_tokens: u32,
    /// Generated tokens that take as long as one prompt token: decode over prefill speed.
    pub prompt_weight: f64,
}

/// Before any output was seen, outputs are taken to be as long as their limits allow, give or take this share.
const UNSEEN: (f64, f64) = (1.0, 0.15);
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

/// Scales the sample up to `lines`. The spread has two parts: that of the sample's mean (none when every line was
/// counted), and that of the lengths of outputs, of which the doubt about their common mean does not average out.
pub fn estimate(sample: &[SampledLine], lines: u64, lengths: &Lengths) -> Estimate {
    if sample.is_empty() || lines == 0 {
        return Estimate::default();
    }
    let (ratio, ratio_sd) = lengths.seen_ratio.unwrap_or(UNSEEN);
    let limit = |line: &SampledLine| f64::from(line.max_tokens.unwrap_or(lengths.context_tokens));
    let work: Vec<f64> = sample
        .iter()
        .map(|line| f64::from(line.prompt_tokens) * lengths.prompt_weight + limit(line) * ratio)
        .collect();
    let (count, all) = (sample.len() as f64, lines as f64);
    let mean = work.iter().sum::<f64>() / count;
    let variance = work.iter().map(|tokens| (tokens - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    // The finite population correction: a sample of all lines leaves no doubt.
    let uncounted = ((all - count) / (all - 1.0).max(1.0)).max(0.0);
    let sampling_sd = all * (variance / count * uncounted).sqrt();
    let limits = all * sample.iter().map(limit).sum::<f64>() / count;
    // Jobs of one batch are alike: their common mean is off by about a third of a job's own spread.
    let common_sd = limits * ratio_sd / 3.0;
    let own_sd = limits * ratio_sd / all.sqrt();
    Estimate { tokens: all * mean, sd: (sampling_sd.powi(2) + common_sd.powi(2) + own_sd.powi(2)).sqrt() }
}
