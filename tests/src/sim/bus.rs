//! The `Bus` trait over the simulated server, on tokio's clock: paused, time passes only when everybody waits.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use ternfleet_proto::TimeMs;
use ternfleet_proto::bus::{
    Bus, BusError, BusStream, Delivery, Entry, Message, Note, ObjectFacts, PendingAck, Publish, Replayed,
    Result, ServerFacts, Settle, Stored, StreamFacts,
};
use ternfleet_proto::table::{ConsumerSpec, KvSpec, ObjectSpec, StreamSpec};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::{JetStream, subject_matches};

/// NATS in memory. Clones share one server.
#[derive(Debug, Clone)]
pub struct SimBus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    time: Time,
    state: Mutex<State>,
    changed: Notify,
}

/// Where the server reads the time.
#[derive(Debug)]
enum Time {
    /// The runtime's, from here on.
    Since(Instant),
    /// What somebody else sets: several runtimes share this server.
    Set(Arc<AtomicU64>),
}

#[derive(Debug, Default)]
struct State {
    jetstream: JetStream,
    subscriptions: Vec<(String, mpsc::UnboundedSender<Note>)>,
    inboxes: u64,
}

impl Default for SimBus {
    fn default() -> Self {
        Self::new()
    }
}

impl SimBus {
    /// An empty server; call it inside a tokio runtime.
    pub fn new() -> SimBus {
        Self::on(Time::Since(Instant::now()))
    }

    /// An empty server for several runtimes, whose time in milliseconds is set from outside.
    pub(super) fn driven(now: Arc<AtomicU64>) -> SimBus {
        Self::on(Time::Set(now))
    }

    fn on(time: Time) -> SimBus {
        let shared = Shared { time, state: Mutex::default(), changed: Notify::new() };
        SimBus { shared: Arc::new(shared) }
    }

    /// Looks at what the server holds.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut JetStream, TimeMs) -> T) -> T {
        let now = self.now();
        look(&mut self.state().jetstream, now)
    }

    /// Makes a stream refuse publishes as on a full disk, or take them again.
    pub fn set_no_room(&self, stream: &str, no_room: bool) {
        self.state().jetstream.set_no_room(stream, no_room);
    }

    fn now(&self) -> TimeMs {
        match &self.shared.time {
            Time::Since(began) => TimeMs(began.elapsed().as_millis() as u64),
            Time::Set(now) => TimeMs(now.load(Ordering::Relaxed)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("because no holder of this lock panics")
    }

    fn changed(&self) {
        self.shared.changed.notify_waiters();
    }
}

#[async_trait]
impl Bus for SimBus {
    fn server(&self) -> ServerFacts {
        ServerFacts {
            version: "2.15.1".into(),
            name: "simulated".into(),
            max_payload_bytes: 1 << 20,
            jetstream: true,
        }
    }

    fn connected(&self) -> bool {
        true
    }

    async fn ensure_stream(&self, spec: &StreamSpec) -> Result<StreamFacts> {
        self.state().jetstream.ensure_stream(spec)
    }

    async fn stream_facts(&self, stream: &str) -> Result<StreamFacts> {
        self.state().jetstream.stream_facts(stream)
    }

    async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        self.state().jetstream.ensure_consumer(spec)
    }

    async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<()> {
        let deleted = self.state().jetstream.delete_consumer(stream, consumer);
        self.changed();
        deleted
    }

    async fn consumers(&self, stream: &str) -> Result<Vec<String>> {
        self.state().jetstream.consumers(stream)
    }

    async fn publish(&self, subject: &str, payload: Bytes, how: Publish) -> Result<Stored> {
        let now = self.now();
        let stored = self.state().jetstream.publish(now, subject, payload, &how);
        self.changed();
        stored
    }

    async fn enqueue(&self, subject: &str, payload: Bytes, how: Publish) -> Result<PendingAck> {
        let stored = self.publish(subject, payload, how).await;
        Ok(Box::pin(async move { stored }))
    }

    async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>> {
        let until = Instant::now() + expires;
        loop {
            let changed = self.shared.changed.notified();
            let now = self.now();
            let (deliveries, back) = {
                let mut state = self.state();
                let deliveries = state.jetstream.pull(now, stream, consumer, max)?;
                (deliveries, state.jetstream.next_return(stream, consumer))
            };
            if !deliveries.is_empty() || max == 0 || Instant::now() >= until {
                return Ok(deliveries);
            }
            let back = back.map_or(until, |at| Instant::now() + at.since(now).max(Duration::from_millis(1)));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(back.min(until)) => {}
            }
        }
    }

    async fn settle(&self, delivery: &Delivery, how: Settle) -> Result<()> {
        let now = self.now();
        let settled = self.state().jetstream.settle(now, delivery, how);
        self.changed();
        settled
    }

    async fn last_on_subject(&self, stream: &str, subject: &str) -> Result<Option<Message>> {
        let now = self.now();
        self.state().jetstream.last_on_subject(now, stream, subject)
    }

    async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>> {
        self.state().jetstream.message(stream, sequence)
    }

    async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool> {
        self.state().jetstream.delete_message(stream, sequence)
    }

    async fn purge(&self, stream: &str, filter: &str) -> Result<u64> {
        self.state().jetstream.purge(stream, filter, u64::MAX)
    }

    async fn purge_before(&self, stream: &str, filter: &str, sequence: u64) -> Result<u64> {
        self.state().jetstream.purge(stream, filter, sequence)
    }

    async fn replay(
        &self,
        stream: &str,
        filter: &str,
        from_sequence: u64,
    ) -> Result<BusStream<Result<Replayed>>> {
        let end = self.state().jetstream.stream_facts(stream)?.last_sequence;
        let cursor = Cursor {
            bus: self.clone(),
            stream: stream.to_owned(),
            filter: filter.to_owned(),
            next: from_sequence,
            end: Some(end),
        };
        Ok(Box::pin(stream::unfold(cursor, |mut cursor| async move {
            let item = cursor.next().await;
            Some((item, cursor))
        })))
    }

    async fn send(&self, subject: &str, payload: Bytes) -> Result<()> {
        self.tell(subject, None, &payload);
        Ok(())
    }

    async fn subscribe(&self, filter: &str) -> Result<BusStream<Note>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().subscriptions.push((filter.to_owned(), sender));
        Ok(Box::pin(stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|note| (note, receiver))
        })))
    }

    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes> {
        let inbox = {
            let mut state = self.state();
            state.inboxes += 1;
            format!("_INBOX.{}", state.inboxes)
        };
        let mut answers = self.subscribe(&inbox).await?;
        if self.tell(subject, Some(&inbox), &payload) == 0 {
            return Err(BusError::Unreachable(format!("no responder on {subject}")));
        }
        match tokio::time::timeout(timeout, answers.next()).await {
            Ok(Some(note)) => Ok(note.payload),
            _ => Err(BusError::Unreachable(format!("no reply on {subject} in time"))),
        }
    }

    async fn ensure_kv(&self, spec: &KvSpec) -> Result<()> {
        self.state().jetstream.ensure_kv(spec)
    }

    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        let now = self.now();
        self.state().jetstream.kv_get(now, bucket, key)
    }

    async fn kv_put(&self, bucket: &str, key: &str, value: Bytes) -> Result<u64> {
        let now = self.now();
        self.state().jetstream.kv_set(now, bucket, key, value, None, None)
    }

    async fn kv_create(&self, bucket: &str, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64> {
        let now = self.now();
        self.state().jetstream.kv_create(now, bucket, key, value, ttl)
    }

    async fn kv_update(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        let now = self.now();
        self.state().jetstream.kv_set(now, bucket, key, value, Some(revision), ttl)
    }

    async fn kv_delete(&self, bucket: &str, key: &str, revision: Option<u64>) -> Result<()> {
        let now = self.now();
        self.state().jetstream.kv_delete(now, bucket, key, revision)
    }

    async fn kv_entries(&self, bucket: &str) -> Result<Vec<Entry>> {
        let now = self.now();
        self.state().jetstream.kv_entries(now, bucket)
    }

    async fn ensure_objects(&self, spec: &ObjectSpec) -> Result<()> {
        self.state().jetstream.ensure_objects(&spec.bucket);
        Ok(())
    }

    async fn object_put(
        &self,
        bucket: &str,
        name: &str,
        mut content: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<u64> {
        let mut bytes = Vec::new();
        let read = content.read_to_end(&mut bytes).await;
        read.map_err(|reason| BusError::Refused(format!("the content cannot be read: {reason}")))?;
        let (length, now) = (bytes.len() as u64, self.now());
        self.state().jetstream.object_put(now, bucket, name, bytes.into())?;
        Ok(length)
    }

    async fn object_get(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        let missing = || BusError::NotFound(format!("object {name} in {bucket}"));
        let content = self.state().jetstream.object(bucket, name)?.ok_or_else(missing)?;
        let start = usize::try_from(from_byte).unwrap_or(usize::MAX).min(content.len());
        Ok(Box::pin(std::io::Cursor::new(content.slice(start..))))
    }

    async fn object_part(&self, bucket: &str, name: &str, from_byte: u64, bytes: usize) -> Result<Bytes> {
        let missing = || BusError::NotFound(format!("object {name} in {bucket}"));
        let content = self.state().jetstream.object(bucket, name)?.ok_or_else(missing)?;
        let start = usize::try_from(from_byte).unwrap_or(usize::MAX).min(content.len());
        Ok(content.slice(start..content.len().min(start + bytes)))
    }

    async fn object_length(&self, bucket: &str, name: &str) -> Result<Option<u64>> {
        Ok(self.state().jetstream.object(bucket, name)?.map(|content| content.len() as u64))
    }

    async fn object_list(&self, bucket: &str) -> Result<Vec<ObjectFacts>> {
        self.state().jetstream.object_list(bucket)
    }

    async fn object_delete(&self, bucket: &str, name: &str) -> Result<()> {
        self.state().jetstream.object_delete(bucket, name)
    }

    async fn close(&self) {}
}

impl SimBus {
    /// Answers how many heard it.
    fn tell(&self, subject: &str, reply: Option<&str>, payload: &Bytes) -> usize {
        let mut heard = 0;
        self.state().subscriptions.retain(|(filter, sender)| {
            if !subject_matches(filter, subject) {
                return !sender.is_closed();
            }
            let note = Note {
                subject: subject.to_owned(),
                reply: reply.map(str::to_owned),
                payload: payload.clone(),
            };
            let open = sender.send(note).is_ok();
            heard += usize::from(open);
            open
        });
        heard
    }
}

struct Cursor {
    bus: SimBus,
    stream: String,
    filter: String,
    next: u64,
    /// Last sequence when the replay was asked for; `None` once that was reached.
    end: Option<u64>,
}

impl Cursor {
    async fn next(&mut self) -> Result<Replayed> {
        loop {
            let changed = self.bus.shared.changed.notified();
            let found = self.bus.state().jetstream.next_message(&self.stream, &self.filter, self.next)?;
            let beyond =
                found.as_ref().is_none_or(|message| self.end.is_some_and(|end| message.sequence > end));
            if beyond && self.end.take().is_some() {
                return Ok(Replayed::CaughtUp);
            }
            if let Some(message) = found {
                self.next = message.sequence + 1;
                return Ok(Replayed::Message(message));
            }
            changed.await;
        }
    }
}
