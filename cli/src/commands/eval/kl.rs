//! `ternfleet eval kl`: what a change of engine, head or file does to the predictions.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use ternfleet_engine::eval::{Divergence, divergence};
use ternfleet_engine::{Head, Kv};

use super::{Common, open, read};

#[derive(Debug, Args)]
pub(super) struct Kl {
    /// The reference: a model (file or name), or logits with `--vocab`
    #[arg(value_name = "A")]
    reference: PathBuf,
    /// What is compared with A [default: A itself, with another --head or --kv]
    #[arg(value_name = "B", required_unless_present_any = ["head", "kv"])]
    other: Option<PathBuf>,
    /// B computes its output with this head: full, screened (the same scores) or an approximation such as q8
    #[arg(long, value_name = "HEAD", conflicts_with = "vocab")]
    head: Option<Head>,
    /// B stores its keys and values as f16 or int8 (an approximation)
    #[arg(long, value_name = "KV", conflicts_with = "vocab")]
    kv: Option<Kv>,
    /// For two models: text on which they are compared, tokenized by A's tokenizer
    #[arg(long, value_name = "FILE", required_unless_present = "vocab")]
    text: Option<PathBuf>,
    /// For two models: tokens per window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    window: u32,
    /// A and B are raw logits as written by `ternfleet logits`, with this vocabulary size
    #[arg(long, value_name = "N", conflicts_with = "text", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl Kl {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let found = match (self.vocab, &self.text) {
            (Some(vocab), _) => self.of_logits(vocab as usize)?,
            (None, Some(text)) => self.of_models(text)?,
            (None, None) => anyhow::bail!("pass --text for two models, or --vocab for two files of logits"),
        };
        let (mean, same, rms) = (found.mean_nats(), found.same_best(), found.rms());
        self.common.print(
            &json!({
                "n": found.n, "mean_kl_nats": mean, "largest_kl_nats": found.largest_nats, "same_best": same,
                "rms_logits": rms,
            }),
            &format!(
                "{} positions: KL mean {mean:.6} nats, max {:.6}; same most likely token at {:.2} %; RMS \
                 difference of logits {rms:.6}",
                found.n,
                found.largest_nats,
                100.0 * same
            ),
        );
        Ok(ExitCode::SUCCESS)
    }

    fn other(&self) -> &PathBuf {
        self.other.as_ref().unwrap_or(&self.reference)
    }

    fn of_logits(&self, vocab: usize) -> anyhow::Result<Divergence> {
        let (reference, other) = (read_logits(&self.reference)?, read_logits(self.other())?);
        ensure!(
            reference.len() == other.len(),
            "the two files have {} and {} logits",
            reference.len(),
            other.len()
        );
        ensure!(
            !reference.is_empty() && reference.len().is_multiple_of(vocab),
            "{} logits are not a multiple of the vocabulary size {vocab}",
            reference.len()
        );
        Ok(divergence(&reference, &other, vocab))
    }

    fn of_models(&self, text: &Path) -> anyhow::Result<Divergence> {
        let (reference, other) = (open(Some(&self.reference))?, open(Some(self.other()))?);
        let vocab = reference.hyper.vocab;
        ensure!(
            vocab == other.hyper.vocab,
            "vocabulary sizes differ: {vocab} and {} tokens",
            other.hyper.vocab
        );
        let tokenizer = reference.tokenizer()?;
        let ids = tokenizer.encode(&read(text)?, tokenizer.adds_bos())?;
        ensure!(!ids.is_empty(), "{} is empty", text.display());
        let head = self.head.unwrap_or(Head::Full);
        let (mut reference, mut other) = (
            self.common.load(&reference)?,
            self.common.load_with(&other, head, self.kv.unwrap_or_default())?,
        );
        let mut found = Divergence::default();
        for window in ids.chunks(self.window as usize) {
            found.add(&divergence(&reference.logits(window)?, &other.logits(window)?, vocab));
        }
        Ok(found)
    }
}

fn read_logits(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (logits, rest) = bytes.as_chunks::<4>();
    ensure!(
        rest.is_empty(),
        "{} has {} bytes, which is not a multiple of 4: it is not a file of f32",
        path.display(),
        bytes.len()
    );
    Ok(logits.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
