//! Publishing: de-duplication, conditions, limits.

use super::*;

on_both!(
    a_repeated_id_is_stored_nowhere_even_on_another_subject,
    an_id_may_come_back_after_its_window,
    a_new_epoch_of_a_job_is_stored_on_another_subject,
    a_condition_is_looked_at_before_a_duplicate_is,
    answered_already_is_told_from_no_room,
    a_full_stream_refuses_and_takes_again_after_a_deletion,
    a_stream_that_drops_old_messages_never_refuses,
    a_claim_by_another_fences_the_old_owner,
    a_subject_whose_message_was_deleted_expects_none,
    only_the_last_message_of_a_subject_is_kept,
    a_subject_that_holds_all_it_may_refuses_until_a_deletion,
    a_message_over_the_limit_is_refused_for_good,
    a_subject_of_no_stream_is_not_found,
    many_in_flight_are_stored_in_order,
    a_stream_is_ensured_twice_and_changed_in_place,
    retention_cannot_be_changed,
);

async fn a_repeated_id_is_stored_nowhere_even_on_another_subject(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    let first = put_with_id(&bus, "q.a", "job.1").await;
    assert_eq!(first, Stored { sequence: 1, duplicate: false });
    let repeated = put_with_id(&bus, "q.b", "job.1").await;
    assert_eq!(repeated, Stored { sequence: 1, duplicate: true });
    assert_eq!(bus.stream_facts("Q").await.unwrap().messages, 1);
    assert_eq!(bus.last_on_subject("Q", "q.b").await.unwrap(), None);
}

async fn an_id_may_come_back_after_its_window(bus: Shared) {
    let spec = StreamSpec { duplicate_window: Duration::from_millis(200), ..queue() };
    bus.ensure_stream(&spec).await.unwrap();
    put_with_id(&bus, "q.a", "job.1").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!put_with_id(&bus, "q.b", "job.1").await.duplicate);
}

async fn a_new_epoch_of_a_job_is_stored_on_another_subject(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    let first = put_with_id(&bus, "q.a", "job.1").await;
    assert!(bus.delete_message("Q", first.sequence).await.unwrap());
    assert!(!put_with_id(&bus, "q.b", "job.2").await.duplicate);
    assert!(put_with_id(&bus, "q.a", "job.1").await.duplicate, "deletion does not end the window");
}

async fn a_condition_is_looked_at_before_a_duplicate_is(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    put_with_id(&bus, "q.a", "job.1").await;
    let how = Publish { message_id: Some("job.1".into()), expect_last_on_subject: Some(77), headers: vec![] };
    assert_eq!(bus.publish("q.a", "x".into(), how).await, Err(BusError::WrongLastSequence));
}

async fn answered_already_is_told_from_no_room(bus: Shared) {
    bus.ensure_stream(&StreamSpec { max_messages: Some(1), ..plain("R", "r.>") }).await.unwrap();
    put_expecting(&bus, "r.job.w1", 0).await.unwrap();
    assert_eq!(put_expecting(&bus, "r.job.w1", 0).await, Err(BusError::WrongLastSequence));
    let other = put_expecting(&bus, "r.job.w2", 0).await;
    assert!(matches!(other, Err(BusError::Full { .. })), "{other:?}");
}

async fn a_full_stream_refuses_and_takes_again_after_a_deletion(bus: Shared) {
    bus.ensure_stream(&StreamSpec { max_messages: Some(2), ..queue() }).await.unwrap();
    put(&bus, "q.a", "1").await.unwrap();
    put(&bus, "q.a", "2").await.unwrap();
    assert!(matches!(put(&bus, "q.a", "3").await, Err(BusError::Full { .. })));
    assert!(bus.delete_message("Q", 1).await.unwrap());
    assert_eq!(put(&bus, "q.a", "3").await.unwrap().sequence, 3);
}

async fn a_stream_that_drops_old_messages_never_refuses(bus: Shared) {
    let spec = StreamSpec { max_messages: Some(2), discard_new: false, ..plain("E", "e.>") };
    bus.ensure_stream(&spec).await.unwrap();
    for _ in 0..5 {
        put(&bus, "e.x", "x").await.unwrap();
    }
    let facts = bus.stream_facts("E").await.unwrap();
    assert_eq!((facts.first_sequence, facts.last_sequence, facts.messages), (4, 5, 2));
}

async fn a_claim_by_another_fences_the_old_owner(bus: Shared) {
    let spec = StreamSpec { max_messages_per_subject: Some(1), discard_new: false, ..plain("C", "c.>") };
    bus.ensure_stream(&spec).await.unwrap();
    let claim = put_expecting(&bus, "c.job", 0).await.unwrap();
    let checkpoint = put_expecting(&bus, "c.job", claim).await.unwrap();
    put_expecting(&bus, "c.other", 0).await.unwrap();
    let takeover = put_expecting(&bus, "c.job", checkpoint).await.unwrap();
    assert_eq!(put_expecting(&bus, "c.job", checkpoint).await, Err(BusError::WrongLastSequence));
    assert_eq!(put_expecting(&bus, "c.job", 0).await, Err(BusError::WrongLastSequence));
    assert!(put_expecting(&bus, "c.job", takeover).await.is_ok());
}

async fn a_subject_whose_message_was_deleted_expects_none(bus: Shared) {
    bus.ensure_stream(&plain("C", "c.>")).await.unwrap();
    let first = put_expecting(&bus, "c.job", 0).await.unwrap();
    assert!(bus.delete_message("C", first).await.unwrap());
    assert!(put_expecting(&bus, "c.job", 0).await.is_ok());
}

async fn only_the_last_message_of_a_subject_is_kept(bus: Shared) {
    let spec = StreamSpec { max_messages_per_subject: Some(1), discard_new: false, ..plain("C", "c.>") };
    bus.ensure_stream(&spec).await.unwrap();
    for text in ["1", "2", "3"] {
        put(&bus, "c.job", text).await.unwrap();
    }
    put(&bus, "c.other", "o").await.unwrap();
    let last = bus.last_on_subject("C", "c.job").await.unwrap().unwrap();
    assert_eq!((last.sequence, last.payload.as_ref(), last.subject.as_str()), (3, &b"3"[..], "c.job"));
    assert_eq!(bus.stream_facts("C").await.unwrap().messages, 2);
    assert_eq!(bus.message("C", 1).await.unwrap(), None);
}

async fn a_subject_that_holds_all_it_may_refuses_until_a_deletion(bus: Shared) {
    let spec =
        StreamSpec { max_messages_per_subject: Some(1), discard_new_per_subject: true, ..plain("R", "r.>") };
    bus.ensure_stream(&spec).await.unwrap();
    let first = bus.publish("r.a", "1".into(), Publish::default()).await.unwrap();
    let second = bus.publish("r.a", "2".into(), Publish::default()).await;
    assert!(matches!(second, Err(BusError::Full { .. })), "{second:?}");
    assert_eq!(put_expecting(&bus, "r.a", 0).await, Err(BusError::WrongLastSequence));
    bus.publish("r.b", "1".into(), Publish::default()).await.unwrap();
    assert!(bus.delete_message("R", first.sequence).await.unwrap());
    put_expecting(&bus, "r.a", 0).await.unwrap();
}

async fn a_message_over_the_limit_is_refused_for_good(bus: Shared) {
    bus.ensure_stream(&StreamSpec { max_message_bytes: Some(64), ..queue() }).await.unwrap();
    let refused = put(&bus, "q.a", &"x".repeat(100)).await;
    assert!(matches!(refused, Err(BusError::Refused(_))), "{refused:?}");
}

async fn a_subject_of_no_stream_is_not_found(bus: Shared) {
    assert!(matches!(put(&bus, "nowhere.x", "x").await, Err(BusError::NotFound(_))));
    assert!(matches!(bus.stream_facts("Q").await, Err(BusError::NotFound(_))));
    assert!(matches!(bus.last_on_subject("Q", "q.a").await, Err(BusError::NotFound(_))));
    assert!(matches!(bus.replay("Q", "q.>", 1).await.map(drop), Err(BusError::NotFound(_))));
    assert!(matches!(bus.ensure_consumer(&consumer("a", "q.a")).await, Err(BusError::NotFound(_))));
}

async fn many_in_flight_are_stored_in_order(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    let mut pending = Vec::new();
    for i in 0..500u32 {
        let payload = Bytes::copy_from_slice(&i.to_le_bytes());
        pending.push(bus.enqueue("q.a", payload, Publish::default()).await.unwrap());
    }
    for (i, ack) in pending.into_iter().enumerate() {
        assert_eq!(ack.await.unwrap().sequence, i as u64 + 1);
    }
    let seventh = bus.message("Q", 7).await.unwrap().unwrap();
    assert_eq!(seventh.payload.as_ref(), 6u32.to_le_bytes());
}

async fn a_stream_is_ensured_twice_and_changed_in_place(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    put(&bus, "q.a", "1").await.unwrap();
    assert_eq!(bus.ensure_stream(&queue()).await.unwrap().messages, 1);
    bus.ensure_stream(&StreamSpec { max_messages: Some(1), ..queue() }).await.unwrap();
    assert!(matches!(put(&bus, "q.a", "2").await, Err(BusError::Full { .. })));
}

async fn retention_cannot_be_changed(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    let changed = bus.ensure_stream(&plain("Q", "q.>")).await;
    assert!(matches!(changed, Err(BusError::Refused(_))), "{changed:?}");
}
