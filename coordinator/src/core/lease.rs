//! Rented pods: each is billed from its creation to its return, so that boots and drains stand in the ledger beside
//! work and idleness.

use std::collections::VecDeque;

use ternfleet_proto::message::Heartbeat;
use ternfleet_proto::{Now, UsdMicro};

use super::Core;
use super::event::{Action, Lease};
use super::fleet::{LeasePhase, Pod};

/// What pods cost that are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClosedBills {
    pub attributed: UsdMicro,
    pub idle: UsdMicro,
    /// Of `idle`.
    pub boot: UsdMicro,
    pub drain: UsdMicro,
    /// Of all, what rented pods cost.
    pub leased: UsdMicro,
    /// Of the latest of them, each one's whole bill.
    latest: VecDeque<(String, UsdMicro)>,
}

/// Whole bills that are kept.
const LATEST_MAX: usize = 256;

impl ClosedBills {
    pub(super) fn add(&mut self, pod: &Pod) {
        self.attributed += pod.bill.attributed;
        self.idle += pod.bill.idle;
        self.boot += pod.bill.boot;
        self.drain += pod.bill.drain;
        self.leased += pod.lease_bill();
    }

    fn keep(&mut self, name: &str, pod: &Pod) {
        if pod.lease.is_some() {
            self.latest.truncate(LATEST_MAX - 1);
            self.latest.push_front((name.to_owned(), pod.lease_bill()));
        }
    }
}

impl Core {
    /// A pod is rented, or its provider names another price. One whose worker was heard of first is billed for its boot
    /// after the fact.
    pub(super) fn leased(&mut self, now: Now, lease: Lease, actions: &mut Vec<Action>) {
        // The provider says dates, and so does an earlier leader: how long ago that was is all that counts here.
        let ago = now.wall.since(lease.since);
        if self
            .fleet
            .pods
            .get(&lease.pod)
            .is_some_and(|pod| pod.bill.price() != lease.price_usd_micro_per_hour)
        {
            // The old price holds up to now.
            self.accrue(now, actions);
        }
        match self.fleet.pods.get_mut(&lease.pod) {
            Some(pod) if pod.lease.is_some() => pod.bill.set_price(lease.price_usd_micro_per_hour),
            Some(pod) => {
                pod.lease = Some(LeasePhase::Work);
                pod.class = lease.class;
                pod.bill.set_price(lease.price_usd_micro_per_hour);
                let known = now.since(pod.begun_at);
                if ago > known {
                    pod.unaudited.idle += pod.bill.backdate(ago - known);
                } else {
                    // Heard of while another led, which has billed it until `since`.
                    let since = pod.bill.price().over(ago);
                    pod.unleased = (pod.bill.billed - since).max(UsdMicro::ZERO);
                }
            }
            None => {
                let price = lease.price_usd_micro_per_hour;
                let pod = self.fleet.pod_or_new(now, &lease.pod, price, &lease.class);
                pod.lease = Some(LeasePhase::Boot);
                pod.unaudited.idle += pod.bill.backdate(ago);
            }
        }
    }

    /// What a heartbeat says of itself is a claim; class and price of a rented pod are those of its order.
    pub(super) fn believed(&self, mut beat: Heartbeat) -> Heartbeat {
        if let Some(pod) = self.fleet.pods.get(&beat.pod).filter(|pod| pod.lease.is_some()) {
            beat.price_usd_micro_per_hour = pod.bill.price();
            beat.pod_class.clone_from(&pod.class);
        }
        beat
    }

    /// From now on the pod costs what giving it back costs.
    pub(super) fn lease_ending(&mut self, now: Now, name: &str, actions: &mut Vec<Action>) {
        self.accrue(now, actions);
        if let Some(pod) = self.fleet.pods.get_mut(name).filter(|pod| pod.lease.is_some()) {
            pod.lease = Some(LeasePhase::Drain);
        }
    }

    /// The last of the pod's bill. Should its worker still be heard of, that is nobody's money any more.
    pub(super) fn lease_ended(&mut self, now: Now, name: &str, actions: &mut Vec<Action>) {
        self.accrue(now, actions);
        let Some(pod) = self.fleet.pods.remove(name) else { return };
        self.closed_bills.add(&pod);
        self.closed_bills.keep(name, &pod);
        if pod.unaudited.total() != UsdMicro::ZERO {
            let spent = self.spent_event(name, pod.audited_at.wall, now.wall, pod.unaudited);
            self.act(actions, Action::Audit(spent));
        }
    }

    /// What each rented pod has cost so far, by name.
    pub(super) fn lease_bills(&self) -> Vec<(String, UsdMicro)> {
        let leased = self.fleet.pods.iter().filter(|(_, pod)| pod.lease.is_some());
        leased.map(|(name, pod)| (name.clone(), pod.lease_bill())).collect()
    }

    /// The whole bills of the latest that have ended, newest first.
    pub(super) fn ended_lease_bills(&self) -> Vec<(String, UsdMicro)> {
        self.closed_bills.latest.iter().cloned().collect()
    }

    /// What rented pods have cost since this process took them over, those that are gone included.
    pub(super) fn leased_total(&self) -> UsdMicro {
        self.closed_bills.leased + self.lease_bills().into_iter().map(|(_, billed)| billed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Event, Limits};
    use ternfleet_proto::message::WorkerCounters;
    use ternfleet_proto::tag::AssignmentKey;
    use ternfleet_proto::{MonoMs, TimeMs};

    fn on(core: &mut Core, at_s: u64, event: Event) {
        core.on(Now { mono: MonoMs(at_s * 1000), wall: TimeMs(at_s * 1000) }, event, &mut Vec::new());
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
        // The same word again changes nothing.
        on(&mut core, 40, Event::Leased(Box::new(lease)));
        assert_eq!(core.leased_total(), UsdMicro(30_000));
        assert_eq!(core.gauges().boot, UsdMicro(30_000), "nobody was heard of: all of it was boot");
        on(&mut core, 50, Event::LeaseEnding { pod: "rented-a-0".to_owned() });
        on(&mut core, 55, Event::LeaseEnded { pod: "rented-a-0".to_owned() });
        on(&mut core, 90, Event::Tick);
        let gauges = core.gauges();
        assert_eq!((gauges.billed, gauges.idle), (UsdMicro(45_000), UsdMicro(45_000)));
        assert_eq!((gauges.boot, gauges.drain), (UsdMicro(40_000), UsdMicro(5_000)));
        assert_eq!(core.leased_total(), UsdMicro(45_000));
        assert_eq!(core.ended_lease_bills(), [("rented-a-0".to_owned(), UsdMicro(45_000))]);
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
        assert_eq!(core.leased_total(), UsdMicro(20_000));
        // The provider's answer came late, or changed: from now on it holds.
        on(&mut core, 40, lease(7_200_000));
        on(&mut core, 50, heartbeat("rented-a-0", 0, "b"));
        on(&mut core, 50, Event::Tick);
        assert_eq!(core.leased_total(), UsdMicro(30_000 + 20_000));
        let view = &core.pod_views()[0].heartbeat;
        assert_eq!((view.price_usd_micro_per_hour, view.pod_class.as_str()), (UsdMicro(7_200_000), "a"));
    }
}
