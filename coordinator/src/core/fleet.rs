//! The fleet as the coordinator sees it: workers by their heartbeats, the pods that are paid for, the hosts that
//! may be at fault, the kinds of engine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ternfleet_proto::message::{Heartbeat, WorkerState};
use ternfleet_proto::{MonoMs, Now, UsdMicro, WorkerId};

use super::canary::Canaries;
use super::event::{JobRef, WorkerSlot};
use super::money::Bill;
use super::rate::Rate;
use crate::route::EngineKind;

/// Without a heartbeat for this long a worker gets no new work.
pub(super) const QUIET_AFTER: Duration = Duration::from_millis(2_500);
/// Without a heartbeat for this long a worker is lost and its jobs go elsewhere.
pub(super) const LOST_AFTER: Duration = Duration::from_millis(5_000);
/// A lost worker's queues are removed after this long.
pub(super) const RETIRED_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    Live,
    /// Heartbeats are late: no new work.
    Quiet,
    /// Its jobs have been taken away.
    Lost,
}

#[derive(Debug)]
pub struct Worker {
    pub beat: Heartbeat,
    pub kind: EngineKind,
    pub pod: PodNumber,
    pub seen_at: MonoMs,
    pub liveness: Liveness,
    pub shard: u16,
    /// Its consumers exist.
    pub registered: bool,
    pub rate: Rate,
    /// Jobs handed over and not answered.
    pub flights: BTreeSet<JobRef>,
    /// Tokens still to come of those jobs.
    pub held_tokens: u64,
    pub tokens_made: u64,
    /// Since when it runs nothing although jobs lie in its queue.
    pub stuck_since: Option<MonoMs>,
}

impl Worker {
    /// May be given work, quarantine apart.
    pub fn takes_work(&self) -> bool {
        self.registered && self.liveness == Liveness::Live && self.beat.state == WorkerState::Ready
    }

    pub fn busy_ratio(&self) -> f64 {
        if self.beat.slots == 0 {
            0.0
        } else {
            f64::from(self.beat.slots_in_use) / f64::from(self.beat.slots)
        }
    }
}

/// Where a rented pod stands, for its bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeasePhase {
    /// No worker has been heard of yet.
    Boot,
    Work,
    /// It has been told to end.
    Drain,
}

/// Number of a pod; one that comes back has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNumber(pub u32);

/// A paid machine, on which one or more workers run.
#[derive(Debug)]
pub struct Pod {
    pub number: PodNumber,
    pub bill: Bill,
    pub workers: BTreeSet<WorkerSlot>,
    pub class: String,
    /// Busy milliseconds and whether anything ran, since the last accrual.
    pub busy_ms: u64,
    /// When its bill began here.
    pub begun_at: MonoMs,
    /// When one of its workers last had a job, or the pod came.
    pub active_at: MonoMs,
    pub audited_at: Now,
    /// Rented by the scaler; `None` for a pod that somebody else pays for.
    pub lease: Option<LeasePhase>,
    /// Of its bill, what is not the lease's: from before this coordinator took it over.
    pub unleased: UsdMicro,
    /// Cost since the last audit event.
    pub unaudited: super::money::Share,
}

impl Pod {
    /// What the lease has cost so far; nothing for a pod that nobody rented.
    pub fn lease_bill(&self) -> UsdMicro {
        if self.lease.is_some() { self.bill.billed - self.unleased } else { UsdMicro::ZERO }
    }

    /// Nobody pays for it any more.
    pub fn is_gone(&self) -> bool {
        self.workers.is_empty() && self.lease.is_none()
    }
}

/// A machine, for poison and quarantine.
#[derive(Debug, Default)]
pub struct Host {
    /// Different jobs that failed here since the count began.
    pub failed: BTreeSet<JobRef>,
    /// Workers that died here, each with the jobs that it was running.
    pub crashes: BTreeMap<WorkerSlot, BTreeSet<JobRef>>,
    pub succeeded: u32,
    pub quarantined: bool,
}

impl Host {
    /// How many jobs it would take to explain every crash: one that kills whoever runs it is in all of its own.
    pub fn jobs_behind_crashes(&self) -> usize {
        let mut left: Vec<&BTreeSet<JobRef>> = self.crashes.values().collect();
        let mut jobs = 0;
        while !left.is_empty() {
            let mut counts: BTreeMap<JobRef, usize> = BTreeMap::new();
            left.iter().flat_map(|crash| crash.iter()).for_each(|job| *counts.entry(*job).or_default() += 1);
            let Some((most, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { break };
            left.retain(|crash| !crash.contains(&most));
            jobs += 1;
        }
        jobs
    }
}

/// What an engine computes: workers of one kind give the same bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub model: String,
    pub digest: String,
    pub numerics: String,
}

#[derive(Debug, Default)]
pub struct Fleet {
    pub workers: BTreeMap<WorkerSlot, Worker>,
    by_name: BTreeMap<WorkerId, WorkerSlot>,
    next_slot: u32,
    pub pods: BTreeMap<String, Pod>,
    next_pod: u32,
    pub hosts: BTreeMap<String, Host>,
    /// Hosts that gave a wrong answer: quarantined however often they come back.
    convicted: BTreeSet<String>,
    pub canaries: Canaries,
    pub kinds: Vec<Kind>,
}

impl Fleet {
    pub fn slot(&self, worker: &WorkerId) -> Option<WorkerSlot> {
        self.by_name.get(worker).copied()
    }

    pub fn get(&self, slot: WorkerSlot) -> Option<&Worker> {
        self.workers.get(&slot)
    }

    pub fn get_mut(&mut self, slot: WorkerSlot) -> Option<&mut Worker> {
        self.workers.get_mut(&slot)
    }

    /// A worker that was not known.
    pub fn add(&mut self, now: Now, beat: Heartbeat, shard: u16) -> WorkerSlot {
        let slot = WorkerSlot(self.next_slot);
        self.next_slot += 1;
        let kind = self.kind_of(&beat);
        self.by_name.insert(beat.worker.clone(), slot);
        let calibrated = beat.calibration.iter().map(|point| point.tok_s).fold(0.0, f64::max);
        let rate = if beat.decode_tok_s > 0.0 {
            Rate::guess(beat.decode_tok_s, 0.5)
        } else {
            Rate::guess(calibrated, 0.2)
        };
        let pod = self.join_pod(now, slot, &beat);
        let convicted = self.convicted.contains(&beat.host);
        self.hosts.entry(beat.host.clone()).or_default().quarantined |= convicted;
        let worker = Worker {
            beat,
            kind,
            pod,
            seen_at: now.mono,
            liveness: Liveness::Live,
            shard,
            registered: false,
            rate,
            flights: BTreeSet::new(),
            held_tokens: 0,
            tokens_made: 0,
            stuck_since: None,
        };
        self.workers.insert(slot, worker);
        slot
    }

    /// The worker's pod is paid for from now on, if it was not already.
    pub fn join_pod(&mut self, now: Now, slot: WorkerSlot, beat: &Heartbeat) -> PodNumber {
        let pod = self.pod_or_new(now, &beat.pod, beat.price_usd_micro_per_hour, &beat.pod_class);
        pod.workers.insert(slot);
        if pod.lease == Some(LeasePhase::Boot) {
            pod.lease = Some(LeasePhase::Work);
            pod.active_at = now.mono;
        }
        pod.number
    }

    /// The pod of this name; one that was not known is paid for from now on.
    pub fn pod_or_new(
        &mut self,
        now: Now,
        name: &str,
        price_usd_micro_per_hour: UsdMicro,
        class: &str,
    ) -> &mut Pod {
        let next_pod = &mut self.next_pod;
        self.pods.entry(name.to_owned()).or_insert_with(|| {
            let number = PodNumber(*next_pod);
            *next_pod += 1;
            Pod {
                number,
                bill: Bill::new(now.mono, price_usd_micro_per_hour),
                workers: BTreeSet::new(),
                class: class.to_owned(),
                busy_ms: 0,
                begun_at: now.mono,
                active_at: now.mono,
                audited_at: now,
                lease: None,
                unleased: UsdMicro::ZERO,
                unaudited: super::money::Share::default(),
            }
        })
    }

    /// One more than the highest number of a pod.
    pub fn pod_numbers(&self) -> usize {
        self.next_pod as usize
    }

    pub fn remove(&mut self, slot: WorkerSlot) -> Option<Worker> {
        let worker = self.workers.remove(&slot)?;
        self.by_name.remove(&worker.beat.worker);
        if let Some(pod) = self.pods.get_mut(&worker.beat.pod) {
            pod.workers.remove(&slot);
        }
        if !self.workers.values().any(|other| other.beat.host == worker.beat.host) {
            self.hosts.remove(&worker.beat.host);
        }
        Some(worker)
    }

    /// The shard with room for one more worker.
    pub fn roomiest_shard(&self, workers_per_shard: usize) -> u16 {
        let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
        for worker in self.workers.values() {
            *counts.entry(worker.shard).or_default() += 1;
        }
        (0..u16::MAX).find(|shard| counts.get(shard).copied().unwrap_or(0) < workers_per_shard).unwrap_or(0)
    }

    fn kind_of(&mut self, beat: &Heartbeat) -> EngineKind {
        let kind = Kind {
            model: beat.model.clone(),
            digest: beat.model_digest.clone(),
            numerics: beat.numerics.clone(),
        };
        let place = self.kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
        EngineKind(u16::try_from(place).unwrap_or(u16::MAX))
    }

    /// The kind that serves this model with the most speed now; `None` asks for any model.
    pub fn best_kind(&self, model: Option<&str>) -> Option<EngineKind> {
        let mut rates: BTreeMap<EngineKind, f64> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| worker.takes_work()) {
            if model.is_none_or(|wanted| wanted == worker.beat.model || wanted == worker.beat.model_digest) {
                *rates.entry(worker.kind).or_default() += worker.rate.mean_tok_s();
            }
        }
        rates.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(kind, _)| kind)
    }

    /// Price of a million tokens at a worker, in micro-dollars: its pod's price over the speed of all that run there.
    pub fn kappa(&self, slot: WorkerSlot) -> Option<f64> {
        let pod = self.pods.get(&self.get(slot)?.beat.pod)?;
        let rate: f64 = pod.workers.iter().filter_map(|slot| Some(self.get(*slot)?.rate.mean_tok_s())).sum();
        (rate > 0.0).then(|| pod.bill.price().0 as f64 * 1e6 / (3600.0 * rate))
    }

    /// True if some worker of this kind could run a job now or soon.
    pub fn serves(&self, kind: EngineKind) -> bool {
        self.workers.values().any(|worker| worker.kind == kind && worker.liveness != Liveness::Lost)
    }

    /// True if it was not quarantined before.
    pub fn convict(&mut self, host: &str) -> bool {
        self.convicted.insert(host.to_owned());
        let known = self.hosts.get_mut(host);
        known.is_some_and(|known| !std::mem::replace(&mut known.quarantined, true))
    }

    /// Hosts that get no work, whatever the reason.
    pub fn hosts_shut_out(&self) -> usize {
        self.hosts.keys().filter(|host| self.shut_out(host)).count()
    }

    pub fn quarantined(&self, worker: &Worker) -> bool {
        self.shut_out(&worker.beat.host)
    }

    pub fn any_shut_out(&self) -> bool {
        self.canaries.odd_hosts().next().is_some() || self.hosts.values().any(|host| host.quarantined)
    }

    fn shut_out(&self, host: &str) -> bool {
        self.canaries.stands_out(host) || self.hosts.get(host).is_some_and(|host| host.quarantined)
    }

    /// Hosts that are not quarantined and have a live worker.
    pub fn healthy_hosts(&self) -> usize {
        let live: BTreeSet<&str> = self
            .workers
            .values()
            .filter(|worker| worker.liveness != Liveness::Lost)
            .map(|worker| worker.beat.host.as_str())
            .collect();
        live.into_iter().filter(|host| !self.shut_out(host)).count()
    }
}
