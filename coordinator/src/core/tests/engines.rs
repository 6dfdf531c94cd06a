//! Engines that cannot do everything, beside those that can.

use std::sync::Arc;

use ternfleet_proto::message::{Abilities, BatchOptions, WorkerState};

use super::world::{World, good_lines, task};
use crate::core::*;

const SERVER: Abilities = Abilities { completions: true, ..Abilities::NONE };

/// Lines of which every third needs JSON of a schema.
fn mixed_lines(count: u32) -> Vec<Content> {
    let needs = |n: u32| Abilities { completions: true, schemas: n.is_multiple_of(3), ..Abilities::NONE };
    (0..count).map(|n| Content::Good(Arc::new(Task { needs: needs(n), ..task(n) }))).collect()
}

#[test]
fn a_line_runs_where_it_can_and_the_rest_of_its_batch_with_one_arithmetic() {
    let mut world = World::new(1);
    world.add_worker("able", "host-a", 340_000);
    world.add_worker("server", "host-b", 340_000);
    world.workers[1].abilities = SERVER;
    let slot = world.submit_content("in", "t", mixed_lines(120), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let batch = world.core.batch(slot).unwrap();
    assert_eq!((batch.totals.completed, batch.totals.failed), (120, 0));
    let by = |of: fn(&Answer) -> bool| {
        world.results.iter().filter(move |one| of(one)).map(|one| one.worker.as_str()).collect::<Vec<_>>()
    };
    let held = by(|one| one.job.index.is_multiple_of(3));
    assert!(held.iter().all(|worker| worker.starts_with("able")), "{held:?}");
    let others: std::collections::BTreeSet<&str> =
        by(|one| !one.job.index.is_multiple_of(3)).into_iter().collect();
    assert_eq!(others.len(), 1, "one batch has one arithmetic, as far as it can: {others:?}");
}

#[test]
fn what_nobody_can_do_is_refused_once_everybody_has_been_heard() {
    let mut world = World::new(2);
    world.add_worker("server", "host", 340_000);
    world.workers[0].abilities = SERVER;
    let slot = world.submit_content("in", "t", mixed_lines(30), BatchOptions::default());
    for _ in 0..40 {
        world.run_quietly();
    }
    let totals = world.core.batch(slot).unwrap().totals;
    assert_eq!((totals.completed, totals.failed), (20, 0), "another worker may be about to join");
    world.run_to_the_end();
    world.check(slot);
    let totals = world.core.batch(slot).unwrap().totals;
    assert_eq!((totals.completed, totals.failed), (20, 10));
    assert_eq!(totals.nondeterministic, 20);

    // A class of pods that can do it is waited for, and a caller who wants to wait waits.
    for waits in [false, true] {
        let mut world = World::new(3);
        world.core.limits.able_classes = if waits { Vec::new() } else { vec![None] };
        world.add_worker("server", "host", 340_000);
        world.workers[0].abilities = SERVER;
        let options = BatchOptions { wait_for_model: waits, ..BatchOptions::default() };
        let slot = world.submit_content("in", "t", mixed_lines(30), options);
        for _ in 0..200 {
            world.run_quietly();
        }
        assert_eq!(world.core.batch(slot).unwrap().totals.failed, 0);
        world.add_worker("able", "other", 340_000);
        world.run_to_the_end();
        world.check(slot);
        assert_eq!(world.core.batch(slot).unwrap().totals.completed, 30);
    }
}

#[test]
fn answers_that_may_differ_are_neither_audited_nor_compared() {
    let mut world = World::new(4);
    world.core.limits.audit_share_ppm = 1_000_000;
    for n in 0..3 {
        world.add_worker(&format!("w{n}"), &format!("host-{n}"), 340_000);
        world.workers[n].abilities = SERVER;
        world.workers[n].canary = String::new();
    }
    world.workers[1].lies = true;
    let slot = world.submit_content("in", "t", good_lines(100), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let counts = world.core.counts;
    assert_eq!((counts.audits_begun, counts.divergent_answers, counts.quarantined_hosts), (0, 0, 0));
    let view = world.core.batch_view(world.now, slot).unwrap();
    assert!(view.nondeterministic);
}

#[test]
fn what_waits_for_a_worker_without_its_server_goes_elsewhere() {
    let mut world = World::new(5);
    world.add_worker("a", "host-a", 340_000);
    world.submit_content("in", "t", good_lines(40), BatchOptions::default());
    world.perform_all();
    world.beat(0);
    for _ in 0..3 {
        world.tell(Event::Turn);
        world.perform_all();
    }
    let waiting = world.work.len();
    assert!(waiting > 0);
    world.beat_in(0, WorkerState::Calibrating);
    world.perform_all();
    assert_eq!(world.work.len(), 0, "{waiting} jobs were in its queue");
    world.run_to_the_end();
}

#[test]
fn a_batch_runs_on_the_cheapest_engine_that_is_fast_enough_for_its_deadline() {
    for (window_ms, expected) in [(None, "cheap"), (Some(3_600_000), "cheap"), (Some(20_000), "fast")] {
        let mut world = World::new(6);
        world.add_worker("cheap", "host-a", 340_000);
        for n in 1..=2 {
            world.add_worker(&format!("fast-{n}"), &format!("host-{n}"), 680_000);
            world.workers[n].abilities = SERVER;
        }
        let options = BatchOptions { completion_window_ms: window_ms, ..BatchOptions::default() };
        let slot = world.submit_content("in", "t", good_lines(120), options);
        world.run_to_the_end();
        world.check(slot);
        assert_eq!(world.core.batch(slot).unwrap().totals.completed, 120);
        let by: std::collections::BTreeSet<&str> =
            world.results.iter().map(|one| one.worker.as_str()).collect();
        assert!(by.iter().all(|worker| worker.starts_with(expected)), "{window_ms:?}: {by:?}");
    }
}

#[test]
fn a_batch_whose_only_engine_of_its_kind_is_quarantined_goes_on_with_another() {
    let mut world = World::new(7);
    world.add_worker("server", "host-a", 340_000);
    world.workers[0].abilities = SERVER;
    world.workers[0].sick = true;
    world.add_worker("able", "host-b", 680_000);
    let slot = world.submit_content("in", "t", good_lines(60), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.core.counts.quarantined_hosts, 1);
    assert_eq!(world.core.batch(slot).unwrap().totals.completed, 60);
}
