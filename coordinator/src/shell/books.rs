//! The books: batch records and the audit log, one entry after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ternfleet_proto::bus::{Bus, BusError, Publish};
use ternfleet_proto::message::{Event as Audit, EventKind};
use ternfleet_proto::{BatchId, LeaderRevision, TimeMs, codec, table};
use tokio::sync::mpsc;

use super::perform::retry;
use crate::core::BatchRecord;

/// What goes into the books.
#[derive(Debug)]
pub(crate) enum Entry {
    Record(Box<BatchRecord>),
    Audit(TimeMs, EventKind),
}

/// Writes the books: records first, then what is said about them, so that whoever hears it finds it.
pub(crate) async fn keep(
    bus: Arc<dyn Bus>,
    leader: LeaderRevision,
    mut entries: mpsc::UnboundedReceiver<Entry>,
) {
    let mut revisions = BTreeMap::new();
    while let Some(entry) = entries.recv().await {
        match entry {
            Entry::Record(record) => {
                let ended = record.state.is_terminal();
                store(&bus, &mut revisions, &record).await;
                if ended {
                    revisions.remove(&record.id);
                }
            }
            Entry::Audit(at, what) => {
                let subject = table::event(kind_name(&what));
                let payload = codec::encode(&Audit { at, leader, what });
                retry(|| bus.publish(&subject, payload.clone(), Publish::default())).await;
            }
        }
    }
}

/// By compare-and-set: a leader that was paused and has been followed by another overwrites nothing of the other's.
async fn store(bus: &Arc<dyn Bus>, revisions: &mut BTreeMap<BatchId, u64>, record: &BatchRecord) {
    let key = record.id.as_str();
    let value = codec::encode(record);
    let known = match revisions.get(&record.id) {
        Some(revision) => Some(*revision),
        None => retry(|| bus.kv_get(table::KV_BATCHES, key)).await.flatten().map(|entry| entry.revision),
    };
    let Some(revision) = known else {
        tracing::error!(batch = %record.id, "the record of a batch is not in its bucket; nothing is written");
        return;
    };
    loop {
        match put(bus, key, value.clone(), revision).await {
            Ok(next) => {
                revisions.insert(record.id.clone(), next);
                return;
            }
            Err(BusError::Unreachable(_)) => {
                // It may have been stored unheard: then the bucket holds this very value.
                let now = retry(|| bus.kv_get(table::KV_BATCHES, key)).await.flatten();
                match now {
                    Some(entry) if entry.value == value => {
                        revisions.insert(record.id.clone(), entry.revision);
                        return;
                    }
                    Some(entry) if entry.revision == revision => {}
                    _ => return overtaken(record),
                }
            }
            Err(BusError::WrongLastSequence) => return overtaken(record),
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "the record of a batch is not stored");
                return;
            }
        }
    }
}

fn overtaken(record: &BatchRecord) {
    tracing::warn!(batch = %record.id, "another coordinator has written this batch's record; ours is dropped");
}

async fn put(bus: &Arc<dyn Bus>, key: &str, value: Bytes, revision: u64) -> Result<u64, BusError> {
    bus.kv_update(table::KV_BATCHES, key, value, revision, None).await
}

fn kind_name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::BatchChanged { .. } => "batch",
        EventKind::WorkerSeen { .. } | EventKind::WorkerLost { .. } => "worker",
        EventKind::Spent { .. } => "spent",
        EventKind::PodIntent { .. } | EventKind::PodRented { .. } | EventKind::PodReturned { .. } => "pod",
    }
}
