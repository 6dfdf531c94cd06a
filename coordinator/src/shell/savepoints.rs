//! Savepoints of open batches in the bucket `ledger`: written by the leader, read by whoever starts from nothing, so that
//! it replays a minute of answers and not those of days.
//!
//! Of each batch there is a head, and a body under one of two names in turn: the head names the body that is whole. A
//! savepoint is believed if its body has the head's digest and RESULTS still holds, at the sequences of its newest answers,
//! what it held then: a server that lost power may have lost the end of the stream and given its sequences out again. In
//! every other case the answers are replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::{BatchId, MonoMs, Now, WorkerId, codec, table};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::answers::Recent;
use crate::core::{BatchRecord, BatchSlot, Cell, CellState, Core, Savepoint, Totals};

/// Fewer messages of RESULTS a second are replayed sooner than saved.
const MESSAGES_A_SECOND_MIN: u64 = 16;
/// Newest answers whose digest says whether RESULTS is the stream that it was.
const MARKED: usize = 16;
/// Read at a time when a coordinator starts.
const READ_AT_A_TIME: usize = 8;
const CELL_BYTES: usize = 5;

/// Names of the objects that hold a batch's savepoint: its head, then its bodies.
pub(super) fn objects(batch: &BatchId) -> [String; 3] {
    ["", "-0", "-1"].map(|part| format!("savepoint-{batch}{part}"))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Name of the body, and its digest.
    body: String,
    digest: String,
    upto: u64,
    /// Sequences of the newest committed answers, and the digest of what RESULTS holds there.
    newest: Vec<u64>,
    mark: String,
}

/// What the body says besides cells and commits.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    upto: u64,
    lines: u32,
    answers: u32,
    totals: Totals,
    tokens_made: u64,
    model: Option<String>,
    fault_reports: BTreeMap<u32, BTreeSet<WorkerId>>,
}

impl Head {
    fn last(&self) -> u64 {
        self.newest.last().copied().unwrap_or(0)
    }
}

/// The digest of these answers as they are in RESULTS; none if one of them is not there.
async fn mark(bus: &Arc<dyn Bus>, recent: Option<&Recent>, newest: &[u64]) -> anyhow::Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    for sequence in newest {
        let answer = match recent.and_then(|recent| recent.get(*sequence)) {
            Some(answer) => Some(answer),
            None => bus.message(table::RESULTS, *sequence).await?.map(|message| message.payload),
        };
        let Some(answer) = answer else { return Ok(None) };
        hasher.update(blake3::hash(&answer).as_bytes());
    }
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

fn newest(commits: &[u64]) -> Vec<u64> {
    commits[commits.len().saturating_sub(MARKED)..].to_vec()
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Facts behind their length; five bytes a line; the distances between commits, seven bits a byte.
fn encode(savepoint: &Savepoint) -> Bytes {
    let Savepoint { upto, cells, commits, fault_reports, totals, tokens_made, model } = savepoint;
    let facts = codec::encode(&Facts {
        upto: *upto,
        lines: cells.len() as u32,
        answers: commits.len() as u32,
        totals: *totals,
        tokens_made: *tokens_made,
        model: model.clone(),
        fault_reports: fault_reports.clone(),
    });
    let mut body = BytesMut::with_capacity(facts.len() + cells.len() * CELL_BYTES + commits.len() * 3);
    body.put_u32_le(facts.len() as u32);
    body.put(facts);
    for cell in cells {
        body.put_u8(cell.state as u8);
        body.put_u32_le(cell.digest);
    }
    let mut before = 0;
    for commit in commits {
        let mut distance = commit - before;
        before = *commit;
        while distance >= 0x80 {
            body.put_u8(distance as u8 | 0x80);
            distance >>= 7;
        }
        body.put_u8(distance as u8);
    }
    body.freeze()
}

fn decode(body: &[u8]) -> Option<Savepoint> {
    let (length, rest) = body.split_first_chunk::<4>()?;
    let (facts, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let facts: Facts = codec::decode(facts).ok()?;
    let (cells, mut rest) = rest.split_at_checked(facts.lines as usize * CELL_BYTES)?;
    let cell = |bytes: &[u8]| {
        let (state, digest) = bytes.split_first()?;
        let state =
            [CellState::Open, CellState::Blank, CellState::Good, CellState::Bad].get(usize::from(*state));
        Some(Cell { state: *state?, digest: u32::from_le_bytes(*digest.first_chunk()?) })
    };
    let cells: Option<Vec<Cell>> = cells.chunks_exact(CELL_BYTES).map(cell).collect();
    let mut commits = Vec::with_capacity(facts.answers as usize);
    let mut before = 0u64;
    for _ in 0..facts.answers {
        let (mut distance, mut shift) = (0u64, 0);
        loop {
            let (byte, after) = rest.split_first()?;
            rest = after;
            distance |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        before = before.checked_add(distance)?;
        commits.push(before);
    }
    let Facts { upto, totals, tokens_made, model, fault_reports, .. } = facts;
    let savepoint = Savepoint { upto, cells: cells?, commits, fault_reports, totals, tokens_made, model };
    (rest.is_empty() && savepoint.adds_up()).then_some(savepoint)
}

/// A savepoint on its way to the bucket.
#[derive(Debug)]
pub(super) struct Job {
    batch: BatchId,
    upto: u64,
    save: Save,
}

#[derive(Debug)]
enum Save {
    Whole(Savepoint),
    /// Nothing has changed since the last one, whose newest answers are these: its head alone moves.
    Head {
        newest: Vec<u64>,
    },
}

/// What the loop remembers: whose savepoint is due.
#[derive(Debug)]
pub(super) struct Savepoints {
    every: Duration,
    round_at: MonoMs,
    answers: u64,
    due: Vec<BatchSlot>,
    /// Up to where each batch is saved, and with how many answers.
    saved: BTreeMap<BatchSlot, (u64, usize)>,
    jobs: mpsc::Sender<Job>,
}

/// A round is due as well when so many messages came since the last.
const ROUND_AFTER: u64 = 1_000_000;

impl Savepoints {
    pub(super) fn new(now: MonoMs, every: Duration, jobs: mpsc::Sender<Job>) -> Savepoints {
        let (due, saved) = (Vec::new(), BTreeMap::new());
        Savepoints { every, round_at: now, answers: 0, due, saved, jobs }
    }

    /// One batch at a time: copying it takes some milliseconds for each million lines.
    pub(super) fn tick(&mut self, now: Now, core: &Core) {
        let read_to = core.results_read_to();
        if self.due.is_empty() {
            let is_due = now.since(self.round_at) >= self.every || read_to - self.answers >= ROUND_AFTER;
            if self.every.is_zero() || !is_due {
                return;
            }
            (self.round_at, self.answers) = (now.mono, read_to);
            let open: Vec<BatchSlot> = core.open_batches().map(|(slot, _)| slot).collect();
            self.saved.retain(|slot, _| open.contains(slot));
            self.due = open;
        }
        let Ok(place) = self.jobs.try_reserve() else { return };
        let saves_min = self.every.as_millis() as u64 * MESSAGES_A_SECOND_MIN / 1000;
        while let Some(slot) = self.due.pop() {
            let Some(batch) = core.batch(slot) else { continue };
            let (saved, answers) = self.saved.get(&slot).copied().unwrap_or((batch.record.results_after, 0));
            if batch.commits.is_empty() || read_to.saturating_sub(saved) < saves_min {
                continue;
            }
            let changed = batch.commits.len() > answers || !batch.fault_reports.is_empty();
            let whole = if changed { core.savepoint(slot) } else { None };
            let save = whole.map_or_else(|| Save::Head { newest: newest(&batch.commits) }, Save::Whole);
            self.saved.insert(slot, (read_to, batch.commits.len()));
            place.send(Job { batch: batch.record.id.clone(), upto: read_to, save });
            return;
        }
    }
}

/// Writes what comes, for as long as this coordinator leads.
pub(super) async fn write(bus: Arc<dyn Bus>, recent: Recent, mut jobs: mpsc::Receiver<Job>) {
    while let Some(Job { batch, upto, save }) = jobs.recv().await {
        let written = match save {
            Save::Whole(savepoint) => write_one(&bus, &recent, &batch, savepoint).await,
            Save::Head { newest } => move_head(&bus, &batch, upto, &newest).await,
        };
        if let Err(error) = written {
            tracing::warn!(%batch, error = format!("{error:#}"), "no savepoint was written; a restart replays more");
        }
    }
}

/// Not the head of another savepoint: a leader that was cut off writes late, and its successor may know of fewer answers.
async fn move_head(bus: &Arc<dyn Bus>, batch: &BatchId, upto: u64, newest: &[u64]) -> anyhow::Result<()> {
    let head_name = &objects(batch)[0];
    let Some(head) = read_object(bus, head_name).await? else { return Ok(()) };
    let head: Head = codec::decode(&head)?;
    if head.newest != newest || head.upto >= upto {
        return Ok(());
    }
    let head = Head { upto, ..head };
    bus.object_put(table::LEDGER, head_name, Box::pin(std::io::Cursor::new(codec::encode(&head)))).await?;
    remove_if_ended(bus, batch).await
}

/// The batch may have ended while its savepoint was written, and its end has removed what there was.
async fn remove_if_ended(bus: &Arc<dyn Bus>, batch: &BatchId) -> anyhow::Result<()> {
    let entry = bus.kv_get(table::KV_BATCHES, batch.as_str()).await?;
    let record = entry.and_then(|entry| codec::decode::<BatchRecord>(&entry.value).ok());
    if record.is_none_or(|record| record.state.is_terminal()) {
        for name in objects(batch) {
            bus.object_delete(table::LEDGER, &name).await?;
        }
    }
    Ok(())
}

async fn write_one(
    bus: &Arc<dyn Bus>,
    recent: &Recent,
    batch: &BatchId,
    savepoint: Savepoint,
) -> anyhow::Result<()> {
    let newest = newest(&savepoint.commits);
    // Where they are not, the batch has ended meanwhile.
    let Some(mark) = mark(bus, Some(recent), &newest).await? else { return Ok(()) };
    let [head_name, even, odd] = objects(batch);
    let before = read_object(bus, &head_name).await?;
    let before = before.and_then(|head| codec::decode::<Head>(&head).ok());
    let name = if before.is_some_and(|head| head.body == even) { odd } else { even };
    let upto = savepoint.upto;
    let encoded = ternfleet_proto::aside::run(move || {
        let body = encode(&savepoint);
        (digest(&body), body)
    });
    let (body_digest, body) = encoded.await.context("the savepoint cannot be encoded")?;
    bus.object_put(table::LEDGER, &name, Box::pin(std::io::Cursor::new(body))).await?;
    let head = Head { body: name, digest: body_digest, upto, newest, mark };
    let head = Box::pin(std::io::Cursor::new(codec::encode(&head)));
    bus.object_put(table::LEDGER, &head_name, head).await?;
    remove_if_ended(bus, batch).await
}

async fn read_object(bus: &Arc<dyn Bus>, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(bytes) = bus.object_length(table::LEDGER, name).await? else { return Ok(None) };
    let mut content = Vec::with_capacity(bytes as usize);
    bus.object_get(table::LEDGER, name, 0).await?.read_to_end(&mut content).await?;
    Ok(Some(content))
}

/// Lets the core take over what is saved of these open batches; answers where in RESULTS the reading must begin.
pub(super) async fn restore(bus: &Arc<dyn Bus>, open: &[BatchRecord], end: u64, core: &mut Core) -> u64 {
    let records: Vec<BatchRecord> = open.to_vec();
    let heads = futures::stream::iter(records).map(|record| async move {
        let head = read_object(bus, &objects(&record.id)[0]).await.ok().flatten();
        Some((record, codec::decode::<Head>(&head?).ok()?))
    });
    let mut heads: Vec<(BatchRecord, Head)> =
        heads.buffered(READ_AT_A_TIME).filter_map(std::future::ready).collect().await;
    heads.sort_by_key(|(_, head)| head.last());
    // What a server loses is the end of a stream: below an answer that is still there nothing is missing.
    while let Some((record, head)) = heads.last() {
        let found = mark(bus, None, &head.newest).await.ok().flatten();
        if found.is_some_and(|found| found == head.mark) {
            break;
        }
        tracing::warn!(batch = %record.id, "a savepoint does not fit RESULTS; the answers are replayed");
        heads.pop();
    }
    let whole_to = heads.last().map_or(0, |(_, head)| head.last());
    let mut saved: BTreeMap<&BatchId, u64> = BTreeMap::new();
    for (record, head) in &heads {
        match read(bus, record, head, whole_to).await {
            Ok(savepoint) => {
                if let Some(slot) = core.find(&record.id) {
                    saved.insert(&record.id, savepoint.upto);
                    core.restore(slot, savepoint);
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(batch = %record.id, error, "a savepoint cannot be used; the answers are replayed");
            }
        }
    }
    let after = |record: &BatchRecord| saved.get(&record.id).copied().unwrap_or(record.results_after);
    let from = open.iter().map(after).min().unwrap_or(end) + 1;
    tracing::info!(batches = open.len(), saved = saved.len(), from, end, "open batches are known");
    from
}

async fn read(
    bus: &Arc<dyn Bus>,
    record: &BatchRecord,
    head: &Head,
    whole_to: u64,
) -> anyhow::Result<Savepoint> {
    let body = read_object(bus, &head.body).await?.context("its body is not there")?;
    ensure!(digest(&body) == head.digest, "its body is another one");
    let savepoint = decode(&body).context("its body is damaged")?;
    ensure!(savepoint.commits.ends_with(&head.newest), "head and body differ");
    ensure!(
        savepoint.commits.first().is_some_and(|first| *first > record.results_after),
        "it is of an older batch"
    );
    ensure!(
        record.lines.is_none_or(|lines| savepoint.cells.len() <= lines as usize),
        "it has too many lines"
    );
    Ok(Savepoint { upto: head.upto.min(whole_to), ..savepoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn savepoint() -> Savepoint {
        let states = [CellState::Good, CellState::Open, CellState::Blank, CellState::Bad, CellState::Good];
        let cells = (7..).zip(states).map(|(digest, state)| Cell { state, digest }).collect();
        let totals = Totals { completed: 2, failed: 1, blank: 1, prompt_tokens: 9, ..Totals::default() };
        Savepoint {
            upto: 90_000,
            cells,
            commits: vec![5, 300, 80_000],
            fault_reports: [(1, ["w-1".parse().unwrap()].into())].into(),
            totals,
            tokens_made: 11,
            model: Some("m".to_owned()),
        }
    }

    #[test]
    fn a_savepoint_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        let body = encode(&savepoint());
        assert_eq!(decode(&body), Some(savepoint()));
        for length in 0..body.len() {
            assert_eq!(decode(&body[..length]), None, "cut at {length}");
        }
        let wrong = Savepoint { totals: Totals { completed: 3, ..savepoint().totals }, ..savepoint() };
        assert_eq!(decode(&encode(&wrong)), None, "its sums do not agree");
    }
}
