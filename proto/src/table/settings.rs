//! What each stream, consumer, bucket and object store is set to.
//!
//! Limits here are counts and ages. JetStream sets aside a stream's `max_bytes` on disk when the stream is made, so what
//! CHECKPOINTS and RESULTS may take is the operator's to say (`streams` in the coordinator's configuration); the other
//! bytes are bounded by the tenants' quotas, which the coordinator keeps.

use std::time::Duration;

use super::{
    ADVISORIES, ANSWERS, CHECKPOINTS, ConsumerSpec, DEAD, EVENTS, KV_BATCHES, KV_CONTROL, KV_FILES,
    KV_GRANTS, KV_SCALE, Keeps, KvSpec, LARGE_REQUESTS, LEDGER, ObjectSpec, RESULTS, Retention, StreamSpec,
    subjects,
};
use crate::id::{Lane, TenantId, WorkerId};

/// Consumers of a stream, the server's default limit. The server cannot change it for a stream that exists.
const CONSUMERS_PER_STREAM: usize = 1000;
/// Two consumers a worker. The server looks at every consumer of a work stream when a message of it is done, so a shard is
/// much smaller than it could be.
pub const WORKERS_PER_SHARD: usize = 25;
/// A work message that nobody acks or extends for so long is delivered again.
pub const ACK_WAIT: Duration = Duration::from_secs(20);
/// Larger requests travel as an object, named in the message.
pub const WORK_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Outlives the longest completion window (7 days): a job that is assigned late still finds its progress.
pub const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(8 * DAY_S);
/// After it a batch's answers are in its output objects alone, and its tombstone refuses late ones.
pub const RESULT_AGE_MAX: Duration = Duration::from_secs(30 * DAY_S);

const DAY_S: u64 = 86_400;
/// The server's own default, named here because assignments rely on it.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Windows are two seconds of work a worker, so this is far above use and far below trouble.
const WORK_MESSAGES_MAX: i64 = 1_000_000;
const ADVISORIES_MAX: i64 = 100_000;

/// Every stream there is from the start. `replicas` is 3 in production.
pub fn streams(replicas: usize) -> Vec<StreamSpec> {
    let plain = |name: &str, filter: &str, keeps, max_age| StreamSpec {
        name: name.to_owned(),
        subjects: vec![filter.to_owned()],
        keeps,
        retention: Retention::Limits,
        replicas,
        max_age: Some(max_age),
        max_bytes: None,
        max_messages: None,
        max_messages_per_subject: None,
        max_message_bytes: None,
        max_consumers: None,
        duplicate_window: DUPLICATE_WINDOW,
        discard_new: false,
        discard_new_per_subject: false,
        unsynced: false,
    };
    vec![
        StreamSpec {
            max_messages_per_subject: Some(1),
            ..plain(CHECKPOINTS, subjects::checkpoints_all(), Keeps::Cache, CHECKPOINT_AGE_MAX)
        },
        // A worker has one answer for a job.
        StreamSpec {
            max_messages_per_subject: Some(1),
            discard_new: true,
            discard_new_per_subject: true,
            ..plain(RESULTS, subjects::results_all(), Keeps::Truth, RESULT_AGE_MAX)
        },
        // Money is kept for a fiscal year and the month after it.
        plain(EVENTS, subjects::events_all(), Keeps::Truth, Duration::from_secs(396 * DAY_S)),
        plain(DEAD, subjects::dead_all(), Keeps::Truth, Duration::from_secs(90 * DAY_S)),
        StreamSpec {
            max_messages: Some(ADVISORIES_MAX),
            ..plain(ADVISORIES, subjects::advisories_all(), Keeps::Cache, Duration::from_secs(7 * DAY_S))
        },
    ]
}

/// A shard of the work queue. `replicas` is 1 unless a lost server must not even delay: the content is a cache.
pub fn work_stream_spec(shard: u16, replicas: usize) -> StreamSpec {
    StreamSpec {
        name: subjects::work_stream(shard),
        subjects: vec![subjects::work_all(shard)],
        keeps: Keeps::Cache,
        retention: Retention::WorkQueue,
        replicas,
        max_age: None,
        max_bytes: None,
        max_messages: Some(WORK_MESSAGES_MAX),
        max_messages_per_subject: None,
        // Headers count as well.
        max_message_bytes: Some(WORK_MESSAGE_BYTES_MAX as i32 + 4096),
        max_consumers: Some(CONSUMERS_PER_STREAM as i32),
        duplicate_window: DUPLICATE_WINDOW,
        discard_new: true,
        discard_new_per_subject: false,
        unsynced: false,
    }
}

/// The consumers of one worker, one a lane. A work queue allows one consumer a subject, so these are all there are.
pub fn work_consumers(shard: u16, worker: &WorkerId) -> [ConsumerSpec; 2] {
    Lane::ALL.map(|lane| ConsumerSpec {
        stream: subjects::work_stream(shard),
        name: subjects::work_consumer(worker, lane),
        filter: subjects::work(shard, worker, lane),
        ack_wait: ACK_WAIT,
        max_ack_pending: 10_000,
    })
}

/// Every key-value bucket.
pub fn kv_specs(replicas: usize) -> Vec<KvSpec> {
    [KV_BATCHES, KV_CONTROL, KV_FILES, KV_GRANTS, KV_SCALE]
        .map(|bucket| KvSpec { bucket: bucket.to_owned(), replicas, history: 1, max_age: None })
        .into()
}

/// A tenant's inputs and outputs.
pub fn files_spec(tenant: &TenantId, replicas: usize) -> ObjectSpec {
    ObjectSpec { bucket: subjects::files_bucket(tenant), replicas, max_bytes: None, max_age: None }
}

/// Answers that are remembered.
pub fn answers_spec(max_age: Duration) -> ObjectSpec {
    ObjectSpec { bucket: ANSWERS.to_owned(), replicas: 1, max_bytes: None, max_age: Some(max_age) }
}

/// Requests too large for a work message; they go when no checkpoint of theirs can be left.
pub fn large_requests_spec(replicas: usize) -> ObjectSpec {
    ObjectSpec {
        bucket: LARGE_REQUESTS.to_owned(),
        replicas,
        max_bytes: None,
        max_age: Some(CHECKPOINT_AGE_MAX),
    }
}

/// Answers of ended batches, which the sweep removes with their other files; savepoints of open ones.
pub fn ledger_spec(replicas: usize) -> ObjectSpec {
    ObjectSpec { bucket: LEDGER.to_owned(), replicas, max_bytes: None, max_age: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_bounds_what_it_keeps() {
        let mut all = streams(3);
        all.push(work_stream_spec(0, 1));
        for spec in all {
            assert!(
                spec.max_age.is_some() || spec.max_messages.is_some(),
                "{} grows without limit",
                spec.name
            );
        }
    }

    #[test]
    fn no_two_streams_share_a_subject() {
        let mut all = streams(1);
        all.extend([work_stream_spec(0, 1), work_stream_spec(1, 1), work_stream_spec(10, 1)]);
        let prefixes: Vec<String> =
            all.iter().flat_map(|s| &s.subjects).map(|s| s.trim_end_matches('>').to_owned()).collect();
        for (i, a) in prefixes.iter().enumerate() {
            for b in &prefixes[i + 1..] {
                assert!(!a.starts_with(b.as_str()) && !b.starts_with(a.as_str()), "{a} and {b}");
            }
        }
    }

    #[test]
    fn only_a_cache_without_replicas_goes_unsynced_where_everything_is_synced() {
        let unsynced = |replicas, always| -> Vec<String> {
            let made = streams(replicas).into_iter().chain([work_stream_spec(0, 1)]);
            made.map(|spec| spec.at(always)).filter(|spec| spec.unsynced).map(|spec| spec.name).collect()
        };
        assert_eq!(unsynced(1, true), [CHECKPOINTS, ADVISORIES, "WORK-0"]);
        assert_eq!(unsynced(3, true), ["WORK-0"]);
        assert!(unsynced(1, false).is_empty());
    }

    #[test]
    fn a_full_shard_of_workers_fits_its_streams_consumer_limit() {
        let per_worker = work_consumers(0, &"w".parse().unwrap()).len();
        let limit = work_stream_spec(0, 1).max_consumers.unwrap();
        assert!(WORKERS_PER_SHARD * per_worker <= limit as usize);
    }

    #[test]
    fn checkpoints_outlive_the_longest_completion_window() {
        assert!(CHECKPOINT_AGE_MAX > Duration::from_secs(7 * DAY_S));
        assert!(RESULT_AGE_MAX > CHECKPOINT_AGE_MAX);
    }
}
