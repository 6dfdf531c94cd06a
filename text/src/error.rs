//! What can go wrong between text and ids, each variant named for what its reader can do about it.

use std::path::PathBuf;

/// Why a manifest, a vocabulary or a text was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A manifest cannot be read.
    #[error("cannot read the manifest {}: {reason}", path.display())]
    Io {
        /// Where it should be.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A manifest is wrong, in every way that is listed.
    #[error("{origin} has {} error(s); correct them:\n  - {}", faults.len(), faults.join("\n  - "))]
    Manifest {
        /// The path, or another name for where the text came from.
        origin: String,
        /// All faults at once.
        faults: Vec<String>,
    },
    /// The vocabulary contradicts itself or the manifest.
    #[error("the model's vocabulary cannot be used: {0}")]
    Vocabulary(String),
    /// Nothing says how this vocabulary splits text, and guessing would give wrong ids in silence.
    #[error(
        "the pre-tokenizer of this model is not known: {0}; put its manifest.toml next to the model file \
         (models/*/manifest.toml are examples), or pass token ids instead of text"
    )]
    UnknownSplit(String),
    /// The chat template does not render.
    #[error("the chat template cannot be rendered: {0}")]
    Template(String),
    /// This text cannot be turned into ids.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
}
