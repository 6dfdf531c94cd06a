//! `ternfleet dead list|show|retry`: jobs that were given up, with the reason and every attempt.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use ternfleet_proto::message::{DeadJob, DeadList, DeadPage};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{BatchId, TenantId, TimeMs};

use crate::client::{Fleet, Patience};
use crate::commands::resubmit::{Again, Chosen};
use crate::connection::Connection;
use crate::named::Named;
use crate::output::{say, say_json};
use crate::report::printable;
use crate::{report, span, stop};

/// Dead jobs asked for at once.
const PAGE_JOBS: u32 = 200;

#[derive(Debug, Args)]
pub(crate) struct Dead {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List dead letters, oldest first
    List(List),
    /// Show every attempt of the dead letters of a batch
    Show(Show),
    /// Submit the dead letters of a batch again, as a new batch
    Retry(Retry),
}

#[derive(Debug, Args)]
struct List {
    /// Only dead letters of this batch
    #[arg(long, value_name = "BATCH")]
    batch: Option<Named>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct Show {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Line numbers in the input, from 1 [default: all dead letters of the batch]
    #[arg(value_name = "LINE", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Vec<u32>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct Retry {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Line numbers in the input, from 1 [default: all dead letters of the batch]
    #[arg(value_name = "LINE", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Vec<u32>,
    #[command(flatten)]
    again: Again,
}

impl Dead {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::List(list) => {
                let jobs = read(&list.connection, list.batch.as_ref(), &[])?;
                if list.json {
                    return each_as_json(&jobs);
                }
                if jobs.is_empty() {
                    eprintln!("no dead letters");
                } else {
                    say(&table(&jobs))?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Action::Show(show) => {
                let jobs = read(&show.connection, Some(&show.id), &show.lines)?;
                if jobs.is_empty() {
                    bail!("none of these lines of {} is a dead letter: see `ternfleet dead list`", show.id);
                }
                if show.json {
                    return each_as_json(&jobs);
                }
                say(&jobs.iter().map(page).collect::<Vec<_>>().join("\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Action::Retry(retry) => {
                let jobs = read(&retry.again.connection, Some(&retry.id), &retry.lines)?;
                if jobs.is_empty() {
                    bail!("none of these lines of {} is a dead letter: see `ternfleet dead list`", retry.id);
                }
                let mut lines: Vec<u32> = jobs.iter().map(|dead| dead.job.index).collect();
                lines.sort_unstable();
                retry.again.send(&retry.id, Chosen::Lines(lines))
            }
        }
    }
}

/// Dead jobs of this tenant; a job that died twice (under two leaders) is told once, as it was told last.
fn read(to: &Connection, batch: Option<&Named>, lines: &[u32]) -> anyhow::Result<Vec<DeadJob>> {
    let mut jobs: Vec<DeadJob> = stop::block_on(async {
        let fleet = Fleet::connect(to).await?;
        let batch = match batch {
            Some(batch) => Some(batch.find(&fleet).await?.id),
            None => None,
        };
        all(&fleet, &fleet.tenant, batch).await.context("the dead letters cannot be read")
    })?;
    jobs.retain(|dead| lines.is_empty() || lines.contains(&(dead.job.index + 1)));
    Ok(jobs)
}

async fn all(fleet: &Fleet, tenant: &TenantId, batch: Option<BatchId>) -> anyhow::Result<Vec<DeadJob>> {
    let mut question = DeadList { tenant: tenant.clone(), batch, after: 0, limit: PAGE_JOBS };
    let mut jobs: Vec<DeadJob> = Vec::new();
    loop {
        let page: DeadPage = fleet.ask(ApiVerb::DeadList, &question, Patience::Short).await?;
        for dead in page.jobs {
            jobs.retain(|before| before.job != dead.job);
            jobs.push(dead);
        }
        question.after = page.next;
        if page.end {
            return Ok(jobs);
        }
    }
}

fn each_as_json(jobs: &[DeadJob]) -> anyhow::Result<ExitCode> {
    jobs.iter().try_for_each(say_json)?;
    Ok(ExitCode::SUCCESS)
}

fn table(jobs: &[DeadJob]) -> String {
    let rows = jobs.iter().map(|dead| {
        vec![
            dead.job.batch.to_string(),
            (dead.job.index + 1).to_string(),
            ago(dead.at),
            dead.attempts.to_string(),
            dead.hosts.join(" "),
            dead.log.last().map_or(&dead.reason, |attempt| &attempt.reason).clone(),
        ]
    });
    report::table(&["batch", "line", "given up", "attempts", "hosts", "last reason"], rows.collect())
}

fn page(dead: &DeadJob) -> String {
    let mut lines = vec![format!("{} line {}", dead.job.batch, dead.job.index + 1)];
    if let Some(id) = &dead.line.custom_id {
        lines.push(format!("  custom_id  {}", printable(id)));
    }
    lines.push(format!("  died       {}: {}", ago(dead.at), printable(&dead.reason)));
    for attempt in &dead.log {
        let worker = attempt.worker.as_ref().map_or("no worker".to_owned(), ToString::to_string);
        let host = attempt.host.as_ref().map_or(String::new(), |host| format!(" on {}", printable(host)));
        lines.push(format!(
            "  attempt    {}: {worker}{host}, {} tokens in: {}",
            ago(attempt.at),
            attempt.generated,
            printable(&attempt.reason)
        ));
    }
    let untold = dead.attempts.saturating_sub(dead.log.len() as u32);
    if untold > 0 {
        lines.push(format!("  attempts   {untold} more under an earlier leader, without details"));
    }
    lines.push(format!("  retry:     ternfleet dead retry {} {}", dead.job.batch, dead.job.index + 1));
    lines.join("\n")
}

fn ago(at: TimeMs) -> String {
    format!("{} ago", span::short(TimeMs::now().since(at)))
}
