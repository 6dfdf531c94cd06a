//! The coordinator: ledger of batches and jobs, fleet view, router, planner, gateway. It never runs a model.

pub mod again;
mod average;
mod constraints;
pub mod core;
mod counted;
mod dist;
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

use std::net::SocketAddr;
use std::sync::Arc;

use gateway::Gateway;
use ternfleet_proto::{Bus, Clock};
use tokio_util::sync::CancellationToken;

pub use metrics::{Described, Metrics};
pub use options::{
    CacheOptions, ClassOptions, LocalOptions, Options, PodOptions, ProviderKind, Quotas, Retention,
    RunpodOptions, ScaleOptions, Streams, VolumeOptions, Webhooks, resolved,
};

/// Serves until `shutdown`: as a warm standby, and as the leader while it holds the lease.
///
/// # Errors
/// When NATS is too old or refuses, when strict durability is asked for and not there, when the HTTP address is taken.
pub async fn run(bus: Arc<dyn Bus>, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    run_with(Arc::new(Metrics::default()), Clock::machine(), bus, options, shutdown).await
}

/// As [`run`], with these metrics and by this clock: a simulation reads the ones and steps the other.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    metrics: Arc<Metrics>,
    clock: Clock,
    bus: Arc<dyn Bus>,
    options: Options,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let stop = shutdown.child_token();
    let _stops_all = stop.clone().drop_guard();
    let watch = metrics::watch_nats(Arc::clone(&bus), Arc::clone(&metrics));
    let _watches_nats = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(watch));
    let fleet =
        shell::serve(Arc::clone(&bus), options.clone(), Arc::clone(&metrics), clock.clone(), stop.clone());
    let dist = serve_dist(&options, stop.clone());
    match options.http {
        None => {
            let (fleet, dist) = tokio::join!(or_stop(fleet, &stop), or_stop(dist, &stop));
            fleet.and(dist)
        }
        Some(address) => {
            let gateway = open_gateway(Arc::clone(&bus), &options, clock, address)?;
            let watching = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(gateway.clone().watch()));
            let connections_max = options.gateway.connections_max;
            let routes = gateway.routes().merge(dist::routes(&options)?);
            let page = http::serve(address, bus, metrics, routes, connections_max, stop.clone());
            let (fleet, page, dist) =
                tokio::join!(or_stop(fleet, &stop), or_stop(page, &stop), or_stop(dist, &stop));
            drop(watching);
            fleet.and(page).and(dist)
        }
    }
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
        "dist_http needs issuer_file: without it no token can be judged"
    );
    http::serve_routes(address, dist::routes(options)?, options.gateway.connections_max, shutdown).await
}

/// A gateway without keys serves everybody who can reach it, so it must say so to listen beyond this machine.
fn open_gateway(
    bus: Arc<dyn Bus>,
    options: &Options,
    clock: Clock,
    address: SocketAddr,
) -> anyhow::Result<Gateway> {
    let gateway = Gateway::new(bus, options.gateway.clone(), options.quotas.stored_bytes_max, clock)?;
    if gateway.is_open() && !address.ip().is_loopback() && !options.gateway.serve_without_keys {
        anyhow::bail!(
            "{address} can be reached from other machines and there are no API keys: set gateway.keys_file \
             (`ternfleet key new` makes an entry), or gateway.serve_without_keys = true where the network is trusted"
        );
    }
    Ok(gateway)
}
