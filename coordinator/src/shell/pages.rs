//! Pages of committed answers: of batches that have left memory, and how any page is fetched and sent.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{JobResult, Refusal, RefusalCode, Reply, ResultsPage, ResultsRequest};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{codec, table};

use super::answers::{Committed, Recent};
use super::api::{PAGE_LINES_MAX, refusal, stored_record, unknown, unreachable};
use crate::core::view_of;

/// Replies stay well under the server's largest message.
const PAGE_BYTES_MAX: usize = 700 << 10;

pub(super) type PastPage = (Arc<Vec<u64>>, Vec<u64>, ResultsPage);

pub(super) async fn past_page(
    bus: &Arc<dyn Bus>,
    key: &AssignmentKey,
    request: &ResultsRequest,
    known: Option<Arc<Vec<u64>>>,
) -> Result<PastPage, Refusal> {
    let record = stored_record(bus, &request.id).await.map_err(|error| unreachable(&error))?;
    let record = record.filter(|r| r.tenant == request.tenant).ok_or_else(|| unknown(&request.id))?;
    if record.aged_out_at.is_some() {
        let message = format!("the answers of {} were removed, as those of old batches are", request.id);
        return Err(refusal(RefusalCode::NotFound, message));
    }
    let commits = match known {
        Some(commits) => commits,
        None => {
            let read = async {
                let mut committed = Committed::of(bus, key, &record).await?;
                let mut sequences = Vec::new();
                while let Some((sequence, _)) = committed.next().await? {
                    sequences.push(sequence);
                }
                anyhow::Ok(Arc::new(sequences))
            };
            read.await.map_err(|error| refusal(RefusalCode::Unavailable, format!("{error:#}")))?
        }
    };
    let after = (request.after as usize).min(commits.len());
    let upto = commits.len().min(after + request.limit.clamp(1, PAGE_LINES_MAX) as usize);
    let view = view_of(&record, record.totals);
    let end = record.state.is_terminal() && upto == commits.len();
    let sequences = commits[after..upto].to_vec();
    Ok((commits, sequences, ResultsPage { lines: Vec::new(), next: after as u64, end, batch: view }))
}

/// Fetches the answers and replies; a page that would grow too large ends early.
pub(super) async fn send_page(
    bus: Arc<dyn Bus>,
    recent: Recent,
    sequences: Vec<u64>,
    mut page: ResultsPage,
    reply: String,
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
            Ok(payload) => payload,
            Err(error) => {
                failed = Some(unreachable(&error));
                break;
            }
        };
        let size = payload.as_ref().map_or(0, Bytes::len);
        if taken > 0 && bytes + size > PAGE_BYTES_MAX {
            break;
        }
        bytes += size;
        taken += 1;
        page.next += 1;
        if let Some(result) = payload.and_then(|payload| codec::decode::<JobResult>(&payload).ok()) {
            page.lines.push(result);
        }
    }
    drop(fetched);
    page.end &= taken == wanted;
    let answer: Reply<ResultsPage> = match failed {
        Some(refused) if taken == 0 => Err(refused),
        _ => Ok(page),
    };
    let _ = bus.send(&reply, codec::encode(&answer)).await;
}
