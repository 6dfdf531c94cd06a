//! Writing the output files of a batch: one pass over its results into a scratch file, then out in input order. And the
//! object that holds its answers from then on.
//!
//! Memory is sixteen bytes a line, whatever the texts' size.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::Outcome;
use ternfleet_proto::openai::output_line;
use ternfleet_proto::proof::{FileDigest, SigningKey};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{Clock, TimeMs, table};

use super::answers::{Committed, Stored};
use super::archive::Archiver;
use super::proof::{self, Files, Hashing, Prover};
use super::scratch::{content, temporary};
use crate::core::{BatchRecord, Outputs};
use crate::files::{self, FileRecord};

/// Tries of a batch whose answers are not all there; anything else is tried forever.
const ATTEMPTS: u32 = 20;
const WAIT_MAX: Duration = Duration::from_secs(10);

/// RESULTS holds fewer answers than the ledger counted.
#[derive(Debug, thiserror::Error)]
#[error("{found} of {expected} answers are in RESULTS")]
struct Missing {
    found: u32,
    expected: u32,
}

/// The fleet's keys.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) assignments: AssignmentKey,
    pub(crate) proofs: SigningKey,
}

/// Where a line is in the scratch file.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    offset: u64,
    bytes: u32,
    good: bool,
}

/// Writes both files. A connection that fails or a disk that is full, here or there, is waited out, and the batch stays
/// `finalizing` meanwhile. The answer is the reason when it cannot be done.
pub(crate) async fn write(
    bus: Arc<dyn Bus>,
    keys: Keys,
    record: BatchRecord,
    scratch: Option<std::path::PathBuf>,
    clock: Clock,
) -> Result<Outputs, String> {
    let mut attempt = 0;
    loop {
        match write_once(&bus, &keys, &record, scratch.as_deref(), &clock).await {
            Ok(outputs) => return Ok(outputs),
            Err(error) => {
                attempt += 1;
                tracing::warn!(batch = %record.id, error = format!("{error:#}"), attempt, "output files \
                                                                                           could not be \
                                                                                           written");
                if attempt >= ATTEMPTS && error.is::<Missing>() {
                    return Err(format!("the output files cannot be written: {error:#}"));
                }
                tokio::time::sleep(Duration::from_millis(300 * u64::from(attempt)).min(WAIT_MAX)).await;
            }
        }
    }
}

async fn write_once(
    bus: &Arc<dyn Bus>,
    keys: &Keys,
    record: &BatchRecord,
    scratch: Option<&Path>,
    clock: &Clock,
) -> anyhow::Result<Outputs> {
    let spool = temporary(scratch)?;
    let mut writer = BufWriter::with_capacity(1 << 20, spool);
    let mut places: Vec<Option<Place>> = vec![None; record.lines.unwrap_or(0) as usize];
    let mut offset = 0u64;
    let mut prover = Prover::new(scratch)?;
    let mut archiver = Archiver::new(temporary(scratch)?);
    let mut committed = Committed::of(bus, &keys.assignments, record).await?;
    while let Some(Stored { payload, result, .. }) = committed.next().await? {
        archiver.add(&payload).context("the scratch file")?;
        let line = output_line(&result);
        prover.line(&result, &line)?;
        writer.write_all(line.as_bytes()).context("the scratch file")?;
        let good = matches!(result.outcome, Outcome::Text(_));
        places[result.job.index as usize] = Some(Place { offset, bytes: line.len() as u32, good });
        offset += line.len() as u64;
    }
    let answered = places.iter().flatten().count() as u32;
    let expected = record.lines.unwrap_or(0) - record.totals.blank;
    if answered < expected {
        return Err(Missing { found: answered, expected }.into());
    }
    let mut spool = writer.into_inner().context("the scratch file")?;
    let output = in_order(&mut spool, &places, true, scratch)?;
    let error = in_order(&mut spool, &places, false, scratch)?;
    drop(spool);
    let answers_object = archiver.store(bus, &record.id).await.context("the object of answers")?;
    let mut files = Files { input: proof::of_input(&**bus, record).await?, ..Files::default() };
    let mut outputs = Outputs { answers_object: Some(answers_object), ..Outputs::default() };
    if let Some((file, digest)) = output {
        files.output = Some(digest);
        outputs.output_object = Some(store(bus, record, "output", file, clock.wall()).await?);
    }
    if let Some((file, digest)) = error {
        files.error = Some(digest);
        outputs.error_object = Some(store(bus, record, "error", file, clock.wall()).await?);
    }
    if let Some(file) = prover.manifest(record, files, &keys.proofs, clock.wall(), scratch)? {
        outputs.proof_object = Some(store(bus, record, "proof", file, clock.wall()).await?);
    }
    Ok(outputs)
}

/// The good or the bad lines in input order; `None` when there are none.
fn in_order(
    spool: &mut File,
    places: &[Option<Place>],
    good: bool,
    scratch: Option<&Path>,
) -> anyhow::Result<Option<(File, FileDigest)>> {
    let mut chosen = places.iter().flatten().filter(|place| place.good == good).peekable();
    if chosen.peek().is_none() {
        return Ok(None);
    }
    let mut writer = Hashing::new(BufWriter::with_capacity(1 << 20, temporary(scratch)?));
    let mut line = Vec::new();
    for place in chosen {
        line.resize(place.bytes as usize, 0);
        spool.seek(SeekFrom::Start(place.offset)).context("the scratch file")?;
        spool.read_exact(&mut line).context("the scratch file")?;
        line.push(b'\n');
        writer.write_all(&line).context("the scratch file")?;
    }
    let digest = writer.digest();
    let mut file = writer.into_inner().into_inner().context("the scratch file")?;
    file.rewind().context("the scratch file")?;
    Ok(Some((file, digest)))
}

/// Stores a file of the batch; answers its name.
async fn store(
    bus: &Arc<dyn Bus>,
    record: &BatchRecord,
    kind: &str,
    file: File,
    now: TimeMs,
) -> anyhow::Result<String> {
    let name = format!("{kind}-{}.jsonl", record.id);
    let bucket = table::files_bucket(&record.tenant);
    let stored = bus.object_put(&bucket, &name, content(file)?).await;
    let bytes = stored.with_context(|| format!("object {name}"))?;
    let expires_after_s = record.options.output_expires_after_s;
    let facts = FileRecord::new(name.clone(), files::OUTPUT, bytes, now, expires_after_s);
    let kept = files::keep(&**bus, &record.tenant, &name, &facts).await;
    kept.with_context(|| format!("record of {name}"))?;
    Ok(name)
}
