//! Fetching one large file over HTTP, so that it arrives whole and right, whatever the network does on the way.
//!
//! What came is kept in a part file with a journal beside it: a dropped connection, a killed process or a full disk costs
//! at most the chunks that were under way. Several connections fetch chunks side by side where the server gives ranges;
//! where it does not, one connection reads from the beginning. The digest of the whole decides in the end.
//!
//! Called by `ternfleet model pull`, by `pod` and by `head`, which move the finished part file into its place.

mod http;
mod meter;
mod part;
mod transfer;

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

pub(crate) use self::http::Source;
use self::http::{Answer, Fault, Opened};
#[cfg(feature = "tables")]
pub(crate) use self::http::{agent, is_here};
use self::meter::Meter;
pub(crate) use self::meter::size;
use self::part::Part;
pub(crate) use self::part::{forget, progress_of};

/// Left free on the disk besides the file itself.
const SPARE_BYTES: u64 = 64 << 20;
const CHUNK_BYTES_MIN: u64 = 256 << 10;
const CHUNK_BYTES_MAX: u64 = 16 << 20;
/// A page of text, at most.
const SMALL_BYTES_MAX: u64 = 1 << 20;

/// What is wanted, and how hard to try.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) source: &'a Source,
    /// Digest that the file must have, where it is known.
    pub(crate) sha256: Option<&'a str>,
    /// Size that it must have, where it is known.
    pub(crate) bytes: Option<u64>,
    pub(crate) connections: usize,
    /// Failures in a row, without a byte in between, that are tolerated.
    pub(crate) retries: u32,
    /// Says nothing on the way.
    pub(crate) quiet: bool,
}

/// A file that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Wanted<'_> {
    /// Fetches into `part`; continues where an earlier attempt ended. Digest and size are right when it returns.
    pub(crate) fn fetch(&self, part: &Path) -> anyhow::Result<Fetched> {
        let resumed = self.transfer(part)?;
        let fault = match self.check(part)? {
            Ok(fetched) => return Ok(fetched),
            Err(fault) => fault,
        };
        forget(part);
        // What an earlier attempt left may have been of another file. What came in one go is the server's word.
        ensure!(resumed, fault);
        if !self.quiet {
            eprintln!("the partial download does not match; downloading from the beginning");
        }
        self.transfer(part)?;
        self.check(part)?.map_err(|fault| {
            forget(part);
            anyhow::anyhow!(fault)
        })
    }

    /// Brings the bytes; tells whether some were here already.
    fn transfer(&self, path: &Path) -> anyhow::Result<bool> {
        let opened = self.knock()?;
        let total = match opened.answer {
            Answer::Part { total, .. } => Some(total),
            Answer::Whole { total } => total,
        };
        if let (Some(total), Some(bytes)) = (total, self.bytes) {
            ensure!(
                total == bytes,
                "{} offers a file of {total} bytes, but the manifest says {bytes}: it is a different file",
                self.source.host()
            );
        }
        let total = total.or(self.bytes);
        match opened.answer {
            Answer::Part { total, .. } => {
                let chunk = (total / (8 * self.connections as u64)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
                // With a digest to check against, what is here may be of any mirror.
                let validator = opened.validator.clone().filter(|_| self.sha256.is_none());
                drop(opened);
                let here = progress_of(path).filter(|(_, of)| *of == total).map_or(0, |(here, _)| here);
                room_for(path, total.saturating_sub(here))?;
                let part = Part::open(path, total, chunk, validator.as_deref())?;
                let meter = Meter::new(Some(total), part.bytes_done(), self.quiet);
                let resumed = part.bytes_done() > 0;
                transfer::by_ranges(self, &part, validator.as_deref(), &meter)?;
                meter.finish();
                Ok(resumed)
            }
            Answer::Whole { .. } => {
                forget(path);
                room_for(path, total.unwrap_or(0))?;
                let meter = Meter::new(total, 0, self.quiet);
                meter.note(format_args!(
                    "{} does not support ranges: an interrupted download starts from the beginning",
                    self.source.host()
                ));
                transfer::in_one_piece(self, opened, path, total, &meter)?;
                meter.finish();
                Ok(false)
            }
        }
    }

    /// The first question: is it there, how long is it, are there ranges?
    fn knock(&self) -> anyhow::Result<Opened> {
        let mut patience = transfer::Patience::new(self.retries);
        loop {
            match self.source.open(0..1, None) {
                Ok(opened) => return Ok(opened),
                Err(Fault::Final(reason)) => bail!(reason),
                Err(Fault::Passing { reason, after, .. }) => {
                    if !self.quiet {
                        eprintln!("{reason}");
                    }
                    patience.bear(&reason, after, || false)?;
                }
            }
        }
    }

    /// Reads the whole file again from the disk. The outer error is the disk's, the inner one says what came instead.
    fn check(&self, path: &Path) -> anyhow::Result<Result<Fetched, String>> {
        let bytes = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        let sha256 = sha256_of(path)?;
        let host = self.source.host();
        if let Some(wanted) = self.bytes.filter(|&wanted| wanted != bytes) {
            return Ok(Err(format!("{host} sent {bytes} bytes, but the manifest says {wanted}")));
        }
        if let Some(wanted) = self.sha256.filter(|wanted| **wanted != sha256) {
            return Ok(Err(format!(
                "the file from {host} does not match the manifest: its SHA-256 is {sha256}, expected \
                 {wanted}. It was deleted; try another --endpoint"
            )));
        }
        Ok(Ok(Fetched { path: path.to_owned(), bytes, sha256 }))
    }
}

/// Reads a small text in one go.
pub(crate) fn small(source: &Source) -> anyhow::Result<String> {
    let opened = source.open(0..SMALL_BYTES_MAX, None).map_err(|fault| match fault {
        Fault::Final(reason) | Fault::Passing { reason, .. } => anyhow::anyhow!(reason),
    })?;
    let mut text = String::new();
    opened.body.take(SMALL_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// SHA-256 of a file, in lower-case hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let fault = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(fault)?;
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = Sha256::new();
    loop {
        let n = file.read(&mut buffer).with_context(fault)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Free space of a folder's file system. One that does not tell is no reason to refuse.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    statvfs(folder).ok().map(|facts| facts.blocks_available().saturating_mul(facts.fragment_size()))
}

/// Refuses to begin what cannot end.
fn room_for(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let Some(free) = free_bytes(folder) else { return Ok(()) };
    ensure!(
        bytes.saturating_add(SPARE_BYTES) <= free,
        "{} has {} free, but {} more are needed: free some space, or choose another folder with --dir",
        folder.display(),
        size(free),
        size(bytes)
    );
    Ok(())
}
