//! `ternfleet batches`: the open batches, then those that have ended.

use std::process::ExitCode;

use clap::Args;

use ternfleet_proto::{TimeMs, openai};

use crate::client::Fleet;
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::{listing, report, stop};

#[derive(Debug, Args)]
pub(crate) struct Batches {
    /// Maximum number of batches to list
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print a JSON array of batch objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Batches {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let most = self.limit as usize;
        let page = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            listing::read_once(&fleet, None, |batches| batches.len() >= most).await
        })?;
        let known: u64 = page.counts.values().sum();
        let mut batches = page.batches;
        batches.truncate(most);
        if self.json {
            say_json(&batches.iter().map(openai::batch_object).collect::<Vec<_>>())?;
        } else if batches.is_empty() {
            eprintln!("no batches; submit one with `ternfleet submit FILE.jsonl`");
        } else {
            say(&report::batch_table(&batches, TimeMs::now()))?;
            if let Some(waits) = report::waits(&batches) {
                say(&format!("\n{waits}"))?;
            }
            if known > batches.len() as u64 {
                eprintln!("{} of {known} batches; --limit {known} lists all", batches.len());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
