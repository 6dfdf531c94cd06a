//! Answers: stored first, acknowledged after; duplicates compared; no room waited out.

use std::time::Duration;

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Failure, FailureCode, Outcome};

use super::rig::*;
use crate::core::*;

#[test]
fn a_message_is_acknowledged_only_after_its_result_is_stored() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 1);
    let actions = rig.on(Event::Ended { slot, end: completion() });
    assert!(published(&actions).is_some() && settled(&actions).is_empty());
    let actions = rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
}

#[test]
fn an_unheard_result_is_published_again_and_is_no_duplicate_of_itself() {
    let mut rig = Rig::assigned();
    let (slot, result) = rig.answering(0);
    rig.on(Event::ResultWritten { slot, outcome: Write::Unreachable });
    assert!(published(&rig.tick_after(Duration::from_secs(6))).is_some());
    rig.on(Event::ResultWritten { slot, outcome: Write::Conflict });
    let actions = rig.on(Event::ResultRead { slot, outcome: Read::Found(result) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
    let counters = rig.core.counters();
    assert_eq!((counters.jobs_done, counters.duplicates, counters.divergences), (1, 0, 0));
}

#[test]
fn an_answer_that_was_there_already_is_compared_counted_and_acknowledged() {
    let mut rig = Rig::assigned();
    let (slot, result) = rig.answering(0);
    rig.on(Event::ResultWritten { slot, outcome: Write::Conflict });
    let actions = rig.on(Event::ResultRead { slot, outcome: Read::Found(result) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
    let counters = rig.core.counters();
    assert_eq!((counters.jobs_done, counters.duplicates, counters.divergences), (0, 1, 0));
}

#[test]
fn an_answer_that_differs_from_the_stored_one_is_a_divergence() {
    let mut rig = Rig::assigned();
    let (slot, mut result) = rig.answering(0);
    rig.on(Event::ResultWritten { slot, outcome: Write::Conflict });
    if let Outcome::Text(generated) = &mut result.outcome {
        generated.ids_digest ^= 1;
    }
    let actions = rig.on(Event::ResultRead { slot, outcome: Read::Found(result) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
    assert_eq!(rig.core.counters().divergences, 1);
}

#[test]
fn a_full_stream_is_waited_out_and_said_aloud() {
    let mut rig = Rig::assigned();
    let (slot, _) = rig.answering(0);
    for _ in 0..5 {
        let actions = rig.on(Event::ResultWritten { slot, outcome: Write::Full });
        assert!(matches!(actions[..], [Action::Note(Note::ResultsFull { .. }), ..]));
        assert!(settled(&actions).is_empty());
        assert!(published(&rig.tick_after(Duration::from_secs(6))).is_some());
    }
    let actions = rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    assert_eq!(settled(&actions), [(1, Settle::Ack)]);
}

#[test]
fn an_answer_that_is_too_large_becomes_an_error_line_that_says_so() {
    let mut rig = Rig::assigned();
    let (slot, _) = rig.answering(0);
    let outcome = Write::TooLarge { bytes: 2_000_000, max_bytes: 1_048_576 };
    let actions = rig.on(Event::ResultWritten { slot, outcome });
    let result = published(&actions).expect("a result");
    assert!(matches!(&result.outcome, Outcome::Failed(failure) if failure.message.contains("2000000")));
}

#[test]
fn an_answering_job_holds_no_slot_of_the_engine() {
    let mut rig = Rig::assigned();
    rig.answering(0);
    assert_eq!((rig.core.slots_in_use(), rig.core.answering(), rig.core.pages_free()), (0, 1, 32));
}

#[test]
fn an_ack_that_nobody_heard_is_sent_again() {
    let mut rig = Rig::assigned();
    let (slot, _) = rig.answering(0);
    rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    rig.on(Event::Settled { slot, outcome: Settled::Unreachable });
    assert_eq!(settled(&rig.tick_after(Duration::from_secs(6))), [(1, Settle::Ack)]);
}

#[test]
fn retries_come_at_once_when_the_bus_is_back() {
    let mut rig = Rig::assigned();
    let (slot, _) = rig.answering(0);
    rig.on(Event::Bus { up: false });
    rig.on(Event::ResultWritten { slot, outcome: Write::Unreachable });
    assert!(published(&rig.on(Event::Bus { up: true })).is_some());
}

#[test]
fn too_many_waiting_answers_stop_the_pulls() {
    let mut rig = Rig::assigned();
    for index in 0..=(4 * SLOTS as u32) {
        rig.answering(index);
    }
    let actions =
        rig.on(Event::PullEnded { lane: ternfleet_proto::Lane::Batch, outcome: PullOutcome::Served });
    assert!(pulls(&actions).is_empty());
}

/// Answered, acknowledged, and delivered again, under a later epoch as a new leader does.
fn delivered_again(rig: &mut Rig) -> SlotId {
    let (slot, _) = rig.answering(0);
    rig.on(Event::ResultWritten { slot, outcome: Write::Stored(1) });
    rig.on(Event::Settled { slot, outcome: Settled::Done });
    let actions = rig.pulled(9, work(0, 4096));
    assert!(settled(&actions).is_empty(), "not before the stored answer was seen: {actions:?}");
    recalled(&actions).expect("the stored answer is looked for")
}

fn recalled(actions: &[Action]) -> Option<SlotId> {
    actions.iter().find_map(|action| match action {
        Action::ReadResult { slot, .. } => Some(*slot),
        _ => None,
    })
}

#[test]
fn an_answered_job_whose_stored_answer_is_lost_is_run_again() {
    for outcome in [Read::Nothing, Read::Withheld] {
        let mut rig = Rig::assigned();
        let slot = delivered_again(&mut rig);
        let actions = rig.on(Event::ResultRead { slot, outcome });
        assert!(settled(&actions).is_empty() && reads(&actions) == Some(slot), "it begins anew: {actions:?}");
    }
}

#[test]
fn an_answered_job_whose_answer_is_stored_is_acknowledged() {
    let mut rig = Rig::assigned();
    let (_, result) = Rig::assigned().answering(0);
    let slot = delivered_again(&mut rig);
    rig.on(Event::ResultRead { slot, outcome: Read::Unreachable });
    assert!(recalled(&rig.tick_after(Duration::from_secs(6))).is_some());
    let actions = rig.on(Event::ResultRead { slot, outcome: Read::Found(result) });
    assert_eq!(settled(&actions), [(9, Settle::Ack)]);
}

#[test]
fn a_host_fault_is_told_as_one_and_the_worker_takes_nothing_more() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let actions =
        rig.on(Event::Ended { slot, end: End::HostFault("its canary output has changed".to_owned()) });
    let result = published(&actions).expect("a result");
    assert!(matches!(&result.outcome, Outcome::Failed(failure) if failure.code == FailureCode::HostFault));
    assert_eq!(rig.core.state(), ternfleet_proto::message::WorkerState::Draining);
}

#[test]
fn a_machine_that_is_at_fault_says_so_of_all_that_runs_on_it() {
    let mut rig = Rig::assigned();
    rig.running(0);
    rig.running(1);
    let actions = rig.on(Event::HostFault { reason: "the model is gone".to_owned() });
    let told = |action: &Action| match action {
        Action::PublishResult { result, .. } => Some(result.outcome.clone()),
        _ => None,
    };
    let failure = Failure { code: FailureCode::HostFault, message: "the model is gone".to_owned() };
    let told: Vec<Outcome> = actions.iter().filter_map(told).collect();
    assert_eq!(told, [Outcome::Failed(failure.clone()), Outcome::Failed(failure)]);
    assert!(cancels(&actions));
    assert_eq!(rig.core.state(), ternfleet_proto::message::WorkerState::Draining);
}

#[test]
fn a_job_fault_is_the_answer_and_the_worker_goes_on() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let failure =
        Failure { code: FailureCode::NotFinite, message: "the model's logits are not finite".to_owned() };
    let actions = rig.on(Event::Ended { slot, end: End::Failed(failure.clone()) });
    assert_eq!(published(&actions).map(|result| &result.outcome), Some(&Outcome::Failed(failure)));
    assert_eq!(rig.core.state(), ternfleet_proto::message::WorkerState::Ready);
}

#[test]
fn an_engine_that_ends_a_generation_again_and_again_is_told_as_a_fault_of_its_host() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let mut told = None;
    for _ in 0..3 {
        let actions = rig.on(Event::Ended { slot, end: End::Fault("no reason".to_owned()) });
        told = published(&actions).cloned();
        if told.is_none() {
            assert!(started(&rig.tick_after(Duration::from_secs(6))).is_some());
            rig.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
        }
    }
    let told = told.expect("a result");
    assert!(matches!(told.outcome, Outcome::Failed(failure) if failure.code == FailureCode::WorkerFault));
}
