//! `ternfleet up`: a whole fleet on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::task::LocalSet;

use crate::local::{self, Plan};
use crate::output::say;
use crate::{connection, locate, span, stop};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Number of worker processes, which share this machine's cores [default: 2, or 0 with --scale]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=256))]
    workers: Option<u16>,
    /// Rent between MIN and MAX pods on this machine as batches need them, and return them when idle
    #[arg(long, value_name = "MIN..MAX", value_parser = local::parse_range)]
    scale: Option<local::Range>,
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Folder for the fleet's state and logs
    #[arg(long, value_name = "DIR", default_value = connection::USUAL_FOLDER)]
    dir: PathBuf,
    /// Port of NATS [default: the port of the last run, else 4222, else a free port]
    #[arg(long, value_name = "P")]
    nats_port: Option<u16>,
    /// Port of HTTP [default: the port of the last run, else 8080, else a free port]
    #[arg(long, value_name = "P")]
    http_port: Option<u16>,
    /// Price of a worker per hour: one value for each worker; the last one applies to the rest
    #[arg(long, value_name = "X", value_delimiter = ',', default_value = "0.34")]
    price_usd_per_hour: Vec<f64>,
    /// Threads of a worker: one value, or one for each worker [default: an equal share of the cores]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Number of jobs that a worker runs at the same time
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Also run Prometheus with the included alert and recording rules; it must be installed
    #[arg(long)]
    prometheus: bool,
    /// Exit after this time without a request, when all batches have ended: 90s, 45m, 6h
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    end_unheard: Option<Duration>,
}

impl Up {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = locate::model(self.model.as_deref())?;
        let workers = self.workers.unwrap_or(if self.scale.is_some() { 0 } else { 2 });
        if workers == 0 && self.scale.is_none() {
            anyhow::bail!("--workers 0 starts no workers: add --scale 0..2, or start at least one worker");
        }
        let scale = self.scale;
        let plan = Plan {
            workers: workers.into(),
            model: model.clone(),
            dir: self.dir,
            nats_port: self.nats_port,
            http_port: self.http_port,
            prices_usd_per_hour: self.price_usd_per_hour,
            threads: self.threads,
            slots: self.slots,
            prometheus: self.prometheus,
            scale,
            unheard_limit: self.end_unheard,
            budget: None,
            secured: None,
        };
        let fleet = local::run(plan, |addresses, dir| {
            say(&format!("nats     {}", addresses.nats))?;
            say(&format!("http     {}", addresses.http))?;
            if let Some(prometheus) = &addresses.prometheus {
                say(&format!("metrics  {prometheus} (alerts: {prometheus}/alerts)"))?;
            }
            say(&format!("data     {}", dir.root().display()))?;
            say(&format!("workers  {workers}, running {}", model.display()))?;
            if let Some(local::Range { min, max }) = scale {
                say(&format!("rented   {min} to {max} pods on demand; see `ternfleet scale show`"))?;
            }
            if let Some(line) = connection::export_line(&addresses.nats) {
                say(&format!("to use this fleet from another folder or shell:\n  {line}"))?;
            }
            say("ready; Ctrl-C drains and exits")
        });
        stop::block_on(LocalSet::new().run_until(fleet))?;
        Ok(ExitCode::SUCCESS)
    }
}
