//! Faults of hosts and faults of jobs: who is quarantined, and who is to blame.

use std::time::Duration;

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchOptions, WorkerState};

use super::world::{KEY, World, good_lines};
use crate::core::*;

#[test]
fn a_host_on_which_everything_fails_is_quarantined_and_its_jobs_get_their_attempts_back() {
    let mut world = World::new(4);
    world.add_worker("sick", "host-s", 1);
    world.add_worker("well", "host-w", 1);
    world.workers[0].sick = true;
    let slot = world.submit_content("in", "t", good_lines(200), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.core.counts.quarantined_hosts, 1);
    assert_eq!(world.dead, []);
    assert_eq!(world.core.batch(slot).unwrap().record.totals.completed, 200);
}

#[test]
fn a_host_that_says_it_is_at_fault_gets_nothing_more_and_no_job_is_to_blame() {
    let mut world = World::new(4);
    world.add_worker("broken", "host-b", 1);
    world.add_worker("well", "host-w", 1);
    world.workers[0].broken = true;
    let slot = world.submit_content("in", "t", good_lines(60), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let counts = &world.core.counts;
    assert_eq!((counts.quarantined_hosts, counts.failed_attempts), (1, 0), "{counts:?}");
    assert_eq!(world.core.batch(slot).unwrap().record.totals.completed, 60);
}

/// A worker says that its host is at fault and drains, as real ones do; its heartbeat may be heard first.
#[test]
fn a_host_fault_counts_whatever_has_become_of_its_job() {
    for case in ["in flight", "being taken back", "with another worker", "answered"] {
        let mut world = World::new(4);
        world.add_worker("broken", "host-b", 1);
        world.workers[0].broken = true;
        let slot = world.submit_content("in", "t", good_lines(6), BatchOptions::default());
        while world.workers[0].running.is_empty() {
            world.beat(0);
            world.tell(Event::Turn);
            world.perform_all();
            world.pull(0);
        }
        world.add_worker("well", "host-w", 1);
        world.beat(1);
        world.perform_all();
        if case != "in flight" {
            // What is being answered is in no slot any more.
            let answering = std::mem::take(&mut world.workers[0].running);
            world.workers[0].up = false;
            world.beat_in(0, WorkerState::Draining);
            world.workers[0].running = answering;
            assert!(world.core.flights().get(JobRef { batch: slot, index: 0 }).is_some(), "{case}");
        }
        if matches!(case, "with another worker" | "answered") {
            world.perform_all();
        }
        if case == "answered" {
            world.run_to_the_end();
        }
        world.workers[0].up = true;
        world.finish(0);
        world.workers[0].up = false;
        world.tell_results(usize::MAX);
        let counts = &world.core.counts;
        assert_eq!((counts.quarantined_hosts, counts.failed_attempts), (1, 0), "{case}: {counts:?}");
        assert!(world.core.fleet().hosts["host-b"].quarantined, "{case}");
        world.run_to_the_end();
        world.check(slot);
        assert_eq!(world.core.batch(slot).unwrap().record.totals.completed, 6, "{case}");
        assert_eq!((world.core.counts.failed_attempts, world.dead.len()), (0, 0), "{case}");
    }
}

/// RESULTS is read again after a restart: what a process said of its machine is not held against the next one.
#[test]
fn a_host_fault_of_an_earlier_process_says_nothing_of_a_later_one() {
    let mut world = World::new(4);
    world.add_worker("broken", "host-b", 1);
    world.add_worker("well", "host-w", 1);
    world.workers[0].broken = true;
    let slot = world.submit_content("in", "t", good_lines(20), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let told = world.results.iter().position(|answer| answer.verdict == Verdict::HostFault).unwrap();
    world.core = Core::new(KEY, Limits::default());
    world.beat(0);
    world.beat(1);
    let mut answer = Box::new(world.results[told].clone());
    answer.finished_at = TimeMs(0);
    world.workers[0].started_at = TimeMs(1);
    world.beat(0);
    world.tell(Event::Answer { sequence: 1, answer });
    assert_eq!(world.core.counts.quarantined_hosts, 0);
}

#[test]
fn a_worker_that_comes_back_on_another_host_is_judged_by_that_one() {
    let mut world = World::new(4);
    world.add_worker("wanderer", "host-a", 1);
    world.add_worker("well", "host-w", 1);
    world.beat(0);
    world.beat(1);
    world.workers[0].host = "host-b".to_owned();
    world.workers[0].broken = true;
    let slot = world.submit_content("in", "t", good_lines(20), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let counts = &world.core.counts;
    assert_eq!((counts.quarantined_hosts, counts.failed_attempts), (1, 0), "{counts:?}");
    assert!(world.core.fleet().hosts["host-b"].quarantined);
}

#[test]
fn the_last_healthy_host_is_never_quarantined() {
    let mut world = World::new(5);
    world.add_worker("only", "host-o", 1);
    world.workers[0].sick = true;
    let slot = world.submit_content("in", "t", good_lines(30), BatchOptions::default());
    world.run_to_the_end();
    assert_eq!(world.core.counts.quarantined_hosts, 0);
    assert!(world.core.counts.last_host_suspect > 0);
    world.check(slot);
}

#[test]
fn a_host_fault_of_the_last_host_is_counted_once() {
    let mut world = World::new(5);
    world.add_worker("only", "host-o", 1);
    world.workers[0].broken = true;
    let slot = world.submit_content("in", "t", good_lines(30), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let faults = world.results.iter().filter(|answer| answer.verdict == Verdict::HostFault).count() as u64;
    let counts = &world.core.counts;
    assert_eq!((counts.quarantined_hosts, counts.last_host_suspect), (0, faults), "{counts:?}");
}

#[test]
fn hosts_whose_workers_crash_at_every_job_are_quarantined_and_no_good_job_is_poison() {
    for seed in 0..4 {
        let mut world = World::new(seed);
        for host in ["a", "b", "c", "d"] {
            world.add_worker(host, host, 340_000);
        }
        world.workers[..3].iter_mut().for_each(|worker| worker.crashes = true);
        // Enough for each to die several times before the fourth has done it all.
        let slot = world.submit_content("b", "default", good_lines(400), BatchOptions::default());
        world.run_to_the_end();
        let totals = world.core.batch(slot).unwrap().record.totals;
        assert_eq!((totals.completed, totals.failed), (400, 0), "seed {seed}");
        assert_eq!(world.core.counts.quarantined_hosts, 3, "seed {seed}");
        assert!(world.dead.is_empty());
    }
}

#[test]
fn one_job_that_kills_whoever_runs_it_shuts_no_host_out() {
    let mut world = World::new(3);
    for host in ["a", "b", "c"] {
        world.add_worker(host, host, 340_000);
    }
    world.poisonous = vec![5];
    let slot = world.submit_content("b", "default", good_lines(60), BatchOptions::default());
    world.run_to_the_end();
    let totals = world.core.batch(slot).unwrap().record.totals;
    assert_eq!((totals.completed, totals.failed), (59, 1));
    assert_eq!(world.core.counts.quarantined_hosts, 0);
    assert_eq!(world.dead.len(), 1);
}

#[test]
fn queues_that_are_being_made_are_asked_for_again_only_after_a_while() {
    let mut world = World::new(22);
    world.add_worker("a", "host-a", 1);
    let mut after = |span: Duration| {
        world.now = Now { mono: world.now.mono.plus(span), wall: world.now.wall.plus(span) };
        world.beat(0);
        world.actions.iter().filter(|action| matches!(action, Action::Register { .. })).count()
    };
    for _ in 0..5 {
        assert_eq!(after(Duration::from_secs(1)), 1);
    }
    assert_eq!(after(Duration::from_secs(10)), 2);
}
