//! `ternfleet fleets`: what was launched from this machine.

use std::process::ExitCode;

use clap::Args;

use ternfleet_proto::TimeMs;

use crate::launch::{Folders, Phase, State};
use crate::output::{say, say_json};
use crate::report::table;
use crate::span;

#[derive(Debug, Args)]
pub(crate) struct Fleets {
    /// Also list fleets that have ended
    #[arg(long)]
    all: bool,
    /// Print a JSON array of state files
    #[arg(long)]
    json: bool,
}

impl Fleets {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let folders = Folders::find()?;
        let mut fleets = folders.all()?;
        fleets.retain(|state| self.all || state.phase() != Phase::Ended);
        if self.json {
            say_json(&fleets)?;
        } else if fleets.is_empty() {
            eprintln!(
                "no fleet launched from this machine is open; start one with `ternfleet launch \
                       PROMPTS`"
            );
        } else {
            let now = TimeMs::now();
            let row = |state: &State| {
                let worked_on = folders.folder(&state.name).worked_on_by();
                vec![
                    state.name.clone(),
                    state.at.as_str().to_owned(),
                    state.phase().as_str().to_owned(),
                    span::short(now.since(state.began_at)),
                    state.batch.as_ref().map_or("-".to_owned(), ToString::to_string),
                    worked_on.map_or("detached".to_owned(), |process| format!("process {process}")),
                    state.out.display().to_string(),
                ]
            };
            let head = ["fleet", "at", "state", "began", "batch", "command", "results"];
            say(&table(&head, fleets.iter().map(row).collect()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
