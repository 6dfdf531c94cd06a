//! `ternfleet worker`: one engine that pulls jobs from NATS.

mod membership;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use ternfleet_worker::{Options, engines};

use crate::layers::{self, ServiceFlags};
use crate::output::say;
use crate::{locate, stop};

/// Threads for the network; the engine has its own.
const NETWORK_THREADS: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    service: ServiceFlags,
    /// Model file
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Threads of the engine; the usable cores up to 16 unless given
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// 1, or auto: one engine process for each socket or large cache group
    #[arg(long, value_name = "1|auto")]
    engines: Option<String>,
    /// Jobs at once
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// What this pod costs while it runs
    #[arg(long, value_name = "X")]
    price_usd_per_hour: Option<f64>,
    /// Kind of pod, for comparing
    #[arg(long, value_name = "NAME")]
    pod_class: Option<String>,
    /// Name of this pod; the host's name unless given
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
}

impl Worker {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut layers = layers::read::<Options, ternfleet_coordinator::Options>(&self.service)?;
        layers
            .flag("model", self.model.map(|path| path.display().to_string()))
            .flag("threads", self.threads)
            .flag("engines", self.engines)
            .flag("slots", self.slots)
            .flag("price_usd_per_hour", self.price_usd_per_hour)
            .flag("pod_class", self.pod_class)
            .flag("pod", self.pod);
        let mut effective = layers.resolve::<Options>()?;
        // The model that ships, where it is found: a worker that is told nothing works in a checkout.
        if effective.options.engine == "model" {
            let given = Some(effective.options.model.as_path()).filter(|path| !path.as_os_str().is_empty());
            match locate::model(given) {
                Ok(found) => effective.options.model = found,
                // Printing the configuration, or refusing it, is not up to this.
                Err(_) if self.service.print_config || given.is_none() => {}
                Err(reason) => return Err(reason),
            }
        }
        if self.service.print_config {
            say(effective.print()?.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")?;
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            stop::drain_on_signal(shutdown.clone())?;
            if let Some(groups) = engines::wanted(&effective.options) {
                let options = effective.options;
                let watch = move || engines::supervise(groups, &options, &shutdown);
                return tokio::task::spawn_blocking(watch)
                    .await
                    .context("the supervisor of the engines panicked")?;
            }
            membership::run(&effective.connection, effective.options, shutdown).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
