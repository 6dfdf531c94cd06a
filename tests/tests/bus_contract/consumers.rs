//! Work queues: delivery, settling, redelivery, and what deletion does to each.

use super::*;
use ternfleet_proto::bus::Settle;

on_both!(
    a_pull_takes_what_is_there_and_never_more_than_asked,
    a_pull_of_an_empty_queue_waits_and_then_returns_nothing,
    a_waiting_pull_wakes_with_the_first_message,
    a_message_that_comes_as_a_pull_ends_is_not_lost,
    an_acked_message_leaves_the_queue,
    an_unacked_message_comes_again_after_the_ack_wait,
    progress_holds_the_message,
    a_nak_brings_it_back_after_its_delay,
    a_terminated_message_never_comes_again,
    deleting_an_ack_pending_message_stops_its_redelivery,
    a_late_ack_of_a_deleted_message_answers_ok,
    a_second_consumer_of_the_same_work_is_refused,
    a_consumer_above_the_limit_is_refused,
    a_consumer_hands_out_only_its_own_subject,
    a_deleted_consumers_work_goes_to_its_successor,
    pulling_from_nothing_is_not_found,
    unacked_messages_are_bounded,
    consumers_are_ensured_twice_and_listed,
    purging_a_subject_takes_its_work_back,
);

async fn a_pull_takes_what_is_there_and_never_more_than_asked(bus: Shared) {
    with_queue(&bus).await;
    for text in ["1", "2", "3"] {
        put(&bus, "q.a", text).await.unwrap();
    }
    assert_eq!(texts(&pull(&bus, 2, SOON).await), ["1", "2"]);
    let began = tokio::time::Instant::now();
    let rest = bus.pull("Q", "a", 10, Duration::from_secs(10)).await.unwrap();
    assert_eq!(texts(&rest), ["3"]);
    assert!(began.elapsed() < Duration::from_secs(3), "it does not wait for a full batch");
    assert_eq!((rest[0].delivered, rest[0].sequence, rest[0].subject.as_str()), (1, 3, "q.a"));
    assert!(pull(&bus, 0, SOON).await.is_empty());
}

async fn a_pull_of_an_empty_queue_waits_and_then_returns_nothing(bus: Shared) {
    with_queue(&bus).await;
    let began = tokio::time::Instant::now();
    assert!(pull(&bus, 5, SOON).await.is_empty());
    assert!(began.elapsed() >= SOON && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

async fn a_waiting_pull_wakes_with_the_first_message(bus: Shared) {
    with_queue(&bus).await;
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.pull("Q", "a", 5, Duration::from_secs(20)).await }
    });
    tokio::time::sleep(SOON).await;
    let began = tokio::time::Instant::now();
    put(&bus, "q.a", "1").await.unwrap();
    let deliveries = waiting.await.unwrap().unwrap();
    assert_eq!(texts(&deliveries), ["1"]);
    assert!(began.elapsed() < Duration::from_secs(4));
}

async fn a_message_that_comes_as_a_pull_ends_is_not_lost(bus: Shared) {
    with_queue(&bus).await;
    let putting = tokio::spawn({
        let bus = bus.clone();
        async move {
            for n in 0..50u64 {
                // The pulls end every 10 ms: before, in and after the same moment.
                tokio::time::sleep(Duration::from_millis(5 + n % 12)).await;
                put(&bus, "q.a", "x").await.unwrap();
            }
        }
    });
    let mut came = 0;
    while came < 50 {
        for delivery in pull(&bus, 5, Duration::from_millis(10)).await {
            assert_eq!(delivery.delivered, 1, "message {} was delivered to nobody", delivery.sequence);
            bus.settle(&delivery, Settle::Ack).await.unwrap();
            came += 1;
        }
    }
    putting.await.unwrap();
}

async fn an_acked_message_leaves_the_queue(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let deliveries = pull(&bus, 1, SOON).await;
    bus.settle(&deliveries[0], Settle::Ack).await.unwrap();
    assert_eq!(bus.message("Q", 1).await.unwrap(), None);
    assert!(!bus.delete_message("Q", 1).await.unwrap());
}

async fn an_unacked_message_comes_again_after_the_ack_wait(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let first = pull(&bus, 1, SOON).await;
    assert!(pull(&bus, 1, Duration::ZERO).await.is_empty(), "it is out");
    let again = pull(&bus, 1, ACK_WAIT * 4).await;
    assert_eq!((again[0].sequence, again[0].delivered), (first[0].sequence, 2));
    // The first owner's ack counts all the same: it proves no ownership.
    bus.settle(&first[0], Settle::Ack).await.unwrap();
    assert!(pull(&bus, 1, ACK_WAIT * 2).await.is_empty());
}

async fn progress_holds_the_message(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let held = pull(&bus, 1, SOON).await;
    for _ in 0..4 {
        tokio::time::sleep(ACK_WAIT / 2).await;
        bus.settle(&held[0], Settle::Progress).await.unwrap();
        assert!(pull(&bus, 1, Duration::from_millis(50)).await.is_empty());
    }
    bus.settle(&held[0], Settle::Ack).await.unwrap();
}

async fn a_nak_brings_it_back_after_its_delay(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let first = pull(&bus, 1, SOON).await;
    bus.settle(&first[0], Settle::Nak(Duration::ZERO)).await.unwrap();
    let second = pull(&bus, 1, ACK_WAIT / 2).await;
    assert_eq!(second[0].delivered, 2, "at once");
    bus.settle(&second[0], Settle::Nak(SOON)).await.unwrap();
    assert!(pull(&bus, 1, Duration::from_millis(100)).await.is_empty());
    assert_eq!(pull(&bus, 1, Duration::from_secs(5)).await[0].delivered, 3);
}

async fn a_terminated_message_never_comes_again(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let deliveries = pull(&bus, 1, SOON).await;
    bus.settle(&deliveries[0], Settle::Term).await.unwrap();
    assert!(pull(&bus, 1, ACK_WAIT * 2).await.is_empty());
    assert_eq!(bus.stream_facts("Q").await.unwrap().messages, 0);
}

async fn deleting_an_ack_pending_message_stops_its_redelivery(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    put(&bus, "q.a", "2").await.unwrap();
    let out = pull(&bus, 1, SOON).await;
    assert!(bus.delete_message("Q", out[0].sequence).await.unwrap());
    assert!(!bus.delete_message("Q", out[0].sequence).await.unwrap(), "it is gone");
    let next = pull(&bus, 5, ACK_WAIT * 2).await;
    assert_eq!(texts(&next), ["2"]);
    bus.settle(&next[0], Settle::Ack).await.unwrap();
    assert!(pull(&bus, 5, ACK_WAIT * 2).await.is_empty());
}

async fn a_late_ack_of_a_deleted_message_answers_ok(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    let out = pull(&bus, 1, SOON).await;
    assert!(bus.delete_message("Q", 1).await.unwrap());
    assert_eq!(bus.settle(&out[0], Settle::Ack).await, Ok(()));
}

async fn a_second_consumer_of_the_same_work_is_refused(bus: Shared) {
    with_queue(&bus).await;
    for filter in ["q.a", "q.>"] {
        let refused = bus.ensure_consumer(&consumer("sweeper", filter)).await;
        assert!(matches!(&refused, Err(BusError::Refused(why)) if why.contains("10100")), "{refused:?}");
    }
    bus.ensure_consumer(&consumer("b", "q.b")).await.unwrap();
}

async fn a_consumer_above_the_limit_is_refused(bus: Shared) {
    bus.ensure_stream(&StreamSpec { max_consumers: Some(2), ..queue() }).await.unwrap();
    bus.ensure_consumer(&consumer("a", "q.a")).await.unwrap();
    bus.ensure_consumer(&consumer("b", "q.b")).await.unwrap();
    let refused = bus.ensure_consumer(&consumer("c", "q.c")).await;
    assert!(matches!(&refused, Err(BusError::Refused(why)) if why.contains("10026")), "{refused:?}");
    bus.delete_consumer("Q", "a").await.unwrap();
    bus.ensure_consumer(&consumer("c", "q.c")).await.unwrap();
}

async fn a_consumer_hands_out_only_its_own_subject(bus: Shared) {
    with_queue(&bus).await;
    bus.ensure_consumer(&consumer("b", "q.b")).await.unwrap();
    put(&bus, "q.b", "b1").await.unwrap();
    put(&bus, "q.a", "a1").await.unwrap();
    assert_eq!(texts(&pull(&bus, 5, SOON).await), ["a1"]);
    assert_eq!(texts(&bus.pull("Q", "b", 5, SOON).await.unwrap()), ["b1"]);
}

async fn a_deleted_consumers_work_goes_to_its_successor(bus: Shared) {
    with_queue(&bus).await;
    put(&bus, "q.a", "1").await.unwrap();
    put(&bus, "q.a", "2").await.unwrap();
    let out = pull(&bus, 1, SOON).await;
    bus.delete_consumer("Q", "a").await.unwrap();
    assert!(matches!(bus.settle(&out[0], Settle::Ack).await, Err(BusError::NotFound(_))));
    bus.ensure_consumer(&consumer("a", "q.a")).await.unwrap();
    let again = pull(&bus, 5, SOON).await;
    assert_eq!(texts(&again), ["1", "2"]);
    assert_eq!(
        again[0].delivered, 1,
        "the count of deliveries died with the consumer: count attempts ourselves"
    );
}

async fn pulling_from_nothing_is_not_found(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    assert!(matches!(bus.pull("Q", "ghost", 1, SOON).await, Err(BusError::NotFound(_))));
    assert!(matches!(bus.pull("NONE", "ghost", 1, SOON).await, Err(BusError::NotFound(_))));
    assert!(matches!(bus.delete_consumer("Q", "ghost").await, Err(BusError::NotFound(_))));
}

async fn unacked_messages_are_bounded(bus: Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    bus.ensure_consumer(&ConsumerSpec { max_ack_pending: 2, ..consumer("a", "q.a") }).await.unwrap();
    for text in ["1", "2", "3"] {
        put(&bus, "q.a", text).await.unwrap();
    }
    let out = pull(&bus, 2, SOON).await;
    assert_eq!(texts(&out), ["1", "2"]);
    assert!(bus.pull("Q", "a", 1, Duration::from_millis(100)).await.unwrap_or_default().is_empty());
    bus.settle(&out[0], Settle::Ack).await.unwrap();
    assert_eq!(texts(&pull(&bus, 1, SOON).await), ["3"]);
}

async fn consumers_are_ensured_twice_and_listed(bus: Shared) {
    with_queue(&bus).await;
    with_queue(&bus).await;
    bus.ensure_consumer(&consumer("b", "q.b")).await.unwrap();
    let mut names = bus.consumers("Q").await.unwrap();
    names.sort();
    assert_eq!(names, ["a", "b"]);
}

async fn purging_a_subject_takes_its_work_back(bus: Shared) {
    with_queue(&bus).await;
    for subject in ["q.a", "q.a", "q.b"] {
        put(&bus, subject, "x").await.unwrap();
    }
    let out = pull(&bus, 1, SOON).await;
    assert_eq!(out.len(), 1);
    assert_eq!(bus.purge("Q", "q.a").await.unwrap(), 2);
    assert!(pull(&bus, 5, ACK_WAIT * 2).await.is_empty());
    assert_eq!(bus.stream_facts("Q").await.unwrap().messages, 1);
}
