//! How long planning, routing and simulating take: `cargo run --release -p ternfleet-coordinator --example
//! routing_speed`. Medians of nine, in milliseconds.

use std::time::{Duration, Instant};

use ternfleet_coordinator::plan::{Batch, ClassSet, Limits, Pod, PodClass, PodState, Problem, plan};
use ternfleet_coordinator::simulate::{BatchSpec, Fleet, Generator, Options, Policy, random_fleet, simulate};
use ternfleet_proto::{TimeMs, UsdMicro};

const PODS: u32 = 10_000;
const BATCHES: u32 = 100;
const RUNS: usize = 9;

fn median(mut run: impl FnMut()) -> Duration {
    let mut took: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[RUNS / 2]
}

fn problem() -> Problem {
    let pod = |n: u32| Pod {
        name: format!("pod-{n:05}"),
        class: PodClass((n % 12) as u8),
        rate_mean_tok_s: 15.0 + f64::from(n * 7 % 400) / 10.0,
        rate_sd_tok_s: 0.5,
        price_usd_micro_per_hour: UsdMicro::from_dollars(0.2 + f64::from(n * 13 % 97) / 40.0),
        boot_s: 120.0,
        loss_per_hour: 0.05,
        restart_s: 30.0,
        checkpoint_tokens: 512,
        state: if n.is_multiple_of(3) { PodState::Running } else { PodState::Offered },
    };
    let batch = |n: u32| Batch {
        name: format!("batch-{n:03}"),
        tokens_left: 4e6 + f64::from(n) * 1e4,
        tokens_sd: 1e4,
        deadline: Some(TimeMs(3_600_000 + u64::from(n) * 720_000)),
        budget_left: None,
        classes: ClassSet::ALL,
    };
    Problem {
        pods: (0..PODS).map(pod).collect(),
        batches: (0..BATCHES).map(batch).collect(),
        limits: Limits::default(),
        ..Problem::default()
    }
}

/// 10,000 pods of the generator's classes, and work for most of a day.
fn day() -> Fleet {
    let mut fleet = random_fleet(&Generator::default(), 7);
    let classes = fleet.pods.len() as u32;
    fleet.pods.iter_mut().for_each(|pods| pods.count = PODS / classes);
    let rate: f64 = fleet.pods.iter().map(|pods| f64::from(pods.count) * pods.rate_tok_s).sum();
    fleet.batches = (0..24)
        .map(|hour| BatchSpec {
            name: format!("hour-{hour}"),
            tokens: 0.6 * rate * 3600.0,
            arrives_s: f64::from(hour) * 3600.0,
            deadline_s: Some(7200.0),
            budget_usd: None,
        })
        .collect();
    fleet
}

fn main() {
    let asked = problem();
    let first = plan(&asked, None);
    let fresh = median(|| assert_eq!(plan(&asked, None).batches.len(), BATCHES as usize));
    let again = median(|| assert!(plan(&asked, Some(&first)).all_kept()));
    println!("plan, {PODS} pods, {BATCHES} batches: {:.1} ms afresh, {:.1} ms anew", ms(fresh), ms(again));
    let fleet = day();
    for policy in Policy::ALL {
        let begun = Instant::now();
        let options = Options { policies: vec![policy], ..Options::default() };
        let report = &simulate(&fleet, &options)[0];
        println!(
            "a day of {PODS} pods, {policy}: {:.2} s, until hour {:.1}",
            begun.elapsed().as_secs_f64(),
            report.finish_s / 3600.0
        );
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
