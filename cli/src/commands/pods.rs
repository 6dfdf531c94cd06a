//! `ternfleet pods`: who works, how fast, at what price; who was lost, and what all of it has cost.

use std::process::ExitCode;

use clap::Args;
use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{FleetView, PodRef};
use ternfleet_proto::table::ApiVerb;

use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::{losses, report, stop};

#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Dismiss this lost pod from the list
    #[arg(long, value_name = "POD")]
    dismiss: Option<String>,
    /// Print a JSON array of pods; money is in micro-dollars
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Pods {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Pods { dismiss, json, connection } = self;
        let (FleetView { pods, lost, spent, .. }, scale) = stop::block_on(async {
            let fleet = Fleet::connect(&connection).await?;
            if let Some(pod) = dismiss {
                fleet.ask::<_, ()>(ApiVerb::PodDismiss, &PodRef { pod }, Patience::Short).await?;
            }
            let mut view: FleetView = fleet.ask(ApiVerb::Fleet, &(), Patience::Short).await?;
            if view.next.is_some() {
                view.pods = report::pods(&fleet, view.pods).await?;
            }
            let view = losses::sorted(view);
            let scale = if view.pods.is_empty() { report::scale(&fleet).await } else { None };
            Ok((view, scale))
        })?;
        if json {
            say_json(&pods)?;
            return Ok(ExitCode::SUCCESS);
        }
        if pods.is_empty() {
            eprintln!("{}", report::no_pods(scale.as_ref()));
        }
        let table = (!pods.is_empty()).then(|| report::pod_table(&pods));
        let parts = table.into_iter().chain(losses::lost_table(&lost, TimeMs::now()));
        let parts: Vec<String> = parts.chain(spent.map(losses::spent_line)).collect();
        if !parts.is_empty() {
            say(&parts.join("\n\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
