//! The scaler in words: what it has, what it would do next, and why.

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{Binds, ScaleAct, ScaleBatch, ScaleClass, ScalePod, ScalePodState, ScaleView};

use super::Scaler;
use crate::core::Supply;
use crate::plan::{Plan, PodPlan, Verdict};
use crate::quote::binds;
use crate::scale::{Act, Decision, Intent, Seen, SeenWorker, Settings, Why};

impl Scaler {
    pub(super) fn view(
        &self,
        now: TimeMs,
        settings: &Settings,
        seen: &Seen,
        decision: &Decision,
    ) -> ScaleView {
        let plan = &decision.plan;
        ScaleView {
            provider: self.rental.provider.name().to_owned(),
            fleet: settings.fleet.clone(),
            pods_min: settings.pods_min as u32,
            pods_max: settings.pods_max as u32,
            classes: self.classes(settings),
            usd_micro_per_hour_max: settings.usd_micro_per_hour_max,
            usd_micro_per_day_max: settings.usd_micro_per_day_max,
            idle_limit_ms: (settings.idle_limit_s * 1000.0) as u64,
            spent_today_usd_micro: self.spent_today(now),
            spent_usd_micro: self.spent(),
            halted: self.halt(),
            limit_reached: settings.day_is_spent(seen.spent_today),
            pods: self.store.intents.values().map(|kept| self.pod(&kept.value, seen)).collect(),
            acts: decision.acts.iter().map(|act| self.act(now, act, plan)).collect(),
            batches: batches(plan, seen),
            regret_ratio: plan.regret(),
            plan_usd_micro: plan.cost_usd_micro,
            bound_usd_micro: plan.bound_usd_micro,
        }
    }

    fn halt(&self) -> Option<String> {
        let now = self.ties.clock.mono();
        let halted = self.halted.as_ref().filter(|(_, until)| *until > now).map(|(why, _)| why.clone());
        halted.or_else(|| {
            self.list_fault.as_ref().map(|why| format!("the provider's list cannot be read: {why}"))
        })
    }

    fn classes(&self, settings: &Settings) -> Vec<ScaleClass> {
        let (all, now) = (self.rental.settings(&Default::default()), self.ties.clock.mono());
        let view = |name: &str| {
            let enabled = settings.classes.iter().find(|class| class.name == name);
            let class = enabled.or_else(|| all.classes.iter().find(|class| class.name == name))?;
            let pods = self.store.intents.values().filter(|kept| kept.value.class == name).count();
            let refused =
                self.refused.iter().find(|(refused, until, _)| refused.class == name && *until > now);
            Some(ScaleClass {
                name: name.to_owned(),
                price_usd_micro_per_hour: class.price_usd_micro_per_hour,
                rate_tok_s: class.rate_tok_s,
                pods: pods as u32,
                pods_max: class.pods_max,
                enabled: enabled.is_some(),
                refused: refused
                    .map(|(refused, _, why)| match &refused.data_center {
                        Some(place) => format!("{place}: {why}"),
                        None => why.clone(),
                    })
                    .or_else(|| self.rest(name)),
                failed: self.failures.get(name).cloned(),
            })
        };
        self.rental.options.classes.iter().filter_map(|class| view(&class.name)).collect()
    }

    fn rest(&self, class: &str) -> Option<String> {
        let (health, now) = (self.store.health(class), self.ties.clock.wall());
        health.rests(now).then(|| {
            let left = span(health.rests_until.since(now).as_secs());
            format!("{} pods in a row ended before their first heartbeat; retried in {left}", health.deaths)
        })
    }

    fn pod(&self, intent: &Intent, seen: &Seen) -> ScalePod {
        // The core lists them by pod.
        let worker = seen.workers.binary_search_by(|worker| worker.pod.cmp(&intent.name));
        let worker = worker.ok().map(|place| &seen.workers[place]);
        ScalePod {
            name: intent.name.clone(),
            class: intent.class.clone(),
            state: state(intent, worker),
            data_center: intent.data_center.clone(),
            price_usd_micro_per_hour: intent.price_usd_micro_per_hour,
            since: intent.written_at,
            provider_id: intent.provider_id.clone(),
            ending: intent.ending.map(|why| words(why).to_owned()),
            rate_tok_s: worker.map_or(0.0, |worker| worker.rate_mean_tok_s),
            billed_usd_micro: self.billed(&intent.name),
        }
    }

    fn act(&self, now: TimeMs, act: &Act, plan: &Plan) -> ScaleAct {
        let class = |name: &str| {
            let known = self.store.intents.get(name).map(|kept| kept.value.class.clone());
            known.unwrap_or_default()
        };
        let (what, pod, class, why) = match act {
            Act::Write(intent) => {
                let planned = plan.pods.iter().find(|pod| pod.name == intent.name);
                ("rent", &intent.name, intent.class.clone(), reason(now, planned))
            }
            Act::Order(name) => {
                ("order_again", name, class(name), "ordered, but not yet in the provider's list".to_owned())
            }
            Act::Adopt { name, .. } => {
                ("adopt", name, class(name), "an intent with its name exists".to_owned())
            }
            Act::End { name, why, .. } => ("give_back", name, class(name), words(*why).to_owned()),
            Act::Close { name, why } => ("forget", name, class(name), words(*why).to_owned()),
        };
        ScaleAct { what: what.to_owned(), pod: pod.clone(), class, why }
    }
}

/// What a batch that waits for pods is told.
pub(super) fn supply(view: &ScaleView) -> Supply {
    let starting = |pod: &&ScalePod| matches!(pod.state, ScalePodState::Ordered | ScalePodState::Booting);
    let binds = view.batches.iter().filter_map(|batch| Some((batch.batch.clone(), batch.binds?)));
    Supply {
        starting: view.pods.iter().filter(starting).count() as u32,
        obstacle: obstacle(view),
        binds: binds.collect(),
    }
}

/// Why no pod of any class is ordered now.
fn obstacle(view: &ScaleView) -> Option<String> {
    if view.pods_max == 0 {
        return Some(
            "the scaler may rent no pods: its limit is 0 (`ternfleet scale set --max N`)".to_owned(),
        );
    }
    if let Some(why) = &view.halted {
        return Some(format!("no pod is ordered: {why}"));
    }
    let refused = |class: &ScaleClass| match &class.refused {
        _ if !class.enabled => Some(format!("{} is paused", class.name)),
        Some(why) => Some(format!("{}: {why}", class.name)),
        None => None,
    };
    let whys: Option<Vec<String>> = view.classes.iter().map(refused).collect();
    whys.map(|whys| format!("no class of pods can be rented now ({})", whys.join("; ")))
}

fn state(intent: &Intent, worker: Option<&SeenWorker>) -> ScalePodState {
    match worker {
        _ if intent.ending.is_some() => ScalePodState::Ending,
        Some(worker) if worker.idle.is_none() => ScalePodState::Working,
        Some(_) => ScalePodState::Idle,
        None if intent.provider_id.is_some() => ScalePodState::Booting,
        None => ScalePodState::Ordered,
    }
}

/// Why a pod is rented, from what the plan has it do.
fn reason(now: TimeMs, planned: Option<&PodPlan>) -> String {
    match planned {
        Some(pod) if pod.tokens > 0.0 => {
            let (tokens, cost) = (pod.tokens, pod.cost_usd_micro);
            format!("generates {tokens:.0} tokens in {} for {cost}", span(pod.until.since(now).as_secs()))
        }
        _ => "keeps the minimum number of pods".to_owned(),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{:.1} min", seconds as f64 / 60.0),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

pub(super) fn words(why: Why) -> &'static str {
    match why {
        Why::NotNeeded => "the plan does not need it",
        Why::Orphan => "it has this fleet's name, and no intent exists for it",
        Why::NeverReady => "its worker did not register in time",
        Why::Silent => "its worker has sent no heartbeat for too long",
        Why::Stopped => "the provider reports it as stopped; its disk would still cost money",
        Why::Vanished => "it ran, but the provider no longer lists it",
        Why::NeverCame => "it was ordered, but never appeared in the provider's list",
        Why::Limit => "a limit of the fleet would be exceeded",
        Why::StartFailed => "it reports that it cannot start",
    }
}

fn batches(plan: &Plan, seen: &Seen) -> Vec<ScaleBatch> {
    let left = |name: &str| {
        seen.needs.iter().find(|need| need.batch.name == name).map(|need| need.batch.tokens_left)
    };
    let view = |planned: &crate::plan::BatchPlan| {
        let limit: Option<Binds> = match planned.verdict {
            Verdict::Kept => None,
            Verdict::AtRisk(limit) | Verdict::Missed(limit) => Some(binds(limit)),
        };
        ScaleBatch {
            batch: planned.name.clone(),
            tokens_left: left(&planned.name).unwrap_or(0.0),
            kept: limit.is_none(),
            binds: limit,
            finish_p50_ms: planned.finish_p50,
            finish_p95_ms: planned.finish_p95,
            cost_usd_micro: planned.cost_usd_micro,
        }
    };
    plan.batches.iter().map(view).collect()
}
