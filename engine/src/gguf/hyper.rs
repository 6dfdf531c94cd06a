//! The numbers that make up a model's shape, read from the metadata under its architecture's prefix.

use super::value::Value;
use super::{Error, File};

/// Architectures with the graph of BitNet b1.58-2B-4T: sub-norms, squared ReLU, RoPE on half-split pairs.
const ARCHITECTURES: [&str; 2] = ["bitnet-b1.58", "bitnet-25"];
/// Bound on every count: far above any model, far below anything that could overflow a product of three.
const MAX_COUNT: u64 = 1 << 20;

/// A model's shape and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// `general.architecture`, which is also the prefix of the keys below.
    pub architecture: String,
    /// `general.name`; empty if the file has none.
    pub name: String,
    /// Transformer blocks (`block_count`).
    pub n_layers: usize,
    /// Width of the residual stream (`embedding_length`).
    pub hidden: usize,
    /// Width inside the feed-forward part (`feed_forward_length`).
    pub ffn: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even, and the whole of it is rotated.
    pub head_dim: usize,
    /// Rows of the embedding: token ids are below it.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: f32,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
}

impl Hyper {
    /// Reads and checks the shape of the model in `file`.
    pub fn read(file: &File) -> Result<Self, Error> {
        let architecture = supported_architecture(file)?;
        let keys = Keys { file, architecture };
        refuse_unknown_arithmetic(&keys)?;
        let n_heads = keys.count("attention.head_count")?;
        let n_kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(n_heads);
        let hidden = keys.count("embedding_length")?;
        let head_dim = keys.head_dim(hidden, n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            let reason = format!("{n_kv_heads} key/value heads do not divide {n_heads} query heads");
            return Err(Error::model(keys.field("attention.head_count_kv"), reason));
        }
        let vocab = keys.vocab()?;
        let token_id = |key: &str| -> Result<Option<u32>, Error> {
            match file.unsigned(key)? {
                None => Ok(None),
                Some(id) if id < vocab as u64 => Ok(Some(id as u32)),
                Some(id) => {
                    let reason = format!("id {id} is outside the vocabulary of {vocab}");
                    Err(Error::model(format!("metadata '{key}'"), reason))
                }
            }
        };
        Ok(Self {
            architecture: architecture.to_owned(),
            name: file.text("general.name")?.unwrap_or_default().to_owned(),
            n_layers: keys.count("block_count")?,
            hidden,
            ffn: keys.count("feed_forward_length")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab,
            context: keys.count("context_length")?,
            rope_theta: keys.positive_float("rope.freq_base", Some(10_000.0))?,
            rms_eps: keys.positive_float("attention.layer_norm_rms_epsilon", None)?,
            bos: token_id("tokenizer.ggml.bos_token_id")?,
            eos: token_id("tokenizer.ggml.eos_token_id")?,
        })
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Ternary weights in all blocks.
    pub fn n_ternary_weights(&self) -> u64 {
        let attention = 2 * self.hidden * (self.q_width() + self.kv_width());
        let feed_forward = 3 * self.hidden * self.ffn;
        self.n_layers as u64 * (attention + feed_forward) as u64
    }
}

fn supported_architecture(file: &File) -> Result<&str, Error> {
    const KEY: &str = "general.architecture";
    let Some(architecture) = file.text(KEY)? else {
        return Err(Error::model(format!("metadata '{KEY}'"), "it is missing, so no other key can be read"));
    };
    if ARCHITECTURES.contains(&architecture) {
        return Ok(architecture);
    }
    let field = format!("metadata '{KEY}'");
    Err(Error::unsupported(
        field,
        match architecture {
            "bitnet" => "'bitnet' models compute SiLU where BitNet b1.58-2B-4T squares a ReLU, which this engine does \
                not do; use a model of the architecture 'bitnet-b1.58'"
                .to_owned(),
            other => format!(
                "'{}' is not computed by this engine; it runs {}",
                other.escape_debug(),
                ARCHITECTURES.map(|name| format!("'{name}'")).join(" and ")
            ),
        },
    ))
}

/// Refuses settings that would change the graph, rather than ignore them.
fn refuse_unknown_arithmetic(keys: &Keys<'_>) -> Result<(), Error> {
    for (name, harmless) in [("rope.scaling.type", "none"), ("pooling_type", "none")] {
        let key = keys.key(name);
        if let Some(value) = keys.file.metadata(&key)
            && value.as_str() != Some(harmless)
        {
            let reason =
                format!("{value:?} would change the computation, and only '{harmless}' is done here");
            return Err(Error::unsupported(format!("metadata '{key}'"), reason));
        }
    }
    for (name, harmless) in [("rope.scale_linear", 1.0), ("rope.scaling.factor", 1.0), ("logit_scale", 1.0)] {
        let key = keys.key(name);
        if let Some(value) = keys.file.metadata(&key)
            && value.as_f32() != Some(harmless)
        {
            let reason = format!("{value:?} would change the computation, and only {harmless} is done here");
            return Err(Error::unsupported(format!("metadata '{key}'"), reason));
        }
    }
    Ok(())
}

/// Keys under the architecture's prefix.
struct Keys<'a> {
    file: &'a File,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn field(&self, name: &str) -> String {
        format!("metadata '{}'", self.key(name))
    }

    fn optional_count(&self, name: &str) -> Result<Option<usize>, Error> {
        match self.file.unsigned(&self.key(name))? {
            None => Ok(None),
            Some(count) if (1..=MAX_COUNT).contains(&count) => Ok(Some(count as usize)),
            Some(count) => {
                let reason = format!("{count} is not a count between 1 and {MAX_COUNT}");
                Err(Error::model(self.field(name), reason))
            }
        }
    }

    fn count(&self, name: &str) -> Result<usize, Error> {
        self.optional_count(name)?.ok_or_else(|| Error::model(self.field(name), "it is missing"))
    }

    fn positive_float(&self, name: &str, default: Option<f32>) -> Result<f32, Error> {
        match self.file.float(&self.key(name))?.or(default) {
            None => Err(Error::model(self.field(name), "it is missing")),
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(Error::model(self.field(name), format!("{value} is not a positive number"))),
        }
    }

    /// The width of a head: every key that speaks of it must say the same.
    fn head_dim(&self, hidden: usize, n_heads: usize) -> Result<usize, Error> {
        let names = ["rope.dimension_count", "attention.key_length", "attention.value_length"];
        let mut stated: Option<usize> = None;
        for name in names {
            match (stated, self.optional_count(name)?) {
                (_, None) => {}
                (None, some) => stated = some,
                (Some(head_dim), Some(other)) if head_dim == other => {}
                (Some(head_dim), Some(other)) => {
                    let reason =
                        format!("{other} where another key says {head_dim}: heads of one width are computed");
                    return Err(Error::unsupported(self.field(name), reason));
                }
            }
        }
        let head_dim = match stated {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => {
                let reason = format!("it is missing, and {hidden} does not divide among {n_heads} heads");
                return Err(Error::model(self.field("rope.dimension_count"), reason));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let reason = format!("{head_dim} is odd, and rotation works on pairs");
            return Err(Error::model(self.field("rope.dimension_count"), reason));
        }
        Ok(head_dim)
    }

    /// The vocabulary's size, from its key or else from the list of tokens.
    fn vocab(&self) -> Result<usize, Error> {
        let stated = self.optional_count("vocab_size")?;
        let listed = match self.file.metadata("tokenizer.ggml.tokens") {
            Some(Value::Array(array)) => Some(array.len),
            _ => None,
        };
        match (stated, listed) {
            (Some(stated), Some(listed)) if stated as u64 != listed => {
                let reason = format!("{stated}, but tokenizer.ggml.tokens lists {listed}");
                Err(Error::model(self.field("vocab_size"), reason))
            }
            (Some(stated), _) => Ok(stated),
            (None, Some(listed)) if (1..=MAX_COUNT).contains(&listed) => Ok(listed as usize),
            (None, _) => {
                Err(Error::model(self.field("vocab_size"), "it is missing, and no tokens are listed"))
            }
        }
    }
}
