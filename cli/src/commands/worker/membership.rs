//! How a worker comes into a fleet: with nothing, with credentials, or with a join token; and how it stays in.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use ternfleet_proto::access::{Credentials, JoinToken, PodFile};
use ternfleet_proto::message::WorkerFacts;
use ternfleet_proto::nats::{self, ConnectOptions, Joined};
use ternfleet_proto::{Bus, BusError, TimeMs};
use ternfleet_worker::{Identity, Options};

use crate::layers::NatsOptions;
use crate::output::write_secret;

/// Between two tries to renew.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// Runs a worker, joining first where a join token or a pod file says so.
pub(super) async fn run(
    connection: &NatsOptions,
    mut options: Options,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let connect = connection.connect_options("ternfleet-worker");
    let Some(way_in) = way_in(connection)? else {
        let bus = nats::connect(&connect).await?;
        return ternfleet_worker::run(bus, options, shutdown).await;
    };
    let Identity { worker, host, pod, .. } = Identity::new(&options);
    let (pod_class, price_usd_micro_per_hour) = (options.pod_class.clone(), options.price());
    let facts = WorkerFacts { pod, host, pod_class, price_usd_micro_per_hour };
    let joined = tokio::select! {
        joined = nats::join(&connect, &way_in, worker.clone(), facts) => joined,
        () = shutdown.cancelled() => return Ok(()),
    };
    let Joined { credentials, pod, expires_at } = joined.context(
        "this worker is not let in: get a new token with `ternfleet nats token` (they live for minutes)",
    )?;
    if let (Some(path), Some(pod)) = (&connection.nats_pod_file, pod) {
        keep(path, &pod)?;
    }
    tracing::info!(%worker, "joined the fleet");
    options.worker = Some(worker);
    let bus = nats::connect_as(&ConnectOptions { credentials_file: None, ..connect }, &credentials).await?;
    tokio::select! {
        ended = ternfleet_worker::run(bus.clone(), options, shutdown) => ended,
        never = renew_for_ever(&*bus, &credentials, expires_at) => match never {},
    }
}

/// What a pod has kept is better than its token, which has expired by the second start.
fn way_in(connection: &NatsOptions) -> anyhow::Result<Option<Credentials>> {
    if let Some(path) = connection.nats_pod_file.as_deref().filter(|path| path.exists()) {
        let said = || format!("the pod file {} cannot be used; delete it to join anew", path.display());
        let kept =
            Credentials::parse(&std::fs::read_to_string(path).with_context(said)?).with_context(said)?;
        let expires_at = kept.holder().with_context(said)?.expires_at;
        if expires_at.is_none_or(|at| at > TimeMs::now()) {
            return Ok(Some(kept));
        }
        tracing::warn!("what this pod had kept of its last start has expired");
    }
    let token = connection.nats_join_token.as_deref().filter(|token| !token.is_empty());
    Ok(token.map(JoinToken::parse).transpose()?.map(|token| token.credentials().clone()))
}

fn keep(path: &Path, pod: &PodFile) -> anyhow::Result<()> {
    write_secret(path, &pod.0.file())
}

/// At half of each token's life there is a new one; the connection takes it up when the server ends the old one.
async fn renew_for_ever(
    bus: &dyn Bus,
    credentials: &Credentials,
    mut expires_at: TimeMs,
) -> std::convert::Infallible {
    loop {
        let left = expires_at.since(TimeMs::now());
        tokio::time::sleep((left / 2).max(Duration::from_secs(1))).await;
        match nats::renew(bus, credentials).await {
            Ok(next) => expires_at = next,
            Err(error @ BusError::Refused(_)) => {
                tracing::error!(%error, "this worker's credentials are not renewed; it will be shut out");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
            Err(error) => {
                tracing::warn!(%error, "credentials not renewed; trying again");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}
