//! What only a real server can show: the connection and the server going away and coming back.

use super::*;
use futures::StreamExt;
use ternfleet_proto::bus::{Replayed, Settle};
use ternfleet_proto::nats::{ConnectOptions, connect};
use ternfleet_proto::table;
use ternfleet_tests::server::{NatsServer, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_reported_in_bounded_time() {
    let url = format!("nats://127.0.0.1:{}", free_port().unwrap());
    let options = ConnectOptions { url: url.clone(), first_connect_ms: 500, ..ConnectOptions::default() };
    let began = tokio::time::Instant::now();
    let Err(BusError::Unreachable(reason)) = connect(&options).await.map(drop) else {
        panic!("it connected")
    };
    assert!(reason.contains(&url) && reason.contains("start nats-server"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_none_is_refused() {
    let options = ConnectOptions { url: "nats://:port".into(), ..ConnectOptions::default() };
    assert!(matches!(connect(&options).await.map(drop), Err(BusError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_survives_the_servers_death_without_gap_or_repeat() {
    let mut server = NatsServer::start_with("sync_interval: always").unwrap();
    let bus = server.bus().await.unwrap();
    bus.ensure_stream(&plain("R", "r.>")).await.unwrap();
    for i in 1..=100u64 {
        put(&bus, "r.a", &i.to_string()).await.unwrap();
    }
    let mut items = bus.replay("R", "r.>", 1).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 50 {
        if let Replayed::Message(message) = items.next().await.unwrap().unwrap() {
            seen.push(message.sequence);
        }
    }
    server.kill();
    let lost = put(&bus, "r.a", "lost").await;
    assert!(matches!(lost, Err(BusError::Unreachable(_))), "{lost:?}");
    tokio::task::block_in_place(|| server.restart()).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while put(&bus, "r.a", "after").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no way back to the server");
    }
    let last = bus.stream_facts("R").await.unwrap().last_sequence;
    let mut marks = 0;
    while seen.last() != Some(&last) {
        let item =
            tokio::time::timeout(Duration::from_secs(30), items.next()).await.expect("the replay goes on");
        match item.unwrap().unwrap() {
            Replayed::Message(message) => seen.push(message.sequence),
            Replayed::CaughtUp => marks += 1,
        }
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    assert!(marks <= 1, "the mark comes once");
    assert!(bus.connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_of_the_table_is_taken_by_the_server() {
    let server = NatsServer::start().unwrap();
    let bus = server.bus().await.unwrap();
    for _ in 0..2 {
        for spec in table::streams(1) {
            bus.ensure_stream(&spec).await.unwrap_or_else(|reason| panic!("{}: {reason}", spec.name));
        }
        bus.ensure_stream(&table::work_stream_spec(0, 1)).await.unwrap();
        for spec in table::kv_specs(1) {
            bus.ensure_kv(&spec).await.unwrap();
        }
        bus.ensure_objects(&table::files_spec(&"acme".parse().unwrap(), 1)).await.unwrap();
        for spec in table::work_consumers(0, &"w1".parse().unwrap()) {
            bus.ensure_consumer(&spec).await.unwrap();
        }
    }
    assert!(table::server_is_new_enough(&bus.server().version));
    // The advisory about the consumers just made is caught by its stream.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while bus.stream_facts(table::ADVISORIES).await.unwrap().messages == 0 {
        assert!(tokio::time::Instant::now() < deadline, "no advisory was stored");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_is_kept_in_memory_even_if_an_earlier_version_made_it() {
    let mut server = NatsServer::start_with("sync_interval: always").unwrap();
    let bus: Shared = server.bus().await.unwrap();
    bus.ensure_stream(&queue()).await.unwrap();
    let on_disk = r#"{"stream_name": "Q", "config": {"durable_name": "a", "deliver_policy": "all", "ack_policy": "explicit", "filter_subject": "q.a"}}"#;
    let asked = bus.request("$JS.API.CONSUMER.CREATE.Q.a.q.a", on_disk.into(), SOON * 10).await.unwrap();
    assert!(!String::from_utf8_lossy(&asked).contains("error"), "{asked:?}");
    put(&bus, "q.a", "1").await.unwrap();
    put(&bus, "q.a", "2").await.unwrap();
    let before = pull(&bus, 1, SOON).await;
    bus.settle(&before[0], Settle::Ack).await.unwrap();

    bus.ensure_consumer(&consumer("a", "q.a")).await.unwrap();
    assert_eq!(texts(&pull(&bus, 5, SOON).await), ["2"]);

    // Somebody waits for work meanwhile: it ends with the connection.
    bus.ensure_consumer(&consumer("b", "q.b")).await.unwrap();
    let waiting = Arc::clone(&bus);
    let waiting = tokio::spawn(async move { waiting.pull("Q", "b", 1, Duration::from_secs(60)).await });
    tokio::time::sleep(SOON).await;
    server.kill();
    let ended =
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it still waits").unwrap();
    assert!(matches!(ended, Err(BusError::Unreachable(_))), "{ended:?}");
    tokio::task::block_in_place(|| server.restart()).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match bus.pull("Q", "a", 5, SOON).await {
            Err(BusError::NotFound(_)) => break,
            Err(BusError::Unreachable(_)) => {}
            other => panic!("{other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "no way back to the server");
    }
    bus.ensure_consumer(&consumer("a", "q.a")).await.unwrap();
    assert_eq!(texts(&pull(&bus, 5, SOON).await), ["2"], "the work is still there");
}
