//! The problem in the units of the sums: seconds from now, tokens per second that survive, and money in units of the
//! most expensive pod's hour.
//!
//! Pods are in the order of their names and batches in that of their deadlines, whatever order they came in; and
//! money is relative. So equal problems have plans that are equal to the last bit, and scaling all prices changes
//! none.

use ternfleet_proto::UsdMicro;

use super::{Pod, PodState, Problem};

/// A pod as the filling sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) rate_tok_s: f64,
    pub(super) rate_sd_tok_s: f64,
    pub(super) price_per_s: f64,
    /// When it can begin, in seconds from now.
    pub(super) ready_s: f64,
    /// Paid as soon as it is used at all: boot and drain.
    pub(super) fixed: f64,
    pub(super) loss_per_s: f64,
    pub(super) restart_s: f64,
    pub(super) class_bit: u64,
    /// Rented already.
    pub(super) held: bool,
}

impl Seat {
    /// Money a token.
    pub(super) fn kappa(&self) -> f64 {
        self.price_per_s / self.rate_tok_s
    }
}

/// A batch as the filling sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub(super) tokens: f64,
    pub(super) tokens_sd: f64,
    /// Infinite without a deadline.
    pub(super) due_s: f64,
    /// Infinite without a budget.
    pub(super) budget: f64,
    pub(super) classes: u64,
}

#[derive(Debug)]
pub(super) struct Market {
    /// By name.
    pub(super) seats: Vec<Seat>,
    /// Index of each seat's pod in the problem.
    pub(super) pod_of: Vec<usize>,
    /// Earliest deadline first, then by name.
    pub(super) needs: Vec<Need>,
    /// Index of each need's batch in the problem.
    pub(super) batch_of: Vec<usize>,
    /// Indexes of usable `seats`, lowest κ first.
    pub(super) by_kappa: Vec<usize>,
    /// The same with the boot spread over the time to the middle deadline: the order for renting whole pods.
    pub(super) by_rent: Vec<usize>,
    /// Micro-dollars of one unit of money.
    pub(super) unit_usd_micro: f64,
}

/// A rented pod counts as this much cheaper when pods are ordered, so that noise does not swap near equals.
const HELD_BONUS: f64 = 0.97;

impl Market {
    pub(super) fn new(problem: &Problem) -> Self {
        let dearest = problem.pods.iter().map(|pod| pod.price_usd_micro_per_hour.0).max().unwrap_or(0);
        let unit_usd_micro = dearest.max(1) as f64;

        let mut pod_of: Vec<usize> = (0..problem.pods.len()).collect();
        pod_of.sort_unstable_by(|&a, &b| problem.pods[a].name.cmp(&problem.pods[b].name));
        let seats: Vec<Seat> =
            pod_of.iter().map(|&pod| Seat::new(problem, &problem.pods[pod], unit_usd_micro)).collect();

        let due_s = |batch: usize| {
            let deadline = problem.batches[batch].deadline;
            deadline.map_or(f64::INFINITY, |at| at.since(problem.now).as_secs_f64())
        };
        let mut batch_of: Vec<usize> = (0..problem.batches.len()).collect();
        batch_of.sort_unstable_by(|&a, &b| {
            let names = || problem.batches[a].name.cmp(&problem.batches[b].name);
            due_s(a).total_cmp(&due_s(b)).then_with(names)
        });
        let needs: Vec<Need> = batch_of
            .iter()
            .map(|&index| {
                let batch = &problem.batches[index];
                Need {
                    tokens: batch.tokens_left.max(0.0),
                    tokens_sd: batch.tokens_sd.max(0.0),
                    due_s: due_s(index),
                    budget: batch
                        .budget_left
                        .map_or(f64::INFINITY, |usd| usd.0.max(0) as f64 / unit_usd_micro),
                    classes: batch.classes.0,
                }
            })
            .collect();
        let horizon_s = needs.get(needs.len() / 2).map_or(f64::INFINITY, |need| need.due_s);

        let order = |key: &dyn Fn(&Seat) -> f64| {
            let mut keyed: Vec<(f64, f64, usize)> = (0..seats.len())
                .filter(|&seat| seats[seat].rate_tok_s > 0.0)
                .map(|seat| (key(&seats[seat]), -seats[seat].rate_tok_s, seat))
                .collect();
            keyed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
            keyed.into_iter().map(|(_, _, seat)| seat).collect::<Vec<usize>>()
        };
        let by_kappa = order(&Seat::kappa);
        let by_rent = order(&|seat| {
            let span_s = (horizon_s - seat.ready_s).max(1e-3);
            let spread = if span_s.is_finite() { seat.fixed / (seat.rate_tok_s * span_s) } else { 0.0 };
            (seat.kappa() + spread) * if seat.held { HELD_BONUS } else { 1.0 }
        });
        Self { seats, pod_of, needs, batch_of, by_kappa, by_rent, unit_usd_micro }
    }

    /// Units of money in whole micro-dollars, rounded up.
    pub(super) fn usd_up(&self, units: f64) -> UsdMicro {
        // A millionth of a micro-dollar is rounding, not money.
        UsdMicro((units * self.unit_usd_micro - 1e-6).ceil().max(0.0) as i64)
    }

    /// Units of money in whole micro-dollars, rounded down.
    pub(super) fn usd_down(&self, units: f64) -> UsdMicro {
        UsdMicro((units * self.unit_usd_micro).floor().max(0.0) as i64)
    }
}

impl Seat {
    fn new(problem: &Problem, pod: &Pod, unit_usd_micro: f64) -> Self {
        let price_per_s = pod.price_usd_micro_per_hour.0.max(0) as f64 / unit_usd_micro / 3600.0;
        let (ready_s, paid_s, held) = match pod.state {
            PodState::Offered => (pod.boot_s.max(0.0), pod.boot_s.max(0.0) + problem.care.drain_s, false),
            PodState::Booting { ready_at } => {
                let left_s = ready_at.since(problem.now).as_secs_f64();
                (left_s, left_s, true)
            }
            PodState::Running => (0.0, 0.0, true),
        };
        let effective = pod.effective_rate_tok_s();
        Seat {
            rate_tok_s: effective,
            rate_sd_tok_s: pod.rate_sd_tok_s.max(0.0) * effective
                / pod.rate_mean_tok_s.max(f64::MIN_POSITIVE),
            price_per_s,
            ready_s,
            fixed: price_per_s * paid_s,
            loss_per_s: pod.loss_per_hour.max(0.0) / 3600.0,
            restart_s: pod.restart_s.max(0.0),
            class_bit: 1 << (pod.class.0 & 63),
            held,
        }
    }
}
