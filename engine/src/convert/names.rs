//! What the tensors are called on either side, and in which order the official GGUF has them.

/// A tensor of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// In a GGUF, behind `blk.N.` and before `.weight`.
    pub(super) gguf: &'static str,
    /// In a checkpoint, behind `model.layers.N.` and before `.weight`.
    pub(super) hugging_face: &'static str,
    pub(super) rows: Width,
    /// `None` for a norm.
    pub(super) columns: Option<Width>,
}

/// A width of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Hidden,
    Ffn,
    Query,
    KeyValue,
}

const fn norm(gguf: &'static str, hugging_face: &'static str, width: Width) -> Part {
    Part { gguf, hugging_face, rows: width, columns: None }
}

const fn matrix(gguf: &'static str, hugging_face: &'static str, rows: Width, columns: Width) -> Part {
    Part { gguf, hugging_face, rows, columns: Some(columns) }
}

/// In the official file's order.
pub(super) const PARTS: [Part; 11] = [
    norm("attn_norm", "input_layernorm", Width::Hidden),
    matrix("ffn_down", "mlp.down_proj", Width::Hidden, Width::Ffn),
    norm("ffn_sub_norm", "mlp.ffn_sub_norm", Width::Ffn),
    matrix("ffn_gate", "mlp.gate_proj", Width::Ffn, Width::Hidden),
    matrix("ffn_up", "mlp.up_proj", Width::Ffn, Width::Hidden),
    norm("ffn_norm", "post_attention_layernorm", Width::Hidden),
    norm("attn_sub_norm", "self_attn.attn_sub_norm", Width::Query),
    matrix("attn_k", "self_attn.k_proj", Width::KeyValue, Width::Hidden),
    matrix("attn_output", "self_attn.o_proj", Width::Hidden, Width::Query),
    matrix("attn_q", "self_attn.q_proj", Width::Query, Width::Hidden),
    matrix("attn_v", "self_attn.v_proj", Width::KeyValue, Width::Hidden),
];

/// (GGUF, checkpoint) names of the tensors outside the blocks.
pub(super) const EMBEDDING: (&str, &str) = ("token_embd.weight", "model.embed_tokens.weight");
pub(super) const OUTPUT_NORM: (&str, &str) = ("output_norm.weight", "model.norm.weight");
pub(super) const OUTPUT: (&str, &str) = ("output.weight", "lm_head.weight");

impl Part {
    pub(super) fn gguf_name(&self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.gguf)
    }

    pub(super) fn hugging_face_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.hugging_face)
    }

    pub(super) fn scale_name(&self, layer: usize) -> String {
        format!("{}_scale", self.hugging_face_name(layer))
    }
}
