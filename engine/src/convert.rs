//! Hugging Face checkpoints of every architecture that is run to GGUF and back, without loss. `ternfleet model convert`
//! drives it; it needs no network and no Python.
//!
//! Four kinds of checkpoint are in use, and what tells them apart is in `config.json`:
//!
//! - *master* weights of a BitNet (bf16, or any float): ternarised here as the reference does while it runs
//!   (`quantization_mode` "online"): w → clamp(round-half-even(w / mean|w|), −1, 1) · mean|w|, a tensor at a time;
//! - *packed* weights whose `weight_scale` **multiplies** (`linear_class` "autobitlinear": Microsoft's 2B-4T);
//! - *packed* weights whose `weight_scale` **divides** (`linear_class` "bitlinear" or none: Falcon3, Falcon-E, older ones);
//! - *floats on the ternary lattice*: no `quantization_config`, and every value is −1, 0 or +1 times the scale of its tensor,
//!   row or group of 128; each value is checked. They become I2_S (one scale), TQ2_0 or IQ2_BN (scales a row), Q2_0 (groups).
//!
//! A packed byte holds four *rows*: byte row r, bits 2i and 2i+1, is row r + i·M/4 of M. I2_S packs four
//! *columns* of one row. Reading one as the other gives a model that loads and talks nonsense, so nothing is
//! inferred from sizes: what `config.json` does not say is refused. RoPE pairs the halves of a head in checkpoints; where a
//! GGUF's architecture has them side by side, the rows of queries and keys are moved.

mod config;
mod lattice;
mod names;
mod rope;
mod safetensors;
mod to_gguf;
mod to_safetensors;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

pub use self::to_gguf::to_gguf;
pub use self::to_safetensors::to_safetensors;

/// What a checkpoint's matrices hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// Floats that are still to be ternarised.
    Master,
    /// Four rows in a byte, and a scale that multiplies.
    Multiplying,
    /// Four rows in a byte, and a scale that divides.
    Dividing,
    /// Floats that are −1, 0 or +1 times a scale of the tensor, the row or 128 inputs.
    Lattice,
}

/// What was converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What the checkpoint's matrices held, or what was written into them.
    pub checkpoint: Checkpoint,
    /// Tensors written.
    pub n_tensors: usize,
    /// Bytes written.
    pub bytes: u64,
    /// What a person should know: what was left out, what was rounded.
    pub notes: Vec<String>,
}

/// Why a conversion was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A file of the checkpoint contradicts itself or ends early.
    #[error("{} is damaged at {field}: {reason}; download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The field or tensor at fault.
        field: String,
        /// What was found there, and what would be right.
        reason: String,
    },
    /// The checkpoint is whole, but not of a kind that is converted here.
    #[error("{} cannot be converted: {field}: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field or tensor at fault.
        field: String,
        /// What was found there, and what is needed.
        reason: String,
    },
    /// The GGUF file was refused.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::Error),
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { path, reason }
    }

    fn damaged(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), field: field.into(), reason: reason.into() }
    }

    fn unsupported(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), field: field.into(), reason: reason.into() }
    }
}

/// Reads a JSON file of the checkpoint.
fn read_json(path: &Path) -> Result<serde_json::Value, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|fault| Error::damaged(path, "its JSON", fault.to_string()))
}

/// Writes `path` whole or not at all: into a file beside it, which is then renamed.
fn write_whole<T>(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let file = std::fs::File::create(&part).map_err(Error::io(&part))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let finish = |mut out: std::io::BufWriter<std::fs::File>| {
        std::io::Write::flush(&mut out)?;
        out.get_ref().sync_all()?;
        std::fs::rename(&part, path)
    };
    let written = write(&mut out).and_then(|value| finish(out).map(|()| value).map_err(Error::io(path)));
    if written.is_err() {
        // The error that matters is already in hand; a part that cannot be removed is only untidy.
        let _ = std::fs::remove_file(&part);
    }
    written
}
