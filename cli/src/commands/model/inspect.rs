//! `ternfleet model inspect NAME|FILE`: what a model file holds, for a person or as one JSON object.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use ternfleet_engine::model_file::{self, Report, TokenizerFacts};

use crate::locate;
use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A model file, or the name of a downloaded model
    #[arg(value_name = "NAME|FILE")]
    model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Fails when the engine would not run the model, or its manifest says otherwise.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let report = model_file::inspect(&locate::file(&self.model)?)?;
        if self.json {
            say_json(&as_json(&report))?;
        } else {
            say(report.to_string().trim_end())?;
        }
        let sound = report.faults.is_empty() && report.disagreements.is_empty();
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn as_json(report: &Report) -> Value {
    let tensors: Vec<Value> = report
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "type": tensor.kind.to_string(),
                "dims": tensor.dims,
                "bytes": tensor.bytes,
            })
        })
        .collect();
    let shape = report.hyper.as_ref().map(|hyper| {
        json!({
            "n_layers": hyper.n_layers,
            "hidden": hyper.hidden,
            "ffn": hyper.ffn,
            "n_heads": hyper.n_heads,
            "n_kv_heads": hyper.n_kv_heads,
            "head_dim": hyper.head_dim,
            "vocab": hyper.vocab,
            "context": hyper.context,
            "rope_theta": hyper.rope_theta,
            "rms_eps": hyper.rms_eps,
            "n_ternary_weights": hyper.n_ternary_weights(),
        })
    });
    json!({
        "path": report.path,
        "bytes": report.bytes,
        "n_entries": report.n_entries,
        "alignment": report.alignment,
        "architecture": report.architecture,
        "shape": shape,
        "tokenizer": report.tokenizer.as_ref().map(tokenizer_json),
        "manifest": report.manifest,
        "disagreements": report.disagreements,
        "faults": report.faults,
        "tensors": tensors,
    })
}

fn tokenizer_json(facts: &TokenizerFacts) -> Value {
    let (stop_ids, note, fault) = match &facts.usable {
        Ok((stop_ids, note)) => (Some(stop_ids), note.as_ref(), None),
        Err(fault) => (None, None, Some(fault)),
    };
    json!({
        "n_tokens": facts.n_tokens,
        "n_merges": facts.n_merges,
        "pre": facts.pre,
        "bos": facts.bos,
        "eos": facts.eos,
        "add_bos": facts.add_bos,
        "stop_ids": stop_ids,
        "note": note,
        "fault": fault,
    })
}
