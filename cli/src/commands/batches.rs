//! `ternfleet batches`: all batches, newest first.

use std::process::ExitCode;

use clap::Args;

use ternfleet_proto::message::{BatchList, BatchView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, openai};

use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::{report, stop};

#[derive(Debug, Args)]
pub(crate) struct Batches {
    /// Most batches to list
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Print an array of OpenAI's batch objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Batches {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let batches: Vec<BatchView> = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let question = BatchList { tenant: fleet.tenant.clone(), after: None, limit: self.limit };
            fleet.ask(ApiVerb::BatchList, &question, Patience::Short).await
        })?;
        if self.json {
            say_json(&batches.iter().map(openai::batch_object).collect::<Vec<_>>())?;
        } else if batches.is_empty() {
            eprintln!("there are no batches; `ternfleet submit FILE.jsonl` makes one");
        } else {
            say(&report::batch_table(&batches, TimeMs::now()))?;
            if let Some(waits) = report::waits(&batches) {
                say(&format!("\n{waits}"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
