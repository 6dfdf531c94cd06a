//! Budgets in random cases: pods of changing price, batches of all budgets, jobs admitted and landed in any order, a
//! clock that jumps. `TERNFLEET_TEST_BUDGET_CASES=1000000 cargo test --release -p ternfleet-coordinator budgets`
//! runs a million of them.

use std::time::Duration;

use ternfleet_proto::message::{BatchCreate, BatchOptions, Durability};
use ternfleet_proto::{MonoMs, Now, TimeMs, UsdMicro};

use crate::core::event::BatchSlot;
use crate::core::{Batch, BatchFacts, BatchRecord, Bill, Flights, Origin, Size};
use crate::random::Random;

const CASES: u64 = 40_000;
const STEPS: usize = 12;

/// From 1 to 2^`bits`, every size as likely.
fn of_any_size(random: &mut Random, bits: u64) -> i64 {
    let bits = random.below(bits) + 1;
    (random.below(1 << bits) + 1) as i64
}

fn batch(random: &mut Random) -> Batch {
    let budget = (random.below(8) > 0).then(|| UsdMicro(of_any_size(random, 22)));
    let create = BatchCreate {
        tenant: ternfleet_proto::TenantId::default_tenant(),
        idempotency_key: "b".to_owned(),
        input_object: String::new(),
        name: None,
        endpoint: None,
        options: BatchOptions { budget_usd_micro: budget, ..BatchOptions::default() },
        metadata: Default::default(),
        work: None,
        traceparent: None,
    };
    let facts = BatchFacts {
        input_bytes: 1,
        stored_bytes: 1,
        results_after: 0,
        durability: Durability::Stored,
        replicas: 1,
    };
    Batch::new(Now::default(), BatchRecord::new(TimeMs(0), &create, facts), Origin::File)
}

/// One case; the fault, if there is one.
fn case(seed: u64) -> Result<(), String> {
    let mut random = Random::at(seed);
    let mut batches: Vec<Batch> = (0..=random.below(4)).map(|_| batch(&mut random)).collect();
    let mut pods: Vec<Bill> = (0..=random.below(3))
        .map(|_| Bill::new(MonoMs(random.below(5_000)), UsdMicro(of_any_size(&mut random, 24))))
        .collect();
    let mut flights = Flights::default();
    let mut flying: Vec<(usize, Size)> = Vec::new();
    let mut now = 0;
    for _ in 0..STEPS {
        now = if random.below(20) == 0 { now / 2 } else { now + random.below(20_000) };
        for _ in 0..random.below(4) {
            let place = random.below(batches.len() as u64) as usize;
            let slot = BatchSlot(place as u32);
            let size =
                Size { tokens: random.below(2_000) as u32, cost: UsdMicro(of_any_size(&mut random, 18)) };
            if batches[place].affords(flights.committed(slot).cost, size.cost) {
                flights.reserve(slot, size);
                flying.push((place, size));
                let (spent, budget) =
                    (batches[place].totals.cost_usd_micro, batches[place].record.options.budget_usd_micro);
                if budget.is_some_and(|budget| spent + flights.committed(slot).cost > budget) {
                    return Err(format!("batch {place} was promised more than its budget"));
                }
            }
        }
        if !flying.is_empty() && random.below(2) == 0 {
            let (place, size) = flying.swap_remove(random.below(flying.len() as u64) as usize);
            flights.release(BatchSlot(place as u32), size);
        }
        for pod in &mut pods {
            for _ in 0..random.below(3) {
                let batch = random.below(batches.len() as u64) as usize;
                let (engine_us, engines) = (random.below(30_000_000), random.below(3) as usize);
                let id = batches[batch].record.id.clone();
                let claim =
                    pod.claim(MonoMs(now), id.as_str(), engine_us, engines, batches[batch].budget_left());
                batches[batch].totals.cost_usd_micro += claim.cost;
                batches[batch].totals.over_budget_usd_micro += claim.over;
            }
            pod.close_interval(Duration::from_millis(random.below(10_000)));
            if random.below(6) == 0 {
                pod.set_price(MonoMs(now), UsdMicro(of_any_size(&mut random, 24)));
            }
            if !pod.adds_up() {
                return Err(format!("{pod:?} does not add up"));
            }
        }
        for (place, batch) in batches.iter().enumerate() {
            if batch.budget_left() < UsdMicro::ZERO {
                return Err(format!("batch {place} has spent {}", batch.totals.cost_usd_micro));
            }
        }
    }
    let spent: UsdMicro = batches.iter().map(|batch| batch.totals.cost_usd_micro).sum();
    let over: UsdMicro = batches.iter().map(|batch| batch.totals.over_budget_usd_micro).sum();
    let billed: (UsdMicro, UsdMicro) =
        (pods.iter().map(|pod| pod.attributed).sum(), pods.iter().map(|pod| pod.over).sum());
    if (spent, over) == billed { Ok(()) } else { Err(format!("{spent} and {over} over, billed {billed:?}")) }
}

#[test]
fn no_budget_is_passed_and_every_micro_dollar_is_accounted_for_in_random_cases() {
    let cases = std::env::var("TERNFLEET_TEST_BUDGET_CASES").ok().and_then(|text| text.parse().ok());
    for seed in 0..cases.unwrap_or(CASES) {
        if let Err(fault) = case(seed) {
            panic!("seed {seed}: {fault}");
        }
    }
}
