//! What can be wrong with a model file, each variant named for what its reader can do about it.

use std::path::PathBuf;

/// Why a model file was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or mapped.
    #[error("cannot read the model file {}: {reason}; check the path and its permissions", path.display())]
    Io {
        /// The path as it was given.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// The file is not GGUF, or not a GGUF this engine reads.
    #[error("{0}")]
    Foreign(String),
    /// The file contradicts itself or ends early.
    #[error(
        "the model file is damaged at {field}: {reason}; download it again and compare its SHA-256 with \
         the manifest"
    )]
    Damaged {
        /// The field at fault, as in `tensor 3 ('blk.0.attn_q.weight'), offset`.
        field: String,
        /// What was found there, and what would be right.
        reason: String,
    },
    /// The file is whole, but needs something this engine does not do.
    #[error("the model file is not supported: {field}: {reason}")]
    Unsupported {
        /// The field at fault.
        field: String,
        /// What was found there, and what to do instead.
        reason: String,
    },
    /// The file is whole, but its metadata and tensors do not make up one model.
    #[error("the model file is incomplete: {field}: {reason}; convert it again from its source")]
    Model {
        /// The key or tensor at fault.
        field: String,
        /// What was found there, and what would be right.
        reason: String,
    },
}

impl Error {
    pub(crate) fn damaged(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn model(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Model { field: field.into(), reason: reason.into() }
    }
}
