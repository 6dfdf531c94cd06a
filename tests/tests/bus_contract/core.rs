//! Core subjects: heard by whoever listens now, kept for nobody.

use super::*;
use futures::StreamExt;

on_both!(
    a_note_reaches_every_listener_whose_filter_matches,
    a_note_sent_before_the_subscription_is_not_heard,
    a_request_is_answered_on_its_reply_subject,
    a_request_to_nobody_fails_at_once,
    a_request_without_an_answer_fails_in_time,
);

async fn a_note_reaches_every_listener_whose_filter_matches(bus: Shared) {
    let mut one = bus.subscribe("f.heartbeat.*").await.unwrap();
    let mut all = bus.subscribe("f.>").await.unwrap();
    bus.send("f.heartbeat.w1", "1".into()).await.unwrap();
    bus.send("f.control.w1", "2".into()).await.unwrap();
    let note = one.next().await.unwrap();
    assert_eq!((note.subject.as_str(), note.payload.as_ref()), ("f.heartbeat.w1", &b"1"[..]));
    assert_eq!(all.next().await.unwrap().payload.as_ref(), b"1");
    assert_eq!(all.next().await.unwrap().payload.as_ref(), b"2");
}

async fn a_note_sent_before_the_subscription_is_not_heard(bus: Shared) {
    bus.send("f.x", "early".into()).await.unwrap();
    let mut notes = bus.subscribe("f.x").await.unwrap();
    bus.send("f.x", "now".into()).await.unwrap();
    assert_eq!(notes.next().await.unwrap().payload.as_ref(), b"now");
}

async fn a_request_is_answered_on_its_reply_subject(bus: Shared) {
    let mut asked = bus.subscribe("api.*").await.unwrap();
    let answering = tokio::spawn({
        let bus = bus.clone();
        async move {
            let note = asked.next().await.unwrap();
            bus.send(&note.reply.unwrap(), format!("{} heard", note.subject).into()).await.unwrap();
        }
    });
    let answer = bus.request("api.pods", "?".into(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(answer.as_ref(), b"api.pods heard");
    answering.await.unwrap();
}

async fn a_request_to_nobody_fails_at_once(bus: Shared) {
    let began = tokio::time::Instant::now();
    let answer = bus.request("api.nobody", "?".into(), Duration::from_secs(20)).await;
    assert!(matches!(answer, Err(BusError::Unreachable(_))), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

async fn a_request_without_an_answer_fails_in_time(bus: Shared) {
    let _deaf = bus.subscribe("api.deaf").await.unwrap();
    let answer = bus.request("api.deaf", "?".into(), SOON).await;
    assert!(matches!(answer, Err(BusError::Unreachable(_))), "{answer:?}");
}
