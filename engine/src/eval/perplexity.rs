//! Perplexity by windows, as llama.cpp measures it.

use super::{Error, log_sum_exp};
use crate::Engine;

/// How a long text is cut up. Windows do not overlap; in each the first tokens only give context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens in a window, the begin-of-text token included.
    pub tokens: usize,
    /// The first position whose prediction is scored.
    pub first_scored: usize,
}

impl Default for Windows {
    /// llama.cpp's: windows of 512, of which the second half is scored.
    fn default() -> Self {
        Self { tokens: 512, first_scored: 256 }
    }
}

/// The result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Predictions scored.
    pub n_scored: u64,
    /// Windows read.
    pub n_windows: usize,
    /// Sum of −ln p over the scored predictions.
    pub nll: f64,
    /// Sum of its squares.
    nll_squared: f64,
    /// Bytes of text that the scored tokens stand for.
    pub n_bytes: u64,
}

impl Perplexity {
    /// exp of the mean −ln p.
    pub fn value(&self) -> f64 {
        (self.nll / self.n_scored as f64).exp()
    }

    /// Standard error of [`Self::value`], taking predictions as independent.
    pub fn standard_error(&self) -> f64 {
        let n = self.n_scored as f64;
        let mean = self.nll / n;
        let variance = (self.nll_squared / n - mean * mean).max(0.0);
        (variance / (n - 1.0).max(1.0)).sqrt() * self.value()
    }

    /// Bits for each byte of the scored text: compares models with different vocabularies.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / std::f64::consts::LN_2 / self.n_bytes as f64
    }
}

/// Perplexity of the text `ids` (without a begin-of-text token) under `engine`'s model.
///
/// As llama.cpp does it: `bos`, if the model wants one, is put before the text; the text is cut into whole
/// windows, a rest is left out; the first token of each window gives way to `bos`; positions from
/// `first_scored` on predict their next token. `n_bytes` tells how many bytes a token stands for; `progress`
/// hears of each window.
pub fn perplexity(
    engine: &mut Engine,
    ids: &[u32],
    bos: Option<u32>,
    windows: Windows,
    n_bytes: impl Fn(u32) -> usize,
    mut progress: impl FnMut(&Perplexity),
) -> Result<Perplexity, Error> {
    let ids: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
    if windows.tokens < 2 || windows.first_scored + 1 >= windows.tokens {
        return Err(Error::Nothing(format!(
            "{windows:?} scores nothing: first_scored must be below tokens - 1"
        )));
    }
    if ids.len() < windows.tokens {
        return Err(Error::Nothing(format!(
            "the text has {} tokens, and one window takes {}: give a longer text or a smaller window",
            ids.len(),
            windows.tokens
        )));
    }
    let vocab = engine.info().hyper.vocab;
    let mut result = Perplexity { n_scored: 0, n_windows: 0, nll: 0.0, nll_squared: 0.0, n_bytes: 0 };
    for window in ids.chunks_exact(windows.tokens) {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        let logits = engine.logits(&window)?;
        for position in windows.first_scored..windows.tokens - 1 {
            let row = &logits[position * vocab..][..vocab];
            let next = window[position + 1];
            let nll = log_sum_exp(row) - f64::from(row[next as usize]);
            result.nll += nll;
            result.nll_squared += nll * nll;
            result.n_scored += 1;
            result.n_bytes += n_bytes(next) as u64;
        }
        result.n_windows += 1;
        progress(&result);
    }
    Ok(result)
}
