//! The shapes that can be synthesised: two by name, any other as `LxHxFxNHxNKVxV`.

use std::fmt;
use std::str::FromStr;

use super::vocabulary;
use crate::gguf::i2s;

/// Longest sequence that a synthetic model announces; the official model's.
pub(super) const CONTEXT: usize = 4096;
/// Bound on each number of a shape.
const MAX_COUNT: usize = 1 << 20;
/// Bound on the weights of a model, which keeps every product below in range.
const MAX_WEIGHTS: usize = 1 << 40;

/// The shape of a synthetic model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream; a multiple of 128 and of `n_heads`.
    pub hidden: usize,
    /// Width inside the feed-forward part; a multiple of 128.
    pub ffn: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Tokens; at least 259, for the bytes and three control tokens.
    pub vocab: usize,
}

/// Why a text is no shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{given}' is no shape: {reason}; give 2b4t, tiny or LxHxFxNHxNKVxV \
     (layers, hidden, ffn, heads, key/value heads, vocabulary), as in 2x256x768x4x2x1024"
)]
pub struct ShapeError {
    given: String,
    reason: String,
}

impl Shape {
    /// BitNet b1.58-2B-4T.
    pub const OFFICIAL: Self =
        Self { n_layers: 30, hidden: 2560, ffn: 6912, n_heads: 20, n_kv_heads: 5, vocab: 128_256 };
    /// A model for tests: under a megabyte.
    pub const TINY: Self = Self { n_layers: 2, hidden: 256, ffn: 512, n_heads: 4, n_kv_heads: 2, vocab: 512 };

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.n_heads
    }

    /// What is wrong with the shape, if something is.
    fn fault(&self) -> Option<String> {
        let counts = [self.n_layers, self.hidden, self.ffn, self.n_heads, self.n_kv_heads, self.vocab];
        if counts.iter().any(|count| !(1..=MAX_COUNT).contains(count)) {
            return Some(format!("each number must lie between 1 and {MAX_COUNT}"));
        }
        if !self.hidden.is_multiple_of(i2s::BLOCK) || !self.ffn.is_multiple_of(i2s::BLOCK) {
            return Some("hidden and ffn must be multiples of 128, the block of I2_S".into());
        }
        if !self.hidden.is_multiple_of(self.n_heads) || !self.head_dim().is_multiple_of(2) {
            return Some("the heads must divide hidden into even widths".into());
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Some("the key/value heads must divide the heads".into());
        }
        if self.vocab < vocabulary::LEAST {
            return Some(format!("the vocabulary needs at least {} tokens", vocabulary::LEAST));
        }
        let weights =
            self.vocab * self.hidden + self.n_layers * self.hidden * (4 * self.hidden + 3 * self.ffn);
        (weights > MAX_WEIGHTS).then(|| format!("{weights} weights are more than {MAX_WEIGHTS}"))
    }
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fault = |reason: String| ShapeError { given: text.to_owned(), reason };
        match text {
            "2b4t" => return Ok(Self::OFFICIAL),
            "tiny" => return Ok(Self::TINY),
            _ => {}
        }
        let numbers: Vec<usize> = text
            .split('x')
            .map(|number| number.parse().map_err(|_| fault(format!("'{number}' is no number"))))
            .collect::<Result<_, _>>()?;
        let &[n_layers, hidden, ffn, n_heads, n_kv_heads, vocab] = numbers.as_slice() else {
            return Err(fault(format!("it has {} numbers, and six are needed", numbers.len())));
        };
        let shape = Self { n_layers, hidden, ffn, n_heads, n_kv_heads, vocab };
        match shape.fault() {
            None => Ok(shape),
            Some(reason) => Err(fault(reason)),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_layers, hidden, ffn, n_heads, n_kv_heads, vocab } = self;
        write!(out, "{n_layers}x{hidden}x{ffn}x{n_heads}x{n_kv_heads}x{vocab}")
    }
}
