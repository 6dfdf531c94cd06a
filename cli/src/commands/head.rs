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
use crate::fetch::{Source, Wanted, sha256_of};
use crate::guard::Guard;
use crate::launch::bundle::{self, Bundle};
use crate::local::{self, Ended, Plan, Secured};
use crate::stop;

/// Of the fetch of nats-server.
const RETRIES: u32 = 10;
const CONNECTIONS: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct Head {
    /// Folder for everything; the first that can be written unless given
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Head {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let guard = Guard::arm();
        match self.serve(&guard) {
            // Somebody has asked this process to end, who knows of the pod.
            Ok(Ended::Asked) => {}
            Ok(Ended::Unheard) => {
                eprintln!("nobody has asked anything for long enough: this pod ends itself");
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
        let port = std::env::var(format!("RUNPOD_TCP_PORT_{}", bundle::NATS_PORT));
        let port = port
            .context("the port of NATS has no public side")?
            .parse()
            .context("its public port is no number")?;
        let nats_server = nats_server(&bundle, &dir)?;
        let written = bundle.write(&dir, &host, port, TimeMs::now())?;
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

/// Fetches nats-server unless it is here, and checks that it is the right one.
fn nats_server(bundle: &Bundle, dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("nats-server");
    if path.is_file() && sha256_of(&path)? == bundle.nats_server_sha256 {
        return Ok(path);
    }
    let source = Source::new(&bundle.nats_server_url, None, true)?;
    let wanted = Wanted {
        source: &source,
        sha256: Some(&bundle.nats_server_sha256),
        bytes: None,
        connections: CONNECTIONS,
        retries: RETRIES,
        quiet: true,
    };
    let fetched =
        wanted.fetch(&dir.join("nats-server.part")).context("nats-server could not be downloaded")?;
    ensure!(fetched.sha256 == bundle.nats_server_sha256, "nats-server is another than the bundle names");
    std::fs::set_permissions(&fetched.path, std::fs::Permissions::from_mode(0o755))
        .and_then(|()| std::fs::rename(&fetched.path, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
