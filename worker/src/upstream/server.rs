//! The server's own process, where this worker starts it.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// From the polite signal to the hard one.
const GRACE: Duration = Duration::from_secs(10);

/// A running command. It is a group of processes of its own, so that all of it can be ended.
#[derive(Debug)]
pub(crate) struct Server {
    command: String,
    child: Child,
    /// The number of its first process, which outlives it as the group's.
    group: Option<i32>,
}

impl Server {
    /// Starts a command as a shell reads it.
    pub(super) fn start(command: &str) -> anyhow::Result<Server> {
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("exec {command}")])
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("the server cannot be started by {command:?}"))?;
        tracing::info!(command, pid = child.id(), "the server was started");
        let group = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Server { command: command.to_owned(), child, group })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends what is left of it and starts it anew.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        self.end().await;
        *self = Server::start(&self.command)?;
        Ok(())
    }

    /// Ends it: politely at first.
    pub(crate) async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(command = self.command, "the server does not end; it is killed");
        }
        // What it has started may outlive it.
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait().await;
    }

    fn signal(&self, signal: Signal) {
        // A group of which nothing is left needs no signal.
        if let Some(group) = self.group {
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }
}
