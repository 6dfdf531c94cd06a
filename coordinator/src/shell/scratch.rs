//! Files without a name, for what may be too long for memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::pin::Pin;

use anyhow::Context;
use tokio::io::AsyncRead;

/// Files up to this many bytes are sent from memory.
const IN_MEMORY_MAX: u64 = 1 << 20;

/// What is in a scratch file, read from memory where that is enough.
pub(super) fn content(mut file: File) -> anyhow::Result<Pin<Box<dyn AsyncRead + Send>>> {
    let length = file.metadata().context("the scratch file")?.len();
    if length > IN_MEMORY_MAX {
        return Ok(Box::pin(tokio::fs::File::from_std(file)));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).context("the scratch file")?;
    Ok(Box::pin(std::io::Cursor::new(bytes)))
}

pub(super) fn temporary(dir: Option<&Path>) -> anyhow::Result<File> {
    match dir {
        Some(dir) => tempfile::tempfile_in(dir),
        None => tempfile::tempfile(),
    }
    .context("a scratch file cannot be created")
}
