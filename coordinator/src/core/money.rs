//! What pods cost while they run, to the micro-dollar, and who used it.
//!
//! A pod's price accrues by the clock. Its workers say how much of their engines' time went to which job, in counts that
//! only grow; each job's share is claimed out of what has accrued, whenever it is heard of and however often. What may
//! still be claimed is *pending*; what nobody claimed in time is idle. So a bill does not depend on when it is looked
//! at, and nobody can claim more than the time that went by:
//! billed = attributed + over budget + idle + pending, exactly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ternfleet_proto::message::Heartbeat;
use ternfleet_proto::{BatchId, MonoMs, Now, TimeMs, UsdMicro};

use super::event::{Lease, WorkerSlot};

const MS_PER_HOUR: i128 = 3_600_000;
const US_PER_HOUR: i128 = 3_600_000_000;
/// Beyond the silence of a pod's workers, its time stays open for so long: an answer that was stored before a heartbeat
/// may be read after it.
const GRACE: Duration = Duration::from_secs(3);
/// The audit log gets each pod's spending this often: what a coordinator that is killed has not written is lost to
/// the batches' bills. A large fleet writes less often, for the log's sake.
const AUDIT_EVERY: Duration = Duration::from_secs(1);
const AUDIT_EVERY_LARGE: Duration = Duration::from_secs(10);
const LARGE_FLEET_PODS: usize = 50;
/// Payers whose fractions of a micro-dollar a bill keeps.
const RESTS_MAX: usize = 1024;
/// Whole bills of ended pods that are kept.
const LATEST_MAX: usize = 256;

/// What a batch pays for something, and what its budget had no room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    pub cost: UsdMicro,
    pub over: UsdMicro,
}

/// The running bill of one pod.
#[derive(Debug, Clone)]
pub struct Bill {
    price_usd_micro_per_hour: UsdMicro,
    accrued_to: MonoMs,
    /// What the rounding down has left over: in micro-dollars × milliseconds per hour of what accrues; for each payer, in
    /// micro-dollars × microseconds per hour, of what it has claimed. A batch pays for itself; a tenant pays for all of its
    /// completions, each of which costs a few micro-dollars: rounded down one by one, a tenth of that would be lost.
    accrued_rest: i128,
    claimed_rest: BTreeMap<String, i128>,
    pub billed: UsdMicro,
    pub attributed: UsdMicro,
    /// Used by batches whose budget had no room for their last tokens.
    pub over: UsdMicro,
    /// Everything that no batch has used: boot and drain included.
    pub idle: UsdMicro,
    /// Of `idle`, before the first worker was heard of.
    pub boot: UsdMicro,
    /// Of `idle`, after the pod was told to end.
    pub drain: UsdMicro,
    /// Whose it is will show when its workers are next heard of.
    pub pending: UsdMicro,
}

impl Bill {
    pub fn new(now: MonoMs, price_usd_micro_per_hour: UsdMicro) -> Self {
        let zero = UsdMicro::ZERO;
        Self {
            price_usd_micro_per_hour: UsdMicro(price_usd_micro_per_hour.0.max(0)),
            accrued_to: now,
            accrued_rest: 0,
            claimed_rest: BTreeMap::new(),
            billed: zero,
            attributed: zero,
            over: zero,
            idle: zero,
            boot: zero,
            drain: zero,
            pending: zero,
        }
    }

    pub fn price(&self) -> UsdMicro {
        self.price_usd_micro_per_hour
    }

    /// The price from now on.
    pub fn set_price(&mut self, now: MonoMs, price_usd_micro_per_hour: UsdMicro) {
        self.accrue(now);
        self.price_usd_micro_per_hour = UsdMicro(price_usd_micro_per_hour.0.max(0));
    }

    /// The pod was paid for before it was known here: for so long it booted.
    pub fn backdate(&mut self, span: Duration) -> UsdMicro {
        let cost = self.price_usd_micro_per_hour.over(span);
        self.billed += cost;
        self.idle += cost;
        self.boot += cost;
        cost
    }

    /// Bills the time up to `now`.
    pub fn accrue(&mut self, now: MonoMs) {
        let span_ms = now.since(self.accrued_to).as_millis() as i128;
        self.accrued_to = self.accrued_to.max(now);
        let due = i128::from(self.price_usd_micro_per_hour.0) * span_ms + self.accrued_rest;
        self.accrued_rest = due % MS_PER_HOUR;
        let cost = UsdMicro(i64::try_from(due / MS_PER_HOUR).unwrap_or(i64::MAX));
        self.billed += cost;
        self.pending += cost;
    }

    /// So much time of one of the pod's engines went to somebody who may still pay `room`.
    pub fn claim(
        &mut self,
        now: MonoMs,
        payer: &str,
        engine_us: u64,
        engines: usize,
        room: UsdMicro,
    ) -> Claim {
        self.accrue(now);
        let per_unit = US_PER_HOUR * engines.max(1) as i128;
        // A rest is worth less than a micro-dollar, so those of batches that ended long ago may be forgotten.
        if self.claimed_rest.len() >= RESTS_MAX && !self.claimed_rest.contains_key(payer) {
            self.claimed_rest.clear();
        }
        let rest = self.claimed_rest.entry(payer.to_owned()).or_default();
        let due = i128::from(self.price_usd_micro_per_hour.0) * i128::from(engine_us) + *rest;
        *rest = due % per_unit;
        let part = UsdMicro(i64::try_from(due / per_unit).unwrap_or(i64::MAX)).min(self.pending);
        let cost = part.min(room.max(UsdMicro::ZERO));
        let claim = Claim { cost, over: part - cost };
        self.pending = self.pending - part;
        self.attributed += claim.cost;
        self.over += claim.over;
        claim
    }

    /// Of what has accrued, no more than the last `open` can still be claimed: the rest was idle.
    pub fn close_interval(&mut self, open: Duration) -> UsdMicro {
        let idle = self.pending - self.price_usd_micro_per_hour.over(open).min(self.pending);
        self.pending = self.pending - idle;
        self.idle += idle;
        idle
    }

    /// M2: every micro-dollar is somebody's, or waits to be.
    pub fn adds_up(&self) -> bool {
        self.attributed + self.over + self.idle + self.pending == self.billed
            && self.pending >= UsdMicro::ZERO
            && self.boot + self.drain <= self.idle
    }
}

/// Cost, split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    pub idle: UsdMicro,
    pub over: UsdMicro,
    pub by_batch: BTreeMap<BatchId, UsdMicro>,
}

impl Share {
    pub fn is_empty(&self) -> bool {
        self.idle == UsdMicro::ZERO && self.over == UsdMicro::ZERO && self.by_batch.is_empty()
    }
}

/// What a pod has spent since the last time that this was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    pub pod: String,
    pub from: TimeMs,
    pub to: TimeMs,
    pub share: Share,
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
    /// When its bill began here.
    begun_at: MonoMs,
    /// When one of its workers last had a job, or the pod came.
    pub active_at: MonoMs,
    /// Rented by the scaler; `None` for a pod that somebody else pays for.
    lease: Option<LeasePhase>,
    /// Of its bill, what is not the lease's: from before this coordinator took it over, and by the price that its worker
    /// said until the lease was known. Below nothing if that was too low.
    unleased: UsdMicro,
    /// Of its bill, what has been counted as unrented, or was billed before this leader; and of that, this leader's part.
    counted: UsdMicro,
    unrented: UsdMicro,
    /// Cost that was not told yet, and since when.
    untold: Share,
    told_at: Now,
}

impl Pod {
    /// Where it stands, if it was rented.
    pub fn lease(&self) -> Option<LeasePhase> {
        self.lease
    }

    /// What the lease has cost so far; nothing for a pod that nobody rented.
    fn lease_bill(&self) -> UsdMicro {
        if self.lease.is_some() { self.bill.billed - self.unleased } else { UsdMicro::ZERO }
    }

    /// Nobody pays for it any more.
    fn is_gone(&self) -> bool {
        self.workers.is_empty() && self.lease.is_none()
    }

    /// What it has cost since this was last asked, unless it is rented.
    fn take_unrented(&mut self) -> UsdMicro {
        if self.lease.is_some() {
            return UsdMicro::ZERO;
        }
        let fresh = self.bill.billed - std::mem::replace(&mut self.counted, self.bill.billed);
        self.unrented += fresh;
        fresh
    }

    fn close_interval(&mut self, open: Duration) {
        let idle = self.bill.close_interval(open);
        match self.lease {
            Some(LeasePhase::Boot) => self.bill.boot += idle,
            Some(LeasePhase::Drain) => self.bill.drain += idle,
            Some(LeasePhase::Work) | None => {}
        }
        self.untold.idle += idle;
    }

    fn tell(&mut self, now: Now, name: &str) -> Option<Spent> {
        let from = std::mem::replace(&mut self.told_at, now).wall;
        let share = std::mem::take(&mut self.untold);
        (!share.is_empty()).then(|| Spent { pod: name.to_owned(), from, to: now.wall, share })
    }
}

/// What pods cost that are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClosedBills {
    pub attributed: UsdMicro,
    pub over: UsdMicro,
    pub idle: UsdMicro,
    /// Of `idle`.
    pub boot: UsdMicro,
    pub drain: UsdMicro,
    /// Of all, what rented pods cost.
    leased: UsdMicro,
    /// Of the latest rented ones, each one's whole bill, newest first.
    latest: VecDeque<(String, UsdMicro)>,
}

/// The bills of all pods, by name.
#[derive(Debug, Default)]
pub struct Money {
    pods: BTreeMap<String, Pod>,
    next_pod: u32,
    closed: ClosedBills,
    /// Not taken yet: of pods that are gone; less what has turned out to be a rented pod's.
    unrented: UsdMicro,
}

impl Money {
    pub fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    pub fn closed(&self) -> &ClosedBills {
        &self.closed
    }

    /// One more than the highest number of a pod.
    pub(super) fn pod_numbers(&self) -> usize {
        self.next_pod as usize
    }

    /// A worker is heard of: its pod is paid for from now on, if it was not already.
    pub(crate) fn join(
        &mut self,
        now: Now,
        worker: WorkerSlot,
        name: &str,
        price: UsdMicro,
        class: &str,
    ) -> PodNumber {
        let pod = self.pod_or_new(now, name, price, class);
        pod.workers.insert(worker);
        if pod.lease == Some(LeasePhase::Boot) {
            pod.bill.accrue(now.mono);
            pod.close_interval(Duration::ZERO);
            pod.lease = Some(LeasePhase::Work);
            pod.active_at = now.mono;
        }
        pod.number
    }

    pub(super) fn leave(&mut self, name: &str, worker: WorkerSlot) {
        if let Some(pod) = self.pods.get_mut(name) {
            pod.workers.remove(&worker);
        }
    }

    pub(super) fn set_price(&mut self, now: MonoMs, name: &str, price: UsdMicro) {
        // What is rented costs what the provider said.
        let free = |pod: &&mut Pod| pod.lease.is_none() && pod.bill.price() != price;
        if let Some(pod) = self.pods.get_mut(name).filter(free) {
            pod.bill.set_price(now, price);
        }
    }

    fn pod_or_new(&mut self, now: Now, name: &str, price: UsdMicro, class: &str) -> &mut Pod {
        let next_pod = &mut self.next_pod;
        self.pods.entry(name.to_owned()).or_insert_with(|| {
            let number = PodNumber(*next_pod);
            *next_pod += 1;
            Pod {
                number,
                bill: Bill::new(now.mono, price),
                workers: BTreeSet::new(),
                class: class.to_owned(),
                begun_at: now.mono,
                active_at: now.mono,
                lease: None,
                unleased: UsdMicro::ZERO,
                counted: UsdMicro::ZERO,
                unrented: UsdMicro::ZERO,
                untold: Share::default(),
                told_at: now,
            }
        })
    }

    /// So much time of one of the pod's engines went to this batch, whose payer may still pay `room`.
    pub(super) fn used(
        &mut self,
        now: MonoMs,
        pod: &str,
        payer: &str,
        batch: &BatchId,
        engine_us: u64,
        room: UsdMicro,
    ) -> Claim {
        let Some(pod) = self.pods.get_mut(pod) else { return Claim::default() };
        let claim = pod.bill.claim(now, payer, engine_us, pod.workers.len(), room);
        if claim.cost > UsdMicro::ZERO {
            *pod.untold.by_batch.entry(batch.clone()).or_default() += claim.cost;
        }
        pod.untold.over += claim.over;
        claim
    }

    /// Bills every pod up to now; `silence` is how long a worker was not heard of. Answers what is to be told of it,
    /// and whether a pod has gone.
    pub(super) fn bill(&mut self, now: Now, silence: impl Fn(WorkerSlot) -> Duration) -> (Vec<Spent>, bool) {
        let every = if self.pods.len() > LARGE_FLEET_PODS { AUDIT_EVERY_LARGE } else { AUDIT_EVERY };
        let mut told = Vec::new();
        for (name, pod) in &mut self.pods {
            pod.bill.accrue(now.mono);
            let longest = pod.workers.iter().map(|worker| silence(*worker)).max();
            pod.close_interval(longest.map_or(Duration::ZERO, |silence| silence + GRACE));
            if pod.is_gone() || now.since(pod.told_at.mono) >= every {
                told.extend(pod.tell(now, name));
            }
            if pod.is_gone() {
                self.unrented += pod.take_unrented();
                self.closed.add(pod);
            }
        }
        let before = self.pods.len();
        self.pods.retain(|_, pod| !pod.is_gone());
        (told, before != self.pods.len())
    }

    /// A new leader tells what was spent under it.
    pub(super) fn begin_to_tell(&mut self, now: Now) {
        self.unrented = UsdMicro::ZERO;
        for pod in self.pods.values_mut() {
            pod.untold = Share::default();
            pod.told_at = now;
            pod.counted = pod.bill.billed;
            pod.unrented = UsdMicro::ZERO;
        }
    }

    /// A pod is rented, or its provider names another price. One whose worker was heard of first is billed for its boot
    /// after the fact.
    pub(crate) fn leased(&mut self, now: Now, lease: &Lease) {
        // The provider says dates, and so does an earlier leader: how long ago that was is all that counts here.
        let ago = now.wall.since(lease.since);
        match self.pods.get_mut(&lease.pod) {
            // The old price holds up to now.
            Some(pod) if pod.lease.is_some() => pod.bill.set_price(now.mono, lease.price_usd_micro_per_hour),
            Some(pod) => {
                // The lease covers what was counted here.
                self.unrented = self.unrented - std::mem::take(&mut pod.unrented);
                pod.lease = Some(LeasePhase::Work);
                pod.class.clone_from(&lease.class);
                pod.bill.set_price(now.mono, lease.price_usd_micro_per_hour);
                let known = now.since(pod.begun_at);
                if ago > known {
                    pod.untold.idle += pod.bill.backdate(ago - known);
                }
                // What another led, it has billed; and up to now the price was what the worker said.
                pod.unleased = pod.bill.billed - pod.bill.price().over(ago);
            }
            None => {
                let pod = self.pod_or_new(now, &lease.pod, lease.price_usd_micro_per_hour, &lease.class);
                pod.lease = Some(LeasePhase::Boot);
                pod.untold.idle += pod.bill.backdate(ago);
            }
        }
    }

    /// What a heartbeat says of itself is a claim; class and price of a rented pod are those of its order.
    pub(super) fn believed(&self, mut beat: Heartbeat) -> Heartbeat {
        if let Some(pod) = self.pods.get(&beat.pod).filter(|pod| pod.lease.is_some()) {
            beat.price_usd_micro_per_hour = pod.bill.price();
            beat.pod_class.clone_from(&pod.class);
        }
        beat
    }

    /// From now on the pod costs what giving it back costs.
    pub(crate) fn lease_ending(&mut self, now: MonoMs, name: &str) {
        if let Some(pod) = self.pods.get_mut(name).filter(|pod| pod.lease.is_some()) {
            pod.bill.accrue(now);
            // What is pending was work, or idleness before the end.
            if pod.workers.is_empty() {
                pod.close_interval(Duration::ZERO);
            }
            pod.lease = Some(LeasePhase::Drain);
        }
    }

    /// The last of the pod's bill. Should its worker still be heard of, that is nobody's money any more.
    pub(super) fn lease_ended(&mut self, now: Now, name: &str) -> Option<Spent> {
        let mut pod = self.pods.remove(name)?;
        pod.bill.accrue(now.mono);
        pod.close_interval(Duration::ZERO);
        self.closed.add(&pod);
        self.closed.keep(name, &pod);
        pod.tell(now, name)
    }

    /// What each rented pod has cost so far, by name.
    pub(super) fn lease_bills(&self) -> Vec<(String, UsdMicro)> {
        let leased = self.pods.iter().filter(|(_, pod)| pod.lease.is_some());
        leased.map(|(name, pod)| (name.clone(), pod.lease_bill())).collect()
    }

    /// The whole bills of the latest that have ended, newest first.
    pub(super) fn ended_lease_bills(&self) -> Vec<(String, UsdMicro)> {
        self.closed.latest.iter().cloned().collect()
    }

    /// What rented pods have cost since this process took them over, those that are gone included.
    pub(crate) fn leased_total(&self) -> UsdMicro {
        self.closed.leased + self.pods.values().map(Pod::lease_bill).sum()
    }

    /// What pods that nobody rented have cost since this was last asked.
    pub(super) fn take_unrented(&mut self) -> UsdMicro {
        let open: UsdMicro = self.pods.values_mut().map(Pod::take_unrented).sum();
        std::mem::take(&mut self.unrented) + open
    }

    /// Pods whose bill does not add up: M2.
    pub(super) fn faults(&self) -> usize {
        self.pods.values().filter(|pod| !pod.bill.adds_up()).count()
    }

    /// The pod's worker has a job.
    pub(super) fn works(&mut self, now: MonoMs, name: &str) {
        if let Some(pod) = self.pods.get_mut(name) {
            pod.active_at = now;
        }
    }
}

impl ClosedBills {
    fn keep(&mut self, name: &str, pod: &Pod) {
        if pod.lease.is_some() {
            self.latest.truncate(LATEST_MAX - 1);
            self.latest.push_front((name.to_owned(), pod.lease_bill()));
        }
    }

    fn add(&mut self, pod: &Pod) {
        self.attributed += pod.bill.attributed;
        self.over += pod.bill.over;
        self.idle += pod.bill.idle;
        self.boot += pod.bill.boot;
        self.drain += pod.bill.drain;
        self.leased += pod.lease_bill();
    }
}

#[cfg(test)]
mod tests;
