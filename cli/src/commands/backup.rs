//! `ternfleet backup` and `ternfleet restore`: the fleet's truth, stream by stream, into a folder and back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use ternfleet_proto::nats::NatsBus;
use ternfleet_proto::table;

use crate::client;
use crate::connection::Connection;
use crate::output::say;
use crate::stop;

const ENDING: &str = "stream";

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Folder for the backup; it must not exist yet
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Folder of the backup
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Replicas of each stream; use 3 on a cluster of three servers
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: usize,
    #[command(flatten)]
    connection: Connection,
}

impl Backup {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.dir.exists() {
            bail!("{} already exists: choose a new folder", self.dir.display());
        }
        stop::block_on(async {
            let bus = NatsBus::connect(&client::connect_options(&self.connection)).await?;
            let mut names = bus.stream_names().await.context("the streams cannot be listed")?;
            names.retain(|name| table::is_truth(name));
            if names.is_empty() {
                bail!("{} has no streams of a fleet", self.connection.address().url());
            }
            // Records before answers: a record is never newer than the answers that it counts.
            names.sort_by_key(|name| (name.as_str() == table::RESULTS, name.clone()));
            std::fs::create_dir_all(&self.dir)
                .with_context(|| format!("cannot make the folder {}", self.dir.display()))?;
            for name in names {
                let file = self.dir.join(format!("{name}.{ENDING}"));
                let bytes = bus.save_stream(&name, &file).await?;
                say(&format!("{name}  {bytes} bytes"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Restore {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let said = || format!("the backup {} cannot be read", self.dir.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).with_context(said)? {
            let path = entry.with_context(said)?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
            if let Some(name) = name.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) {
                files.push((name, path));
            }
        }
        files.sort();
        if files.is_empty() {
            bail!("{} is not a backup: it has no .{ENDING} files", self.dir.display());
        }
        stop::block_on(async {
            let bus = NatsBus::connect(&client::connect_options(&self.connection)).await?;
            let there = bus.stream_names().await.context("the streams cannot be listed")?;
            let taken: Vec<&str> = files
                .iter()
                .map(|(name, _)| name.as_str())
                .filter(|name| there.iter().any(|t| t == name))
                .collect();
            if !taken.is_empty() {
                bail!(
                    "{} already exists: restore into a NATS server without the fleet's streams, while \
                     coordinators are stopped",
                    taken.join(", ")
                );
            }
            for (name, file) in &files {
                let messages = bus.load_stream(name, file, self.replicas).await?;
                say(&format!("{name}  {messages} messages"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
