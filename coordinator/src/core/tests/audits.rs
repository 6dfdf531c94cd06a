//! Audits: a second run elsewhere, and what becomes of those who differ.

use ternfleet_proto::JobKey;
use ternfleet_proto::message::{Author, BatchOptions, EventKind};

use super::world::{World, good_lines};
use crate::core::*;

const MILLION: u32 = 1_000_000;

fn world(seed: u64, workers: usize, share_ppm: u32) -> World {
    let mut world = World::new(seed);
    world.core.limits.audit_share_ppm = share_ppm;
    for n in 0..workers {
        world.add_worker(&format!("w{n}"), &format!("host-{n}"), 340_000);
    }
    world
}

fn run(world: &mut World, lines: u32) -> BatchSlot {
    let slot = world.submit_content("in", "t", good_lines(lines), BatchOptions::default());
    world.run_to_the_end();
    for _ in 0..200 {
        world.run_quietly();
    }
    world.check(slot);
    slot
}

#[test]
fn honest_workers_are_audited_and_agree() {
    let mut world = world(1, 3, MILLION / 5);
    let slot = run(&mut world, 500);
    let counts = world.core.counts;
    assert!((50..150).contains(&counts.audits_begun), "a fifth of 500: {}", counts.audits_begun);
    assert_eq!(counts.audits_agreed, counts.audits_begun);
    assert_eq!((counts.audits_diverged, counts.quarantined_hosts), (0, 0));
    // The tenant's books know nothing of it.
    assert_eq!(counts.committed, [500, 0]);
    assert_eq!(world.core.batch(slot).unwrap().totals.completed, 500);
    assert_eq!(world.records.len(), 1, "audits are not stored, so not listed, as batches");
}

#[test]
fn a_lying_worker_is_caught_and_gets_nothing_more() {
    for seed in 0..8 {
        let mut world = world(seed, 4, MILLION / 20);
        world.workers[2].lies = true;
        run(&mut world, 1500);
        let counts = world.core.counts;
        assert!(counts.audits_diverged > 0, "seed {seed}");
        assert!(counts.divergent_answers > 0, "the alarm");
        assert_eq!(counts.quarantined_hosts, 1, "seed {seed}: the liar and nobody else");
        let fleet = world.core.fleet();
        let shut_out: Vec<_> = fleet.hosts.iter().filter(|(_, host)| host.quarantined).collect();
        assert_eq!(shut_out.len(), 1);
        assert_eq!(shut_out[0].0, "host-2");
    }
}

#[test]
fn a_convicted_host_stays_out_when_its_worker_comes_back() {
    let mut world = world(3, 4, MILLION / 10);
    world.workers[2].lies = true;
    run(&mut world, 1000);
    assert_eq!(world.core.counts.quarantined_hosts, 1);
    world.crash(2);
    world.workers[2].up = true;
    world.beat(2);
    assert!(world.core.fleet().hosts["host-2"].quarantined);
}

#[test]
fn two_pods_cannot_outvote_each_other_but_the_alarm_is_raised() {
    let mut world = world(4, 2, MILLION / 10);
    world.workers[0].lies = true;
    run(&mut world, 300);
    let counts = world.core.counts;
    assert!(counts.audits_diverged > 0);
    assert_eq!(counts.quarantined_hosts, 0);
}

/// Only for a while, however often it is reported: whoever reports it may lie.
#[test]
fn the_answers_of_a_host_whose_checkpoint_was_rejected_are_all_audited_for_a_while() {
    let mut world = world(9, 3, 0);
    run(&mut world, 20);
    let author = Author { worker: world.name(1), host: "elsewhere".to_owned() };
    let (job, reporter) = (JobKey { batch: "b".parse().unwrap(), index: 0 }, "w0".parse().unwrap());
    let mut actions = Vec::new();
    for _ in 0..3 {
        world.core.checkpoint_rejected(world.now, &job, &reporter, &author, &mut actions);
    }
    let told = actions.iter().filter_map(|action| match action {
        Action::Audit(EventKind::CheckpointRejected { host, .. }) => host.as_deref(),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), ["host-1"; 3], "its grant says which host it is on");
    world.submit_content("again", "u", good_lines(400), BatchOptions::default());
    world.run_to_the_end();
    for _ in 0..200 {
        world.run_quietly();
    }
    let counts = world.core.counts;
    assert_eq!(
        (counts.audits_begun, counts.audits_agreed, counts.quarantined_hosts),
        (8, 8, 0),
        "{counts:?}"
    );
}

#[test]
fn a_lone_pod_is_not_audited() {
    let mut world = world(5, 1, MILLION);
    run(&mut world, 50);
    assert_eq!((world.core.counts.audits_begun, world.core.counts.audits_skipped), (0, 50));
}

#[test]
fn without_a_share_nothing_runs_twice() {
    let mut world = world(6, 3, 0);
    run(&mut world, 100);
    assert_eq!(world.core.counts.audits_begun + world.core.counts.audits_skipped, 0);
}

#[test]
fn a_divergence_is_written_into_the_books() {
    let mut world = world(7, 3, MILLION);
    world.workers[0].lies = true;
    let mut told = Vec::new();
    world.submit_content("in", "t", good_lines(100), BatchOptions::default());
    for _ in 0..400 {
        world.run_quietly();
        told.append(&mut world.audited);
    }
    let verdicts = told.iter().filter_map(|kind| match kind {
        EventKind::AuditDiverged { convicted_host, .. } => convicted_host.as_deref(),
        _ => None,
    });
    let verdicts: Vec<&str> = verdicts.collect();
    assert!(!verdicts.is_empty() && verdicts.iter().all(|host| *host == "host-0"), "{verdicts:?}");
}

#[test]
fn a_host_whose_canary_differs_gets_no_work_until_it_agrees() {
    let mut world = world(8, 3, 0);
    world.crash(2);
    world.workers[2].canary = "c1-other".to_owned();
    world.audited.clear();
    run(&mut world, 200);
    let told = std::mem::take(&mut world.audited);
    let of_the_host =
        |kind: &&EventKind| matches!(kind, EventKind::CanaryDiverged { host, .. } if host == "host-2");
    let diverged: Vec<_> = told.iter().filter(of_the_host).collect();
    assert!(
        matches!(diverged[..], [EventKind::CanaryDiverged { said, expected, .. }] if said == "c1-other" && expected == "c1-same"),
        "{diverged:?}"
    );
    assert_eq!((world.core.counts.canaries_diverged, world.workers[2].decoded), (1, 0));

    world.crash(2);
    world.workers[2].canary = world.workers[0].canary.clone();
    world.submit_content("again", "u", good_lines(200), BatchOptions::default());
    world.run_to_the_end();
    assert!(world.workers[2].decoded > 0);
}
