//! `ternfleet logits`: scores of the next token after each id, as raw little-endian f32 of shape (n_ids, n_vocab).

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use ternfleet_engine::{Head, Options};

use crate::commands::generate::IdList;
use crate::model_file::{ModelFile, parse_ids, threads};
use crate::output::{Existing, WholeFile};

#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Token ids, used as they are; no BOS is added
    #[arg(long, value_name = "1,2,3", value_parser = parse_ids)]
    ids: IdList,
    /// Threads [default: usable cores, at most 16]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// File for the logits (little-endian f32)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

impl Logits {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = ModelFile::open(self.model.as_deref())?;
        let mut file = WholeFile::create(&self.out, Existing::forced(self.force))?;
        let options = Options {
            threads: Some(threads(self.threads.map(usize::from))),
            max_sequences: 1,
            max_context: Some(self.ids.len().clamp(1, model.hyper.context)),
            head: Head::Full,
            ..Options::default()
        };
        let mut engine = model.load(&options)?;
        let scores = engine.logits(&self.ids)?; // (n_ids, n_vocab)
        for row in scores.chunks(model.hyper.vocab) {
            let bytes: Vec<u8> = row.iter().flat_map(|score| score.to_le_bytes()).collect();
            file.writer()
                .write_all(&bytes)
                .with_context(|| format!("cannot write {}", self.out.display()))?;
        }
        file.publish()?;
        eprintln!("{} x {} logits, f32, little-endian", self.ids.len(), model.hyper.vocab);
        Ok(ExitCode::SUCCESS)
    }
}
