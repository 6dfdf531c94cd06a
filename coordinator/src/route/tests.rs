use proptest::prelude::*;

use super::*;

const KIND: EngineKind = EngineKind(0);

fn load(name: &str, rate_tok_s: f64, price_usd: f64) -> WorkerLoad {
    WorkerLoad {
        worker: WorkerSlot(name.bytes().fold(0, |number, byte| 31 * number % 1_000_003 + u32::from(byte))),
        kind: KIND,
        rate_mean_tok_s: rate_tok_s,
        rate_low_tok_s: rate_tok_s * 0.9,
        price_usd_micro_per_hour: UsdMicro::from_dollars(price_usd),
        slots: 4,
        free_pages: 64,
        held_tokens: 0,
        held_jobs: 0,
    }
}

fn jobs(count: usize, tokens: u32) -> Vec<JobSize> {
    vec![JobSize { tokens, pages: 1 }; count]
}

fn thrifty(jobs: &[JobSize]) -> Demand<'_> {
    Demand { kind: KIND, urgency: Urgency::Thrifty, jobs }
}

fn counts(fleet: &FleetSnapshot, assignment: &Assignment) -> Vec<usize> {
    let mut counts = vec![0; fleet.workers.len()];
    for &worker in &assignment.placed {
        counts[worker] += 1;
    }
    counts
}

#[test]
fn plenty_of_small_jobs_is_shared_by_speed() {
    let fleet = FleetSnapshot { workers: vec![load("slow", 100.0, 0.3), load("fast", 300.0, 0.3)] };
    let counts = counts(&fleet, &assign(&fleet, &thrifty(&jobs(10_000, 5))));
    let ratio = counts[1] as f64 / counts[0] as f64;
    assert!((2.4..3.2).contains(&ratio), "{counts:?}");
}

#[test]
fn scarce_work_lies_with_the_cheapest_pod() {
    let fleet = FleetSnapshot { workers: vec![load("dear", 100.0, 2.0), load("cheap", 100.0, 0.3)] };
    assert_eq!(counts(&fleet, &assign(&fleet, &thrifty(&jobs(3, 10)))), [0, 3]);
}

#[test]
fn a_running_pod_does_not_idle_while_jobs_would_queue_for_long_at_a_cheaper_one() {
    let fleet = FleetSnapshot { workers: vec![load("dear", 20.0, 2.0), load("cheap", 20.0, 0.3)] };
    assert_eq!(counts(&fleet, &assign(&fleet, &thrifty(&jobs(4, 64)))), [2, 2]);
}

#[test]
fn what_waits_beyond_the_slots_is_at_most_a_window_of_measured_work() {
    let fleet = FleetSnapshot { workers: vec![load("only", 100.0, 1.0)] };
    let placed = assign(&fleet, &thrifty(&jobs(1000, 10))).placed.len();
    assert_eq!(placed, 4 + 18, "four slots and 2 s at a lower bound of 90 tok/s");
}

#[test]
fn slow_workers_have_their_slots_filled_even_beyond_the_window() {
    let fleet = FleetSnapshot { workers: vec![load("slow", 5.0, 1.0)] };
    assert_eq!(assign(&fleet, &thrifty(&jobs(100, 500))).placed.len(), 4);
}

#[test]
fn an_idle_worker_takes_one_job_however_large() {
    let fleet = FleetSnapshot { workers: vec![load("small", 5.0, 1.0)] };
    let huge = [JobSize { tokens: 100_000, pages: 5_000 }; 2];
    assert_eq!(assign(&fleet, &thrifty(&huge)).placed, [0]);
}

#[test]
fn another_engine_kind_is_given_nothing() {
    let mut other = load("other", 100.0, 0.1);
    other.kind = EngineKind(7);
    let fleet = FleetSnapshot { workers: vec![other, load("right", 10.0, 5.0)] };
    assert_eq!(assign(&fleet, &thrifty(&jobs(1, 10))).placed, [1]);
}

#[test]
fn urgent_work_takes_the_faster_pod_though_it_is_dearer() {
    let fleet = FleetSnapshot { workers: vec![load("dear", 300.0, 9.0), load("cheap", 100.0, 0.1)] };
    let jobs = jobs(1, 10);
    let demand = Demand { kind: KIND, urgency: Urgency::Soonest, jobs: &jobs };
    assert_eq!(assign(&fleet, &demand).placed, [0]);
}

#[test]
fn an_unmeasured_worker_is_tried_with_one_job_and_last() {
    let fleet = FleetSnapshot { workers: vec![load("new", 0.0, 0.0), load("known", 50.0, 1.0)] };
    let placed = assign(&fleet, &thrifty(&jobs(100, 10))).placed;
    assert_eq!(placed.iter().filter(|&&worker| worker == 0).count(), 1);
    assert_eq!(placed[0], 1);
}

#[test]
fn waiting_jobs_move_from_the_slow_worker_to_the_one_that_ran_dry() {
    let mut slow = load("slow", 20.0, 0.3);
    (slow.held_jobs, slow.held_tokens) = (6, 240);
    let fleet = FleetSnapshot { workers: vec![slow, load("dry", 20.0, 0.3)] };
    assert_eq!(rebalance(&fleet, KIND), [Move { from: 0, to: 1 }; 2]);
}

#[test]
fn nothing_moves_for_a_trifle() {
    let mut busy = load("busy", 1000.0, 0.3);
    (busy.held_jobs, busy.held_tokens) = (5, 500);
    let fleet = FleetSnapshot { workers: vec![busy, load("dry", 1000.0, 0.3)] };
    assert_eq!(rebalance(&fleet, KIND), []);
}

#[test]
fn ten_thousand_workers_are_routed() {
    let workers = (0..10_000u32)
        .map(|n| load(&format!("w{n}"), 10.0 + f64::from(n % 400), 0.2 + f64::from(n % 37) * 0.1))
        .collect();
    let fleet = FleetSnapshot { workers };
    let jobs = jobs(2_000, 60);
    // How fast is measured by the example `routing_speed`, on a quiet machine.
    assert_eq!(assign(&fleet, &thrifty(&jobs)).placed.len(), jobs.len());
}

prop_compose! {
    fn any_fleet()(
        // A server on a graphics card is a hundred times as fast as an engine on a CPU, and runs as many more jobs.
        shapes in prop::collection::vec(
            prop_oneof![
                (1.0..500.0f64, 0.1..5.0f64, 1u32..32, 0u32..40),
                (1_000.0..30_000.0f64, 0.1..8.0f64, 32u32..256, 0u32..400),
            ],
            1..12,
        ),
    ) -> FleetSnapshot {
        let workers = shapes.into_iter().enumerate().map(|(n, (rate, price, slots, held))| {
            let mut load = load(&format!("w{n}"), rate, price);
            (load.slots, load.held_jobs, load.held_tokens) = (slots, held, u64::from(held) * 30);
            load
        });
        FleetSnapshot { workers: workers.collect() }
    }
}

proptest! {
    #[test]
    fn scaling_all_prices_changes_no_choice(fleet in any_fleet(), factor in 2i64..1000, count in 1usize..200) {
        let mut scaled = fleet.clone();
        for load in &mut scaled.workers {
            load.price_usd_micro_per_hour.0 *= factor;
        }
        let jobs = jobs(count, 25);
        prop_assert_eq!(assign(&fleet, &thrifty(&jobs)), assign(&scaled, &thrifty(&jobs)));
    }

    #[test]
    fn the_order_of_the_pods_does_not_matter(fleet in any_fleet(), turn in 0usize..12, count in 1usize..200) {
        let mut turned = fleet.clone();
        let turn = turn % turned.workers.len();
        turned.workers.rotate_left(turn);
        let jobs = jobs(count, 25);
        let name = |fleet: &FleetSnapshot, index: usize| fleet.workers[index].worker;
        let here: Vec<_> = assign(&fleet, &thrifty(&jobs)).placed.into_iter().map(|w| name(&fleet, w)).collect();
        let there: Vec<_> = assign(&turned, &thrifty(&jobs)).placed.into_iter().map(|w| name(&turned, w)).collect();
        prop_assert_eq!(here, there);
    }

    #[test]
    fn a_dominated_worker_is_never_preferred(rate in 5.0..500.0f64, price in 0.1..5.0f64, slower in 0.3..1.0f64, dearer in 1.0..4.0f64, count in 1usize..60) {
        let fleet = FleetSnapshot { workers: vec![load("worse", rate * slower, price * dearer), load("better", rate, price)] };
        // Equal in all: neither dominates, the slot decides.
        prop_assume!(slower < 0.999 || dearer > 1.001);
        let counts = counts(&fleet, &assign(&fleet, &thrifty(&jobs(count, 20))));
        prop_assert!(counts[0] <= counts[1], "{:?}", counts);
    }

    #[test]
    fn a_small_change_of_speed_moves_at_most_a_window(fleet in any_fleet(), count in 1usize..200) {
        let jobs = jobs(count, 25);
        let before = counts(&fleet, &assign(&fleet, &thrifty(&jobs)));
        let mut changed = fleet.clone();
        changed.workers[0].rate_mean_tok_s *= 1.01;
        changed.workers[0].rate_low_tok_s *= 1.01;
        let after = counts(&changed, &assign(&changed, &thrifty(&jobs)));
        for (worker, load) in fleet.workers.iter().enumerate() {
            let window_jobs = 2.0 * WINDOW_S * load.rate_mean_tok_s / 25.0 + 2.0;
            prop_assert!((before[worker].abs_diff(after[worker]) as f64) <= window_jobs, "{:?} {:?}", before, after);
        }
    }

    #[test]
    fn no_job_is_handed_out_twice_and_rooms_are_kept(fleet in any_fleet(), count in 0usize..300) {
        let jobs = jobs(count, 25);
        let assignment = assign(&fleet, &thrifty(&jobs));
        prop_assert!(assignment.placed.len() <= jobs.len());
        for (load, given) in fleet.workers.iter().zip(counts(&fleet, &assignment)) {
            let free_slots = load.slots.saturating_sub(load.held_jobs) as usize;
            let window = (WINDOW_S * load.rate_low_tok_s / 25.0) as usize;
            prop_assert!(given <= free_slots + window + 1);
        }
    }
}

#[test]
fn as_many_jobs_of_one_size_are_placed_as_there_is_room_for() {
    for (held_jobs, held_tokens, tokens) in
        [(0, 0, 10), (3, 50, 10), (4, 100, 70), (6, 240, 21), (22, 220, 10), (0, 0, 900)]
    {
        let one = WorkerLoad { held_jobs, held_tokens, ..load("one", 100.0, 1.0) };
        let fleet = FleetSnapshot { workers: vec![one.clone()] };
        let jobs = vec![JobSize { tokens, pages: 0 }; 1000];
        let placed = assign(&fleet, &thrifty(&jobs)).placed.len();
        assert_eq!(room(&one, tokens), placed, "{one:?} and jobs of {tokens}");
    }
    let unmeasured = WorkerLoad { rate_low_tok_s: 0.0, ..load("new", 0.0, 1.0) };
    assert_eq!(room(&unmeasured, 10), 1, "somebody must try it");
}
