//! `ternfleet eval`: perplexity, last words, multiple choice, and how far two models' predictions differ.

mod kl;
mod perplexity;
mod tasks;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use ternfleet_engine::{Engine, Head, Kv, Options};

use crate::model_file::{ModelFile, threads};

pub(crate) use self::perplexity::PerplexityOf;

#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Debug, Subcommand)]
enum Measure {
    /// Perplexity of a text file; same as `ternfleet perplexity`
    Perplexity(PerplexityOf),
    /// Predict the last words of passages; JSON lines with "text"
    Lambada(tasks::Lambada),
    /// Answer multiple-choice questions; JSON lines
    MultipleChoice(tasks::MultipleChoice),
    /// KL divergence of B's predictions from A's, for two models or two files of `ternfleet logits`
    Kl(kl::Kl),
}

/// What every measure takes.
#[derive(Debug, Args)]
struct Common {
    /// Threads [default: usable cores, at most 16]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.measure {
            Measure::Perplexity(task) => task.run(),
            Measure::Lambada(task) => task.run(),
            Measure::MultipleChoice(task) => task.run(),
            Measure::Kl(task) => task.run(),
        }
    }
}

impl Common {
    fn load(&self, model: &ModelFile) -> anyhow::Result<Engine> {
        self.load_with(model, Head::Full, Kv::F16)
    }

    fn load_with(&self, model: &ModelFile, head: Head, kv: Kv) -> anyhow::Result<Engine> {
        let threads = Some(threads(self.threads.map(usize::from)));
        model.load(&Options { threads, max_sequences: 1, head, kv, ..Options::default() })
    }

    /// The result on stdout: for programs, or for people.
    fn print(&self, json: &serde_json::Value, text: &str) {
        if self.json {
            println!("{json}");
        } else {
            println!("{text}");
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The model to measure; the storyteller that ships unless named.
fn open(named: Option<&PathBuf>) -> anyhow::Result<ModelFile> {
    ModelFile::open(named.map(PathBuf::as_path))
}
