//! The part file: its full length from the beginning, chunks filled in any order, and a journal of those that are whole.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What is whole, beside the part file as `….journal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    bytes: u64,
    chunk_bytes: u64,
    /// Tells one state of the file on the server from another.
    validator: Option<String>,
    /// One letter a chunk: `#` is whole.
    chunks: String,
}

/// A file that is being filled.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    journal_path: PathBuf,
    journal: Mutex<Journal>,
}

fn journal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

/// Takes away what an attempt left.
pub(crate) fn forget(path: &Path) {
    for path in [path, &journal_of(path)] {
        // It may never have been there.
        let _ = std::fs::remove_file(path);
    }
}

/// How much of a file is here, of how much, without opening it for writing.
pub(crate) fn progress_of(path: &Path) -> Option<(u64, u64)> {
    let journal: Journal = serde_json::from_slice(&std::fs::read(journal_of(path)).ok()?).ok()?;
    Some((journal.bytes_done(), journal.bytes))
}

impl Journal {
    fn n_chunks(&self) -> u64 {
        self.bytes.div_ceil(self.chunk_bytes)
    }

    fn is_sound(&self) -> bool {
        self.chunk_bytes > 0 && self.chunks.len() as u64 == self.n_chunks()
    }

    fn range(&self, chunk: u64) -> std::ops::Range<u64> {
        let start = chunk * self.chunk_bytes;
        start..(start + self.chunk_bytes).min(self.bytes)
    }

    fn bytes_done(&self) -> u64 {
        let whole = self.chunks.bytes().enumerate().filter(|(_, letter)| *letter == b'#');
        whole.map(|(chunk, _)| self.range(chunk as u64)).map(|range| range.end - range.start).sum()
    }
}

impl Part {
    /// Continues with what is there if it is of a file of this size and state, and starts again otherwise.
    pub(super) fn open(
        path: &Path,
        bytes: u64,
        chunk_bytes: u64,
        validator: Option<&str>,
    ) -> anyhow::Result<Part> {
        let fault = || format!("cannot write {}", path.display());
        let journal_path = journal_of(path);
        let kept = std::fs::read(&journal_path).ok();
        let kept = kept.and_then(|text| serde_json::from_slice::<Journal>(&text).ok()).filter(|kept| {
            let same = kept.bytes == bytes && kept.validator.as_deref() == validator;
            same && kept.is_sound() && std::fs::metadata(path).is_ok_and(|facts| facts.len() == bytes)
        });
        let journal = kept.unwrap_or_else(|| {
            forget(path);
            let n_chunks = usize::try_from(bytes.div_ceil(chunk_bytes)).unwrap_or(usize::MAX).min(1 << 24);
            let chunks = ".".repeat(n_chunks);
            Journal { bytes, chunk_bytes, validator: validator.map(str::to_owned), chunks }
        });
        anyhow::ensure!(
            journal.is_sound(),
            "{} is not a valid size for a model file: {bytes} bytes",
            path.display()
        );
        let file = File::options().create(true).truncate(false).write(true).open(path).with_context(fault)?;
        file.set_len(bytes).with_context(fault)?;
        let part = Part { file, journal_path, journal: Mutex::new(journal) };
        part.save(&part.lock()).with_context(fault)?;
        Ok(part)
    }

    pub(super) fn bytes_done(&self) -> u64 {
        self.lock().bytes_done()
    }

    /// The chunks that are still to come, as (number, bytes).
    pub(super) fn missing(&self) -> Vec<(u64, std::ops::Range<u64>)> {
        let journal = self.lock();
        let open = (0..journal.n_chunks()).filter(|&chunk| journal.chunks.as_bytes()[chunk as usize] != b'#');
        open.map(|chunk| (chunk, journal.range(chunk))).collect()
    }

    pub(super) fn write_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// Notes that a chunk is whole.
    pub(super) fn done(&self, chunk: u64) -> anyhow::Result<()> {
        let mut journal = self.lock();
        let chunk = chunk as usize;
        journal.chunks.replace_range(chunk..=chunk, "#");
        self.save(&journal).with_context(|| format!("cannot write {}", self.journal_path.display()))
    }

    /// On the disk, not only in memory.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.file.sync_all()
    }

    fn save(&self, journal: &Journal) -> std::io::Result<()> {
        let draft = self.journal_path.with_extension("journal-draft");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(journal)?)?;
        std::fs::rename(&draft, &self.journal_path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Journal> {
        // The journal is whole between any two statements that hold it.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_remembered_and_what_does_not_fit_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.part");
        let part = Part::open(&path, 1000, 256, Some("tag")).unwrap();
        assert_eq!(part.missing().len(), 4);
        part.write_at(&[7; 232], 768).unwrap();
        part.done(3).unwrap();
        drop(part);

        assert_eq!(progress_of(&path), Some((232, 1000)));
        let part = Part::open(&path, 1000, 999, Some("tag")).unwrap();
        assert_eq!(
            (part.bytes_done(), part.missing()[2].clone()),
            (232, (2, 512..768)),
            "the old chunks hold"
        );
        for (bytes, validator) in [(1001, Some("tag")), (1000, Some("other")), (1000, None)] {
            let part = Part::open(&path, bytes, 256, validator).unwrap();
            assert_eq!(part.bytes_done(), 0, "{bytes} {validator:?}");
            part.done(0).unwrap();
        }
        std::fs::write(journal_of(&path), "{").unwrap();
        assert_eq!(Part::open(&path, 1000, 256, None).unwrap().bytes_done(), 0);
        forget(&path);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
