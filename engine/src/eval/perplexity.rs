//! Perplexity of a long text: by windows that stand apart, as llama.cpp measures it, or by windows that slide.

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

/// Windows that overlap: each begins `stride` tokens after the one before, and scores what that one did not reach. So each
/// token is scored once, and but for the first window's each is predicted from at least `tokens - stride` others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens that a window reads, the begin-of-text token included.
    pub tokens: usize,
    /// From one window's beginning to the next one's; below `tokens`.
    pub stride: usize,
}

/// The result.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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

    /// Adds the prediction of `next` by a row of logits.
    fn score(&mut self, row: &[f32], next: u32, n_bytes: impl Fn(u32) -> usize) {
        let nll = log_sum_exp(row) - f64::from(row[next as usize]);
        self.nll += nll;
        self.nll_squared += nll * nll;
        self.n_scored += 1;
        self.n_bytes += n_bytes(next) as u64;
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
            "the text has {} tokens, but one window needs {}: use a longer text or a smaller window",
            ids.len(),
            windows.tokens
        )));
    }
    let vocab = engine.info().hyper.vocab;
    let mut result = Perplexity::default();
    for window in ids.chunks_exact(windows.tokens) {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        let logits = engine.logits(&window)?;
        for position in windows.first_scored..windows.tokens - 1 {
            let row = &logits[position * vocab..][..vocab];
            result.score(row, window[position + 1], &n_bytes);
        }
        result.n_windows += 1;
        progress(&result);
    }
    Ok(result)
}

/// Perplexity of the whole text `ids` (without a begin-of-text token) by windows that slide.
///
/// With `bos` every window opens with it, and every token is scored; without, all but the first are.
pub fn sliding_perplexity(
    engine: &mut Engine,
    ids: &[u32],
    bos: Option<u32>,
    sliding: Sliding,
    n_bytes: impl Fn(u32) -> usize,
    mut progress: impl FnMut(&Perplexity),
) -> Result<Perplexity, Error> {
    let Sliding { tokens, stride } = sliding;
    if stride == 0 || stride >= tokens {
        return Err(Error::Nothing(format!(
            "windows of {tokens} every {stride} tokens leave gaps: the stride must be from 1 to {}",
            tokens.saturating_sub(1)
        )));
    }
    // The last token is only predicted, never read.
    let n_read = ids.len().saturating_sub(1);
    if n_read + usize::from(bos.is_some()) == 0 {
        return Err(Error::Nothing("the text has nothing to predict".to_owned()));
    }
    let vocab = engine.info().hyper.vocab;
    let mut result = Perplexity::default();
    let (mut begin, mut scored) = (0, usize::from(bos.is_none()));
    while scored < ids.len() {
        let room = tokens - usize::from(bos.is_some());
        let read: Vec<u32> =
            bos.into_iter().chain(ids[begin..n_read.min(begin + room)].iter().copied()).collect();
        // Row r of the logits predicts the token after the r-th one read.
        let first_predicted = begin + usize::from(bos.is_none());
        let logits = engine.logits(&read)?;
        for (row, next) in logits.chunks_exact(vocab).zip(first_predicted..).skip(scored - first_predicted) {
            result.score(row, ids[next], &n_bytes);
        }
        scored = first_predicted + read.len();
        begin += stride;
        result.n_windows += 1;
        progress(&result);
    }
    Ok(result)
}
