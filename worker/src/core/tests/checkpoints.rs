//! Running jobs: checkpoints, fences, leases, token streams.

use std::time::Duration;

use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Author, Checkpoint, Generated, Outcome, Work};
use ternfleet_proto::{Attempt, Epoch};

use super::rig::*;
use crate::core::*;

#[test]
fn a_checkpoint_goes_out_every_k_tokens() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    assert!(written(&rig.tokens(slot, 7)).is_none());
    let (_, checkpoint, expect) = written(&rig.tokens(slot, 1)).expect("a checkpoint");
    assert_eq!((checkpoint.generated.len(), checkpoint.claim, expect), (8, false, 100));
}

#[test]
fn a_slow_job_is_checkpointed_by_time() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 1);
    assert!(written(&rig.tick_after(Duration::from_millis(1900))).is_none());
    assert!(written(&rig.tick_after(Duration::from_millis(200))).is_some());
}

#[test]
fn only_one_checkpoint_is_on_its_way_and_the_next_holds_all_that_came_meanwhile() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    assert!(written(&rig.tokens(slot, 8)).is_some());
    assert!(written(&rig.tokens(slot, 20)).is_none());
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(101) });
    let (_, checkpoint, expect) = written(&actions).expect("a checkpoint");
    assert_eq!((checkpoint.generated.len(), expect), (28, 101));
}

#[test]
fn a_fenced_job_stops_and_publishes_nothing_more() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 8);
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
    assert_eq!(reads(&actions), Some(slot), "who has written there?");
    assert!(written(&rig.tokens(slot, 8)).is_none());
    let found = Read::Found((102, rival_checkpoint(0, 1, 0)));
    let actions = rig.on(Event::CheckpointRead { slot, outcome: found });
    assert!(cancels(&actions) && !publishes_anything(&actions));
    assert!(!publishes_anything(&rig.tokens(slot, 20)));
    assert!(!publishes_anything(&rig.on(Event::Ended { slot, end: completion() })));
    assert_eq!((rig.core.counters().fenced, rig.core.slots_in_use()), (1, 0));
}

#[test]
fn a_conflict_with_our_own_unheard_write_is_no_fence() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let (_, lost, _) = written(&rig.tokens(slot, 8)).expect("a checkpoint");
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Unreachable });
    let actions = rig.tick_after(Duration::from_secs(6));
    assert_eq!(written(&actions).expect("the same again").2, 100);
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
    assert_eq!(reads(&actions), Some(slot));
    rig.on(Event::CheckpointRead { slot, outcome: Read::Found((101, lost)) });
    let (_, checkpoint, expect) = written(&rig.tokens(slot, 8)).expect("the next");
    assert_eq!((expect, checkpoint.generated.len()), (101, 16));
}

#[test]
fn a_conflict_with_a_rival_after_an_unheard_write_is_a_fence() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 8);
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Unreachable });
    rig.tick_after(Duration::from_secs(6));
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
    let found = Read::Found((102, rival_checkpoint(0, 1, 0)));
    let actions = rig.on(Event::CheckpointRead { slot, outcome: found });
    assert!(cancels(&actions) && !publishes_anything(&actions));
}

#[test]
fn what_nobody_wrote_who_was_given_the_job_is_written_over_and_so_is_an_earlier_owners() {
    for found in [Read::Unreadable(102), Read::Found((102, rival_checkpoint(0, 0, 30))), Read::Nothing] {
        let mut rig = Rig::assigned();
        let (slot, ..) = written(&rig.pulled(1, Work { epoch: Epoch(1), ..work(0, 0) })).expect("a claim");
        rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(100) });
        rig.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
        rig.tokens(slot, 8);
        rig.on(Event::CheckpointWritten { slot, outcome: Write::Conflict });
        let last = if found == Read::Nothing { 0 } else { 102 };
        let actions = rig.on(Event::CheckpointRead { slot, outcome: found });
        let (_, checkpoint, expect) = written(&actions).expect("its own state again");
        assert_eq!((checkpoint.generated.len(), expect), (8, last));
        rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(103) });
        assert!(published(&rig.on(Event::Ended { slot, end: completion() })).is_some());
        assert_eq!(rig.core.counters().fenced, 0);
    }
}

#[test]
fn a_job_goes_on_when_its_checkpoint_has_no_room() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 8);
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Full });
    assert!(matches!(actions[..], [Action::Note(Note::CheckpointSkipped { .. }), ..]) && !cancels(&actions));
    assert!(published(&rig.on(Event::Ended { slot, end: completion() })).is_some());
}

#[test]
fn a_lease_is_extended_only_if_tokens_advanced() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 1);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 1);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 0, "nothing came since");
    rig.tokens(slot, 1);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(1))), 1);
    rig.tokens(slot, 1);
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(1))), 0, "not so soon again");
}

#[test]
fn prefilling_counts_as_advance_up_to_what_the_cache_holds() {
    let mut rig = Rig::assigned();
    rig.running(0);
    let steps = |tokens| Event::Steps {
        steps: Steps { steps: 1, prefill_tokens: tokens, ..Steps::default() },
        made: Vec::new(),
    };
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 0);
    rig.on(steps(128));
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 1);
    rig.on(steps(32 * 128));
    assert_eq!(extended(&rig.tick_after(Duration::from_secs(3))), 0, "others prefill, this one does not");
}

#[test]
fn streamed_tokens_carry_their_position_without_gap_or_repeat() {
    let mut rig = Rig::assigned();
    let slot = reads(&rig.pulled(1, work(0, 2))).expect("a read");
    rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, rival_checkpoint(0, 1, 20))) });
    rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(8) });
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 20 });
    let mut positions = Vec::new();
    for count in [2, 3, 1] {
        let tokens = Tokens { ids: vec![1; count], stream: true, ..Tokens::default() };
        for action in rig.on(Event::Tokens { slot, tokens }) {
            if let Action::SendTokens(chunk) = action {
                positions.push((chunk.position, chunk.count));
            }
        }
    }
    assert_eq!(positions, [(20, 2), (22, 3), (25, 1)]);
}

#[test]
fn a_generation_that_fails_is_started_again_from_what_it_had() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    rig.tokens(slot, 5);
    rig.on(Event::Ended { slot, end: End::Fault("odd".to_owned()) });
    let actions = rig.tick_after(Duration::from_secs(6));
    assert_eq!(started(&actions).expect("a start").1.ids.len(), 5);
    assert!(settled(&actions).iter().all(|(_, how)| *how != Settle::Ack));
}

#[test]
fn choices_are_told_apart_in_chunks_checkpoints_and_the_answer() {
    let mut rig = Rig::assigned();
    let slot = rig.running(0);
    let mut chunks = Vec::new();
    for (choice, ids) in [(1, vec![10, 11]), (0, vec![1]), (1, vec![12])] {
        let tokens = Tokens { ids, choice: Some(choice), stream: true, ..Tokens::default() };
        for action in rig.on(Event::Tokens { slot, tokens }) {
            if let Action::SendTokens(chunk) = action {
                chunks.push((chunk.choice, chunk.position, chunk.count, chunk.model.is_some()));
            }
        }
    }
    // Who asked for no model learns with the first chunk of each choice which one answers.
    assert_eq!(chunks, [(1, 0, 2, true), (0, 0, 1, true), (1, 2, 1, false)]);
    let (_, checkpoint, _) = written(&rig.tick_after(Duration::from_secs(3))).expect("a checkpoint");
    assert_eq!(
        (&checkpoint.generated[..], &checkpoint.choices[..]),
        (&[10, 11, 1, 12][..], &[1, 1, 0, 1][..])
    );
    let output = |text: &str| Output { text: text.to_owned(), ..Output::default() };
    let whole = Completion {
        outputs: vec![output("a"), output("bcd")],
        cached_tokens: 0,
        prompt_tokens: None,
        asked: None,
    };
    let actions = rig.on(Event::Ended { slot, end: End::Complete(Box::new(whole)) });
    let result = actions.iter().find_map(|action| match action {
        Action::PublishResult { result, .. } => Some(result),
        _ => None,
    });
    let result = result.expect("an answer");
    let Outcome::Text(first) = &result.outcome else { panic!("a text") };
    let texts: Vec<&str> = first.choices().map(|one| one.text.as_str()).collect();
    assert_eq!((texts, result.usage.completion_tokens), (vec!["a", "bcd"], 4));
    assert_eq!(first.ids_digest, Generated::answer_digest(&[vec![1], vec![10, 11, 12]]).short());
    assert_eq!(first.more[0].ids_digest, Generated::digest_of(&[10, 11, 12]));
    assert!(result.line.model.is_some());
}

/// The engine computes kept output again; where it comes to something else, the job starts over, and the answer says whose
/// output that was.
#[test]
fn kept_output_that_is_not_computed_here_is_dropped_and_its_author_is_named() {
    let mut rig = Rig::assigned();
    let again = Work { attempts_before: Attempt(1), ..work(0, 5) };
    let slot = reads(&rig.pulled(1, again)).expect("a read");
    rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, rival_checkpoint(0, 2, 20))) });
    let rival = Author { worker: "rival".parse().unwrap(), host: "elsewhere".to_owned() };
    let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(8) });
    assert_eq!(started(&actions).expect("a start").1.ids.len(), 20);
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 20 });
    let actions = rig.on(Event::Ended { slot, end: End::KeptDiffers });
    assert!(started(&actions).expect("a start without it").1.ids.is_empty(), "{actions:?}");
    rig.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
    let (_, checkpoint, expect) = written(&rig.tokens(slot, 8)).expect("the wrong one is written over");
    assert_eq!((checkpoint.generated.len(), checkpoint.generated_by, expect), (8, None, 8));
    let actions = rig.on(Event::Ended { slot, end: completion() });
    let answer = published(&actions).expect("an answer");
    assert_eq!((&answer.rejected, answer.usage.repeated_tokens), (&Some(rival), 20));
}

/// Who continues a job and dies before it has computed the kept output again is not taken for its author.
#[test]
fn a_claim_names_who_generated_what_it_continues_from() {
    let mut rig = Rig::assigned();
    let again = Work { attempts_before: Attempt(1), ..work(0, 5) };
    let slot = reads(&rig.pulled(1, again)).expect("a read");
    let first = Author { worker: "first".parse().unwrap(), host: "far".to_owned() };
    let found = Checkpoint { generated_by: Some(first.clone()), ..rival_checkpoint(0, 2, 20) };
    let actions = rig.on(Event::CheckpointRead { slot, outcome: Read::Found((7, found)) });
    let (_, claim, _) = written(&actions).expect("a claim");
    assert_eq!((claim.generated.len(), claim.generated_by), (20, Some(first)));
}

/// Without a tokenizer text must be kept with the ids, and only as far as it is theirs.
#[test]
fn a_checkpoint_with_text_ends_where_the_text_is_whole_and_what_is_dropped_is_booked() {
    let mut rig = Rig::assigned();
    rig.core.config.keeps_text = true;
    let slot = rig.running(0);
    let said = |ids: &[u32], text: &str, is_whole| Event::Tokens {
        slot,
        tokens: Tokens { ids: ids.to_vec(), text: text.to_owned(), is_whole, ..Tokens::default() },
    };
    rig.on(said(&[1, 2], "ab", true));
    rig.on(said(&[3, 4], "c", false));
    let (_, checkpoint, _) = written(&rig.on(Event::Signal)).expect("a last checkpoint");
    assert_eq!((checkpoint.generated, checkpoint.text.as_str()), (vec![1, 2], "ab"));

    // The next worker gets ids and text; what its server cannot continue is generated again, and counted.
    for (kept, repeated) in [(2, 0), (0, 2)] {
        let mut rig = Rig::assigned();
        rig.core.config.keeps_text = true;
        let slot = reads(&rig.pulled(1, work(0, 2))).expect("a read");
        let found = Checkpoint { text: "ab".to_owned(), ..rival_checkpoint(0, 1, 2) };
        rig.on(Event::CheckpointRead { slot, outcome: Read::Found((5, found)) });
        let actions = rig.on(Event::CheckpointWritten { slot, outcome: Write::Stored(6) });
        let (_, given) = started(&actions).expect("a start");
        assert_eq!((given.ids.len(), given.text.as_str()), (2, "ab"));
        rig.on(Event::Started { slot, prompt_tokens: 3, kept });
        let tokens = Tokens { ids: vec![7], text: "x".to_owned(), is_whole: true, ..Tokens::default() };
        rig.on(Event::Tokens { slot, tokens });
        let actions = rig.on(Event::Ended { slot, end: completion() });
        let usage = published(&actions).expect("a result").usage;
        assert_eq!((usage.completion_tokens, usage.repeated_tokens), (kept + 1, repeated));
    }
}
