//! Whose time it was, and deadlines by both clocks.

use std::time::Duration;

use ternfleet_proto::TimeMs;

use super::rig::{Rig, completion, published, work};
use crate::core::{Event, SlotId, Steps};

fn steps(prefill_tokens: u64, busy_ms: u64, made: Vec<(SlotId, u32)>) -> Event {
    let busy = Duration::from_millis(busy_ms);
    Event::Steps { steps: Steps { steps: 1, prefill_tokens, busy, ..Steps::default() }, made }
}

#[test]
fn a_steps_time_is_split_among_the_jobs_that_took_part_and_none_of_it_is_lost() {
    let mut rig = Rig::assigned();
    let (one, two) = (rig.running(0), rig.running(1));
    // Both prompts, of equal length; then three tokens to one; then a step whose token comes with the next.
    rig.on(steps(6, 60, Vec::new()));
    rig.on(steps(0, 40, vec![(one, 3), (two, 1)]));
    rig.on(steps(0, 10, Vec::new()));
    rig.on(steps(0, 10, vec![(two, 1)]));
    let used: Vec<u64> = [one, two]
        .into_iter()
        .map(|slot| {
            rig.tokens(slot, 2);
            let actions = rig.on(Event::Ended { slot, end: completion() });
            published(&actions).expect("a result").usage.engine_us
        })
        .collect();
    assert_eq!(used, [30_000 + 30_000, 30_000 + 10_000 + 20_000]);
}

#[test]
fn a_worker_whose_wall_clock_is_wrong_drops_nothing_that_may_run() {
    let mut rig = Rig::assigned();
    rig.now.wall = rig.now.wall.plus(Duration::from_secs(86_400));
    let mut late = work(0, 0);
    late.deadline = Some(TimeMs(1_000_000 + 60_000));
    late.left_ms = Some(60_000);
    assert!(super::rig::written(&rig.pulled(1, late)).is_some(), "it is claimed");
}
