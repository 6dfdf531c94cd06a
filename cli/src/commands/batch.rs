//! `ternfleet batch set ID`: changes what a running batch may cost, when it must be done, how urgent it is.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use ternfleet_proto::message::{BatchSet, BatchView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, UsdMicro, openai};

use crate::client::{Fleet, Patience};
use crate::commands::status;
use crate::connection::Connection;
use crate::named::{Named, running};
use crate::output::{say, say_json};
use crate::{dollars, span, stop};

#[derive(Debug, Args)]
pub(crate) struct Batch {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Change budget, deadline or priority of a batch that has not ended
    Set(Set),
}

#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["budget", "deadline", "priority"])]
struct Set {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Maximum cost of the whole batch, in dollars
    #[arg(long, value_name = "USD", value_parser = dollars::parse, allow_negative_numbers = true)]
    budget: Option<UsdMicro>,
    /// Time from now by which the batch must be done: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "SPAN", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// Priority, from -10 (last) to 10 (first)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i8).range(-10..=10))]
    priority: Option<i8>,
    /// Print the batch object as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Batch {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Action::Set(set) = self.action;
        let batch: BatchView = stop::block_on(async {
            let fleet = Fleet::connect(&set.connection).await?;
            let id = running(set.id.find(&fleet).await?)?.id;
            let question = BatchSet {
                tenant: fleet.tenant.clone(),
                id: id.clone(),
                budget_usd_micro: set.budget,
                deadline: set.deadline.map(|span| TimeMs::now().plus(span)),
                priority: set.priority,
            };
            let answer = fleet.ask(ApiVerb::BatchSet, &question, Patience::Short).await;
            answer.with_context(|| format!("{id} was not changed"))
        })?;
        if set.json { say_json(&openai::batch_object(&batch)) } else { say(&status::page(&batch)) }?;
        Ok(ExitCode::SUCCESS)
    }
}
