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
use ternfleet_proto::{WorkerId, codec, table};

use super::Input;
use crate::core::Fleet;

/// A worker that is gone for so long is forgotten.
const KEPT_FOR: Duration = Duration::from_secs(30 * 86_400);
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
}

impl Grants {
    /// With permissions, names can be relied on.
    pub(super) fn new(has_permissions: bool) -> Self {
        Self { has_permissions, granted: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, granted: Granted) {
        self.granted.insert(granted.worker.clone(), granted);
    }

    pub(super) fn forget(&mut self, worker: &WorkerId) {
        self.granted.remove(worker);
    }

    /// Somebody has or had this name.
    pub(super) fn knows(&self, worker: &WorkerId) -> bool {
        self.granted.contains_key(worker)
    }

    /// What a new worker is granted that `asker` lets in.
    pub(super) fn grant(
        &self,
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
            None => self.free(asker, &worker, request.facts.clone()?, fleet),
        };
        Some(Granted { worker, origin: asker.to_owned(), facts, pod_file })
    }

    /// The claims with names of pod and host that nobody else has.
    fn free(&self, origin: &str, worker: &WorkerId, claimed: WorkerFacts, fleet: &Fleet) -> WorkerFacts {
        let taken = |is: &dyn Fn(&WorkerFacts) -> bool| {
            let mut others = self.granted.values().filter(|known| known.origin != origin);
            others.any(|known| is(&known.facts) && fleet.slot(&known.worker).is_some())
        };
        let cut = |name: &str| name.chars().take(NAME_BYTES_MAX / 4).collect::<String>();
        let own = |name: String, taken: bool| if taken { format!("{name}-{worker}") } else { name };
        let (pod, host) = (cut(&claimed.pod), cut(&claimed.host));
        WorkerFacts {
            pod: own(pod.clone(), taken(&|facts| facts.pod == pod)),
            host: own(host.clone(), taken(&|facts| facts.host == host)),
            pod_class: cut(&claimed.pod_class),
            price_usd_micro_per_hour: claimed.price_usd_micro_per_hour,
        }
    }

    /// Puts the grant in place of what the heartbeat claims. Answers a grant that is new and to be stored; an error means
    /// that nobody vouches for this worker yet.
    pub(super) fn vouch(
        &mut self,
        beat: &mut Heartbeat,
        leads: bool,
        fleet: &Fleet,
    ) -> Result<Option<Granted>, ()> {
        if !self.has_permissions {
            return Ok(None);
        }
        let fresh = match self.granted.get(&beat.worker) {
            Some(_) => None,
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
                let facts = self.free(&origin, &worker, claimed, fleet);
                let granted = Granted { worker, origin, facts, pod_file: None };
                self.note(granted.clone());
                Some(granted)
            }
        };
        let WorkerFacts { pod, host, pod_class, price_usd_micro_per_hour } =
            self.granted[&beat.worker].facts.clone();
        (beat.pod, beat.host, beat.pod_class) = (pod, host, pod_class);
        beat.price_usd_micro_per_hour = price_usd_micro_per_hour;
        Ok(fresh)
    }
}

/// A value of the bucket, or its end.
pub(super) fn understood(key: &str, payload: &[u8]) -> Option<Input> {
    if payload.is_empty() {
        return key.parse().ok().map(Input::GrantGone);
    }
    codec::decode::<Granted>(payload).ok().map(|granted| Input::Granted(Box::new(granted)))
}

/// Stores a grant; one that is there already is as good. False when it could not be stored: the worker asks again.
pub(super) async fn store(bus: &Arc<dyn Bus>, granted: &Granted) -> bool {
    let key = granted.worker.as_str();
    match bus.kv_create(table::KV_GRANTS, key, codec::encode(granted), Some(KEPT_FOR)).await {
        Ok(_) | Err(BusError::Exists(_)) => true,
        Err(error) => {
            tracing::warn!(%error, "who a worker is was not stored; it asks again");
            false
        }
    }
}

/// Every stored grant, and the revision from which on the bucket is to be followed.
pub(super) async fn load(bus: &Arc<dyn Bus>, has_permissions: bool) -> anyhow::Result<(Grants, u64)> {
    let end = bus.stream_facts(&table::kv_stream(table::KV_GRANTS)).await;
    let end = end.context("the grants cannot be counted")?.last_sequence;
    let mut grants = Grants::new(has_permissions);
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

    fn request(worker: &str, facts: WorkerFacts) -> JoinRequest {
        let worker = worker.parse().unwrap();
        JoinRequest { worker, worker_key: "k".to_owned(), pod_key: None, facts: Some(facts) }
    }

    #[test]
    fn a_pod_that_comes_back_is_what_it_was_whatever_it_says() {
        let mut grants = Grants::new(true);
        let first = request("w-1", facts("pod-1", "host-1", 340_000));
        let fleet = Fleet::default();
        grants.note(grants.grant("token-a", &first, Some("pod-k1".to_owned()), &fleet, None).unwrap());
        let stolen = request("w-2", facts("pod-2", "host-2", 1_000_000_000_000_000));
        let granted = grants.grant("pod-k1", &stolen, Some("pod-k2".to_owned()), &fleet, None).unwrap();
        assert_eq!(granted.facts, facts("pod-1", "host-1", 340_000));
        assert_eq!(granted.origin, "token-a");
        assert!(grants.knows(&"w-1".parse().unwrap()));
    }
}
