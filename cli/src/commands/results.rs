//! `ternfleet results ID`: the answers of a batch, committed ones only, finished or still running.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::named::Named;
use crate::output::{Existing, Target, WholeFile};
use crate::progress::{Progress, describe};
use crate::table::{Joined, Results as Table};
use crate::{exit, follow, stop};

#[derive(Debug, Args)]
pub(crate) struct Results {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// File for the results, complete and in input order; `-` writes to standard output, in order of completion
    #[arg(long, value_name = "FILE", default_value = "-", num_args = 0..=1, default_missing_value = "-")]
    out: Target,
    /// Overwrite the file of --out if it exists
    #[arg(long)]
    force: bool,
    /// Wait until the batch has ended
    #[arg(long)]
    wait: bool,
    /// Format of the answers [default: by the ending of --out: .jsonl, .csv, .parquet or .arrow]
    #[arg(long, value_enum, value_name = "FORM")]
    format: Option<Format>,
    /// Table that the batch was made from: the answers are written beside its rows
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "json"])]
    table: Option<PathBuf>,
    /// File for the signed manifest of the batch, for `verify`
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// Same as --format jsonl
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Results {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let batch = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let draft = match &self.out {
                Target::File(path) => {
                    let format = self.format.or(self.json.then_some(Format::Jsonl));
                    Some(Table::create(path, Existing::forced(self.force), format).await?)
                }
                Target::Stdout if self.table.is_some() => bail!("--table needs a file: add --out FILE"),
                Target::Stdout => None,
            };
            let batch = self.id.find(&fleet).await?;
            let id = &batch.id.clone();
            let mut progress = Progress::new();
            let patience = if self.wait { Patience::Endless } else { Patience::Short };
            let batch = match draft {
                None => {
                    let progress = self.wait.then_some(&mut progress);
                    follow::stream(&fleet, id, self.format.unwrap_or_default(), self.wait, progress).await?
                }
                Some(draft) => {
                    let batch =
                        if self.wait { follow::to_the_end(&fleet, id, &mut progress).await? } else { batch };
                    if self.wait {
                        progress.finish(&batch);
                    }
                    let joined = match &self.table {
                        Some(table) => Some(Joined::of_batch(&fleet, &batch, table, None).await?.into()),
                        None => None,
                    };
                    let path = draft.write(&fleet, &batch, joined, patience).await?;
                    eprintln!("results: {}", path.display());
                    batch
                }
            };
            if let Some(path) = &self.proof {
                let draft = WholeFile::create(path, Existing::forced(self.force))?;
                let path = follow::proof_into_file(&fleet, &batch, draft, patience).await?;
                eprintln!("proof: {}", path.display());
            }
            Ok(batch)
        })?;
        if !batch.state.is_terminal() {
            eprintln!("{} is still running: {}", batch.id, describe(&batch, ternfleet_proto::TimeMs::now()));
        }
        Ok(exit::of_batch(&batch))
    }
}
