//! Llama 3's tokenizer, and how to know its vocabulary.

use crate::{TokenType, Vocabulary};

/// The split regex of Llama 3's own tokenizer.json, which BitNet b1.58-2B-4T uses unchanged.
pub const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names `tokenizer.ggml.pre` has for it.
pub(super) const PRE_NAMES: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// The token that ends a turn.
pub(super) const END_OF_TURN: &str = "<|eot_id|>";

const N_TOKENS: usize = 128_256;
const N_MERGES: usize = 280_147;
const KNOWN: [(usize, &str); 5] = [
    (128_000, "<|begin_of_text|>"),
    (128_001, "<|end_of_text|>"),
    (128_006, "<|start_header_id|>"),
    (128_007, "<|end_header_id|>"),
    (128_009, END_OF_TURN),
];

/// Whether this is Llama 3's vocabulary: its size, its merges' number and its well-known control tokens.
/// Why not, otherwise.
pub(super) fn recognise(vocabulary: &Vocabulary) -> Result<(), String> {
    if vocabulary.tokens.len() != N_TOKENS || vocabulary.merges.len() != N_MERGES {
        return Err(format!(
            "the file has no tokenizer.ggml.pre, and {} tokens with {} merges are not Llama 3's ({N_TOKENS} and {N_MERGES})",
            vocabulary.tokens.len(),
            vocabulary.merges.len()
        ));
    }
    for (id, token) in KNOWN {
        if vocabulary.tokens[id] != token || vocabulary.token_types.get(id) != Some(&TokenType::Control) {
            return Err(format!(
                "the file has no tokenizer.ggml.pre, and its token {id} is not Llama 3's control token '{token}'"
            ));
        }
    }
    Ok(())
}
