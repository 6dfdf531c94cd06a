//! `ternfleet model convert`: a Hugging Face checkpoint to I2_S GGUF, and back.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use ternfleet_engine::convert::{self, Checkpoint};

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// Folder of a checkpoint (config.json, *.safetensors, tokenizer.json), or a GGUF for `--to safetensors`
    #[arg(value_name = "FROM")]
    from: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::I2s)]
    to: Format,
    /// GGUF file or checkpoint folder to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A GGUF file in the layout of the official file
    I2s,
    /// A packed checkpoint that `transformers` loads
    Safetensors,
}

impl Convert {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let summary = match self.to {
            Format::I2s => convert::to_gguf(&self.from, &self.out)?,
            Format::Safetensors => convert::to_safetensors(&self.from, &self.out)?,
        };
        let kind = match summary.checkpoint {
            Checkpoint::Master => "master weights, ternarised by their mean",
            Checkpoint::Multiplying => "packed weights whose scales multiply",
            Checkpoint::Dividing => "packed weights whose scales divide",
            Checkpoint::Lattice => "floats that are ternary weights times scales",
        };
        let megabytes = summary.bytes as f64 / 1e6;
        eprintln!("{}: {} tensors, {megabytes:.1} MB; {kind}", self.out.display(), summary.n_tensors);
        summary.notes.iter().for_each(|note| eprintln!("note: {note}"));
        Ok(ExitCode::SUCCESS)
    }
}
