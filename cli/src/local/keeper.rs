//! Keeping one child process alive: start, log, restart with a growing pause, stop politely and then firmly.
//!
//! Every child starts through `ternfleet attached`, so that it dies with this process, even by `kill -9`. It has a process
//! group of its own, so that Ctrl-C reaches this process alone and the parts end in the right order.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::data_dir::DataDir;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long had started well: the next pause is short again.
const STEADY: Duration = Duration::from_secs(20);

/// A program to keep running.
pub(crate) struct Part {
    pub(crate) name: String,
    /// Asked before each start: program and arguments may change between two starts.
    pub(crate) command: Box<dyn Fn() -> anyhow::Result<Vec<String>>>,
    /// CPUs that it may run on; empty for all.
    pub(crate) cpus: Vec<usize>,
    /// From the polite signal to the firm one.
    pub(crate) grace: Duration,
}

/// What happened to a part.
#[derive(Debug)]
pub(crate) enum News {
    Started { name: String, pid: u32 },
    Ended { name: String, status: String },
}

/// A part that is kept running until it is told to stop.
pub(crate) struct Keeper {
    stop: CancellationToken,
    insist: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts it; must be called on the runtime's own thread, whose end would take the child along.
    pub(crate) fn start(part: Part, dir: Rc<DataDir>, news: mpsc::UnboundedSender<News>) -> Keeper {
        let (stop, insist) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::task::spawn_local(keep(part, dir, news, stop.clone(), insist.clone()));
        Keeper { stop, insist, task }
    }

    /// Asks it to end; [`Keeper::ended`] waits for it.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends it at once.
    pub(crate) fn insist(&self) {
        self.stop.cancel();
        self.insist.cancel();
    }

    pub(crate) async fn ended(&mut self) {
        // The task does not panic; if it did, dropping it killed its child.
        let _ = (&mut self.task).await;
    }
}

async fn keep(
    part: Part,
    dir: Rc<DataDir>,
    news: mpsc::UnboundedSender<News>,
    stop: CancellationToken,
    insist: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let status = match spawn(&part, &dir) {
            Ok(mut child) => {
                let pid = child.id().unwrap_or_default();
                // Nobody listens any more only when everything ends.
                let _ = news.send(News::Started { name: part.name.clone(), pid });
                tokio::select! {
                    status = child.wait() => describe(status),
                    () = stop.cancelled() => {
                        end(&mut child, part.grace, &insist).await;
                        return;
                    }
                }
            }
            Err(error) => format!("it cannot be started: {error:#}"),
        };
        let _ = news.send(News::Ended { name: part.name.clone(), status });
        if started.elapsed() >= STEADY {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn spawn(part: &Part, dir: &DataDir) -> anyhow::Result<Child> {
    let log = dir.open_log(&part.name)?;
    let errors = log.try_clone().context("cannot write its log")?;
    let this_program: PathBuf = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = Command::new(this_program);
    command.arg("attached").arg("--parent").arg(std::process::id().to_string());
    if !part.cpus.is_empty() {
        let cpus: Vec<String> = part.cpus.iter().map(usize::to_string).collect();
        command.arg("--cpus").arg(cpus.join(","));
    }
    command
        .arg("--")
        .args((part.command)()?)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("no process could be created")
}

/// SIGTERM, then SIGKILL when the grace is over or somebody insists.
async fn end(child: &mut Child, grace: Duration, insist: &CancellationToken) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended by itself just now.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let patience = async {
        tokio::select! {
            () = tokio::time::sleep(grace) => {}
            () = insist.cancelled() => {}
        }
    };
    tokio::select! {
        _ = child.wait() => {}
        () = patience => {
            let _ = child.kill().await;
        }
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("cannot wait for its exit: {error}"),
    }
}
