//! How the answers of an ended batch leave RESULTS: when the object that holds them, the output files and the record that
//! names them are on the server's disk. A server that syncs seldom and loses power may lose what it has acknowledged, so
//! whether all of them are still there is looked at after it must have synced them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::{BatchId, Clock, TenantId, codec, table};

use super::perform::retry;
use super::savepoints;
use crate::core::BatchRecord;

/// Sequences of RESULTS that one removal looks at: a stream takes no message while it removes others.
const DROPPED_AT_A_TIME: u64 = 50_000;
/// A leader that lives removes the answers of an ended batch within this time.
const DROPPED_WITHIN: Duration = Duration::from_secs(3600);
/// Batches of earlier leaders that are looked at side by side.
const BATCHES_AT_A_TIME: usize = 32;

/// An earlier leader may have ended between storing a batch's record and removing its answers.
pub(super) async fn finish(bus: Arc<dyn Bus>, synced_after: Duration, clock: Clock) {
    let entries = retry(|| bus.kv_entries(table::KV_BATCHES)).await.unwrap_or_default();
    let records = entries.into_iter().filter_map(|entry| codec::decode::<BatchRecord>(&entry.value).ok());
    let lately = |record: &BatchRecord| {
        let ended = record.ended_at.is_some_and(|at| clock.wall().since(at) < DROPPED_WITHIN);
        ended && record.answers_object.is_some()
    };
    let dropped =
        records.filter(lately).map(|record| drop_answers(&bus, record.tenant, record.id, synced_after));
    futures::stream::iter(dropped).buffer_unordered(BATCHES_AT_A_TIME).collect::<()>().await;
}

/// Removes the answers of a batch once nothing of it can be lost any more; never, if something was.
pub(super) async fn drop_answers(
    bus: &Arc<dyn Bus>,
    tenant: TenantId,
    batch: BatchId,
    synced_after: Duration,
) {
    let Some(Some(mut before)) = retry(|| stored(bus, &batch)).await else { return };
    // It saves no replay any more.
    for name in savepoints::objects(&batch) {
        retry(|| bus.object_delete(table::LEDGER, &name)).await;
    }
    loop {
        tokio::time::sleep(synced_after).await;
        match retry(|| stored(bus, &batch)).await {
            Some(Some(after)) if after == before => break,
            // It was stored again meanwhile: that has to be on the disk, too.
            Some(Some(after)) => before = after,
            Some(None) => {
                tracing::warn!(%batch, "answers stay in RESULTS: what was written when the batch ended is not there");
                return;
            }
            None => return,
        }
    }
    let filter = table::results_of(&tenant, &batch);
    let facts = retry(|| bus.stream_facts(table::RESULTS)).await.unwrap_or_default();
    let mut end = before.results_after.max(facts.first_sequence) + DROPPED_AT_A_TIME;
    while end < facts.last_sequence {
        retry(|| bus.purge_before(table::RESULTS, &filter, end)).await;
        end += DROPPED_AT_A_TIME;
    }
    retry(|| bus.purge(table::RESULTS, &filter)).await;
}

/// What is stored of an ended batch.
#[derive(PartialEq, Eq)]
struct Stored {
    revision: u64,
    answers_bytes: u64,
    results_after: u64,
}

/// None if the record does not say that the batch has ended, or an object is missing that it names.
async fn stored(bus: &Arc<dyn Bus>, batch: &BatchId) -> Result<Option<Stored>, BusError> {
    let Some(entry) = bus.kv_get(table::KV_BATCHES, batch.as_str()).await? else { return Ok(None) };
    let Ok(record) = codec::decode::<BatchRecord>(&entry.value) else { return Ok(None) };
    let Some(answers) = record.answers_object.filter(|_| record.state.is_terminal()) else { return Ok(None) };
    let files = table::files_bucket(&record.tenant);
    for file in record.output_object.iter().chain(&record.error_object).chain(&record.proof_object) {
        if bus.object_length(&files, file).await?.is_none() {
            return Ok(None);
        }
    }
    let length = bus.object_length(table::LEDGER, &answers).await?;
    let found = |answers_bytes| Stored {
        revision: entry.revision,
        answers_bytes,
        results_after: record.results_after,
    };
    Ok(length.map(found))
}
