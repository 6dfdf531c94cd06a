//! `ternfleet eval lambada|multiple-choice`: one model on published data.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use ternfleet_engine::eval::{Choices, Format, LastWords};

use super::{Common, open, read};

#[derive(Debug, Args)]
pub(super) struct Lambada {
    /// JSON lines, each with "text"
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Maximum number of passages
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct MultipleChoice {
    /// JSON lines in the format of --format
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Format of the file: hellaswag, winogrande, piqa, arc, or plain ({"context", "choices", "answer"})
    #[arg(long, value_name = "NAME")]
    format: Format,
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Maximum number of questions
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    common: Common,
}

impl Lambada {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let model = open(self.model.as_ref())?;
        let tokenizer = model.tokenizer()?;
        let data = read(&self.file)?;
        let mut engine = self.common.load(&model)?;
        let mut words = LastWords::default();
        let lines = data.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines.take(self.limit.unwrap_or(usize::MAX)) {
            let place = || format!("line {} of {}", index + 1, self.file.display());
            let json: serde_json::Value = serde_json::from_str(line).with_context(place)?;
            let text = json["text"].as_str().context("\"text\" is missing").with_context(place)?;
            words.add(&mut engine, &tokenizer, text).with_context(place)?;
        }
        anyhow::ensure!(words.n > 0, "{} has no passages", self.file.display());
        let (accuracy, perplexity) = (words.accuracy(), words.perplexity());
        self.common.print(
            &json!({"n": words.n, "accuracy": accuracy, "perplexity": perplexity}),
            &format!(
                "{} passages: accuracy of the last word {:.2} %, perplexity {perplexity:.3}",
                words.n,
                100.0 * accuracy
            ),
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl MultipleChoice {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let model = open(self.model.as_ref())?;
        let tokenizer = model.tokenizer()?;
        let mut questions = self.format.read(&read(&self.file)?)?;
        questions.truncate(self.limit.unwrap_or(usize::MAX));
        anyhow::ensure!(!questions.is_empty(), "{} has no questions", self.file.display());
        let mut engine = self.common.load(&model)?;
        let mut choices = Choices::default();
        for (index, question) in questions.iter().enumerate() {
            choices
                .add(&mut engine, &tokenizer, question)
                .with_context(|| format!("question {} of {}", index + 1, self.file.display()))?;
        }
        let (accuracy, by_length) = (choices.accuracy(), choices.accuracy_by_length());
        self.common.print(
            &json!({"n": choices.n, "acc": accuracy, "acc_norm": by_length}),
            &format!(
                "{} questions: acc {:.2} %, acc_norm {:.2} % (probability per character)",
                choices.n,
                100.0 * accuracy,
                100.0 * by_length
            ),
        );
        Ok(ExitCode::SUCCESS)
    }
}
