//! The books: batch records and the audit log, and the answers that wait for them. What callers wait for comes first, one
//! entry after the other; what may wait is gathered in `pile`, so that no outage and no number of pods makes it grow.

mod pile;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::bus::{Bus, BusError, Publish};
use ternfleet_proto::message::{BatchView, Event as Audit, EventKind, Reply};
use ternfleet_proto::{BatchId, LeaderRevision, TimeMs, codec, table};
use tokio::sync::mpsc;

use super::Input;
use super::account::AccountStamp;
use super::perform::retry;
use super::reply::ReplyTo;
use crate::core::{Account, BatchRecord, Event};

use pile::Next;
pub(crate) use pile::Pile;

const WAIT: Duration = Duration::from_millis(150);

/// What goes into the books.
#[derive(Debug)]
pub(crate) enum Entry {
    Record(Box<BatchRecord>),
    /// Nothing but totals has changed since the batch's last record.
    Totals(Box<BatchRecord>),
    Audit(TimeMs, EventKind),
    Account(Box<Account>),
    /// Told to a caller once everything before it about this batch is stored; never, if another leader stored instead.
    Answer {
        batch: BatchId,
        reply: ReplyTo,
        answer: Box<Reply<BatchView>>,
    },
}

/// Writes the books: records first, then what is said about them, so that whoever hears it finds it.
pub(crate) async fn keep(
    bus: Arc<dyn Bus>,
    leader: LeaderRevision,
    mut account_at: AccountStamp,
    pile: Arc<Pile>,
    inbox: mpsc::Sender<Input>,
) {
    let mut revisions = BTreeMap::new();
    let mut unstored = BTreeSet::new();
    while let Some(next) = pile.next().await {
        match next {
            Next::Record(mut record) => {
                let changed_by = std::mem::replace(&mut record.leader, leader);
                let ended = record.state.is_terminal();
                let stored = store(&bus, &mut revisions, &record, changed_by).await;
                match stored {
                    Stored::Whole => unstored.remove(&record.id),
                    Stored::Missed(_) | Stored::Not => unstored.insert(record.id.clone()),
                };
                let (batch, tenant) = (&record.id, &record.tenant);
                let news = match stored {
                    Stored::Whole if record.answers_object.is_some() => {
                        Some(Event::Archived { batch: batch.clone(), tenant: tenant.clone() })
                    }
                    Stored::Missed(found) => Some(Event::BatchKnown(found)),
                    Stored::Whole | Stored::Not => None,
                };
                if let Some(news) = news
                    && inbox.send(Input::Event(news)).await.is_err()
                {
                    return;
                }
                if ended {
                    revisions.remove(&record.id);
                }
            }
            Next::Answer { batch, .. } if unstored.contains(&batch) => {
                tracing::warn!(%batch, "a request gets no reply, because its result could not be stored");
            }
            Next::Answer { reply, answer, .. } => reply.send(&*bus, &answer).await,
            Next::Account(account) => account_at.store(&*bus, &account).await,
            Next::Audits(audits) => log(&bus, leader, audits).await,
        }
    }
}

/// Many at a time: the log of a large fleet has thousands of entries when it starts and when it loses a host.
async fn log(bus: &Arc<dyn Bus>, leader: LeaderRevision, audits: Vec<(TimeMs, EventKind)>) {
    let mut stored = Vec::with_capacity(audits.len());
    for (at, what) in audits {
        let subject = table::event(kind_name(&what));
        let payload = codec::encode(&Audit { at, leader, what });
        let ack = bus.enqueue(&subject, payload.clone(), Publish::default()).await;
        stored.push((subject, payload, ack));
    }
    for (subject, payload, ack) in stored {
        let ack = match ack {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        if ack.is_err() {
            retry(|| bus.publish(&subject, payload.clone(), Publish::default())).await;
        }
    }
}

/// What became of a record that was to be stored.
enum Stored {
    Whole,
    /// Callers were told more than it says: what was found is to be read first.
    Missed(Box<BatchRecord>),
    Not,
}

/// By compare-and-set, and only over what an earlier leader or this one has written: a leader that was paused and has
/// been followed by another overwrites nothing of the other's, and the other repeats what it was beaten to.
async fn store(
    bus: &Arc<dyn Bus>,
    revisions: &mut BTreeMap<BatchId, u64>,
    record: &BatchRecord,
    changed_by: LeaderRevision,
) -> Stored {
    let key = record.id.as_str();
    let value = codec::encode(record);
    let mut known = revisions.remove(&record.id);
    let stored_at = loop {
        let revision = match known.take() {
            Some(revision) => revision,
            None => match look(bus, record, &value).await {
                Look::Ours(revision) => break revision,
                Look::Earlier(_, found) if record.misses(&found, changed_by) => return Stored::Missed(found),
                Look::Earlier(revision, _) => revision,
                Look::Later | Look::Unusable => return Stored::Not,
            },
        };
        match bus.kv_update(table::KV_BATCHES, key, value.clone(), revision, None).await {
            Ok(next) => break next,
            // Another has written, or this was stored unheard: what is there decides.
            Err(BusError::WrongLastSequence) => {}
            Err(BusError::Unreachable(_) | BusError::Full { .. }) => tokio::time::sleep(WAIT).await,
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "the record of a batch could not be stored");
                return Stored::Not;
            }
        }
    };
    revisions.insert(record.id.clone(), stored_at);
    Stored::Whole
}

/// What the bucket holds of a batch, as seen by the leader that wants to write.
enum Look {
    /// This very value.
    Ours(u64),
    /// Something older, to be written over at this revision.
    Earlier(u64, Box<BatchRecord>),
    Later,
    Unusable,
}

async fn look(bus: &Arc<dyn Bus>, record: &BatchRecord, value: &Bytes) -> Look {
    let found = retry(|| bus.kv_get(table::KV_BATCHES, record.id.as_str())).await.flatten();
    let Some(entry) = found else {
        tracing::error!(batch = %record.id, "the record of a batch is missing in its bucket; nothing was \
                                             written");
        return Look::Unusable;
    };
    if entry.value == *value {
        return Look::Ours(entry.revision);
    }
    match codec::decode::<BatchRecord>(&entry.value) {
        Ok(stored) if record.gives_way_to(&stored) => {
            tracing::warn!(batch = %record.id, "a later leader has written this batch's record; this \
                                                leader's version is dropped");
            Look::Later
        }
        Ok(stored) => Look::Earlier(entry.revision, Box::new(stored)),
        Err(error) => {
            tracing::error!(batch = %record.id, %error, "the stored record cannot be read; ignored");
            Look::Unusable
        }
    }
}

fn kind_name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::BatchChanged { .. } => "batch",
        EventKind::WorkerSeen { .. } | EventKind::WorkerLost { .. } => "worker",
        EventKind::Spent(_) | EventKind::SpentByPods { .. } => "spent",
        EventKind::AuditDiverged { .. }
        | EventKind::CheckpointRejected { .. }
        | EventKind::CanaryDiverged { .. }
        | EventKind::HostQuarantined { .. } => "audit",
        EventKind::ClockStepped { .. } => "clock",
        EventKind::PodIntent { .. }
        | EventKind::PodRented { .. }
        | EventKind::PodReturned { .. }
        | EventKind::PodFailed { .. } => "pod",
    }
}
