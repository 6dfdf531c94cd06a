//! Quotes beside the bills of simulated runs: what a quote says before a batch begins, and what it came to.

use std::collections::BTreeMap;

use ternfleet_proto::message::RatePoint;
use ternfleet_proto::openai::Endpoint;

use super::super::policy::problem;
use super::super::world::World;
use super::*;
use crate::quote::{Engine, Engines, History, Lengths, PodEngines, Request, SampledLine, Skill, Work, quote};
use crate::random::Random;

const BATCHES: u64 = 300;

/// Lines of one batch: some stop early, most use half of their limit and more, and those of one batch are alike.
fn ratio(common: f64, random: &mut Random) -> f64 {
    let early = random.unit() < 0.15;
    let whole = random.unit() < 0.2;
    let usual = if early { random.between(0.02, 0.2) } else { random.between(0.4, 0.9) };
    if whole && !early { 1.0 } else { (usual + common).clamp(0.01, 1.0) }
}

/// What the fleet has learned from other batches before.
fn history(seed: u64) -> History {
    let mut random = Random::new(seed, 91);
    let mut history = History::default();
    for _ in 0..20 {
        let common = 0.05 * random.normal();
        for _ in 0..25 {
            history.learn(Some("m"), Endpoint::Completions, true, ratio(common, &mut random));
        }
    }
    history
}

/// A fleet with one batch, whose lines are long enough in all for the tokens that the fleet was made for.
fn case(seed: u64) -> (Fleet, Work) {
    let mut random = Random::new(seed, 92);
    let slack = [1.3, 2.0, 4.0][(seed % 3) as usize];
    let boots_min = random.between(4.0, 30.0);
    let generator = Generator { slack, boots_min, batches_max: 1, ..Generator::default() };
    let mut fleet = random_fleet(&generator, seed);
    let lines = random.whole(300, 3_000);
    let limit = 2.0 * fleet.batches[0].tokens / f64::from(lines) / 0.6;
    let common = 0.05 * random.normal();
    let (mut sample, mut tokens) = (Vec::new(), 0.0);
    for _ in 0..lines {
        let max_tokens = (limit * random.unit()).max(1.0) as u32;
        tokens += f64::from(max_tokens) * ratio(common, &mut random);
        sample.push(SampledLine {
            wanted: None,
            prompt_tokens: 0,
            max_tokens: Some(max_tokens),
            endpoint: Some(Endpoint::Completions),
        });
    }
    // A caller counts some of the lines, spread evenly.
    let sample: Vec<SampledLine> = sample.into_iter().step_by((lines as usize / 200).max(1)).collect();
    fleet.batches[0].tokens = tokens;
    let lengths = Lengths { history: history(seed), context_tokens: 4096, prompt_weight: 0.1 };
    (fleet, Work { sample, lines: u64::from(lines), model: Some("m".to_owned()), lengths })
}

/// Bill over p50, and whether it was within p95.
fn quoted_and_run(seed: u64) -> (f64, bool, String) {
    let (fleet, work) = case(seed);
    let options = Options { policies: vec![Policy::Ours], seed, ..Options::default() };
    let world = World::new(&fleet, seed);
    let mut market = problem(&world, options.epsilon, 30.0);
    market.batches.clear();
    // In the simulator work is a fluid: an engine is as fast with one sequence as with many.
    let engine = |rate: f64| Engine::new(16, &[RatePoint { batch: 1, tok_s: rate }], 1e9, rate, 1.0);
    let engines: Engines = market
        .pods
        .iter()
        .map(|pod| {
            let engines = vec![engine(pod.rate_mean_tok_s)];
            (pod.name.clone(), PodEngines { engines, stays: false })
        })
        .collect::<BTreeMap<_, _>>();
    let request = Request {
        tokens: work.estimate(),
        work,
        deadline: fleet.batches[0].deadline_s.map(|s| ternfleet_proto::TimeMs((s * 1000.0) as u64)),
        budget: None,
        classes: crate::plan::ClassSet::ALL,
        skill: Skill::default(),
    };
    let quoted = quote(&market, &[], &engines, &request);
    let bill = simulate(&fleet, &options)[0].cost_usd_micro;
    let (p50, p95) = (quoted.cost_p50_usd_micro.0, quoted.cost_p95_usd_micro.0);
    let told = format!(
        "seed {seed}: bill {bill}, quoted {p50} to {p95}, {:?}, {} of {} tokens",
        quoted.binds, fleet.batches[0].tokens as u64, request.tokens.tokens as u64,
    );

    (bill as f64 / p50 as f64, bill <= p95, told)
}

#[test]
fn of_300_random_batches_nine_in_ten_cost_no_more_than_p95_and_p50_is_near_the_bill() {
    let mut cases: Vec<(f64, bool, String)> = (0..BATCHES).map(quoted_and_run).collect();
    let within = cases.iter().filter(|case| case.1).count() as f64 / BATCHES as f64;
    let near = cases.iter().filter(|case| (0.85..=1.15).contains(&case.0)).count() as f64 / BATCHES as f64;
    cases.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = |share: f64| cases[(share * (BATCHES - 1) as f64) as usize].0;
    let told = format!(
        "within p95 {within:.3}, within 15 % of p50 {near:.3}; bill over p50: p5 {:.3}, p50 {:.3}, p95 {:.3}; {} … {}",
        at(0.05),
        at(0.5),
        at(0.95),
        cases[0].2,
        cases[BATCHES as usize - 1].2,
    );
    println!("{told}");
    assert!(within >= 0.9, "{told}");
    assert!((0.85..=1.15).contains(&at(0.5)) && near >= 0.6, "{told}");
}
