//! The virtual fleet: units that boot, run, vanish; batches that are worked off; every micro-dollar billed.

use ternfleet_proto::UsdMicro;

use super::policy::{Mind, millis};
use super::{Fleet, Options, Point, Policy, Report, Run, TraceKind};
use crate::plan::{Batch, ClassSet, Pod, PodClass, PodState, Problem, lower_bound};
use crate::random::Random;

const DRAIN_S: f64 = 5.0;
/// After the last deadline a run continues for at most this many times as long, then what is left is given up.
const OVERTIME: f64 = 4.0;
/// Without any deadline a run ends after so long.
const OPEN_END_S: f64 = 14.0 * 86_400.0;
const TIMELINE_POINTS: f64 = 200.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Free,
    Booting {
        ready_s: f64,
    },
    Running,
    /// Lost; the place can be rented again later.
    Vacant {
        until_s: f64,
    },
}

/// What was measured of a unit since it booted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) rate_tok_s: f64,
    pub(super) count: u32,
}

pub(super) struct Unit {
    pub(super) class: usize,
    pub(super) number: u32,
    pub(super) phase: Phase,
    pub(super) wanted: bool,
    pub(super) seen: Option<Seen>,
    /// Agreed when it was rented.
    pub(super) price_usd_per_hour: f64,
    true_rate_tok_s: f64,
    /// Work dealt to it, for the policy that deals.
    share_tokens: f64,
    random: Random,
}

impl Unit {
    pub(super) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Booting { .. } | Phase::Running)
    }

    fn price_per_s(&self) -> f64 {
        self.price_usd_per_hour * 1e6 / 3600.0
    }
}

pub(super) struct Lot {
    pub(super) name: String,
    pub(super) tokens_left: f64,
    pub(super) arrives_s: f64,
    /// Infinite without a deadline.
    pub(super) due_s: f64,
    /// In micro-dollars; infinite without one.
    pub(super) budget: f64,
    pub(super) spent: f64,
    pub(super) paused: bool,
    finished_s: Option<f64>,
}

impl Lot {
    pub(super) fn is_open(&self, now_s: f64) -> bool {
        self.arrives_s <= now_s && self.finished_s.is_none() && !self.paused
    }
}

pub(super) struct World<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) now_s: f64,
    pub(super) tick_s: f64,
    pub(super) drain_s: f64,
    /// By name.
    pub(super) units: Vec<Unit>,
    pub(super) names: Vec<String>,
    /// By deadline.
    pub(super) batches: Vec<Lot>,
    /// Of the classes, for new rentals.
    pub(super) price_usd_per_hour: Vec<f64>,
    /// Something happened that the policy should look at.
    pub(super) disturbed: bool,
    market: Random,
    billed: f64,
    idle: f64,
    tokens: f64,
    wasted_tokens: f64,
    boots: u32,
    losses: u32,
}

pub(super) fn run(fleet: &Fleet, options: &Options, policy: Policy) -> Run {
    let mut world = World::new(fleet, options.seed);
    let mut mind = Mind::new(policy, options.epsilon, &world);
    let last_due_s =
        world.batches.iter().map(|b| b.due_s).filter(|due_s| due_s.is_finite()).fold(0.0, f64::max);
    let endless = world.batches.iter().any(|batch| batch.due_s.is_infinite());
    let end_s = if endless { OPEN_END_S.max(OVERTIME * last_due_s) } else { OVERTIME * last_due_s };
    let mut events = options.trace.events.iter().peekable();
    let mut timeline = vec![world.point()];
    let mut next_point_s = 0.0;
    while world.now_s < end_s && world.batches.iter().any(|b| b.finished_s.is_none() && !b.paused) {
        while let Some(event) = events.next_if(|event| event.at_s <= world.now_s) {
            world.happen(&event.class, event.kind, event.value);
        }
        world.wait_for_arrival();
        mind.decide(&mut world);
        world.turn_over(policy);
        world.tick(policy);
        if world.now_s >= next_point_s {
            timeline.push(world.point());
            next_point_s = world.now_s + (last_due_s / TIMELINE_POINTS).max(world.tick_s);
        }
    }
    world.give_all_back();
    timeline.push(world.point());
    let report = world.report(policy, options);
    Run {
        report,
        idle_usd_micro: world.idle.round() as i64,
        boots: world.boots,
        losses: world.losses,
        timeline,
    }
}

impl<'a> World<'a> {
    pub(super) fn new(fleet: &'a Fleet, seed: u64) -> Self {
        let mut units: Vec<(String, Unit)> = Vec::new();
        for (class, spec) in fleet.pods.iter().enumerate() {
            for number in 0..spec.count {
                let stream = (class as u64) << 32 | u64::from(number) | 1 << 60;
                let mut random = Random::new(seed, stream);
                let true_rate_tok_s = own_rate(spec.rate_tok_s, spec.rate_spread, &mut random);
                let unit = Unit {
                    class,
                    number,
                    phase: Phase::Free,
                    wanted: false,
                    seen: None,
                    price_usd_per_hour: spec.price_usd_per_hour,
                    true_rate_tok_s,
                    share_tokens: 0.0,
                    random,
                };
                units.push((format!("{}-{number:05}", spec.class), unit));
            }
        }
        units.sort_by(|a, b| a.0.cmp(&b.0));
        let (names, units): (Vec<String>, Vec<Unit>) = units.into_iter().unzip();
        let mut batches: Vec<Lot> = fleet
            .batches
            .iter()
            .map(|batch| Lot {
                name: batch.name.clone(),
                tokens_left: batch.tokens,
                arrives_s: batch.arrives_s,
                due_s: batch.deadline_s.map_or(f64::INFINITY, |deadline_s| batch.arrives_s + deadline_s),
                budget: batch.budget_usd.map_or(f64::INFINITY, |usd| (usd * 1e6).round()),
                spent: 0.0,
                paused: false,
                finished_s: None,
            })
            .collect();
        batches.sort_by(|a, b| a.due_s.total_cmp(&b.due_s).then_with(|| a.name.cmp(&b.name)));
        let horizon_s = batches.iter().map(|b| b.due_s).filter(|s| s.is_finite()).fold(0.0, f64::max);
        Self {
            fleet,
            now_s: 0.0,
            tick_s: if horizon_s > 0.0 { (horizon_s / 720.0).clamp(2.0, 60.0) } else { 30.0 },
            drain_s: DRAIN_S,
            units,
            names,
            batches,
            price_usd_per_hour: fleet.pods.iter().map(|pod| pod.price_usd_per_hour).collect(),
            disturbed: true,
            market: Random::new(seed, 2),
            billed: 0.0,
            idle: 0.0,
            tokens: 0.0,
            wasted_tokens: 0.0,
            boots: 0,
            losses: 0,
        }
    }

    fn point(&self) -> Point {
        let pods = self.units.iter().filter(|unit| unit.is_held()).count() as u32;
        Point { at_s: self.now_s, tokens: self.tokens, cost_usd_micro: self.billed, pods }
    }

    fn happen(&mut self, class: &str, kind: TraceKind, value: f64) {
        let Some(class) = self.fleet.pods.iter().position(|pod| pod.class == class) else { return };
        match kind {
            TraceKind::Price => self.price_usd_per_hour[class] *= value,
            TraceKind::Rate => {
                self.units.iter_mut().filter(|u| u.class == class).for_each(|u| u.true_rate_tok_s *= value);
            }
            TraceKind::Lose => {
                let mut left = value as u32;
                let mut places: Vec<usize> =
                    (0..self.units.len()).filter(|&p| self.units[p].class == class).collect();
                places.sort_by_key(|&place| !self.units[place].is_held());
                for place in places {
                    if left > 0 && !matches!(self.units[place].phase, Phase::Vacant { .. }) {
                        self.lose(place);
                        left -= 1;
                    }
                }
            }
        }
        self.disturbed = true;
    }

    /// With nothing to do and nothing held, time jumps to the next arrival.
    fn wait_for_arrival(&mut self) {
        let idle = !self.batches.iter().any(|batch| batch.is_open(self.now_s));
        if idle && !self.units.iter().any(Unit::is_held) {
            let next =
                self.batches.iter().filter(|b| b.finished_s.is_none() && !b.paused).map(|b| b.arrives_s);
            let next_s = next.fold(f64::INFINITY, f64::min);
            if next_s.is_finite() && next_s > self.now_s {
                self.now_s = next_s;
                self.disturbed = true;
            }
        }
    }

    /// What all held pods cost until the end of the next tick, and then their drain.
    fn committed(&self) -> f64 {
        let held = self.units.iter().filter(|unit| unit.is_held());
        held.map(Unit::price_per_s).sum::<f64>() * (self.tick_s + self.drain_s)
    }

    /// Whom the next tick is billed to: the open batch with the earliest deadline.
    fn payer(&self) -> Option<usize> {
        self.batches.iter().position(|batch| batch.is_open(self.now_s))
    }

    fn bill(&mut self, payer: Option<usize>, amount: f64) {
        self.billed += amount;
        match payer {
            Some(batch) => self.batches[batch].spent += amount,
            None => self.idle += amount,
        }
    }

    /// Rents what is wanted and gives back what is not. Ours keeps every budget by not renting what a tick and a
    /// drain could not be paid for, and by pausing a batch before its last dollar is passed.
    fn turn_over(&mut self, policy: Policy) {
        let guarded = policy == Policy::Ours;
        let payer = self.payer();
        for place in 0..self.units.len() {
            if self.units[place].is_held() && !self.units[place].wanted {
                let amount = self.units[place].price_per_s() * self.drain_s;
                self.bill(payer, amount);
                self.units[place].phase = Phase::Free;
            }
        }
        let mut committed = self.committed();
        for place in 0..self.units.len() {
            if !self.units[place].wanted || self.units[place].phase != Phase::Free {
                continue;
            }
            let class = self.units[place].class;
            let price_per_s = self.price_usd_per_hour[class] * 1e6 / 3600.0;
            let further = price_per_s * (self.tick_s + self.drain_s);
            let room = payer.map_or(0.0, |batch| self.batches[batch].budget - self.batches[batch].spent);
            if guarded && committed + further > room {
                continue;
            }
            committed += further;
            let ready_s = self.now_s + self.fleet.pods[class].boot_s;
            let unit = &mut self.units[place];
            unit.phase = Phase::Booting { ready_s };
            unit.price_usd_per_hour = self.price_usd_per_hour[class];
            unit.seen = None;
            self.boots += 1;
        }
        while let Some(batch) = self.payer().filter(|_| guarded) {
            if self.batches[batch].spent + self.committed() <= self.batches[batch].budget {
                break;
            }
            self.batches[batch].paused = true;
            self.disturbed = true;
            if self.payer().is_none() {
                // Their drain was reserved with every tick that they ran.
                self.give_back_for(Some(batch));
            }
        }
    }

    fn give_back_for(&mut self, payer: Option<usize>) {
        for place in 0..self.units.len() {
            if self.units[place].is_held() {
                let amount = self.units[place].price_per_s() * self.drain_s;
                self.bill(payer, amount);
                self.units[place].phase = Phase::Free;
            }
        }
    }

    fn give_all_back(&mut self) {
        let last = (0..self.batches.len()).max_by(|&a, &b| {
            let at = |batch: usize| self.batches[batch].finished_s.unwrap_or(0.0);
            at(a).total_cmp(&at(b))
        });
        self.give_back_for(last);
    }

    fn lose(&mut self, place: usize) {
        let spec = &self.fleet.pods[self.units[place].class];
        let running = self.units[place].phase == Phase::Running;
        let until_s = self.now_s + spec.vacancy_s;
        let unit = &mut self.units[place];
        if running {
            // Each slot was somewhere between two checkpoints.
            let wasted =
                (0..spec.slots).map(|_| unit.random.unit()).sum::<f64>() * f64::from(spec.checkpoint_tokens);
            self.wasted_tokens += wasted;
            self.losses += 1;
            if let Some(batch) = self.batches.iter_mut().find(|batch| batch.is_open(self.now_s)) {
                batch.tokens_left += wasted;
            }
        }
        let unit = &mut self.units[place];
        unit.phase = Phase::Vacant { until_s };
        unit.seen = None;
        unit.true_rate_tok_s = own_rate(spec.rate_tok_s, spec.rate_spread, &mut unit.random);
        self.disturbed = true;
    }

    /// One tick: bill, boot, lose, work.
    fn tick(&mut self, policy: Policy) {
        self.change_prices();
        let tick_s = self.tick_s;
        let mut rates = vec![0.0; self.units.len()];
        for place in 0..self.units.len() {
            let spec = &self.fleet.pods[self.units[place].class];
            let risk = 1.0 - (-spec.loss_per_hour / 3600.0 * tick_s).exp();
            let unit = &mut self.units[place];
            let now_s = self.now_s;
            let worked_s = match unit.phase {
                Phase::Running => tick_s,
                Phase::Booting { ready_s } if ready_s <= now_s + tick_s => {
                    unit.phase = Phase::Running;
                    now_s + tick_s - ready_s.max(now_s)
                }
                Phase::Vacant { until_s } if until_s <= now_s => {
                    unit.phase = Phase::Free;
                    0.0
                }
                _ => 0.0,
            };
            if unit.is_held() && risk > 0.0 && unit.random.unit() < risk {
                // It vanishes at the end of the tick, with what it did since the checkpoint.
                self.lose_after(place, &mut rates, worked_s);
                continue;
            }
            if worked_s > 0.0 {
                rates[place] = self.measure(place) * worked_s / tick_s;
            }
        }
        self.work(policy, &rates);
        self.now_s += tick_s;
    }

    /// A pod that is lost in a tick is billed for it, works through it, and is gone afterwards.
    fn lose_after(&mut self, place: usize, rates: &mut [f64], worked_s: f64) {
        let amount = self.units[place].price_per_s() * self.tick_s;
        if worked_s > 0.0 {
            rates[place] = self.units[place].true_rate_tok_s * worked_s / self.tick_s;
        }
        let payer = self.payer();
        self.bill(payer, amount);
        self.lose(place);
    }

    /// Speed in this tick; also what the worker reports.
    fn measure(&mut self, place: usize) -> f64 {
        let noise = self.fleet.pods[self.units[place].class].rate_noise;
        let unit = &mut self.units[place];
        let swing = if noise > 0.0 { 1.0 + noise * unit.random.normal() } else { 1.0 };
        let rate = unit.true_rate_tok_s * swing.max(0.05);
        unit.seen = Some(match unit.seen {
            None => Seen { rate_tok_s: rate, count: 1 },
            Some(seen) => {
                // A mean at first, an EWMA over some twenty ticks later.
                let count = (seen.count + 1).min(20);
                Seen { rate_tok_s: seen.rate_tok_s + (rate - seen.rate_tok_s) / f64::from(count), count }
            }
        });
        rate
    }

    /// Works off the open batches in the order of their deadlines, and bills the tick to them by time.
    fn work(&mut self, policy: Policy, rates: &[f64]) {
        let price: f64 = self.units.iter().filter(|unit| unit.is_held()).map(Unit::price_per_s).sum();
        let mut left_s = self.tick_s;
        while left_s > 1e-9 {
            let Some(batch) = self.payer() else { break };
            if policy == Policy::Ours
                && self.batches[batch].spent + price * (left_s + self.drain_s) > self.batches[batch].budget
            {
                self.batches[batch].paused = true;
                self.disturbed = true;
                continue;
            }
            let rate = match policy {
                Policy::RoundRobin => self.dealt_rate(batch, rates),
                _ => rates.iter().sum(),
            };
            let needed = self.batches[batch].tokens_left;
            let span_s = if rate * left_s >= needed { needed / rate.max(1e-12) } else { left_s };
            let tokens = (rate * span_s).min(needed);
            self.tokens += tokens;
            self.batches[batch].tokens_left -= tokens;
            self.bill(Some(batch), price * span_s);
            left_s -= span_s;
            if self.batches[batch].tokens_left <= 1e-6 {
                self.batches[batch].finished_s = Some(self.now_s + self.tick_s - left_s);
                self.units.iter_mut().for_each(|unit| unit.share_tokens = 0.0);
                self.disturbed = true;
            }
        }
        // When the last batch is through, pods are given back at that moment; before an arrival they idle.
        if self.batches.iter().any(|batch| batch.finished_s.is_none() && !batch.paused) {
            self.bill(None, price * left_s);
        }
    }

    /// Equal shares are dealt to the pods that run; a pod that is through with its share idles until all are, or
    /// until the shares are dealt again because a pod came or went.
    fn dealt_rate(&mut self, batch: usize, rates: &[f64]) -> f64 {
        let running = rates.iter().filter(|&&rate| rate > 0.0).count();
        let dealt =
            self.units.iter().zip(rates).all(|(unit, &rate)| (unit.share_tokens > 0.0) == (rate > 0.0));
        if !dealt && running > 0 {
            let share = self.batches[batch].tokens_left / running as f64;
            for (unit, &rate) in self.units.iter_mut().zip(rates) {
                unit.share_tokens = if rate > 0.0 { share.max(1e-9) } else { 0.0 };
            }
        }
        let tick_s = self.tick_s;
        let mut done = 0.0;
        for (unit, &rate) in self.units.iter_mut().zip(rates) {
            // Never quite zero while it holds a share, so that an idle pod is not taken for a new one.
            let tokens = (rate * tick_s).min(unit.share_tokens - 1e-9).max(0.0);
            unit.share_tokens -= tokens;
            done += tokens;
        }
        let stuck = done <= 1e-6 * running as f64;
        if stuck { rates.iter().sum() } else { done / tick_s }
    }

    fn change_prices(&mut self) {
        for (class, spec) in self.fleet.pods.iter().enumerate() {
            if spec.price_changes_per_hour > 0.0 {
                let chance = spec.price_changes_per_hour / 3600.0 * self.tick_s;
                if self.market.unit() < chance {
                    // A tenth up or down on average, held within half and double of the list price.
                    let factor = (0.1 * self.market.normal()).exp();
                    let list = spec.price_usd_per_hour;
                    self.price_usd_per_hour[class] =
                        (self.price_usd_per_hour[class] * factor).clamp(0.5 * list, 2.0 * list);
                    self.disturbed = true;
                }
            }
        }
    }

    fn report(&self, policy: Policy, options: &Options) -> Report {
        let finished = |batch: &Lot| batch.finished_s.unwrap_or(f64::INFINITY);
        let missed = self.batches.iter().filter(|batch| finished(batch) > batch.due_s + 1e-6).count();
        let unfinished =
            self.batches.iter().filter(|b| b.finished_s.is_none() && b.due_s.is_infinite()).count();
        let violations = self.batches.iter().filter(|batch| batch.spent > batch.budget + 1e-3).count();
        let finish_s = self.batches.iter().filter_map(|batch| batch.finished_s).fold(0.0, f64::max);
        let made = self.tokens + self.wasted_tokens;
        Report {
            policy,
            cost_usd_micro: self.billed.round() as i64,
            bound_usd_micro: bound(self.fleet, options),
            missed_deadlines: (missed + unfinished) as u32,
            budget_violations: violations as u32,
            wasted_tokens_ratio: if made > 0.0 { self.wasted_tokens / made } else { 0.0 },
            finish_s: if finish_s > 0.0 { finish_s } else { self.now_s },
        }
    }
}

/// The bound with hindsight: every unit at its true speed, no losses, no arrivals to wait for.
fn bound(fleet: &Fleet, options: &Options) -> i64 {
    let world = World::new(fleet, options.seed);
    let pods = world.units.iter().zip(&world.names).map(|(unit, name)| Pod {
        name: name.clone(),
        class: PodClass(unit.class as u8),
        rate_mean_tok_s: unit.true_rate_tok_s,
        rate_sd_tok_s: 0.0,
        price_usd_micro_per_hour: UsdMicro::from_dollars(unit.price_usd_per_hour),
        boot_s: fleet.pods[unit.class].boot_s,
        loss_per_hour: 0.0,
        restart_s: 0.0,
        checkpoint_tokens: 0,
        state: PodState::Offered,
    });
    let batches = world.batches.iter().map(|batch| Batch {
        name: batch.name.clone(),
        tokens_left: batch.tokens_left,
        tokens_sd: 0.0,
        deadline: batch.due_s.is_finite().then(|| millis(batch.due_s)),
        budget_left: None,
        classes: ClassSet::ALL,
    });
    let mut problem = Problem { pods: pods.collect(), batches: batches.collect(), ..Problem::default() };
    problem.care.drain_s = 0.0;
    lower_bound(&problem).with_boots_usd_micro.0
}

fn own_rate(rate_tok_s: f64, spread: f64, random: &mut Random) -> f64 {
    if spread > 0.0 { rate_tok_s * (1.0 + spread * random.normal()).clamp(0.2, 3.0) } else { rate_tok_s }
}
