//! What is known of a file besides its content: the value under its name in the bucket `files`.
//!
//! Files that came without one (from `ternfleet submit`, say) are objects like any other; they have no purpose, no end and
//! no name but the object's. A deleted file leaves its place in the order of lists for a day, so that whoever walks a list
//! and deletes on the way misses nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ternfleet_proto::bus::{Bus, BusError, Result};
use ternfleet_proto::table::{KV_FILES, file_key, files_bucket};
use ternfleet_proto::{TenantId, TimeMs};

/// How long a walk over a list may take.
const PLACE_KEPT: Duration = Duration::from_secs(86_400);

pub(crate) const INPUT: &str = "batch";
pub(crate) const OUTPUT: &str = "batch_output";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) filename: String,
    pub(crate) purpose: String,
    pub(crate) bytes: u64,
    pub(crate) created_at: TimeMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<TimeMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deleted_at: Option<TimeMs>,
}

impl FileRecord {
    pub(crate) fn new(
        filename: String,
        purpose: &str,
        bytes: u64,
        created_at: TimeMs,
        expires_after_s: Option<u64>,
    ) -> FileRecord {
        let expires_at = expires_after_s.map(|seconds| created_at.plus(Duration::from_secs(seconds)));
        FileRecord { filename, purpose: purpose.to_owned(), bytes, created_at, expires_at, deleted_at: None }
    }

    /// An object that came without a record.
    pub(crate) fn plain(name: &str, bytes: u64, created_at: TimeMs) -> FileRecord {
        let is_output =
            ["output-batch_", "error-batch_", "proof-batch_"].iter().any(|begin| name.starts_with(begin));
        let filename = format!("{}.jsonl", name.trim_end_matches(".jsonl"));
        FileRecord::new(filename, if is_output { OUTPUT } else { INPUT }, bytes, created_at, None)
    }

    pub(crate) fn is_expired(&self, now: TimeMs) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Nobody may read it any more.
    pub(crate) fn is_gone(&self, now: TimeMs) -> bool {
        self.deleted_at.is_some() || self.is_expired(now)
    }

    pub(crate) fn parse(value: &[u8]) -> Option<FileRecord> {
        serde_json::from_slice(value).ok()
    }

    fn value(&self) -> bytes::Bytes {
        serde_json::to_vec(self).expect("because a record is plain data").into()
    }
}

pub(crate) async fn keep(bus: &dyn Bus, tenant: &TenantId, name: &str, record: &FileRecord) -> Result<()> {
    bus.kv_put(KV_FILES, &file_key(tenant, name), record.value()).await.map(|_| ())
}

/// The record of a file, of a deleted one too.
pub(crate) async fn find(bus: &dyn Bus, tenant: &TenantId, name: &str) -> Result<Option<FileRecord>> {
    let entry = bus.kv_get(KV_FILES, &file_key(tenant, name)).await?;
    Ok(entry.and_then(|entry| FileRecord::parse(&entry.value)))
}

/// Removes content and record. What is left is the file's place in lists, where it is known: by its record, or by `place`.
pub(crate) async fn remove(
    bus: &dyn Bus,
    tenant: &TenantId,
    name: &str,
    place: Option<TimeMs>,
    now: TimeMs,
) -> Result<()> {
    match bus.object_delete(&files_bucket(tenant), name).await {
        Ok(()) | Err(BusError::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    let key = file_key(tenant, name);
    let entry = bus.kv_get(KV_FILES, &key).await?;
    let known = entry.as_ref().and_then(|entry| FileRecord::parse(&entry.value));
    let Some(record) = known.or_else(|| place.map(|place| FileRecord::plain(name, 0, place))) else {
        return Ok(());
    };
    let left = FileRecord { deleted_at: Some(now), bytes: 0, ..record }.value();
    let stored = match entry {
        Some(entry) => bus.kv_update(KV_FILES, &key, left, entry.revision, Some(PLACE_KEPT)).await,
        None => bus.kv_create(KV_FILES, &key, left, Some(PLACE_KEPT)).await,
    };
    match stored {
        // Somebody removes it at the same time, or has put another there under the same name.
        Ok(_) | Err(BusError::WrongLastSequence | BusError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_earlier_version_is_read_and_has_no_end() {
        let old = br#"{"filename":"a.jsonl","purpose":"batch","bytes":3,"created_at":5}"#;
        let record = FileRecord::parse(old).unwrap();
        assert_eq!(record, FileRecord::new("a.jsonl".into(), INPUT, 3, TimeMs(5), None));
        assert!(!record.is_gone(TimeMs(u64::MAX)));
    }

    #[test]
    fn a_file_is_gone_when_its_time_is_up_or_it_was_deleted() {
        let record = FileRecord::new("a".into(), INPUT, 3, TimeMs(1_000), Some(3_600));
        assert!(!record.is_gone(TimeMs(3_600_999)) && record.is_gone(TimeMs(3_601_000)));
        assert!(FileRecord { deleted_at: Some(TimeMs(2)), ..record }.is_gone(TimeMs(3)));
        assert_eq!(FileRecord::plain("output-batch_1.jsonl", 1, TimeMs(1)).purpose, OUTPUT);
        assert_eq!(FileRecord::plain("tales", 1, TimeMs(1)).filename, "tales.jsonl");
    }
}
