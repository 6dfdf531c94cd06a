//! Pages of committed answers: who waits for more of them, those of batches that have left memory, and how any page is
//! fetched and sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{JobResult, Refusal, RefusalCode, Reply, ResultsPage, ResultsRequest};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{BatchId, Now, codec, table};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Input;
use super::answers::{Committed, Recent};
use super::api::{refusal, stored_record, unknown, unreachable};
use super::archive::Archive;
use super::reply::ReplyTo;
use crate::core::{Batch, BatchRecord, BatchSlot, Core, view_of};

const PAGE_LINES_MAX: u32 = 1000;
/// Replies stay well under the server's largest message.
pub(super) const PAGE_BYTES_MAX: usize = 700 << 10;
const WAIT_MS_MAX: u32 = 30_000;
/// Callers who may wait for results at a time.
const POLLERS_MAX: usize = 4096;

/// Somebody who waits for more results.
#[derive(Debug)]
struct Poller {
    request: ResultsRequest,
    reply: ReplyTo,
    until: Instant,
}

/// Serves who reads results. Owned by the main loop; what takes time goes to tasks of its own.
pub(crate) struct Pages {
    bus: Arc<dyn Bus>,
    key: AssignmentKey,
    recent: Recent,
    inbox: mpsc::Sender<Input>,
    pollers: BTreeMap<BatchSlot, Vec<Poller>>,
    /// Of batches whose ledger is not in memory any more.
    past: BTreeMap<BatchId, Arc<Past>>,
}

impl Pages {
    pub(super) fn new(
        bus: Arc<dyn Bus>,
        key: AssignmentKey,
        recent: Recent,
        inbox: mpsc::Sender<Input>,
    ) -> Self {
        Self { bus, key, recent, inbox, pollers: BTreeMap::new(), past: BTreeMap::new() }
    }

    /// Somebody asks for results of a batch, which is in memory if it has a slot.
    pub(super) fn ask(
        &mut self,
        now: Now,
        slot: Option<BatchSlot>,
        request: ResultsRequest,
        reply: ReplyTo,
        core: &Core,
    ) {
        let Some(slot) = slot else { return self.page_of_past(request, reply) };
        let wait = Duration::from_millis(u64::from(request.wait_ms.min(WAIT_MS_MAX)));
        let poller = Poller { request, reply, until: Instant::now() + wait };
        // Where very many wait, one more is answered at once and asks again.
        let crowded = self.pollers.values().map(Vec::len).sum::<usize>() >= POLLERS_MAX;
        let poller = if crowded { Poller { until: Instant::now(), ..poller } } else { poller };
        if !self.try_page(now, slot, &poller, core) {
            self.pollers.entry(slot).or_default().push(poller);
        }
    }

    /// Serves those who waited long enough, or whose batch has moved.
    pub(crate) fn serve_pollers(&mut self, now: Now, core: &Core) {
        if self.pollers.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.pollers);
        for (slot, pollers) in &mut waiting {
            pollers.retain(|poller| !self.try_page(now, *slot, poller, core));
        }
        waiting.retain(|_, pollers| !pollers.is_empty());
        self.pollers = waiting;
    }

    fn try_page(&self, now: Now, slot: BatchSlot, poller: &Poller, core: &Core) -> bool {
        let is_whole = |batch: &Batch| batch.commits.len() as u64 >= u64::from(batch.answered());
        let Some(batch) = core.batch(slot).filter(|batch| !batch.is_ended() || is_whole(batch)) else {
            self.page_of_past(poller.request.clone(), poller.reply.clone());
            return true;
        };
        let (total, ended) = (batch.commits.len() as u64, batch.is_ended());
        let after = poller.request.after.min(total);
        if after == total && !ended && Instant::now() < poller.until {
            return false;
        }
        let limit = u64::from(poller.request.limit.clamp(1, PAGE_LINES_MAX));
        let upto = total.min(after + limit);
        let sequences = batch.commits[after as usize..upto as usize].to_vec();
        let view = core.view_of(now, slot, batch);
        let page = ResultsPage { lines: Vec::new(), next: after, end: ended && upto == total, batch: view };
        tokio::spawn(send_page(
            Arc::clone(&self.bus),
            self.recent.clone(),
            sequences,
            page,
            poller.reply.clone(),
        ));
        true
    }

    /// A batch that has ended, and whose answers' places are not in memory any more.
    fn page_of_past(&self, request: ResultsRequest, reply: ReplyTo) {
        let (bus, key, recent, inbox) =
            (Arc::clone(&self.bus), self.key.clone(), self.recent.clone(), self.inbox.clone());
        let known = self.past.get(&request.id).cloned();
        tokio::spawn(async move {
            match past_page(&bus, &key, &request, known).await {
                Ok(PastPage { past, content, page, keep }) => {
                    if keep {
                        let _ = inbox.send(Input::PastAnswers { batch: request.id, past }).await;
                    }
                    match content {
                        Content::Sequences(sequences) => {
                            send_page(bus, recent, sequences, page, reply).await;
                        }
                        Content::Lines(lines) => {
                            let next = page.next + lines.len() as u64;
                            let page = ResultsPage { lines, next, ..page };
                            reply.send(&*bus, &Ok(page)).await;
                        }
                    }
                }
                Err(refused) => {
                    reply.send::<()>(&*bus, &Err(refused)).await;
                }
            }
        });
    }

    pub(crate) fn keep_past(&mut self, batch: BatchId, past: Arc<Past>) {
        // A handful of old batches is read at a time.
        if self.past.len() >= 8 {
            self.past.pop_first();
        }
        self.past.insert(batch, past);
    }
}

/// Where the answers of an ended batch are.
#[derive(Debug)]
pub(crate) enum Past {
    /// At these sequences of RESULTS: nothing was written for the batch, or an earlier coordinator has written it.
    Stream(Vec<u64>),
    Object(Archive),
}

struct PastPage {
    past: Arc<Past>,
    content: Content,
    /// Without its lines.
    page: ResultsPage,
    /// Nothing more is going to change.
    keep: bool,
}

enum Content {
    Sequences(Vec<u64>),
    Lines(Vec<JobResult>),
}

async fn past_page(
    bus: &Arc<dyn Bus>,
    key: &AssignmentKey,
    request: &ResultsRequest,
    known: Option<Arc<Past>>,
) -> Result<PastPage, Refusal> {
    let record = stored_record(bus, &request.id).await.map_err(|error| unreachable(&error))?;
    let record = record.filter(|r| r.tenant == request.tenant).ok_or_else(|| unknown(&request.id))?;
    if record.aged_out_at.is_some() {
        let message = format!("the answers of {} were deleted after their retention time", request.id);
        return Err(refusal(RefusalCode::NotFound, message));
    }
    let failed = |error: anyhow::Error| refusal(RefusalCode::Unavailable, format!("{error:#}"));
    let is_at = |past: &Past| match (past, &record.answers_object) {
        (Past::Object(archive), Some(object)) => archive.name == *object,
        (Past::Stream(_), None) => true,
        _ => false,
    };
    let past = match known.filter(|past| is_at(past)) {
        Some(past) => past,
        None => Arc::new(find_past(bus, key, &record).await.map_err(failed)?),
    };
    let limit = request.limit.clamp(1, PAGE_LINES_MAX) as usize;
    let total = match &*past {
        Past::Stream(commits) => commits.len() as u64,
        Past::Object(archive) => archive.answers(),
    };
    let after = request.after.min(total);
    let content = match &*past {
        Past::Stream(commits) => {
            let upto = commits.len().min(after as usize + limit);
            Content::Sequences(commits[after as usize..upto].to_vec())
        }
        Past::Object(archive) => {
            Content::Lines(archive.read(bus, after, limit, PAGE_BYTES_MAX).await.map_err(failed)?)
        }
    };
    let count = match &content {
        Content::Sequences(sequences) => sequences.len(),
        Content::Lines(lines) => lines.len(),
    };
    let keep = record.state.is_terminal();
    let end = keep && after + count as u64 == total;
    let view = view_of(&record, record.totals);
    let page = ResultsPage { lines: Vec::new(), next: after, end, batch: view };
    Ok(PastPage { past, content, page, keep })
}

async fn find_past(bus: &Arc<dyn Bus>, key: &AssignmentKey, record: &BatchRecord) -> anyhow::Result<Past> {
    // If the object was lost with the server's power, the answers have not left the stream.
    if let Some(object) = &record.answers_object
        && let Some(archive) = Archive::open(bus, object).await?
    {
        return Ok(Past::Object(archive));
    }
    let mut committed = Committed::of(bus, key, record).await?;
    let mut sequences = Vec::new();
    while let Some(answer) = committed.next().await? {
        sequences.push(answer.sequence);
    }
    Ok(Past::Stream(sequences))
}

fn moved() -> Refusal {
    let message = "the answers are being moved: ask again".to_owned();
    Refusal { code: RefusalCode::Unavailable, message, retry_after_ms: Some(1000) }
}

/// Fetches the answers and replies; a page that would grow too large ends early.
async fn send_page(
    bus: Arc<dyn Bus>,
    recent: Recent,
    sequences: Vec<u64>,
    mut page: ResultsPage,
    reply: ReplyTo,
) {
    let wanted = sequences.len();
    let fetch = |sequence: u64| {
        let (bus, recent) = (Arc::clone(&bus), recent.clone());
        async move {
            match recent.get(sequence) {
                Some(payload) => Ok(Some(payload)),
                None => Ok(bus.message(table::RESULTS, sequence).await?.map(|message| message.payload)),
            }
        }
    };
    let mut fetched = stream::iter(sequences).map(fetch).buffered(32);
    let mut bytes = 0;
    let mut taken = 0;
    let mut failed = None;
    while let Some(payload) = fetched.next().await {
        let payload = match payload {
            Ok(Some(payload)) => payload,
            // The batch has ended meanwhile, and its answers have moved: whoever asks again is told from there.
            Ok(None) => {
                failed = Some(moved());
                break;
            }
            Err(error) => {
                failed = Some(unreachable(&error));
                break;
            }
        };
        let size = payload.len();
        if taken > 0 && bytes + size > PAGE_BYTES_MAX {
            break;
        }
        bytes += size;
        taken += 1;
        page.next += 1;
        if let Ok(result) = codec::decode::<JobResult>(&payload) {
            page.lines.push(result);
        }
    }
    drop(fetched);
    page.end &= taken == wanted;
    let answer: Reply<ResultsPage> = match failed {
        Some(refused) if taken == 0 => Err(refused),
        _ => Ok(page),
    };
    reply.send(&*bus, &answer).await;
}
