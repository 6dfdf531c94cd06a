//! Rotary positions: cosines and sines of every position, as the architecture and the file stretch them.
//!
//! They are computed a page of positions at a time, when the first of them is reached: a model may announce a context of a
//! million positions, whose tables would take a gigabyte, and be asked for a thousand.

use crate::gguf::{Hyper, Scaling};
use crate::kernel::PAGE;
use crate::math;
use std::sync::OnceLock;

/// Cosines and sines, (context, head_dim / 2) each.
#[derive(Debug)]
pub(crate) struct Rotary {
    context: usize,
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    growth: f32,
    pages: Box<[OnceLock<Page>]>,
}

/// Those of 128 positions, (128, head_dim / 2) each.
#[derive(Debug)]
struct Page {
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
        let pages = (0..context.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Rotary { context, frequencies, growth, pages }
    }

    /// Positions that it covers.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let page = self.pages[position / PAGE].get_or_init(|| self.page(position / PAGE));
        let range = position % PAGE * half..(position % PAGE + 1) * half;
        (&page.cos[range.clone()], &page.sin[range])
    }

    fn page(&self, index: usize) -> Page {
        let angles = (index * PAGE..(index + 1) * PAGE)
            .flat_map(|position| self.frequencies.iter().map(move |frequency| position as f32 * frequency));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| {
                let (sine, cosine) = math::sin_cos(f64::from(angle));
                (sine as f32 * self.growth, cosine as f32 * self.growth)
            })
            .unzip();
        Page { cos: cos.into(), sin: sin.into() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_made_when_their_positions_are_reached() {
        let hyper = Hyper { head_dim: 256, ..crate::kv::tests::hyper() };
        let rotary = Rotary::new(&hyper, None, 1 << 20);
        assert_eq!(rotary.context(), 1 << 20);
        assert_eq!((rotary.at(0).0[5], rotary.at(0).1[5]), (1.0, 0.0));
        let (sine, cosine) = math::sin_cos(f64::from((1 << 20) - 1));
        assert_eq!(
            (rotary.at((1 << 20) - 1).1[0], rotary.at((1 << 20) - 1).0[0]),
            (sine as f32, cosine as f32)
        );
        let made = rotary.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!((made, rotary.pages.len()), (2, 1 << 13));
    }
}
