use ternfleet_proto::openai::Endpoint;

use super::*;
use crate::plan::{Care, Limits, Pod, PodState};

fn pod(name: &str, class: u8, rate_tok_s: f64, price_usd: f64) -> Pod {
    Pod {
        name: name.to_owned(),
        class: PodClass(class),
        rate_mean_tok_s: rate_tok_s,
        rate_sd_tok_s: 0.0,
        price_usd_micro_per_hour: UsdMicro::from_dollars(price_usd),
        boot_s: 120.0,
        loss_per_hour: 0.0,
        restart_s: 30.0,
        checkpoint_tokens: 32,
        state: PodState::Offered,
    }
}

fn market() -> (Problem, Vec<String>) {
    let pods = vec![
        pod("a1", 0, 20.79, 0.34),
        pod("a2", 0, 20.79, 0.34),
        pod("b1", 1, 30.0, 1.19),
        pod("c1", 2, 52.67, 2.50),
    ];
    let problem = Problem { pods, limits: Limits::default(), care: Care::default(), ..Problem::default() };
    (problem, vec!["rtx4090".to_owned(), "a100".to_owned(), "b200".to_owned()])
}

/// Many short lines, each as long as its limit.
fn request(tokens: f64, hours: Option<f64>, budget_usd: Option<f64>) -> Request {
    let work = Work {
        sample: vec![sampled(0, 16)],
        lines: (tokens / 16.0) as u64,
        model: None,
        lengths: lengths(1.0, 0.0),
    };
    Request {
        work,
        skill: Skill { bias: 0.0, sd: 0.0 },
        tokens: Estimate { tokens, sd: 0.0 },
        deadline: hours.map(|hours| TimeMs((hours * 3.6e6) as u64)),
        budget: budget_usd.map(UsdMicro::from_dollars),
        classes: ClassSet::ALL,
    }
}

#[test]
fn a_quote_names_pods_by_class_cost_and_finish() {
    let (problem, names) = market();
    let quote = quote(&problem, &names, &Engines::new(), &request(160_000.0, Some(1.0), None));
    assert!(quote.kept && quote.binds.is_none(), "{quote:?}");
    let classes: Vec<_> =
        quote.pods.iter().map(|used| (used.class.as_str(), used.pods, used.started)).collect();
    assert_eq!(classes, [("rtx4090", 2, 2), ("a100", 1, 1)]);
    assert!(quote.finish_p50_ms <= quote.finish_p95_ms && quote.finish_p95_ms <= TimeMs(3_600_000));
    assert!(
        quote.bound_usd_micro <= quote.cost_p50_usd_micro
            && quote.cost_p50_usd_micro <= quote.cost_p95_usd_micro
    );
}

#[test]
fn the_next_cheaper_and_the_next_faster_choice_are_told() {
    let (problem, names) = market();
    let quote = quote(&problem, &names, &Engines::new(), &request(160_000.0, Some(1.0), None));
    let cheaper = quote.cheaper.expect("because a later finish needs only the cheapest pods");
    assert!(cheaper.cost_usd_micro < quote.cost_p50_usd_micro && cheaper.finish_p95_ms > quote.finish_p95_ms);
    let faster = quote.faster.expect("because dearer pods are free");
    assert!(faster.finish_p95_ms < quote.finish_p95_ms && faster.cost_usd_micro > quote.cost_p50_usd_micro);
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_limit_that_binds() {
    let (problem, names) = market();
    for (request, binds) in [
        (request(160_000.0, Some(1.0), Some(0.20)), Binds::Budget),
        (request(5_000_000.0, Some(1.0), None), Binds::Capacity),
        (request(1_000.0, Some(0.01), None), Binds::Deadline),
    ] {
        let quote = quote(&problem, &names, &Engines::new(), &request);
        assert_eq!((quote.kept, quote.binds), (false, Some(binds)), "{}", quote.explanation);
        assert!(quote.explanation.contains("limits"), "{}", quote.explanation);
    }
}

#[test]
fn a_quote_beyond_the_budget_tells_the_whole_price() {
    let (problem, names) = market();
    let whole = quote(&problem, &names, &Engines::new(), &request(160_000.0, Some(1.0), None));
    let refused = quote(&problem, &names, &Engines::new(), &request(160_000.0, Some(1.0), Some(0.20)));
    assert!(
        (refused.cost_p50_usd_micro.0 - whole.cost_p50_usd_micro.0).abs() < 20_000,
        "{refused:?} {whole:?}"
    );
}

#[test]
fn a_batch_that_would_break_an_earlier_promise_is_refused() {
    let (mut problem, names) = market();
    problem.batches.push(Batch {
        name: "earlier".to_owned(),
        tokens_left: 380_000.0,
        tokens_sd: 0.0,
        deadline: Some(TimeMs(3_600_000)),
        budget_left: None,
        classes: ClassSet::ALL,
    });
    assert!(plan(&problem, None).all_kept());
    let quote = quote(&problem, &names, &Engines::new(), &request(150_000.0, Some(0.9), None));
    assert_eq!((quote.kept, quote.binds), (false, Some(Binds::Capacity)), "{quote:?}");
}

/// A fleet in which every output uses this share of its limit.
fn lengths(ratio: f64, prompt_weight: f64) -> Lengths {
    let mut history = History::default();
    for limited in [true, false] {
        (0..50).for_each(|_| history.learn(None, Endpoint::Completions, limited, ratio));
    }
    Lengths { history, context_tokens: 4096, prompt_weight }
}

fn sampled(prompt_tokens: u32, max_tokens: u32) -> SampledLine {
    let endpoint = Some(Endpoint::Completions);
    SampledLine { prompt_tokens, max_tokens: Some(max_tokens), endpoint, wanted: None }
}

#[test]
fn counting_every_line_leaves_only_the_doubt_about_outputs() {
    let sample = [sampled(10, 100); 50];
    let seen = estimate(&sample, 50, None, &lengths(0.5, 0.1));
    assert!((seen.tokens - 50.0 * (1.0 + 50.0)).abs() < 1.0 && seen.sd < 100.0, "{seen:?}");
    let unseen = Lengths { history: History::default(), ..lengths(0.5, 0.1) };
    let unseen = estimate(&sample, 50, None, &unseen);
    assert!(unseen.tokens > 5000.0 && unseen.sd > 200.0 && unseen.low() < unseen.high(), "{unseen:?}");
}

#[test]
fn a_sample_of_varied_lines_has_an_interval_that_shrinks_with_its_size() {
    let line = |n: u32| sampled(10 + n % 90, 20 + n * 7 % 300);
    let lengths = lengths(0.8, 0.2);
    let of = |count: u32| estimate(&(0..count).map(line).collect::<Vec<_>>(), 100_000, None, &lengths);
    let whole = of(100_000).tokens;
    for count in [100, 1000, 10_000] {
        let sampled = of(count);
        assert!((sampled.low()..=sampled.high()).contains(&whole), "{count}: {sampled:?} {whole}");
    }
    assert!(of(1000).sd < of(100).sd);
    assert_eq!(estimate(&[], 10, None, &lengths), Estimate::default());
}
