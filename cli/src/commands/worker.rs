//! `ternfleet worker`: one engine that pulls jobs from NATS.

mod membership;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use ternfleet_worker::{Options, engines};

use crate::guard::Guard;
use crate::layers::{self, Effective, NatsOptions, ServiceFlags};
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
    /// Threads of the engine [default: usable cores, at most 16]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// Engine processes: 1, or `auto` for one per socket or large cache group
    #[arg(long, value_name = "1|auto")]
    engines: Option<String>,
    /// Number of jobs at the same time
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Who computes: `model` is the built-in engine, `openai` the server at --upstream
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Address of a server with OpenAI's API
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// File with the key that the server wants
    #[arg(long, value_name = "PATH")]
    upstream_key_file: Option<PathBuf>,
    /// Model to ask the server for, where it has several
    #[arg(long, value_name = "NAME")]
    upstream_model: Option<String>,
    /// Command that starts the server; it is watched, and ended with the worker
    #[arg(long, value_name = "COMMAND")]
    upstream_command: Option<String>,
    /// Digest of the server's model, where the server tells none
    #[arg(long, value_name = "DIGEST")]
    model_digest: Option<String>,
    /// Price of this pod per hour
    #[arg(long, value_name = "X")]
    price_usd_per_hour: Option<f64>,
    /// Class of the pod, for comparisons
    #[arg(long, value_name = "NAME")]
    pod_class: Option<String>,
    /// Name of this pod [default: the host name]
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// One of several engine processes, controlled by a supervisor
    #[arg(long, hide = true)]
    supervised: bool,
}

impl Worker {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let guard = if self.only_prints() { Guard::idle() } else { Guard::arm() };
        let line: Vec<OsString> = std::env::args_os().skip(1).collect();
        self.run_under(&guard, &line)
    }

    /// Runs it; a pod whose worker cannot start says so and ends itself. `line` is the command line without the program.
    pub(crate) fn run_under(&self, guard: &Guard, line: &[OsString]) -> anyhow::Result<ExitCode> {
        if self.only_prints() {
            say(self.effective()?.print()?.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        let outcome = self.serve(guard, line);
        if let Err(error) = &outcome
            && !self.supervised
            && !guard.is_ready()
        {
            self.tell_failure(error);
            guard.failed(error);
        }
        outcome.map(|()| ExitCode::SUCCESS)
    }

    /// Shows its configuration, and runs nothing.
    pub(crate) fn only_prints(&self) -> bool {
        self.service.print_config
    }

    /// Last words of a start that failed. Whoever cannot be reached is not told; the log has it all the same.
    pub(crate) fn tell_failure(&self, error: &anyhow::Error) {
        tracing::error!(error = format!("{error:#}"), "the worker cannot start");
        if let Ok(effective) = self.effective_of_any_model() {
            membership::last_words(&effective.connection, &effective.options, error);
        }
    }

    fn effective(&self) -> anyhow::Result<Effective<Options>> {
        let mut effective = self.effective_of_any_model()?;
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
        Ok(effective)
    }

    fn effective_of_any_model(&self) -> anyhow::Result<Effective<Options>> {
        let mut layers = layers::read::<Options, ternfleet_coordinator::Options>(&self.service)?;
        layers
            .flag("model", self.model.as_ref().map(|path| path.display().to_string()))
            .flag("threads", self.threads)
            .flag("engines", self.engines.clone())
            .flag("slots", self.slots)
            .flag("engine", self.engine.clone())
            .flag("upstream", self.upstream.clone())
            .flag("upstream_key_file", self.upstream_key_file.as_ref().map(|path| path.display().to_string()))
            .flag("upstream_model", self.upstream_model.clone())
            .flag("upstream_command", self.upstream_command.clone())
            .flag("model_digest", self.model_digest.clone())
            .flag("price_usd_per_hour", self.price_usd_per_hour)
            .flag("pod_class", self.pod_class.clone())
            .flag("pod", self.pod.clone());
        layers.resolve::<Options>()
    }

    fn serve(&self, guard: &Guard, line: &[OsString]) -> anyhow::Result<()> {
        let Effective { connection, options, .. } = self.effective()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")?;
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            stop::drain_on_signal(shutdown.clone())?;
            match engines::wanted(&options) {
                Some(groups) => supervise(groups, connection, options, guard, line, shutdown).await,
                None => membership::run(&connection, options, shutdown, || guard.ready()).await,
            }
        })
    }
}

/// Several engines: each is a process with a guard of its own, so this one's is done.
async fn supervise(
    groups: Vec<Vec<usize>>,
    connection: NatsOptions,
    options: Options,
    guard: &Guard,
    line: &[OsString],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut line = line.to_vec();
    if let Some(kept) = membership::enter_for_all(&connection, &options).await? {
        line.extend(["--set".into(), format!("nats_pod_file={}", kept.display()).into()]);
    }
    guard.ready();
    let watch = move || engines::supervise(groups, &line, &options, &shutdown);
    tokio::task::spawn_blocking(watch).await.context("the supervisor of the engines panicked")?
}
