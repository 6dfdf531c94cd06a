//! Random ternary models in the exact layout of published files: for measuring and for tests, where the
//! shape matters and the words do not. `ternfleet model synth` writes them.
//!
//! A model is a function of shape and seed alone, the same on every machine. Weights are scaled so that a
//! forward pass stays sane: every branch adds its share to the residual stream, the logits have a standard
//! deviation of [`LOGIT_DEVIATION`], and the tied embedding does not make each token its own successor.

mod random;
mod shape;
mod vocabulary;

use std::io::{self, Write};

use rayon::prelude::*;

use self::random::Stream;
use crate::gguf::architecture::{Part, Rounding};
use crate::gguf::write::{Item, Plan};
use crate::gguf::{Kind, i2s, rows};

pub use self::shape::{Shape, ShapeError};

/// Standard deviation of the logits over the vocabulary.
pub const LOGIT_DEVIATION: f32 = 3.0;
/// Random words made in one piece by one thread, and pieces in a buffer.
const PIECE_WORDS: usize = 64 * 1024;
const PIECES: usize = 16;

/// Where a product goes, which sets its deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    /// Into the rest of its branch.
    Inner,
    /// Into queries or keys.
    Scores,
    /// From the feed-forward part to the residual stream.
    FeedForward,
    /// From attention to the residual stream.
    Attention,
}

impl Branch {
    fn of(part: Part) -> Self {
        match part {
            Part::AttnQ | Part::AttnK => Self::Scores,
            Part::AttnOutput => Self::Attention,
            Part::FfnDown => Self::FeedForward,
            _ => Self::Inner,
        }
    }

    /// The standard deviation of its products for normed inputs.
    ///
    /// The feed-forward parts of all L layers together add that of the logits: then a token's own embedding
    /// lifts its own logit by about one standard deviation and no more. Attention adds a quarter as much and
    /// looks at few positions: an average over a long context hardly changes from token to token, and with
    /// more of it the model says one token forever.
    fn deviation(self, n_layers: usize) -> f32 {
        let feed_forward = LOGIT_DEVIATION / (n_layers as f32).sqrt();
        match self {
            Self::Inner => 1.0,
            Self::Scores => 2.0,
            Self::FeedForward => feed_forward,
            Self::Attention => 0.25 * feed_forward,
        }
    }
}

/// What a tensor of the plan is filled with.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Embedding {
        deviation: f32,
    },
    Norm,
    Ternary {
        scale: f32,
    },
    /// Ternary with a scale for each 128 weights.
    Groups {
        scale: f32,
    },
}

/// Writes the model with this shape and seed to `out`, in buffers of a few MiB.
pub fn write(shape: &Shape, seed: u64, out: &mut impl Write) -> io::Result<()> {
    let (plan, fills) = plan(shape, seed);
    let mut writer = plan.begin(out)?;
    for (index, fill) in fills.into_iter().enumerate() {
        let tensor = writer.advance()?.expect("because the plan has one fill a tensor");
        let stream = Stream::new(seed, index as u64);
        let n_weights: u64 = tensor.dims.iter().product();
        match fill {
            Fill::Embedding { deviation } => {
                let halves = normal_table(deviation);
                let two_weights = |word| {
                    let [[a, b], [c, d]] = stream.pair(word).map(|draw| halves[draw].to_le_bytes());
                    [a, b, c, d]
                };
                in_parallel(n_weights / 2, two_weights, |bytes| writer.write(bytes))?;
            }
            Fill::Norm => {
                let weights = (0..n_weights).flat_map(|at| (0.9 + 0.2 * stream.unit(at)).to_le_bytes());
                writer.write(&weights.collect::<Vec<u8>>())?;
            }
            Fill::Groups { scale } => {
                let block = |index: u64| {
                    let mut bytes = [0u8; 34];
                    let varied = scale * (0.9 + 0.2 * stream.unit(n_weights + index));
                    bytes[..2].copy_from_slice(&rows::f32_to_f16(varied).to_le_bytes());
                    for (word, bytes) in (4 * index..).zip(bytes[2..].as_chunks_mut::<8>().0) {
                        *bytes = stream.ternary(word).to_le_bytes();
                    }
                    bytes
                };
                in_parallel(n_weights / 128, block, |bytes| writer.write(bytes))?;
            }
            Fill::Ternary { scale } => {
                in_parallel(
                    n_weights / 32,
                    |word| stream.ternary(word).to_le_bytes(),
                    |bytes| writer.write(bytes),
                )?;
                // Scales differ from tensor to tensor, so that taking one for another shows.
                writer.write(&i2s::trailer(scale * (0.9 + 0.2 * stream.unit(n_weights))))?;
            }
        }
    }
    writer.finish()?;
    Ok(())
}

/// Makes `n_words` words of `N` bytes on all threads and hands them on in order.
fn in_parallel<const N: usize>(
    n_words: u64,
    make: impl Fn(u64) -> [u8; N] + Sync,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut done = 0;
    while done < n_words {
        let words = (n_words - done).min((PIECES * PIECE_WORDS) as u64);
        buffer.resize(words as usize * N, 0u8);
        buffer.par_chunks_mut(PIECE_WORDS * N).enumerate().for_each(|(piece, bytes)| {
            let first = done + (piece * PIECE_WORDS) as u64;
            for (word, bytes) in (first..).zip(bytes.as_chunks_mut::<N>().0) {
                *bytes = make(word);
            }
        });
        sink(&buffer)?;
        done += words;
    }
    Ok(())
}

/// The f16 for each sum of four random bytes: close to normal, of the given standard deviation.
fn normal_table(deviation: f32) -> Vec<u16> {
    // Four bytes sum to 510 on average, with variance 4 · (256² − 1) / 12.
    let step = deviation / (4.0f32 * 65_535.0 / 12.0).sqrt();
    (0..=1020).map(|sum| rows::f32_to_f16((sum as f32 - 510.0) * step)).collect()
}

/// Header and contents: for the official shape the 24 keys and the tensors of the official file, in its order.
fn plan(shape: &Shape, seed: u64) -> (Plan, Vec<Fill>) {
    let mut plan = metadata(shape, seed);
    let mut fills = Vec::new();
    let deviation = LOGIT_DEVIATION / (shape.hidden as f32).sqrt();
    let groups = shape.architecture.rounding == Rounding::Groups;
    // Half of the weights are zero.
    let of_groups = Fill::Groups { scale: deviation * std::f32::consts::SQRT_2 };
    let (outer_kind, outer_fill) =
        if groups { (Kind::PQ2_0, of_groups) } else { (Kind::F16, Fill::Embedding { deviation }) };
    plan.tensor("token_embd.weight", &[shape.hidden, shape.vocab], outer_kind);
    fills.push(outer_fill);
    for layer in 0..shape.n_layers {
        for part in shape.architecture.parts() {
            let dims = shape.dims(part);
            match part.columns() {
                None => {
                    plan.tensor(part.tensor(layer), &dims, Kind::F32);
                    fills.push(Fill::Norm);
                }
                Some(_) => {
                    plan.tensor(part.tensor(layer), &dims, if groups { Kind::PQ2_0 } else { Kind::I2S });
                    let deviation = Branch::of(part).deviation(shape.n_layers);
                    // Half of the weights are zero, so a sum over K normed inputs has variance K / 2.
                    let scale = deviation / (dims[0] as f32 / 2.0).sqrt();
                    fills.push(if groups { Fill::Groups { scale } } else { Fill::Ternary { scale } });
                }
            }
        }
    }
    plan.tensor("output_norm.weight", &[shape.hidden], Kind::F32);
    fills.push(Fill::Norm);
    if !shape.tied {
        plan.tensor("output.weight", &[shape.hidden, shape.vocab], outer_kind);
        fills.push(outer_fill);
    }
    (plan, fills)
}

fn metadata(shape: &Shape, seed: u64) -> Plan {
    let mut plan = Plan::default();
    let u32_item = |value: usize| Item::U32(value as u32);
    let architecture = shape.architecture.names[0];
    let own = |name: &str| format!("{architecture}.{name}");
    plan.entry("general.architecture", Item::Text(architecture.into()));
    plan.entry("general.name", Item::Text(format!("synthetic {shape} seed {seed}")));
    plan.entry(own("vocab_size"), u32_item(shape.vocab));
    plan.entry(own("context_length"), u32_item(shape::CONTEXT));
    plan.entry(own("embedding_length"), u32_item(shape.hidden));
    plan.entry(own("block_count"), u32_item(shape.n_layers));
    plan.entry(own("feed_forward_length"), u32_item(shape.ffn));
    plan.entry(own("rope.dimension_count"), u32_item(shape.head_dim));
    plan.entry(own("attention.head_count"), u32_item(shape.n_heads));
    plan.entry(own("attention.head_count_kv"), u32_item(shape.n_kv_heads));
    plan.entry("tokenizer.ggml.add_bos_token", Item::Bool(true));
    plan.entry(own("attention.layer_norm_rms_epsilon"), Item::F32(1e-5));
    plan.entry(own("rope.freq_base"), Item::F32(500_000.0));
    plan.entry("general.file_type", Item::U32(shape.architecture.rounding.file_type()));
    vocabulary::write(&mut plan, shape.vocab);
    plan.entry("general.quantization_version", Item::U32(2));
    plan
}

#[cfg(test)]
mod tests;
