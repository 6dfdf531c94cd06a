//! The planner: which pods run, for how long and for which batches, so that deadlines and budgets hold for the
//! fewest billed dollars. A pure function of the problem and the plan before it.
//!
//! It is not the router ([`crate::route`]), which shares work among the pods that run, and it rents nothing: the
//! scaler turns a plan into actions. Called by the scaler at every tick, by the quote before a run, and by the
//! simulator.
//!
//! # The order of wishes
//!
//! (1) spent and committed dollars never pass a budget; (2) a batch finishes by its deadline with probability
//! 1 − ε; (3) the fewest *billed* dollars, boot and drain included; (4) the earliest finish.
//!
//! # How
//!
//! A pod gives `v_eff = v / (1 + λ/3600 · (r + k / 2v))` tokens per second that survive, at
//! `κ = p · 10⁶ / (3600 · v_eff)` dollars a million. Batches are served in order of their deadlines. For each, pods
//! are filled up to the deadline in order of κ. Without the fixed price of a boot that greedy is exact (the
//! requirements are nested covers), hence the lower bound. With it, whole pods are a small covering
//! problem: solved exactly over all subsets for at most [`EXACT_PODS`] pods, and else by the greedy order with boots
//! spread over the time to the deadline and the last pod chosen by what it really costs.

mod bound;
mod choose;
mod fill;
mod market;
mod spread;

use ternfleet_proto::{TimeMs, UsdMicro};

pub use bound::{Bound, lower_bound};
pub use spread::normal_quantile;

/// Fleets of at most this many pods are planned over all their subsets.
pub const EXACT_PODS: usize = 10;

/// Pods of one class are of one make and price list. At most 64 classes, so that a set of them is one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodClass(pub u8);

impl PodClass {
    /// By its place in a list; all beyond the 64th count as one.
    pub fn at(place: usize) -> PodClass {
        PodClass(place.min(63) as u8)
    }
}

/// Classes on which a batch may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassSet(pub u64);

impl ClassSet {
    pub const ALL: ClassSet = ClassSet(u64::MAX);

    pub fn of(classes: &[PodClass]) -> ClassSet {
        ClassSet(classes.iter().fold(0, |set, class| set | 1 << (class.0 & 63)))
    }

    pub fn holds(self, class: PodClass) -> bool {
        self.0 & (1 << (class.0 & 63)) != 0
    }

    #[must_use]
    pub fn and(self, other: ClassSet) -> ClassSet {
        ClassSet(self.0 & other.0)
    }
}

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Could be rented now.
    Offered,
    /// Rented and paid for, not yet ready.
    Booting { ready_at: TimeMs },
    /// Working.
    Running,
}

/// A pod that runs or could be rented.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Unique; decides ties, so that the order of the pods does not.
    pub name: String,
    pub class: PodClass,
    /// Measured (or, of an offer, expected of its class), all slots together.
    pub rate_mean_tok_s: f64,
    /// Standard deviation of the mean's error: how far the speed may turn out from `rate_mean_tok_s`.
    pub rate_sd_tok_s: f64,
    pub price_usd_micro_per_hour: UsdMicro,
    /// From the order to the first token, paid for.
    pub boot_s: f64,
    /// Losses without warning, per hour.
    pub loss_per_hour: f64,
    /// What a loss costs in time until the work continues elsewhere.
    pub restart_s: f64,
    /// A checkpoint is written every so many generated tokens.
    pub checkpoint_tokens: u32,
    pub state: PodState,
}

impl Pod {
    /// Tokens per second that survive losses: v / (1 + λ/3600 · (r + k / 2v)); 0 when nothing was measured.
    pub fn effective_rate_tok_s(&self) -> f64 {
        let rate = self.rate_mean_tok_s;
        if !(rate.is_finite() && rate > 0.0) {
            return 0.0;
        }
        let lost_s = self.restart_s + f64::from(self.checkpoint_tokens) / (2.0 * rate);
        rate / (1.0 + self.loss_per_hour / 3600.0 * lost_s)
    }

    /// κ in micro-dollars per million surviving tokens; infinite when nothing was measured.
    pub fn kappa(&self) -> f64 {
        self.price_usd_micro_per_hour.0 as f64 * 1e6 / (3600.0 * self.effective_rate_tok_s())
    }
}

/// What a batch still needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Unique.
    pub name: String,
    pub tokens_left: f64,
    /// Standard deviation of `tokens_left`: output lengths are guesses until they are seen.
    pub tokens_sd: f64,
    /// `None` means whenever it is cheapest.
    pub deadline: Option<TimeMs>,
    /// What may still be spent; of the batch or of its tenant, whichever is less. `None` means no limit.
    pub budget_left: Option<UsdMicro>,
    pub classes: ClassSet,
}

impl Batch {
    /// A part of it, under a name of its own.
    #[must_use]
    pub fn share(&self, name: String, share: f64) -> Batch {
        let part = |usd: UsdMicro| UsdMicro((usd.0 as f64 * share) as i64);
        Batch {
            name,
            tokens_left: self.tokens_left * share,
            tokens_sd: self.tokens_sd * share,
            budget_left: self.budget_left.map(part),
            ..self.clone()
        }
    }
}

/// Limits of the whole fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Sum of the prices of the pods that run at once.
    pub usd_micro_per_hour: Option<UsdMicro>,
    /// What may still be spent today.
    pub usd_micro_today: Option<UsdMicro>,
    pub pods_max: Option<usize>,
}

/// How careful and how hasty to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Care {
    /// A deadline may be missed with this probability.
    pub epsilon: f64,
    /// Plans are made again this often: the last moment at which a loss is noticed.
    pub replan_s: f64,
    /// From the order to give a pod back to the end of its bill.
    pub drain_s: f64,
    /// An earlier finish may cost this share more.
    pub haste_ratio: f64,
    /// A plan that is this much cheaper is worth a change of pods.
    pub change_ratio: f64,
}

impl Default for Care {
    fn default() -> Self {
        Self { epsilon: 0.05, replan_s: 30.0, drain_s: 5.0, haste_ratio: 0.02, change_ratio: 0.02 }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Problem {
    pub now: TimeMs,
    pub pods: Vec<Pod>,
    pub batches: Vec<Batch>,
    pub limits: Limits,
    pub care: Care,
}

impl Problem {
    /// Some pod may run this batch.
    pub fn serves(&self, batch: &Batch) -> bool {
        self.pods.iter().any(|pod| batch.classes.holds(pod.class))
    }
}

/// What to do with a pod now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Start,
    Keep,
    GiveBack,
}

/// A pod that the plan starts, keeps or gives back. Offers that nobody needs are not listed.
#[derive(Debug, Clone, PartialEq)]
pub struct PodPlan {
    pub name: String,
    pub class: PodClass,
    pub step: Step,
    /// When it is needed no longer, with the margin for deadlines.
    pub until: TimeMs,
    /// Until when it works: like `until`, or until all is done where more pods run than are needed.
    pub works_until: TimeMs,
    pub tokens: f64,
    /// From now to its return, boot and drain included.
    pub cost_usd_micro: UsdMicro,
}

/// The limiting factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// No pod could even boot, or no number of pods of this market would do.
    Deadline,
    Budget,
    /// All pods that there are together are too slow.
    Capacity,
    /// The fleet's limits (dollars per hour or day, number of pods) keep further pods out.
    FleetLimit,
}

/// What the plan holds for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// By its deadline with probability 1 − ε, within its budget.
    Kept,
    /// Only with luck; the limit is what would have to give.
    AtRisk(Limit),
    /// Not even if all goes as expected. The plan does what it can.
    Missed(Limit),
}

#[derive(Debug, Clone, PartialEq)]
pub struct BatchPlan {
    pub name: String,
    pub verdict: Verdict,
    /// Expected.
    pub finish_p50: TimeMs,
    /// With the margin of 1 − ε; far in the future when never.
    pub finish_p95: TimeMs,
    /// Expected, with its share of boots and drains.
    pub cost_usd_micro: UsdMicro,
    /// With the margin.
    pub cost_p95_usd_micro: UsdMicro,
}

impl BatchPlan {
    /// Of a batch that no pod may run.
    fn never(batch: &Batch) -> BatchPlan {
        let verdict = if batch.tokens_left > 0.0 { Verdict::Missed(Limit::Capacity) } else { Verdict::Kept };
        BatchPlan {
            name: batch.name.clone(),
            verdict,
            finish_p50: TimeMs(u64::MAX),
            finish_p95: TimeMs(u64::MAX),
            cost_usd_micro: UsdMicro::ZERO,
            cost_p95_usd_micro: UsdMicro::ZERO,
        }
    }
}

/// The answer: equal problems have equal plans, whatever the order of pods and batches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// By name.
    pub pods: Vec<PodPlan>,
    /// In the order of the problem.
    pub batches: Vec<BatchPlan>,
    pub cost_usd_micro: UsdMicro,
    /// The least that any plan could cost: the relaxed problem and a boot for each of its pods.
    pub bound_usd_micro: UsdMicro,
}

impl Plan {
    /// Cost above the bound, as a share of the bound; 0 for an empty plan.
    pub fn regret(&self) -> f64 {
        if self.bound_usd_micro.0 <= 0 {
            return 0.0;
        }
        (self.cost_usd_micro.0 as f64 / self.bound_usd_micro.0 as f64 - 1.0).max(0.0)
    }

    pub fn all_kept(&self) -> bool {
        self.batches.iter().all(|batch| batch.verdict == Verdict::Kept)
    }

    /// Names of the pods that shall run.
    pub fn wanted(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().filter(|pod| pod.step != Step::GiveBack).map(|pod| pod.name.as_str())
    }
}

/// Plans again. The plan before, if given, stays in force as long as its pods do the work and no other choice is
/// cheaper by more than [`Care::change_ratio`]: noise in the measurements does not swap pods.
///
/// A batch that no pod may run is missed and changes nothing for the others.
pub fn plan(problem: &Problem, previous: Option<&Plan>) -> Plan {
    if problem.batches.iter().all(|batch| problem.serves(batch)) {
        return choose::choose(problem, &market::Market::new(problem), previous);
    }
    let mut able = problem.clone();
    able.batches.retain(|batch| problem.serves(batch));
    let mut planned = choose::choose(&able, &market::Market::new(&able), previous);
    for (place, batch) in problem.batches.iter().enumerate().filter(|(_, batch)| !problem.serves(batch)) {
        planned.batches.insert(place, BatchPlan::never(batch));
    }
    planned
}

#[cfg(test)]
mod tests;
