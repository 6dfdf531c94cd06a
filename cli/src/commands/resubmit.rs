//! `ternfleet resubmit ID --failed`: sends the failed lines of a batch again, as a new batch.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tempfile::NamedTempFile;
use tokio::io::BufReader;

use ternfleet_coordinator::again;
use ternfleet_proto::UsdMicro;
use ternfleet_proto::message::{BatchView, FailureCode};

use crate::client::{Fleet, Patience};
use crate::commands::submit::Submit;
use crate::connection::Connection;
use crate::named::Named;
use crate::output::Target;
use crate::{dollars, span, stop};

#[derive(Debug, Args)]
pub(crate) struct Resubmit {
    /// Batch whose lines are submitted again, by id or name; it must have ended
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Submit the lines that ended as error lines
    #[arg(long, required = true)]
    failed: bool,
    /// Only lines that failed with this code, such as batch_expired or poison; can be repeated. By default all
    /// except invalid requests (invalid_request), which would fail again
    #[arg(long, value_name = "CODE", value_parser = parse_code)]
    code: Vec<FailureCode>,
    #[command(flatten)]
    again: Again,
}

/// What the new batch is given: as `submit`, but for what it takes over from the old one.
#[derive(Debug, Args)]
pub(crate) struct Again {
    /// File for the results, complete and in input order; `-` writes to standard output, in order of completion
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    out: Option<Target>,
    /// Overwrite the file of --out if it exists
    #[arg(long)]
    force: bool,
    /// Print the id of the new batch and do not wait
    #[arg(long)]
    detach: bool,
    /// Maximum cost of the new batch, in dollars
    #[arg(long, value_name = "USD", value_parser = dollars::parse, allow_negative_numbers = true)]
    budget: Option<UsdMicro>,
    /// Time from now by which the batch must be done: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// Submit even if the quote exceeds the deadline or budget
    #[arg(long)]
    anyway: bool,
    /// Print the batch object as JSON at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// Which lines go again.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// Error lines with one of these codes; where none is named, all that may succeed when they are sent again.
    Failed(Vec<FailureCode>),
    /// These, by index, in ascending order.
    Lines(Vec<u32>),
}

impl Resubmit {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.again.send(&self.id, Chosen::Failed(self.code))
    }
}

impl Again {
    /// Makes the file of chosen lines and submits it.
    pub(crate) fn send(self, old: &Named, chosen: Chosen) -> anyhow::Result<ExitCode> {
        let (old, file, count) = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let old = old.find(&fleet).await?;
            let id = &old.id;
            let chosen = match chosen {
                Chosen::Lines(lines) => lines,
                Chosen::Failed(codes) => failed_lines(&fleet, &old, &codes).await?,
            };
            if chosen.is_empty() {
                let such = if old.failed == 0 { "no line failed" } else { "no line was selected" };
                bail!("{id}: {such}");
            }
            let file = copy_lines(&fleet, &old, &chosen).await?;
            Ok((old, file, chosen.len()))
        })?;
        eprintln!("submitting {count} of {} lines of {} again", old.total, old.id);
        let submit = Submit {
            file: file.path().to_owned(),
            out: self.out,
            force: self.force,
            detach: self.detach,
            name: again::name(&old),
            model: old.options.model.clone(),
            budget: self.budget,
            deadline: self.deadline,
            anyway: self.anyway,
            wait_for_model: old.options.wait_for_model,
            priority: old.options.priority,
            webhook: old.options.webhook_url.clone(),
            webhook_secret_file: None,
            then: None,
            metadata: again::metadata(&old),
            table: Default::default(),
            json: self.json,
            connection: self.connection,
        };
        submit.run()
    }
}

fn parse_code(text: &str) -> Result<FailureCode, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        "unknown code; known are invalid_request, prompt_too_long, model_not_found, batch_expired, \
         batch_cancelled, \
         poison"
            .to_owned()
    })
}

async fn failed_lines(fleet: &Fleet, old: &BatchView, codes: &[FailureCode]) -> anyhow::Result<Vec<u32>> {
    if !old.state.is_terminal() {
        bail!("{0} has not ended: wait for it (`ternfleet results {0} --wait`), or cancel it first", old.id);
    }
    let Some(object) = &old.error_object else { return Ok(Vec::new()) };
    let mut errors = BufReader::new(fleet.open(object, 0, Patience::Short).await?);
    let chosen = again::failed_lines(&mut errors, codes).await.context("the error file cannot be read")?;
    if chosen.left_out > 0 {
        eprintln!(
            "{} invalid line(s) left out: correct them, or add --code invalid_request",
            chosen.left_out
        );
    }
    Ok(chosen.lines)
}

/// The chosen lines of the old input, one after the other.
async fn copy_lines(fleet: &Fleet, old: &BatchView, chosen: &[u32]) -> anyhow::Result<NamedTempFile> {
    let input = fleet
        .open(&old.input_object, 0, Patience::Short)
        .await
        .context("the input of the old batch has been deleted")?;
    let mut input = BufReader::with_capacity(1 << 18, input);
    let file = NamedTempFile::new().context("cannot write the lines to a temporary file")?;
    let mut output = tokio::fs::File::from_std(file.reopen().context("the temporary file")?);
    again::copy_lines(&mut input, chosen, &mut output).await.context("the lines cannot be copied")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_as_in_error_lines() {
        assert_eq!(parse_code("batch_expired"), Ok(FailureCode::BatchExpired));
        assert!(parse_code("expired").unwrap_err().contains("batch_expired"));
    }
}
