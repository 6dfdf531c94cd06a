//! A quote from a file of pods that could be rented, worked out on this machine.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use ternfleet_coordinator::plan::{ClassSet, Pod, PodClass, PodState, Problem};
use ternfleet_coordinator::quote::{Engine, Engines, Lengths, Request, Skill, Work};
use ternfleet_coordinator::simulate::Fleet as Market;
use ternfleet_proto::message::{PodView, Quote, QuoteAsk, WorkerState};
use ternfleet_proto::{TimeMs, UsdMicro};

/// Decode over prefill speed where no worker has measured it.
const PROMPT_WEIGHT: f64 = 0.3;
/// Spread of a measured speed that no fleet reports, as a share.
const RATE_SPREAD: f64 = 0.05;

/// Quotes on the market and the running pods.
pub(crate) fn quote(
    ask: &QuoteAsk,
    market: Option<&Market>,
    running: &[PodView],
    context_tokens: u32,
    now: TimeMs,
) -> anyhow::Result<Quote> {
    let mut classes = Vec::new();
    let (mut pods, prompt_weight) = running_pods(running, &mut classes);
    if let Some(market) = market {
        pods.extend(offers(market, &mut classes));
    }
    if pods.is_empty() {
        bail!("no pod runs and the market offers none: start a worker, or use another market file");
    }
    let lengths = Lengths { context_tokens, prompt_weight, ..Lengths::default() };
    let work = Work { sample: ask.work.sample.clone(), lines: ask.work.lines, model: None, lengths };
    let request = Request {
        tokens: work.estimate(),
        work,
        skill: Skill::default(),
        deadline: ask.deadline,
        budget: ask.budget_usd_micro,
        classes: class_set(&ask.classes, &classes)?,
    };
    let problem = Problem { now, pods, ..Problem::default() };
    Ok(ternfleet_coordinator::quote::quote(&problem, &classes, &engines(running), &request))
}

fn class_set(wanted: &[String], known: &[String]) -> anyhow::Result<ClassSet> {
    if wanted.is_empty() {
        return Ok(ClassSet::ALL);
    }
    let mut chosen = Vec::new();
    for name in wanted {
        match known.iter().position(|class| class == name) {
            Some(place) => chosen.push(PodClass(place.min(63) as u8)),
            None => bail!("no pods of class {name:?}; known classes are {}", known.join(", ")),
        }
    }
    Ok(ClassSet::of(&chosen))
}

/// The number of a class, new or known. At most 64 are told apart; the rest share the last number.
fn class_number(name: &str, classes: &mut Vec<String>) -> PodClass {
    let place = classes.iter().position(|class| class == name).unwrap_or_else(|| {
        classes.push(name.to_owned());
        classes.len() - 1
    });
    PodClass(place.min(63) as u8)
}

/// Running pods with the speeds of their engines added up, and decode over prefill speed of them all.
fn running_pods(views: &[PodView], classes: &mut Vec<String>) -> (Vec<Pod>, f64) {
    let mut pods: BTreeMap<&str, Pod> = BTreeMap::new();
    let (mut decode, mut prefill) = (0.0, 0.0);
    for view in views.iter().filter(|view| view.live && view.heartbeat.state == WorkerState::Ready) {
        let said = &view.heartbeat;
        let rate = if view.rate_tok_s > 0.0 { view.rate_tok_s } else { said.decode_tok_s };
        decode += rate;
        prefill += said.prefill_tok_s;
        let pod = pods.entry(&said.pod).or_insert_with(|| Pod {
            name: said.pod.clone(),
            class: class_number(&said.pod_class, classes),
            rate_mean_tok_s: 0.0,
            rate_sd_tok_s: 0.0,
            price_usd_micro_per_hour: said.price_usd_micro_per_hour,
            boot_s: 0.0,
            loss_per_hour: 0.0,
            restart_s: 0.0,
            checkpoint_tokens: 32 * said.slots,
            state: PodState::Running,
        });
        pod.rate_mean_tok_s += rate;
        pod.rate_sd_tok_s += RATE_SPREAD * rate;
    }
    let weight = if prefill > 0.0 { (decode / prefill).clamp(0.0, 1.0) } else { PROMPT_WEIGHT };
    (pods.into_values().collect(), weight)
}

/// The engines of the running pods, as they were calibrated.
fn engines(views: &[PodView]) -> Engines {
    let mut engines = Engines::new();
    for view in views.iter().filter(|view| view.live) {
        let said = &view.heartbeat;
        let engine = Engine::new(said.slots, &said.calibration, said.prefill_tok_s, view.rate_tok_s, 1.0);
        let pod = engines.entry(said.pod.clone()).or_default();
        pod.engines.push(engine);
        pod.stays = true;
    }
    engines
}

/// Reads a file of pods that could be rented.
pub(super) fn read(path: &Path) -> anyhow::Result<Market> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Market::parse(&text).with_context(|| path.display().to_string())
}

fn offers(market: &Market, classes: &mut Vec<String>) -> Vec<Pod> {
    let mut pods = Vec::new();
    for spec in &market.pods {
        let class = class_number(&spec.class, classes);
        for number in 0..spec.count {
            pods.push(Pod {
                // A running pod's name holds no slash, so the two cannot be taken for one another.
                name: format!("offer/{}/{number:05}", spec.class),
                class,
                rate_mean_tok_s: spec.rate_tok_s,
                rate_sd_tok_s: spec.rate_spread * spec.rate_tok_s,
                price_usd_micro_per_hour: UsdMicro::from_dollars(spec.price_usd_per_hour),
                boot_s: spec.boot_s,
                loss_per_hour: spec.loss_per_hour,
                restart_s: spec.restart_s,
                checkpoint_tokens: spec.checkpoint_tokens.saturating_mul(spec.slots),
                state: PodState::Offered,
            });
        }
    }
    pods
}
