//! Who each worker is, in a fleet with permissions: its pod, host, class and price as they were when it came in.
//!
//! A heartbeat is a claim. The server vouches for the worker's name alone; everything else about where it runs is said
//! once, when it asks for credentials or (by workers that do not say it there) in the first heartbeat, stored, and put in
//! place of what later heartbeats say. A name of a pod or host that another's workers are known by is not given twice.
//! Without permissions anybody may be anybody, and heartbeats are taken as they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{Heartbeat, JoinRequest, WorkerFacts};
use ternfleet_proto::{MonoMs, WorkerId, codec, table};

use super::Input;
use crate::core::Fleet;

/// A worker that is gone for so long is forgotten.
const KEPT_FOR: Duration = Duration::from_secs(30 * 86_400);
/// The grant of a worker that is heard of is stored again this often.
const RENEWED_EVERY: Duration = Duration::from_secs(86_400);
/// Whoever was not heard of so long after the grants were read is not there.
const SILENT_AFTER: Duration = Duration::from_secs(30);
const NAME_BYTES_MAX: usize = 100;

/// One worker's grant, as it is stored under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    worker: WorkerId,
    /// The join token that let its pod in, or the worker itself. Workers of one origin may share pod and host.
    origin: String,
    facts: WorkerFacts,
    /// Who the pod is when it comes back with what it has kept.
    #[serde(default)]
    pod_file: Option<String>,
}

/// All grants that are known.
#[derive(Debug)]
pub(super) struct Grants {
    has_permissions: bool,
    granted: BTreeMap<WorkerId, Granted>,
    read_at: MonoMs,
    /// When each worker's grant was last stored, as far as this process knows.
    stored_at: BTreeMap<WorkerId, MonoMs>,
}

impl Grants {
    /// With permissions, names can be relied on.
    pub(super) fn new(has_permissions: bool, now: MonoMs) -> Self {
        Self { has_permissions, granted: BTreeMap::new(), read_at: now, stored_at: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, granted: Granted) {
        self.granted.insert(granted.worker.clone(), granted);
    }

    pub(super) fn forget(&mut self, worker: &WorkerId) {
        self.granted.remove(worker);
        self.stored_at.remove(worker);
    }

    /// Somebody has or had this name.
    pub(super) fn knows(&self, worker: &WorkerId) -> bool {
        self.granted.contains_key(worker)
    }

    /// What a new worker is granted that `asker` lets in.
    pub(super) fn grant(
        &self,
        now: MonoMs,
        asker: &str,
        request: &JoinRequest,
        pod_file: Option<String>,
        fleet: &Fleet,
        ordered: Option<WorkerFacts>,
    ) -> Option<Granted> {
        let worker = request.worker.clone();
        // A pod that comes back is what it was.
        if let Some(before) = self.granted.values().find(|known| known.pod_file.as_deref() == Some(asker)) {
            return Some(Granted { worker, pod_file, ..before.clone() });
        }
        // What was ordered is known; anybody else is what it claims, as far as that is free.
        let facts = match ordered {
            Some(facts) => facts,
            None => self.free(now, asker, &worker, request.facts.clone()?, fleet),
        };
        Some(Granted { worker, origin: asker.to_owned(), facts, pod_file })
    }

    /// The claims with names of pod and host that nobody else has. Right after a takeover the fleet is not known: then
    /// whoever has a grant is taken to be there.
    fn free(
        &self,
        now: MonoMs,
        origin: &str,
        worker: &WorkerId,
        claimed: WorkerFacts,
        fleet: &Fleet,
    ) -> WorkerFacts {
        let may_be_there =
            |worker: &WorkerId| fleet.slot(worker).is_some() || now.since(self.read_at) < SILENT_AFTER;
        let taken = |is: &dyn Fn(&WorkerFacts) -> bool| {
            let mut others = self.granted.values().filter(|known| known.origin != origin);
            others.any(|known| is(&known.facts) && may_be_there(&known.worker))
        };
        let cut = |name: &str| name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned();
        let own = |name: String, taken: bool| if taken { format!("{name}-{worker}") } else { name };
        let (pod, host) = (cut(&claimed.pod), cut(&claimed.host));
        WorkerFacts {
            pod: own(pod.clone(), taken(&|facts| facts.pod == pod)),
            host: own(host.clone(), taken(&|facts| facts.host == host)),
            pod_class: cut(&claimed.pod_class),
            price_usd_micro_per_hour: claimed.price_usd_micro_per_hour,
        }
    }

    /// Puts the grant in place of what the heartbeat claims. Answers a grant that is to be stored, since it is new or was
    /// not stored for a while; an error means that nobody vouches for this worker yet.
    pub(super) fn vouch(
        &mut self,
        now: MonoMs,
        beat: &mut Heartbeat,
        leads: bool,
        fleet: &Fleet,
    ) -> Result<Option<Granted>, ()> {
        if !self.has_permissions {
            return Ok(None);
        }
        match self.granted.get(&beat.worker) {
            Some(_) => {}
            // The leader alone decides; a standby hears of it.
            None if !leads => return Err(()),
            None => {
                let claimed = WorkerFacts {
                    pod: beat.pod.clone(),
                    host: beat.host.clone(),
                    pod_class: beat.pod_class.clone(),
                    price_usd_micro_per_hour: beat.price_usd_micro_per_hour,
                };
                let (worker, origin) = (beat.worker.clone(), beat.worker.to_string());
                let facts = self.free(now, &origin, &worker, claimed, fleet);
                self.note(Granted { worker, origin, facts, pod_file: None });
            }
        }
        let granted = &self.granted[&beat.worker];
        let WorkerFacts { pod, host, pod_class, price_usd_micro_per_hour } = granted.facts.clone();
        (beat.pod, beat.host, beat.pod_class) = (pod, host, pod_class);
        beat.price_usd_micro_per_hour = price_usd_micro_per_hour;
        let stored = self.stored_at.get(&beat.worker);
        if !leads || stored.is_some_and(|at| now.since(*at) < RENEWED_EVERY) {
            return Ok(None);
        }
        self.stored_at.insert(beat.worker.clone(), now);
        Ok(Some(granted.clone()))
    }
}

/// A value of the bucket, or its end.
pub(super) fn understood(key: &str, payload: &[u8]) -> Option<Input> {
    if payload.is_empty() {
        return key.parse().ok().map(Input::GrantGone);
    }
    codec::decode::<Granted>(payload).ok().map(|granted| Input::Granted(Box::new(granted)))
}

/// Stores a grant, or the same one for as long again. False when that could not be done, or the name was granted to
/// somebody else meanwhile: the worker asks again.
pub(super) async fn store(bus: &Arc<dyn Bus>, granted: &Granted) -> bool {
    let (key, value) = (granted.worker.as_str(), codec::encode(granted));
    let stored = match bus.kv_create(table::KV_GRANTS, key, value.clone(), Some(KEPT_FOR)).await {
        Err(BusError::Exists(_)) => match bus.kv_get(table::KV_GRANTS, key).await {
            Ok(Some(entry)) if entry.value == value => {
                let life = Some(KEPT_FOR);
                bus.kv_update(table::KV_GRANTS, key, value, entry.revision, life).await.map(drop)
            }
            Ok(_) => Err(BusError::Exists(format!("a grant of {key}"))),
            Err(error) => Err(error),
        },
        created => created.map(drop),
    };
    if let Err(error) = &stored {
        tracing::warn!(worker = key, %error, "a worker's grant could not be stored; the worker retries");
    }
    stored.is_ok()
}

/// Every stored grant, and the revision from which on the bucket is to be followed.
pub(super) async fn load(
    bus: &Arc<dyn Bus>,
    has_permissions: bool,
    now: MonoMs,
) -> anyhow::Result<(Grants, u64)> {
    let end = bus.stream_facts(&table::kv_stream(table::KV_GRANTS)).await;
    let end = end.context("the grants cannot be counted")?.last_sequence;
    let mut grants = Grants::new(has_permissions, now);
    for entry in bus.kv_entries(table::KV_GRANTS).await.context("the grants cannot be read")? {
        if let Ok(granted) = codec::decode(&entry.value) {
            grants.note(granted);
        }
    }
    Ok((grants, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_proto::UsdMicro;

    fn facts(pod: &str, host: &str, price: i64) -> WorkerFacts {
        WorkerFacts {
            pod: pod.to_owned(),
            host: host.to_owned(),
            pod_class: "c".to_owned(),
            price_usd_micro_per_hour: UsdMicro(price),
        }
    }

    /// When everybody would have been heard of.
    const LATER: MonoMs = MonoMs(60_000);

    fn request(worker: &str, facts: WorkerFacts) -> JoinRequest {
        let worker = worker.parse().unwrap();
        JoinRequest { worker, worker_key: "k".to_owned(), pod_key: None, facts: Some(facts) }
    }

    #[test]
    fn a_pod_that_comes_back_is_what_it_was_whatever_it_says() {
        let mut grants = Grants::new(true, MonoMs(0));
        let first = request("w-1", facts("pod-1", "host-1", 340_000));
        let fleet = Fleet::default();
        grants.note(grants.grant(LATER, "token-a", &first, Some("pod-k1".to_owned()), &fleet, None).unwrap());
        let stolen = request("w-2", facts("pod-2", "host-2", 1_000_000_000_000_000));
        let granted =
            grants.grant(LATER, "pod-k1", &stolen, Some("pod-k2".to_owned()), &fleet, None).unwrap();
        assert_eq!(granted.facts, facts("pod-1", "host-1", 340_000));
        assert_eq!(granted.origin, "token-a");
        assert!(grants.knows(&"w-1".parse().unwrap()));
    }

    #[test]
    fn right_after_a_takeover_nobody_gets_the_pod_or_host_of_another_that_was_not_heard_of_yet() {
        let mut grants = Grants::new(true, MonoMs(0));
        let fleet = Fleet::default();
        let first = request("w-1", facts("pod-1", "host-1", 340_000));
        grants.note(grants.grant(MonoMs(0), "token-a", &first, None, &fleet, None).unwrap());
        let second = request("w-2", facts("pod-1", "host-1", 1));
        let granted = grants.grant(MonoMs(1_000), "token-b", &second, None, &fleet, None).unwrap();
        assert_eq!(granted.facts, facts("pod-1-w-2", "host-1-w-2", 1));
        let shared = grants.grant(MonoMs(1_000), "token-a", &second, None, &fleet, None).unwrap();
        assert_eq!(shared.facts, facts("pod-1", "host-1", 1), "one token, one pod");
        let freed = grants.grant(LATER, "token-b", &second, None, &fleet, None).unwrap();
        assert_eq!(freed.facts, facts("pod-1", "host-1", 1), "nobody has it any more");
    }

    #[test]
    fn names_are_cut_at_a_hundred_bytes_and_no_earlier() {
        let grants = Grants::new(true, MonoMs(0));
        let long = format!("{}é", "a".repeat(99));
        let named = request("w-1", facts("a-pod-whose-name-takes-more-than-25-letters", &long, 1));
        let granted = grants.grant(LATER, "token-a", &named, None, &Fleet::default(), None).unwrap();
        assert_eq!(granted.facts.pod, "a-pod-whose-name-takes-more-than-25-letters");
        assert_eq!(granted.facts.host, "a".repeat(99));
    }

    #[test]
    fn the_grant_of_a_worker_that_is_heard_of_is_stored_anew_every_day() {
        let mut grants = Grants::new(true, MonoMs(0));
        let mut stored = Vec::new();
        for hour in 0..72u64 {
            let mut beat: Heartbeat = serde_json::from_value(serde_json::json!({
                "worker": "w-1", "pod": "p", "host": "h", "pod_class": "c", "price_usd_micro_per_hour": hour,
                "state": "ready", "model": "m", "model_digest": "d", "numerics": "n", "context_tokens": 1, "slots": 1,
                "slots_in_use": 0, "kv_pages": 1, "kv_pages_free": 1, "checkpoint_age_ms": 0, "threads": 1, "isa": "x",
                "calibration": [], "prefill_tok_s": 1.0, "decode_tok_s": 1.0, "leader_seen": 0, "version": "0",
                "counters": ternfleet_proto::message::WorkerCounters::default(), "started_at": 0, "at": 0, "running": [],
                "needs_queues": false, "canary": "", "thread_scaling": [],
            }))
            .unwrap();
            let now = MonoMs(hour * 3_600_000);
            if let Some(granted) = grants.vouch(now, &mut beat, true, &Fleet::default()).unwrap() {
                assert_eq!(granted.facts, facts("p", "h", 0), "what it said first");
                stored.push(hour);
            }
        }
        assert_eq!(stored, [0, 24, 48]);
    }
}
