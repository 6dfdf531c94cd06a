//! `ternfleet down`: ends fleets that were launched from here, whatever state they are in.

use std::process::ExitCode;

use clap::Args;

use ternfleet_proto::message::{BatchRef, BatchView};
use ternfleet_proto::table::ApiVerb;

use crate::client::{Fleet, Patience};
use crate::launch::{self, Folder, Folders, Head, State};
use crate::output::say;
use crate::{follow, stop};

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// The fleet; the one that is open unless named
    #[arg(value_name = "NAME", conflicts_with = "all")]
    name: Option<String>,
    /// Every fleet that has not ended
    #[arg(long)]
    all: bool,
}

impl Down {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let folders = Folders::find()?;
        let open = if self.all {
            folders.all()?.into_iter().filter(|state| state.ended_at.is_none()).collect()
        } else {
            vec![folders.choose(self.name.as_deref())?]
        };
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
        let question = BatchRef { tenant: fleet.tenant.clone(), id: id.clone() };
        let _: BatchView = fleet.ask(ApiVerb::BatchCancel, &question, Patience::Short).await?;
    }
    let batch = fleet.batch(&id, Patience::Short).await?;
    if batch.completed > 0 {
        let draft = folder.begin_out(state)?;
        let path = follow::into_file(fleet, &batch, draft, Patience::Short).await?;
        eprintln!("what was answered: {}", path.display());
    }
    Ok(())
}
