//! Spending: what jobs used is charged to their batches as it is heard of, and once a second every pod is billed.

use std::collections::BTreeSet;

use ternfleet_proto::message::{EventKind, Heartbeat, LostPod, PodSpent};
use ternfleet_proto::{Now, TenantId, TimeMs, UsdMicro};

use super::Core;
use super::event::{Action, BatchSlot, WorkerSlot};
use super::fleet::LOST_AFTER;
use super::flights::Used;
use super::money::{LeasePhase, Spent};

impl From<Spent> for PodSpent {
    fn from(Spent { pod, from, to, share }: Spent) -> PodSpent {
        PodSpent {
            pod,
            from,
            to,
            idle_usd_micro: share.idle,
            over_budget_usd_micro: share.over,
            by_batch: share.by_batch.into_iter().collect(),
        }
    }
}

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
        self.keep_account(now, actions);
        self.check_money();
    }

    /// What the audit log says, the batches' records say too: a restarted coordinator continues from there.
    fn tell_spent(&mut self, told: Vec<Spent>, actions: &mut Vec<Action>) {
        if self.lead.is_none() {
            return;
        }
        let batches = told.iter().flat_map(|spent| spent.share.by_batch.keys());
        let charged: BTreeSet<BatchSlot> = batches.filter_map(|id| self.ledger.find(id)).collect();
        let told: Vec<PodSpent> = told.into_iter().map(PodSpent::from).collect();
        if !told.is_empty() {
            actions.push(Action::Audit(EventKind::SpentByPods { pods: told }));
        }
        for slot in charged {
            let Some(batch) = self.ledger.get_mut(slot).filter(|batch| !batch.record.single) else {
                continue;
            };
            batch.record.totals = batch.totals;
            actions.push(Action::KeepTotals(Box::new(batch.record.clone())));
        }
    }

    /// Once a second.
    fn keep_account(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.lead.is_none() {
            return;
        }
        self.account.spend(now.wall, self.money.take_unrented());
        actions.extend(self.account.take_change().map(|account| Action::KeepAccount(Box::new(account))));
    }

    /// The pod of a worker that was just lost, if none of its workers is left and nobody has told it to end.
    pub(super) fn note_loss(&mut self, now: Now, slot: WorkerSlot) {
        let Some(worker) = self.fleet.get(slot) else { return };
        let Some(pod) = self.money.pods().get(worker.pod_name()) else { return };
        if self.lead.is_none() || !pod.workers.is_empty() || pod.lease() == Some(LeasePhase::Drain) {
            return;
        }
        let silent = now.since(worker.seen_at);
        let beat = &worker.beat;
        self.account.lose(LostPod {
            pod: beat.pod.clone(),
            class: beat.pod_class.clone(),
            host: beat.host.clone(),
            model: beat.model.clone(),
            price_usd_micro_per_hour: pod.bill.price(),
            at: TimeMs(now.wall.0.saturating_sub(silent.as_millis() as u64)),
            why: format!("no heartbeat for {} s", LOST_AFTER.as_secs()),
            tokens: worker.tokens_made,
            cost_usd_micro: pod.bill.billed,
        });
    }

    /// A worker has come: its pod may be one that was lost, or replace one, unless it was there all the time.
    pub(super) fn welcome(&mut self, beat: &Heartbeat) {
        let is_new = self.money.pods().get(&beat.pod).is_none_or(|pod| pod.workers.is_empty());
        if is_new {
            self.account.welcome(beat);
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
    use ternfleet_proto::message::{WorkerCounters, WorkerState};
    use ternfleet_proto::tag::AssignmentKey;
    use ternfleet_proto::{LeaderRevision, MonoMs};

    use super::*;
    use crate::core::{Account, Event, Lead, Lease, Limits};

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
        let view = &core.pod_views(None)[0].heartbeat;
        assert_eq!((view.price_usd_micro_per_hour, view.pod_class.as_str()), (UsdMicro(7_200_000), "a"));

        // A new leader hears the worker before it knows of the lease, which another has billed for five seconds.
        for (said, since_s) in [(1_000_000_000, 15), (0, 15), (1_000_000_000, 23), (0, 23)] {
            let mut core = leader(Account::default(), 2, 20);
            on(&mut core, 20, heartbeat("rented-a-0", said, "b"));
            on(&mut core, 25, Event::Tick);
            let (pod, class, since) = ("rented-a-0".to_owned(), "a".to_owned(), TimeMs(since_s * 1000));
            let lease = Lease { pod, class, price_usd_micro_per_hour: UsdMicro(3_600_000), since };
            on(&mut core, 30, Event::Leased(Box::new(lease)));
            on(&mut core, 40, Event::Tick);
            assert_eq!(
                core.money.leased_total(),
                UsdMicro((40 - since_s as i64) * 1_000),
                "{said} {since_s}"
            );
            assert_eq!(core.counts.violations, [0; 4]);
        }
    }

    /// As [`heartbeat`], of this worker that began at this second.
    fn beat_of(worker: &str, pod: &str, price: i64, class: &str, started_s: u64) -> Event {
        let Event::Heartbeat(mut beat) = heartbeat(pod, price, class) else { unreachable!() };
        (beat.worker, beat.started_at) = (worker.parse().unwrap(), TimeMs(started_s * 1000));
        Event::Heartbeat(beat)
    }

    /// A leader, with what an earlier one has stored.
    fn leader(account: Account, term: u32, at_s: u64) -> Core {
        let mut core = Core::new(AssignmentKey([7; 32]), Limits::default());
        on(&mut core, at_s, Event::AccountKnown(Box::new(account)));
        on(&mut core, at_s, Event::Lead(Lead { revision: LeaderRevision(u64::from(term)), term }));
        core
    }

    #[test]
    fn what_was_spent_does_not_shrink_when_pods_go_and_leaders_follow() {
        let mut core = leader(Account::default(), 1, 0);
        let mut spent = UsdMicro::ZERO;
        for second in 0..60 {
            // The pod is heard of for 20 s; it is billed until it is lost.
            if second < 20 {
                on(&mut core, second, beat_of("w-1", "pod-a", 3_600_000, "a", 0));
            }
            on(&mut core, second, Event::Tick);
            let now = core.account().unrented_usd_micro;
            assert!(now >= spent, "{now} after {spent} in second {second}");
            spent = now;
        }
        assert!((19_000..=25_000).contains(&spent.0), "{spent}");
        assert!(core.pod_views(None).is_empty(), "the pod is gone");
        let mut next = leader(core.account().clone(), 2, 100);
        assert_eq!(next.account().unrented_usd_micro, spent);
        for second in 100..=110 {
            on(&mut next, second, beat_of("w-2", "pod-b", 3_600_000, "b", 99));
            on(&mut next, second, Event::Tick);
        }
        assert_eq!(next.account().unrented_usd_micro, spent + UsdMicro(10_000));
        assert_eq!(next.account().lost[0].pod, "pod-a", "another class replaces nothing");
    }

    #[test]
    fn a_lost_pod_is_shown_until_one_of_its_class_comes_or_somebody_dismisses_it() {
        let mut core = leader(Account::default(), 1, 0);
        for (worker, pod) in [("w-1", "pod-a"), ("w-2", "pod-b"), ("w-3", "pod-c")] {
            on(&mut core, 1, beat_of(worker, pod, 3_600_000, "a", 0));
        }
        for second in 1..=7 {
            on(&mut core, second, beat_of("w-3", "pod-c", 3_600_000, "a", 0));
            on(&mut core, second, Event::Tick);
        }
        let lost = |core: &Core| core.account().lost.iter().map(|lost| lost.pod.clone()).collect::<Vec<_>>();
        assert_eq!(lost(&core), ["pod-a", "pod-b"]);
        let first = &core.account().lost[0];
        assert_eq!((first.at, first.why.as_str()), (TimeMs(1_000), "no heartbeat for 5 s"));
        assert!(first.cost_usd_micro > UsdMicro::ZERO, "{first:?}");
        on(&mut core, 8, beat_of("w-4", "pod-d", 3_600_000, "a", 7));
        assert_eq!(lost(&core), ["pod-b"], "the new one replaces the one that was lost first");
        on(&mut core, 9, beat_of("w-5", "pod-d", 3_600_000, "a", 8));
        assert_eq!(lost(&core), ["pod-b"], "a second worker of a pod is no new pod");
        on(&mut core, 9, Event::Dismiss { pod: "pod-b".to_owned() });
        assert!(lost(&core).is_empty());
        // One that says goodbye is not lost, and one that comes back is not any more.
        let Event::Heartbeat(mut gone) = beat_of("w-3", "pod-c", 3_600_000, "a", 0) else { unreachable!() };
        gone.state = WorkerState::Gone;
        on(&mut core, 9, Event::Heartbeat(gone));
        for second in 9..=16 {
            on(&mut core, second, Event::Tick);
        }
        assert_eq!(lost(&core), ["pod-d"]);
        on(&mut core, 17, beat_of("w-6", "pod-d", 3_600_000, "a", 16));
        assert!(lost(&core).is_empty());
    }

    #[test]
    fn a_pod_that_turns_out_to_be_rented_is_in_one_ledger_alone() {
        let mut core = leader(Account::default(), 1, 10);
        for second in 10..=20 {
            on(&mut core, second, heartbeat("rented-a-0", 3_600_000, "a"));
            on(&mut core, second, Event::Tick);
        }
        assert_eq!(core.account().unrented_usd_micro, UsdMicro(10_000));
        let lease = Lease {
            pod: "rented-a-0".to_owned(),
            class: "a".to_owned(),
            price_usd_micro_per_hour: UsdMicro(3_600_000),
            since: TimeMs(10_000),
        };
        on(&mut core, 21, Event::Leased(Box::new(lease)));
        on(&mut core, 21, Event::Tick);
        assert_eq!(core.account().unrented_usd_micro, UsdMicro::ZERO);
        assert_eq!(core.money.leased_total(), UsdMicro(11_000));
    }

    #[test]
    fn the_money_of_a_large_fleet_is_a_few_events_and_a_batch_has_one_record() {
        let mut core = leader(Account::default(), 1, 0);
        for n in 0..2_500 {
            on(&mut core, 1, beat_of(&format!("w-{n}"), &format!("pod-{n}"), 3_600_000, "a", 0));
        }
        let mut actions = Vec::new();
        let now = Now { mono: MonoMs(14_000), wall: TimeMs(14_000) };
        for n in 0..2_500 {
            let beat = beat_of(&format!("w-{n}"), &format!("pod-{n}"), 3_600_000, "a", 0);
            core.on(now, beat, &mut Vec::new());
        }
        core.on(now, Event::Tick, &mut actions);
        let told = |action: &Action| match action {
            Action::Audit(EventKind::SpentByPods { pods }) => Some(pods.len()),
            _ => None,
        };
        let told: Vec<usize> = actions.iter().filter_map(told).collect();
        assert_eq!(told, [2_500], "an event for each pod would be 2,500 writes");
    }
}
