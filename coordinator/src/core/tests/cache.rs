//! Answers of other lines: what runs once, for whom, and what becomes of a wrong one.

use std::sync::Arc;

use ternfleet_proto::message::{BatchOptions, EventKind, Input, LineSize, WorkSample};

use super::world::{World, task};
use crate::core::*;

const MILLION: u32 = 1_000_000;

fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    for n in 0..3 {
        world.add_worker(&format!("w{n}"), &format!("host-{n}"), 340_000);
    }
    world
}

/// Lines that ask for these.
fn lines(asked: impl IntoIterator<Item = u32>) -> Vec<Content> {
    let line = |(index, asked): (usize, u32)| {
        let mut task = Task { line: task(index as u32).line, ..task(asked) };
        let Input::Inline(generation) = &mut task.input else { panic!("it is small") };
        task.wanted = Wanted::of(generation, 0);
        assert!(task.wanted.is_some());
        Content::Good(Arc::new(task))
    };
    asked.into_iter().enumerate().map(line).collect()
}

/// How many jobs a batch of these lines assigns, and how many of its lines get the answer of another.
fn run(world: &mut World, name: &str, tenant: &str, content: Vec<Content>) -> (u64, u64) {
    let (before, count) = (world.core.counts, content.len() as u32);
    let slot = world.submit_content(name, tenant, content, BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    let batch = world.core.batch(slot).unwrap();
    assert_eq!(batch.totals.completed, count, "every line has a good answer");
    let counts = world.core.counts;
    (counts.handed_jobs - before.handed_jobs, counts.cached_answers - before.cached_answers)
}

#[test]
fn lines_that_ask_for_the_same_run_once() {
    let mut world = world(1);
    let asked = (0..2_000).map(|n| n % 1_000).chain((0..200).map(|_| 5_000));
    assert_eq!(run(&mut world, "a", "t", lines(asked)), (1_001, 1_199));
    assert_eq!(run(&mut world, "b", "t", lines(500..1_500)), (500, 500), "half of it is known");
    assert_eq!(run(&mut world, "c", "other", lines(0..10)), (10, 0), "tenants share nothing");
}

#[test]
fn a_line_without_a_key_runs_whatever_is_known() {
    let mut world = world(2);
    run(&mut world, "a", "t", lines(0..10));
    let mut content = lines(0..10);
    for line in &mut content {
        let Content::Good(task) = line else { panic!("a good line") };
        *task = Arc::new(Task { wanted: None, ..(**task).clone() });
    }
    assert_eq!(run(&mut world, "b", "t", content), (10, 0));
}

#[test]
fn what_was_remembered_and_is_gone_is_computed_again() {
    let mut world = world(3);
    run(&mut world, "a", "t", lines(0..50));
    let answers = world.core.known.keys().map(|key| (key, 0, 1)).collect();
    world.tell(Event::SegmentKept { segment: 4, answers });
    assert_eq!(run(&mut world, "b", "t", lines(0..50)), (50, 0), "the segment is lost");
    assert_eq!(run(&mut world, "c", "t", lines(0..50)), (0, 50), "and its answers are known anew");
    let answers = world.core.known.keys().map(|key| (key, 0, 1)).collect();
    world.tell(Event::SegmentKept { segment: 5, answers });
    world.tell(Event::SegmentGone { segment: 5 });
    assert_eq!(world.core.known.len(), 0);
}

#[test]
fn whoever_waits_for_a_line_that_fails_runs_after_all() {
    let mut world = world(4);
    world.poisonous = vec![0];
    let slot = world.submit_content("a", "t", lines([7; 20]), BatchOptions::default());
    world.run_to_the_end();
    let totals = world.core.batch(slot).unwrap().totals;
    assert_eq!((totals.completed, totals.failed), (19, 1));
}

#[test]
fn a_wrong_answer_that_is_remembered_is_found_and_forgotten() {
    let mut world = world(5);
    run(&mut world, "a", "t", lines(0..40));
    for answer in &mut world.results {
        answer.verdict = Verdict::Good { ids_digest: 77 };
    }
    world.core.limits.audit_share_ppm = MILLION;
    world.submit_content("b", "t", lines(0..40), BatchOptions::default());
    world.run_to_the_end();
    // Audits continue after the end of the batch.
    for _ in 0..200 {
        world.run_quietly();
    }
    let counts = world.core.counts;
    assert_eq!((counts.audits_diverged, counts.quarantined_hosts), (40, 0), "no host is at fault");
    assert!(world.audited.iter().any(|kind| matches!(kind, EventKind::AuditDiverged { .. })));
    world.core.limits.audit_share_ppm = 0;
    assert_eq!(run(&mut world, "c", "t", lines(0..40)), (40, 0));
}

#[test]
fn a_quote_leaves_out_the_lines_that_need_no_work() {
    let mut world = world(7);
    run(&mut world, "a", "t", lines(0..10));
    let line = |content: &Content| {
        let Content::Good(task) = content else { panic!("a good line") };
        LineSize {
            prompt_tokens: 1,
            max_tokens: Some(1),
            endpoint: None,
            wanted: task.wanted.map(Wanted::told),
        }
    };
    let mut sample: Vec<LineSize> = lines([0, 1, 50, 50, 51]).iter().map(line).collect();
    sample.push(LineSize { wanted: None, ..sample[0] });
    let work = WorkSample { lines: 60, sample, ..WorkSample::default() };
    let known = |work: &WorkSample, tenant: &str| {
        let mut rest = work.clone();
        let known = world.core.take_known(&tenant.parse().unwrap(), &mut rest);
        (known, rest.lines, rest.sample.len())
    };
    assert_eq!(known(&work, "t"), (30, 30, 3), "two of six are known, and one asks for the same as another");
    assert_eq!(known(&work, "other"), (10, 50, 5));
    let two = WorkSample { models: [("m".to_owned(), 30), ("n".to_owned(), 30)].into(), ..work };
    assert_eq!(known(&two, "t"), (0, 60, 6), "nobody knows which line is for which model");
}

#[test]
fn no_more_is_known_than_is_allowed() {
    let mut world = world(6);
    world.core.limits.cache_entries_max = 30;
    run(&mut world, "a", "t", lines(0..100));
    assert_eq!(world.core.known.len(), 30);
    world.core.limits.cache_entries_max = 0;
    assert_eq!(run(&mut world, "b", "t", lines(200..210)), (10, 0));
}

#[test]
fn lines_that_begin_alike_are_assigned_one_after_the_other() {
    let mut world = World::new(7);
    let start = |n: u32| if n.is_multiple_of(2) { Some(1) } else { (n % 4 == 1).then_some(2) };
    let line = |n: u32| Content::Good(Arc::new(Task { start: start(n), ..task(n) }));
    let slot = world.submit_content("a", "t", (0..8).map(line).collect(), BatchOptions::default());
    (0..3).for_each(|_| world.run_quietly());
    let queued = &world.core.batch(slot).unwrap().queues[0].jobs;
    assert_eq!(queued.iter().copied().collect::<Vec<_>>(), [0, 2, 4, 6, 1, 5, 3, 7]);
}
