//! `ternfleet down`: ends the fleet of `up` in this folder, or fleets that were launched from here, whatever state they
//! are in.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::connection::USUAL_FOLDER;
use crate::launch::{self, Folder, Folders, Head, State};
use crate::output::say;
use crate::{addresses, follow, stop};

/// How long a fleet on this machine may take to drain and to give its rented pods back.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// A launched fleet [default: the fleet of `up` in the current folder, else the only launched fleet that is open]
    #[arg(value_name = "NAME", conflicts_with = "all")]
    name: Option<String>,
    /// All launched fleets that have not ended
    #[arg(long)]
    all: bool,
    /// Folder of a fleet that `ternfleet up` runs [default: ternfleet-data]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "all"])]
    dir: Option<PathBuf>,
}

impl Down {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let folders = Folders::find()?;
        if self.name.is_none() && !self.all {
            let dir = self.dir.as_deref().unwrap_or(Path::new(USUAL_FOLDER));
            match (addresses::running(dir), &self.dir) {
                (Some(process), given) => {
                    let open = folders.open()?;
                    if given.is_none() && !open.is_empty() {
                        let names: Vec<&str> = open.iter().map(|state| state.name.as_str()).collect();
                        bail!(
                            "a fleet runs in {0}, and a launched fleet is open: use `ternfleet down --dir \
                             {0}` or `ternfleet down {1}`",
                            dir.display(),
                            names.join("|")
                        );
                    }
                    return end_local(dir, process);
                }
                (None, Some(dir)) => bail!("no fleet runs in {}", dir.display()),
                (None, None) => {}
            }
        }
        let open = if self.all { folders.open()? } else { vec![folders.choose(self.name.as_deref())?] };
        stop::block_on(async {
            let mut failed = None;
            for state in open {
                let folder = folders.folder(&state.name);
                // One fleet that cannot be ended keeps no other from ending.
                let ended = async {
                    let _held = folder.lock()?;
                    end(&folder, state).await
                };
                if let Err(error) = ended.await {
                    eprintln!("error: {error:#}");
                    failed = Some(ExitCode::FAILURE);
                }
            }
            Ok(failed.unwrap_or(ExitCode::SUCCESS))
        })
    }
}

/// Has `ternfleet up` drain and end, as its Ctrl-C does.
fn end_local(dir: &Path, process: i32) -> anyhow::Result<ExitCode> {
    kill(Pid::from_raw(process), Signal::SIGTERM).with_context(|| {
        format!("cannot send a signal to process {process}, which runs the fleet in {}", dir.display())
    })?;
    eprintln!("draining the fleet in {}", dir.display());
    let began = Instant::now();
    while addresses::running(dir) == Some(process) {
        if began.elapsed() >= ENDS_WITHIN {
            bail!(
                "process {process} has not exited for {} s: see `ternfleet logs`, or end it with `kill -9 \
                 {process}`",
                ENDS_WITHIN.as_secs()
            );
        }
        std::thread::sleep(LOOK_EVERY);
    }
    say(&format!("the fleet in {} has stopped; its batches and results are kept there", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Cancels the batch, keeps what was answered, and gives everything back.
pub(crate) async fn end(folder: &Folder, mut state: State) -> anyhow::Result<()> {
    let head = Head::of(&state, folder)?;
    if let Some(connection) = head.find().await
        && let Err(error) =
            async { cancel(&Fleet::connect(&connection).await?, folder, &mut state).await }.await
    {
        eprintln!("{error:#}");
    }
    launch::give_back(&head, folder, &mut state).await?;
    say(&format!("{} has ended\n{}", state.name, state.bill_page()))
}

async fn cancel(fleet: &Fleet, folder: &Folder, state: &mut State) -> anyhow::Result<()> {
    let Some(id) = state.batch.clone().filter(|_| state.fetched.is_none()) else { return Ok(()) };
    let batch = fleet.batch(&id, Patience::Short).await?;
    if !batch.state.is_terminal() {
        fleet.cancel(&id).await?;
    }
    let batch = fleet.batch(&id, Patience::Short).await?;
    if batch.completed > 0 {
        let draft = folder.begin_out(state)?;
        let path = follow::into_file(fleet, &batch, draft, Format::Jsonl, Patience::Short).await?;
        eprintln!("finished answers: {}", path.display());
    }
    Ok(())
}
