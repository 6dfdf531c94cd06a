//! Series of the scaler, of the rented fleet's money and of the plan.

use std::collections::BTreeMap;

use prometheus::{Gauge, GaugeVec};
use ternfleet_cloud::CloudError;
use ternfleet_proto::message::{ScalePodState, ScaleView};

use super::{Counter, CounterVec, Maker};
use crate::scale::Act;

const ACTS: [&str; 5] = ["rent", "order_again", "adopt", "give_back", "forget"];
const FAULTS: [&str; 11] = [
    "no_capacity",
    "no_balance",
    "forbidden",
    "invalid",
    "unauthorized",
    "rate_limited",
    "uncertain",
    "not_found",
    "conflict",
    "unreachable",
    "protocol",
];

pub(super) struct ScaleSeries {
    pods: GaugeVec,
    pods_limit: GaugeVec,
    spent: GaugeVec,
    halted: Gauge,
    acts: CounterVec,
    faults: CounterVec,
    plan_pods_wanted: GaugeVec,
    plan_cost: Gauge,
    plan_bound: Gauge,
    plan_regret: Gauge,
    batches_at_risk: Gauge,
    billing_drift: Gauge,
    slow: Gauge,
    slowdowns: Counter,
}

impl ScaleSeries {
    pub(super) fn new(m: &Maker) -> Self {
        let states = ScalePodState::ALL.map(ScalePodState::as_str);
        Self {
            pods: m.gauges("scale_pods", "Pods that the scaler rents, by state.", "state", &states),
            pods_limit: m.gauges(
                "scale_pods_limit",
                "Minimum and maximum number of rented pods, as set.",
                "limit",
                &["min", "max"],
            ),
            spent: m.gauges(
                "scale_spent_usd",
                "Spent on rented pods in dollars, since midnight UTC and since the fleet was created; survives restarts.",
                "since",
                &["midnight", "begin"],
            ),
            halted: m.gauge("scale_halted", "1 while nothing is ordered: no balance, a rejected key, or no list of pods."),
            acts: m.counters("scale_acts_total", "Actions of the scaler.", "act", &ACTS),
            faults: m.counters(
                "provider_faults_total",
                "Requests that the pod provider rejected or did not answer.",
                "fault",
                &FAULTS,
            ),
            plan_pods_wanted: m.gauge_family(
                "plan_pods_wanted",
                "Pods that the plan for all accepted batches has, by class and the model that they serve, for any autoscaler.",
                &["class", "model"],
            ),
            plan_cost: m.gauge("plan_usd", "Cost of the plan for all accepted batches, in dollars."),
            plan_bound: m
                .gauge("plan_bound_usd", "Lower bound of the cost of any plan, including one boot per pod, in dollars."),
            plan_regret: m.gauge("plan_regret_ratio", "Cost of the plan above the bound, as a share of the bound."),
            batches_at_risk: m
                .gauge("plan_batches_at_risk", "Batches whose deadline or budget the plan may not meet."),
            billing_drift: m.gauge(
                "billing_drift_ratio",
                "The provider's bill divided by ours, minus one, for the pods that both list.",
            ),
            slow: m.gauge("workers_slow", "Workers that are much slower than before."),
            slowdowns: m.counter(
                "worker_slowdowns_total",
                "Times that a worker was suddenly much slower than usual, mostly because of other work on its host.",
            ),
        }
    }

    pub(super) fn show(&self, view: &ScaleView, wanted: &BTreeMap<(String, String), u32>) {
        self.plan_pods_wanted.reset();
        for ((class, model), pods) in wanted {
            self.plan_pods_wanted.with_label_values(&[class, model]).set(f64::from(*pods));
        }
        for state in ScalePodState::ALL {
            let count = view.pods.iter().filter(|pod| pod.state == state).count();
            self.pods.with_label_values(&[state.as_str()]).set(count as f64);
        }
        self.pods_limit.with_label_values(&["min"]).set(f64::from(view.pods_min));
        self.pods_limit.with_label_values(&["max"]).set(f64::from(view.pods_max));
        self.spent.with_label_values(&["midnight"]).set(view.spent_today_usd_micro.dollars());
        self.spent.with_label_values(&["begin"]).set(view.spent_usd_micro.dollars());
        self.halted.set(f64::from(u8::from(view.halted.is_some())));
        self.plan_cost.set(view.plan_usd_micro.dollars());
        self.plan_bound.set(view.bound_usd_micro.dollars());
        self.plan_regret.set(view.regret_ratio);
        self.batches_at_risk.set(view.batches.iter().filter(|batch| !batch.kept).count() as f64);
    }

    pub(super) fn act(&self, act: &Act) {
        let name = match act {
            Act::Write(_) => "rent",
            Act::Order(_) => "order_again",
            Act::Adopt { .. } => "adopt",
            Act::End { .. } => "give_back",
            Act::Close { .. } => "forget",
        };
        self.acts.with_label_values(&[name]).inc();
    }

    pub(super) fn fault(&self, fault: &CloudError) {
        let name = match fault {
            CloudError::NoCapacity(_) => "no_capacity",
            CloudError::NoBalance(_) => "no_balance",
            CloudError::Forbidden(_) => "forbidden",
            CloudError::Invalid(_) => "invalid",
            CloudError::Unauthorized(_) => "unauthorized",
            CloudError::RateLimited { .. } => "rate_limited",
            CloudError::Uncertain(_) => "uncertain",
            CloudError::NotFound(_) => "not_found",
            CloudError::Conflict(_) => "conflict",
            CloudError::Unreachable(_) => "unreachable",
            CloudError::Protocol(_) => "protocol",
        };
        self.faults.with_label_values(&[name]).inc();
    }

    pub(super) fn drift(&self, ratio: f64) {
        self.billing_drift.set(ratio);
    }

    pub(super) fn levels(&self, levels: &crate::core::Gauges) {
        self.slow.set(levels.workers_slow as f64);
    }

    pub(super) fn slowdowns(&self) -> &Counter {
        &self.slowdowns
    }
}
