//! The quote: what a batch will cost and when it will be done, before it runs.
//!
//! Two pure steps: tokens are estimated from a sample of the lines ([`estimate`]), and a plan is made with the batch
//! beside those that are accepted already ([`quote`]). A batch that cannot be kept is refused with the limit that
//! binds, at submission and not at the end. Called by the API's quote and submit; reading and tokenizing the lines is
//! the caller's business.

mod tokens;

use std::collections::BTreeMap;

use ternfleet_proto::message::Binds;
use ternfleet_proto::{TimeMs, UsdMicro};

use crate::plan::{Batch, ClassSet, Limit, Plan, PodClass, PodState, Problem, Step, Verdict, plan};

pub use ternfleet_proto::message::{Alternative, PodsUsed, Quote};
pub use tokens::{Estimate, Lengths, SampledLine, estimate};

/// What the caller wants to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub tokens: Estimate,
    pub deadline: Option<TimeMs>,
    pub budget: Option<UsdMicro>,
    pub classes: ClassSet,
}

/// Name of the asked batch within the plan: no accepted batch has it, since ids hold no space.
const ASKED: &str = "the quoted batch";
/// A choice that saves less than this share is not worth a word.
const WORTH: f64 = 0.01;

/// Quotes a batch beside those of `problem`, which are accepted already and must still be kept.
/// `class_names` names the classes of the problem's pods.
pub fn quote(problem: &Problem, class_names: &[String], request: &Request) -> Quote {
    let (answer, own, others) = outcome(problem, request, request.deadline);
    let mut verdict = own.verdict;
    if verdict == Verdict::Kept && !others {
        // The batch itself could be done, but only by breaking an earlier promise.
        verdict = Verdict::AtRisk(Limit::Capacity);
    }
    let limit = match verdict {
        Verdict::Kept => None,
        Verdict::AtRisk(limit) | Verdict::Missed(limit) => Some(limit),
    };
    Quote {
        work_tokens: request.tokens.tokens,
        work_tokens_low: request.tokens.low(),
        work_tokens_high: request.tokens.high(),
        kept: limit.is_none(),
        binds: limit.map(binds),
        explanation: explain(verdict, request, own.cost_p95_usd_micro),
        cost_p50_usd_micro: own.cost_usd_micro,
        cost_p95_usd_micro: own.cost_p95_usd_micro,
        finish_p50_ms: own.finish_p50,
        finish_p95_ms: own.finish_p95,
        bound_usd_micro: answer.bound_usd_micro,
        pods: pods_by_class(problem, &answer, class_names),
        cheaper: cheaper(problem, request, own.cost_usd_micro),
        faster: faster(problem, request, own.finish_p95),
    }
}

/// The plan with the asked batch, what it holds for it, and whether all others are as well off as without it.
fn outcome(
    problem: &Problem,
    request: &Request,
    deadline: Option<TimeMs>,
) -> (Plan, crate::plan::BatchPlan, bool) {
    let before = plan(problem, None);
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
    let others = (0..before.batches.len()).all(|place| kept(&after, place) || !kept(&before, place));
    (after, own, others)
}

/// The nearest of some later deadlines that saves something worth a word; none at all at last.
fn cheaper(problem: &Problem, request: &Request, cost: UsdMicro) -> Option<Alternative> {
    let span_ms = request.deadline?.0.saturating_sub(problem.now.0);
    let later =
        |per_cent: u64| TimeMs(problem.now.0.saturating_add((span_ms / 100).saturating_mul(per_cent)));
    let deadlines = [125, 150, 200, 300, 500, 1000].map(|per_cent| Some(later(per_cent)));
    deadlines.into_iter().chain([None]).find_map(|deadline| {
        let (_, own, others) = outcome(problem, request, deadline);
        let saves = own.cost_usd_micro.0 as f64 <= cost.0 as f64 * (1.0 - WORTH);
        (own.verdict == Verdict::Kept && others && saves).then_some(Alternative {
            deadline_ms: deadline,
            cost_usd_micro: own.cost_usd_micro,
            finish_p95_ms: own.finish_p95,
        })
    })
}

/// The loosest of some tighter deadlines that can be kept.
fn faster(problem: &Problem, request: &Request, finish: TimeMs) -> Option<Alternative> {
    let span_ms = finish.0.saturating_sub(problem.now.0);
    [75, 50, 25].into_iter().find_map(|per_cent| {
        // A finish that never comes is no base for a faster one.
        let deadline = TimeMs(problem.now.0.saturating_add((span_ms / 100).saturating_mul(per_cent)));
        let (_, own, others) = outcome(problem, request, Some(deadline));
        (own.verdict == Verdict::Kept && others && own.finish_p95 < finish).then_some(Alternative {
            deadline_ms: Some(deadline),
            cost_usd_micro: own.cost_usd_micro,
            finish_p95_ms: own.finish_p95,
        })
    })
}

fn pods_by_class(problem: &Problem, plan: &Plan, class_names: &[String]) -> Vec<PodsUsed> {
    let ready: BTreeMap<&str, TimeMs> =
        problem.pods.iter().map(|pod| (pod.name.as_str(), ready_at(problem, pod))).collect();
    let mut used: BTreeMap<PodClass, PodsUsed> = BTreeMap::new();
    for pod in plan.pods.iter().filter(|pod| pod.step != Step::GiveBack) {
        let from = ready.get(pod.name.as_str()).copied().unwrap_or(problem.now);
        let name = class_names.get(usize::from(pod.class.0)).cloned();
        let sum = used.entry(pod.class).or_insert_with(|| PodsUsed {
            class: name.unwrap_or_else(|| format!("class {}", pod.class.0)),
            pods: 0,
            started: 0,
            from_ms: from,
            until_ms: pod.until,
        });
        sum.pods += 1;
        sum.started += u32::from(pod.step == Step::Start);
        sum.from_ms = sum.from_ms.min(from);
        sum.until_ms = sum.until_ms.max(pod.until);
    }
    used.into_values().collect()
}

/// When a pod can begin to work.
fn ready_at(problem: &Problem, pod: &crate::plan::Pod) -> TimeMs {
    match pod.state {
        PodState::Running => problem.now,
        PodState::Booting { ready_at } => ready_at.max(problem.now),
        PodState::Offered => problem.now.plus(std::time::Duration::from_secs_f64(pod.boot_s.max(0.0))),
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
        Verdict::Kept => return "It will be done in time and within budget.".to_owned(),
        Verdict::AtRisk(limit) => ("with the promised probability", limit),
        Verdict::Missed(limit) => ("at all", limit),
    };
    let what = match limit {
        Limit::Deadline => "No pod would be ready before the deadline: choose a later one.".to_owned(),
        Limit::Budget => {
            let budget = request.budget.unwrap_or(UsdMicro::ZERO);
            format!("It would cost up to {cost}, and the budget is {budget}: raise it, or choose a later deadline.")
        }
        Limit::Capacity if request.deadline.is_some() => {
            "All pods of the market together are too slow for the deadline: choose a later one, or more classes.".to_owned()
        }
        Limit::Capacity => "No pod of the market may run it: choose more classes, or start a worker.".to_owned(),
        Limit::FleetLimit => "The fleet's own limits (dollars, number of pods) keep further pods out.".to_owned(),
    };
    format!("It cannot be kept {sure}. {what}")
}

#[cfg(test)]
mod tests;
