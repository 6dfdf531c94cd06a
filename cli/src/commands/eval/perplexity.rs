//! `ternfleet perplexity`, also as `ternfleet eval perplexity`: how well a model predicts a text, or given continuations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use ternfleet_engine::eval::{self, Continuation, Perplexity, Sliding, Windows};

use super::{Common, open, read};
use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct PerplexityOf {
    /// A text file, such as WikiText-2's test set
    #[arg(value_name = "FILE", required_unless_present_any = ["text", "continuations"])]
    file: Option<PathBuf>,
    /// Same as FILE
    #[arg(long = "file", value_name = "FILE", conflicts_with = "file")]
    text: Option<PathBuf>,
    /// Score continuations instead: JSON lines of {"context", "continuation"}; prints one object per line
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["file", "text", "stride", "first_scored", "context"])]
    continuations: Option<PathBuf>,
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<PathBuf>,
    /// Tokens per window, including the begin-of-text token
    #[arg(long, visible_alias = "window", value_name = "N", default_value_t = Windows::default().tokens)]
    context: usize,
    /// Sliding windows: each begins this many tokens after the previous one, and each token is scored once. By default
    /// windows do not overlap and the second half of each is scored, as in llama.cpp
    #[arg(long, value_name = "N", conflicts_with = "first_scored")]
    stride: Option<usize>,
    /// Without --stride: first scored position of a window [default: half of the window]
    #[arg(long, value_name = "N")]
    first_scored: Option<usize>,
    #[command(flatten)]
    common: Common,
}

/// A line of `--continuations`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    context: String,
    continuation: String,
}

impl PerplexityOf {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match (&self.continuations, self.file.as_ref().or(self.text.as_ref())) {
            (Some(lines), _) => self.score(lines),
            (None, Some(text)) => self.measure(text),
            (None, None) => bail!("pass a text file or --continuations"),
        }
    }

    fn measure(&self, text: &Path) -> anyhow::Result<ExitCode> {
        let model = open(self.model.as_ref())?;
        let tokenizer = model.tokenizer()?;
        let ids = tokenizer.encode_literal(&read(text)?)?;
        let mut engine = self.common.load(&model)?;
        let most = engine.info().max_context;
        ensure!(
            self.context <= most,
            "--context {}: the model's context has at most {most} tokens",
            self.context
        );
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let bytes = |id| tokenizer.text_bytes(id).len();
        let tell = |n_windows: usize| {
            move |so_far: &Perplexity| {
                eprintln!("window {} of {n_windows}: perplexity {:.4}", so_far.n_windows, so_far.value());
            }
        };
        let tokens = self.context;
        let (found, how) = if let Some(stride) = self.stride {
            let n_windows = ids.len().saturating_sub(tokens).div_ceil(stride.max(1)) + 1;
            let sliding = Sliding { tokens, stride };
            let found = eval::sliding_perplexity(&mut engine, &ids, bos, sliding, bytes, tell(n_windows))?;
            (found, json!({"context": tokens, "stride": stride}))
        } else {
            let n_windows = (ids.len() + usize::from(bos.is_some())) / tokens.max(1);
            let first_scored = self.first_scored.unwrap_or(tokens / 2);
            let windows = Windows { tokens, first_scored };
            let found = eval::perplexity(&mut engine, &ids, bos, windows, bytes, tell(n_windows))?;
            (found, json!({"context": tokens, "first_scored": first_scored}))
        };
        let (value, error, bits) = (found.value(), found.standard_error(), found.bits_per_byte());
        self.common.print(
            &json!({
                "perplexity": value, "standard_error": error, "bits_per_byte": bits, "n_scored": found.n_scored,
                "n_windows": found.n_windows, "windows": how,
            }),
            &format!(
                "perplexity {value:.4} ± {error:.4}, {bits:.4} bits per byte; {} predictions in {} windows \
                 of {tokens}",
                found.n_scored, found.n_windows
            ),
        );
        Ok(ExitCode::SUCCESS)
    }

    /// One line out for each line in, in order.
    fn score(&self, path: &Path) -> anyhow::Result<ExitCode> {
        let data = read(path)?;
        let place = |index: usize| format!("line {} of {}", index + 1, path.display());
        let mut lines = Vec::new();
        for (index, text) in data.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let line: Line = serde_json::from_str(text).with_context(|| place(index))?;
            lines.push((index, Continuation { context: line.context, text: line.continuation }));
        }
        ensure!(!lines.is_empty(), "{} has no continuations", path.display());
        let model = open(self.model.as_ref())?;
        let tokenizer = model.tokenizer()?;
        let mut engine = self.common.load(&model)?;
        for (index, continuation) in lines {
            let score = continuation.score(&mut engine, &tokenizer).with_context(|| place(index))?;
            if self.common.json {
                say_json(&json!({
                    "line": index + 1, "log_likelihood": score.log_probability, "n_tokens": score.n_tokens,
                    "greedy": score.greedy,
                }))?;
            } else {
                let greedy = if score.greedy { ", also the greedy output" } else { "" };
                let (line, sum, n) = (index + 1, score.log_probability, score.n_tokens);
                say(&format!("line {line}: ln p {sum:.4} over {n} tokens{greedy}"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
