//! The fleet as screens see it: sums by class, the models that are served, and workers page by page.

use std::collections::BTreeMap;

use ternfleet_proto::message::{ClassView, ModelView, PodView};
use ternfleet_proto::{TenantId, WorkerId, codec};

use super::Core;
use super::fleet::Liveness;

/// What all workers are together. Taking it looks at each of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub classes: Vec<ClassView>,
    /// By name; of several digests or numerics the one with most workers.
    pub models: Vec<ModelView>,
}

impl Core {
    pub fn summary(&self) -> Summary {
        let mut classes: BTreeMap<&str, ClassView> = BTreeMap::new();
        let mut models: BTreeMap<(&str, &str, &str), ModelView> = BTreeMap::new();
        for (slot, worker) in &self.fleet.workers {
            let beat = &worker.beat;
            let is_live = |slot| self.fleet.get(slot).is_some_and(|other| other.liveness == Liveness::Live);
            let class = classes.entry(beat.pod_class.as_str()).or_default();
            match worker.liveness {
                Liveness::Lost => continue,
                Liveness::Quiet => class.workers_quiet += 1,
                Liveness::Live => {
                    class.workers_live += 1;
                    class.slots += beat.slots;
                    class.slots_in_use += beat.slots_in_use;
                    class.rate_tok_s += worker.rate.mean_tok_s();
                    let pod = self.money.pods().get(worker.pod_name());
                    // Engines of one pod each say the pod's price.
                    let pays = pod.and_then(|pod| pod.workers.iter().copied().find(|slot| is_live(*slot)));
                    if pays.is_none_or(|pays| pays == *slot) {
                        class.usd_micro_per_hour += worker.price();
                    }
                }
            }
            class.queued_jobs += self.flights.held(*slot).0.saturating_sub(beat.slots_in_use);
            let pod = self.money.pods().get(worker.pod_name());
            if let Some(pod) = pod.filter(|pod| pod.workers.first() == Some(slot)) {
                class.cost_usd_micro += pod.bill.billed;
            }
            if worker.liveness == Liveness::Live {
                let kind = (beat.model.as_str(), beat.model_digest.as_str(), beat.numerics.as_str());
                let known = models.entry(kind).or_insert_with(|| ModelView {
                    model: beat.model.clone(),
                    digest: beat.model_digest.clone(),
                    numerics: beat.numerics.clone(),
                    context_tokens: beat.context_tokens,
                    deterministic: true,
                    since: beat.started_at,
                    workers: 0,
                });
                known.deterministic &= beat.abilities.deterministic;
                known.since = known.since.min(beat.started_at);
                known.workers += 1;
            }
        }
        let mut served: BTreeMap<&str, ModelView> = BTreeMap::new();
        for ((name, ..), mut model) in models {
            if let Some(other) = served.remove(name) {
                let most = if other.workers < model.workers { model } else { other };
                // Which kind of engine answers is not known before.
                model = ModelView { deterministic: false, ..most };
            }
            served.insert(name, model);
        }
        let named = |(name, class): (&str, ClassView)| ClassView { class: name.to_owned(), ..class };
        let classes = classes.into_iter().map(named);
        Summary {
            classes: classes.filter(|class| class.workers_live + class.workers_quiet > 0).collect(),
            models: served.into_values().collect(),
        }
    }

    /// Workers behind `after` in the order of their names, as many as fit into so many bytes of a message, and at least
    /// one; and where the next page begins, if there is one.
    pub fn pod_page(
        &self,
        viewer: Option<&TenantId>,
        after: Option<&WorkerId>,
        bytes_max: usize,
    ) -> (Vec<PodView>, Option<WorkerId>) {
        let mut page: Vec<PodView> = Vec::new();
        let mut bytes = 0;
        let known = self.fleet.in_order(after).filter(|(_, worker)| worker.liveness != Liveness::Lost);
        for (slot, worker) in known {
            let view = self.pod_view(viewer, slot, worker);
            bytes += codec::encode(&view).len();
            if bytes > bytes_max && !page.is_empty() {
                let last = page.last().map(|pod| pod.heartbeat.worker.clone());
                return (page, last);
            }
            page.push(view);
        }
        (page, None)
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::{Heartbeat, WorkerCounters, WorkerState};
    use ternfleet_proto::tag::AssignmentKey;
    use ternfleet_proto::{LeaderRevision, MonoMs, Now, TimeMs, UsdMicro};

    use super::*;
    use crate::core::{Event, Lead, Limits};

    fn beat(worker: &str, host: &str, price: i64) -> Heartbeat {
        serde_json::from_value(serde_json::json!({
            "worker": worker, "pod": "p", "host": host, "pod_class": "c", "price_usd_micro_per_hour": price,
            "state": "ready", "model": "m", "model_digest": "d", "numerics": "n", "context_tokens": 512, "slots": 1,
            "slots_in_use": 0, "kv_pages": 1, "kv_pages_free": 1, "checkpoint_age_ms": 0, "threads": 1, "isa": "x",
            "calibration": [], "prefill_tok_s": 1.0, "decode_tok_s": 1.0, "counters": WorkerCounters::default(),
            "leader_seen": 0, "version": "0", "started_at": 0, "at": 0, "running": [], "needs_queues": false,
            "canary": "", "thread_scaling": [],
        }))
        .unwrap()
    }

    fn fleet_of(workers: u32) -> Core {
        let mut core = Core::new(AssignmentKey([7; 32]), Limits::default());
        let lead = Lead { revision: LeaderRevision(1), term: 1 };
        hear(&mut core, 0, Event::Lead(lead));
        for n in 0..workers {
            let mut beat = beat(&format!("w-{n:05}"), &format!("host-{}", n % 7), 340_000);
            beat.pod_class = if n % 3 == 0 { "large" } else { "small" }.to_owned();
            // Two engines a pod, each of which says the pod's price.
            beat.pod = format!("pod-{}", n / 2);
            beat.model = format!("model-{}", n % 2);
            beat.isa = "x".repeat(1_000);
            hear(&mut core, 0, Event::Heartbeat(Box::new(beat)));
        }
        core
    }

    fn hear(core: &mut Core, at_s: u64, event: Event) {
        let now = Now { mono: MonoMs(at_s * 1000), wall: TimeMs(at_s * 1000) };
        core.on(now, event, &mut Vec::new());
    }

    #[test]
    fn pages_hold_every_worker_once_and_none_is_larger_than_a_message() {
        let mut core = fleet_of(2_000);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = core.pod_page(None, after.as_ref(), 100_000);
            assert!(codec::encode(&page).len() <= 100_010 && !page.is_empty());
            seen.extend(page.iter().map(|pod| pod.heartbeat.worker.clone()));
            // One that went away while somebody pages leaves no hole, and no page is read twice.
            if seen.len() < 500 {
                let mut gone = beat(seen.last().unwrap().as_str(), "host-0", 340_000);
                gone.state = WorkerState::Gone;
                hear(&mut core, 1, Event::Heartbeat(Box::new(gone)));
            }
            let Some(next) = next else { break };
            after = Some(next);
        }
        assert_eq!(seen.len(), 2_000);
        assert!(seen.is_sorted() && core.pod_page(None, seen.last(), 100_000).0.is_empty());
    }

    #[test]
    fn the_sums_are_those_of_all_workers_and_a_pod_is_paid_once() {
        let core = fleet_of(600);
        let Summary { classes, models } = core.summary();
        let of = |name: &str| classes.iter().find(|class| class.class == name).unwrap();
        assert_eq!((of("large").workers_live, of("small").workers_live), (200, 400));
        let hourly: UsdMicro = classes.iter().map(|class| class.usd_micro_per_hour).sum();
        assert_eq!(hourly, UsdMicro(300 * 340_000));
        let served: Vec<(&str, u32)> =
            models.iter().map(|model| (model.model.as_str(), model.workers)).collect();
        assert_eq!(served, [("model-0", 300), ("model-1", 300)]);
    }

    #[test]
    fn what_is_counted_over_the_fleet_follows_every_worker() {
        let mut core = fleet_of(50);
        for step in 1..200u32 {
            let n = (step * 7) % 60;
            let mut beat = beat(&format!("w-{n:05}"), &format!("host-{}", (n + step / 50) % 7), 340_000);
            beat.model = format!("model-{}", step % 4);
            if step % 5 == 0 {
                beat.state = WorkerState::Gone;
            }
            let worker = beat.worker.clone();
            hear(&mut core, u64::from(step), Event::Heartbeat(Box::new(beat)));
            hear(&mut core, u64::from(step), Event::Registered { worker, shard: (step % 3) as u16 });
            hear(&mut core, u64::from(step), Event::Tick);
            assert!(core.fleet().counts_agree(), "at step {step}");
        }
        assert!(core.serves("model-1") && !core.serves("model-9"));
    }
}
