//! Taking work in: pulls, refusals, claims, resumption.

use std::time::Duration;

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Control, Order, Outcome};
use ternfleet_proto::{Attempt, Lane, LeaderRevision};

use super::rig::*;
use crate::core::*;

#[test]
fn nothing_is_pulled_before_the_queues_are_assigned() {
    let mut rig = Rig::new();
    assert!(pulls(&rig.tick_after(Duration::from_secs(1))).is_empty());
    let actions = rig.order(Order::Assigned { shard: 3, interactive: "i".to_owned(), batch: "b".to_owned() });
    assert_eq!(pulls(&actions), [(Lane::Interactive, 1), (Lane::Batch, SLOTS)]);
}

#[test]
fn a_pull_asks_for_no_more_than_free_slots_hold() {
    let mut rig = Rig::assigned();
    rig.running(0);
    rig.running(1);
    let actions = rig.on(Event::PullEnded { lane: Lane::Batch, outcome: PullOutcome::Served });
    assert_eq!(pulls(&actions), [(Lane::Batch, SLOTS - 2)]);
}

#[test]
fn a_pull_asks_for_no_more_than_free_pages_hold() {
    let mut rig = Rig::assigned();
    for index in 0..3 {
        let mut large = work(index, 0);
        large.tokens_estimate = 14 * 128;
        rig.pulled(u64::from(index), large);
    }
    // Two jobs of 14 pages fit into 32, the third waits unclaimed: nothing more is asked for.
    assert_eq!(rig.core.slots_in_use(), 2);
    let actions = rig.on(Event::PullEnded { lane: Lane::Batch, outcome: PullOutcome::Served });
    assert!(pulls(&actions).is_empty());
}

#[test]
fn waiting_interactive_work_takes_the_next_place_before_batch_work() {
    let mut rig = Rig::assigned();
    let slots: Vec<SlotId> = (0..SLOTS as u32).map(|index| rig.running(index)).collect();
    rig.pulled(10, work(10, 0));
    let mut urgent = work(11, 0);
    urgent.lane = Lane::Interactive;
    rig.pulled(11, urgent);
    rig.tokens(slots[0], 1);
    let actions = rig.on(Event::Ended { slot: slots[0], end: completion() });
    assert_eq!(written(&actions).expect("a claim").1.job, job(11));
}

#[test]
fn work_that_waits_too_long_for_room_goes_back() {
    let mut rig = Rig::assigned();
    for index in 0..SLOTS as u32 {
        rig.running(index);
    }
    rig.pulled(10, work(10, 0));
    let actions = rig.tick_after(Duration::from_secs(11));
    assert!(settled(&actions).contains(&(10, Settle::Nak(Duration::ZERO))));
}

#[test]
fn the_first_claim_is_made_without_reading() {
    let mut rig = Rig::assigned();
    let (_, claim, expect) = written(&rig.pulled(1, work(0, 0))).expect("a claim");
    assert!(claim.claim && expect == 0 && claim.attempt == Attempt(1));
}

#[test]
fn a_lost_claim_leads_to_a_read_and_a_later_epoch_ends_it() {
    let mut rig = Rig::assigned();
    let (slot, ..) = written(&rig.pulled(1, work(0, 0))).expect("a claim");
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
    assert_eq!(reads(&actions), Some(slot));
    let found = Read::Found((7, rival_checkpoint(0, 1, 0)));
    let actions = rig.on(Event::CheckpointRead { slot, outcome: found });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
    assert!(!publishes_anything(&actions) && started(&actions).is_none());
}

#[test]
fn a_later_owner_goes_on_from_the_checkpoint_it_finds() {
    let mut rig = Rig::assigned();
    let slot = reads(&rig.pulled(1, work(0, 2))).expect("a read");
    let found = Read::Found((7, rival_checkpoint(0, 1, 20)));
    let actions = rig.on(Event::CheckpointRead { slot, outcome: found });
    let (_, claim, expect) = written(&actions).expect("a claim");
    assert_eq!((expect, claim.attempt, claim.generated.len()), (7, Attempt(3), 20));
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(8) });
    assert_eq!(started(&actions).expect("a start").1.ids.len(), 20);
}

#[test]
fn output_of_another_model_is_not_resumed_and_counts_as_repeated() {
    let mut rig = Rig::assigned();
    let slot = reads(&rig.pulled(1, work(0, 2))).expect("a read");
    let mut found = rival_checkpoint(0, 1, 20);
    found.numerics = "others".to_owned();
    rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, found)) });
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(8) });
    assert!(started(&actions).expect("a start").1.ids.is_empty());
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
    assert_eq!(rig.core.counters().repeated_tokens, 20);
}

#[test]
fn a_released_attempt_does_not_count() {
    let mut rig = Rig::assigned();
    let mut again = work(0, 1);
    again.attempts_before = Attempt(0);
    // Not the first assignment: the claim conflicts with what the last owner left.
    let (slot, ..) = written(&rig.pulled(1, again)).expect("a claim");
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
    let mut found = rival_checkpoint(0, 0, 4);
    found.released = true;
    let actions = rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, found)) });
    assert_eq!(written(&actions).expect("a claim").1.attempt, Attempt(1));
}

#[test]
fn reprefilled_tokens_are_counted_apart_from_repeated_ones() {
    let mut rig = Rig::assigned();
    let slot = reads(&rig.pulled(1, work(0, 2))).expect("a read");
    rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, rival_checkpoint(0, 1, 20))) });
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(8) });
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 20 });
    rig.tokens(slot, 5);
    let actions = rig.on(Event::Ended { slot, end: completion() });
    let usage = published(&actions).expect("a result").usage;
    assert_eq!((usage.completion_tokens, usage.repeated_tokens, usage.reprefilled_tokens), (25, 0, 23));
}

#[test]
fn a_redelivered_job_that_runs_starts_nothing_and_is_acknowledged_under_its_new_reply() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let actions = rig.pulled(50, work(0, 0));
    assert!(!publishes_anything(&actions) && started(&actions).is_none() && settled(&actions).is_empty());
    rig.tokens(slot, 1);
    rig.on(Event::Ended { slot, end: completion() });
    let actions = rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    assert_eq!(settled(&actions), [(50, Settle::Ack)]);
}

#[test]
fn a_job_that_comes_back_under_a_later_epoch_waits_for_its_earlier_run_to_end() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let actions = rig.pulled(50, work(0, 1));
    assert!(cancels(&actions) && !publishes_anything(&actions) && reads(&actions).is_none());
    let actions = rig.on(Event::Ended { slot, end: End::Cancelled });
    assert!(reads(&actions).is_some());
}

#[test]
fn expired_work_never_runs() {
    let mut rig = Rig::assigned();
    let mut late = work(0, 0);
    late.deadline = Some(rig.now.wall);
    let actions = rig.pulled(1, late);
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
    assert!(!publishes_anything(&actions));
}

#[test]
fn work_for_another_model_goes_back_and_stays_away_for_a_while() {
    let mut rig = Rig::assigned();
    let mut foreign = work(0, 0);
    foreign.model_digest = "other".to_owned();
    let actions = rig.pulled(1, foreign);
    assert!(matches!(settled(&actions)[..], [(1, Settle::Nak(delay))] if delay >= Duration::from_secs(5)));
}

#[test]
fn an_undecodable_message_is_terminated_and_counted() {
    let mut rig = Rig::assigned();
    let fault = Undecodable { reason: "cut short".to_owned(), identity: None };
    let actions = rig.on(Event::WorkPulled { lane: Lane::Batch, delivery: delivery(1), work: Err(fault) });
    assert_eq!(settled(&actions), [(1, Settle::Term)]);
    assert_eq!(rig.core.counters().undecodable_messages, 1);
}

#[test]
fn an_undecodable_message_that_names_its_job_is_answered_by_an_error() {
    let mut rig = Rig::assigned();
    let whole = work(0, 0);
    let identity = WorkIdentity {
        job: whole.job,
        tenant: whole.tenant,
        epoch: whole.epoch,
        attempts_before: whole.attempts_before,
        tag: whole.tag,
        line: whole.line,
    };
    let fault = Undecodable { reason: "cut short".to_owned(), identity: Some(Box::new(identity)) };
    let actions = rig.on(Event::WorkPulled { lane: Lane::Batch, delivery: delivery(1), work: Err(fault) });
    let result = published(&actions).expect("a result");
    assert!(matches!(&result.outcome, Outcome::Failed(failure) if failure.message.contains("cut short")));
    assert!(settled(&actions).is_empty(), "no ack before the result is stored");
}

#[test]
fn work_of_a_deposed_leader_is_refused_only_if_it_lies_behind_the_new_leaders() {
    let mut rig = Rig::assigned();
    let at = |leader, index| {
        let mut work = work(index, 0);
        work.leader = LeaderRevision(leader);
        work
    };
    rig.pulled(10, at(5, 0));
    let behind = rig.pulled(11, at(4, 1));
    assert_eq!(settled(&behind), [(11, Settle::Ack)]);
    assert!(!publishes_anything(&behind));
    let before = rig.pulled(9, at(4, 2));
    assert!(publishes_anything(&before), "work that was queued before the takeover is as good as ever");
}

#[test]
fn orders_of_a_deposed_leader_are_refused() {
    let mut rig = Rig::assigned();
    rig.on(Event::Order(Control { leader: LeaderRevision(5), order: Order::Identify }));
    let actions = rig.on(Event::Order(Control { leader: LeaderRevision(4), order: Order::Drain }));
    assert!(matches!(actions[0], Action::Note(Note::StaleLeader { what: "control" })));
    assert_eq!(rig.core.state(), ternfleet_proto::message::WorkerState::Ready);
}

#[test]
fn a_queue_that_is_gone_is_announced_and_waited_for() {
    let mut rig = Rig::assigned();
    let actions = rig.on(Event::PullEnded { lane: Lane::Batch, outcome: PullOutcome::QueueGone });
    assert!(
        actions.iter().any(|action| matches!(action, Action::SendHeartbeat(_))) && pulls(&actions).is_empty()
    );
}

#[test]
fn a_permanent_refusal_is_the_answer() {
    let mut rig = Rig::assigned();
    let (slot, ..) = written(&rig.pulled(1, work(0, 0))).expect("a claim");
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(1) });
    let failure = ternfleet_proto::message::Failure {
        code: ternfleet_proto::message::FailureCode::PromptTooLong,
        message: "too long".to_owned(),
    };
    let why = StartFailure::Permanent(failure.clone());
    let actions = rig.on(Event::StartFailed { slot, why });
    assert_eq!(published(&actions).expect("a result").outcome, Outcome::Failed(failure));
}

#[test]
fn a_transient_fault_is_tried_again_later_and_given_back_in_the_end() {
    let mut rig = Rig::assigned();
    let (slot, ..) = written(&rig.pulled(1, work(0, 0))).expect("a claim");
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(1) });
    let mut starts = 1;
    for _ in 0..20 {
        let why = StartFailure::Transient("busy".to_owned());
        let actions = rig.on(Event::StartFailed { slot, why });
        assert!(started(&actions).is_none(), "not at once");
        if let [(1, Settle::Nak(delay))] = settled(&actions)[..] {
            assert!(delay > Duration::ZERO);
            assert!((2..=6).contains(&starts), "{starts}");
            return;
        }
        starts += usize::from(started(&rig.tick_after(Duration::from_secs(6))).is_some());
    }
    panic!("the job was never given back");
}
