//! `ternfleet pods`: who works, how fast, at what price.

use std::process::ExitCode;

use clap::Args;

use crate::client::Fleet;
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::{report, stop};

#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Print an array of pods; money is in micro-dollars
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Pods {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let (pods, scale) = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let pods = report::pods(&fleet).await?;
            let scale = if pods.is_empty() { report::scale(&fleet).await } else { None };
            Ok((pods, scale))
        })?;
        if self.json {
            say_json(&pods)?;
        } else if pods.is_empty() {
            eprintln!("{}", report::no_pods(scale.as_ref()));
        } else {
            say(&report::pod_table(&pods))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
