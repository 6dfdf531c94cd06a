//! What tensors are called in a checkpoint; the parts of a block, and their names in a GGUF, are `gguf::architecture`'s.

use crate::gguf::architecture::{Architecture, Part};

/// (GGUF, checkpoint) names of the tensors outside the blocks.
pub(super) const EMBEDDING: (&str, &str) = ("token_embd.weight", "model.embed_tokens.weight");
pub(super) const OUTPUT_NORM: (&str, &str) = ("output_norm.weight", "model.norm.weight");
pub(super) const OUTPUT: (&str, &str) = ("output.weight", "lm_head.weight");

/// The tensor of a part and layer in a checkpoint.
pub(super) fn in_checkpoint(graph: &Architecture, part: Part, layer: usize) -> String {
    format!("model.layers.{layer}.{}.weight", graph.hugging_face_part(part))
}

/// The scale that belongs to a packed tensor.
pub(super) fn scale_of(tensor: &str) -> String {
    format!("{tensor}_scale")
}
