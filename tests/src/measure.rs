//! Measurements of what the promises cost: assignment, restart, takeover, large inputs and tables, fairness, proofs. Each is a command of the
//! binary `measure`; docs/reliability/measurements.md holds what they said, and on which machine.
//!
//! Nothing here is asserted but that the work was done: speeds are reported.

mod alone;
mod fair;
mod fleet;
mod hand_over;
mod large;
mod paid;
mod process;
mod restart;
mod table;
mod upstream;

use std::time::Duration;

use ternfleet_coordinator::Options;
use tokio_util::sync::CancellationToken;

use crate::caller::Client;
use crate::instant::{InstantWorker, Manner};
use crate::server::NatsServer;
use process::peak_mib;

pub use alone::core_alone;
pub use fair::short_behind_long;
pub use fleet::fleet;
pub use hand_over::{cache, latency, throughput};
pub use large::{Answered, large_input};
pub use paid::{again, shared, twice};
pub use restart::{restart, takeover};
pub use table::table;
pub use upstream::overhead;

/// A server, a coordinator in this process, two workers that answer at once, and a caller.
struct Fleet {
    server: NatsServer,
    stop: CancellationToken,
    coordinator: tokio::task::JoinHandle<anyhow::Result<()>>,
    workers: Vec<InstantWorker>,
    client: Client,
}

impl Fleet {
    async fn start(jetstream: &str, manner: &Manner) -> anyhow::Result<Fleet> {
        let server = NatsServer::start_with(jetstream)?;
        let stop = CancellationToken::new();
        let bus = server.bus().await?;
        let options = Options { nats_monitoring_url: Some(server.monitor_url()), ..Options::default() };
        let coordinator = tokio::spawn(ternfleet_coordinator::run(bus, options, stop.clone()));
        let mut workers = Vec::new();
        for name in ["one", "two"] {
            workers.push(InstantWorker::start(server.bus().await?, name, manner.clone()).await);
        }
        let client = Client::new(server.bus().await?);
        Ok(Fleet { server, stop, coordinator, workers, client })
    }

    async fn stop(self) -> anyhow::Result<()> {
        drop(self.workers);
        self.stop.cancel();
        self.coordinator.await??;
        drop(self.server);
        Ok(())
    }
}

/// The value below which `share` of the sorted values lie.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
