//! The answers of an ended batch as one object of the bucket `ledger`, so that RESULTS holds those of open batches alone:
//! each as it was in the stream, in the order of their commit, which readers of pages count by.
//!
//! The object is one answer after the other, each behind its length (four bytes, little-endian); then the index, as
//! MessagePack; then the index's length (four bytes).

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::JobResult;
use ternfleet_proto::{BatchId, codec, table};

use super::scratch::content;

/// An offset is kept for every so many answers.
const INDEX_EVERY: u64 = 256;
const LENGTH_BYTES: usize = 4;
/// Read at a time: about a page of answers.
const PART_BYTES: usize = 512 << 10;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    answers: u64,
    /// Byte offsets of answers 0, 256, 512, …
    offsets: Vec<u64>,
    /// Where the last answer ends.
    end: u64,
}

/// Puts the object together in a scratch file.
pub(super) struct Archiver {
    file: BufWriter<File>,
    index: Index,
}

impl Archiver {
    pub(super) fn new(file: File) -> Archiver {
        Archiver { file: BufWriter::with_capacity(1 << 20, file), index: Index::default() }
    }

    pub(super) fn add(&mut self, answer: &[u8]) -> io::Result<()> {
        if self.index.answers.is_multiple_of(INDEX_EVERY) {
            self.index.offsets.push(self.index.end);
        }
        self.index.answers += 1;
        self.index.end += (LENGTH_BYTES + answer.len()) as u64;
        self.file.write_all(&(answer.len() as u32).to_le_bytes())?;
        self.file.write_all(answer)
    }

    fn finish(mut self) -> io::Result<File> {
        let index = codec::encode(&self.index);
        self.file.write_all(&index)?;
        self.file.write_all(&(index.len() as u32).to_le_bytes())?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(file)
    }

    /// Stores the object, and reads it back whole before anybody relies on it. Its name.
    pub(super) async fn store(self, bus: &Arc<dyn Bus>, batch: &BatchId) -> anyhow::Result<String> {
        let name = format!("answers-{batch}");
        let content = content(self.finish().context("the scratch file")?)?;
        let bytes = bus.object_put(table::LEDGER, &name, content).await?;
        // The reader compares the digest at the end.
        let mut stored = bus.object_get(table::LEDGER, &name, 0).await?;
        let read = tokio::io::copy(&mut stored, &mut tokio::io::sink()).await?;
        ensure!(read == bytes, "{read} of {bytes} bytes of object {name} came back");
        Ok(name)
    }
}

/// An object of answers, to be read from any of them on.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(super) name: String,
    index: Index,
}

impl Archive {
    /// None if there is no such object.
    pub(super) async fn open(bus: &Arc<dyn Bus>, name: &str) -> anyhow::Result<Option<Archive>> {
        let Some(bytes) = bus.object_length(table::LEDGER, name).await? else { return Ok(None) };
        let length_at = bytes.checked_sub(LENGTH_BYTES as u64).context("the object is too short")?;
        let part = bus.object_part(table::LEDGER, name, length_at, LENGTH_BYTES).await?;
        let length = length_of(&part).context("the object is too short")?;
        let index_at = length_at.checked_sub(length as u64).context("the object is too short")?;
        let index: Index = codec::decode(&bus.object_part(table::LEDGER, name, index_at, length).await?)?;
        ensure!(index.end == index_at, "object {name} is damaged: its index does not fit");
        Ok(Some(Archive { name: name.to_owned(), index }))
    }

    /// Answers in all.
    pub(super) fn answers(&self) -> u64 {
        self.index.answers
    }

    /// Up to `limit` answers behind the first `after`, of about so many bytes, and at least one while there are any.
    pub(super) async fn read(
        &self,
        bus: &Arc<dyn Bus>,
        after: u64,
        limit: usize,
        bytes_max: usize,
    ) -> anyhow::Result<Vec<JobResult>> {
        let Index { answers, offsets, end } = &self.index;
        let mut place = after / INDEX_EVERY * INDEX_EVERY;
        let offset = offsets.get((after / INDEX_EVERY) as usize);
        let Some(mut offset) = offset.copied().filter(|_| after < *answers) else { return Ok(Vec::new()) };
        let (mut found, mut bytes) = (Vec::new(), 0);
        let (mut part, mut at) = (bytes::Bytes::new(), 0);
        while place < *answers && found.len() < limit {
            let frame = length_of(&part[at..]).map(|length| LENGTH_BYTES + length);
            match frame {
                Some(frame) if part.len() - at >= frame => {
                    if place >= after {
                        if !found.is_empty() && bytes + frame > bytes_max {
                            break;
                        }
                        bytes += frame;
                        found.push(codec::decode(&part[at + LENGTH_BYTES..at + frame])?);
                    }
                    place += 1;
                    at += frame;
                }
                // The part ends within an answer: from there on anew, whole.
                _ => {
                    offset += at as u64;
                    let wanted = PART_BYTES.max(frame.unwrap_or(0)).min(end.saturating_sub(offset) as usize);
                    ensure!(wanted > part.len() - at, "object {} is damaged", self.name);
                    (part, at) = (bus.object_part(table::LEDGER, &self.name, offset, wanted).await?, 0);
                }
            }
        }
        Ok(found)
    }
}

fn length_of(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<LENGTH_BYTES>()?;
    Some(u32::from_le_bytes(*length) as usize)
}
