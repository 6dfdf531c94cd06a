//! Reading a stream from a sequence on, in order, forever: across reconnects and server restarts, with neither gap
//! nor repeat.
//!
//! An unacknowledged pull consumer is made for each replay and made again, from the last sequence seen, at any doubt:
//! a gap in its own numbering, a missing heartbeat, its deletion.

use std::time::Duration;

use async_nats::{Client, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;

use super::pull::Position;
use super::{NatsBus, api, reconnect_delay};
use crate::bus::{BusError, BusStream, Message, Replayed, Result};

/// Messages and bytes of one pull: enough to hide the round trip, little enough to hold in memory.
const FETCH_MESSAGES: usize = 1024;
const FETCH_BYTES: usize = 8 << 20;
const FETCH_EXPIRES: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which the pull is taken for lost.
const SILENCE: Duration = Duration::from_millis(2_500);
/// The server drops the consumer when nobody pulled for so long; a slow reader gets a new one.
const INACTIVE: Duration = Duration::from_secs(30);

struct Replay {
    bus: NatsBus,
    stream: String,
    filter: String,
    next_sequence: u64,
    /// Messages still to come before the end as it was when the replay was asked for; `None` once it was reached.
    until_caught_up: Option<u64>,
    consumer: Option<Consumer>,
    failures: usize,
    ended: bool,
}

/// A consumer at the server, which is deleted when the replay is over: NATS allows a stream 1,000 of them, and one that is
/// left goes only after [`INACTIVE`].
struct Consumer {
    client: Client,
    stream: String,
    name: String,
    consumer_sequence: u64,
    fetch: Option<Fetch>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Without a runtime the process ends, and the consumer goes by its age.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, call) =
            (self.client.clone(), format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.name));
        runtime.spawn(async move {
            if let Err(error) = client.publish(call, Bytes::new()).await {
                tracing::debug!(%error, "a consumer is left to its age");
            }
        });
    }
}

struct Fetch {
    answers: Subscriber,
    left: usize,
}

/// What one turn of the loop brought.
enum Turn {
    Message(Message, Position),
    /// Nothing now; continue with this consumer.
    Quiet,
    /// Go on with a new consumer.
    Doubt,
}

pub(super) async fn open(
    bus: NatsBus,
    stream: &str,
    filter: &str,
    from_sequence: u64,
) -> Result<BusStream<Result<Replayed>>> {
    let mut replay = Replay {
        bus,
        stream: stream.to_owned(),
        filter: filter.to_owned(),
        next_sequence: from_sequence.max(1),
        until_caught_up: None,
        consumer: None,
        failures: 0,
        ended: false,
    };
    // The first consumer is made here, so that "the end at the time of asking" means this call.
    replay.until_caught_up = Some(replay.create_consumer().await?);
    Ok(Box::pin(stream::unfold(replay, |mut replay| async move {
        let item = replay.next().await?;
        Some((item, replay))
    })))
}

impl Replay {
    async fn next(&mut self) -> Option<Result<Replayed>> {
        if self.ended {
            return None;
        }
        loop {
            if self.until_caught_up == Some(0) {
                self.until_caught_up = None;
                return Some(Ok(Replayed::CaughtUp));
            }
            match self.turn().await {
                Ok(Turn::Message(message, position)) => {
                    self.failures = 0;
                    self.next_sequence = message.sequence + 1;
                    if let Some(left) = &mut self.until_caught_up {
                        *left = (*left - 1).min(position.pending);
                    }
                    return Some(Ok(Replayed::Message(message)));
                }
                Ok(Turn::Quiet) => {}
                Ok(Turn::Doubt) => self.consumer = None,
                Err(reason @ (BusError::NotFound(_) | BusError::Refused(_))) => {
                    self.ended = true;
                    return Some(Err(reason));
                }
                Err(reason) => {
                    self.consumer = None;
                    self.failures += 1;
                    tracing::debug!(stream = self.stream, %reason, "replay interrupted; retrying");
                    tokio::time::sleep(reconnect_delay(self.failures)).await;
                }
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn> {
        if self.consumer.is_none() {
            let pending = self.create_consumer().await?;
            if let Some(left) = &mut self.until_caught_up {
                *left = pending.min(*left);
            }
            return Ok(Turn::Quiet);
        }
        let Some(consumer) = &mut self.consumer else { return Ok(Turn::Doubt) };
        let Some(fetch) = consumer.fetch.as_mut().filter(|fetch| fetch.left > 0) else {
            consumer.fetch = Some(start_fetch(&self.bus, &self.stream, &consumer.name).await?);
            return Ok(Turn::Quiet);
        };
        let Ok(Some(message)) = tokio::time::timeout(SILENCE, fetch.answers.next()).await else {
            return Ok(Turn::Doubt);
        };
        match message.status {
            None => {
                let reply = message.reply.as_ref().map(|reply| reply.to_string()).unwrap_or_default();
                let Some(position) = Position::parse(&reply) else { return Ok(Turn::Doubt) };
                fetch.left -= 1;
                consumer.consumer_sequence += 1;
                if position.consumer_sequence != consumer.consumer_sequence {
                    return Ok(Turn::Doubt);
                }
                let message = Message {
                    subject: message.subject.to_string(),
                    sequence: position.stream_sequence,
                    payload: message.payload,
                };
                Ok(Turn::Message(message, position))
            }
            Some(StatusCode::IDLE_HEARTBEAT) if self.until_caught_up.is_some() => {
                // Nothing comes although something should: what was to come has been deleted meanwhile.
                let left = pending(&self.bus, &self.stream, &consumer.name).await?;
                self.until_caught_up = self.until_caught_up.map(|before| before.min(left));
                Ok(Turn::Quiet)
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(Turn::Quiet),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => {
                consumer.fetch = None;
                Ok(Turn::Quiet)
            }
            // Deleted, another leader, shutting down: a new consumer tells which.
            Some(_) => Ok(Turn::Doubt),
        }
    }

    /// Answers how many messages the new consumer has before it.
    async fn create_consumer(&mut self) -> Result<u64> {
        let name = format!("replay-{}", self.bus.client.new_inbox().rsplit('.').next().unwrap_or("x"));
        let body = json!({
            "stream_name": self.stream,
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self.next_sequence,
                "ack_policy": "none",
                "filter_subject": self.filter,
                "replay_policy": "instant",
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": INACTIVE.as_nanos() as u64,
            },
        });
        let call = format!("CONSUMER.CREATE.{}.{name}.{}", self.stream, self.filter);
        let created: Pending = self.bus.api(&call, &body, &format!("stream {}", self.stream)).await?;
        let (client, stream) = (self.bus.client.clone(), self.stream.clone());
        self.consumer = Some(Consumer { client, stream, name, consumer_sequence: 0, fetch: None });
        Ok(created.num_pending)
    }
}

#[derive(Deserialize)]
struct Pending {
    num_pending: u64,
}

async fn pending(bus: &NatsBus, stream: &str, consumer: &str) -> Result<u64> {
    let call = format!("CONSUMER.INFO.{stream}.{consumer}");
    let info: Result<Pending> = bus.api(&call, &json!({}), &format!("consumer {consumer}")).await;
    match info {
        Ok(info) => Ok(info.num_pending),
        // Not the stream: this consumer, which is then made again.
        Err(BusError::NotFound(what)) => Err(BusError::Unreachable(what)),
        Err(other) => Err(other),
    }
}

async fn start_fetch(bus: &NatsBus, stream: &str, consumer: &str) -> Result<Fetch> {
    let inbox = bus.client.new_inbox();
    let answers = bus.client.subscribe(inbox.clone()).await.map_err(api::send_failed)?;
    let request = json!({
        "batch": FETCH_MESSAGES,
        "max_bytes": FETCH_BYTES,
        "expires": FETCH_EXPIRES.as_nanos() as u64,
        "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
    });
    let call = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
    let payload = Bytes::from(request.to_string());
    bus.client.publish_with_reply(call, inbox, payload).await.map_err(api::send_failed)?;
    Ok(Fetch { answers, left: FETCH_MESSAGES })
}
