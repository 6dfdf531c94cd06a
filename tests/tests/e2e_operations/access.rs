//! Permissions on a real cluster: what each role may do works, and everything else is refused by the server.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use ternfleet_proto::bus::{Bus, BusError, Publish};
use ternfleet_proto::message::{BatchRef, BatchView, Refusal, Reply};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{JobKey, Lane, TenantId, WorkerId, codec};
use ternfleet_tests::cluster::Cluster;

use crate::fleet;

const SOON: Duration = Duration::from_secs(2);

fn job() -> JobKey {
    JobKey { batch: "batch_x".parse().unwrap(), index: 3 }
}

fn words() -> Bytes {
    Bytes::from_static(b"words")
}

/// The server itself refused, and did so at once.
fn is_refused<T: std::fmt::Debug>(answer: Result<T, BusError>, what: &str) {
    match answer {
        Err(BusError::Refused(reason)) if reason.contains("may not use") => {}
        other => panic!("{what} should have been refused, but: {other:?}"),
    }
}

/// Sends core messages that must not arrive, then one that must: that one alone is heard.
async fn only_the_last_arrives(coordinator: &dyn Bus, by: &dyn Bus, forbidden: &[String], allowed: &str) {
    let mut heard = coordinator.subscribe("tf.>").await.unwrap();
    // The two may be connected to different servers, and interest takes a moment from one to the other.
    let mut tries = 0;
    loop {
        by.send(allowed, words()).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(100), heard.next()).await {
            Ok(Some(note)) if note.subject == allowed => break,
            _ => tries += 1,
        }
        assert!(tries < 100, "what is allowed does not arrive either: {allowed}");
    }
    for subject in forbidden {
        by.send(subject, words()).await.unwrap();
    }
    by.send(allowed, words()).await.unwrap();
    loop {
        let note = tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
        assert!(!forbidden.contains(&note.subject), "{} got through", note.subject);
        if note.subject == allowed {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_forbidden_act_is_refused_by_the_server() {
    let cluster = Cluster::start(3).unwrap();
    let _coordinator = fleet::coordinator(&cluster, "c-1", &["--replicas", "3"]);
    let coordinator = cluster.coordinator_bus().await.unwrap();
    workers_keep_to_their_own(&cluster, &*coordinator).await;
    tenants_keep_to_their_own(&cluster, &*coordinator).await;
    joiners_join_and_nothing_else(&cluster).await;
    without_credentials_nobody_comes_in(&cluster).await;
}

async fn workers_keep_to_their_own(cluster: &Cluster, coordinator: &dyn Bus) {
    let (me, other): (WorkerId, WorkerId) = ("w-1".parse().unwrap(), "w-2".parse().unwrap());
    let tenant: TenantId = "acme".parse().unwrap();
    for worker in [&me, &other] {
        for consumer in table::work_consumers(0, worker) {
            coordinator.ensure_consumer(&consumer).await.unwrap();
        }
    }
    let work = table::work(0, &me, Lane::Batch);
    coordinator.publish(&work, words(), Publish::default()).await.unwrap();
    let bus = cluster.bus(&cluster.user("worker", "w-1").unwrap()).await.unwrap();
    let stream = table::work_stream(0);

    // What a worker does all day.
    let pulled = bus.pull(&stream, &table::work_consumer(&me, Lane::Batch), 1, SOON).await.unwrap();
    assert_eq!(pulled.len(), 1);
    bus.settle(&pulled[0], ternfleet_proto::bus::Settle::Ack).await.unwrap();
    let once = Publish { expect_last_on_subject: Some(0), ..Publish::default() };
    bus.publish(&table::checkpoint(&job()), words(), once.clone()).await.unwrap();
    let claim = bus.last_on_subject(table::CHECKPOINTS, &table::checkpoint(&job())).await.unwrap();
    assert_eq!(claim.unwrap().payload, words());
    bus.publish(&table::result(&tenant, &job(), &me), words(), once.clone()).await.unwrap();
    assert!(!bus.may_read_results());
    let mut questions = bus.subscribe(&table::count(&me)).await.unwrap();
    let answering = bus.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            answering.send(&question.reply.unwrap(), words()).await.unwrap();
        }
    });
    let mut tries = 0;
    while coordinator.request(&table::count(&me), Bytes::new(), SOON).await != Ok(words()) {
        tries += 1;
        assert!(tries < 10, "a worker cannot answer the coordinator");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // What it must not.
    let plain = Publish::default;
    is_refused(
        bus.pull(&stream, &table::work_consumer(&other, Lane::Batch), 1, SOON).await,
        "another's work",
    );
    is_refused(bus.publish(&table::result(&tenant, &job(), &other), words(), once).await, "another's result");
    is_refused(bus.publish(&work, words(), plain()).await, "work");
    is_refused(bus.publish(&table::event("spent"), words(), plain()).await, "the books");
    is_refused(bus.ensure_stream(&table::work_stream_spec(7, 1)).await, "a new stream");
    is_refused(bus.ensure_consumer(&table::work_consumers(0, &me)[0]).await, "a consumer");
    is_refused(bus.delete_message(table::RESULTS, 1).await, "deleting an answer");
    is_refused(bus.purge(table::CHECKPOINTS, table::checkpoints_all()).await, "purging");
    is_refused(
        bus.last_on_subject(table::RESULTS, &table::result(&tenant, &job(), &me)).await,
        "reading answers",
    );
    is_refused(bus.kv_get(table::KV_CONTROL, "assignment_key").await, "the key of assignments");
    is_refused(bus.kv_put(table::KV_CONTROL, "leader", words()).await, "the leader's lease");
    is_refused(bus.object_length(&table::files_bucket(&tenant), "x").await, "a tenant's files");
    is_refused(bus.request(&table::api(ApiVerb::Pods), Bytes::new(), SOON).await, "a caller's verb");
    is_refused(bus.replay(table::RESULTS, table::results_all(), 1).await.map(drop), "following all answers");
    only_the_last_arrives(
        coordinator,
        &*bus,
        &[
            table::control_all().to_owned(),
            table::control(&other),
            table::heartbeat(&other),
            table::done(&job()),
            table::join("w-2"),
        ],
        &table::heartbeat(&me),
    )
    .await;

    // Nor does it hear what others are told.
    let mut foreign = bus.subscribe(&table::control(&other)).await.unwrap();
    let mut own = bus.subscribe(&table::control(&me)).await.unwrap();
    let mut heard = None;
    let end = tokio::time::Instant::now() + SOON;
    // Repeated, since the subscription has to reach the coordinator's server before a message finds its way.
    while heard.is_none() && tokio::time::Instant::now() < end {
        coordinator.send(&table::control(&other), words()).await.unwrap();
        coordinator.send(&table::control(&me), words()).await.unwrap();
        heard = tokio::time::timeout(Duration::from_millis(100), own.next()).await.ok().flatten();
    }
    assert_eq!(heard.unwrap().payload, words());
    assert!(tokio::time::timeout(Duration::from_millis(300), foreign.next()).await.is_err());
}

async fn tenants_keep_to_their_own(cluster: &Cluster, coordinator: &dyn Bus) {
    let (me, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "rival".parse().unwrap());
    let bus = cluster.bus(&cluster.user("tenant", "acme").unwrap()).await.unwrap();
    for tenant in [&me, &other] {
        coordinator.ensure_objects(&table::files_spec(tenant, 3)).await.unwrap();
    }
    let content = || Box::pin(std::io::Cursor::new(vec![7u8; 300_000]));
    let bucket = table::files_bucket(&me);
    assert_eq!(bus.object_put(&bucket, "in", content()).await.unwrap(), 300_000);
    let mut read = Vec::new();
    let mut object = bus.object_get(&bucket, "in", 200_000).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut read).await.unwrap();
    assert_eq!(read, vec![7u8; 100_000]);
    bus.object_delete(&bucket, "in").await.unwrap();

    let foreign = table::files_bucket(&other);
    is_refused(bus.object_put(&foreign, "in", content()).await, "another's file");
    is_refused(bus.object_get(&foreign, "in", 0).await.map(drop), "another's file");
    is_refused(bus.object_list(&bucket).await, "a consumer, even on its own files");
    is_refused(bus.ensure_objects(&table::files_spec(&me, 1)).await, "a bucket");
    is_refused(bus.kv_entries(table::KV_BATCHES).await, "the list of all batches");
    is_refused(bus.replay(table::RESULTS, table::results_all(), 1).await.map(drop), "all answers");
    let question = |tenant: &TenantId| {
        codec::encode(&BatchRef { tenant: tenant.clone(), id: "batch_none".parse().unwrap() })
    };
    let get = ApiVerb::BatchGet;
    is_refused(bus.request(&table::api(get), question(&other), SOON).await, "the gateway's way");
    is_refused(bus.request(&table::api_of(get, &other), question(&other), SOON).await, "another's name");
    is_refused(
        bus.request(&table::api_of(ApiVerb::JobCreate, &me), Bytes::new(), SOON).await,
        "a single job",
    );

    // Under its own name it may ask only about itself.
    let ask = async |tenant: &TenantId| -> Refusal {
        let answer = bus.request(&table::api_of(get, &me), question(tenant), SOON * 3).await.unwrap();
        codec::decode::<Reply<BatchView>>(&answer).unwrap().unwrap_err()
    };
    assert!(ask(&me).await.message.contains("no batch"));
    assert!(ask(&other).await.message.contains("belong to tenant acme"));
    only_the_last_arrives(
        coordinator,
        &*bus,
        &[
            table::control_all().to_owned(),
            table::work(0, &"w-1".parse().unwrap(), Lane::Batch),
            table::tokens(&job()),
        ],
        &table::api_of(get, &me),
    )
    .await;
}

async fn joiners_join_and_nothing_else(cluster: &Cluster) {
    let bus = cluster.bus(&cluster.user("joiner", "token-1").unwrap()).await.unwrap();
    is_refused(bus.request(&table::join("token-2"), Bytes::new(), SOON).await, "another's token");
    is_refused(bus.request(&table::api(ApiVerb::Pods), Bytes::new(), SOON).await, "the list of pods");
    is_refused(bus.last_on_subject(table::CHECKPOINTS, "tf.ckpt.a.0").await, "checkpoints");
}

async fn without_credentials_nobody_comes_in(cluster: &Cluster) {
    let refused = ternfleet_proto::nats::connect(&cluster.options()).await;
    assert!(matches!(refused, Err(BusError::Refused(_))), "{:?}", refused.map(drop));
    let plain = ternfleet_proto::nats::ConnectOptions {
        root_certificates: None,
        first_connect_ms: 500,
        ..cluster.options()
    };
    let untrusted = ternfleet_proto::nats::connect_as(&plain, &cluster.user("tenant", "acme").unwrap()).await;
    assert!(untrusted.is_err(), "a certificate that nobody vouches for was believed");
}
