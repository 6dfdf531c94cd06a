//! `ternfleet model …`: fetching, listing, checking, making, looking into and converting model files.

mod convert;
mod inspect;
mod list;
pub(crate) mod pull;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use ternfleet_engine::synth::{self, Shape};

use crate::output::{Existing, WholeFile};

#[derive(Debug, Args)]
pub(crate) struct Model {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Download and check a model, and store it where --model NAME finds it
    Pull(pull::Pull),
    /// List known models, and which of them are downloaded
    List(list::List),
    /// Compare digest and shape of model files with their manifests
    Verify(verify::Verify),
    /// Write a ternary model with random weights, in the layout of a published file
    Synth(Synth),
    /// Show architecture, tensors, sizes and tokenizer, and differences from the manifest
    Inspect(inspect::Inspect),
    /// Convert a Hugging Face checkpoint to GGUF, or back
    Convert(convert::Convert),
}

#[derive(Debug, Args)]
struct Synth {
    /// `2b4t`, `bonsai-8b`, `bonsai-4b`, `bonsai-1.7b`, `falcon3-7b`, `falcon-e-3b`, `llama3-8b`, `tiny`, or
    /// `[ARCHITECTURE:]LAYERSxHIDDENxFFNxHEADSxKV_HEADSxVOCABULARY[xHEAD_WIDTH]`, for example 2x256x512x4x2x512
    #[arg(long, value_name = "SHAPE")]
    shape: Shape,
    /// Seed of the weights; the same shape and seed give the same file on every machine
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

impl Model {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::Pull(pull) => pull.run(),
            Action::List(list) => list.run(),
            Action::Verify(verify) => verify.run(),
            Action::Synth(synth) => synth.run(),
            Action::Inspect(inspect) => inspect.run(),
            Action::Convert(convert) => convert.run(),
        }
    }
}

impl Synth {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut file = WholeFile::create(&self.out, Existing::forced(self.force))?;
        synth::write(&self.shape, self.seed, file.writer())
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        let path = file.publish()?;
        let bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
        eprintln!("{}: {:.1} MB", path.display(), bytes as f64 / 1e6);
        Ok(ExitCode::SUCCESS)
    }
}
