//! One contract for every bus: each fact is checked on a real nats-server and on the simulated one.
//!
//! Each property of NATS on which the fleet depends is a test here, so a change in a newer server is detected.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::Bus;
use ternfleet_proto::bus::{BusError, Delivery, Publish, Stored};
use ternfleet_proto::table::{ConsumerSpec, Keeps, Retention, StreamSpec};

#[path = "bus_contract/consumers.rs"]
mod consumers;
#[path = "bus_contract/core.rs"]
mod core;
#[path = "bus_contract/publishing.rs"]
mod publishing;
#[path = "bus_contract/reconnecting.rs"]
mod reconnecting;
#[path = "bus_contract/replaying.rs"]
mod replaying;
#[path = "bus_contract/storing.rs"]
mod storing;

type Shared = Arc<dyn Bus>;

/// Stamps each fact twice: on a server of its own, and on the simulated bus, where time passes only while all wait.
macro_rules! on_both {
    ($($fact:ident),* $(,)?) => {
        mod real {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let server = ternfleet_tests::server::NatsServer::start().expect("a server");
                super::$fact(server.bus().await.expect("a connection")).await;
            })*
        }
        mod simulated {
            $(#[tokio::test(start_paused = true)]
            async fn $fact() {
                super::$fact(std::sync::Arc::new(ternfleet_tests::sim::SimBus::new())).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// Long enough to be seen, short enough to wait for.
const SOON: Duration = Duration::from_millis(300);
const ACK_WAIT: Duration = Duration::from_millis(1_000);

fn plain(name: &str, subject: &str) -> StreamSpec {
    StreamSpec {
        name: name.into(),
        subjects: vec![subject.into()],
        keeps: Keeps::Cache,
        retention: Retention::Limits,
        replicas: 1,
        max_age: None,
        max_bytes: None,
        max_messages: None,
        max_messages_per_subject: None,
        max_message_bytes: None,
        max_consumers: None,
        duplicate_window: Duration::from_secs(120),
        discard_new: true,
        discard_new_per_subject: false,
        unsynced: false,
    }
}

fn queue() -> StreamSpec {
    StreamSpec { retention: Retention::WorkQueue, ..plain("Q", "q.>") }
}

fn consumer(name: &str, filter: &str) -> ConsumerSpec {
    ConsumerSpec {
        stream: "Q".into(),
        name: name.into(),
        filter: filter.into(),
        ack_wait: ACK_WAIT,
        max_ack_pending: 100,
    }
}

/// A work queue with one consumer `a` on `q.a`.
async fn with_queue(bus: &Shared) {
    bus.ensure_stream(&queue()).await.unwrap();
    bus.ensure_consumer(&consumer("a", "q.a")).await.unwrap();
}

async fn put(bus: &Shared, subject: &str, text: &str) -> Result<Stored, BusError> {
    bus.publish(subject, Bytes::from(text.to_owned()), Publish::default()).await
}

async fn put_expecting(bus: &Shared, subject: &str, sequence: u64) -> Result<u64, BusError> {
    let how = Publish { expect_last_on_subject: Some(sequence), ..Publish::default() };
    bus.publish(subject, "x".into(), how).await.map(|stored| stored.sequence)
}

async fn put_with_id(bus: &Shared, subject: &str, id: &str) -> Stored {
    let how = Publish { message_id: Some(id.into()), ..Publish::default() };
    bus.publish(subject, "x".into(), how).await.unwrap()
}

async fn pull(bus: &Shared, max: usize, wait: Duration) -> Vec<Delivery> {
    bus.pull("Q", "a", max, wait).await.unwrap()
}

fn texts(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|d| std::str::from_utf8(&d.payload).unwrap()).collect()
}
