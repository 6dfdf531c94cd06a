//! Key-value buckets in the layout that every NATS client knows: stream `KV_<bucket>`, subject `$KV.<bucket>.<key>`.
//!
//! A revision is a stream sequence, so compare-and-set is the publish condition "last sequence of this subject". A
//! deleted key leaves a marker, whose sequence the next creation expects.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use super::api::StoredMessage;
use super::{NatsBus, replay};
use crate::bus::{BusError, Entry, Publish, Replayed, Result};
use crate::table::{self, KvSpec};

const OPERATION: &str = "KV-Operation";
/// Set by the server on the markers it leaves itself.
const MARKER: &str = "Nats-Marker-Reason";
const TTL: &str = "Nats-TTL";

pub(super) fn configuration(spec: &KvSpec) -> Value {
    json!({
        "name": table::kv_stream(&spec.bucket),
        "subjects": [table::kv_values(&spec.bucket)],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": spec.replicas,
        "max_age": spec.max_age.map_or(0, |age| age.as_nanos() as u64),
        "max_bytes": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": spec.history,
        "max_msg_size": -1,
        "max_consumers": -1,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
        "allow_msg_ttl": true,
        "deny_delete": true,
    })
}

fn subject(bucket: &str, key: &str) -> Result<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_/=.".contains(&b);
    if key.is_empty() || key.starts_with('.') || key.ends_with('.') || !key.bytes().all(fits) {
        return Err(BusError::Refused(format!("{key:?} is not a valid key: use A-Z a-z 0-9 - _ / = .")));
    }
    Ok(format!("$KV.{bucket}.{key}"))
}

fn is_marker(message: &StoredMessage) -> bool {
    matches!(message.header(OPERATION), Some("DEL" | "PURGE")) || message.header(MARKER).is_some()
}

impl NatsBus {
    pub(super) async fn value(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        let found = self.stored_last(&table::kv_stream(bucket), &subject(bucket, key)?).await?;
        Ok(found.filter(|message| !is_marker(message)).map(|message| Entry {
            key: key.to_owned(),
            value: message.payload,
            revision: message.sequence,
        }))
    }

    pub(super) async fn set_value(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        let headers =
            ttl.map(|ttl| (TTL.to_owned(), format!("{}s", ttl.as_secs().max(1)))).into_iter().collect();
        let how = Publish { expect_last_on_subject: revision, headers, message_id: None };
        Ok(self.start_publish(&subject(bucket, key)?, value, how).await?.await?.sequence)
    }

    pub(super) async fn create_value(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        let mut expected = 0;
        // Twice: once for an unused key, once over the marker of a deleted one. More turns would be another's turn.
        for _ in 0..2 {
            match self.set_value(bucket, key, value.clone(), Some(expected), ttl).await {
                Err(BusError::WrongLastSequence) => {}
                other => return other,
            }
            match self.stored_last(&table::kv_stream(bucket), &subject(bucket, key)?).await? {
                Some(message) if is_marker(&message) => expected = message.sequence,
                Some(_) => break,
                None => expected = 0,
            }
        }
        Err(BusError::Exists(format!("{key} in {bucket}")))
    }

    pub(super) async fn delete_value(&self, bucket: &str, key: &str, revision: Option<u64>) -> Result<()> {
        let headers = vec![(OPERATION.to_owned(), "DEL".to_owned())];
        let how = Publish { expect_last_on_subject: revision, headers, message_id: None };
        self.start_publish(&subject(bucket, key)?, Bytes::new(), how).await?.await.map(drop)
    }

    /// Reads the bucket's stream once. Markers are told by their empty value, which no value of ours has.
    pub(super) async fn values(&self, bucket: &str) -> Result<Vec<Entry>> {
        let (stream, values) = (table::kv_stream(bucket), table::kv_values(bucket));
        let mut messages = replay::open(self.clone(), &stream, &values, 1).await?;
        let mut last: BTreeMap<String, Entry> = BTreeMap::new();
        while let Some(item) = messages.next().await {
            let message = match item? {
                Replayed::CaughtUp => break,
                Replayed::Message(message) => message,
            };
            let key = table::kv_key(bucket, &message.subject).unwrap_or(&message.subject).to_owned();
            let entry = Entry { key: key.clone(), value: message.payload, revision: message.sequence };
            last.insert(key, entry);
        }
        Ok(last.into_values().filter(|entry| !entry.value.is_empty()).collect())
    }
}
