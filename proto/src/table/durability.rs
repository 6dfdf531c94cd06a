//! What "accepted" rests on: the stream's replicas, and whether the server syncs before it acknowledges.

use std::time::Duration;

use serde::Deserialize;

use crate::message::Durability;

/// Below it, acknowledged writes were lost by servers that died, and compare-and-set had gaps.
pub const OLDEST_SERVER: (u32, u32) = (2, 14);

/// What `/varz` of the server's monitoring port says about syncing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncFacts {
    /// Synced to disk before each acknowledgement.
    pub always: bool,
    /// Otherwise every so often, in nanoseconds.
    pub interval_ns: u64,
    /// Servers with the same configuration that answer for each other; 1 for a lone one.
    pub cluster_size: usize,
}

impl SyncFacts {
    /// Reads the answer of `GET /varz`; `None` when it has no JetStream in it.
    pub fn from_varz(body: &[u8]) -> Option<SyncFacts> {
        #[derive(Deserialize)]
        struct Varz {
            jetstream: JetStream,
            #[serde(default)]
            cluster: Cluster,
        }
        #[derive(Deserialize)]
        struct JetStream {
            config: Config,
        }
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            sync_interval: u64,
            #[serde(default)]
            sync_always: bool,
        }
        #[derive(Default, Deserialize)]
        struct Cluster {
            #[serde(default)]
            urls: Vec<String>,
        }
        let varz: Varz = serde_json::from_slice(body).ok()?;
        Some(SyncFacts {
            always: varz.jetstream.config.sync_always,
            interval_ns: varz.jetstream.config.sync_interval,
            cluster_size: varz.cluster.urls.len().max(1),
        })
    }
}

/// The level of a file-backed stream. Without the monitoring port nothing is claimed beyond what replicas give.
pub fn durability(replicas: usize, sync: Option<SyncFacts>) -> Durability {
    match sync {
        Some(SyncFacts { always: true, .. }) => Durability::Fsynced,
        _ if replicas > 1 => Durability::Replicated,
        _ => Durability::Stored,
    }
}

/// The server's default of two minutes, and a part more, because the file is synced after the interval has passed.
const SYNC_INTERVAL: Duration = Duration::from_secs(120);
/// A server that syncs always has done so when it acknowledges; readers finish what they have begun.
const READERS_FINISH: Duration = Duration::from_secs(5);

/// What the server has acknowledged is on its disk after this time. Without the monitoring port the interval is taken to be
/// the default.
pub fn synced_after(sync: Option<SyncFacts>) -> Duration {
    match sync {
        Some(SyncFacts { always: true, .. }) => READERS_FINISH,
        Some(SyncFacts { interval_ns, .. }) => SYNC_INTERVAL.max(Duration::from_nanos(interval_ns)) * 5 / 4,
        None => SYNC_INTERVAL * 5 / 4,
    }
}

/// True from [`OLDEST_SERVER`] on; a version that cannot be read counts as too old.
pub fn server_is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_SERVER,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncing_always_is_read_from_varz_and_counts_most() {
        let body = br#"{"version":"2.15.1","jetstream":{"config":{"sync_interval":120000000000,"sync_always":true}}}"#;
        let facts = SyncFacts::from_varz(body).unwrap();
        assert_eq!(facts, SyncFacts { always: true, interval_ns: 120_000_000_000, cluster_size: 1 });
        assert_eq!(durability(3, Some(facts)), Durability::Fsynced);
        let seldom = SyncFacts { always: false, interval_ns: 600_000_000_000, ..facts };
        let [always, by_default, seldom] = [Some(facts), None, Some(seldom)].map(synced_after);
        assert!(always < Duration::from_secs(10) && by_default > Duration::from_secs(120));
        assert!(seldom > Duration::from_secs(600));
    }

    #[test]
    fn the_default_of_two_minutes_is_not_called_fsynced() {
        let facts =
            SyncFacts::from_varz(br#"{"jetstream":{"config":{"sync_interval":120000000000}}}"#).unwrap();
        assert_eq!(durability(1, Some(facts)), Durability::Stored);
        assert_eq!(durability(3, Some(facts)), Durability::Replicated);
        assert_eq!(durability(1, None), Durability::Stored);
    }

    #[test]
    fn a_server_without_jetstream_or_json_says_nothing() {
        for body in [&b"{}"[..], b"", b"<html>", b"{\"jetstream\":{}}"] {
            assert_eq!(SyncFacts::from_varz(body), None);
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        for new in ["2.14.0", "2.15.1", "v2.100.3", "3.0.0-beta.1", "2.14"] {
            assert!(server_is_new_enough(new), "{new}");
        }
        for old in ["2.9.25", "2.13.9", "1.99.0", "", "latest"] {
            assert!(!server_is_new_enough(old), "{old}");
        }
    }
}
