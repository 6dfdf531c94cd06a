//! How a worker comes into a fleet: with nothing, with credentials, or with a join token; and how it stays in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use ternfleet_proto::access::{Credentials, JoinToken, PodFile};
use ternfleet_proto::message::{StartFailed, WorkerFacts};
use ternfleet_proto::nats::{self, ConnectOptions, Joined};
use ternfleet_proto::{Bus, BusError, TimeMs, WorkerId, codec, table};
use ternfleet_worker::{Identity, Options};

use crate::client::WORKER_NAME;
use crate::layers::NatsOptions;
use crate::output::write_secret;

/// Between two tries to renew.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(8);

/// Runs a worker, joining first where a join token or a pod file says so.
pub(super) async fn run(
    connection: &NatsOptions,
    mut options: Options,
    shutdown: CancellationToken,
    ready_now: impl FnOnce() + Send,
) -> anyhow::Result<()> {
    let connect = connection.connect_options(WORKER_NAME);
    let Some(way_in) = way_in(connection)? else {
        let bus = nats::connect(&connect).await?;
        return ternfleet_worker::run_then(bus, options, shutdown, ready_now).await;
    };
    let (worker, facts) = new_worker(&options);
    let joined = tokio::select! {
        joined = nats::join(&connect, &way_in, worker.clone(), facts) => joined,
        () = shutdown.cancelled() => return Ok(()),
    };
    let Joined { credentials, pod, expires_at } =
        joined.map_err(|error| not_let_in(error, &way_in, TimeMs::now()))?;
    if let (Some(path), Some(pod)) = (&connection.nats_pod_file, pod)
        && let Err(error) = keep(path, &pod)
    {
        // A pod file that somebody else looks after is read and not written.
        tracing::warn!(
            error = format!("{error:#}"),
            "the new pod file could not be written; the old one stays valid"
        );
    }
    tracing::info!(%worker, "joined the fleet");
    options.worker = Some(worker);
    let bus = nats::connect_as(&ConnectOptions { credentials_file: None, ..connect }, &credentials).await?;
    tokio::select! {
        ended = ternfleet_worker::run_then(bus.clone(), options, shutdown, ready_now) => ended,
        never = renew_for_ever(&*bus, &credentials, expires_at) => match never {},
    }
}

/// A new worker, and what it says of itself when it comes in.
fn new_worker(options: &Options) -> (WorkerId, WorkerFacts) {
    let Identity { worker, host, pod, .. } = Identity::new(options);
    let (pod_class, price_usd_micro_per_hour) = (options.pod_class.clone(), options.price());
    (worker, WorkerFacts { pod, host, pod_class, price_usd_micro_per_hour })
}

/// Says what to do: another token helps only where the token is at fault.
fn not_let_in(error: BusError, with: &Credentials, now: TimeMs) -> anyhow::Error {
    let expired = with.holder().ok().and_then(|holder| holder.expires_at).is_some_and(|at| at <= now);
    let said = error.to_string().to_lowercase();
    let at_fault = ["authorization", "authentication", "expired", "revoked", "has been used"];
    let is_token =
        expired || (matches!(error, BusError::Refused(_)) && at_fault.iter().any(|word| said.contains(word)));
    let advice = match error {
        _ if is_token => {
            "this worker was rejected: its token is invalid or has expired; create one with `ternfleet \
             nats token` (the coordinator creates one for each pod that it orders)"
        }
        BusError::Unreachable(_) => "this worker cannot join: NATS or the coordinator does not reply",
        _ => "this worker was rejected",
    };
    anyhow::Error::new(error).context(advice)
}

/// Joins once for several engines of one pod, since a token may be good for one pod, once; answers where what they come
/// in with is kept.
pub(super) async fn enter_for_all(
    connection: &NatsOptions,
    options: &Options,
) -> anyhow::Result<Option<PathBuf>> {
    let Some(way_in) = way_in(connection)? else { return Ok(None) };
    if let Some(path) = connection.nats_pod_file.as_deref().filter(|path| path.exists()) {
        return Ok(Some(path.to_owned()));
    }
    let connect = connection.connect_options(WORKER_NAME);
    let (worker, facts) = new_worker(options);
    let joined = nats::join(&connect, &way_in, worker, facts).await;
    let joined = joined.map_err(|error| not_let_in(error, &way_in, TimeMs::now()))?;
    let pod = joined.pod.context("the coordinator admitted this pod only once: it sent no pod file")?;
    let path = connection
        .nats_pod_file
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("ternfleet-pod-{}.creds", std::process::id())));
    keep(&path, &pod)?;
    Ok(Some(path))
}

/// Tells the coordinator why this pod's worker does not run, in a few seconds or not at all.
pub(super) fn last_words(connection: &NatsOptions, options: &Options, error: &anyhow::Error) {
    let said =
        StartFailed { pod: options.pod.clone(), why: format!("{error:#}"), log: crate::logging::recent() };
    let connect = ConnectOptions {
        first_connect_ms: LAST_WORDS_WITHIN.as_millis() as u64 / 2,
        ..connection.connect_options(WORKER_NAME)
    };
    let way_in = way_in(connection).ok().flatten();
    let tell = async {
        let (bus, name) = match &way_in {
            Some(credentials) => {
                let name = credentials.holder().map(|holder| holder.name).unwrap_or_default();
                let alone = ConnectOptions { credentials_file: None, ..connect };
                (nats::connect_as(&alone, credentials).await?, name)
            }
            None => (nats::connect(&connect).await?, options.pod.clone()),
        };
        bus.send(&table::start_failed(&name), codec::encode(&said)).await?;
        bus.close().await;
        anyhow::Ok(())
    };
    let told = crate::stop::block_on(async { tokio::time::timeout(LAST_WORDS_WITHIN, tell).await? });
    if let Err(error) = told {
        tracing::warn!(error = format!("{error:#}"), "the coordinator was not notified");
    }
}

/// What a pod has kept is better than its token, which has expired by the second start.
fn way_in(connection: &NatsOptions) -> anyhow::Result<Option<Credentials>> {
    if let Some(path) = connection.nats_pod_file.as_deref().filter(|path| path.exists()) {
        let said = || format!("the pod file {} cannot be used; delete it to join again", path.display());
        let kept =
            Credentials::parse(&std::fs::read_to_string(path).with_context(said)?).with_context(said)?;
        let expires_at = kept.holder().with_context(said)?.expires_at;
        if expires_at.is_none_or(|at| at > TimeMs::now()) {
            return Ok(Some(kept));
        }
        tracing::warn!("the pod file of the last start has expired");
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
                tracing::error!(%error, "this worker's credentials were not renewed; it will lose access");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
            Err(error) => {
                tracing::warn!(%error, "credentials were not renewed; retrying");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::access::Site;

    use super::*;

    #[test]
    fn a_new_token_is_advised_only_where_the_token_is_at_fault() {
        let now = TimeMs(1_800_000_000_000);
        let issuer = Site::new(now).issuer();
        let token = JoinToken::make(&issuer, "pods", now, Duration::from_secs(3600)).unwrap();
        let (soon, late) = (now.plus(Duration::from_secs(60)), now.plus(Duration::from_secs(7200)));
        let unreachable = || BusError::Unreachable("authorization: no answer within 10 s".into());
        let refused = |why: &str| BusError::Refused(why.into());
        for (error, at, is_token) in [
            (unreachable(), soon, false),
            (refused("the fleet is full: 400 workers"), soon, false),
            (refused("the coordinator has no issuer file"), soon, false),
            (refused("Authorization Violation"), soon, true),
            (refused("this token has been used by another pod"), soon, true),
            // Whoever has an expired token needs another one, whatever else is wrong.
            (unreachable(), late, true),
        ] {
            let said = format!("{:#}", not_let_in(error.clone(), token.credentials(), at));
            assert_eq!(said.contains("`ternfleet nats token`"), is_token, "{error:?}: {said}");
            assert!(said.contains(&error.to_string()), "the cause is told: {said}");
        }
        let said = not_let_in(unreachable(), token.credentials(), soon).to_string();
        assert!(said.contains("does not reply"), "{said}");
        assert_eq!(
            not_let_in(refused("no"), token.credentials(), soon).to_string(),
            "this worker was rejected"
        );
    }
}
