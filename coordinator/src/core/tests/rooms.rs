//! How many jobs a turn takes out of their queues: as many as workers have room for, whoever else is full.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::message::{BatchOptions, Line};

use super::world::{World, good_lines, line, task};
use crate::core::*;

/// Good lines that name a model.
fn lines_of(model: &str, count: u32) -> Vec<Content> {
    let of = |n| Task { line: Line { model: Some(model.to_owned()), ..line(n) }, ..task(n) };
    (0..count).map(|n| Content::Good(Arc::new(of(n)))).collect()
}

#[test]
fn in_a_full_fleet_a_turn_draws_as_many_jobs_as_there_is_room_for() {
    let mut world = World::new(31);
    for n in 0..20 {
        world.add_worker(&format!("w{n}"), &format!("host-{n}"), 340_000);
    }
    for n in 0..3 {
        world.submit_content(&format!("in-{n}"), "t", good_lines(3_000), BatchOptions::default());
    }
    // Until it is known how long jobs turn out, and everybody is full.
    for _ in 0..40 {
        world.run_quietly();
    }
    let counts = |world: &World| (world.core.counts.drawn_jobs, world.core.counts.handed_jobs);
    let before = counts(&world);
    for turn in 0..100 {
        world.pull(turn % 20);
        world.finish(turn % 20);
        world.tell_results(usize::MAX);
        world.tell(Event::Turn);
        world.perform_all();
    }
    let after = counts(&world);
    let (drawn, handed) = (after.0 - before.0, after.1 - before.1);
    assert!((90..=110).contains(&handed), "{handed} handed");
    assert!(drawn <= handed + 10, "{drawn} drawn, {handed} handed");
    assert_eq!(world.core.hand_waited(), Duration::ZERO, "in a small fleet nothing is put off");
}

#[test]
fn jobs_of_one_model_that_wait_for_room_do_not_hold_up_those_of_another() {
    let mut world = World::new(32);
    world.add_worker("large", "host-a", 340_000);
    world.add_worker("small", "host-b", 340_000);
    world.workers[0].model = "large".to_owned();
    world.workers[1].model = "small".to_owned();
    for n in 0..5 {
        world.submit_content(&format!("in-{n}"), "t", lines_of("large", 2_000), BatchOptions::default());
    }
    for _ in 0..10 {
        world.run_quietly();
    }
    let held = |world: &World, worker: usize| {
        let slot = world.core.fleet().slot(&world.name(worker)).unwrap();
        world.core.flights().held(slot).0
    };
    assert!(held(&world, 0) > 4, "it is full");
    let small = world.submit_content("small", "t", lines_of("small", 500), BatchOptions::default());
    for _ in 0..3 {
        world.perform_all();
        world.tell(Event::Turn);
    }
    world.perform_all();
    assert!(held(&world, 1) > 4, "{} of {small:?}", held(&world, 1));
    // And it is kept busy while the other one is full all the time.
    for _ in 0..20 {
        world.pull(1);
        world.finish(1);
        world.tell_results(usize::MAX);
        world.tell(Event::Turn);
        world.perform_all();
        assert!(held(&world, 1) > 4, "{}", held(&world, 1));
    }
}
