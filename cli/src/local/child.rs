//! `ternfleet up` as a process of its own: how `demo` and `launch` start one and wait for it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::addresses::{self, Addresses};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// How long the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// As long as this one; what it says goes to this one's standard error.
    WithThis,
    /// On its own; what it says goes to `up.log` in its folder.
    Own,
}

/// Starts `ternfleet up --dir DIR` with further arguments.
pub(crate) fn start(dir: &Path, arguments: &[OsString], life: Life) -> anyhow::Result<Child> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Left over from a fleet that was killed, it would be taken for the new one's.
    let _ = std::fs::remove_file(dir.join(addresses::FILE));
    let this_program = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = Command::new(&this_program);
    if life == Life::WithThis {
        command.args(["attached", "--parent", &std::process::id().to_string(), "--"]).arg(&this_program);
        command.stdout(Stdio::null()).kill_on_drop(true);
    } else {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("up.log"));
        let log = log.with_context(|| format!("cannot write in {}", dir.display()))?;
        command.stdout(log.try_clone()?).stderr(log);
    }
    command
        .arg("up")
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        // Ctrl-C comes to this process alone, which passes it on or does not.
        .process_group(0)
        .spawn()
        .context("the fleet cannot be started")
}

/// Waits until the fleet in `dir` can take work. `child` is its process, if this process started it.
pub(crate) async fn wait_until_ready(dir: &Path, mut child: Option<&mut Child>) -> anyhow::Result<Addresses> {
    let began = Instant::now();
    loop {
        if let Some(addresses) = addresses::at(dir)? {
            return Ok(addresses);
        }
        let status = child.as_mut().map(|child| child.try_wait()).transpose();
        if let Some(status) = status.context("the fleet's state cannot be read")?.flatten() {
            bail!("the fleet did not start ({status}): see above, or {}", dir.join("up.log").display());
        }
        if began.elapsed() > START_TIMEOUT {
            bail!("the fleet is not ready after {} s: see {}/logs", START_TIMEOUT.as_secs(), dir.display());
        }
        tokio::time::sleep(POLL).await;
    }
}
