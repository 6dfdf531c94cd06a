//! Choosing: margins first, then the pods, then whether to stay with the plan before, then haste if it is cheap.

use ternfleet_proto::{TimeMs, UsdMicro};

use super::fill::{Ask, Boots, Fill, fill};
use super::market::Market;
use super::spread::{Spread, normal_quantile};
use super::{BatchPlan, EXACT_PODS, Limit, Plan, PodPlan, Problem, Step, Verdict};

/// Above this many pods × batches the greedy answer is not polished: time is worth more than the last per cent.
const POLISH_MAX: usize = 2_000;
/// How many lightly used pods are tried to be left out.
const POLISH_TRIES: usize = 6;
/// How many further pods are considered for an earlier finish.
const HASTE_TRIES: usize = 256;
/// Of a budget that does not suffice, this share is planned with: the rest is for the spread.
const SHORT_BUDGET_RATIO: f64 = 0.98;

pub(super) fn choose(problem: &Problem, market: &Market, previous: Option<&Plan>) -> Plan {
    let chooser = Chooser { problem, market };
    let mut mean: Vec<f64> = market.needs.iter().map(|need| need.tokens).collect();
    let mut outlook = chooser.outlook(&mean, previous);

    // A batch that its budget cannot carry is planned only as far as the money goes, so that no pod starts in vain.
    // What is told of it is what the whole of it would cost.
    let mut cut = vec![false; mean.len()];
    for (need, tokens) in mean.iter_mut().enumerate() {
        let budget = market.needs[need].budget;
        if outlook.expected.cost[need] > budget {
            *tokens *= (SHORT_BUDGET_RATIO * budget / outlook.expected.cost[need]).clamp(0.0, 1.0);
            cut[need] = true;
        }
    }
    let verdicts = outlook.verdicts(problem, market);
    let mut whole = None;
    if cut.contains(&true) {
        whole = Some(std::mem::replace(&mut outlook, chooser.outlook(&mean, previous)));
    }
    let hasty = chooser.hasten(&mean, &outlook);
    let told = |need: usize| whole.as_ref().filter(|_| cut[need]);
    chooser.report(&outlook, &hasty, &verdicts, told)
}

struct Chooser<'a> {
    problem: &'a Problem,
    market: &'a Market,
}

/// Three views of one choice of pods.
struct Outlook {
    /// With margin and reserve where that is possible: what is acted on.
    careful: Fill,
    /// The same pods if all goes as expected.
    expected: Fill,
    /// Per batch: is it placed with the margin?
    kept: Vec<bool>,
}

impl Chooser<'_> {
    fn ask<'b>(&self, order: &'b [usize], tokens: &'b [f64], reserve_s: f64) -> Ask<'b> {
        let limits = &self.problem.limits;
        Ask {
            order,
            tokens,
            reserve_s,
            price_per_s_max: self.hourly_limit() / 3600.0,
            pods_max: limits.pods_max.unwrap_or(usize::MAX),
            boots: Boots::Weighed,
        }
    }

    /// Units of money per hour.
    fn hourly_limit(&self) -> f64 {
        let limit = self.problem.limits.usd_micro_per_hour;
        limit.map_or(f64::INFINITY, |usd| usd.0 as f64 / self.market.unit_usd_micro)
    }

    fn outlook(&self, mean: &[f64], previous: Option<&Plan>) -> Outlook {
        let order = &self.market.by_rent;
        let first = fill(self.market, &self.ask(order, mean, 0.0));
        let reserve_s = self.reserve_s(&first);
        let mut wanted = self.with_margin(mean, &first);
        let mut careful = fill(self.market, &self.ask(order, &wanted, reserve_s));
        // The margin changes the pods and the pods the margin; twice is enough, since it grows with a square root.
        wanted = self.with_margin(mean, &careful);
        careful = fill(self.market, &self.ask(order, &wanted, reserve_s));

        let mut reserve_s = reserve_s;
        let mut kept: Vec<bool> = careful.short_tokens.iter().map(|&short| short == 0.0).collect();
        if careful.short() > 0.0 {
            let unreserved = fill(self.market, &self.ask(order, &wanted, 0.0));
            kept = unreserved.short_tokens.iter().map(|&short| short == 0.0).collect();
            if unreserved.short() < careful.short() {
                (careful, reserve_s) = (unreserved, 0.0);
            }
        }
        if careful.short() == 0.0 {
            careful = self.cheaper(order, &wanted, reserve_s, careful);
        }
        if let Some(previous) = previous {
            careful = self.steady(previous, mean, reserve_s, careful);
        }
        let chosen: Vec<usize> = order.iter().copied().filter(|&seat| careful.used[seat]).collect();
        let expected = fill(self.market, &self.ask(&chosen, mean, 0.0));
        Outlook { careful, expected, kept }
    }

    /// Time to notice a loss at the end and to boot in its place, weighed with how likely one is.
    fn reserve_s(&self, first: &Fill) -> f64 {
        let (mut boot_s, mut losses) = (0.0f64, 0.0);
        for seat in first.pods() {
            boot_s = boot_s.max(self.problem.pods[self.market.pod_of[seat]].boot_s);
            losses +=
                self.market.seats[seat].loss_per_s * (first.end_s[seat] - self.market.seats[seat].ready_s);
        }
        self.problem.care.replan_s + boot_s * losses.min(1.0)
    }

    /// Tokens to plan for, so that each deadline holds with probability 1 − ε. What is due by a deadline has the
    /// variance of its share of the pods' work; the increments go to the batches in order.
    fn with_margin(&self, mean: &[f64], placed: &Fill) -> Vec<f64> {
        let sigmas = normal_quantile(1.0 - self.problem.care.epsilon).max(0.0);
        let mut pods = Spread::default();
        for seat in placed.pods() {
            let shape = &self.market.seats[seat];
            let span_s = placed.end_s[seat] - shape.ready_s;
            let lost_tokens = shape.rate_tok_s * shape.restart_s;
            pods.add(span_s, shape.rate_sd_tok_s, shape.loss_per_s * span_s, lost_tokens);
        }
        let total: f64 = mean.iter().sum();
        let mut wanted = mean.to_vec();
        let (mut due_tokens, mut margin_before) = (0.0, 0.0f64);
        let mut lengths = Spread::default();
        for need in 0..self.market.needs.len() {
            due_tokens += mean[need];
            lengths.add_tokens_sd(self.market.needs[need].tokens_sd);
            let share = if total > 0.0 { due_tokens / total } else { 0.0 };
            let margin = sigmas * (pods.sd().powi(2) * share + lengths.sd().powi(2)).sqrt();
            if self.market.needs[need].due_s.is_finite() && mean[need] > 0.0 {
                wanted[need] += (margin - margin_before).max(0.0);
                margin_before = margin_before.max(margin);
            }
        }
        wanted
    }

    /// Looks for a cheaper set of pods that does the same: all subsets for a small fleet, else some leavings-out.
    fn cheaper(&self, order: &[usize], wanted: &[f64], reserve_s: f64, start: Fill) -> Fill {
        let mut best = start;
        let consider = |subset: &[usize], best: &mut Fill| {
            let candidate = fill(self.market, &self.ask(subset, wanted, reserve_s));
            let better =
                candidate.short() == 0.0 && candidate.total_cost() < best.total_cost() * (1.0 - 1e-9);
            if better {
                *best = candidate;
            }
            better
        };
        if order.len() <= EXACT_PODS {
            let total: f64 = wanted.iter().sum();
            let longest_s = self.market.needs.iter().map(|need| need.due_s).fold(0.0, f64::max);
            let mut subset = Vec::with_capacity(order.len());
            for members in 1u32..1 << order.len() {
                subset.clear();
                subset.extend(self.market.by_kappa.iter().copied().filter(|&seat| {
                    order.iter().position(|&s| s == seat).is_some_and(|bit| members >> bit & 1 == 1)
                }));
                let room: f64 = subset
                    .iter()
                    .map(|&seat| &self.market.seats[seat])
                    .map(|seat| seat.rate_tok_s * (longest_s - seat.ready_s).max(0.0))
                    .sum();
                if room >= total {
                    consider(&subset, &mut best);
                }
            }
        } else if order.len() * self.market.needs.len() <= POLISH_MAX {
            let held = |seat: usize| self.market.seats[seat].held;
            let mut light: Vec<usize> = best.pods().filter(|&seat| !held(seat)).collect();
            light.sort_by(|&a, &b| best.tokens[a].total_cmp(&best.tokens[b]));
            light.truncate(POLISH_TRIES);
            let mut subset = order.to_vec();
            for seat in light {
                let without: Vec<usize> = subset.iter().copied().filter(|&other| other != seat).collect();
                if consider(&without, &mut best) {
                    subset = without;
                }
            }
        }
        best
    }

    /// Stays with the pods of the plan before, unless the new choice is clearly cheaper or brings more. The old pods
    /// are judged by their own margin: that of the new ones says nothing about them.
    fn steady(&self, previous: &Plan, mean: &[f64], reserve_s: f64, fresh: Fill) -> Fill {
        let planned = |seat: usize| {
            let name = &self.problem.pods[self.market.pod_of[seat]].name;
            let found = previous.pods.binary_search_by(|pod| pod.name.as_str().cmp(name.as_str()));
            found.is_ok_and(|place| previous.pods[place].step != Step::GiveBack)
        };
        let order: Vec<usize> = self.market.by_kappa.iter().copied().filter(|&seat| planned(seat)).collect();
        let first = fill(self.market, &self.ask(&order, mean, 0.0));
        let wanted = self.with_margin(mean, &first);
        for reserve_s in [reserve_s, 0.0] {
            let same = fill(self.market, &self.ask(&order, &wanted, reserve_s));
            let near = same.total_cost() <= fresh.total_cost() * (1.0 + self.problem.care.change_ratio);
            if near && same.short() <= fresh.short() {
                return same;
            }
        }
        fresh
    }

    /// Further pods, in the order of renting, as long as the earlier finish costs next to nothing and every budget
    /// has room for it. Stops at the first that does not fit: so more money never means fewer pods.
    fn hasten(&self, mean: &[f64], outlook: &Outlook) -> Vec<usize> {
        let market = self.market;
        let tokens: f64 = mean.iter().sum();
        let cost = outlook.expected.total_cost();
        let classes = market.needs.iter().fold(u64::MAX, |set, need| set & need.classes);
        let room = (0..market.needs.len())
            .map(|need| {
                let share = if tokens > 0.0 { mean[need] / tokens } else { 0.0 };
                let free = market.needs[need].budget - outlook.careful.cost[need];
                if share > 0.0 { free / share } else { f64::INFINITY }
            })
            .fold(f64::INFINITY, f64::min);
        let mut allowance = (self.problem.care.haste_ratio * cost).min(room).max(0.0);
        let mut rate: f64 = outlook.careful.pods().map(|seat| market.seats[seat].rate_tok_s).sum();
        let mut price: f64 = outlook.careful.pods().map(|seat| market.seats[seat].price_per_s).sum();
        let running = outlook.careful.pods().count();
        let limits = &self.problem.limits;
        let mut added = Vec::new();
        if tokens <= 0.0 || rate <= 0.0 {
            return added;
        }
        let unused = market.by_rent.iter().copied().filter(|&seat| !outlook.careful.used[seat]);
        for seat in unused.filter(|&seat| market.seats[seat].class_bit & classes != 0).take(HASTE_TRIES) {
            let shape = &market.seats[seat];
            let share = tokens * shape.rate_tok_s / (rate + shape.rate_tok_s);
            let extra = shape.fixed + share * (shape.kappa() - cost / tokens).max(0.0);
            let in_time = shape.ready_s < 0.5 * tokens / rate;
            let limited = limits.pods_max.is_some_and(|most| running + added.len() >= most)
                || (price + shape.price_per_s) * 3600.0 > self.hourly_limit();
            // The allowance is compared with a hair's breadth for rounding: equal pods cost nothing more.
            if extra > allowance + 1e-9 * cost || !in_time || limited {
                break;
            }
            allowance -= extra;
            rate += shape.rate_tok_s;
            price += shape.price_per_s;
            added.push(seat);
        }
        added
    }

    fn report<'b>(
        &self,
        outlook: &Outlook,
        hasty: &[usize],
        verdicts: &[Verdict],
        told: impl Fn(usize) -> Option<&'b Outlook>,
    ) -> Plan {
        let (problem, market) = (self.problem, self.market);
        let at = |seconds: f64| TimeMs(problem.now.0.saturating_add((seconds * 1000.0) as u64));
        let rate: f64 =
            outlook.careful.pods().chain(hasty.iter().copied()).map(|s| market.seats[s].rate_tok_s).sum();
        let extra: f64 = hasty.iter().map(|&seat| market.seats[seat].fixed).sum();
        let tokens: f64 = market.needs.iter().map(|need| need.tokens).sum();
        let together_s = if hasty.is_empty() || rate <= 0.0 { f64::INFINITY } else { tokens / rate };

        let mut pods: Vec<PodPlan> = Vec::new();
        for (seat, shape) in market.seats.iter().enumerate() {
            let hastened = hasty.contains(&seat);
            let used = outlook.careful.used[seat] || hastened;
            if !used && !shape.held {
                continue;
            }
            let step = match (used, shape.held) {
                (true, true) => Step::Keep,
                (true, false) => Step::Start,
                (false, _) => Step::GiveBack,
            };
            let end_s = if hastened { shape.ready_s + together_s } else { outlook.careful.end_s[seat] };
            let busy_s = if used { (end_s - shape.ready_s).max(0.0) } else { 0.0 };
            let cost = if used { shape.fixed + busy_s * shape.price_per_s } else { 0.0 };
            pods.push(PodPlan {
                name: problem.pods[market.pod_of[seat]].name.clone(),
                class: problem.pods[market.pod_of[seat]].class,
                step,
                until: at(if used { end_s } else { 0.0 }),
                works_until: at(match used {
                    // It begins with the margin and plans again as it goes: on average half of the margin is used.
                    true if hasty.is_empty() => {
                        0.5 * (outlook.careful.end_s[seat] + outlook.expected.end_s[seat])
                    }
                    true => shape.ready_s.max(together_s),
                    false => 0.0,
                }),
                tokens: if hastened { busy_s * shape.rate_tok_s } else { outlook.careful.tokens[seat] },
                cost_usd_micro: market.usd_up(cost),
            });
        }

        // With hasty pods all run together, and a batch is through when all work due until then is.
        let mut due_tokens = 0.0;
        let together_at: Vec<f64> = market
            .needs
            .iter()
            .map(|need| {
                due_tokens += need.tokens;
                if hasty.is_empty() || rate <= 0.0 { f64::INFINITY } else { due_tokens / rate }
            })
            .collect();
        let mut batches: Vec<(usize, BatchPlan)> = (0..market.needs.len())
            .map(|need| {
                let share = if tokens > 0.0 { market.needs[need].tokens / tokens } else { 0.0 };
                let reach = |view: &Fill| {
                    if view.short_tokens[need] > 0.0 {
                        f64::INFINITY
                    } else {
                        view.finish_s[need].min(together_at[need])
                    }
                };
                let of = told(need).unwrap_or(outlook);
                let p50_s = reach(&of.expected);
                let planned = BatchPlan {
                    name: problem.batches[market.batch_of[need]].name.clone(),
                    verdict: verdicts[need],
                    finish_p50: at(p50_s),
                    finish_p95: at(reach(&of.careful).max(p50_s)),
                    cost_usd_micro: market.usd_up(of.expected.cost[need] + extra * share),
                    cost_p95_usd_micro: market
                        .usd_up(of.careful.cost[need].max(of.expected.cost[need]) + extra * share),
                };
                (market.batch_of[need], planned)
            })
            .collect();
        batches.sort_unstable_by_key(|(index, _)| *index);
        let mut plan = Plan {
            pods,
            batches: batches.into_iter().map(|(_, planned)| planned).collect(),
            cost_usd_micro: market.usd_up(outlook.expected.total_cost() + extra),
            bound_usd_micro: UsdMicro::ZERO,
        };
        plan.set_bound(market);
        plan
    }
}

impl Outlook {
    fn verdicts(&self, problem: &Problem, market: &Market) -> Vec<Verdict> {
        let today =
            problem.limits.usd_micro_today.map_or(f64::INFINITY, |usd| usd.0 as f64 / market.unit_usd_micro);
        (0..market.needs.len())
            .map(|need| {
                let (due_s, budget) = (market.needs[need].due_s, market.needs[need].budget);
                let allowed = || {
                    market.seats.iter().filter(|seat| {
                        seat.rate_tok_s > 0.0 && seat.class_bit & market.needs[need].classes != 0
                    })
                };
                let too_slow = || match allowed().map(|seat| seat.ready_s).fold(f64::INFINITY, f64::min) {
                    ready_s if ready_s.is_finite() && ready_s >= due_s => Limit::Deadline,
                    _ if self.careful.limited => Limit::FleetLimit,
                    _ => Limit::Capacity,
                };
                if self.expected.short_tokens[need] > 0.0 {
                    Verdict::Missed(too_slow())
                } else if self.expected.cost[need] > budget {
                    Verdict::Missed(Limit::Budget)
                } else if self.expected.total_cost() > today {
                    Verdict::Missed(Limit::FleetLimit)
                } else if !self.kept[need] {
                    Verdict::AtRisk(too_slow())
                } else if self.careful.cost[need] > budget {
                    Verdict::AtRisk(Limit::Budget)
                } else {
                    Verdict::Kept
                }
            })
            .collect()
    }
}
