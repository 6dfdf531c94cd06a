//! `ternfleet head`: nats-server and coordinator in a rented pod, as `ternfleet launch` orders it.
//!
//! The pod costs money from its first second: it ends itself when it cannot start, and when nobody has asked anything for
//! a while.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use tokio::task::LocalSet;

use ternfleet_proto::TimeMs;

use super::pod::places::Places;
use crate::connection::Connection;
use crate::fetch::{Source, Wanted, sha256_of, small};
use crate::guard::Guard;
use crate::launch::bundle::{self, Bundle, Public};
use crate::local::{self, Ended, Plan, Secured, Why};
use crate::stop;

/// Of each fetch.
const RETRIES: u32 = 10;
const CONNECTIONS: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct Head {
    /// Folder for all data [default: the first that is writable]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Head {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let guard = Guard::arm();
        match self.serve(&guard) {
            // Somebody has asked this process to end, who knows of the pod.
            Ok(Ended::Asked) => {}
            Ok(Ended::Done(why)) => {
                let why = match why {
                    Why::Unheard => "there was no request for the time of --keep",
                    Why::Spent => "the budget is spent",
                };
                eprintln!("{why}: this pod terminates itself");
                guard.end();
            }
            Err(error) => {
                guard.failed(&error);
                return Err(error);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn serve(&self, guard: &Guard) -> anyhow::Result<Ended> {
        let bundle = Bundle::from_environment()?;
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => Places::find(&[]).own()?,
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let host = std::env::var("RUNPOD_PUBLIC_IP")
            .context("RUNPOD_PUBLIC_IP is not set: this pod has no public address")?;
        let public = Public {
            nats_port: public_port(bundle::NATS_PORT)?,
            dist_port: bundle.serves.as_ref().map(|_| public_port(bundle::DIST_PORT)).transpose()?,
            host,
        };
        // What pods may fetch from here is in one folder.
        let dist = dir.join("dist");
        std::fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
        let nats_server = nats_server(&bundle, &dist)?;
        if let Some(model) = bundle.serves.as_ref().and_then(|serves| serves.model.as_ref()) {
            fetch(&model.url, &model.sha256, &dist.join(bundle::MODEL_NAME))?;
            let manifest = small(&Source::new(&model.manifest_url, None, true)?);
            let manifest = manifest.context("the model's manifest could not be downloaded")?;
            std::fs::write(dist.join(bundle::MANIFEST_NAME), manifest)
                .with_context(|| format!("cannot write in {}", dist.display()))?;
        }
        let written = bundle.write(&dir, &public, TimeMs::now())?;
        let nats = format!("tls://127.0.0.1:{}", bundle::NATS_PORT);
        let connection = Connection::secured(nats, written.credentials, written.authority);
        let plan = Plan {
            workers: 0,
            model: PathBuf::new(),
            dir,
            nats_port: Some(bundle::NATS_PORT),
            http_port: None,
            prices_usd_per_hour: Vec::new(),
            threads: Vec::new(),
            slots: None,
            prometheus: false,
            scale: None,
            unheard_limit: Some(Duration::from_secs(bundle.unheard_limit_s)),
            budget: bundle.budget.clone(),
            secured: Some(Secured {
                nats_server,
                nats_config: written.nats_config,
                server_name: bundle::SERVER_NAME.to_owned(),
                monitor_port: bundle::MONITOR_PORT,
                coordinator_config: written.coordinator_config,
                connection,
            }),
        };
        let fleet = local::run(plan, |addresses, _| {
            guard.ready();
            eprintln!("ready: {}", addresses.nats);
            Ok(())
        });
        stop::block_on(LocalSet::new().run_until(fleet))
    }
}

/// The public side of one of this pod's ports.
fn public_port(port: u16) -> anyhow::Result<u16> {
    let told = std::env::var(format!("RUNPOD_TCP_PORT_{port}"));
    told.with_context(|| format!("port {port} has no public port"))?
        .parse()
        .with_context(|| format!("the public port of port {port} is not a number"))
}

fn nats_server(bundle: &Bundle, dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("nats-server");
    fetch(&bundle.nats_server_url, &bundle.nats_server_sha256, &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Fetches a file unless it is here, and checks that it is the right one.
fn fetch(url: &str, sha256: &str, path: &Path) -> anyhow::Result<()> {
    if path.is_file() && sha256_of(path)? == sha256 {
        return Ok(());
    }
    let source = Source::new(url, None, true)?;
    let wanted = Wanted {
        source: &source,
        sha256: Some(sha256),
        bytes: None,
        connections: CONNECTIONS,
        retries: RETRIES,
        quiet: true,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fetched = wanted
        .fetch(&path.with_file_name(format!("{name}.part")))
        .with_context(|| format!("{name} could not be downloaded"))?;
    ensure!(fetched.sha256 == sha256, "the digest of {name} differs from the order");
    std::fs::rename(&fetched.path, path).with_context(|| format!("cannot write {}", path.display()))
}
