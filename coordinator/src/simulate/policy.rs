//! What each policy wants to run. Ours asks the planner; the others do what a person would write first: add pods in
//! their favourite order until the speed suffices for what is due, replace the lost, and stop when the work is done.

use ternfleet_proto::{TimeMs, UsdMicro};

use super::Policy;
use super::world::{Phase, World};
use crate::plan::{Batch, Care, ClassSet, Limits, Plan, Pod, PodClass, PodState, Problem, Step, plan};

/// The simple policies take this much more speed than the arithmetic asks for.
const SIMPLE_MARGIN: f64 = 1.1;
/// Most fleets are planned again this often; larger ones less often, since nothing hurries them.
const REPLAN_S: f64 = 30.0;
const LARGE_REPLAN_S: f64 = 300.0;
const LARGE_PODS: usize = 2_000;

pub(super) struct Mind {
    policy: Policy,
    epsilon: f64,
    plan: Option<Plan>,
    next_at_s: f64,
    /// The simple policies' favourite order.
    order: Vec<usize>,
}

impl Mind {
    pub(super) fn new(policy: Policy, epsilon: f64, world: &World<'_>) -> Self {
        let units = &world.units;
        let spec = |unit: usize| &world.fleet.pods[units[unit].class];
        let mut order: Vec<usize> = (0..units.len()).collect();
        match policy {
            Policy::Cheapest => order.sort_by(|&a, &b| {
                spec(a).price_usd_per_hour.total_cmp(&spec(b).price_usd_per_hour).then(a.cmp(&b))
            }),
            Policy::Fastest => {
                order.sort_by(|&a, &b| spec(b).rate_tok_s.total_cmp(&spec(a).rate_tok_s).then(a.cmp(&b)));
            }
            // One of each class, then the second of each, and so on.
            _ => order.sort_by_key(|&unit| (units[unit].number, units[unit].class)),
        }
        Self { policy, epsilon, plan: None, next_at_s: 0.0, order }
    }

    /// Sets `wanted` of every unit.
    pub(super) fn decide(&mut self, world: &mut World<'_>) {
        let due = world.now_s >= self.next_at_s || world.disturbed;
        if !due {
            return;
        }
        let replan_s = if world.units.len() > LARGE_PODS { LARGE_REPLAN_S } else { REPLAN_S };
        self.next_at_s = world.now_s + replan_s;
        world.disturbed = false;
        match self.policy {
            Policy::Ours => self.decide_by_plan(world, replan_s),
            _ => self.decide_simply(world),
        }
    }

    fn decide_by_plan(&mut self, world: &mut World<'_>, replan_s: f64) {
        let problem = problem(world, self.epsilon, replan_s.max(world.tick_s));
        let fresh = plan(&problem, self.plan.as_ref());
        for unit in &mut world.units {
            unit.wanted = false;
        }
        for planned in fresh.pods.iter().filter(|planned| planned.step != Step::GiveBack) {
            if let Ok(place) = world.names.binary_search(&planned.name) {
                world.units[place].wanted = true;
            }
        }
        self.plan = Some(fresh);
    }

    fn decide_simply(&mut self, world: &mut World<'_>) {
        let needed = needed_rate(world) * SIMPLE_MARGIN;
        let work_left = world.batches.iter().any(|batch| batch.is_open(world.now_s));
        let (mut rate, mut slowest, mut count) = (0.0, f64::INFINITY, 0.0);
        for &place in &self.order {
            let unit = &world.units[place];
            let free = !matches!(unit.phase, Phase::Vacant { .. });
            let enough = if self.policy == Policy::RoundRobin { count * slowest } else { rate };
            let wanted = free && work_left && (enough < needed || count == 0.0);
            if wanted {
                let rate_here = world.fleet.pods[unit.class].rate_tok_s;
                rate += rate_here;
                slowest = f64::min(slowest, rate_here);
                count += 1.0;
            }
            // A pod that runs keeps running until its work is done: nobody told it otherwise.
            let held = matches!(unit.phase, Phase::Booting { .. } | Phase::Running);
            world.units[place].wanted = wanted || (held && work_left);
        }
    }
}

/// The largest of the speeds that each deadline asks for, its boot aside.
fn needed_rate(world: &World<'_>) -> f64 {
    let boot_s = world.fleet.pods.iter().map(|pod| pod.boot_s).fold(0.0, f64::max);
    let mut tokens = 0.0;
    let mut needed = 0.0f64;
    for batch in world.batches.iter().filter(|batch| batch.is_open(world.now_s)) {
        tokens += batch.tokens_left;
        if batch.due_s.is_finite() {
            let booted_s = if world.now_s < batch.arrives_s + boot_s { boot_s } else { 0.0 };
            needed = needed.max(tokens / (batch.due_s - world.now_s - booted_s).max(1.0));
        }
    }
    needed
}

/// The world as the planner may know it: measured speeds of pods that run, expected ones of offers.
pub(super) fn problem(world: &World<'_>, epsilon: f64, replan_s: f64) -> Problem {
    let pods = world
        .units
        .iter()
        .zip(&world.names)
        .filter(|(unit, _)| !matches!(unit.phase, Phase::Vacant { .. }))
        .map(|(unit, name)| {
            let spec = &world.fleet.pods[unit.class];
            let state = match unit.phase {
                Phase::Booting { ready_s } => PodState::Booting { ready_at: millis(ready_s) },
                Phase::Running => PodState::Running,
                Phase::Free | Phase::Vacant { .. } => PodState::Offered,
            };
            let price =
                if unit.is_held() { unit.price_usd_per_hour } else { world.price_usd_per_hour[unit.class] };
            Pod {
                name: name.clone(),
                class: PodClass(unit.class as u8),
                rate_mean_tok_s: unit.seen.map_or(spec.rate_tok_s, |seen| seen.rate_tok_s),
                rate_sd_tok_s: unit.seen.map_or(spec.rate_spread * spec.rate_tok_s, |seen| {
                    spec.rate_noise * seen.rate_tok_s / f64::from(seen.count).sqrt()
                }),
                price_usd_micro_per_hour: UsdMicro::from_dollars(price),
                boot_s: spec.boot_s,
                loss_per_hour: spec.loss_per_hour,
                restart_s: spec.restart_s,
                checkpoint_tokens: spec.checkpoint_tokens.saturating_mul(spec.slots),
                state,
            }
        })
        .collect();
    let batches = world
        .batches
        .iter()
        .filter(|batch| batch.is_open(world.now_s))
        .map(|batch| Batch {
            name: batch.name.clone(),
            tokens_left: batch.tokens_left,
            tokens_sd: 0.0,
            deadline: batch.due_s.is_finite().then(|| millis(batch.due_s)),
            budget_left: batch
                .budget
                .is_finite()
                .then(|| UsdMicro((batch.budget - batch.spent).max(0.0) as i64)),
            classes: ClassSet::ALL,
        })
        .collect();
    Problem {
        now: millis(world.now_s),
        pods,
        batches,
        limits: Limits {
            usd_micro_per_hour: world.fleet.limits.usd_per_hour.map(UsdMicro::from_dollars),
            usd_micro_today: None,
            pods_max: world.fleet.limits.pods_max,
        },
        care: Care { epsilon, replan_s, drain_s: world.drain_s, ..Care::default() },
    }
}

pub(super) fn millis(seconds: f64) -> TimeMs {
    TimeMs((seconds * 1000.0).round() as u64)
}
