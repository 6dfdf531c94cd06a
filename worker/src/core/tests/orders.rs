//! Orders, deadlines, drain.

use std::time::Duration;

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Order, WorkerState};
use ternfleet_proto::{Epoch, Lane};

use super::rig::*;
use crate::core::*;

fn exits(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Exit))
}

fn beats(actions: &[Action]) -> Vec<WorkerState> {
    let beat = |action: &Action| match action {
        Action::SendHeartbeat(beat) => Some(beat.state),
        _ => None,
    };
    actions.iter().filter_map(beat).collect()
}

#[test]
fn a_revoked_job_stops_and_publishes_nothing_more() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 5);
    let actions = rig.order(Order::Revoke { job: job(0), epoch: Epoch(0) });
    assert!(cancels(&actions) && !publishes_anything(&actions));
    assert!(!publishes_anything(&rig.on(Event::Ended { slot, end: completion() })));
}

#[test]
fn a_revocation_does_not_touch_a_later_epoch() {
    let mut rig = Rig::assigned();
    let slot = reads(&rig.pulled(1, work(0, 3))).expect("a read");
    let actions = rig.order(Order::Revoke { job: job(0), epoch: Epoch(2) });
    assert!(settled(&actions).is_empty());
    let actions = rig.on(Event::CheckpointRead { slot, outcome: Read::Nothing });
    assert!(written(&actions).is_some());
}

#[test]
fn an_answer_on_its_way_is_not_revoked() {
    let mut rig = Rig::assigned();
    let (slot, _) = rig.answering(0);
    rig.order(Order::Revoke { job: job(0), epoch: Epoch(0) });
    let actions = rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
}

#[test]
fn a_cancelled_batch_stops_everywhere_and_its_late_work_is_dropped() {
    let mut rig = Rig::assigned();
    rig.running(0);
    let (answering, _) = rig.answering(1);
    let actions = rig.order(Order::Cancel { batch: job(0).batch });
    assert!(cancels(&actions) && !publishes_anything(&actions));
    assert!(!publishes_anything(&rig.tick_after(Duration::from_secs(6))));
    assert!(!publishes_anything(&rig.on(Event::ResultWritten { slot: answering, outcome: Write::Full })));
    assert_eq!(settled(&rig.pulled(50, work(9, 0))), [(50, Settle::Ack)]);
}

#[test]
fn running_work_ends_at_its_deadline() {
    let mut rig = Rig::assigned();
    let mut timed = work(0, 0);
    timed.deadline = Some(rig.now.wall.plus(Duration::from_secs(5)));
    let (slot, ..) = written(&rig.pulled(1, timed)).expect("a claim");
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(1) });
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
    assert!(!cancels(&rig.tick_after(Duration::from_secs(4))));
    let actions = rig.tick_after(Duration::from_secs(1));
    assert!(cancels(&actions) && settled(&actions) == [(1, Settle::Ack)]);
}

#[test]
fn a_heartbeat_goes_out_each_second_and_names_the_running_jobs() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 5);
    let actions = rig.tick_after(Duration::from_secs(1));
    let beat = actions.iter().find_map(|action| match action {
        Action::SendHeartbeat(beat) => Some(beat),
        _ => None,
    });
    let beat = beat.expect("a heartbeat");
    assert_eq!((beat.running.len(), beat.running[0].generated, beat.slots_in_use), (1, 5, 1));
    assert!(beats(&rig.tick_after(Duration::from_millis(500))).is_empty());
}

#[test]
fn identify_is_answered_at_once() {
    let mut rig = Rig::assigned();
    assert_eq!(beats(&rig.order(Order::Identify)), [WorkerState::Ready]);
}

#[test]
fn a_drain_checkpoints_each_slot_as_released_then_gives_the_message_back_then_exits() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 5);
    let actions = rig.on(Event::Signal);
    assert_eq!(beats(&actions), [WorkerState::Draining]);
    let (_, checkpoint, _) = written(&actions).expect("a last checkpoint");
    assert!(checkpoint.released && checkpoint.generated.len() == 5 && cancels(&actions));
    assert!(settled(&actions).is_empty(), "the message goes back only when the checkpoint stands");
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(101) });
    assert_eq!(settled(&actions), [(1, Settle::Nak(Duration::ZERO))]);
    assert!(exits(&actions) && beats(&actions) == [WorkerState::Gone]);
}

#[test]
fn a_drain_waits_for_the_checkpoint_on_its_way_before_the_last_one() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 8);
    rig.tokens(slot, 2);
    assert!(written(&rig.on(Event::Signal)).is_none());
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(101) });
    let (_, checkpoint, expect) = written(&actions).expect("the last checkpoint");
    assert!(checkpoint.released && checkpoint.generated.len() == 10 && expect == 101);
}

#[test]
fn an_answer_that_completes_during_a_drain_is_published() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 8);
    rig.on(Event::Signal);
    let actions = rig.on(Event::Ended { slot, end: completion() });
    assert!(published(&actions).is_some());
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(101) });
    assert!(written(&actions).is_none());
    rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    assert!(exits(&rig.on(Event::Settled { slot, outcome: Settled::Done })));
}

#[test]
fn work_that_arrives_during_a_drain_goes_straight_back() {
    let mut rig = Rig::assigned();
    rig.running(0);
    rig.on(Event::Signal);
    let actions = rig.pulled(50, work(5, 0));
    assert_eq!(settled(&actions), [(50, Settle::Nak(Duration::ZERO))]);
    assert!(pulls(&actions).is_empty());
}

#[test]
fn a_drain_ends_in_time_even_if_the_bus_is_silent() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 5);
    rig.on(Event::Signal);
    assert!(!exits(&rig.tick_after(Duration::from_millis(3400))));
    assert!(exits(&rig.tick_after(Duration::from_millis(100))));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut rig = Rig::assigned();
    rig.running(0);
    assert!(!exits(&rig.on(Event::Signal)));
    assert!(exits(&rig.on(Event::Signal)));
}

#[test]
fn an_idle_worker_drains_at_once() {
    let mut rig = Rig::assigned();
    assert!(exits(&rig.order(Order::Drain)));
}

#[test]
fn a_claim_on_its_way_when_the_drain_begins_is_released_not_left() {
    let mut rig = Rig::assigned();
    let (slot, ..) = written(&rig.pulled(1, work(0, 0))).expect("a claim");
    rig.on(Event::Signal);
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(1) });
    assert!(written(&actions).expect("a release").1.released && started(&actions).is_none());
}

#[test]
fn without_its_server_a_worker_gives_back_what_it_has_and_takes_nothing_until_it_returns() {
    let mut rig = Rig::assigned();
    let running = rig.running(0);
    rig.tokens(running, 5);
    let (answering, _) = rig.answering(1);
    let actions = rig.on(Event::Server { ready: false });
    assert_eq!(beats(&actions), [WorkerState::Calibrating]);
    let (_, checkpoint, _) = written(&actions).expect("what it has is kept");
    assert!(checkpoint.released && checkpoint.generated.len() == 5 && cancels(&actions));
    let actions = rig.on(Event::CheckpointWritten { slot: running, outcome: Write::Stored(9) });
    assert_eq!(settled(&actions), [(1, Settle::Nak(Duration::ZERO))]);
    rig.on(Event::Ended { slot: running, end: End::Cancelled });
    // An answer that stands already goes out.
    let actions = rig.on(Event::ResultWritten { slot: answering, outcome: Write::Stored(1) });
    assert_eq!(settled(&actions), [(2, Settle::Ack)]);
    let actions = rig.pulled(7, work(7, 0));
    assert_eq!(settled(&actions), [(7, Settle::Nak(Duration::ZERO))]);
    rig.on(Event::PullEnded { lane: Lane::Batch, outcome: PullOutcome::Served });
    assert!(pulls(&rig.tick_after(Duration::from_secs(1))).is_empty());
    let actions = rig.on(Event::Server { ready: true });
    assert_eq!(beats(&actions), [WorkerState::Ready]);
    assert!(!pulls(&actions).is_empty());
    assert!(beats(&rig.on(Event::Server { ready: true })).is_empty(), "it is told once");
}

#[test]
fn a_job_that_waits_for_a_servers_first_token_keeps_its_lease_while_the_server_is_heard_of() {
    let mut rig = Rig::assigned();
    rig.running(0);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 0);
    rig.on(Event::Server { ready: true });
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 1);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 0, "nothing was heard since");
}
