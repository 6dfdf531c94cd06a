//! Replays: the content in order, the mark, then what comes.

use super::*;
use futures::StreamExt;
use ternfleet_proto::bus::{BusStream, Replayed};

on_both!(
    an_empty_stream_is_caught_up_at_once,
    content_comes_in_order_then_the_mark_then_the_new,
    a_replay_begins_where_it_is_told_and_keeps_to_its_filter,
    deleted_messages_are_skipped_and_the_mark_still_comes,
    a_filter_that_matches_nothing_is_caught_up_at_once,
    two_replays_do_not_disturb_each_other,
    a_replay_that_is_over_leaves_no_consumer,
);

type Items = BusStream<Result<Replayed, BusError>>;

async fn next(items: &mut Items) -> Option<(u64, String)> {
    let item = tokio::time::timeout(Duration::from_secs(20), items.next()).await.expect("an item in time");
    match item.expect("a replay never ends").unwrap() {
        Replayed::Message(message) => {
            Some((message.sequence, String::from_utf8(message.payload.to_vec()).unwrap()))
        }
        Replayed::CaughtUp => None,
    }
}

async fn an_empty_stream_is_caught_up_at_once(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    let mut items = bus.replay("R", "r.>", 0).await.unwrap();
    assert_eq!(next(&mut items).await, None);
    put(&bus, "r.a", "1").await.unwrap();
    assert_eq!(next(&mut items).await, Some((1, "1".into())));
}

async fn content_comes_in_order_then_the_mark_then_the_new(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    const N: u64 = 3_000;
    let mut acks = Vec::new();
    for i in 1..=N {
        acks.push(bus.enqueue("r.a", Bytes::from(i.to_string()), Publish::default()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
    let mut items = bus.replay("R", "r.>", 1).await.unwrap();
    put(&bus, "r.b", "later").await.unwrap();
    for i in 1..=N {
        assert_eq!(next(&mut items).await, Some((i, i.to_string())));
    }
    assert_eq!(next(&mut items).await, None);
    assert_eq!(next(&mut items).await, Some((N + 1, "later".into())));
    put(&bus, "r.b", "latest").await.unwrap();
    assert_eq!(next(&mut items).await, Some((N + 2, "latest".into())));
}

async fn a_replay_begins_where_it_is_told_and_keeps_to_its_filter(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    for (subject, text) in [("r.a.1", "1"), ("r.b.1", "2"), ("r.a.2", "3"), ("r.a.3", "4")] {
        put(&bus, subject, text).await.unwrap();
    }
    let mut items = bus.replay("R", "r.a.*", 2).await.unwrap();
    assert_eq!(next(&mut items).await, Some((3, "3".into())));
    assert_eq!(next(&mut items).await, Some((4, "4".into())));
    assert_eq!(next(&mut items).await, None);
    let mut beyond = bus.replay("R", "r.>", 100).await.unwrap();
    assert_eq!(next(&mut beyond).await, None);
}

async fn deleted_messages_are_skipped_and_the_mark_still_comes(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    for text in ["1", "2", "3", "4"] {
        put(&bus, "r.a", text).await.unwrap();
    }
    bus.delete_message("R", 2).await.unwrap();
    let mut items = bus.replay("R", "r.>", 1).await.unwrap();
    assert_eq!(next(&mut items).await, Some((1, "1".into())));
    bus.delete_message("R", 4).await.unwrap();
    let mut rest = Vec::new();
    while let Some((sequence, _)) = next(&mut items).await {
        rest.push(sequence);
    }
    // A bus that had fetched the fourth before its deletion may still show it.
    assert!(rest == [3] || rest == [3, 4], "{rest:?}");
}

async fn a_filter_that_matches_nothing_is_caught_up_at_once(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    put(&bus, "r.a", "1").await.unwrap();
    let mut items = bus.replay("R", "r.b.>", 1).await.unwrap();
    assert_eq!(next(&mut items).await, None);
}

async fn two_replays_do_not_disturb_each_other(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    for text in ["1", "2"] {
        put(&bus, "r.a", text).await.unwrap();
    }
    let mut first = bus.replay("R", "r.>", 1).await.unwrap();
    let mut second = bus.replay("R", "r.>", 2).await.unwrap();
    assert_eq!(next(&mut first).await, Some((1, "1".into())));
    assert_eq!(next(&mut second).await, Some((2, "2".into())));
    assert_eq!(next(&mut first).await, Some((2, "2".into())));
    assert_eq!((next(&mut first).await, next(&mut second).await), (None, None));
}

async fn a_replay_that_is_over_leaves_no_consumer(bus: Shared) {
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    for _ in 0..5 {
        let mut items = bus.replay("R", "r.>", 1).await.unwrap();
        assert_eq!(next(&mut items).await, None);
    }
    // Far less than the age at which the server itself removes one.
    let began = std::time::Instant::now();
    while !bus.consumers("R").await.unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "consumers are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
