//! Spending: each pod's bill is drawn up every second and its parts booked to the batches that used it.

use std::collections::BTreeSet;
use std::time::Duration;

use ternfleet_proto::message::EventKind;
use ternfleet_proto::{Now, TimeMs, UsdMicro};

use super::Core;
use super::event::Action;
use super::fleet::LeasePhase;
use super::money::Share;

/// The audit log gets each pod's spending this often: what a coordinator that is killed has not written is lost to
/// the batches' bills. A large fleet writes less often, for the log's sake.
const AUDIT_EVERY: Duration = Duration::from_secs(1);
const AUDIT_EVERY_LARGE: Duration = Duration::from_secs(10);
const LARGE_FLEET_PODS: usize = 50;

impl Core {
    /// Bills every pod up to now.
    pub(super) fn accrue(&mut self, now: Now, actions: &mut Vec<Action>) {
        let span_ms = now.since(self.accrued_at).as_millis() as u64;
        self.accrued_at = now.mono;
        let leading = self.lead.is_some();
        let names: Vec<String> = self.fleet.pods.keys().cloned().collect();
        let audit_every = if names.len() > LARGE_FLEET_PODS { AUDIT_EVERY_LARGE } else { AUDIT_EVERY };
        let mut charged = BTreeSet::new();
        for name in names {
            let batches = &mut self.batches;
            let Some(pod) = self.fleet.pods.get_mut(&name) else { continue };
            let working =
                |slot| self.fleet.workers.get(slot).is_some_and(|worker| !worker.flights.is_empty());
            if pod.workers.iter().any(working) {
                pod.active_at = now.mono;
            }
            let busy_ms = std::mem::take(&mut pod.busy_ms);
            let engines = pod.workers.len().max(1) as u64;
            // A worker that does not say how long it was busy was busy if it made anything.
            let busy_ratio =
                if busy_ms == 0 { 1.0 } else { busy_ms as f64 / (span_ms * engines).max(1) as f64 };
            let share = pod.bill.accrue(now.mono, busy_ratio, |slot| {
                batches.get(&slot).map_or(UsdMicro::ZERO, |batch| batch.budget_left())
            });
            match pod.lease {
                Some(LeasePhase::Boot) => pod.bill.boot += share.idle,
                Some(LeasePhase::Drain) => pod.bill.drain += share.idle,
                Some(LeasePhase::Work) | None => {}
            }
            if !leading {
                continue;
            }
            for (slot, cost) in &share.by_batch {
                if let Some(batch) = batches.get_mut(slot) {
                    batch.totals.cost_usd_micro += *cost;
                }
            }
            add(&mut pod.unaudited, &share);
            let gone = pod.is_gone();
            if (gone || now.since(pod.audited_at.mono) >= audit_every)
                && pod.unaudited.total() != UsdMicro::ZERO
            {
                let spent = std::mem::take(&mut pod.unaudited);
                let from = std::mem::replace(&mut pod.audited_at, now).wall;
                charged.extend(spent.by_batch.iter().map(|(slot, _)| *slot));
                let spent = self.spent_event(&name, from, now.wall, spent);
                self.act(actions, Action::Audit(spent));
            }
        }
        // What the audit log says, the batches' records say too: a restarted coordinator goes on from there.
        for slot in charged {
            let Some(batch) = self.batches.get_mut(&slot).filter(|batch| !batch.record.single) else {
                continue;
            };
            batch.record.totals = batch.totals;
            let record = Box::new(batch.record.clone());
            self.act(actions, Action::Record(record));
        }
        let before = self.fleet.pods.len();
        for pod in self.fleet.pods.values().filter(|pod| pod.is_gone()) {
            self.closed_bills.add(pod);
        }
        self.fleet.pods.retain(|_, pod| !pod.is_gone());
        if before != self.fleet.pods.len() {
            self.work_changed = true;
        }
        self.check_money();
    }

    pub(super) fn spent_event(&self, pod: &str, from: TimeMs, to: TimeMs, share: Share) -> EventKind {
        EventKind::Spent {
            pod: pod.to_owned(),
            from,
            to,
            idle_usd_micro: share.idle,
            by_batch: share
                .by_batch
                .into_iter()
                .filter_map(|(slot, cost)| Some((self.batches.get(&slot)?.record.id.clone(), cost)))
                .collect(),
        }
    }

    /// Invariants of money, checked as it is spent: M1 no batch above its budget, M2 attributed + idle = billed.
    fn check_money(&mut self) {
        for slot in &self.active {
            if self.batches[slot].budget_left() < UsdMicro::ZERO {
                self.counts.violations[2] += 1;
            }
        }
        for pod in self.fleet.pods.values() {
            let bill = &pod.bill;
            if bill.attributed + bill.idle != bill.billed || bill.boot + bill.drain > bill.idle {
                self.counts.violations[3] += 1;
            }
        }
    }
}

fn add(sum: &mut Share, part: &Share) {
    sum.idle += part.idle;
    for (slot, cost) in &part.by_batch {
        match sum.by_batch.iter_mut().find(|(s, _)| s == slot) {
            Some((_, total)) => *total += *cost,
            None => sum.by_batch.push((*slot, *cost)),
        }
    }
}
