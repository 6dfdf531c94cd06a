//! The bytes of a model file: a memory map, or a buffer for tests, fuzzing and conversion.
#![allow(unsafe_code)] // Mapping a file is unsafe by nature; this file holds nothing else.

use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use super::Error;

/// A file's bytes, read-only.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps `path` read-only.
    pub(crate) fn map(path: &Path) -> Result<Self, Error> {
        let io = |reason| Error::Io { path: path.to_owned(), reason };
        let file = std::fs::File::open(path).map_err(io)?;
        let facts = file.metadata().map_err(io)?;
        if facts.is_dir() {
            return Err(io(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        if facts.len() == 0 {
            // A map of length zero is an error on Linux; an empty file is simply not a GGUF.
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is private and read-only, and is only ever read as plain bytes, for which every bit
        // pattern is valid. What remains is the rule that all users of mmap share: whoever truncates or
        // rewrites a model file in place while it is being loaded ends the process by SIGBUS or feeds it
        // other bytes. Model files are therefore replaced by rename, which leaves this map untouched.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
