//! The bucket `batches` as it is stored: followed, so that a record is known whoever wrote it, and listed.
//!
//! A leader that is paused between its check and its write leaves a record behind that nobody announced. Whoever leads
//! then finds it here; so does a standby, and a list of batches is made from what is stored, not from what is in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use ternfleet_proto::bus::{Bus, Replayed};
use ternfleet_proto::{BatchId, Now, TenantId, TimeMs, codec, table};
use tokio::sync::mpsc;

use super::Input;
use crate::core::{Action, BatchRecord, Core, Event};

/// Reads every stored batch; answers where in RESULTS the reading must begin.
pub(super) async fn load(
    bus: &Arc<dyn Bus>,
    now: Now,
    core: &mut Core,
    stored: &mut Stored,
    actions: &mut Vec<Action>,
) -> anyhow::Result<u64> {
    let entries = bus.kv_entries(table::KV_BATCHES).await.context("the stored batches cannot be read")?;
    let mut records: Vec<BatchRecord> = Vec::new();
    for entry in entries {
        match codec::decode(&entry.value) {
            Ok(record) => records.push(record),
            Err(error) => {
                tracing::error!(key = entry.key, %error, "a stored batch cannot be read; left alone")
            }
        }
    }
    records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let end =
        bus.stream_facts(table::RESULTS).await.context("the state of RESULTS cannot be read")?.last_sequence;
    let live = records.iter().filter(|record| !record.state.is_terminal());
    let from = live.map(|record| record.results_after).min().unwrap_or(end) + 1;
    for record in records {
        stored.note(&record);
        core.on(now, Event::BatchKnown(Box::new(record)), actions);
    }
    Ok(from)
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
                            tracing::warn!(%error, "a bucket must be read anew");
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
            tracing::error!(key, %error, "a stored batch cannot be read; left alone");
            None
        }
    }
}

/// Which batches are stored: a hundred bytes each, so that all of them can be listed.
#[derive(Debug, Default)]
pub(super) struct Stored {
    by_age: BTreeMap<TenantId, BTreeSet<(TimeMs, BatchId)>>,
    places: BTreeMap<BatchId, (TenantId, TimeMs)>,
}

impl Stored {
    pub(super) fn note(&mut self, record: &BatchRecord) {
        let place = (record.tenant.clone(), record.created_at);
        self.by_age.entry(place.0.clone()).or_default().insert((place.1, record.id.clone()));
        self.places.insert(record.id.clone(), place);
    }

    pub(super) fn forget(&mut self, batch: &BatchId) {
        if let Some((tenant, at)) = self.places.remove(batch)
            && let Some(batches) = self.by_age.get_mut(&tenant)
        {
            batches.remove(&(at, batch.clone()));
        }
    }

    /// Whether the tenant has such a batch.
    pub(super) fn knows(&self, tenant: &TenantId, id: &BatchId) -> bool {
        self.places.get(id).is_some_and(|(owner, _)| owner == tenant)
    }

    /// A tenant's batches behind `after`, newest first.
    pub(super) fn newest(&self, tenant: &TenantId, after: Option<&BatchId>, limit: usize) -> Vec<BatchId> {
        let Some(batches) = self.by_age.get(tenant) else { return Vec::new() };
        let ids = |found: &(TimeMs, BatchId)| found.1.clone();
        match after {
            None => batches.iter().rev().take(limit).map(ids).collect(),
            Some(id) => match self.places.get(id) {
                Some((owner, at)) if owner == tenant => {
                    batches.range(..(*at, id.clone())).rev().take(limit).map(ids).collect()
                }
                _ => Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_proto::openai::Endpoint;

    #[test]
    fn a_list_is_paged_by_age_and_keeps_to_its_tenant() {
        let mut stored = Stored::default();
        let tenants = ["acme", "rival"].map(|name| name.parse::<TenantId>().unwrap());
        for n in 0..10u64 {
            let (id, tenant) = (format!("batch_{n}").parse().unwrap(), tenants[(n % 2) as usize].clone());
            stored.note(&BatchRecord::single(TimeMs(n / 4), id, tenant, Endpoint::Completions, TimeMs(9)));
        }
        let names = |after: Option<&str>, limit| {
            let after: Option<BatchId> = after.map(|id| id.parse().unwrap());
            let found = stored.newest(&tenants[0], after.as_ref(), limit);
            found.iter().map(|id| id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(None, 2), ["batch_8", "batch_6"]);
        assert_eq!(names(Some("batch_6"), 9), ["batch_4", "batch_2", "batch_0"]);
        assert!(names(Some("batch_1"), 9).is_empty(), "another's batch is no place to go on from");
        stored.forget(&"batch_4".parse().unwrap());
        assert_eq!(stored.newest(&tenants[0], None, 9).len(), 4);
    }
}
