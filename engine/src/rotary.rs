//! Rotary positions: cosines and sines of every position, as the architecture and the file stretch them.

use crate::gguf::{Hyper, Scaling};
use crate::math;

/// Cosines and sines, (context, head_dim / 2) each.
#[derive(Debug)]
pub(crate) struct Rotary {
    pub(crate) half: usize,
    cos: Box<[f32]>,
    sin: Box<[f32]>,
}

impl Rotary {
    /// Frequencies and angles are rounded to f32 as the reference implementation rounds them; the functions are exact.
    /// `factors` are what the file divides the frequencies by.
    pub(crate) fn new(hyper: &Hyper, factors: Option<&[f32]>, context: usize) -> Rotary {
        let half = hyper.head_dim / 2;
        let log_theta = math::ln(f64::from(hyper.rope_theta));
        let keep = kept_shares(hyper, log_theta);
        let frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let plain = math::exp(-log_theta * (2 * i) as f64 / hyper.head_dim as f64);
                let stretched = match hyper.rope_scaling {
                    Scaling::None => plain,
                    Scaling::Yarn { factor, .. } => {
                        plain * keep(i) + plain / f64::from(factor) * (1.0 - keep(i))
                    }
                };
                (stretched / factors.map_or(1.0, |factors| f64::from(factors[i]))) as f32
            })
            .collect();
        // Queries and keys both grow, so scores grow by its square.
        let growth = match hyper.rope_scaling {
            Scaling::None => 1.0,
            Scaling::Yarn { factor, .. } => (1.0 + 0.1 * math::ln(f64::from(factor))) as f32,
        };
        let mut cos = Vec::with_capacity(context * half);
        let mut sin = Vec::with_capacity(context * half);
        for position in 0..context {
            for frequency in &frequencies {
                let (sine, cosine) = math::sin_cos(f64::from(position as f32 * frequency));
                cos.push(cosine as f32 * growth);
                sin.push(sine as f32 * growth);
            }
        }
        Rotary { half, cos: cos.into(), sin: sin.into() }
    }

    /// Positions that it covers.
    pub(crate) fn context(&self) -> usize {
        self.cos.len() / self.half
    }

    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// YaRN: the share of frequency `i` that is kept, from 1 for fast ones to 0 for those that turn less than once in the
/// original context (Peng et al., "YaRN", 2023; the bounds are rounded as everywhere).
fn kept_shares(hyper: &Hyper, log_theta: f64) -> impl Fn(usize) -> f64 {
    const FAST: f64 = 32.0;
    const SLOW: f64 = 1.0;
    let dim = hyper.head_dim as f64;
    let original = match hyper.rope_scaling {
        Scaling::None => 1.0,
        Scaling::Yarn { original_context, .. } => original_context as f64,
    };
    let turning =
        |turns: f64| dim * math::ln(original / (2.0 * std::f64::consts::PI * turns)) / (2.0 * log_theta);
    let low = turning(FAST).floor().max(0.0);
    let high = turning(SLOW).ceil().min(dim - 1.0);
    let high = if high == low { low + 0.001 } else { high };
    move |i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
}
