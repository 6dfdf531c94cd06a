//! The numbers that make up a model's shape, read from the metadata under its architecture's prefix.

use super::architecture::{Architecture, Part, Width};
use super::value::Value;
use super::{Error, File};

/// Bound on every count, and on the width of all heads together: far above any model, and a product of two of them times
/// layers and matrices stays in range.
const MAX_COUNT: u64 = 1 << 20;

/// A model's shape and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// `general.architecture`, which is also the prefix of the keys below.
    pub architecture: String,
    /// The graph that it stands for.
    pub graph: &'static Architecture,
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
    /// How they are stretched for long contexts.
    pub rope_scaling: Scaling,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: f32,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// YaRN, with the usual constants: slow frequencies are divided by the factor, cosines and sines grow with its logarithm.
    Yarn {
        /// How much longer contexts are than the original one.
        factor: f32,
        /// The context that the model was made with.
        original_context: usize,
    },
}

impl Hyper {
    /// Reads and checks the shape of the model in `file`.
    pub fn read(file: &File) -> Result<Self, Error> {
        let (graph, architecture) = Architecture::of(file)?;
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
        if (n_heads * head_dim) as u64 > MAX_COUNT {
            let reason = format!("{n_heads} heads of {head_dim} together are wider than {MAX_COUNT}");
            return Err(Error::model(keys.field("attention.head_count"), reason));
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
            graph,
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
            rope_scaling: keys.rope_scaling()?,
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

    /// Rows of a head in memory: whole groups of 16.
    pub(crate) fn head_stride(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Rows of queries, keys and values of a token in memory.
    pub(crate) fn qkv_rows(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_stride()
    }

    /// The number that `width` stands for.
    pub fn width(&self, width: Width) -> usize {
        match width {
            Width::Hidden => self.hidden,
            Width::Ffn => self.ffn,
            Width::Query => self.q_width(),
            Width::KeyValue => self.kv_width(),
            Width::Head => self.head_dim,
        }
    }

    /// Dims of a part in GGUF's order: columns, if it is a matrix, then rows.
    pub fn dims(&self, part: Part) -> Vec<usize> {
        part.columns().into_iter().chain([part.rows()]).map(|width| self.width(width)).collect()
    }

    /// Ternary weights in all blocks.
    pub fn n_ternary_weights(&self) -> u64 {
        let in_a_block = |part: Part| self.dims(part).into_iter().product::<usize>() as u64;
        self.n_layers as u64 * self.graph.matrices().map(in_a_block).sum::<u64>()
    }
}

/// Refuses settings that would change the graph, rather than ignore them.
fn refuse_unknown_arithmetic(keys: &Keys<'_>) -> Result<(), Error> {
    let pooling = keys.key("pooling_type");
    if let Some(value) = keys.file.metadata(&pooling)
        && value.as_str() != Some("none")
    {
        let reason = format!("{value:?} is not supported; only 'none' is");
        return Err(Error::unsupported(format!("metadata '{pooling}'"), reason));
    }
    for (name, harmless) in [
        ("rope.scale_linear", 1.0),
        ("logit_scale", 1.0),
        ("residual_scale", 1.0),
        ("embedding_scale", 1.0),
        ("attention.scale", 0.0),
        ("attention.sliding_window", 0.0),
        ("attention.clamp_kqv", 0.0),
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
        ("expert_count", 0.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_attn_factor", 1.0),
        ("rope.scaling.attn_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.0),
    ] {
        let key = keys.key(name);
        if let Some(value) = keys.file.metadata(&key)
            && value.as_f32().or(value.as_u64().map(|value| value as f32)) != Some(harmless)
        {
            let reason = format!("{value:?} is not supported; only {harmless} is");
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

    /// The stretching of rotary frequencies; one that is not computed here is refused by key and value.
    fn rope_scaling(&self) -> Result<Scaling, Error> {
        const FACTOR: &str = "rope.scaling.factor";
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        let kind = self.file.text(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        let factor = match kind {
            "yarn" => self.positive_float(FACTOR, None)?,
            _ => self.positive_float(FACTOR, Some(1.0))?,
        };
        match kind {
            "none" | "linear" if factor == 1.0 => Ok(Scaling::None),
            "none" | "linear" => {
                let reason = format!("{factor} is not supported; 'linear' is supported only with 1");
                Err(Error::unsupported(self.field(FACTOR), reason))
            }
            "yarn" => {
                let Some(original_context) = self.optional_count(ORIGINAL)? else {
                    return Err(Error::model(self.field(ORIGINAL), "it is missing, but YaRN needs it"));
                };
                if factor < 1.0 {
                    return Err(Error::model(self.field(FACTOR), format!("{factor} is below 1")));
                }
                Ok(Scaling::Yarn { factor, original_context })
            }
            other => {
                let reason =
                    format!("'{}' is not supported; use 'linear' (with 1) or 'yarn'", other.escape_debug());
                Err(Error::unsupported(self.field("rope.scaling.type"), reason))
            }
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
                    let reason = format!(
                        "{other}, but another key says {head_dim}: all heads must have the same \
                                 width"
                    );
                    return Err(Error::unsupported(self.field(name), reason));
                }
            }
        }
        let head_dim = match stated {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => {
                let reason = format!("it is missing, and {hidden} is not divisible by {n_heads} heads");
                return Err(Error::model(self.field("rope.dimension_count"), reason));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let reason = format!("{head_dim} is odd, but rotation needs pairs");
            return Err(Error::model(self.field("rope.dimension_count"), reason));
        }
        Ok(head_dim)
    }

    /// The vocabulary's size, from its key, or else from the list of tokens, or else from the embedding.
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
            (None, Some(listed)) => Err(Error::model(
                self.field("vocab_size"),
                format!("it is missing, but {listed} tokens are listed"),
            )),
            (None, None) => match self.file.tensor("token_embd.weight").map(|tensor| tensor.dims) {
                Some(&[_, rows]) if (1..=MAX_COUNT).contains(&rows) => Ok(rows as usize),
                _ => Err(Error::model(self.field("vocab_size"), "it is missing, and no tokens are listed")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::write::{Item, Plan};

    /// The shape of a file that says these numbers, and has no tensors.
    fn stated(numbers: [u32; 7]) -> Result<Hyper, Error> {
        let mut plan = Plan::default();
        plan.entry("general.architecture", Item::Text("llama".into()));
        plan.entry("llama.attention.layer_norm_rms_epsilon", Item::F32(1e-5));
        let names = [
            "block_count",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.key_length",
            "vocab_size",
            "context_length",
        ];
        for (name, number) in names.into_iter().zip(numbers) {
            plan.entry(format!("llama.{name}"), Item::U32(number));
        }
        Hyper::read(&File::from_bytes(plan.begin(Vec::new()).unwrap().finish().unwrap()).unwrap())
    }

    #[test]
    fn sums_over_the_largest_counts_stay_in_range() {
        let most = 1 << 20;
        let hyper = stated([most, most, most, most / 2, 2, most, most]).unwrap();
        assert_eq!(hyper.n_ternary_weights(), 7 << 60);
        assert_eq!(crate::kv::page_bytes(&hyper, crate::options::Kv::F16), 1 << 52);
        let fault = stated([most; 7]).unwrap_err().to_string();
        assert!(fault.contains("attention.head_count") && fault.contains("wider than"), "{fault}");
    }
}
