//! The proof of a batch ([`ternfleet_proto::proof`]), made while its output files are written: a leaf for each answer as it
//! is read, then the signed manifest.
//!
//! Leaves wait in a scratch file, 33 bytes for each line of the input, so memory does not grow with the batch.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{Evidence, JobResult, Outcome};
use ternfleet_proto::proof::{self, FileDigest, Leaf, Ran, Row, SigningKey, Statement, Tree};
use ternfleet_proto::{Digest, TimeMs, table};
use tokio::io::AsyncReadExt;

use super::scratch::temporary;
use crate::core::BatchRecord;

/// Which file, and the digest.
const LEAF_BYTES: usize = 33;
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;

/// The leaves of a batch, and what gave its answers.
pub(super) struct Prover {
    leaves: File,
    ran: BTreeMap<(String, String, String), u32>,
    proved: u32,
    unproved: u32,
}

impl Prover {
    pub(super) fn new(scratch: Option<&Path>) -> anyhow::Result<Prover> {
        Ok(Prover { leaves: temporary(scratch)?, ran: BTreeMap::new(), proved: 0, unproved: 0 })
    }

    /// Takes note of an answer and its output line.
    pub(super) fn line(&mut self, result: &JobResult, text: &str) -> anyhow::Result<()> {
        let file = match &result.outcome {
            Outcome::Text(generated) => {
                self.generated_by(generated.evidence.as_deref(), result.line.model.as_deref());
                proof::File::Output
            }
            Outcome::Failed(_) => proof::File::Error,
        };
        let index = result.job.index;
        let digest = proof::leaf(index + 1, file, text.as_bytes());
        let mut bytes = [if file == proof::File::Output { OUTPUT } else { ERROR }; LEAF_BYTES];
        bytes[1..].copy_from_slice(&digest.0);
        let at = u64::from(index) * LEAF_BYTES as u64;
        self.leaves.write_all_at(&bytes, at).context("the scratch file")
    }

    fn generated_by(&mut self, evidence: Option<&Evidence>, model: Option<&str>) {
        let Some(evidence) = evidence else {
            self.unproved += 1;
            return;
        };
        self.proved += 1;
        let name = model.unwrap_or_default().to_owned();
        let key = (name, evidence.model_digest.clone(), evidence.numerics.clone());
        *self.ran.entry(key).or_default() += 1;
    }

    /// The manifest; `None` for a batch whose engines give no evidence.
    pub(super) fn manifest(
        self,
        record: &BatchRecord,
        files: Files,
        key: &SigningKey,
        now: TimeMs,
        scratch: Option<&Path>,
    ) -> anyhow::Result<Option<File>> {
        if self.proved == 0 && self.unproved > 0 {
            return Ok(None);
        }
        let mut tree = Tree::default();
        let mut count = 0;
        for row in rows(&self.leaves)? {
            tree.push(row?.leaf.digest());
            count += 1;
        }
        let ran = |((name, digest, numerics), answers)| Ran { name, digest, numerics, answers };
        let statement = Statement {
            format: proof::FORMAT.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            batch: record.id.clone(),
            written_at: now,
            model: record.options.model.clone(),
            input: files.input,
            output: files.output,
            error: files.error,
            models: self.ran.into_iter().map(ran).collect(),
            unproved: self.unproved,
            leaves: count,
            root: tree.root(),
        };
        let mut writer = BufWriter::with_capacity(1 << 20, temporary(scratch)?);
        proof::write_head(&mut writer, &statement, key).context("the scratch file")?;
        for row in rows(&self.leaves)? {
            proof::write_row(&mut writer, &row?).context("the scratch file")?;
        }
        let mut file = writer.into_inner().context("the scratch file")?;
        file.rewind().context("the scratch file")?;
        Ok(Some(file))
    }
}

/// The files of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    pub(super) input: Option<FileDigest>,
    pub(super) output: Option<FileDigest>,
    pub(super) error: Option<FileDigest>,
}

/// What was written of the leaves, in input order; lines without an answer have none.
fn rows(leaves: &File) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Row>>> {
    let mut file = leaves.try_clone().context("the scratch file")?;
    file.rewind().context("the scratch file")?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            let mut bytes = [0; LEAF_BYTES];
            match reader.read_exact(&mut bytes) {
                Ok(()) => line += 1,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
                Err(error) => return Some(Err(error).context("the scratch file")),
            }
            let mut digest = [0; 32];
            digest.copy_from_slice(&bytes[1..]);
            let leaf = match bytes[0] {
                OUTPUT => Leaf::Output(Digest(digest)),
                ERROR => Leaf::Error(Digest(digest)),
                _ => continue,
            };
            return Some(Ok(Row { line, leaf }));
        }
    }))
}

/// The digest of a batch's input; `None` if it is gone.
pub(super) async fn of_input(bus: &dyn Bus, record: &BatchRecord) -> anyhow::Result<Option<FileDigest>> {
    let bucket = table::files_bucket(&record.tenant);
    let mut content = match bus.object_get(&bucket, &record.input_object, 0).await {
        Ok(content) => content,
        Err(BusError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error).context("the input"),
    };
    let mut hashing = Hashing::new(std::io::sink());
    let mut chunk = vec![0; 256 << 10];
    loop {
        match content.read(&mut chunk).await.context("the input")? {
            0 => return Ok(Some(hashing.digest())),
            count => hashing.write_all(&chunk[..count])?,
        }
    }
}

/// A writer that knows the digest of what went through it.
pub(super) struct Hashing<W> {
    inner: W,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Hashing<W> {
        Hashing { inner, bytes: 0, hasher: blake3::Hasher::new() }
    }

    pub(super) fn digest(&self) -> FileDigest {
        FileDigest { bytes: self.bytes, blake3: Digest(*self.hasher.finalize().as_bytes()) }
    }

    pub(super) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
