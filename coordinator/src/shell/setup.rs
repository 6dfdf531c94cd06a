//! What must exist before the coordinator can work: streams, buckets, the fleet's key; and how durable it all is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::codec;
use ternfleet_proto::message::Durability;
use ternfleet_proto::proof::SigningKey;
use ternfleet_proto::table::{self, StreamSpec, SyncFacts};
use ternfleet_proto::tag::AssignmentKey;

use super::writer::Keys;
use crate::Options;
use crate::options::Streams;

const ASSIGNMENT_KEY: &str = "assignment_key";
const PROOF_KEY: &str = "proof_key";

/// What was found and made.
#[derive(Debug, Clone)]
pub(crate) struct BusFacts {
    pub(crate) key: AssignmentKey,
    /// Signs the manifests of batches.
    pub(crate) proof_key: SigningKey,
    pub(crate) durability: Durability,
    pub(crate) replicas: u32,
    /// The server syncs each write before it acknowledges.
    pub(crate) syncs_always: bool,
    /// What it has acknowledged is on its disk after this time.
    pub(crate) synced_after: Duration,
}

impl BusFacts {
    pub(crate) fn keys(&self) -> Keys {
        Keys { assignments: self.key.clone(), proofs: self.proof_key.clone() }
    }
}

/// Makes streams and buckets; finds out durability of accepted batches.
pub(crate) async fn prepare(
    bus: &Arc<dyn Bus>,
    options: &Options,
    sync: Option<SyncFacts>,
) -> anyhow::Result<BusFacts> {
    let server = bus.server();
    check_age(&server.version, options.allow_old_server)?;
    let replicas = options.replicas.max(1) as usize;
    let found = table_version(bus).await.context("the version of the streams cannot be read")?;
    if found.is_some_and(|(version, _)| version > table::VERSION) {
        let (version, _) = found.unwrap_or_default();
        bail!(
            "the streams of this fleet were set up by a newer coordinator (version {version} of the table, \
             this one \
             knows {}): upgrade this coordinator; nothing was changed",
            table::VERSION
        );
    }
    let sync = match &options.nats_monitoring_url {
        Some(url) if sync.is_none() => read_varz(url).await,
        _ => sync,
    };
    let syncs_always = sync.is_some_and(|sync| sync.always);
    let synced_after = table::synced_after(sync);
    for spec in table::streams(replicas) {
        ensure_bounded(bus, spec.at(syncs_always), &options.streams).await?;
    }
    bus.ensure_stream(&table::work_stream_spec(0, 1).at(syncs_always))
        .await
        .context("the work stream cannot be created")?;
    for spec in table::kv_specs(replicas) {
        bus.ensure_kv(&spec).await.with_context(|| format!("bucket {} cannot be created", spec.bucket))?;
    }
    raise_table_version(bus, found).await.context("the version of the streams cannot be written")?;
    let tenant = ternfleet_proto::TenantId::default_tenant();
    bus.ensure_objects(&table::files_spec(&tenant, replicas))
        .await
        .context("the object store cannot be created")?;
    bus.ensure_objects(&table::answers_spec(Duration::from_millis(options.cache.age_ms)))
        .await
        .context("the store of remembered answers cannot be created")?;
    bus.ensure_objects(&table::large_requests_spec(replicas))
        .await
        .context("the store of large requests cannot be created")?;
    bus.ensure_objects(&table::ledger_spec(replicas))
        .await
        .context("the store of answers cannot be created")?;
    let key = secret(bus, ASSIGNMENT_KEY, AssignmentKey).await?;
    let proof_key = secret(bus, PROOF_KEY, SigningKey::from_seed).await?;
    let public = proof_key.public().to_string();
    tell_public_key(bus, &public).await.context("the public key of proofs cannot be stored")?;
    tracing::info!(public, "the key that checks proofs of batches");
    let durability = table::durability(replicas, sync);
    tracing::info!(?durability, replicas, server = %server.version, "durability of accepted batches");
    if options.strict_durability && durability < Durability::Fsynced {
        bail!(
            "strict_durability is set, but this fleet is {durability:?}: set sync_interval: always in the \
             jetstream block of nats-server, and nats_monitoring_url to its monitoring address"
        );
    }
    Ok(BusFacts { key, proof_key, durability, replicas: replicas as u32, syncs_always, synced_after })
}

/// Makes a stream with as many bytes as are configured for it, if any.
async fn ensure_bounded(bus: &Arc<dyn Bus>, spec: StreamSpec, streams: &Streams) -> anyhow::Result<()> {
    let (option, bytes_max) = match spec.name.as_str() {
        table::RESULTS => ("results_bytes_max", streams.results_bytes_max),
        table::CHECKPOINTS => ("checkpoints_bytes_max", streams.checkpoints_bytes_max),
        _ => ("", 0),
    };
    let max_bytes = i64::try_from(bytes_max).ok().filter(|max| *max > 0);
    let made = bus.ensure_stream(&StreamSpec { max_bytes, ..spec.clone() }).await;
    made.map(drop).with_context(|| match bytes_max {
        0 => format!("stream {} cannot be created", spec.name),
        _ => format!("stream {} cannot be created with streams.{option} = {bytes_max}", spec.name),
    })
}

/// An old server is refused, or worked with under protest.
fn check_age(version: &str, allowed: bool) -> anyhow::Result<()> {
    let (major, minor) = table::OLDEST_SERVER;
    if table::server_is_new_enough(version) {
        return Ok(());
    }
    if !allowed {
        bail!(
            "nats-server {version} is too old: {major}.{minor} or newer is needed, because older ones can \
             lose acknowledged writes when they are killed; upgrade it (allow_old_server = true accepts it \
             nevertheless)"
        );
    }
    tracing::warn!(version, "this version of nats-server can lose acknowledged writes when it is killed");
    Ok(())
}

/// The version under which the streams were last set up, and its revision; `None` in a new fleet.
async fn table_version(bus: &Arc<dyn Bus>) -> anyhow::Result<Option<(u32, u64)>> {
    match bus.kv_get(table::KV_CONTROL, table::VERSION_KEY).await {
        Ok(Some(entry)) => Ok(Some((codec::decode(&entry.value)?, entry.revision))),
        Ok(None) | Err(BusError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Written after the streams have this table's settings. A newer coordinator that came in between has the last word.
async fn raise_table_version(bus: &Arc<dyn Bus>, found: Option<(u32, u64)>) -> anyhow::Result<()> {
    let value = codec::encode(&table::VERSION);
    let written = match found {
        Some((version, _)) if version == table::VERSION => return Ok(()),
        Some((_, revision)) => {
            bus.kv_update(table::KV_CONTROL, table::VERSION_KEY, value, revision, None).await
        }
        None => bus.kv_create(table::KV_CONTROL, table::VERSION_KEY, value, None).await,
    };
    match written {
        Ok(_) | Err(BusError::Exists(_) | BusError::WrongLastSequence) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A key of the fleet: made once, by whoever comes first.
async fn secret<T: Serialize + DeserializeOwned>(
    bus: &Arc<dyn Bus>,
    name: &str,
    of_bytes: impl Fn([u8; 32]) -> T,
) -> anyhow::Result<T> {
    let said = || format!("the fleet's key {name} cannot be read or made");
    loop {
        if let Some(entry) = bus.kv_get(table::KV_CONTROL, name).await.with_context(said)? {
            return codec::decode(&entry.value).with_context(said);
        }
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).context("the system gives no random numbers")?;
        let made = codec::encode(&of_bytes(bytes));
        match bus.kv_create(table::KV_CONTROL, name, made, None).await {
            Ok(_) | Err(BusError::Exists(_)) => {}
            Err(error) => return Err(error).with_context(said),
        }
    }
}

/// For `ternfleet key proof`.
async fn tell_public_key(bus: &Arc<dyn Bus>, public: &str) -> Result<(), BusError> {
    let value = public.to_owned().into_bytes().into();
    match bus.kv_create(table::KV_CONTROL, table::PROOF_PUBLIC_KEY, value, None).await {
        Ok(_) | Err(BusError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `GET /varz` by hand: one request, no redirects, no TLS; monitoring ports speak plain HTTP on a private address.
async fn read_varz(url: &str) -> Option<SyncFacts> {
    let body = tokio::time::timeout(Duration::from_secs(3), http_get(url, "/varz")).await;
    match body {
        Ok(Ok(body)) => SyncFacts::from_varz(&body),
        Ok(Err(error)) => {
            tracing::warn!(url, %error, "the monitoring address of NATS does not reply; periodic fsync is \
                                         assumed");
            None
        }
        Err(_) => {
            tracing::warn!(url, "the monitoring address of NATS is too slow; periodic fsync is assumed");
            None
        }
    }
}

async fn http_get(url: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host =
        url.strip_prefix("http://").context("the address must begin with http://")?.trim_end_matches('/');
    let mut stream = tokio::net::TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await?;
    let text = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the reply is not HTTP")?;
    if !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.0 200") {
        bail!("the reply is not 200");
    }
    Ok(answer.split_off(text + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused_unless_told_otherwise() {
        assert!(check_age("2.15.1", false).is_ok());
        let said = check_age("2.11.4", false).unwrap_err().to_string();
        assert!(said.contains("2.14") && said.contains("allow_old_server"), "{said}");
        assert!(check_age("2.11.4", true).is_ok());
    }
}
