//! `ternfleet cancel ID`: stops a batch; answers that it has stay.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use ternfleet_proto::message::BatchView;
use ternfleet_proto::openai;

use crate::client::Fleet;
use crate::commands::status;
use crate::connection::Connection;
use crate::named::{Named, running};
use crate::output::{say, say_json};
use crate::stop;

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Print the batch object as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Cancel {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let batch: BatchView = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let id = running(self.id.find(&fleet).await?)?.id;
            fleet.cancel(&id).await.with_context(|| format!("{id} was not cancelled"))
        })?;
        if self.json { say_json(&openai::batch_object(&batch)) } else { say(&status::page(&batch)) }?;
        Ok(ExitCode::SUCCESS)
    }
}
