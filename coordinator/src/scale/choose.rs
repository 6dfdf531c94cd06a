//! The decision: tidy up first, then plan with what is left, then order within the limits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Duration;

use ternfleet_proto::UsdMicro;

use super::{
    Act, Class, Decision, Intent, Intents, PodKind, Prospect, Seen, SeenPod, SeenWorker, Settings, Why,
    class_set,
};
use crate::plan::{Batch, Care, ClassSet, Limits, Plan, Pod, PodClass, PodState, Problem, Step, plan};
use crate::quote::{Engines, PodEngines};

/// What a loss costs in time until the work continues elsewhere.
const RESTART_S: f64 = 30.0;
/// A pod's slots checkpoint every 32 tokens each.
const CHECKPOINT_TOKENS: u32 = 512;

/// A pod that the provider has confirmed shows in its list within this time.
const LISTED_WITHIN_S: f64 = 60.0;

/// The situation, with what is looked up for each pod found by its name: fleets have thousands.
struct Look<'a> {
    seen: &'a Seen,
    by_pod: BTreeMap<&'a str, &'a SeenWorker>,
    by_id: BTreeMap<&'a str, &'a SeenPod>,
    by_name: BTreeMap<&'a str, &'a SeenPod>,
}

impl<'a> Look<'a> {
    fn at(seen: &'a Seen) -> Look<'a> {
        // Of several the first counts.
        let listed = || seen.pods.iter().flatten().rev();
        Look {
            seen,
            by_pod: seen.workers.iter().rev().map(|worker| (worker.pod.as_str(), worker)).collect(),
            by_id: listed().map(|pod| (pod.id.as_str(), pod)).collect(),
            by_name: listed().map(|pod| (pod.name.as_str(), pod)).collect(),
        }
    }

    fn worker(&self, pod: &str) -> Option<&'a SeenWorker> {
        self.by_pod.get(pod).copied()
    }
}

impl Deref for Look<'_> {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        self.seen
    }
}

/// What a quote is made from.
pub fn market(settings: &Settings, intents: &Intents, seen: &Seen) -> Prospect {
    let seen = &Look::at(seen);
    let standing = |intent| Some((intent, stand(settings, intent, seen, &mut Vec::new())?));
    let alive: Vec<(&Intent, Standing)> = intents.values().filter_map(standing).collect();
    let offers = offers(settings, Held { alive: &alive, leaving: &[] }, seen);
    let kinds = kinds(settings, &alive, seen);
    let problem = problem(settings, &kinds, &alive, &offers, seen);
    let engines = engines(settings, &alive, &offers, seen);
    Prospect { problem, kinds, engines }
}

/// The engines of every pod: as measured where it runs, else of the shape that others of its class or its model have.
fn engines(
    settings: &Settings,
    alive: &[(&Intent, Standing)],
    offers: &[Candidate<'_>],
    seen: &Look<'_>,
) -> Engines {
    let live = || seen.workers.iter().filter(|worker| worker.live && !worker.engines.is_empty());
    let measured = |worker: &SeenWorker| PodEngines {
        engines: worker.engines.clone(),
        stays: !settings.is_ours(&worker.pod),
    };
    let mut engines: Engines = live().map(|worker| (worker.pod.clone(), measured(worker))).collect();
    let known: BTreeSet<&str> = live().map(|worker| worker.pod.as_str()).collect();
    let expected = |class: &str| {
        let class = settings.class(class)?;
        let of_class = || live().find(|worker| worker.class == class.name);
        let of_model =
            || live().find(|worker| class.models.iter().any(|model| worker.models.contains(model)));
        let shape = of_class().or_else(of_model)?;
        let each_tok_s = class.rate_tok_s / shape.engines.len() as f64;
        let engines = shape.engines.iter().map(|engine| engine.scaled_to(each_tok_s)).collect();
        Some(PodEngines { engines, stays: false })
    };
    let coming = alive.iter().map(|(intent, _)| *intent).chain(offers.iter().map(|offer| &offer.intent));
    let mut of_classes: BTreeMap<&str, Option<PodEngines>> = BTreeMap::new();
    for intent in coming.filter(|intent| !known.contains(intent.name.as_str())) {
        let of_class = of_classes.entry(&intent.class).or_insert_with(|| expected(&intent.class));
        engines.extend(of_class.clone().map(|expected| (intent.name.clone(), expected)));
    }
    engines
}

/// Workers on pods that are not ours to rent or to give back.
fn fixed<'a>(settings: &'a Settings, seen: &'a Look<'a>) -> impl Iterator<Item = &'a SeenWorker> {
    seen.workers.iter().filter(|worker| worker.live && !settings.is_ours(&worker.pod))
}

/// The configured classes, then what only pods that run show: other classes, other models.
fn kinds(settings: &Settings, alive: &[(&Intent, Standing)], seen: &Look<'_>) -> Vec<PodKind> {
    let mut kinds: Vec<PodKind> = settings
        .classes
        .iter()
        .map(|class| PodKind { class: class.name.clone(), models: class.models.clone() })
        .collect();
    let rented = alive.iter().map(|(intent, _)| kind_of(settings, seen, intent));
    let fixed = fixed(settings, seen).map(PodKind::of);
    for kind in rented.chain(fixed) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// The kind of a rented pod: as its worker says, or as its class promises until that is heard of.
fn kind_of(settings: &Settings, seen: &Look<'_>, intent: &Intent) -> PodKind {
    let worker = seen.worker(&intent.name).filter(|worker| !worker.models.is_empty());
    let promised = || settings.class(&intent.class).map(|class| class.models.clone()).unwrap_or_default();
    let models = worker.map_or_else(promised, |worker| worker.models.clone());
    PodKind { class: intent.class.clone(), models }
}

/// Decides what to do now.
pub fn decide(settings: &Settings, intents: &Intents, seen: &Seen, previous: Option<&Plan>) -> Decision {
    let seen = &Look::at(seen);
    let mut acts = Vec::new();
    let mut alive = Vec::new();
    if let Some(listed) = &seen.pods {
        reap(settings, intents, listed, &mut acts);
    }
    for intent in intents.values() {
        if let Some(standing) = stand(settings, intent, seen, &mut acts) {
            alive.push((intent, standing));
        }
    }
    keep_daily_limit(settings, seen, &mut alive, &mut acts);

    // Until the provider has ended them, those that leave are rented as well, and count for every limit.
    let closed = acts.iter().filter_map(|act| match act {
        Act::Close { name, .. } => Some(name.as_str()),
        _ => None,
    });
    let others: BTreeSet<&str> = alive.iter().map(|(intent, _)| intent.name.as_str()).chain(closed).collect();
    let leaving: Vec<&Intent> =
        intents.values().filter(|intent| !others.contains(intent.name.as_str())).collect();

    let held = Held { alive: &alive, leaving: &leaving };
    let offers = offers(settings, held, seen);
    let problem = problem(settings, &kinds(settings, &alive, seen), &alive, &offers, seen);
    let plan = plan(&problem, previous);
    let wanted = wanted(settings, &alive, &offers, &plan, seen);
    let idle = problem.batches.iter().all(|batch| batch.tokens_left <= 0.0 || !problem.serves(batch));
    follow(settings, held, &offers, &plan, seen, idle, &mut acts);
    Decision { acts, plan, wanted }
}

/// Counts the pods of a plan by their kinds, for whoever else rents pods.
fn wanted(
    settings: &Settings,
    alive: &[(&Intent, Standing)],
    offers: &[Candidate<'_>],
    plan: &Plan,
    seen: &Look<'_>,
) -> BTreeMap<(String, String), u32> {
    // A model's name comes before its digest.
    let label = |kind: PodKind| (kind.class, kind.models.into_iter().next().unwrap_or_default());
    let intents = alive.iter().map(|(intent, _)| *intent).chain(offers.iter().map(|offer| &offer.intent));
    let intents: BTreeMap<&str, &Intent> = intents.map(|intent| (intent.name.as_str(), intent)).collect();
    let kind_of_name = |name: &str| match intents.get(name) {
        Some(intent) => Some(kind_of(settings, seen, intent)),
        None => seen.worker(name).map(PodKind::of),
    };
    let classes = settings.classes.iter();
    let classes = classes.map(|class| PodKind { class: class.name.clone(), models: class.models.clone() });
    let mut wanted: BTreeMap<_, u32> = classes.map(|kind| (label(kind), 0)).collect();
    for kind in plan.wanted().filter_map(kind_of_name) {
        *wanted.entry(label(kind)).or_default() += 1;
    }
    wanted
}

/// Where a claimed pod stands, as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Standing {
    state: PodState,
    rate_mean_tok_s: f64,
    rate_sd_tok_s: f64,
    /// The provider has it for certain.
    rented: bool,
}

/// What may be rented now.
#[derive(Clone, Copy)]
struct Held<'a> {
    alive: &'a [(&'a Intent, Standing)],
    /// Those that the provider has not ended yet.
    leaving: &'a [&'a Intent],
}

impl<'a> Held<'a> {
    fn rented(self) -> impl Iterator<Item = &'a Intent> {
        self.alive.iter().map(|(intent, _)| *intent).chain(self.leaving.iter().copied())
    }
}

/// Ends every pod of ours that no intent claims.
fn reap(settings: &Settings, intents: &Intents, listed: &[SeenPod], acts: &mut Vec<Act>) {
    for pod in listed.iter().filter(|pod| settings.is_ours(&pod.name)) {
        let claimed = intents.get(&pod.name);
        // A second pod of one name is an orphan too.
        let by_other = claimed.and_then(|intent| intent.provider_id.as_ref()).is_some_and(|id| *id != pod.id);
        if claimed.is_none() || by_other {
            acts.push(Act::End { name: pod.name.clone(), id: pod.id.clone(), why: Why::Orphan });
        }
    }
}

/// Compares one intent with what is seen. `None` when it is not to be counted on.
fn stand(settings: &Settings, intent: &Intent, seen: &Look<'_>, acts: &mut Vec<Act>) -> Option<Standing> {
    let age_s = seen.age(intent).as_secs_f64();
    let class = settings.class(&intent.class);
    let worker = seen.worker(&intent.name);
    let pod = match &seen.pods {
        // Blind: what was rented is taken to run on.
        None => None,
        Some(_) => {
            let found = match &intent.provider_id {
                Some(id) => seen.by_id.get(id.as_str()),
                None => seen.by_name.get(intent.name.as_str()),
            };
            let found = found.copied();
            let limit_s = match intent.provider_id {
                Some(_) if intent.ending.is_some() => f64::NEG_INFINITY,
                // It is heard of: the list lags.
                Some(_) if worker.is_some_and(|worker| worker.live) && !seen.deaf => f64::INFINITY,
                // Some list has held it, or it has worked: it is not there any more.
                Some(_) if seen.shown.contains(&intent.name) || worker.is_some() => f64::NEG_INFINITY,
                // The provider has confirmed it, and may list it late.
                Some(_) => LISTED_WITHIN_S.min(settings.order_limit_s),
                None => settings.order_limit_s,
            };
            if found.is_none() && age_s > limit_s {
                let why = if intent.provider_id.is_some() { Why::Vanished } else { Why::NeverCame };
                acts.push(Act::Close { name: intent.name.clone(), why: intent.ending.unwrap_or(why) });
                return None;
            }
            found
        }
    };
    let id = pod.map(|pod| pod.id.clone()).or_else(|| intent.provider_id.clone());
    let mut end = |why: Why| {
        if let Some(id) = &id {
            acts.push(Act::End { name: intent.name.clone(), id: id.clone(), why });
        }
    };
    if let Some(why) = intent.ending {
        end(why);
        return None;
    }
    if pod.is_some_and(|pod| !pod.computes) {
        end(Why::Stopped);
        return None;
    }
    match worker {
        _ if seen.deaf => {}
        None if age_s > settings.ready_limit_s && id.is_some() => {
            end(Why::NeverReady);
            return None;
        }
        Some(worker) if worker.silent.as_secs_f64() > settings.silence_limit_s => {
            end(Why::Silent);
            return None;
        }
        _ => {}
    }
    if let Some(pod) = pod.filter(|_| intent.provider_id.is_none()) {
        acts.push(Act::Adopt {
            name: intent.name.clone(),
            id: pod.id.clone(),
            price: pod.price_usd_micro_per_hour,
        });
    }
    let boot_s = class.map_or(0.0, |class| class.boot_s);
    let ready_at = intent.written_at.plus(Duration::from_secs_f64(boot_s)).max(seen.now);
    Some(match worker {
        Some(worker) => Standing {
            state: PodState::Running,
            rate_mean_tok_s: worker.rate_mean_tok_s,
            rate_sd_tok_s: worker.rate_sd_tok_s,
            rented: true,
        },
        None => Standing {
            state: PodState::Booting { ready_at },
            rate_mean_tok_s: class.map_or(0.0, |class| class.rate_tok_s),
            rate_sd_tok_s: class.map_or(0.0, |class| class.rate_sd_tok_s),
            rented: id.is_some(),
        },
    })
}

/// Gives back the most expensive pods until what is spent today and a lease of all others is within the day's limit.
fn keep_daily_limit(
    settings: &Settings,
    seen: &Look<'_>,
    alive: &mut Vec<(&Intent, Standing)>,
    acts: &mut Vec<Act>,
) {
    let Some(limit) = settings.usd_micro_per_day_max else { return };
    alive.sort_by(|a, b| {
        (a.0.price_usd_micro_per_hour, &a.0.name).cmp(&(b.0.price_usd_micro_per_hour, &b.0.name))
    });
    let mut committed: UsdMicro =
        alive.iter().map(|(intent, _)| settings.lease(intent.price_usd_micro_per_hour)).sum();
    while seen.spent_today + committed > limit {
        let Some((intent, _)) = alive.pop() else { break };
        committed = committed - settings.lease(intent.price_usd_micro_per_hour);
        give_back(intent, Why::Limit, acts);
    }
    alive.sort_by(|a, b| a.0.name.cmp(&b.0.name));
}

/// A pod with an id is ended; an intent that was never answered is closed once the list is sure not to hold it, so
/// it is only marked here.
fn give_back(intent: &Intent, why: Why, acts: &mut Vec<Act>) {
    // An Adopt of the same pod in this decision may carry the id.
    let adopted = acts.iter().find_map(|act| match act {
        Act::Adopt { name, id, .. } if *name == intent.name => Some(id.clone()),
        _ => None,
    });
    let id = intent.provider_id.clone().or(adopted).unwrap_or_default();
    acts.push(Act::End { name: intent.name.clone(), id, why });
}

/// A pod that could be rented: its intent, if it is.
struct Candidate<'a> {
    class: &'a Class,
    intent: Intent,
}

/// New pods of each class, up to its limit, each in the data centre that has the fewest of ours.
fn offers<'a>(settings: &'a Settings, held: Held<'_>, seen: &Look<'_>) -> Vec<Candidate<'a>> {
    let alive = held.alive;
    if seen.halted || seen.pods.is_none() {
        return Vec::new();
    }
    let mut number = seen.next_number;
    let mut offers: Vec<Candidate<'a>> = Vec::new();
    for class in &settings.classes {
        let refused = |place: Option<&String>| {
            settings
                .refused
                .iter()
                .any(|refused| refused.class == class.name && refused.data_center.as_ref() == place)
        };
        let of_class = held.rented().filter(|intent| intent.class == class.name).count();
        let room = (class.pods_max as usize).saturating_sub(of_class).min(settings.pods_max);
        let starting = |(intent, standing): &&(&Intent, Standing)| {
            intent.class == class.name && matches!(standing.state, PodState::Booting { .. })
        };
        let room = class.starting_max.map_or(room, |most| {
            room.min((most as usize).saturating_sub(alive.iter().filter(starting).count()))
        });
        // How many of ours each data centre has, with those that are offered here.
        let mut crowds: BTreeMap<&String, usize> = BTreeMap::new();
        for (intent, _) in alive {
            if let Some(place) = &intent.data_center {
                *crowds.entry(place).or_default() += 1;
            }
        }
        for _ in 0..room {
            let open = class.data_centers.iter().filter(|place| !refused(Some(place)));
            let place = open.min_by_key(|place| crowds.get(place).copied().unwrap_or(0));
            if let Some(place) = place {
                *crowds.entry(place).or_default() += 1;
            }
            let place = place.cloned();
            if place.is_none() && (!class.data_centers.is_empty() || refused(None)) {
                break;
            }
            let intent = Intent {
                name: format!("{}-{}-{number}", settings.fleet, class.name),
                class: class.name.clone(),
                data_center: place,
                price_usd_micro_per_hour: class.price_usd_micro_per_hour,
                written_at: seen.now,
                provider_id: None,
                ending: None,
            };
            offers.push(Candidate { class, intent });
            number += 1;
        }
    }
    offers
}

fn problem(
    settings: &Settings,
    kinds: &[PodKind],
    alive: &[(&Intent, Standing)],
    offers: &[Candidate<'_>],
    seen: &Look<'_>,
) -> Problem {
    let index = |kind: &PodKind| PodClass::at(kinds.iter().position(|known| known == kind).unwrap_or(63));
    let serving = |model: &String| class_set(kinds, |kind| kind.serves(model));
    let needs = seen.needs.iter().map(|need| Batch {
        classes: need.batch.classes.and(need.model.as_ref().map_or(ClassSet::ALL, serving)),
        ..need.batch.clone()
    });
    let pod = |intent: &Intent, state: PodState, mean: f64, sd: f64| {
        let class = settings.class(&intent.class);
        Pod {
            name: intent.name.clone(),
            class: index(&kind_of(settings, seen, intent)),
            rate_mean_tok_s: mean,
            rate_sd_tok_s: sd,
            price_usd_micro_per_hour: intent.price_usd_micro_per_hour,
            boot_s: class.map_or(0.0, |class| class.boot_s),
            loss_per_hour: class.map_or(0.0, |class| class.loss_per_hour),
            restart_s: RESTART_S,
            checkpoint_tokens: CHECKPOINT_TOKENS,
            state,
        }
    };
    let held = alive.iter().map(|(intent, at)| pod(intent, at.state, at.rate_mean_tok_s, at.rate_sd_tok_s));
    let new = offers.iter().map(|offer| {
        pod(&offer.intent, PodState::Offered, offer.class.rate_tok_s, offer.class.rate_sd_tok_s)
    });
    let fixed: Vec<Pod> = fixed(settings, seen)
        .map(|worker| Pod {
            name: worker.pod.clone(),
            class: index(&PodKind::of(worker)),
            rate_mean_tok_s: worker.rate_mean_tok_s,
            rate_sd_tok_s: worker.rate_sd_tok_s,
            price_usd_micro_per_hour: worker.price_usd_micro_per_hour,
            boot_s: 0.0,
            loss_per_hour: 0.0,
            restart_s: RESTART_S,
            checkpoint_tokens: CHECKPOINT_TOKENS,
            state: PodState::Running,
        })
        .collect();
    // The fleet's limits bind what is rented; what is here anyway comes on top.
    let fixed_price: UsdMicro = fixed.iter().map(|pod| pod.price_usd_micro_per_hour).sum();
    let fixed_count = fixed.len();
    Problem {
        now: seen.now,
        pods: held.chain(new).chain(fixed).collect(),
        batches: needs.collect(),
        limits: Limits {
            usd_micro_per_hour: settings.usd_micro_per_hour_max.map(|limit| limit + fixed_price),
            usd_micro_today: settings.usd_micro_per_day_max.map(|limit| limit - seen.spent_today),
            pods_max: Some(settings.pods_max + fixed_count),
        },
        care: Care { epsilon: settings.epsilon, replan_s: settings.replan_s, ..Care::default() },
    }
}

/// Gives back what the plan does without (never below the least number), and orders what it wants, as far as every
/// limit has room.
fn follow(
    settings: &Settings,
    held: Held<'_>,
    offers: &[Candidate<'_>],
    plan: &Plan,
    seen: &Look<'_>,
    idle: bool,
    acts: &mut Vec<Act>,
) {
    let step = |name: &str| {
        let found = plan.pods.binary_search_by(|planned| planned.name.as_str().cmp(name));
        found.ok().map(|place| plan.pods[place].step)
    };
    let mut kept: Vec<&(&Intent, Standing)> = Vec::new();
    let mut spare: Vec<&(&Intent, Standing)> = Vec::new();
    for pod in held.alive {
        if step(&pod.0.name) == Some(Step::Keep) { kept.push(pod) } else { spare.push(pod) }
    }
    // Of those that nobody needs, the cheapest stay up to the least number.
    spare.sort_by(|a, b| {
        (a.0.price_usd_micro_per_hour, &a.0.name).cmp(&(b.0.price_usd_micro_per_hour, &b.0.name))
    });
    let staying = settings.pods_min.saturating_sub(kept.len()).min(spare.len());
    kept.extend(spare.drain(..staying));
    // With nothing to do at all, more may come soon: a boot costs more than a short wait.
    if idle {
        let (mut waiting, mut leaving): (Vec<_>, Vec<_>) =
            spare.into_iter().partition(|(intent, _)| waits(settings, intent, seen));
        // A limit that was lowered gives back at once what is above it: `scale set --max 0` waits for nothing.
        let room = settings.pods_max.saturating_sub(kept.len()).min(waiting.len());
        leaving.extend(waiting.split_off(room));
        kept.extend(waiting);
        spare = leaving;
    }
    for (intent, _) in &spare {
        give_back(intent, Why::NotNeeded, acts);
    }
    if seen.halted || seen.pods.is_none() {
        return;
    }
    for (intent, standing) in &kept {
        if !standing.rented {
            acts.push(Act::Order(intent.name.clone()));
        }
    }

    let mut per_hour: UsdMicro = held.rented().map(|intent| intent.price_usd_micro_per_hour).sum();
    let mut today: UsdMicro = seen.spent_today
        + kept.iter().map(|(intent, _)| settings.lease(intent.price_usd_micro_per_hour)).sum();
    let mut count = held.rented().count();
    let mut new: Vec<&Candidate<'_>> =
        offers.iter().filter(|offer| step(&offer.intent.name) == Some(Step::Start)).collect();
    let mut others: Vec<&Candidate<'_>> =
        offers.iter().filter(|offer| step(&offer.intent.name) != Some(Step::Start)).collect();
    others.sort_by_key(|offer| offer.intent.price_usd_micro_per_hour);
    new.extend(others.into_iter().take(settings.pods_min.saturating_sub(kept.len() + new.len())));
    for offer in new {
        let price = offer.intent.price_usd_micro_per_hour;
        let within = count < settings.pods_max
            && settings.usd_micro_per_hour_max.is_none_or(|limit| per_hour + price <= limit)
            && settings.usd_micro_per_day_max.is_none_or(|limit| today + settings.lease(price) <= limit);
        if within {
            per_hour += price;
            today += settings.lease(price);
            count += 1;
            acts.push(Act::Write(offer.intent.clone()));
        }
    }
}

/// Is it ready, and idle for less than the limit?
fn waits(settings: &Settings, intent: &Intent, seen: &Look<'_>) -> bool {
    let worker = seen.worker(&intent.name);
    worker.is_some_and(|worker| match worker.idle {
        Some(idle) => idle.as_secs_f64() < settings.idle_limit_s,
        None => settings.idle_limit_s > 0.0,
    })
}
