//! Rented pods: each is billed from its creation to its return, so that boots and drains stand in the ledger beside
//! work and idleness.

use ternfleet_proto::{Now, UsdMicro};

use super::Core;
use super::event::{Action, Lease};
use super::fleet::{LeasePhase, Pod};

/// What pods cost that are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ClosedBills {
    pub attributed: UsdMicro,
    pub idle: UsdMicro,
    /// Of `idle`.
    pub boot: UsdMicro,
    pub drain: UsdMicro,
    /// Of all, what rented pods cost.
    pub leased: UsdMicro,
}

impl ClosedBills {
    pub(super) fn add(&mut self, pod: &Pod) {
        self.attributed += pod.bill.attributed;
        self.idle += pod.bill.idle;
        self.boot += pod.bill.boot;
        self.drain += pod.bill.drain;
        self.leased += pod.lease_bill();
    }
}

impl Core {
    /// A pod is rented. One whose worker was heard of first is billed for its boot after the fact.
    pub(super) fn leased(&mut self, now: Now, lease: Lease) {
        // The provider says dates, and so does an earlier leader: how long ago that was is all that counts here.
        let ago = now.wall.since(lease.since);
        match self.fleet.pods.get_mut(&lease.pod) {
            Some(pod) if pod.lease.is_some() => {}
            Some(pod) => {
                pod.lease = Some(LeasePhase::Work);
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

    /// What rented pods have cost since this process took them over, those that are gone included.
    pub(super) fn leased_total(&self) -> UsdMicro {
        self.closed_bills.leased + self.lease_bills().into_iter().map(|(_, billed)| billed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Event, Limits};
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
        assert_eq!(core.counts.violations, [0; 4]);
    }
}
