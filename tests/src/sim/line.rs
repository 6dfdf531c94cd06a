//! One process's connection to the server: the `Bus` that its shell is given. It delays, loses and doubles, is cut and
//! restored, and shows the checker what passes.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use ternfleet_proto::TimeMs;
use ternfleet_proto::bus::{
    Bus, BusError, BusStream, Delivery, Entry, Message, Note, ObjectFacts, PendingAck, Publish, Replayed,
    Result, ServerFacts, Settle, Stored, StreamFacts,
};
use ternfleet_proto::table::{self, ConsumerSpec, KvSpec, ObjectSpec, StreamSpec};
use tokio::io::AsyncRead;

use super::network::Network;

/// How often somebody who waits for the line looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const WORK: &str = "tf.work.";
const ORDERS: &str = "tf.fleet.control.";
const EVENTS: &str = "tf.event.";
const BEATS: &str = "tf.fleet.heartbeat.";

#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) network: Network,
    pub(super) place: usize,
}

impl Line {
    pub(super) fn bus(self) -> Arc<dyn Bus> {
        Arc::new(self)
    }

    /// A request on its way to the server.
    async fn go(&self) -> Result<()> {
        if self.network.begins(self.place) {
            while self.network.is_stopped(self.place) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(self.network.latency_ms())).await;
        if self.network.request_arrives(self.place) { Ok(()) } else { Err(self.no_answer().await) }
    }

    /// Its answer on the way back.
    async fn back<T>(&self, done: Result<T>) -> Result<T> {
        tokio::time::sleep(Duration::from_millis(self.network.latency_ms())).await;
        if self.network.answer_arrives(self.place) { done } else { Err(self.no_answer().await) }
    }

    /// An operation of the server, with the way there and back.
    async fn round_trip<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        self.go().await?;
        let done = operation.await;
        self.back(done).await
    }

    async fn no_answer(&self) -> BusError {
        tokio::time::sleep(Duration::from_millis(self.network.patience_ms())).await;
        BusError::Unreachable("simulated".into())
    }

    async fn restored(&self) {
        while !self.network.is_up(self.place) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What the server holds after an operation.
    fn seen(&self) {
        let mut check = self.network.check();
        self.network.bus.look(|net, now| {
            check.results(net, now);
            check.checkpoints(net);
        });
    }

    fn payload(&self, stream: &str, sequence: u64) -> Option<Bytes> {
        let is_work = stream.starts_with("WORK");
        let message = is_work.then(|| self.network.bus.look(|net, _| net.message(stream, sequence)));
        message?.ok().flatten().map(|message| message.payload)
    }

    /// These messages are about to be removed.
    fn leaves(&self, stream: &str, filter: &str, sequences: Range<u64>) {
        if stream == table::RESULTS {
            let mut check = self.network.check();
            self.network.bus.look(|net, now| check.answers_leave(net, now, filter, sequences));
        }
    }

    fn recorded(&self, bucket: &str, key: &str, value: &Bytes, stored: &Result<u64>) {
        if stored.is_err() {
            return;
        }
        if bucket == table::KV_BATCHES {
            let now = self.network.bus.look(|_, now| now);
            self.network.check().recorded(now, value);
        } else if (bucket, key) == (table::KV_CONTROL, "account") {
            let now = self.network.bus.look(|_, now| now);
            self.network.check().account_stored(now);
        }
    }
}

#[async_trait]
impl Bus for Line {
    fn server(&self) -> ServerFacts {
        self.network.bus.server()
    }

    fn connected(&self) -> bool {
        self.network.is_up(self.place)
    }

    async fn ensure_stream(&self, spec: &StreamSpec) -> Result<StreamFacts> {
        self.round_trip(self.network.bus.ensure_stream(spec)).await
    }

    async fn stream_facts(&self, stream: &str) -> Result<StreamFacts> {
        self.round_trip(self.network.bus.stream_facts(stream)).await
    }

    async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        self.round_trip(self.network.bus.ensure_consumer(spec)).await
    }

    async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<()> {
        self.round_trip(self.network.bus.delete_consumer(stream, consumer)).await
    }

    async fn consumers(&self, stream: &str) -> Result<Vec<String>> {
        self.round_trip(self.network.bus.consumers(stream)).await
    }

    async fn publish(&self, subject: &str, payload: Bytes, how: Publish) -> Result<Stored> {
        self.go().await?;
        if subject.starts_with(WORK) {
            self.network.check().handed(&payload);
        } else if subject.starts_with(EVENTS) {
            self.network.check().noted(&payload);
        }
        let done = self.network.bus.publish(subject, payload, how).await;
        self.seen();
        self.back(done).await
    }

    async fn enqueue(&self, subject: &str, payload: Bytes, how: Publish) -> Result<PendingAck> {
        let (line, subject) = (self.clone(), subject.to_owned());
        Ok(Box::pin(async move { line.publish(&subject, payload, how).await }))
    }

    async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>> {
        self.round_trip(self.network.bus.pull(stream, consumer, max, expires)).await
    }

    async fn settle(&self, delivery: &Delivery, how: Settle) -> Result<()> {
        self.go().await?;
        let held = self.payload(&delivery.stream, delivery.sequence);
        let done = self.network.bus.settle(delivery, how).await;
        // After a loss of power the server gives out sequences again: an ack of a message that it has lost then removes the
        // one in its place. Its job is lost to nobody: this worker alone was given it, and holds it or is swept.
        let held = held.filter(|held| matches!(how, Settle::Ack) && *held == delivery.payload);
        if let Some(work) = held
            && self.payload(&delivery.stream, delivery.sequence).is_none()
        {
            let now = self.network.bus.look(|_, now| now);
            self.network.check().acked(now, &work);
        }
        self.back(done).await
    }

    async fn last_on_subject(&self, stream: &str, subject: &str) -> Result<Option<Message>> {
        self.round_trip(self.network.bus.last_on_subject(stream, subject)).await
    }

    async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>> {
        self.round_trip(self.network.bus.message(stream, sequence)).await
    }

    async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool> {
        self.go().await?;
        if let Some(work) = self.payload(stream, sequence) {
            self.network.check().revoked(&work);
        }
        self.leaves(stream, table::results_all(), sequence..sequence + 1);
        let done = self.network.bus.delete_message(stream, sequence).await;
        self.back(done).await
    }

    async fn purge(&self, stream: &str, filter: &str) -> Result<u64> {
        self.go().await?;
        self.leaves(stream, filter, 0..u64::MAX);
        let done = self.network.bus.purge(stream, filter).await;
        self.back(done).await
    }

    async fn purge_before(&self, stream: &str, filter: &str, sequence: u64) -> Result<u64> {
        self.go().await?;
        self.leaves(stream, filter, 0..sequence);
        let done = self.network.bus.purge_before(stream, filter, sequence).await;
        self.back(done).await
    }

    async fn replay(
        &self,
        stream: &str,
        filter: &str,
        from_sequence: u64,
    ) -> Result<BusStream<Result<Replayed>>> {
        self.go().await?;
        let replayed = self.network.bus.replay(stream, filter, from_sequence).await;
        let line = self.clone();
        Ok(Box::pin(self.back(replayed).await?.then(move |item| {
            let line = line.clone();
            async move {
                line.restored().await;
                item
            }
        })))
    }

    async fn send(&self, subject: &str, payload: Bytes) -> Result<()> {
        if self.go().await.is_ok() {
            if subject.starts_with(ORDERS) {
                self.network.check().ordered(&payload);
            } else if subject.starts_with(BEATS) {
                self.network.check().beat(TimeMs(self.network.now_ms()), subject, &payload);
            }
            for _ in 0..self.network.copies() {
                self.network.bus.send(subject, payload.clone()).await?;
            }
        }
        Ok(())
    }

    async fn subscribe(&self, filter: &str) -> Result<BusStream<Note>> {
        self.restored().await;
        let notes = self.network.bus.subscribe(filter).await?;
        let line = self.clone();
        // What was sent while the line was down is gone.
        Ok(Box::pin(notes.filter(move |_| std::future::ready(line.network.is_up(line.place)))))
    }

    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes> {
        self.round_trip(self.network.bus.request(subject, payload, timeout)).await
    }

    async fn ensure_kv(&self, spec: &KvSpec) -> Result<()> {
        self.round_trip(self.network.bus.ensure_kv(spec)).await
    }

    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        self.round_trip(self.network.bus.kv_get(bucket, key)).await
    }

    async fn kv_put(&self, bucket: &str, key: &str, value: Bytes) -> Result<u64> {
        self.go().await?;
        let done = self.network.bus.kv_put(bucket, key, value.clone()).await;
        self.recorded(bucket, key, &value, &done);
        self.back(done).await
    }

    async fn kv_create(&self, bucket: &str, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64> {
        self.go().await?;
        let done = self.network.bus.kv_create(bucket, key, value.clone(), ttl).await;
        self.recorded(bucket, key, &value, &done);
        self.back(done).await
    }

    async fn kv_update(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        self.go().await?;
        let done = self.network.bus.kv_update(bucket, key, value.clone(), revision, ttl).await;
        self.recorded(bucket, key, &value, &done);
        self.back(done).await
    }

    async fn kv_delete(&self, bucket: &str, key: &str, revision: Option<u64>) -> Result<()> {
        self.round_trip(self.network.bus.kv_delete(bucket, key, revision)).await
    }

    async fn kv_entries(&self, bucket: &str) -> Result<Vec<Entry>> {
        self.round_trip(self.network.bus.kv_entries(bucket)).await
    }

    async fn ensure_objects(&self, spec: &ObjectSpec) -> Result<()> {
        self.round_trip(self.network.bus.ensure_objects(spec)).await
    }

    async fn object_put(
        &self,
        bucket: &str,
        name: &str,
        content: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<u64> {
        self.round_trip(self.network.bus.object_put(bucket, name, content)).await
    }

    async fn object_get(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        self.round_trip(self.network.bus.object_get(bucket, name, from_byte)).await
    }

    async fn object_part(&self, bucket: &str, name: &str, from_byte: u64, bytes: usize) -> Result<Bytes> {
        self.round_trip(self.network.bus.object_part(bucket, name, from_byte, bytes)).await
    }

    async fn object_length(&self, bucket: &str, name: &str) -> Result<Option<u64>> {
        self.round_trip(self.network.bus.object_length(bucket, name)).await
    }

    async fn object_list(&self, bucket: &str) -> Result<Vec<ObjectFacts>> {
        self.round_trip(self.network.bus.object_list(bucket)).await
    }

    async fn object_delete(&self, bucket: &str, name: &str) -> Result<()> {
        self.round_trip(self.network.bus.object_delete(bucket, name)).await
    }

    async fn close(&self) {}
}
