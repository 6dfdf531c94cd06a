//! Spending: what jobs used is charged to their batches as it is heard of, and once a second every pod is billed.

use std::collections::BTreeSet;

use ternfleet_proto::message::EventKind;
use ternfleet_proto::{Now, TenantId, UsdMicro};

use super::Core;
use super::event::{Action, BatchSlot, WorkerSlot};
use super::flights::Used;
use super::money::Spent;

impl Core {
    /// A worker has spent this on a job of the batch.
    pub(super) fn charge(&mut self, now: Now, worker: WorkerSlot, slot: BatchSlot, fresh: Used) {
        let (Some(worker), Some(batch)) = (self.fleet.get(worker), self.ledger.get(slot)) else { return };
        let engine_us = worker.engine_us(fresh);
        if self.lead.is_none() || engine_us == 0 {
            return;
        }
        let single = batch.is_interactive().then(|| batch.record.tenant.clone());
        let room = match &single {
            Some(tenant) => self.allowances.left(now, tenant),
            None => batch.budget_left(),
        };
        let id = &batch.record.id;
        let payer = single.as_ref().map_or(id.as_str(), TenantId::as_str);
        let claim = self.money.used(now.mono, worker.pod_name(), payer, id, engine_us, room);
        self.ledger.charge(slot, claim);
        if let Some(tenant) = single {
            self.allowances.spend(now, &tenant, claim.cost);
        }
    }

    /// Bills every pod up to now.
    pub(super) fn bill(&mut self, now: Now, actions: &mut Vec<Action>) {
        for (slot, worker) in &self.fleet.workers {
            if self.flights.held(*slot).0 > 0 {
                self.money.works(now.mono, worker.pod_name());
            }
        }
        let workers = &self.fleet.workers;
        let silence =
            |slot| workers.get(&slot).map_or(Default::default(), |worker| now.since(worker.seen_at));
        let (told, gone) = self.money.bill(now, silence);
        self.work_changed |= gone;
        self.tell_spent(told, actions);
        self.check_money();
    }

    /// What the audit log says, the batches' records say too: a restarted coordinator continues from there.
    fn tell_spent(&mut self, told: Vec<Spent>, actions: &mut Vec<Action>) {
        if self.lead.is_none() {
            return;
        }
        let mut charged = BTreeSet::new();
        for Spent { pod, from, to, share } in told {
            charged.extend(share.by_batch.keys().filter_map(|id| self.ledger.find(id)));
            actions.push(Action::Audit(EventKind::Spent {
                pod,
                from,
                to,
                idle_usd_micro: share.idle,
                over_budget_usd_micro: share.over,
                by_batch: share.by_batch.into_iter().collect(),
            }));
        }
        for slot in charged {
            let Some(batch) = self.ledger.get_mut(slot).filter(|batch| !batch.record.single) else {
                continue;
            };
            batch.record.totals = batch.totals;
            actions.push(Action::Record(Box::new(batch.record.clone())));
        }
    }

    pub(super) fn lease_ended(&mut self, now: Now, pod: &str, actions: &mut Vec<Action>) {
        let told = self.money.lease_ended(now, pod);
        self.tell_spent(told.into_iter().collect(), actions);
    }

    /// Invariants of money, checked as it is spent: M1 no batch above its budget, M2 every micro-dollar of a bill is
    /// somebody's.
    fn check_money(&mut self) {
        let over = self.ledger.active().filter(|(_, batch)| batch.budget_left() < UsdMicro::ZERO).count();
        self.counts.violations[2] += over as u64;
        self.counts.violations[3] += self.money.faults() as u64;
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::WorkerCounters;
    use ternfleet_proto::tag::AssignmentKey;
    use ternfleet_proto::{MonoMs, TimeMs};

    use super::*;
    use crate::core::{Event, Lease, Limits};

    fn on(core: &mut Core, at_s: u64, event: Event) {
        let now = Now { mono: MonoMs(at_s * 1000), wall: TimeMs(at_s * 1000) };
        core.on(now, event, &mut Vec::new());
    }

    #[test]
    fn a_rented_pod_is_billed_from_its_creation_to_its_return_to_the_micro_dollar() {
        let mut core = Core::new(AssignmentKey([7; 32]), Limits::default());
        let lease = Lease {
            pod: "rented-a-0".to_owned(),
            class: "a".to_owned(),
            price_usd_micro_per_hour: UsdMicro(3_600_000),
            since: TimeMs(10_000),
        };
        on(&mut core, 12, Event::Leased(Box::new(lease.clone())));
        for second in 12..=40 {
            on(&mut core, second, Event::Tick);
        }
        // The same event again changes nothing.
        on(&mut core, 40, Event::Leased(Box::new(lease)));
        assert_eq!(core.money.leased_total(), UsdMicro(30_000));
        assert_eq!(core.gauges().boot, UsdMicro(30_000), "nobody was heard of: all of it was boot");
        on(&mut core, 50, Event::LeaseEnding { pod: "rented-a-0".to_owned() });
        on(&mut core, 55, Event::LeaseEnded { pod: "rented-a-0".to_owned() });
        on(&mut core, 90, Event::Tick);
        let gauges = core.gauges();
        assert_eq!((gauges.billed, gauges.idle), (UsdMicro(45_000), UsdMicro(45_000)));
        assert_eq!((gauges.boot, gauges.drain), (UsdMicro(40_000), UsdMicro(5_000)));
        assert_eq!(core.money.leased_total(), UsdMicro(45_000));
        assert_eq!(core.money.ended_lease_bills(), [("rented-a-0".to_owned(), UsdMicro(45_000))]);
        assert_eq!(core.counts.violations, [0; 4]);
    }

    fn heartbeat(pod: &str, price: i64, class: &str) -> Event {
        let beat = serde_json::json!({
            "worker": "w-1", "pod": pod, "host": "h", "pod_class": class, "price_usd_micro_per_hour": price,
            "state": "ready", "model": "m", "model_digest": "d", "numerics": "n", "context_tokens": 512, "slots": 1,
            "slots_in_use": 0, "kv_pages": 1, "kv_pages_free": 1, "checkpoint_age_ms": 0, "threads": 1, "isa": "x",
            "calibration": [], "prefill_tok_s": 1.0, "decode_tok_s": 1.0, "counters": WorkerCounters::default(),
            "leader_seen": 0, "version": "0", "started_at": 0, "at": 0, "running": [], "needs_queues": false,
            "canary": "", "thread_scaling": [],
        });
        Event::Heartbeat(Box::new(serde_json::from_value(beat).unwrap()))
    }

    #[test]
    fn a_rented_pod_costs_what_its_order_costs_whatever_its_worker_says() {
        let mut core = Core::new(AssignmentKey([7; 32]), Limits::default());
        let lease = |price| {
            let (pod, class) = ("rented-a-0".to_owned(), "a".to_owned());
            let since = TimeMs(10_000);
            Event::Leased(Box::new(Lease { pod, class, price_usd_micro_per_hour: UsdMicro(price), since }))
        };
        on(&mut core, 10, lease(3_600_000));
        on(&mut core, 20, heartbeat("rented-a-0", 1_000_000_000_000_000, "b"));
        on(&mut core, 30, Event::Tick);
        assert_eq!(core.money.leased_total(), UsdMicro(20_000));
        // The provider's answer came late, or changed: from now on it holds.
        on(&mut core, 40, lease(7_200_000));
        on(&mut core, 50, heartbeat("rented-a-0", 0, "b"));
        on(&mut core, 50, Event::Tick);
        assert_eq!(core.money.leased_total(), UsdMicro(30_000 + 20_000));
        let view = &core.pod_views()[0].heartbeat;
        assert_eq!((view.price_usd_micro_per_hour, view.pod_class.as_str()), (UsdMicro(7_200_000), "a"));
    }
}
