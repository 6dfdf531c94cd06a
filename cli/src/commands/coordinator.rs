//! `ternfleet coordinator`: one coordinator, leading or standing by.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use ternfleet_coordinator::Options;
use ternfleet_proto::nats;

use crate::client::COORDINATOR_NAME;
use crate::layers::{self, ServiceFlags};
use crate::output::say;
use crate::stop;

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    #[command(flatten)]
    service: ServiceFlags,
    /// Address on which HTTP is served
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Name of this coordinator process
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Replicas of streams that must not be lost; use 3 on a cluster of three servers
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Monitoring address of NATS, to read how often it syncs to disk
    #[arg(long, value_name = "URL")]
    nats_monitoring_url: Option<String>,
    /// Refuse to start unless NATS syncs each message before it acknowledges it
    #[arg(long)]
    strict_durability: bool,
    /// Folder in which output files are assembled
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
}

impl Coordinator {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut layers = layers::read::<Options, ternfleet_worker::Options>(&self.service)?;
        layers
            .flag("http", self.http)
            .flag("name", self.name)
            .flag("replicas", self.replicas)
            .flag("nats_monitoring_url", self.nats_monitoring_url)
            .flag("strict_durability", self.strict_durability.then_some(true))
            .flag("scratch_dir", self.scratch_dir.map(|path| path.display().to_string()));
        let effective = layers.resolve::<Options>()?;
        if self.service.print_config {
            say(effective.print()?.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        let runtime = tokio::runtime::Runtime::new().context("cannot start the asynchronous runtime")?;
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            stop::drain_on_signal(shutdown.clone())?;
            let bus = nats::connect(&effective.connection.connect_options(COORDINATOR_NAME)).await?;
            ternfleet_coordinator::run(bus, effective.options, shutdown).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
