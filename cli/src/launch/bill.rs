//! What each pod has cost: the fleet's own meter, from its audit log, beside the provider's bill.

use std::collections::BTreeMap;

use anyhow::Context;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use ternfleet_cloud::Provider;
use ternfleet_proto::bus::{Bus, Replayed};
use ternfleet_proto::message::{Event, EventKind, PodSpent, Quote};
use ternfleet_proto::{TimeMs, UsdMicro, codec, table};

use crate::report::table as columns;

/// One pod's part of the bill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodBill {
    pub(crate) class: String,
    pub(crate) price_usd_micro_per_hour: UsdMicro,
    pub(crate) provider_id: Option<String>,
    /// By the fleet's own meter, from the pod's creation to its return.
    pub(crate) metered_usd_micro: UsdMicro,
    /// By the provider, once it says.
    pub(crate) billed_usd_micro: Option<UsdMicro>,
}

pub(crate) type Bill = BTreeMap<String, PodBill>;

/// Reads the audit log from its beginning. Pods of which it says nothing (an earlier head's) stay as they are.
pub(crate) async fn read_meter(bus: &dyn Bus, bill: &mut Bill) -> anyhow::Result<()> {
    let mut log =
        bus.replay(table::EVENTS, table::events_all(), 1).await.context("the audit log cannot be read")?;
    let mut read = Bill::new();
    while let Some(item) = log.next().await {
        match item.context("the audit log cannot be read completely")? {
            Replayed::Message(message) => {
                let event: Event = codec::decode(&message.payload).context("an event cannot be parsed")?;
                take(&mut read, event.what);
            }
            Replayed::CaughtUp => break,
        }
    }
    lay_over(bill, read);
    Ok(())
}

/// What was read replaces what was known of the same pods. Another pod of the same name, an earlier head's, stays.
fn lay_over(bill: &mut Bill, read: Bill) {
    for (name, row) in read {
        let known = bill.get(&name).and_then(|known| known.provider_id.clone());
        if let Some(other) = known.filter(|id| row.provider_id.as_ref().is_some_and(|new| new != id))
            && let Some(before) = bill.remove(&name)
        {
            bill.insert(format!("{name} ({other})"), before);
        }
        bill.insert(name, row);
    }
}

fn take(bill: &mut Bill, what: EventKind) {
    match what {
        EventKind::PodIntent { pod, pod_class, price_usd_micro_per_hour } => {
            let row = bill.entry(pod).or_default();
            (row.class, row.price_usd_micro_per_hour) = (pod_class, price_usd_micro_per_hour);
        }
        EventKind::PodRented { pod, provider_id } => {
            bill.entry(pod).or_default().provider_id = Some(provider_id);
        }
        EventKind::Spent(spent) => take_spent(bill, &spent),
        EventKind::SpentByPods { pods } => pods.iter().for_each(|spent| take_spent(bill, spent)),
        _ => {}
    }
}

fn take_spent(bill: &mut Bill, spent: &PodSpent) {
    // A worker that nobody rented costs nothing here.
    if let Some(row) = bill.get_mut(&spent.pod) {
        row.metered_usd_micro += spent.idle_usd_micro;
        row.metered_usd_micro += spent.by_batch.iter().map(|(_, cost)| *cost).sum();
    }
}

/// Lays the provider's bill beside it. What was ordered and never rented is left out.
pub(crate) async fn read_provider(
    provider: &dyn Provider,
    from: TimeMs,
    to: TimeMs,
    bill: &mut Bill,
) -> anyhow::Result<()> {
    let records = provider.billing(from.0, to.0).await.context("the provider's bill cannot be read")?;
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for record in &records {
        *sums.entry(&record.pod.0).or_default() += record.amount_usd_micro;
    }
    for row in bill.values_mut() {
        if let Some(sum) = row.provider_id.as_deref().and_then(|id| sums.get(id)) {
            row.billed_usd_micro = Some(UsdMicro(*sum));
        }
    }
    Ok(())
}

/// What has to be paid: the provider's word, where it has given it.
pub(crate) fn total(bill: &Bill) -> UsdMicro {
    bill.values().map(PodBill::paid).sum()
}

impl PodBill {
    fn paid(&self) -> UsdMicro {
        self.billed_usd_micro.unwrap_or(self.metered_usd_micro)
    }
}

/// The bill for people, with what was quoted.
pub(crate) fn page(bill: &Bill, quote: Option<&Quote>) -> String {
    let head = ["pod", "class", "price/h", "metered", "provider's bill"];
    let row = |(name, row): (&String, &PodBill)| {
        vec![
            name.clone(),
            row.class.clone(),
            row.price_usd_micro_per_hour.to_string(),
            row.metered_usd_micro.to_string(),
            row.billed_usd_micro.map_or("not yet".to_owned(), |sum| sum.to_string()),
        ]
    };
    let rented = bill.iter().filter(|(_, row)| row.provider_id.is_some());
    let mut rows: Vec<Vec<String>> = rented.map(row).collect();
    let metered: UsdMicro = bill.values().map(|row| row.metered_usd_micro).sum();
    rows.push(vec![
        "total".to_owned(),
        String::new(),
        String::new(),
        metered.to_string(),
        total(bill).to_string(),
    ]);
    let mut text = columns(&head, rows);
    if let Some(quote) = quote {
        let (cost, most) = (quote.cost_p50_usd_micro, quote.cost_p95_usd_micro);
        text += &format!("\nquoted  {cost} (up to {most})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_name_another_has_taken_stays_on_the_bill() {
        let row = |id: &str, cost| PodBill {
            provider_id: Some(id.to_owned()),
            metered_usd_micro: UsdMicro(cost),
            ..PodBill::default()
        };
        let mut bill = Bill::from([("a".to_owned(), row("p1", 5))]);
        lay_over(&mut bill, Bill::from([("a".to_owned(), row("p1", 6))]));
        assert_eq!((bill.len(), total(&bill)), (1, UsdMicro(6)), "the same pod, later");
        lay_over(&mut bill, Bill::from([("a".to_owned(), row("p2", 1))]));
        assert_eq!((bill.len(), total(&bill)), (2, UsdMicro(7)));
    }

    #[test]
    fn a_pod_is_billed_for_work_and_idleness_and_what_was_not_rented_is_left_out() {
        let mut bill = Bill::new();
        let intent = |pod: &str| EventKind::PodIntent {
            pod: pod.to_owned(),
            pod_class: "half".to_owned(),
            price_usd_micro_per_hour: UsdMicro(340_000),
        };
        let spent = |pod: &str, idle, work| PodSpent {
            pod: pod.to_owned(),
            from: TimeMs(0),
            to: TimeMs(1),
            idle_usd_micro: UsdMicro(idle),
            over_budget_usd_micro: UsdMicro::ZERO,
            by_batch: vec![("batch_a".parse().unwrap(), UsdMicro(work))],
        };
        take(&mut bill, intent("tf-half-0"));
        take(&mut bill, intent("tf-half-1"));
        take(&mut bill, EventKind::PodRented { pod: "tf-half-0".to_owned(), provider_id: "p0".to_owned() });
        take(&mut bill, EventKind::Spent(spent("tf-half-0", 3, 40)));
        let pods = vec![spent("tf-half-0", 2, 0), spent("somebody-else", 9, 9)];
        take(&mut bill, EventKind::SpentByPods { pods });
        assert_eq!(total(&bill), UsdMicro(45));
        bill.get_mut("tf-half-0").unwrap().billed_usd_micro = Some(UsdMicro(46));
        assert_eq!(total(&bill), UsdMicro(46));
        let page = page(&bill, None);
        assert!(page.contains("tf-half-0") && !page.contains("tf-half-1"), "{page}");
    }
}
