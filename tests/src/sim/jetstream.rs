//! All streams, buckets and objects of one simulated server. Synchronous; the caller says what time it is.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::TimeMs;
use ternfleet_proto::bus::{
    BusError, Delivery, Entry, Message, ObjectFacts, Publish, Result, Settle, Stored, StreamFacts,
};
use ternfleet_proto::table::{self, ConsumerSpec, Keeps, KvSpec, Retention, StreamSpec};

use super::consumer::Consumer;
use super::stream::Stream;

/// The server's default when a stream names no limit.
const CONSUMERS_MAX: i32 = 1000;

/// A simulated server with JetStream.
#[derive(Debug, Default)]
pub struct JetStream {
    streams: BTreeMap<String, Stream>,
    buckets: BTreeMap<String, BTreeMap<String, (Bytes, TimeMs)>>,
}

/// The unsynced streams of a server at some moment.
#[derive(Debug)]
pub(super) struct Unsynced(BTreeMap<String, Stream>);

impl JetStream {
    /// As `Bus::ensure_stream`.
    pub fn ensure_stream(&mut self, spec: &StreamSpec) -> Result<StreamFacts> {
        if let Some(stream) = self.streams.get_mut(&spec.name) {
            if stream.spec.retention != spec.retention {
                let reason = "stream configuration update can not change retention policy (10052)";
                return Err(BusError::Refused(format!("stream {}: {reason}", spec.name)));
            }
            stream.spec = spec.clone();
            return Ok(stream.facts());
        }
        let stream = Stream::new(spec.clone());
        let facts = stream.facts();
        self.streams.insert(spec.name.clone(), stream);
        Ok(facts)
    }

    pub fn stream_facts(&self, stream: &str) -> Result<StreamFacts> {
        // A bucket of objects is a stream too; its messages are not simulated, their bytes are.
        match stream.strip_prefix("OBJ_").and_then(|bucket| self.buckets.get(bucket)) {
            Some(objects) => Ok(StreamFacts {
                first_sequence: 1,
                last_sequence: objects.len() as u64,
                messages: objects.len() as u64,
                bytes: objects.values().map(|(content, _)| content.len() as u64).sum(),
                bytes_max: None,
            }),
            None => self.stream(stream).map(Stream::facts),
        }
    }

    pub fn ensure_consumer(&mut self, spec: &ConsumerSpec) -> Result<()> {
        let stream = self.stream_mut(&spec.stream)?;
        if let Some(consumer) = stream.consumers.get_mut(&spec.name) {
            consumer.spec = spec.clone();
            return Ok(());
        }
        if stream.consumers.len() as i32 >= stream.spec.max_consumers.unwrap_or(CONSUMERS_MAX) {
            return Err(BusError::Refused("maximum consumers limit reached (10026)".into()));
        }
        let overlaps = |a: &str, b: &str| super::subject_matches(a, b) || super::subject_matches(b, a);
        if stream.is_work_queue() && stream.consumers.values().any(|c| overlaps(&c.spec.filter, &spec.filter))
        {
            return Err(BusError::Refused("filtered consumer not unique on workqueue stream (10100)".into()));
        }
        stream.consumers.insert(spec.name.clone(), Consumer::new(spec.clone()));
        Ok(())
    }

    pub fn delete_consumer(&mut self, stream: &str, consumer: &str) -> Result<()> {
        let gone = self.stream_mut(stream)?.consumers.remove(consumer);
        gone.map(drop).ok_or_else(|| BusError::NotFound(format!("consumer {consumer} of {stream}")))
    }

    pub fn consumers(&self, stream: &str) -> Result<Vec<String>> {
        Ok(self.stream(stream)?.consumers.keys().cloned().collect())
    }

    pub fn publish(&mut self, now: TimeMs, subject: &str, payload: Bytes, how: &Publish) -> Result<Stored> {
        let stream = self.streams.values_mut().find(|stream| stream.takes(subject));
        let stream = stream.ok_or_else(|| BusError::NotFound(format!("a stream for {subject}")))?;
        stream.publish(now, subject, payload, how)
    }

    /// What is there for the consumer now, at most `max`.
    pub fn pull(&mut self, now: TimeMs, stream: &str, consumer: &str, max: usize) -> Result<Vec<Delivery>> {
        let missing = || BusError::NotFound(format!("consumer {consumer} of {stream}"));
        let kept = self.streams.get_mut(stream).ok_or_else(missing)?;
        kept.age(now);
        // Taken out while it looks into its own stream.
        let mut state = kept.consumers.remove(consumer).ok_or_else(missing)?;
        let mut deliveries = Vec::new();
        while deliveries.len() < max {
            let Some((sequence, delivered)) =
                state.take(now, |filter, from| kept.next_matching(filter, from))
            else {
                break;
            };
            let Some(message) = kept.message(sequence) else { continue };
            deliveries.push(Delivery {
                stream: stream.to_owned(),
                subject: message.subject,
                sequence,
                payload: message.payload,
                delivered,
                reply: format!("sim.ack.{stream}.{consumer}.{sequence}"),
            });
        }
        kept.consumers.insert(consumer.to_owned(), state);
        Ok(deliveries)
    }

    /// When a message may come back to the consumer by the passing of time alone.
    pub fn next_return(&self, stream: &str, consumer: &str) -> Option<TimeMs> {
        self.streams.get(stream)?.consumers.get(consumer)?.next_return()
    }

    pub fn settle(&mut self, now: TimeMs, delivery: &Delivery, how: Settle) -> Result<()> {
        let mut tokens = delivery.reply.trim_start_matches("sim.ack.").split('.');
        let (stream, consumer) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default());
        let sequence = delivery.sequence;
        let Ok(stream) = self.stream_mut(stream) else { return gone(how, sequence) };
        let work_queue = stream.is_work_queue();
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return gone(how, sequence) };
        match how {
            // A late ack of a deleted message is answered like any other: it proves no ownership.
            Settle::Ack | Settle::Term => {
                if consumer.settle(sequence) && work_queue {
                    stream.remove(sequence);
                }
            }
            Settle::Nak(delay) => consumer.give_back(now, sequence, delay),
            Settle::Progress => consumer.extend(now, sequence),
        }
        Ok(())
    }

    pub fn last_on_subject(&mut self, now: TimeMs, stream: &str, subject: &str) -> Result<Option<Message>> {
        let stream = self.stream_mut(stream)?;
        stream.age(now);
        Ok(stream.message(stream.last_of(subject)))
    }

    pub fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>> {
        Ok(self.stream(stream)?.message(sequence))
    }

    pub fn delete_message(&mut self, stream: &str, sequence: u64) -> Result<bool> {
        Ok(self.stream_mut(stream)?.remove(sequence))
    }

    /// Of what lies before the sequence.
    pub fn purge(&mut self, stream: &str, filter: &str, before: u64) -> Result<u64> {
        Ok(self.stream_mut(stream)?.purge(filter, before))
    }

    /// First message at or after `from` that matches the filter, for replays.
    pub fn next_message(&self, stream: &str, filter: &str, from: u64) -> Result<Option<Message>> {
        let stream = self.stream(stream)?;
        Ok(stream.next_matching(filter, from).and_then(|sequence| stream.message(sequence)))
    }

    /// Makes a stream refuse all publishes, as on a full disk, or take them again.
    pub fn set_no_room(&mut self, stream: &str, no_room: bool) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.no_room = no_room;
        }
    }

    /// What is not synced before it is acknowledged, as it is on the disk by now.
    pub(super) fn unsynced(&self) -> Unsynced {
        let unsynced = self.streams.iter().filter(|(_, stream)| stream.is_unsynced());
        Unsynced(unsynced.map(|(name, stream)| (name.clone(), stream.clone())).collect())
    }

    /// The server starts again: its consumers were in its memory.
    pub(super) fn restart(&mut self) {
        self.streams.values_mut().for_each(|stream| stream.consumers.clear());
    }

    /// The power fails, and the server comes back: of what is not synced, what was on the disk is left.
    pub(super) fn lose_since(&mut self, disk: &Unsynced) {
        for (name, stream) in self.streams.iter_mut().filter(|(_, stream)| stream.is_unsynced()) {
            match disk.0.get(name) {
                Some(synced) => stream.lose_since(synced),
                None => stream.lose_since(&Stream::new(stream.spec.clone())),
            }
        }
        self.restart();
    }

    pub fn ensure_kv(&mut self, spec: &KvSpec) -> Result<()> {
        let stream = StreamSpec {
            name: table::kv_stream(&spec.bucket),
            subjects: vec![table::kv_values(&spec.bucket)],
            keeps: Keeps::Truth,
            retention: Retention::Limits,
            replicas: spec.replicas,
            max_age: spec.max_age,
            max_bytes: None,
            max_messages: None,
            max_messages_per_subject: Some(spec.history),
            max_message_bytes: None,
            max_consumers: None,
            duplicate_window: Duration::from_secs(120),
            discard_new: true,
            discard_new_per_subject: false,
            unsynced: false,
        };
        self.ensure_stream(&stream).map(drop)
    }

    pub fn kv_get(&mut self, now: TimeMs, bucket: &str, key: &str) -> Result<Option<Entry>> {
        let stream = self.stream_mut(&table::kv_stream(bucket))?;
        stream.age(now);
        let sequence = stream.last_of(&format!("$KV.{bucket}.{key}"));
        Ok(stream.kept(sequence).filter(|kept| !kept.marker).map(|kept| Entry {
            key: key.to_owned(),
            value: kept.payload.clone(),
            revision: sequence,
        }))
    }

    pub fn kv_set(
        &mut self,
        now: TimeMs,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        let headers = ttl.map(|ttl| ("Nats-TTL".to_owned(), format!("{}s", ttl.as_secs().max(1))));
        let how = Publish {
            expect_last_on_subject: revision,
            headers: headers.into_iter().collect(),
            message_id: None,
        };
        Ok(self.publish(now, &format!("$KV.{bucket}.{key}"), value, &how)?.sequence)
    }

    pub fn kv_create(
        &mut self,
        now: TimeMs,
        bucket: &str,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        if self.kv_get(now, bucket, key)?.is_some() {
            return Err(BusError::Exists(format!("{key} in {bucket}")));
        }
        self.kv_set(now, bucket, key, value, None, ttl)
    }

    pub fn kv_delete(&mut self, now: TimeMs, bucket: &str, key: &str, revision: Option<u64>) -> Result<()> {
        let how = Publish {
            expect_last_on_subject: revision,
            headers: vec![("KV-Operation".into(), "DEL".into())],
            message_id: None,
        };
        self.publish(now, &format!("$KV.{bucket}.{key}"), Bytes::new(), &how).map(drop)
    }

    pub fn kv_entries(&mut self, now: TimeMs, bucket: &str) -> Result<Vec<Entry>> {
        let stream = self.stream_mut(&table::kv_stream(bucket))?;
        stream.age(now);
        let mut last = BTreeMap::new();
        for (sequence, kept) in stream.all() {
            let key = table::kv_key(bucket, &kept.subject).unwrap_or(&kept.subject).to_owned();
            let entry = Entry { key: key.clone(), value: kept.payload.clone(), revision: sequence };
            last.insert(key, (kept.marker, entry));
        }
        Ok(last.into_values().filter(|(marker, _)| !marker).map(|(_, entry)| entry).collect())
    }

    pub fn ensure_objects(&mut self, bucket: &str) {
        self.buckets.entry(bucket.to_owned()).or_default();
    }

    pub fn object_put(&mut self, now: TimeMs, bucket: &str, name: &str, content: Bytes) -> Result<()> {
        self.bucket_mut(bucket)?.insert(name.to_owned(), (content, now));
        Ok(())
    }

    pub fn object(&self, bucket: &str, name: &str) -> Result<Option<Bytes>> {
        let missing = || BusError::NotFound(format!("stream OBJ_{bucket}"));
        Ok(self.buckets.get(bucket).ok_or_else(missing)?.get(name).map(|(content, _)| content.clone()))
    }

    pub fn object_list(&self, bucket: &str) -> Result<Vec<ObjectFacts>> {
        let missing = || BusError::NotFound(format!("stream OBJ_{bucket}"));
        let objects = self.buckets.get(bucket).ok_or_else(missing)?;
        let facts = |(name, (content, at)): (&String, &(Bytes, TimeMs))| ObjectFacts {
            name: name.clone(),
            bytes: content.len() as u64,
            modified: *at,
        };
        Ok(objects.iter().map(facts).collect())
    }

    pub fn object_delete(&mut self, bucket: &str, name: &str) -> Result<()> {
        self.bucket_mut(bucket)?.remove(name);
        Ok(())
    }

    fn bucket_mut(&mut self, bucket: &str) -> Result<&mut BTreeMap<String, (Bytes, TimeMs)>> {
        self.buckets.get_mut(bucket).ok_or_else(|| BusError::NotFound(format!("stream OBJ_{bucket}")))
    }

    fn stream(&self, name: &str) -> Result<&Stream> {
        self.streams.get(name).ok_or_else(|| BusError::NotFound(format!("stream {name}")))
    }

    fn stream_mut(&mut self, name: &str) -> Result<&mut Stream> {
        self.streams.get_mut(name).ok_or_else(|| BusError::NotFound(format!("stream {name}")))
    }
}

/// An ack to a consumer that is gone is not answered; other settlements are sent without waiting for an answer.
fn gone(how: Settle, sequence: u64) -> Result<()> {
    match how {
        Settle::Ack => Err(BusError::NotFound(format!("the consumer of message {sequence}"))),
        _ => Ok(()),
    }
}
