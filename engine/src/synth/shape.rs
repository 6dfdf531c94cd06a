//! The shapes that can be synthesised: those of published models by name, any other as `ARCHITECTURE:LxHxFxNHxNKVxVxD`.

use std::fmt;
use std::str::FromStr;

use super::vocabulary;
use crate::gguf::architecture::{Architecture, BITNET_2B4T, LLAMA, Part, QWEN3, Width};
use crate::gguf::i2s;

/// Longest sequence that a synthetic model announces; the official model's.
pub(super) const CONTEXT: usize = 4096;
/// Bound on each number of a shape.
const MAX_COUNT: usize = 1 << 20;
/// Bound on the weights of a model, which keeps every product below in range.
const MAX_WEIGHTS: usize = 1 << 40;

/// The shape of a synthetic model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What its graph is; with groups of inputs weights, embedding and output matrix are PQ2_0, else I2_S and f16.
    pub architecture: &'static Architecture,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream; a multiple of 128.
    pub hidden: usize,
    /// Width inside the feed-forward part; a multiple of 128.
    pub ffn: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Tokens; at least 259, for the bytes and three control tokens.
    pub vocab: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether the embedding is the output matrix too.
    pub tied: bool,
}

/// Why a text is no shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{given}' is not a shape: {reason}; use {names} or [ARCHITECTURE:]LxHxFxNHxNKVxV[xD] \
     (layers, hidden, ffn, heads, key/value heads, vocabulary, head width), as in 2x256x768x4x2x1024 or \
     qwen3:2x256x768x4x2x1024x128",
    names = NAMED.map(|(name, _)| name).join(", ")
)]
pub struct ShapeError {
    given: String,
    reason: String,
}

/// Shapes of published models. Where a shape is not known for certain, its manifest in `models/` says so.
const NAMED: [(&str, Shape); 8] = [
    ("2b4t", Shape::OFFICIAL),
    ("tiny", Shape::TINY),
    ("bonsai-8b", Shape::new(&QWEN3, [36, 4096, 12288, 32, 8, 151_936, 128], false)),
    ("bonsai-4b", Shape::new(&QWEN3, [36, 2560, 9728, 32, 8, 151_936, 128], true)),
    ("bonsai-1.7b", Shape::new(&QWEN3, [28, 2048, 6144, 16, 8, 151_936, 128], true)),
    ("falcon3-7b", Shape::new(&LLAMA, [28, 3072, 23040, 12, 4, 131_080, 256], false)),
    ("falcon-e-3b", Shape::new(&LLAMA, [32, 2048, 13312, 16, 2, 32_768, 128], false)),
    ("llama3-8b", Shape::new(&LLAMA, [32, 4096, 14336, 32, 8, 128_256, 128], false)),
];

impl Shape {
    /// BitNet b1.58-2B-4T.
    pub const OFFICIAL: Self = Self::new(&BITNET_2B4T, [30, 2560, 6912, 20, 5, 128_256, 128], true);
    /// A model for tests: under a megabyte.
    pub const TINY: Self = Self::new(&BITNET_2B4T, [2, 256, 512, 4, 2, 512, 64], true);

    const fn new(architecture: &'static Architecture, numbers: [usize; 7], tied: bool) -> Self {
        let [n_layers, hidden, ffn, n_heads, n_kv_heads, vocab, head_dim] = numbers;
        Self { architecture, n_layers, hidden, ffn, n_heads, n_kv_heads, vocab, head_dim, tied }
    }

    /// Dims of a part in GGUF's order.
    pub(super) fn dims(&self, part: Part) -> Vec<usize> {
        let width = |width| match width {
            Width::Hidden => self.hidden,
            Width::Ffn => self.ffn,
            Width::Query => self.n_heads * self.head_dim,
            Width::KeyValue => self.n_kv_heads * self.head_dim,
            Width::Head => self.head_dim,
        };
        part.columns().into_iter().chain([part.rows()]).map(width).collect()
    }

    /// What is wrong with the shape, if something is.
    fn fault(&self) -> Option<String> {
        let counts =
            [self.n_layers, self.hidden, self.ffn, self.n_heads, self.n_kv_heads, self.vocab, self.head_dim];
        if counts.iter().any(|count| !(1..=MAX_COUNT).contains(count)) {
            return Some(format!("each number must lie between 1 and {MAX_COUNT}"));
        }
        if !self.hidden.is_multiple_of(i2s::BLOCK) || !self.ffn.is_multiple_of(i2s::BLOCK) {
            return Some("hidden and ffn must be multiples of 128, the block of I2_S".into());
        }
        let aligned = (self.n_heads * self.head_dim).is_multiple_of(i2s::BLOCK);
        if !self.head_dim.is_multiple_of(2) || !aligned {
            return Some(
                "the head width must be even, and all heads together must be a multiple of 128 \
                         wide"
                    .into(),
            );
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Some("the number of heads must be a multiple of the number of KV heads".into());
        }
        if self.vocab < vocabulary::LEAST {
            return Some(format!("the vocabulary needs at least {} tokens", vocabulary::LEAST));
        }
        let weights = 2 * self.vocab * self.hidden
            + self.n_layers * self.hidden * (4 * self.n_heads * self.head_dim + 3 * self.ffn);
        (weights > MAX_WEIGHTS).then(|| format!("{weights} weights are more than {MAX_WEIGHTS}"))
    }
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fault = |reason: String| ShapeError { given: text.to_owned(), reason };
        if let Some((_, shape)) = NAMED.into_iter().find(|(name, _)| *name == text) {
            return Ok(shape);
        }
        let (architecture, numbers) = match text.split_once(':') {
            None => (&BITNET_2B4T, text),
            Some((name, numbers)) => {
                let found = Architecture::named(name);
                (found.ok_or_else(|| fault(format!("'{name}' is not a supported architecture")))?, numbers)
            }
        };
        let numbers: Vec<usize> = numbers
            .split('x')
            .map(|number| number.parse().map_err(|_| fault(format!("'{number}' is not a number"))))
            .collect::<Result<_, _>>()?;
        let numbers = match *numbers.as_slice() {
            [l, h, f, nh, nkv, v] if nh > 0 && h.is_multiple_of(nh) => [l, h, f, nh, nkv, v, h / nh],
            [_, _, _, _, _, _] => {
                return Err(fault("hidden is not a multiple of the heads; add the head width".into()));
            }
            [l, h, f, nh, nkv, v, d] => [l, h, f, nh, nkv, v, d],
            _ => return Err(fault(format!("it has {} numbers, but six or seven are needed", numbers.len()))),
        };
        let shape = Self::new(architecture, numbers, true);
        match shape.fault() {
            None => Ok(shape),
            Some(reason) => Err(fault(reason)),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) =
            NAMED.iter().find(|(_, shape)| shape == self && *shape != Self::OFFICIAL && *shape != Self::TINY)
        {
            return out.write_str(name);
        }
        let Self { n_layers, hidden, ffn, n_heads, n_kv_heads, vocab, head_dim, .. } = self;
        if *self.architecture != BITNET_2B4T {
            write!(out, "{}:", self.architecture.names[0])?;
        }
        write!(out, "{n_layers}x{hidden}x{ffn}x{n_heads}x{n_kv_heads}x{vocab}")?;
        if head_dim * n_heads == *hidden { Ok(()) } else { write!(out, "x{head_dim}") }
    }
}
