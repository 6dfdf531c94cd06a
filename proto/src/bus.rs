//! The bus as the shells see it: JetStream's operations that Ternfleet uses, with their exact refusals.
//!
//! `nats` implements it over a real server; the tests' simulation implements the same semantics in memory, and one
//! contract suite holds both to the same behaviour. No policy here: a method does one thing, once.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use tokio::io::AsyncRead;

use crate::table::{ConsumerSpec, KvSpec, ObjectSpec, StreamSpec};

/// What went wrong, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The subject already holds a message beyond the expected sequence (10071): somebody was first.
    #[error("the last sequence of the subject is not the expected one")]
    WrongLastSequence,
    /// The stream is at its limit (10077): keep the message, try again, raise an alarm.
    #[error("the stream {stream} is full: {reason}")]
    Full { stream: String, reason: String },
    /// Stream, consumer, key, object or message does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// Create-only, and it is there.
    #[error("{0} already exists")]
    Exists(String),
    /// No answer in time, or the connection is down; the operation may or may not have happened.
    #[error("no reply from NATS: {0}")]
    Unreachable(String),
    /// The server refuses this and will refuse it again.
    #[error("rejected by NATS: {0}")]
    Refused(String),
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub sequence: u64,
    /// The message id was seen inside the window: nothing was stored now.
    pub duplicate: bool,
}

/// A message read out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    pub sequence: u64,
    pub payload: Bytes,
}

/// A message handed to one puller, to be settled by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub stream: String,
    pub subject: String,
    pub sequence: u64,
    pub payload: Bytes,
    /// As counted by the server; sometimes wrong when consumers die, so only a hint.
    pub delivered: u64,
    /// Opaque: where the settlement goes.
    pub reply: String,
}

/// How a delivery ends, or continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Done. Waits until the server has confirmed it.
    Ack,
    /// Give it back, to be delivered again after the delay.
    Nak(Duration),
    /// Still working: the ack wait restarts.
    Progress,
    /// Never deliver again.
    Term,
}

/// Conditions and marks of a publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    pub message_id: Option<String>,
    /// Refuse with [`BusError::WrongLastSequence`] unless this is the subject's last sequence (0: none).
    pub expect_last_on_subject: Option<u64>,
    pub headers: Vec<(String, String)>,
}

/// A message on a core subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub subject: String,
    pub reply: Option<String>,
    pub payload: Bytes,
}

/// A value of a key-value bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    pub revision: u64,
}

/// An object as its bucket lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    pub name: String,
    pub bytes: u64,
    pub modified: crate::TimeMs,
}

/// Facts of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamFacts {
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub messages: u64,
    pub bytes: u64,
    pub bytes_max: Option<u64>,
}

/// An item of a replay: the stream's content up to its end at the time of asking, then `CaughtUp` once, then what
/// is stored later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    Message(Message),
    CaughtUp,
}

/// What the bus runs on: for `accepted`, `doctor` and the minimum version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    pub version: String,
    pub name: String,
    pub max_payload_bytes: usize,
    pub jetstream: bool,
}

pub type BusStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;
pub type Result<T> = std::result::Result<T, BusError>;
/// Resolves when the server has stored (or refused) an enqueued message.
pub type PendingAck = Pin<Box<dyn Future<Output = Result<Stored>> + Send>>;

/// Everything the fleet asks of NATS. Object-safe: shells hold `Arc<dyn Bus>`.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    fn server(&self) -> ServerFacts;
    /// True while the connection is up.
    fn connected(&self) -> bool;
    /// False when this connection's permissions leave other people's answers to the coordinator.
    fn may_read_results(&self) -> bool {
        true
    }

    // Streams and consumers.
    /// Creates the stream or brings its settings up to the spec.
    async fn ensure_stream(&self, spec: &StreamSpec) -> Result<StreamFacts>;
    async fn stream_facts(&self, stream: &str) -> Result<StreamFacts>;
    async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()>;
    async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<()>;
    async fn consumers(&self, stream: &str) -> Result<Vec<String>>;

    // Messages of streams.
    async fn publish(&self, subject: &str, payload: Bytes, how: Publish) -> Result<Stored>;
    /// Sends now, tells later: the caller bounds how many are in flight.
    async fn enqueue(&self, subject: &str, payload: Bytes, how: Publish) -> Result<PendingAck>;
    /// Up to `max` messages: those that are there, else the first to come within `expires`; empty when none came.
    /// A call that is dropped may take messages with it, to be delivered again after the ack wait: run it to its end.
    async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>>;
    async fn settle(&self, delivery: &Delivery, how: Settle) -> Result<()>;
    async fn last_on_subject(&self, stream: &str, subject: &str) -> Result<Option<Message>>;
    async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>>;
    /// True when it was there. Works on ack-pending messages too and stops their redelivery.
    async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool>;
    /// Removes every message of the subject filter; answers how many.
    async fn purge(&self, stream: &str, filter: &str) -> Result<u64>;
    /// As [`Bus::purge`], of what lies before a sequence: many messages are removed in steps, between which the stream
    /// takes others.
    async fn purge_before(&self, stream: &str, filter: &str, sequence: u64) -> Result<u64>;
    /// In stream order from `from_sequence` on, surviving reconnects without gap or repeat.
    async fn replay(
        &self,
        stream: &str,
        filter: &str,
        from_sequence: u64,
    ) -> Result<BusStream<Result<Replayed>>>;

    // Core subjects.
    async fn send(&self, subject: &str, payload: Bytes) -> Result<()>;
    async fn subscribe(&self, filter: &str) -> Result<BusStream<Note>>;
    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes>;

    // Key-value buckets.
    async fn ensure_kv(&self, spec: &KvSpec) -> Result<()>;
    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Entry>>;
    async fn kv_put(&self, bucket: &str, key: &str, value: Bytes) -> Result<u64>;
    /// [`BusError::Exists`] when the key holds a value. With a `ttl` (whole seconds, at least one) the server itself
    /// removes the value when nobody has replaced it in time: that is the leader's lease.
    async fn kv_create(&self, bucket: &str, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64>;
    /// Compare-and-set; [`BusError::WrongLastSequence`] when the revision moved on or the value has expired. A `ttl`
    /// restarts with the new value.
    async fn kv_update(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<u64>;
    /// With `revision`, only if it is still the last.
    async fn kv_delete(&self, bucket: &str, key: &str, revision: Option<u64>) -> Result<()>;
    /// All live entries.
    async fn kv_entries(&self, bucket: &str) -> Result<Vec<Entry>>;

    // Objects.
    async fn ensure_objects(&self, spec: &ObjectSpec) -> Result<()>;
    /// Streams `content` in; answers its length in bytes.
    async fn object_put(
        &self,
        bucket: &str,
        name: &str,
        content: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<u64>;
    /// Streams the object out, starting `from_byte` bytes in.
    async fn object_get(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>>;
    /// At most so many bytes of the object from there on, a round trip for each chunk: for readers of a part. What lies
    /// behind the object's end is left out.
    async fn object_part(&self, bucket: &str, name: &str, from_byte: u64, bytes: usize) -> Result<Bytes>;
    /// Length in bytes.
    async fn object_length(&self, bucket: &str, name: &str) -> Result<Option<u64>>;
    /// Every object of the bucket.
    async fn object_list(&self, bucket: &str) -> Result<Vec<ObjectFacts>>;
    async fn object_delete(&self, bucket: &str, name: &str) -> Result<()>;

    /// Sends what is buffered and closes.
    async fn close(&self);
}
