//! [`Bus`] over a real NATS server with JetStream. The only place that names `async_nats`.
//!
//! The client library carries bytes, TLS, authentication and reconnection. JetStream's API itself is spoken here as
//! the JSON it is, so that each refusal keeps its code and every request is one the server documents.
//! Called by the shells' start-up code; everything else holds an `Arc<dyn Bus>`.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Client, ConnectError, ConnectErrorKind, Event, ServerError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::sync::watch;

use crate::access::Credentials;
use crate::bus::{
    Bus, BusError, BusStream, Delivery, Entry, Message, Note, ObjectFacts, PendingAck, Publish, Replayed,
    Result, ServerFacts, Settle, Stored, StreamFacts,
};
use crate::table::{ConsumerSpec, KvSpec, ObjectSpec, Role, StreamSpec};

mod api;
mod inspect;
mod join;
mod kv;
mod object;
mod pull;
mod refusals;
mod replay;
mod snapshot;
mod stream;

use refusals::Refusals;

pub use inspect::{AccountFacts, StreamFindings};
pub use join::{Joined, join, renew};

/// How long JetStream may take to answer one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Publishes that may wait for their acknowledgement at once; beyond it [`Bus::enqueue`] waits.
const ACKS_IN_FLIGHT: usize = 4096;
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);

/// Where the server is and who is calling.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectOptions {
    /// `nats://[user:password@]host:port`, `tls://…`; several, divided by commas, name one cluster.
    pub url: String,
    /// Shown by the server's monitoring.
    pub name: String,
    pub credentials_file: Option<PathBuf>,
    pub nkey_seed: Option<String>,
    pub token: Option<String>,
    /// Certificates to trust besides those of the system.
    pub root_certificates: Option<PathBuf>,
    /// How long the first connection is tried. Later ones are tried forever.
    pub first_connect_ms: u64,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            name: "ternfleet".to_owned(),
            credentials_file: None,
            nkey_seed: None,
            token: None,
            root_certificates: None,
            first_connect_ms: 10_000,
        }
    }
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = |present: bool| if present { "hidden" } else { "none" };
        f.debug_struct("ConnectOptions")
            .field("url", &without_password(&self.url))
            .field("name", &self.name)
            .field("credentials_file", &self.credentials_file)
            .field("nkey_seed", &secret(self.nkey_seed.is_some()))
            .field("token", &secret(self.token.is_some()))
            .field("root_certificates", &self.root_certificates)
            .finish_non_exhaustive()
    }
}

/// Connects, trying for [`ConnectOptions::first_connect_ms`]; once connected it reconnects forever.
///
/// # Errors
/// [`BusError::Unreachable`] when nothing answers in time, [`BusError::Refused`] when the address or the credentials
/// are wrong or the server has JetStream turned off.
pub async fn connect(options: &ConnectOptions) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(NatsBus::connect(options).await?))
}

/// As [`connect`], with credentials that may be renewed while the connection lasts.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(options: &ConnectOptions, credentials: &Credentials) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(NatsBus::connect_as(options, Some(credentials)).await?))
}

/// A connection to NATS and the JetStream behind it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NatsBus {
    client: Client,
    context: Context,
    /// `None` when there are no permissions to mind.
    role: Option<Role>,
    refusals: Refusals,
    /// How often the connection was lost: what a server was asked before that, no server answers.
    losses: watch::Receiver<u32>,
}

impl NatsBus {
    /// As [`connect`], with the concrete type.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(options: &ConnectOptions) -> Result<NatsBus> {
        match &options.credentials_file {
            Some(file) => {
                let cannot = |reason: String| {
                    BusError::Refused(format!("cannot use the credentials in {}: {reason}", file.display()))
                };
                let text =
                    tokio::fs::read_to_string(file).await.map_err(|fault| cannot(fault.to_string()))?;
                let credentials = Credentials::parse(&text).map_err(|fault| cannot(fault.to_string()))?;
                Self::connect_as(options, Some(&credentials)).await
            }
            None => Self::connect_as(options, None).await,
        }
    }

    async fn connect_as(options: &ConnectOptions, credentials: Option<&Credentials>) -> Result<NatsBus> {
        // Credentials of another maker carry no role: then the server's permissions are not ours to know.
        let holder = credentials.and_then(|credentials| credentials.holder().ok());
        let inbox = holder.as_ref().map(|holder| holder.role.inbox(&holder.name));
        let refusals = Refusals::new(holder.is_some());
        let (lost, losses) = watch::channel(0);
        let shown = without_password(&options.url);
        let servers: Vec<async_nats::ServerAddr> = options
            .url
            .split(',')
            .map(|one| one.trim().parse())
            .collect::<std::result::Result<_, _>>()
            .map_err(|reason| BusError::Refused(format!("{shown:?} is not a NATS address: {reason}")))?;
        let began = Instant::now();
        let patience = Duration::from_millis(options.first_connect_ms);
        let mut attempt = 0;
        let client = loop {
            match library_options(options, credentials, inbox.as_deref(), &refusals, &lost)
                .connect(&servers[..])
                .await
            {
                Ok(client) => break client,
                Err(reason) => {
                    let hopeless = matches!(
                        reason.kind(),
                        ConnectErrorKind::Authentication
                            | ConnectErrorKind::AuthorizationViolation
                            | ConnectErrorKind::ServerParse
                            | ConnectErrorKind::Tls
                    ) || is_shut_out(&reason);
                    if hopeless {
                        return Err(BusError::Refused(format!("{shown} rejects the credentials: {reason}")));
                    }
                    attempt += 1;
                    let pause = reconnect_delay(attempt);
                    if began.elapsed() + pause > patience {
                        return Err(BusError::Unreachable(format!(
                            "no server at {shown} within {:.1} s ({reason}); start nats-server with \
                             JetStream there, or use another address",
                            patience.as_secs_f64()
                        )));
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        };
        if !client.server_info().jetstream {
            return Err(BusError::Refused(format!(
                "JetStream is off at {shown}: start nats-server with -js"
            )));
        }
        let context = ContextBuilder::new()
            .timeout(ANSWER_WITHIN)
            .ack_timeout(ANSWER_WITHIN)
            .max_ack_inflight(ACKS_IN_FLIGHT)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Ok(NatsBus { client, context, role: holder.map(|holder| holder.role), refusals, losses })
    }
}

/// The library tells one refusal by its kind; that a user has expired or was revoked, the server says in words alone.
fn is_shut_out(reason: &ConnectError) -> bool {
    let said = std::error::Error::source(reason).and_then(|source| source.downcast_ref::<ServerError>());
    let Some(ServerError::Other(words)) = said else { return false };
    // Not "authentication timeout", which a loaded server says.
    let words = words.to_lowercase();
    words.contains("authentication expired") || words.contains("authentication revoked")
}

fn library_options(
    options: &ConnectOptions,
    credentials: Option<&Credentials>,
    inbox: Option<&str>,
    refusals: &Refusals,
    lost: &watch::Sender<u32>,
) -> async_nats::ConnectOptions {
    let fresh = match credentials.cloned() {
        Some(credentials) => async_nats::ConnectOptions::with_auth_callback(move |nonce| {
            let credentials = credentials.clone();
            async move {
                let mut auth = async_nats::Auth::new();
                auth.jwt = Some(credentials.token());
                auth.signature = Some(credentials.sign(&nonce).map_err(async_nats::AuthError::new)?);
                Ok(auth)
            }
        }),
        None => async_nats::ConnectOptions::new(),
    };
    let mut library = fresh
        .name(&options.name)
        .connection_timeout(Duration::from_secs(3))
        .request_timeout(Some(ANSWER_WITHIN))
        .ping_interval(Duration::from_secs(10))
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback({
            let (refusals, lost) = (refusals.clone(), lost.clone());
            move |event| {
                let (refusals, lost) = (refusals.clone(), lost.clone());
                async move {
                    match event {
                        Event::Connected => tracing::info!("connected to NATS"),
                        Event::Disconnected => {
                            lost.send_modify(|times| *times += 1);
                            tracing::warn!("connection to NATS lost, reconnecting");
                        }
                        Event::ServerError(error) => {
                            tracing::warn!(%error, "the NATS server rejected an operation");
                            refusals.hear(&error.to_string());
                        }
                        other => tracing::warn!(event = %other, "NATS client event"),
                    }
                }
            }
        });
    if let Some(prefix) = inbox {
        library = library.custom_inbox_prefix(prefix);
    }
    if let Some(seed) = &options.nkey_seed {
        library = library.nkey(seed.clone());
    }
    if let Some(token) = &options.token {
        library = library.token(token.clone());
    }
    match &options.root_certificates {
        Some(file) => library = library.add_root_certificates(file.clone()),
        None if options.url.contains("tls://") => {
            library = library.tls_client_config(public_authorities());
        }
        None => {}
    }
    library
}

/// Trust in the system's certificates and in those of public authorities, which are built in: an image may have none.
fn public_authorities() -> async_nats::rustls::ClientConfig {
    let mut roots = async_nats::rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    async_nats::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// 50 ms, doubling up to two seconds: a restarted server finds its clients back within its own start-up time.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1).min(8)).unwrap_or(8);
    (Duration::from_millis(50) * 2u32.pow(doublings)).min(RECONNECT_DELAY_MAX)
}

/// An address fit to be printed: what stands between `//` and `@` is left out.
fn without_password(url: &str) -> String {
    let one = |address: &str| match (address.find("//"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}{}", &address[..scheme + 2], &address[at + 1..])
        }
        _ => address.to_owned(),
    };
    url.split(',').map(one).collect::<Vec<_>>().join(",")
}

#[async_trait]
impl Bus for NatsBus {
    fn server(&self) -> ServerFacts {
        let info = self.client.server_info();
        ServerFacts {
            version: info.version,
            name: info.server_name,
            max_payload_bytes: info.max_payload,
            jetstream: info.jetstream,
        }
    }

    fn connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    fn may_read_results(&self) -> bool {
        matches!(self.role, None | Some(Role::Coordinator))
    }

    async fn ensure_stream(&self, spec: &StreamSpec) -> Result<StreamFacts> {
        self.apply_stream(stream::configuration(spec)).await
    }

    async fn stream_facts(&self, stream: &str) -> Result<StreamFacts> {
        self.facts(stream).await
    }

    async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        self.apply_consumer(spec).await
    }

    async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<()> {
        self.remove_consumer(stream, consumer).await
    }

    async fn consumers(&self, stream: &str) -> Result<Vec<String>> {
        self.consumer_names(stream).await
    }

    async fn publish(&self, subject: &str, payload: Bytes, how: Publish) -> Result<Stored> {
        self.start_publish(subject, payload, how).await?.await
    }

    async fn enqueue(&self, subject: &str, payload: Bytes, how: Publish) -> Result<PendingAck> {
        self.start_publish(subject, payload, how).await
    }

    async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>> {
        self.fetch(stream, consumer, max, expires).await
    }

    async fn settle(&self, delivery: &Delivery, how: Settle) -> Result<()> {
        self.settle_delivery(delivery, how).await
    }

    async fn last_on_subject(&self, stream: &str, subject: &str) -> Result<Option<Message>> {
        Ok(self.stored_last(stream, subject).await?.map(api::StoredMessage::into_message))
    }

    async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>> {
        Ok(self.stored_at(stream, sequence).await?.map(api::StoredMessage::into_message))
    }

    async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool> {
        self.delete_stored(stream, sequence).await
    }

    async fn purge(&self, stream: &str, filter: &str) -> Result<u64> {
        self.purge_filtered(stream, filter).await
    }

    async fn purge_before(&self, stream: &str, filter: &str, sequence: u64) -> Result<u64> {
        // To the server a bound of nothing is none.
        match sequence {
            0 | 1 => Ok(0),
            _ => self.purge_up_to(stream, filter, sequence - 1).await,
        }
    }

    async fn replay(
        &self,
        stream: &str,
        filter: &str,
        from_sequence: u64,
    ) -> Result<BusStream<Result<Replayed>>> {
        replay::open(self.clone(), stream, filter, from_sequence).await
    }

    async fn send(&self, subject: &str, payload: Bytes) -> Result<()> {
        self.client.publish(subject.to_owned(), payload).await.map_err(api::send_failed)
    }

    async fn subscribe(&self, filter: &str) -> Result<BusStream<Note>> {
        let subscriber = self.client.subscribe(filter.to_owned()).await.map_err(api::send_failed)?;
        // The subscription counts from here on, not from whenever the buffer is written.
        tokio::time::timeout(ANSWER_WITHIN, self.client.flush())
            .await
            .map_err(|_| BusError::Unreachable(format!("subscription to {filter} was not confirmed")))?
            .map_err(api::send_failed)?;
        Ok(Box::pin(subscriber.map(|message| Note {
            subject: message.subject.to_string(),
            reply: message.reply.map(|reply| reply.to_string()),
            payload: message.payload,
        })))
    }

    async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes> {
        let request = async_nats::Request::new().payload(payload).timeout(Some(timeout));
        let asked = async {
            let answer = self.client.send_request(subject.to_owned(), request).await;
            answer.map(|message| message.payload).map_err(|reason| api::request_failed(subject, &reason))
        };
        self.refusals.listen().or(subject, asked).await
    }

    async fn ensure_kv(&self, spec: &KvSpec) -> Result<()> {
        self.apply_stream(kv::configuration(spec)).await.map(drop)
    }

    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        self.value(bucket, key).await
    }

    async fn kv_put(&self, bucket: &str, key: &str, value: Bytes) -> Result<u64> {
        self.set_value(bucket, key, value, None, None).await
    }

    async fn kv_create(&self, bucket: &str, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64> {
        self.create_value(bucket, key, value, ttl).await
    }

    async fn kv_update(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<u64> {
        self.set_value(bucket, key, value, Some(revision), ttl).await
    }

    async fn kv_delete(&self, bucket: &str, key: &str, revision: Option<u64>) -> Result<()> {
        self.delete_value(bucket, key, revision).await
    }

    async fn kv_entries(&self, bucket: &str) -> Result<Vec<Entry>> {
        self.values(bucket).await
    }

    async fn ensure_objects(&self, spec: &ObjectSpec) -> Result<()> {
        self.apply_stream(object::configuration(spec)).await.map(drop)
    }

    async fn object_put(
        &self,
        bucket: &str,
        name: &str,
        content: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<u64> {
        self.put_object(bucket, name, content).await
    }

    async fn object_get(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        self.open_object(bucket, name, from_byte).await
    }

    async fn object_part(&self, bucket: &str, name: &str, from_byte: u64, bytes: usize) -> Result<Bytes> {
        self.read_part(bucket, name, from_byte, bytes).await
    }

    async fn object_length(&self, bucket: &str, name: &str) -> Result<Option<u64>> {
        Ok(self.object_info(bucket, name).await?.map(|info| info.size as u64))
    }

    async fn object_list(&self, bucket: &str) -> Result<Vec<ObjectFacts>> {
        self.list_objects(bucket).await
    }

    async fn object_delete(&self, bucket: &str, name: &str) -> Result<()> {
        self.delete_object(bucket, name).await
    }

    async fn close(&self) {
        let closing = async {
            if self.client.flush().await.is_ok() {
                // Nothing is left to do for the caller when the server is gone already.
                let _ = self.client.drain().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), closing).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnecting_backs_off_to_two_seconds_and_no_further() {
        assert_eq!(reconnect_delay(1), Duration::from_millis(50));
        assert_eq!(reconnect_delay(3), Duration::from_millis(200));
        assert_eq!(reconnect_delay(100_000), RECONNECT_DELAY_MAX);
    }

    #[test]
    fn a_printed_address_holds_no_password() {
        assert_eq!(without_password("nats://me:pw@host:4222,tls://b:1"), "nats://host:4222,tls://b:1");
        let options = ConnectOptions { token: Some("geheim".into()), ..ConnectOptions::default() };
        assert!(!format!("{options:?}").contains("geheim"));
    }
}
