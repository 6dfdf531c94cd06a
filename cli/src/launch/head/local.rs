//! A head on this machine: a `ternfleet up` that outlives the command and rents worker processes as the work asks.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use ternfleet_cloud::local::Local;

use crate::addresses;
use crate::connection::Connection;
use crate::launch::state::{Folder, State};
use crate::local::{self, child};

/// A head that hears of nobody for so long after the last batch has ended ends itself.
const UNHEARD: &str = "6h";
const LOOK_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);
/// From the polite signal to the hard one: `up` ends within 10 s.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct LocalHead {
    dir: PathBuf,
    arguments: Vec<OsString>,
}

impl LocalHead {
    pub(super) fn new(state: &State, folder: &Folder) -> LocalHead {
        let dir = folder.path().join("head");
        let mut arguments: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        flag("--workers", "0".into());
        flag("--scale", format!("0..{}", state.pods_max).into());
        flag("--model", state.model.clone().into());
        flag("--price-usd-per-hour", state.price_usd_per_hour.to_string().into());
        flag("--end-unheard", UNHEARD.into());
        // Any port at first, and the same one again after a restart.
        if !dir.join("ports.json").exists() {
            flag("--nats-port", "0".into());
            flag("--http-port", "0".into());
        }
        LocalHead { dir, arguments }
    }

    pub(super) async fn ensure(&self) -> anyhow::Result<Connection> {
        let mut started = match addresses::running(&self.dir) {
            Some(_) => None,
            None => Some(child::start(&self.dir, &self.arguments, child::Life::Own)?),
        };
        let addresses = child::wait_until_ready(&self.dir, started.as_mut()).await?;
        Ok(Connection::local(addresses.nats))
    }

    pub(super) async fn find(&self) -> Option<Connection> {
        addresses::running(&self.dir)?;
        child::wait_until_ready(&self.dir, None).await.ok().map(|addresses| Connection::local(addresses.nats))
    }

    pub(super) async fn keep(&self) -> anyhow::Result<Infallible> {
        let first = self.ensure().await?.address();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if addresses::running(&self.dir).is_none() {
                eprintln!("the head has exited; restarting it");
                let again = self.ensure().await.context("the head cannot be restarted")?;
                if again.address() != first {
                    bail!("the head's port is in use: continue with `ternfleet launch --resume`");
                }
            }
        }
    }

    pub(super) fn provider(&self) -> anyhow::Result<Local> {
        local::rented_pods(&self.dir)
    }

    pub(super) async fn end(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut signal = Signal::SIGTERM;
        while let Some(process) = addresses::running(&self.dir) {
            if signal == Signal::SIGTERM || began.elapsed() > GRACE {
                // It may have ended by itself just now.
                let _ = kill(Pid::from_raw(process), signal);
                signal = Signal::SIGKILL;
            }
            tokio::time::sleep(POLL).await;
        }
        // Of a head that was killed, pods may be left.
        local::end_rented(&self.dir).await
    }
}
