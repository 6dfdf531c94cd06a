//! The quote: what a batch will cost and when it will be done, before it runs.
//!
//! Three pure steps: tokens are estimated from a sample of the lines ([`estimate`]), a plan is made with the batch
//! beside those that are accepted already, and the batch is played on the plan's pods many times, which gives cost and
//! finish as distributions ([`quote`]). A batch that cannot be kept is refused with the limit that binds, at submission
//! and not at the end. Called by the API's quote and submit; reading and tokenizing the lines is the caller's business.

mod engine;
mod forecast;
mod lengths;
mod play;
mod tokens;

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::message::Binds;
use ternfleet_proto::{TimeMs, UsdMicro};

use crate::plan::{
    Batch, BatchPlan, ClassSet, Limit, Plan, Pod, PodClass, PodPlan, PodState, Problem, Step, Verdict, plan,
};
use forecast::{Placed, Quantiles};

pub use engine::Engine;
pub use forecast::Skill;
pub use lengths::History;
pub use ternfleet_proto::message::{Alternative, ClassCost, PodsUsed, Quote};
pub use tokens::{Estimate, Lengths, SampledLine, estimate};

/// The engines of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodEngines {
    pub engines: Vec<Engine>,
    /// It works as long as there is work, whatever the plan says: nobody rented it, so nobody gives it back.
    pub stays: bool,
}

/// By the name of the pod. Of pods that are left out, the speed alone is known.
pub type Engines = BTreeMap<String, PodEngines>;

/// The lines of the batch, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    pub sample: Vec<SampledLine>,
    pub lines: u64,
    /// The model that all of them name.
    pub model: Option<String>,
    pub lengths: Lengths,
}

impl Work {
    pub fn estimate(&self) -> Estimate {
        estimate(&self.sample, self.lines, self.model.as_deref(), &self.lengths)
    }
}

/// What the caller wants to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub work: Work,
    /// Of `work`.
    pub tokens: Estimate,
    pub deadline: Option<TimeMs>,
    pub budget: Option<UsdMicro>,
    pub classes: ClassSet,
    /// How good quotes have been.
    pub skill: Skill,
}

/// Name of the asked batch within the plan: no accepted batch has it, since ids hold no space.
const ASKED: &str = "the quoted batch";
/// A choice that saves less than this share is not worth a word.
const WORTH: f64 = 0.01;

/// Quotes a batch beside those of `problem`, which are accepted already and must still be kept.
/// `class_names` names the classes of the problem's pods.
pub fn quote(problem: &Problem, class_names: &[String], engines: &Engines, request: &Request) -> Quote {
    let before = plan(problem, None);
    let (answer, own, others) = outcome(problem, &before, request, request.deadline);
    let mut verdict = own.verdict;
    if verdict == Verdict::Kept && !others {
        // The batch itself could be done, but only by breaking an earlier promise.
        verdict = Verdict::AtRisk(Limit::Capacity);
    }
    let told = Told::of(problem, engines, &before, request, &answer, &own);
    verdict = harder(verdict, told.verdict(request));
    let limit = match verdict {
        Verdict::Kept => None,
        Verdict::AtRisk(limit) | Verdict::Missed(limit) => Some(limit),
    };
    // Alternatives are compared by their plans, and told at the prices that such plans turn out to have.
    let factor = told.cost.p50 / (own.cost_usd_micro.0 as f64).max(1.0);
    let priced = |mut other: Alternative| {
        other.cost_usd_micro = usd(other.cost_usd_micro.0 as f64 * factor);
        other
    };
    let finish_p95 = told.finish_p95;
    let bound = if problem.batches.is_empty() { told.cost.p50 } else { f64::INFINITY };
    Quote {
        work_tokens: request.tokens.tokens,
        work_tokens_low: request.tokens.low(),
        work_tokens_high: request.tokens.high(),
        cached_lines: 0,
        kept: limit.is_none(),
        binds: limit.map(binds),
        explanation: explain(verdict, request, usd(told.cost.p95)),
        cost_p50_usd_micro: usd(told.cost.p50),
        cost_p95_usd_micro: usd(told.cost.p95),
        bill_p50_usd_micro: told.bill.map(|bill| usd(bill.p50)),
        bill_p95_usd_micro: told.bill.map(|bill| usd(bill.p95)),
        finish_p50_ms: told.finish_p50,
        finish_p95_ms: finish_p95,
        bound_usd_micro: answer.bound_usd_micro.min(usd(bound)),
        pods: pods_by_class(problem, request, &answer, engines, class_names, told.finish_p50),
        classes: class_costs(problem, request, class_names),
        cheaper: cheaper(problem, &before, request, own.cost_usd_micro, finish_p95).map(priced),
        faster: faster(problem, &before, request, finish_p95).map(priced),
    }
}

/// What a million tokens cost on each class that may run it: so a server on a graphics card and an engine on a CPU are
/// compared by price and measured or expected speed, whatever computes in them.
fn class_costs(problem: &Problem, request: &Request, class_names: &[String]) -> Vec<ClassCost> {
    let mut cheapest: BTreeMap<PodClass, f64> = BTreeMap::new();
    let usable = |pod: &&Pod| request.classes.holds(pod.class) && pod.rate_mean_tok_s > 0.0;
    for pod in problem.pods.iter().filter(usable) {
        let cost = pod.price_usd_micro_per_hour.0 as f64 * 1e6 / (3600.0 * pod.rate_mean_tok_s);
        let known = cheapest.entry(pod.class).or_insert(f64::INFINITY);
        *known = known.min(cost);
    }
    let name = |class: PodClass| class_names.get(usize::from(class.0)).cloned().unwrap_or_default();
    let mut costs: Vec<ClassCost> = cheapest
        .into_iter()
        .map(|(class, cost)| ClassCost { class: name(class), usd_micro_per_million_tokens: usd(cost) })
        .collect();
    costs.sort_by(|one, other| {
        let key = |cost: &ClassCost| (cost.usd_micro_per_million_tokens, cost.class.clone());
        key(one).cmp(&key(other))
    });
    costs
}

fn usd(micro: f64) -> UsdMicro {
    // The cast saturates.
    UsdMicro(micro.ceil().max(0.0) as i64)
}

/// The figures of a quote.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// Everything that it brings about: its bill, and the boots and drains of pods that are rented for it.
    cost: Quantiles,
    /// `None` where the plan alone is known.
    bill: Option<Quantiles>,
    finish_p50: TimeMs,
    finish_p95: TimeMs,
}

impl Told {
    fn of(
        problem: &Problem,
        engines: &Engines,
        before: &Plan,
        request: &Request,
        answer: &Plan,
        own: &BatchPlan,
    ) -> Told {
        let planned = Told {
            cost: Quantiles { p50: own.cost_usd_micro.0 as f64, p95: own.cost_p95_usd_micro.0 as f64 },
            bill: None,
            finish_p50: own.finish_p50,
            finish_p95: own.finish_p95,
        };
        if own.finish_p50.0 == u64::MAX {
            return planned;
        }
        // Where the budget cuts the plan short, the whole of it is told all the same.
        let whole = matches!(own.verdict, Verdict::AtRisk(Limit::Budget) | Verdict::Missed(Limit::Budget))
            .then(|| {
                outcome(problem, before, &Request { budget: None, ..request.clone() }, request.deadline).0
            });
        let answer = whole.as_ref().unwrap_or(answer);
        let placed = placed(problem, engines, request, answer);
        let beside = problem.batches.iter().filter(|other| other.classes.and(request.classes).0 != 0);
        let beside: Vec<f64> = beside.map(|other| other.tokens_left).collect();
        let Some(found) = forecast::forecast(&placed, &request.work, &beside, &request.skill) else {
            return planned;
        };
        let share = request.tokens.tokens / (request.tokens.tokens + beside.iter().sum::<f64>()).max(1.0);
        let rented = answer.pods.iter().filter(|pod| pod.step == Step::Start);
        let boots: f64 = rented.filter_map(|planned| boot_cost(problem, &planned.name)).sum::<f64>() * share;
        // Rented pods are planned again as time goes: a deadline that the plan keeps with its margin is kept.
        let adapts = own.verdict == Verdict::Kept && placed.iter().any(|one| one.until_s.is_finite());
        let due = request.deadline.filter(|_| adapts).unwrap_or(TimeMs(u64::MAX));
        let at = |seconds: f64| problem.now.plus(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))).min(due);
        Told {
            cost: Quantiles {
                p50: found.bill.p50 + found.reboots.p50 + boots,
                p95: found.bill.p95 + found.reboots.p95 + boots,
            },
            bill: Some(found.bill),
            finish_p50: at(found.finish_s.p50),
            finish_p95: at(found.finish_s.p95),
        }
    }

    /// Whether deadline and budget hold by these figures. A budget is for the bill alone.
    fn verdict(&self, request: &Request) -> Verdict {
        let late = |at: TimeMs| request.deadline.is_some_and(|deadline| at > deadline);
        let dear = |of: fn(Quantiles) -> f64| {
            request.budget.zip(self.bill).is_some_and(|(budget, bill)| usd(of(bill)) > budget)
        };
        match () {
            () if late(self.finish_p50) => Verdict::Missed(Limit::Capacity),
            () if dear(|bill| bill.p50) => Verdict::Missed(Limit::Budget),
            () if late(self.finish_p95) => Verdict::AtRisk(Limit::Capacity),
            () if dear(|bill| bill.p95) => Verdict::AtRisk(Limit::Budget),
            () => Verdict::Kept,
        }
    }
}

/// The plan's own verdict, unless the other is worse.
fn harder(planned: Verdict, other: Verdict) -> Verdict {
    match (planned, other) {
        (Verdict::Kept, other) => other,
        (Verdict::AtRisk(_), Verdict::Missed(limit)) => Verdict::Missed(limit),
        (planned, _) => planned,
    }
}

/// What it costs to start and to end this pod.
fn boot_cost(problem: &Problem, name: &str) -> Option<f64> {
    let pod = problem.pods.iter().find(|pod| pod.name == name)?;
    let span_s = pod.boot_s.max(0.0) + problem.care.drain_s;
    Some(pod.price_usd_micro_per_hour.0 as f64 / 3600.0 * span_s)
}

/// The engines of the plan's pods, and of those that work in any case.
fn placed(problem: &Problem, engines: &Engines, request: &Request, answer: &Plan) -> Vec<Placed> {
    let mut placed = Vec::new();
    for pod in problem.pods.iter().filter(|pod| request.classes.holds(pod.class)) {
        let known = engines.get(&pod.name);
        let stays = known.is_some_and(|known| known.stays);
        let planned = answer.pods.binary_search_by(|planned| planned.name.as_str().cmp(&pod.name));
        let planned = planned.ok().map(|place| &answer.pods[place]);
        let until = match planned.filter(|planned| planned.step != Step::GiveBack) {
            _ if stays => None,
            Some(planned) => Some(planned.works_until),
            None => continue,
        };
        let typical = || vec![Engine::typical(0, pod.rate_mean_tok_s)];
        let own = known.map(|known| known.engines.clone()).filter(|engines| !engines.is_empty());
        let own = own.unwrap_or_else(typical);
        let since = |at: TimeMs| at.since(problem.now).as_secs_f64();
        let (ready_s, count) = (since(ready_at(problem, pod)), own.len() as f64);
        placed.extend(own.into_iter().map(|engine| Placed {
            engine,
            price_per_s: pod.price_usd_micro_per_hour.0 as f64 / 3600.0 / count,
            ready_s,
            until_s: until.filter(|until| until.0 < u64::MAX).map_or(f64::INFINITY, since),
            rate_sd: pod.rate_sd_tok_s / pod.rate_mean_tok_s.max(1e-9),
            loss_per_s: pod.loss_per_hour.max(0.0) / 3600.0,
            restart_s: pod.restart_s.max(0.0),
            boot_s: pod.boot_s.max(0.0),
        }));
    }
    placed
}

/// The plan with the asked batch, what it holds for it, and whether all others are as well off as in the plan `before`,
/// without it.
fn outcome(
    problem: &Problem,
    before: &Plan,
    request: &Request,
    deadline: Option<TimeMs>,
) -> (Plan, BatchPlan, bool) {
    let mut with = problem.clone();
    with.batches.push(Batch {
        name: ASKED.to_owned(),
        tokens_left: request.tokens.tokens,
        tokens_sd: request.tokens.sd,
        deadline,
        budget_left: request.budget,
        classes: request.classes,
    });
    let mut after = plan(&with, None);
    let own = after.batches.pop().expect("because a plan answers every batch and one was pushed last");
    let kept = |plan: &Plan, place: usize| plan.batches[place].verdict == Verdict::Kept;
    let others = (0..before.batches.len()).all(|place| kept(&after, place) || !kept(before, place));
    (after, own, others)
}

/// The nearest of some later deadlines that saves something worth a word; none at all at last.
fn cheaper(
    problem: &Problem,
    before: &Plan,
    request: &Request,
    cost: UsdMicro,
    finish: TimeMs,
) -> Option<Alternative> {
    let span_ms = request.deadline?.0.saturating_sub(problem.now.0);
    let later =
        |per_cent: u64| TimeMs(problem.now.0.saturating_add((span_ms / 100).saturating_mul(per_cent)));
    let deadlines = [125, 150, 200, 300, 500, 1000].map(|per_cent| Some(later(per_cent)));
    deadlines.into_iter().chain([None]).find_map(|deadline| {
        let (_, own, others) = outcome(problem, before, request, deadline);
        let saves = own.cost_usd_micro.0 as f64 <= cost.0 as f64 * (1.0 - WORTH);
        (own.verdict == Verdict::Kept && others && saves).then_some(Alternative {
            deadline_ms: deadline,
            cost_usd_micro: own.cost_usd_micro,
            finish_p95_ms: own.finish_p95.max(finish),
        })
    })
}

/// The loosest of some tighter deadlines that can be kept.
fn faster(problem: &Problem, before: &Plan, request: &Request, finish: TimeMs) -> Option<Alternative> {
    let span_ms = finish.0.saturating_sub(problem.now.0);
    [75, 50, 25].into_iter().find_map(|per_cent| {
        // A finish that never comes is no base for a faster one.
        let deadline = TimeMs(problem.now.0.saturating_add((span_ms / 100).saturating_mul(per_cent)));
        let (_, own, others) = outcome(problem, before, request, Some(deadline));
        (own.verdict == Verdict::Kept && others && own.finish_p95 < finish).then_some(Alternative {
            deadline_ms: Some(deadline),
            cost_usd_micro: own.cost_usd_micro,
            finish_p95_ms: own.finish_p95,
        })
    })
}

/// The plan's pods, and those that work in any case, until the batch is done.
fn pods_by_class(
    problem: &Problem,
    request: &Request,
    plan: &Plan,
    engines: &Engines,
    class_names: &[String],
    finish: TimeMs,
) -> Vec<PodsUsed> {
    let ready: BTreeMap<&str, TimeMs> =
        problem.pods.iter().map(|pod| (pod.name.as_str(), ready_at(problem, pod))).collect();
    let mut used: BTreeMap<PodClass, PodsUsed> = BTreeMap::new();
    let stays = |pod: &PodPlan| {
        engines.get(&pod.name).is_some_and(|known| known.stays) && request.classes.holds(pod.class)
    };
    for pod in plan.pods.iter().filter(|pod| pod.step != Step::GiveBack || stays(pod)) {
        let until = if stays(pod) && finish.0 < u64::MAX { finish } else { pod.until };
        let from = ready.get(pod.name.as_str()).copied().unwrap_or(problem.now);
        let name = class_names.get(usize::from(pod.class.0)).cloned();
        let sum = used.entry(pod.class).or_insert_with(|| PodsUsed {
            class: name.unwrap_or_else(|| format!("class {}", pod.class.0)),
            pods: 0,
            started: 0,
            from_ms: from,
            until_ms: until,
        });
        sum.pods += 1;
        sum.started += u32::from(pod.step == Step::Start);
        sum.from_ms = sum.from_ms.min(from);
        sum.until_ms = sum.until_ms.max(until);
    }
    used.into_values().collect()
}

/// When a pod can begin to work.
fn ready_at(problem: &Problem, pod: &crate::plan::Pod) -> TimeMs {
    match pod.state {
        PodState::Running => problem.now,
        PodState::Booting { ready_at } => ready_at.max(problem.now),
        PodState::Offered => problem.now.plus(Duration::from_secs_f64(pod.boot_s.max(0.0))),
    }
}

/// The limit as callers are told of it.
pub fn binds(limit: Limit) -> Binds {
    match limit {
        Limit::Deadline => Binds::Deadline,
        Limit::Budget => Binds::Budget,
        Limit::Capacity => Binds::Capacity,
        Limit::FleetLimit => Binds::FleetLimit,
    }
}

fn explain(verdict: Verdict, request: &Request, cost: UsdMicro) -> String {
    let (sure, limit) = match verdict {
        Verdict::Kept => {
            return match (request.deadline.is_some(), request.budget.is_some()) {
                (true, true) => "It will finish in time and within the budget.",
                (true, false) => "It will finish in time.",
                (false, true) => "It will stay within the budget.",
                (false, false) => "No deadline and no budget was set.",
            }
            .to_owned();
        }
        Verdict::AtRisk(limit) => ("The limits may be exceeded.", limit),
        Verdict::Missed(limit) => ("The limits cannot be met.", limit),
    };
    let what = match limit {
        Limit::Deadline => "No pod would be ready before the deadline: choose a later one.".to_owned(),
        Limit::Budget => {
            let budget = request.budget.unwrap_or(UsdMicro::ZERO);
            let or = if request.deadline.is_some() { ", or choose a later deadline" } else { "" };
            format!("It would cost up to {cost}, but the budget is {budget}: raise it{or}.")
        }
        Limit::Capacity if request.deadline.is_some() => {
            "All pods of the market together are too slow for the deadline: choose a later one, or more \
             classes."
                .to_owned()
        }
        Limit::Capacity => "No pod of the market can run it: choose more classes, or start a \
                            worker."
            .to_owned(),
        Limit::FleetLimit => "The fleet's own limits (dollars, number of pods) allow no more pods: see \
                              `ternfleet scale show`."
            .to_owned(),
    };
    format!("{sure} {what}")
}

#[cfg(test)]
mod tests;
