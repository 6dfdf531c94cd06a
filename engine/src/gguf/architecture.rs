//! What each architecture is made of, in one table: loader, converter, `synth`, `inspect` and the forward pass read it.
//!
//! All of them are one family: RMS norms, rotary attention with shared key heads, a gated feed-forward part. An entry says
//! where a member of it differs. Another member is one more entry.

use super::{Error, File};

/// A graph and its names.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// `general.architecture`, each of which stands for this graph.
    pub names: &'static [&'static str],
    /// What the gate of the feed-forward part goes through.
    pub activation: Activation,
    /// Norms before `attn_output` and `ffn_down`.
    pub sub_norms: bool,
    /// Norms over each head of queries and keys, before they are rotated.
    pub qk_norms: bool,
    /// How a GGUF has the rows of `attn_q` and `attn_k`.
    pub row_order: RowOrder,
    /// How activations are rounded to int8.
    pub rounding: Rounding,
    /// Whether `rope_freqs.weight` may divide the rotary frequencies.
    pub rope_factors: bool,
    /// Whether scales may be in tensors of their own, `blk.N.attn_q.scale`.
    pub scale_tensors: bool,
    /// The same graph as a Hugging Face checkpoint.
    pub hugging_face: HuggingFace,
}

/// How `config.json` and the tensors of a checkpoint tell that they are of an architecture.
#[derive(Debug, PartialEq)]
pub struct HuggingFace {
    /// `architectures`.
    pub class: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    /// `hidden_act`.
    pub activation: &'static str,
    /// Names of the sub-norms, of attention and of the feed-forward part.
    pub sub_norms: [&'static str; 2],
}

/// What a gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// relu(x)²
    SquaredRelu,
    /// x / (1 + e^(−x))
    Silu,
}

/// Which rows of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// (j, j + half), as checkpoints have them.
    Halves,
    /// (2j, 2j + 1): converters have moved them.
    Pairs,
}

/// What shares one scale of int8 activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// All inputs of a token; weights have a scale a row.
    Token,
    /// 128 inputs, and so do weights; a ternary output matrix is multiplied in the same way.
    Groups,
}

impl Rounding {
    /// `general.file_type` of files with the usual type of weights: 40 is I2_S, 41 Q2_0. Readers go by the tensors' own types.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::Token => 40,
            Self::Groups => 41,
        }
    }
}

/// A width of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Width {
    Hidden,
    Ffn,
    Query,
    KeyValue,
    Head,
}

/// A tensor of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Named as in a GGUF.
pub enum Part {
    AttnNorm,
    FfnDown,
    FfnSubNorm,
    FfnGate,
    FfnUp,
    FfnNorm,
    AttnSubNorm,
    AttnK,
    AttnOutput,
    AttnQ,
    AttnV,
    AttnQNorm,
    AttnKNorm,
}

/// Names and shape of a part: in a GGUF, in a checkpoint, rows, columns (none for a norm).
type Facts = (Part, &'static str, &'static str, Width, Option<Width>);

/// In the order of the official BitNet file.
const FACTS: [Facts; 13] = [
    (Part::AttnNorm, "attn_norm", "input_layernorm", Width::Hidden, None),
    (Part::FfnDown, "ffn_down", "mlp.down_proj", Width::Hidden, Some(Width::Ffn)),
    (Part::FfnSubNorm, "ffn_sub_norm", "", Width::Ffn, None),
    (Part::FfnGate, "ffn_gate", "mlp.gate_proj", Width::Ffn, Some(Width::Hidden)),
    (Part::FfnUp, "ffn_up", "mlp.up_proj", Width::Ffn, Some(Width::Hidden)),
    (Part::FfnNorm, "ffn_norm", "post_attention_layernorm", Width::Hidden, None),
    (Part::AttnSubNorm, "attn_sub_norm", "", Width::Query, None),
    (Part::AttnK, "attn_k", "self_attn.k_proj", Width::KeyValue, Some(Width::Hidden)),
    (Part::AttnOutput, "attn_output", "self_attn.o_proj", Width::Hidden, Some(Width::Query)),
    (Part::AttnQ, "attn_q", "self_attn.q_proj", Width::Query, Some(Width::Hidden)),
    (Part::AttnV, "attn_v", "self_attn.v_proj", Width::KeyValue, Some(Width::Hidden)),
    (Part::AttnQNorm, "attn_q_norm", "self_attn.q_norm", Width::Head, None),
    (Part::AttnKNorm, "attn_k_norm", "self_attn.k_norm", Width::Head, None),
];

/// BitNet b1.58-2B-4T and its like.
pub static BITNET_2B4T: Architecture = Architecture {
    names: &["bitnet-b1.58", "bitnet-25"],
    activation: Activation::SquaredRelu,
    sub_norms: true,
    qk_norms: false,
    row_order: RowOrder::Halves,
    rounding: Rounding::Token,
    rope_factors: false,
    scale_tensors: false,
    hugging_face: HuggingFace {
        class: "BitNetForCausalLM",
        model_type: "bitnet",
        activation: "relu2",
        sub_norms: ["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"],
    },
};

/// The first BitNet b1.58 models, of 1bitLLM.
pub static BITNET: Architecture = Architecture {
    names: &["bitnet"],
    activation: Activation::Silu,
    scale_tensors: true,
    hugging_face: HuggingFace {
        class: "BitnetForCausalLM",
        model_type: "llama",
        activation: "silu",
        sub_norms: ["self_attn.inner_attn_ln", "mlp.ffn_layernorm"],
    },
    ..BITNET_2B4T
};

/// Falcon-E, Falcon3, Llama 3 at 1.58 bits, models made with onebitllms.
pub static LLAMA: Architecture = Architecture {
    names: &["llama"],
    sub_norms: false,
    row_order: RowOrder::Pairs,
    rope_factors: true,
    scale_tensors: false,
    hugging_face: HuggingFace {
        class: "LlamaForCausalLM",
        model_type: "llama",
        activation: "silu",
        sub_norms: ["", ""],
    },
    ..BITNET
};

/// Ternary Bonsai.
pub static QWEN3: Architecture = Architecture {
    names: &["qwen3"],
    qk_norms: true,
    row_order: RowOrder::Halves,
    rounding: Rounding::Groups,
    rope_factors: false,
    hugging_face: HuggingFace {
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        activation: "silu",
        sub_norms: ["", ""],
    },
    ..LLAMA
};

/// All of them.
pub static ALL: [&Architecture; 4] = [&BITNET_2B4T, &BITNET, &LLAMA, &QWEN3];

/// Architectures that people ask for and that are not run, with why.
const REFUSED: [(&[&str], &str); 5] = [
    (&["minicpm", "minicpm3"], "scales its embedding, residuals and logits, which is not supported"),
    (&["bert", "nomic-bert", "jina-bert-v2", "gemma-embedding"], "generates embeddings, not text"),
    (
        &["mamba", "mamba2", "falcon-h1", "jamba", "lfm2", "qwen3next", "qwen35"],
        "has layers without attention",
    ),
    (
        &["qwen2moe", "qwen3moe", "mixtral", "llama4", "dbrx", "olmoe"],
        "uses a mixture of experts, which is not supported",
    ),
    (&["qwen2"], "adds biases to queries, keys and values, which is not supported"),
];

impl Architecture {
    /// The architecture that `general.architecture` of `file` names, and the name.
    pub(super) fn of(file: &File) -> Result<(&'static Architecture, &str), Error> {
        const KEY: &str = "general.architecture";
        let field = format!("metadata '{KEY}'");
        let Some(name) = file.text(KEY)? else {
            return Err(Error::model(field, "it is missing, so no other key can be read"));
        };
        if let Some(found) = Self::named(name) {
            return Ok((found, name));
        }
        let known: Vec<String> =
            ALL.iter().flat_map(|known| known.names).map(|name| format!("'{name}'")).collect();
        let known = known.join(", ");
        let why = REFUSED.iter().find(|(names, _)| names.contains(&name)).map(|(_, why)| *why);
        let why = why.unwrap_or("is not supported by this engine");
        Err(Error::unsupported(field, format!("'{}' {why}; supported are {known}", name.escape_debug())))
    }

    /// The architecture called `name`.
    pub fn named(name: &str) -> Option<&'static Architecture> {
        ALL.into_iter().find(|known| known.names.contains(&name))
    }

    /// The tensors of one block, in the order of the official BitNet file.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let (sub_norms, qk_norms) = (self.sub_norms, self.qk_norms);
        FACTS.into_iter().map(|facts| facts.0).filter(move |part| match part {
            Part::AttnSubNorm | Part::FfnSubNorm => sub_norms,
            Part::AttnQNorm | Part::AttnKNorm => qk_norms,
            _ => true,
        })
    }

    /// The ternary matrices of one block.
    pub fn matrices(&self) -> impl Iterator<Item = Part> + use<> {
        self.parts().filter(|part| part.columns().is_some())
    }

    /// What a part is called in a checkpoint, behind `model.layers.N.` and before `.weight`.
    pub fn hugging_face_part(&self, part: Part) -> &'static str {
        match part {
            Part::AttnSubNorm => self.hugging_face.sub_norms[0],
            Part::FfnSubNorm => self.hugging_face.sub_norms[1],
            _ => FACTS[part as usize].2,
        }
    }
}

impl Part {
    /// How many there are.
    pub(super) const COUNT: usize = FACTS.len();

    /// What it is called in a GGUF, behind `blk.N.` and before `.weight`.
    pub fn name(self) -> &'static str {
        FACTS[self as usize].1
    }

    /// Its rows, or a norm's width.
    pub fn rows(self) -> Width {
        FACTS[self as usize].3
    }

    /// Its columns; none for a norm.
    pub fn columns(self) -> Option<Width> {
        FACTS[self as usize].4
    }

    /// Whether its rows are those of heads that are rotated.
    pub fn is_rotated(self) -> bool {
        matches!(self, Self::AttnQ | Self::AttnK)
    }

    /// The tensor of a layer in a GGUF.
    pub fn tensor(self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.name())
    }

    /// The part and layer that a GGUF's tensor name stands for, and what follows the part's name.
    pub(super) fn parse(name: &str) -> Option<(Self, usize, &str)> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, ending) = rest.rsplit_once('.')?;
        let (found, ..) = FACTS.into_iter().find(|facts| facts.1 == part)?;
        Some((found, layer.parse().ok()?, ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_in_the_order_of_the_parts() {
        for (at, facts) in FACTS.into_iter().enumerate() {
            assert_eq!(facts.0 as usize, at);
            assert_eq!(Part::parse(&facts.0.tensor(7)), Some((facts.0, 7, "weight")));
        }
    }
}
