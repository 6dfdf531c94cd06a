//! What a batch that does not advance is told, one situation after the other.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::UsdMicro;
use ternfleet_proto::message::{BatchOptions, Binds, Line, Stall, StallCode};

use super::world::{World, good_lines, line, task};
use crate::core::{BatchSlot, Content, Event, Supply};

fn stall(world: &World, slot: BatchSlot) -> Option<Stall> {
    let view = world.core.batch_view(world.now, slot).unwrap();
    assert!(view.stall.is_none() || view.finish_estimate.is_none(), "a time left while it waits: {view:?}");
    assert!(view.stall.is_none() || view.reason == view.stall.as_ref().map(|stall| stall.reason.clone()));
    view.stall
}

fn code(world: &World, slot: BatchSlot) -> Option<StallCode> {
    stall(world, slot).map(|stall| stall.code)
}

fn run(world: &mut World, turns: usize) {
    for _ in 0..turns {
        world.run_quietly();
    }
}

/// A batch of so many lines that name this model.
fn naming(world: &mut World, model: &str, lines: u32) -> BatchSlot {
    let named = |n: u32| {
        let mut task = task(n);
        task.line = Line { model: Some(model.to_owned()), ..line(n) };
        Content::Good(Arc::new(task))
    };
    world.submit_content(model, "t", (0..lines).map(named).collect(), BatchOptions::default())
}

fn supplied(world: &mut World, supply: Supply) {
    world.tell(Event::Supplied(Box::new(supply)));
}

#[test]
fn a_batch_without_workers_says_so_until_one_comes() {
    let mut world = World::new(21);
    let slot = world.submit_content("in", "t", good_lines(2_000), BatchOptions::default());
    assert_eq!(code(&world, slot), Some(StallCode::Validating));
    run(&mut world, 5);
    let told = stall(&world, slot).unwrap();
    assert_eq!(told.code, StallCode::NoWorkers);
    assert!(told.advice.unwrap().contains("ternfleet worker"));
    world.add_worker("a", "host-a", 1);
    run(&mut world, 20);
    assert_eq!(code(&world, slot), None);
    assert!(world.core.batch_view(world.now, slot).unwrap().finish_estimate.is_some());
    // The worker falls silent: what it has moves, and there is nobody to take it.
    world.workers[0].up = false;
    run(&mut world, 15);
    assert_eq!(code(&world, slot), Some(StallCode::NoHealthyHost));
    run(&mut world, 30);
    assert_eq!(code(&world, slot), Some(StallCode::NoWorkers));
}

#[test]
fn a_model_that_nobody_serves_is_named_with_those_that_are_served() {
    let mut world = World::new(22);
    world.add_worker("a", "host-a", 1);
    let slot = naming(&mut world, "stroyteller", 3);
    run(&mut world, 5);
    let told = stall(&world, slot).unwrap();
    assert_eq!(told.code, StallCode::ModelNotServed);
    assert_eq!(told.reason, "no worker serves the model \"stroyteller\"; served: m");
    let id = world.core.batch(slot).unwrap().record.id.clone();
    assert!(told.advice.unwrap().contains(&format!("ternfleet cancel {id}")));
}

#[test]
fn a_fleet_that_rents_says_whether_pods_come_and_why_not() {
    let mut world = World::new(23);
    let slot = world.submit_content("in", "t", good_lines(20), BatchOptions::default());
    run(&mut world, 5);
    let id = world.core.batch(slot).unwrap().record.id.to_string();
    let binds = |binds| Supply { binds: [(id.clone(), binds)].into(), ..Supply::default() };
    let obstacle = Some("no pod is ordered: no balance".to_owned());
    for (supply, expected, said) in [
        (Supply::default(), StallCode::PodsStarting, "about to be rented"),
        (Supply { starting: 2, ..Supply::default() }, StallCode::PodsStarting, "2 pods starting"),
        (Supply { obstacle, ..Supply::default() }, StallCode::PodsUnavailable, "no balance"),
        (binds(Binds::Budget), StallCode::PodsUnavailable, "budget"),
        (binds(Binds::Deadline), StallCode::PodsUnavailable, "deadline"),
        (binds(Binds::FleetLimit), StallCode::PodsUnavailable, "limit"),
    ] {
        supplied(&mut world, supply);
        let told = stall(&world, slot).unwrap();
        assert_eq!(told.code, expected, "{told:?}");
        assert!(told.reason.contains(said), "{told:?}");
        assert_eq!(told.advice.is_some(), expected == StallCode::PodsUnavailable, "{told:?}");
    }
}

#[test]
fn a_batch_that_has_spent_its_budget_says_how_to_raise_it() {
    let mut world = World::new(24);
    world.add_worker("a", "host-a", 3_600_000_000);
    let options = BatchOptions { budget_usd_micro: Some(UsdMicro(2_000_000)), ..BatchOptions::default() };
    let slot = world.submit_content("in", "t", good_lines(2_000), options);
    run(&mut world, 200);
    let told = stall(&world, slot).unwrap();
    assert_eq!(told.code, StallCode::BudgetSpent);
    assert!(told.reason.contains("of the budget of $2.00 is spent"), "{told:?}");
    assert!(told.advice.unwrap().contains("--budget"));
}

#[test]
fn a_batch_behind_others_says_what_is_ahead() {
    let mut world = World::new(25);
    world.add_worker("a", "host-a", 1);
    world.submit_content("first", "t", good_lines(3_000), BatchOptions::default());
    run(&mut world, 5);
    let options = BatchOptions { priority: -10, ..BatchOptions::default() };
    let slot = world.submit_content("second", "t", good_lines(10), options);
    run(&mut world, 5);
    let told = stall(&world, slot).unwrap();
    assert_eq!(told.code, StallCode::BehindOtherBatches);
    assert!(told.reason.contains("busy with") && told.reason.contains("another batch"), "{told:?}");
}

#[test]
fn a_rate_that_fades_makes_no_estimate() {
    let mut world = World::new(26);
    world.add_worker("a", "host-a", 1);
    let slot = world.submit_content("in", "t", good_lines(5_000), BatchOptions::default());
    run(&mut world, 20);
    // Heartbeats and nothing else: the jobs stay where they are.
    for _ in 0..200 {
        world.now = world.now.plus(Duration::from_millis(200));
        world.beat(0);
        world.tell(Event::Tick);
        let view = world.core.batch_view(world.now, slot).unwrap();
        let left = view.finish_estimate.map(|finish| finish.since(world.now.wall));
        assert!(left.is_none_or(|left| left <= Duration::from_secs(100 * 86_400)), "{left:?}");
    }
}
