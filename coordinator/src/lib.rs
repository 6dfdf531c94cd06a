//! The coordinator: ledger of batches and jobs, fleet view, router, planner, gateway. It never runs a model.

pub mod core;
mod http;
mod metrics;
pub mod gateway;
mod options;
pub mod plan;
pub mod route;
mod shell;

use std::sync::Arc;

use ternfleet_proto::Bus;
use tokio_util::sync::CancellationToken;

pub use metrics::Metrics;
pub use options::{Options, Quotas};

/// Serves until `shutdown`: as a warm standby, and as the leader while it holds the lease.
///
/// # Errors
/// When NATS is too old or refuses, when strict durability is asked for and not there, when the HTTP address is taken.
pub async fn run(bus: Arc<dyn Bus>, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let stop = shutdown.child_token();
    let _stops_all = stop.clone().drop_guard();
    let fleet = shell::serve(Arc::clone(&bus), options.clone(), Arc::clone(&metrics), stop.clone());
    match options.http {
        None => fleet.await,
        Some(address) => {
            let page = http::serve(address, bus, metrics, axum::Router::new(), stop.clone());
            // Whichever ends first, by shutdown or by an error, ends the other.
            let (fleet, page) = tokio::join!(async { fleet.await.inspect_err(|_| stop.cancel()) }, async {
                page.await.inspect_err(|_| stop.cancel())
            },);
            fleet.and(page)
        }
    }
}
