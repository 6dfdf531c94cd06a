//! The coordinator: ledger of batches and jobs, fleet view, router, planner, gateway. It never runs a model.

pub mod again;
mod average;
mod constraints;
pub mod core;
mod counted;
mod dist;
mod entropy;
mod files;
pub mod gateway;
mod http;
mod metrics;
pub mod models;
mod options;
pub mod plan;
pub mod quote;
mod random;
pub mod route;
pub mod sample;
pub mod scale;
mod shell;
pub mod simulate;

use std::sync::Arc;

use gateway::Gateway;
use ternfleet_cloud::Provider;
use ternfleet_proto::table::SyncFacts;
use ternfleet_proto::{Bus, Clock};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use entropy::Entropy;
pub use metrics::{Described, Metrics};
pub use options::{
    CacheOptions, ClassEngine, ClassOptions, LocalOptions, Options, PodOptions, ProviderKind, Quotas,
    Retention, RunpodOptions, ScaleOptions, Streams, VolumeOptions, Webhooks, resolved,
};

/// Serves until `shutdown`: as a warm standby, and as the leader while it holds the lease.
///
/// # Errors
/// When NATS is too old or refuses, when strict durability is asked for and not there, when the HTTP address is taken.
pub async fn run(bus: Arc<dyn Bus>, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    run_with(Parts::default(), bus, options, shutdown).await
}

/// What a coordinator has of this machine. A simulation gives it others.
#[derive(Default)]
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub entropy: Entropy,
    /// Rents pods, in place of the provider that the options name.
    pub provider: Option<Arc<dyn Provider>>,
    /// Connections to the HTTP port, in place of an address that the options name.
    pub connections: Option<mpsc::UnboundedReceiver<DuplexStream>>,
    /// How the server syncs, in place of what the monitoring address says that the options name.
    pub sync: Option<SyncFacts>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// As [`run`], with these parts.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    parts: Parts,
    bus: Arc<dyn Bus>,
    options: Options,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Parts { metrics, clock, entropy, provider, connections, sync } = parts;
    let stop = shutdown.child_token();
    let _stops_all = stop.clone().drop_guard();
    let watch = metrics::watch_nats(Arc::clone(&bus), Arc::clone(&metrics));
    let _watches_nats = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(watch));
    let fleet = shell::serve(
        Arc::clone(&bus),
        options.clone(),
        provider,
        sync,
        Arc::clone(&metrics),
        clock.clone(),
        stop.clone(),
    );
    let dist = serve_dist(&options, stop.clone());
    if connections.is_none() && options.http.is_none() {
        let (fleet, dist) = tokio::join!(or_stop(fleet, &stop), or_stop(dist, &stop));
        return fleet.and(dist);
    }
    let gateway = open_gateway(Arc::clone(&bus), &options, clock, entropy)?;
    let watching = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(gateway.clone().watch()));
    let routes = http::routes(bus, metrics).merge(gateway.routes()).merge(dist::routes(&options)?);
    let most = options.gateway.connections_max;
    let page = async {
        match (connections, options.http) {
            (Some(connections), _) => http::serve(connections, routes, most, stop.clone()).await,
            (None, Some(address)) => {
                http::serve(http::listen(address).await?, routes, most, stop.clone()).await;
            }
            (None, None) => {}
        }
        Ok(())
    };
    let (fleet, page, dist) = tokio::join!(or_stop(fleet, &stop), or_stop(page, &stop), or_stop(dist, &stop));
    drop(watching);
    fleet.and(page).and(dist)
}

/// A part of this process whose error ends the others too.
async fn or_stop(
    part: impl Future<Output = anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    part.await.inspect_err(|_| stop.cancel())
}

/// `/dist/` at an address of its own, where one is named: pods reach it, and nothing else of this process.
async fn serve_dist(options: &Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(address) = options.dist_http else { return Ok(()) };
    anyhow::ensure!(
        options.issuer_file.is_some(),
        "dist_http needs issuer_file: without it no token can be verified"
    );
    let routes = dist::routes(options)?;
    http::serve(http::listen(address).await?, routes, options.gateway.connections_max, shutdown).await;
    Ok(())
}

/// A gateway without keys serves everybody who can reach it, so it must say so to listen beyond this machine.
fn open_gateway(
    bus: Arc<dyn Bus>,
    options: &Options,
    clock: Clock,
    entropy: Entropy,
) -> anyhow::Result<Gateway> {
    let gateway =
        Gateway::new(bus, options.gateway.clone(), options.quotas.stored_bytes_max, clock, entropy)?;
    let reached = options.http.filter(|address| !address.ip().is_loopback());
    if let Some(address) = reached.filter(|_| gateway.is_open() && !options.gateway.serve_without_keys) {
        anyhow::bail!(
            "{address} can be reached from other machines, and no API keys are configured: set \
             gateway.keys_file (`ternfleet key new` creates an entry), or gateway.serve_without_keys = \
             true in a trusted network"
        );
    }
    Ok(gateway)
}
