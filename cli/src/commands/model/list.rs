//! `ternfleet model list`: which models are known, which are here, and whether their digests were checked.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::fetch::size;
use crate::models::{self, Known, Store, Whereabouts};
use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Folder of the models [default: the user's data folder]
    #[arg(long, value_name = "DIR", env = "TERNFLEET_MODEL_DIR")]
    dir: Option<PathBuf>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let store = Store::find(self.dir.as_deref())?;
        let rows: Vec<(Known, Whereabouts)> = models::known(&store)?
            .into_iter()
            .map(|known| {
                let place = store.whereabouts(&known);
                (known, place)
            })
            .collect();
        if self.json {
            say_json(&rows.iter().map(|(known, place)| as_json(known, place)).collect::<Vec<Value>>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let width = rows.iter().map(|(known, _)| known.name().len()).max().unwrap_or(0);
        for (known, place) in &rows {
            say(&format!("{:width$}  {:24}  {}", known.name(), state(place), known.manifest.description))?;
            if let Some(reason) = &known.manifest.not_runnable {
                say(&format!("{:width$}  not supported by this engine: {reason}", ""))?;
            }
            if let Whereabouts::Here { path, .. } = place {
                say(&format!("{:width$}  {}", "", path.display()))?;
            }
        }
        eprintln!("`ternfleet model pull NAME` downloads a model; `--model NAME` uses it");
        Ok(ExitCode::SUCCESS)
    }
}

fn bytes_here(place: &Whereabouts) -> Option<u64> {
    match place {
        Whereabouts::Here { path, .. } => std::fs::metadata(path).ok().map(|facts| facts.len()),
        Whereabouts::Partly { bytes, .. } => Some(*bytes),
        Whereabouts::Absent => None,
    }
}

fn state(place: &Whereabouts) -> String {
    let here = size(bytes_here(place).unwrap_or(0));
    match place {
        Whereabouts::Here { stamp: Some(stamp), .. } if stamp.verified => format!(
            "downloaded, verified, \
                                                                                   {here}"
        ),
        Whereabouts::Here { .. } => format!("downloaded, {here}"),
        Whereabouts::Partly { bytes, of } => {
            format!("{} % of {}", bytes.saturating_mul(100).checked_div(*of).unwrap_or(0), size(*of))
        }
        Whereabouts::Absent => "not downloaded".to_owned(),
    }
}

fn as_json(known: &Known, place: &Whereabouts) -> Value {
    let manifest = &known.manifest;
    let source = manifest.source.as_ref();
    let (path, stamp) = match place {
        Whereabouts::Here { path, stamp } => (Some(path), stamp.as_ref()),
        _ => (None, None),
    };
    json!({
        "name": manifest.name,
        "description": manifest.description,
        "licence": manifest.licence,
        "url": source.and_then(|source| source.url.as_ref()),
        "sha256": source.and_then(|source| source.sha256.as_ref()),
        "bytes": source.and_then(|source| source.bytes),
        "unverified": manifest.unverified,
        "not_runnable": manifest.not_runnable,
        "path": path,
        "bytes_here": bytes_here(place),
        "verified": stamp.is_some_and(|stamp| stamp.verified),
    })
}
