//! `ternfleet model inspect FILE`: what a model file holds, for a person or as one JSON object.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use ternfleet_engine::gguf::{self, File, Hyper, check_model};
use ternfleet_text::{Manifest, Tokenizer};

use crate::output::{say, say_json};
use crate::report::{printable, table};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one object
    #[arg(long)]
    json: bool,
}

/// Everything that was found out.
struct Findings {
    file: File,
    hyper: Result<Hyper, String>,
    /// Why the engine would not run it.
    fault: Option<String>,
    manifest: Option<Manifest>,
    tokenizer: Result<Tokenizer, String>,
    note: Option<String>,
    disagreements: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let file = File::open(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let manifest = Manifest::beside(&self.file).context("the manifest beside the file cannot be used")?;
        let findings = Findings::of(file, manifest);
        if self.json {
            say_json(&findings.as_json())?;
        } else {
            say(&findings.in_words())?;
        }
        let sound = findings.fault.is_none() && findings.disagreements.is_empty();
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Findings {
    fn of(file: File, manifest: Option<Manifest>) -> Findings {
        let hyper = Hyper::read(&file).map_err(|error| error.to_string());
        let fault = check_model(&file).err().map(|error| error.to_string());
        let prepared = gguf::vocabulary(&file).map_err(|error| error.to_string()).and_then(|words| {
            Tokenizer::from_parts(&words, manifest.as_ref()).map_err(|error| error.to_string())
        });
        let (tokenizer, note) = match prepared {
            Ok(prepared) => (Ok(prepared.tokenizer), prepared.note),
            Err(error) => (Err(error), None),
        };
        let disagreements = match (&hyper, &manifest) {
            (Ok(hyper), Some(manifest)) => disagreements(hyper, file.len_bytes(), manifest),
            _ => Vec::new(),
        };
        Findings { file, hyper, fault, manifest, tokenizer, note, disagreements }
    }

    fn as_json(&self) -> Value {
        let tensors: Vec<Value> = self
            .file
            .tensors()
            .map(|tensor| {
                json!({"name": tensor.name, "dims": tensor.dims, "type": tensor.kind.to_string(), "bytes": tensor.data.len()})
            })
            .collect();
        let metadata: Vec<Value> =
            self.file.entries().map(|(key, value)| json!({"key": key, "type": value.type_name()})).collect();
        let tokenizer = self.tokenizer.as_ref().map(|tokenizer| {
            json!({
                "tokens": tokenizer.n_vocab(),
                "bos": tokenizer.bos(),
                "adds_bos": tokenizer.adds_bos(),
                "eos": tokenizer.eos(),
                "stop_ids": tokenizer.stop_ids(),
                "chat": tokenizer.can_chat(),
                "note": self.note,
            })
        });
        json!({
            "bytes": self.file.len_bytes(),
            "architecture": self.hyper.as_ref().ok().map(|hyper| hyper.architecture.clone()),
            "name": self.hyper.as_ref().ok().map(|hyper| hyper.name.clone()),
            "shape": self.hyper.as_ref().ok().map(|hyper| json!({
                "n_layers": hyper.n_layers, "hidden": hyper.hidden, "ffn": hyper.ffn, "n_heads": hyper.n_heads,
                "n_kv_heads": hyper.n_kv_heads, "head_dim": hyper.head_dim, "vocab": hyper.vocab,
                "context": hyper.context, "rope_theta": hyper.rope_theta, "rms_eps": hyper.rms_eps,
            })),
            "runs": self.fault.is_none(),
            "fault": self.fault,
            "manifest": self.manifest.as_ref().map(|manifest| manifest.name.clone()),
            "disagreements": self.disagreements,
            "tokenizer": tokenizer.unwrap_or_else(|error| json!({"fault": error})),
            "metadata": metadata,
            "tensors": tensors,
        })
    }

    fn in_words(&self) -> String {
        let mut lines = vec![format!("size          {} bytes", self.file.len_bytes())];
        match &self.hyper {
            Ok(hyper) => {
                lines.push(format!("architecture  {} ({})", hyper.architecture, printable(&hyper.name)));
                lines.push(format!(
                    "shape         {} layers, hidden {}, ffn {}, {} heads of {} ({} key/value), vocabulary {}, context {}",
                    hyper.n_layers, hyper.hidden, hyper.ffn, hyper.n_heads, hyper.head_dim, hyper.n_kv_heads,
                    hyper.vocab, hyper.context
                ));
                lines.push(format!("ternary       {} weights", hyper.n_ternary_weights()));
            }
            Err(error) => lines.push(format!("architecture  {}", printable(error))),
        }
        match &self.tokenizer {
            Ok(tokenizer) => lines.push(format!(
                "tokenizer     {} tokens, BOS {}, stops at {:?}, {}",
                tokenizer.n_vocab(),
                tokenizer.bos().map_or("none".to_owned(), |id| format!(
                    "{id}{}",
                    if tokenizer.adds_bos() { " added" } else { "" }
                )),
                tokenizer.stop_ids(),
                if tokenizer.can_chat() { "chats" } else { "does not chat" }
            )),
            Err(error) => lines.push(format!("tokenizer     {}", printable(error))),
        }
        lines.extend(self.note.iter().map(|note| format!("              {note}")));
        lines.push(format!(
            "manifest      {}",
            self.manifest.as_ref().map_or("none beside the file", |m| m.name.as_str())
        ));
        lines.extend(self.disagreements.iter().map(|what| format!("DISAGREES     {what}")));
        match &self.fault {
            None => lines.push("runs          yes".to_owned()),
            Some(fault) => lines.push(format!("runs          no: {}", printable(fault))),
        }
        lines.push(String::new());
        let rows = self.file.tensors().map(|tensor| {
            let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
            vec![
                tensor.name.to_owned(),
                tensor.kind.to_string(),
                dims.join(" x "),
                tensor.data.len().to_string(),
            ]
        });
        lines.push(table(&["tensor", "type", "dims", "bytes"], rows.collect()));
        lines.join("\n")
    }
}

/// What the manifest says otherwise than the file.
fn disagreements(hyper: &Hyper, bytes: u64, manifest: &Manifest) -> Vec<String> {
    let shape = &manifest.shape;
    let mut found = Vec::new();
    if let Some(architecture) = shape.architecture.as_ref().filter(|name| **name != hyper.architecture) {
        found.push(format!(
            "architecture: {} in the file, {architecture} in the manifest",
            hyper.architecture
        ));
    }
    let pairs = [
        ("n_layers", hyper.n_layers, shape.n_layers),
        ("hidden", hyper.hidden, shape.hidden),
        ("ffn", hyper.ffn, shape.ffn),
        ("n_heads", hyper.n_heads, shape.n_heads),
        ("n_kv_heads", hyper.n_kv_heads, shape.n_kv_heads),
        ("head_dim", hyper.head_dim, shape.head_dim),
        ("vocab", hyper.vocab, shape.vocab),
        ("context", hyper.context, shape.context),
        ("bytes", bytes as usize, manifest.source.as_ref().and_then(|source| source.bytes)),
    ];
    let differing = pairs.into_iter().filter_map(|(name, file, manifest)| {
        let manifest = manifest.filter(|&manifest| manifest != file as u64)?;
        Some(format!("{name}: {file} in the file, {manifest} in the manifest"))
    });
    found.extend(differing);
    found
}
