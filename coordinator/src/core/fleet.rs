//! The fleet as the coordinator sees it: workers by their heartbeats, the hosts that may be at fault, the kinds of
//! engine. What pods cost is [`super::money`]'s, which jobs a worker has is [`super::flights`]'.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use ternfleet_proto::message::{Abilities, Heartbeat, WorkerState};
use ternfleet_proto::{MonoMs, Now, UsdMicro, WorkerId};

use super::canary::Canaries;
use super::event::{JobRef, WorkerSlot};
use super::flights::Used;
use super::money::PodNumber;
use super::rate::Rate;
use super::tempo::Tempo;
use crate::route::EngineKind;

/// Without a heartbeat for this long a worker gets no new work.
pub(super) const QUIET_AFTER: Duration = Duration::from_millis(2_500);
/// Without a heartbeat for this long a worker is lost and its jobs go elsewhere.
pub(super) const LOST_AFTER: Duration = Duration::from_millis(5_000);
/// A lost worker's queues are removed after this long.
pub(super) const RETIRED_AFTER: Duration = Duration::from_secs(60);
/// With jobs in its slots and an engine that has not moved for this long, a worker hangs …
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// … but a slow one may need longer for a step with this much of a prompt; so it gets four times as long as that takes.
const STEP_TOKENS: f64 = 128.0;

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
    /// Since when they are being made.
    pub registering: Option<MonoMs>,
    pub rate: Rate,
    pub tempo: Tempo,
    pub tokens_made: u64,
    /// When its engine last moved, or had nothing to do.
    pub advanced_at: MonoMs,
    /// Its engine does not move: it gets no work until it does.
    pub hangs: bool,
    /// Since when it runs nothing although jobs are in its queue.
    pub stuck_since: Option<MonoMs>,
}

impl Worker {
    /// May be given work, quarantine apart.
    pub fn takes_work(&self) -> bool {
        self.registered
            && self.liveness == Liveness::Live
            && self.beat.state == WorkerState::Ready
            && !self.hangs
    }

    /// Runs requests that name this model, by its name or digest.
    pub fn serves(&self, model: &str) -> bool {
        model == self.beat.model || model == self.beat.model_digest
    }

    /// It has jobs in its slots and its engine has not moved for too long.
    pub(super) fn seems_hung(&self, now: Now) -> bool {
        let rate = self.beat.prefill_tok_s;
        let step =
            if rate > 0.0 { Duration::from_secs_f64((STEP_TOKENS / rate).min(60.0)) } else { Duration::ZERO };
        let most = HUNG_AFTER.max(4 * step);
        self.beat.slots_in_use > 0 && self.liveness == Liveness::Live && now.since(self.advanced_at) >= most
    }

    /// The pod that is paid for it.
    pub fn pod_name(&self) -> &str {
        &self.beat.pod
    }

    /// The machine that it runs on.
    pub fn host(&self) -> &str {
        &self.beat.host
    }

    pub fn price(&self) -> UsdMicro {
        self.beat.price_usd_micro_per_hour
    }

    /// Its counts of engine time are to be believed in; an older worker says none.
    fn tells_time(&self) -> bool {
        self.beat.mono > MonoMs(0)
    }

    /// Engine time of a job: as counted, or by the measured speed where nobody counts it.
    pub(super) fn engine_us(&self, used: Used) -> u64 {
        let rate = self.rate.mean_tok_s();
        match self.tells_time() {
            true => used.engine_us,
            false if rate > 0.0 => (f64::from(used.tokens) * 1e6 / rate) as u64,
            false => 0,
        }
    }

    pub fn busy_ratio(&self) -> f64 {
        if self.beat.slots == 0 {
            0.0
        } else {
            f64::from(self.beat.slots_in_use) / f64::from(self.beat.slots)
        }
    }
}

/// A machine, for poison and quarantine.
#[derive(Debug, Default)]
pub struct Host {
    /// How many workers are there.
    workers: usize,
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

/// What an engine computes: workers of one kind give the same bits, if their engine always does, and can do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub model: String,
    pub digest: String,
    pub numerics: String,
    pub abilities: Abilities,
}

impl Kind {
    /// Runs requests that name this model, by its name or digest; any, where none is named.
    pub fn is_of(&self, model: Option<&str>) -> bool {
        model.is_none_or(|wanted| wanted == self.model || wanted == self.digest)
    }

    pub fn can(&self, needs: &Abilities) -> bool {
        self.abilities.lacks(needs).is_none()
    }
}

#[derive(Debug, Default)]
pub struct Fleet {
    pub workers: BTreeMap<WorkerSlot, Worker>,
    by_name: BTreeMap<WorkerId, WorkerSlot>,
    next_slot: u32,
    pub hosts: BTreeMap<String, Host>,
    /// Hosts that gave a wrong answer: quarantined however often they come back.
    convicted: BTreeSet<String>,
    pub canaries: Canaries,
    pub kinds: Vec<Kind>,
    /// How many workers share each work stream.
    shards: BTreeMap<u16, usize>,
    /// Names and digests of models, each with how many workers that have not left serve it.
    models: BTreeMap<(String, String), usize>,
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

    /// The place of the next worker that is added.
    pub fn next_slot(&self) -> WorkerSlot {
        WorkerSlot(self.next_slot)
    }

    /// A worker that was not known, on this pod.
    pub fn add(&mut self, now: MonoMs, beat: Heartbeat, shard: u16, pod: PodNumber) -> WorkerSlot {
        let slot = self.next_slot();
        self.next_slot += 1;
        let kind = self.kind_of(&beat);
        self.by_name.insert(beat.worker.clone(), slot);
        let calibrated = beat.calibration.iter().map(|point| point.tok_s).fold(0.0, f64::max);
        let rate = if beat.decode_tok_s > 0.0 {
            Rate::guess(beat.decode_tok_s, 0.5)
        } else {
            Rate::guess(calibrated, 0.2)
        };
        self.know_host(&beat.host);
        self.count(&beat, true);
        *self.shards.entry(shard).or_default() += 1;
        let worker = Worker {
            beat,
            kind,
            pod,
            seen_at: now,
            liveness: Liveness::Live,
            shard,
            registered: false,
            registering: None,
            rate,
            tempo: Tempo::default(),
            tokens_made: 0,
            advanced_at: now,
            hangs: false,
            stuck_since: None,
        };
        self.workers.insert(slot, worker);
        slot
    }

    /// What the worker says of itself now. One whose name was given to it may come back on another host than before.
    pub fn hear(&mut self, slot: WorkerSlot, beat: &Heartbeat) {
        let Some(worker) = self.workers.get_mut(&slot) else { return };
        let before = std::mem::replace(&mut worker.beat, beat.clone());
        let same = before.host == beat.host
            && before.model == beat.model
            && before.model_digest == beat.model_digest
            && before.state == beat.state;
        if !same {
            self.know_host(&beat.host);
            self.count(&before, false);
            self.count(beat, true);
        }
    }

    fn know_host(&mut self, host: &str) {
        if !self.hosts.contains_key(host) {
            let quarantined = self.convicted.contains(host);
            self.hosts.insert(host.to_owned(), Host { quarantined, ..Host::default() });
        }
    }

    /// A worker of this beat has come, or gone: what is counted over all workers follows, so that nobody has to look at
    /// all of them.
    fn count(&mut self, beat: &Heartbeat, comes: bool) {
        if let Some(host) = self.hosts.get_mut(&beat.host) {
            host.workers = if comes { host.workers + 1 } else { host.workers.saturating_sub(1) };
        }
        if beat.state == WorkerState::Gone {
            return;
        }
        let model = (beat.model.clone(), beat.model_digest.clone());
        if comes {
            *self.models.entry(model).or_default() += 1;
        } else if let Some(count) = self.models.get_mut(&model) {
            *count -= 1;
            if *count == 0 {
                self.models.remove(&model);
            }
        }
    }

    pub fn remove(&mut self, slot: WorkerSlot) -> Option<Worker> {
        let worker = self.workers.remove(&slot)?;
        self.by_name.remove(&worker.beat.worker);
        self.leave_shard(worker.shard);
        self.count(&worker.beat, false);
        if self.hosts.get(worker.host()).is_some_and(|host| host.workers == 0) {
            self.hosts.remove(worker.host());
        }
        Some(worker)
    }

    /// The worker's consumers exist, in this shard.
    pub fn registered(&mut self, slot: WorkerSlot, shard: u16) {
        let Some(worker) = self.workers.get_mut(&slot) else { return };
        worker.registered = true;
        worker.registering = None;
        let before = std::mem::replace(&mut worker.shard, shard);
        *self.shards.entry(shard).or_default() += 1;
        self.leave_shard(before);
    }

    fn leave_shard(&mut self, shard: u16) {
        if let Some(count) = self.shards.get_mut(&shard) {
            *count -= 1;
        }
    }

    /// The shard with room for one more worker.
    pub fn roomiest_shard(&self, workers_per_shard: usize) -> u16 {
        let held = |shard: &u16| self.shards.get(shard).copied().unwrap_or(0);
        (0..u16::MAX).find(|shard| held(shard) < workers_per_shard).unwrap_or(0)
    }

    /// Models, each with its digest, of the workers that have not left.
    pub fn models(&self) -> impl Iterator<Item = (&str, &str)> {
        self.models.keys().map(|(model, digest)| (model.as_str(), digest.as_str()))
    }

    /// Workers by name, from the one behind `after` on.
    pub fn in_order(&self, after: Option<&WorkerId>) -> impl Iterator<Item = (WorkerSlot, &Worker)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let named = self.by_name.range::<WorkerId, _>((from, Bound::Unbounded));
        named.filter_map(|(_, slot)| Some((*slot, self.workers.get(slot)?)))
    }

    /// True if what is counted is what there is.
    #[cfg(test)]
    pub fn counts_agree(&self) -> bool {
        let mut again = Fleet::default();
        for worker in self.workers.values() {
            again.know_host(worker.host());
            again.count(&worker.beat, true);
            *again.shards.entry(worker.shard).or_default() += 1;
        }
        let hosts = self
            .hosts
            .iter()
            .all(|(name, host)| host.workers == again.hosts.get(name).map_or(0, |host| host.workers));
        let shards = self.shards.iter().all(|(shard, count)| again.shards.get(shard).unwrap_or(&0) == count);
        hosts && shards && self.models == again.models
    }

    fn kind_of(&mut self, beat: &Heartbeat) -> EngineKind {
        let kind = Kind {
            model: beat.model.clone(),
            digest: beat.model_digest.clone(),
            numerics: beat.numerics.clone(),
            abilities: beat.abilities,
        };
        let place = self.kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
        EngineKind(u16::try_from(place).unwrap_or(u16::MAX))
    }

    /// True if some worker of this kind could run a job now or soon. One on a quarantined host could not.
    pub fn serves(&self, kind: EngineKind) -> bool {
        let mut of_kind = self.workers.values().filter(|worker| worker.kind == kind);
        of_kind.any(|worker| worker.liveness != Liveness::Lost && !self.quarantined(worker))
    }

    /// What no engine of this model can do, of all that have ever been here; nothing, if one can, or none is known.
    pub fn nobody_can(&self, model: Option<&str>, needs: &Abilities) -> Option<&'static str> {
        let mut lacking = None;
        for kind in self.kinds.iter().filter(|kind| kind.is_of(model)) {
            lacking = Some(kind.abilities.lacks(needs)?);
        }
        lacking
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
        self.shut_out(worker.host())
    }

    pub fn any_shut_out(&self) -> bool {
        self.canaries.odd_hosts().next().is_some() || self.hosts.values().any(|host| host.quarantined)
    }

    fn shut_out(&self, host: &str) -> bool {
        self.canaries.stands_out(host) || self.hosts.get(host).is_some_and(|host| host.quarantined)
    }

    /// True if another host is not quarantined and has a live worker.
    pub fn has_healthy_host_beside(&self, host: &str) -> bool {
        let mut others = self.workers.values().filter(|worker| worker.host() != host);
        others.any(|other| other.liveness != Liveness::Lost && !self.quarantined(other))
    }
}
