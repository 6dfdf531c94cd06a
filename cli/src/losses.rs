//! The fleet with its ledger: pods, those that were lost, and what all of them have cost.

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{FleetView, LostPod, Spent};

use crate::report::{printable, sort_by_name, table};
use crate::span;

/// Pods in the order of their names.
pub(crate) fn sorted(mut view: FleetView) -> FleetView {
    sort_by_name(&mut view.pods);
    view
}

/// One row a lost pod; none where none was lost.
pub(crate) fn lost_table(lost: &[LostPod], now: TimeMs) -> Option<String> {
    let head = ["lost pod", "class", "lost", "why", "tokens", "cost"];
    let row = |pod: &LostPod| {
        let ago = format!("{} ago", span::short(now.since(pod.at)));
        let (tokens, cost) = (pod.tokens.to_string(), pod.cost_usd_micro.to_string());
        vec![pod.pod.clone(), pod.class.clone(), ago, printable(&pod.why), tokens, cost]
    };
    (!lost.is_empty()).then(|| table(&head, lost.iter().rev().map(row).collect()))
}

/// What all pods have cost, those that are gone included.
pub(crate) fn spent_line(spent: Spent) -> String {
    let Spent { total_usd_micro, today_usd_micro, rented_usd_micro, .. } = spent;
    format!("{total_usd_micro} spent in total, {today_usd_micro} today; {rented_usd_micro} by the scaler")
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::UsdMicro;

    use super::*;

    #[test]
    fn a_lost_pod_is_a_row_with_when_and_why() {
        let lost = LostPod {
            pod: "spot-7".to_owned(),
            class: "spot".to_owned(),
            host: "h".to_owned(),
            model: "m".to_owned(),
            price_usd_micro_per_hour: UsdMicro(1),
            at: TimeMs(1_000),
            why: "no heartbeat for 5 s".to_owned(),
            tokens: 88,
            cost_usd_micro: UsdMicro(1_230_000),
        };
        let text = lost_table(&[lost], TimeMs(61_000)).unwrap();
        for said in ["spot-7", "no heartbeat for 5 s", " ago", "88", "$1.23"] {
            assert!(text.contains(said), "{said} is not in\n{text}");
        }
        assert_eq!(lost_table(&[], TimeMs(0)), None);
    }
}
