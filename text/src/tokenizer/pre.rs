//! Pre-tokenizers by the names that files have for them: how text is cut before merging, and what else goes with it.

use super::llama3;
use super::split::Normalizer;

/// What a name stands for.
#[derive(Debug)]
pub(crate) struct Pre {
    /// `tokenizer.ggml.pre`; all stand for the same.
    pub(crate) names: &'static [&'static str],
    /// Each expression cuts the pieces that the one before left.
    pub(crate) splits: &'static [&'static str],
    pub(crate) normalizer: Normalizer,
    pub(crate) ignore_merges: bool,
    /// Whether BOS comes first where the file is silent.
    pub(crate) add_bos: bool,
    /// A warning, where the name is all that says how text is split.
    pub(crate) note: Option<&'static str>,
}

/// Qwen 2's expression: Llama 3's, but for single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRES: [Pre; 4] = [
    Pre {
        names: &llama3::PRE_NAMES,
        splits: &[llama3::SPLIT],
        normalizer: Normalizer::None,
        ignore_merges: true,
        add_bos: true,
        note: None,
    },
    Pre {
        names: &["qwen2"],
        splits: &[QWEN2],
        normalizer: Normalizer::Nfc,
        ignore_merges: false,
        add_bos: false,
        note: None,
    },
    Pre {
        names: &["falcon3"],
        splits: &[llama3::SPLIT],
        normalizer: Normalizer::None,
        ignore_merges: true,
        add_bos: true,
        note: Some(
            "other engines implement the pre-tokenizer 'falcon3' in two ways; this one follows llama.cpp \
             (the same as Llama 3): compare with the model's tokenizer.json (`ternfleet model verify \
             --tokenizer`)",
        ),
    },
    Pre {
        names: &["falcon_e"],
        splits: &[
            r"[\p{P}\$\+<=>\^~\|`]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"[0-9]",
        ],
        normalizer: Normalizer::None,
        ignore_merges: false,
        add_bos: false,
        note: Some(
            "the pre-tokenizer 'falcon_e' is known from only one other engine; compare with the model's \
             tokenizer.json \
             (`ternfleet model verify --tokenizer`)",
        ),
    },
];

impl Pre {
    /// Its expressions, owned.
    pub(crate) fn splits(&self) -> Vec<String> {
        self.splits.iter().map(|&split| split.to_owned()).collect()
    }
}

/// The pre-tokenizer with this name.
pub(crate) fn named(name: &str) -> Option<&'static Pre> {
    PRES.iter().find(|pre| pre.names.contains(&name))
}

/// The name that a file has for this way of splitting; of several the first.
pub fn name_of(splits: &[&str], normalizer: Normalizer, ignore_merges: bool) -> Option<&'static str> {
    let same = |pre: &&Pre| {
        pre.splits == splits && pre.normalizer == normalizer && pre.ignore_merges == ignore_merges
    };
    PRES.iter().find(same).map(|pre| pre.names[0])
}

/// All names, for messages.
pub(crate) fn names() -> String {
    let names: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
