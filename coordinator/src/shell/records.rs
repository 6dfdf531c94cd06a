//! The bucket `batches` as it is stored: followed, so that a record is known whoever wrote it, and listed.
//!
//! A leader that is paused between its check and its write leaves a record behind that nobody announced. Whoever leads
//! then finds it here; so does a standby, and a list of batches is made from what is stored, not from what is in memory.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use ternfleet_proto::bus::{Bus, Replayed};
use ternfleet_proto::{Now, codec, table};
use tokio::sync::mpsc;

use super::Input;
use super::find::Stored;
use crate::core::{Action, BatchRecord, Core, Event};

/// What was found.
pub(super) struct Loaded {
    /// Batches that have not ended, and were not known.
    pub(super) open: Vec<BatchRecord>,
    /// The last sequence of RESULTS before the batches were read.
    pub(super) end: u64,
}

/// Reads every stored batch.
pub(super) async fn load(
    bus: &Arc<dyn Bus>,
    now: Now,
    core: &mut Core,
    stored: &mut Stored,
    actions: &mut Vec<Action>,
) -> anyhow::Result<Loaded> {
    // First: a batch that is created later has its answers behind it.
    let end =
        bus.stream_facts(table::RESULTS).await.context("the state of RESULTS cannot be read")?.last_sequence;
    let entries = bus.kv_entries(table::KV_BATCHES).await.context("the stored batches cannot be read")?;
    let mut records: Vec<BatchRecord> = Vec::new();
    for entry in entries {
        match codec::decode(&entry.value) {
            Ok(record) => records.push(record),
            Err(error) => {
                tracing::error!(key = entry.key, %error, "a stored batch cannot be read; ignored")
            }
        }
    }
    records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    // What a leader before said of an end that it did not get to store is void.
    *stored = Stored::default();
    let mut open = Vec::new();
    for record in records {
        stored.note(&record);
        if !record.state.is_terminal() && core.find(&record.id).is_none() {
            open.push(record.clone());
        }
        core.on(now, Event::BatchKnown(Box::new(record)), actions);
    }
    Ok(Loaded { open, end })
}

/// Feeds every value that is stored in the bucket from `from_revision` on to the inbox, in order, forever.
pub(super) async fn follow(
    bus: Arc<dyn Bus>,
    bucket: &'static str,
    from_revision: u64,
    inbox: mpsc::Sender<Input>,
    understood: fn(&str, &[u8]) -> Option<Input>,
) {
    let (stream, filter) = (table::kv_stream(bucket), table::kv_values(bucket));
    let mut next = from_revision;
    while !inbox.is_closed() {
        match bus.replay(&stream, &filter, next).await {
            Ok(mut replay) => {
                while let Some(item) = replay.next().await {
                    let message = match item {
                        Ok(Replayed::Message(message)) => message,
                        Ok(Replayed::CaughtUp) => continue,
                        Err(error) => {
                            tracing::warn!(%error, "a bucket must be read again");
                            break;
                        }
                    };
                    next = message.sequence + 1;
                    let Some(key) = table::kv_key(bucket, &message.subject) else { continue };
                    let Some(input) = understood(key, &message.payload) else { continue };
                    if inbox.send(input).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "a bucket cannot be read"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A value of the bucket `batches`.
pub(super) fn understood(key: &str, payload: &[u8]) -> Option<Input> {
    // Markers of values that are gone are empty.
    if payload.is_empty() {
        return key.parse().ok().map(Input::RecordGone);
    }
    match codec::decode::<BatchRecord>(payload) {
        Ok(record) => Some(Input::Recorded(Box::new(record))),
        Err(error) => {
            tracing::error!(key, %error, "a stored batch cannot be read; ignored");
            None
        }
    }
}
