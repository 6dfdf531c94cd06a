//! Streams, consumers and stored messages.

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{NatsBus, api};
use crate::bus::{BusError, PendingAck, Publish, Result, Stored, StreamFacts};
use crate::table::{ConsumerSpec, Retention, StreamSpec};

const PERSIST_MODE: &str = "persist_mode";

#[derive(Deserialize)]
struct Info {
    state: State,
    config: Limits,
}

#[derive(Deserialize)]
struct Limits {
    #[serde(default)]
    max_bytes: i64,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
}

#[derive(Deserialize)]
struct Configured {
    config: Persisting,
}

#[derive(Deserialize)]
struct Persisting {
    #[serde(default)]
    persist_mode: Option<String>,
}

#[derive(Deserialize)]
struct Ignored {}

/// The spec as JetStream's stream configuration.
pub(super) fn configuration(spec: &StreamSpec) -> Value {
    let mut configuration = json!({
        "name": spec.name,
        "subjects": spec.subjects,
        "storage": "file",
        "retention": match spec.retention { Retention::Limits => "limits", Retention::WorkQueue => "workqueue" },
        "discard": if spec.discard_new { "new" } else { "old" },
        "num_replicas": spec.replicas,
        "max_age": spec.max_age.map_or(0, |age| age.as_nanos() as u64),
        "max_bytes": spec.max_bytes.unwrap_or(-1),
        "max_msgs": spec.max_messages.unwrap_or(-1),
        "max_msgs_per_subject": spec.max_messages_per_subject.unwrap_or(-1),
        "max_msg_size": spec.max_message_bytes.unwrap_or(-1),
        "discard_new_per_subject": spec.discard_new_per_subject,
        "max_consumers": spec.max_consumers.unwrap_or(-1),
        "duplicate_window": spec.duplicate_window.as_nanos() as u64,
        "allow_direct": true,
    });
    if spec.unsynced {
        configuration[PERSIST_MODE] = json!("async");
    }
    configuration
}

impl NatsBus {
    /// Creates the stream, or updates the one that is there to these settings.
    /// How it persists stays as it was made: that cannot be changed.
    pub(super) async fn apply_stream(&self, mut configuration: Value) -> Result<StreamFacts> {
        const IN_USE_WITH_OTHER_SETTINGS: &str = "(10058)";
        let name = configuration["name"].as_str().unwrap_or_default().to_owned();
        let what = format!("stream {name}");
        let created: Result<Info> = self.api(&format!("STREAM.CREATE.{name}"), &configuration, &what).await;
        let info = match created {
            Err(BusError::Refused(reason)) if reason.ends_with(IN_USE_WITH_OTHER_SETTINGS) => {
                let found: Configured = self.api(&format!("STREAM.INFO.{name}"), &json!({}), &what).await?;
                configuration[PERSIST_MODE] =
                    found.config.persist_mode.unwrap_or_else(|| "default".into()).into();
                self.api(&format!("STREAM.UPDATE.{name}"), &configuration, &what).await?
            }
            other => other?,
        };
        Ok(facts_of(&info))
    }

    pub(super) async fn facts(&self, stream: &str) -> Result<StreamFacts> {
        let info: Info =
            self.api(&format!("STREAM.INFO.{stream}"), &json!({}), &format!("stream {stream}")).await?;
        Ok(facts_of(&info))
    }

    pub(super) async fn apply_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        const KEPT_ELSEWHERE: &str = "(10012)";
        let body = json!({
            "stream_name": spec.stream,
            "config": {
                "durable_name": spec.name,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": spec.ack_wait.as_nanos() as u64,
                "max_ack_pending": spec.max_ack_pending,
                "max_deliver": -1,
                "filter_subject": spec.filter,
                "replay_policy": "instant",
                "mem_storage": true,
            },
        });
        let call = format!("CONSUMER.CREATE.{}.{}.{}", spec.stream, spec.name, spec.filter);
        let what = format!("stream {} for consumer {}", spec.stream, spec.name);
        match self.api::<Ignored>(&call, &body, &what).await {
            // An earlier version kept its state on disk, which cannot be changed. What it has delivered comes once more.
            Err(BusError::Refused(reason)) if reason.ends_with(KEPT_ELSEWHERE) => {
                self.remove_consumer(&spec.stream, &spec.name).await?;
                self.api::<Ignored>(&call, &body, &what).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    pub(super) async fn remove_consumer(&self, stream: &str, consumer: &str) -> Result<()> {
        let call = format!("CONSUMER.DELETE.{stream}.{consumer}");
        self.api::<Ignored>(&call, &json!({}), &format!("consumer {consumer} of {stream}")).await.map(drop)
    }

    pub(super) async fn consumer_names(&self, stream: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<String>>,
        }
        let mut names: Vec<String> = Vec::new();
        loop {
            let body = json!({ "offset": names.len() });
            let page: Page =
                self.api(&format!("CONSUMER.NAMES.{stream}"), &body, &format!("stream {stream}")).await?;
            let more = page.consumers.unwrap_or_default();
            let ended = more.is_empty();
            names.extend(more);
            if ended || names.len() >= page.total {
                return Ok(names);
            }
        }
    }

    /// Sends the message; the answer resolves when the server has stored or refused it.
    pub(super) async fn start_publish(
        &self,
        subject: &str,
        payload: Bytes,
        how: Publish,
    ) -> Result<PendingAck> {
        let mut message = PublishMessage::build().payload(payload);
        for (name, value) in &how.headers {
            message = message.header(name.as_str(), value.as_str());
        }
        if let Some(id) = &how.message_id {
            message = message.message_id(id);
        }
        if let Some(sequence) = how.expect_last_on_subject {
            message = message.expected_last_subject_sequence(sequence);
        }
        let subject = subject.to_owned();
        let listener = self.refusals.listen();
        let sent = self.context.send_publish(subject.clone(), message).await;
        let pending = sent.map_err(|reason| api::publish_failed(&subject, &reason))?;
        Ok(Box::pin(async move {
            let stored = async {
                let ack = pending.await.map_err(|reason| api::publish_failed(&subject, &reason))?;
                Ok(Stored { sequence: ack.sequence, duplicate: ack.duplicate })
            };
            listener.or(&subject, stored).await
        }))
    }

    pub(super) async fn delete_stored(&self, stream: &str, sequence: u64) -> Result<bool> {
        // Without `no_erase` the server overwrites the block with random bytes; nothing here is that secret.
        let body = json!({ "seq": sequence, "no_erase": true });
        let deleted = self.api::<Ignored>(&format!("STREAM.MSG.DELETE.{stream}"), &body, "the message").await;
        match deleted {
            Ok(_) => Ok(true),
            Err(BusError::NotFound(what)) if what == "the message" => Ok(false),
            Err(BusError::NotFound(_)) => Err(BusError::NotFound(format!("stream {stream}"))),
            // "Stream message delete failed", whose cause only the description tells.
            Err(BusError::Refused(reason)) if reason.contains("no message found") => Ok(false),
            Err(other) => Err(other),
        }
    }

    pub(super) async fn purge_filtered(&self, stream: &str, filter: &str) -> Result<u64> {
        self.purge_by(stream, json!({ "filter": filter })).await
    }

    /// Of the filter's messages only those up to `sequence`, this one included.
    pub(super) async fn purge_up_to(&self, stream: &str, filter: &str, sequence: u64) -> Result<u64> {
        self.purge_by(stream, json!({ "filter": filter, "seq": sequence + 1 })).await
    }

    async fn purge_by(&self, stream: &str, body: Value) -> Result<u64> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let purged: Purged =
            self.api(&format!("STREAM.PURGE.{stream}"), &body, &format!("stream {stream}")).await?;
        Ok(purged.purged)
    }
}

fn facts_of(info: &Info) -> StreamFacts {
    StreamFacts {
        first_sequence: info.state.first_seq,
        last_sequence: info.state.last_seq,
        messages: info.state.messages,
        bytes: info.state.bytes,
        bytes_max: u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0),
    }
}
