//! The fleet as a caller sees it: files in the object store, questions to the coordinator by request and reply.
//!
//! A restart of the coordinator is waited for; the questions are such that asking twice does no harm.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;

use ternfleet_proto::access::Credentials;
use ternfleet_proto::message::{BatchRef, BatchView, Refusal, RefusalCode, Reply, TenantOpen};
use ternfleet_proto::table::{self, ApiVerb, Role};
use ternfleet_proto::{BatchId, Bus, BusError, TenantId, codec, nats};

use crate::connection::Connection;

/// The name by which commands connect to NATS.
const CLIENT_NAME: &str = "ternfleet-cli";
/// The name of whoever watches over a fleet of this machine.
const WATCH_NAME: &str = "ternfleet-head";
/// The names by which services connect.
pub(crate) const COORDINATOR_NAME: &str = "ternfleet-coordinator";
pub(crate) const WORKER_NAME: &str = "ternfleet-worker";
/// Connections of a fleet's own parts, which say nothing about people.
pub(crate) const PART_NAMES: [&str; 3] = [WATCH_NAME, COORDINATOR_NAME, WORKER_NAME];
/// How long the first connection is tried; a person waits.
const CONNECT_MS: u64 = 3000;
/// How long one question waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries of a question that found nobody.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// After this long without an answer the caller is told why nothing happens.
const SAY_AFTER: Duration = Duration::from_secs(3);

/// How long to keep asking when nobody answers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// A person waits for one answer: long enough for a coordinator that restarts.
    Short,
    /// A batch is under way, and giving up would lose sight of it.
    Endless,
}

impl Patience {
    fn lasts(self, waited: Duration) -> bool {
        match self {
            Patience::Short => waited < Duration::from_secs(10),
            Patience::Endless => true,
        }
    }
}

/// Nobody has answered for as long as it was worth asking.
#[derive(Debug)]
pub(crate) struct Unanswered {
    address: String,
    waited_s: u64,
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Unanswered { address, waited_s } = self;
        write!(
            f,
            "no coordinator has replied at {address} for {waited_s} s: read its log, or start one with \
             `ternfleet up`"
        )
    }
}

impl std::error::Error for Unanswered {}

/// A connection to one fleet on behalf of one tenant.
pub(crate) struct Fleet {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) tenant: TenantId,
    address: String,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet")
            .field("address", &self.address)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    pub(crate) async fn connect(to: &Connection) -> anyhow::Result<Fleet> {
        let tenant = tenant_of(to)?;
        let address = to.address();
        if let Some(notice) = address.notice() {
            eprintln!("{notice}");
        }
        let bus = connect(to).await?;
        Ok(Fleet { bus, tenant, address: address.url().to_owned() })
    }

    /// As [`Fleet::connect`], for a part of the fleet itself, whose presence says nothing about people.
    pub(crate) async fn connect_as_part(to: &Connection) -> anyhow::Result<Fleet> {
        let tenant = tenant_of(to)?;
        let options = nats::ConnectOptions { name: WATCH_NAME.to_owned(), ..connect_options(to) };
        Ok(Fleet { bus: nats::connect(&options).await?, tenant, address: to.address().url().to_owned() })
    }

    /// Asks the coordinator. A refusal is an error; no answer is waited out as `patience` says.
    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: ApiVerb,
        question: &Q,
        patience: Patience,
    ) -> anyhow::Result<A> {
        let payload = codec::encode(question);
        let mut silence = Silence::new(&self.address);
        loop {
            let pause = match self
                .bus
                .request(&table::api_of(verb, &self.tenant), payload.clone(), ANSWER_TIMEOUT)
                .await
            {
                Ok(answer) => {
                    let reply: Reply<A> = codec::decode(&answer).context(
                        "the coordinator's reply cannot be parsed: check that coordinator and command have \
                         the same version",
                    )?;
                    match reply {
                        Ok(answer) => return Ok(answer),
                        Err(refusal) => wait_for(&refusal).ok_or(refusal)?,
                    }
                }
                Err(BusError::Unreachable(_) | BusError::NotFound(_)) => RETRY_PAUSE,
                Err(refused) => return Err(anyhow!(refused).context("NATS did not deliver the request")),
            };
            silence.goes_on(patience)?;
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once and says nothing: for a screen that asks again in a second.
    pub(crate) async fn ask_once<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: ApiVerb,
        question: &Q,
    ) -> anyhow::Result<A> {
        let answer = self
            .bus
            .request(&table::api_of(verb, &self.tenant), codec::encode(question), ANSWER_TIMEOUT)
            .await;
        let answer = answer.map_err(|_| anyhow!("no coordinator replies at {}", self.address))?;
        let reply: Reply<A> = codec::decode(&answer).context("the coordinator's reply cannot be parsed")?;
        Ok(reply?)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn batch(&self, id: &BatchId, patience: Patience) -> anyhow::Result<BatchView> {
        self.ask(ApiVerb::BatchGet, &BatchRef { tenant: self.tenant.clone(), id: id.clone() }, patience).await
    }

    /// Stops a batch; the answers that it has stay.
    pub(crate) async fn cancel(&self, id: &BatchId) -> anyhow::Result<BatchView> {
        let question = BatchRef { tenant: self.tenant.clone(), id: id.clone() };
        self.ask(ApiVerb::BatchCancel, &question, Patience::Short).await
    }

    /// Streams a file into the tenant's bucket; restarted when the connection breaks.
    pub(crate) async fn upload(&self, file: &Path, object: &str) -> anyhow::Result<u64> {
        let bucket = table::files_bucket(&self.tenant);
        let mut silence = Silence::new(&self.address);
        loop {
            let content = tokio::fs::File::open(file)
                .await
                .with_context(|| format!("cannot read {}", file.display()))?;
            match self.bus.object_put(&bucket, object, Box::pin(content)).await {
                Ok(bytes) => return Ok(bytes),
                Err(BusError::NotFound(_)) => {
                    // A tenant's first file: the bucket is the coordinator's to make.
                    let open = TenantOpen { tenant: self.tenant.clone() };
                    let () = self.ask(ApiVerb::TenantOpen, &open, Patience::Short).await?;
                    silence.goes_on(Patience::Short)?;
                }
                Err(BusError::Unreachable(_)) => silence.goes_on(Patience::Short)?,
                Err(refused) => return Err(anyhow!(refused).context("the file could not be uploaded")),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Opens an object of the tenant's bucket for reading, so many bytes in.
    pub(crate) async fn open(
        &self,
        object: &str,
        from_byte: u64,
        patience: Patience,
    ) -> anyhow::Result<std::pin::Pin<Box<dyn AsyncRead + Send>>> {
        let bucket = table::files_bucket(&self.tenant);
        let mut silence = Silence::new(&self.address);
        loop {
            match self.bus.object_get(&bucket, object, from_byte).await {
                Ok(content) => return Ok(content),
                Err(BusError::Unreachable(_)) => silence.goes_on(patience)?,
                Err(refused) => return Err(anyhow!(refused).context(format!("{object} cannot be read"))),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Whom the credentials speak for; whom the flags name where they speak for anybody.
pub(crate) fn tenant_of(to: &Connection) -> anyhow::Result<TenantId> {
    let Some(file) = &to.nats_credentials_file else { return Ok(to.tenant.clone()) };
    let said = || format!("the credentials in {} cannot be used", file.display());
    let text = std::fs::read_to_string(file).with_context(said)?;
    match Credentials::parse(&text).and_then(|credentials| credentials.holder()) {
        Ok(holder) if holder.role == Role::Tenant => {
            let own: TenantId = holder.name.parse().with_context(said)?;
            if to.tenant != own && to.tenant != TenantId::default_tenant() {
                bail!("the credentials in {} belong to tenant {own}, not to {}", file.display(), to.tenant);
            }
            Ok(own)
        }
        // A coordinator's credentials, or another maker's, may act for anybody.
        _ => Ok(to.tenant.clone()),
    }
}

/// Connects to NATS, or says what to do.
pub(crate) async fn connect(to: &Connection) -> anyhow::Result<Arc<dyn Bus>> {
    let address = to.address();
    let address = address.url();
    nats::connect(&connect_options(to)).await.map_err(|error| match error {
        BusError::Unreachable(_) => anyhow!(
            "no NATS server replies at {address}: start a fleet with `ternfleet up`, or pass its address \
             with --nats"
        ),
        refused => anyhow!(refused).context(format!("cannot connect to NATS at {address}")),
    })
}

/// How this program connects: it gives up soon, because a person waits.
pub(crate) fn connect_options(to: &Connection) -> nats::ConnectOptions {
    nats::ConnectOptions {
        url: to.address().url().to_owned(),
        credentials_file: to.nats_credentials_file.clone(),
        root_certificates: to.nats_root_certificates.clone(),
        name: CLIENT_NAME.to_owned(),
        first_connect_ms: CONNECT_MS,
        ..nats::ConnectOptions::default()
    }
}

/// How long to wait before asking again, if the refusal will pass.
fn wait_for(refusal: &Refusal) -> Option<Duration> {
    match refusal.code {
        RefusalCode::Unavailable => Some(refusal.retry_after_ms.map_or(RETRY_PAUSE, Duration::from_millis)),
        _ => None,
    }
}

/// Counts how long nobody has answered, and says so once.
struct Silence<'a> {
    address: &'a str,
    since: Instant,
    said: bool,
}

impl<'a> Silence<'a> {
    fn new(address: &'a str) -> Silence<'a> {
        Silence { address, since: Instant::now(), said: false }
    }

    fn goes_on(&mut self, patience: Patience) -> anyhow::Result<()> {
        let waited = self.since.elapsed();
        if !patience.lasts(waited) {
            return Err(Unanswered { address: self.address.to_owned(), waited_s: waited.as_secs() }.into());
        }
        if waited >= SAY_AFTER && !self.said {
            self.said = true;
            eprintln!("no coordinator replies at {}; retrying", self.address);
        }
        Ok(())
    }
}
