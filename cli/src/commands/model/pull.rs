//! `ternfleet model pull NAME`: fetches a model file, checks it, and puts it where `--model NAME` finds it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;

use ternfleet_engine::gguf;
use ternfleet_engine::model_file;

use crate::fetch::{Fetched, Source, Wanted, sha256_of, size};
use crate::models::{self, Known, Store, Whereabouts};
use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// A name of `ternfleet model list`
    #[arg(value_name = "NAME", required_unless_present = "manifest")]
    name: Option<String>,
    /// Download the model that this manifest describes
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    manifest: Option<PathBuf>,
    /// Mirror in place of the model's own host: https://HOST[/PATH]
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    endpoint: Option<String>,
    /// Folder of the models [default: the user's data folder]
    #[arg(long, value_name = "DIR", env = "TERNFLEET_MODEL_DIR")]
    dir: Option<PathBuf>,
    /// Number of parallel connections
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    connections: u8,
    /// Number of consecutive failures that are tolerated
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,
    /// Accept a file whose digest is not in the manifest, without a check
    #[arg(long)]
    accept_unverified: bool,
    /// Download it again even if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object, and no progress
    #[arg(long)]
    json: bool,
}

/// What is there in the end.
struct Here {
    path: PathBuf,
    sha256: String,
    bytes: u64,
    verified: bool,
    /// Whether it came just now.
    fetched: bool,
}

impl Pull {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let begun = Instant::now();
        let store = Store::find(self.dir.as_deref())?;
        let known = self.known(&store)?;
        let here = self.pull(&known, &store)?;
        if self.json {
            say_json(&json!({
                "name": known.name(), "path": here.path, "sha256": here.sha256, "bytes": here.bytes,
                "verified": here.verified, "fetched": here.fetched, "seconds": begun.elapsed().as_secs_f64(),
            }))?;
        } else {
            say(&here.path.display().to_string())?;
            self.tell(&known, &here);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn known(&self, store: &Store) -> anyhow::Result<Known> {
        match (&self.manifest, &self.name) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Known::parse(&text, &path.display().to_string())
            }
            (None, Some(name)) => models::named(name, store),
            (None, None) => bail!("pass the name of a model, or --manifest"),
        }
    }

    fn tell(&self, known: &Known, here: &Here) {
        let state = match (here.verified, here.fetched) {
            (true, true) => "digest verified",
            (true, false) => "already downloaded, digest verified",
            (false, _) => "UNVERIFIED: the manifest has no digest",
        };
        eprintln!("{}: {}, {state} (SHA-256 {})", known.name(), size(here.bytes), here.sha256);
        if let Some(note) = &known.manifest.unverified {
            eprintln!("note: {note}");
        }
        match &known.manifest.not_runnable {
            Some(reason) => eprintln!("note: this engine does not support it: {reason}"),
            None => eprintln!("run it: ternfleet generate --model {} -p \"…\"", known.name()),
        }
    }

    fn pull(&self, known: &Known, store: &Store) -> anyhow::Result<Here> {
        let source = known.manifest.source.as_ref();
        let Some((source, url)) = source.and_then(|source| Some((source, source.url.as_deref()?))) else {
            return shipped(known, store);
        };
        ensure!(
            source.sha256.is_some() || self.accept_unverified,
            "the manifest of {} has no digest, so the file cannot be verified; {}to download it \
             nevertheless, add --accept-unverified",
            known.name(),
            known.manifest.unverified.as_ref().map(|note| format!("{note}; ")).unwrap_or_default()
        );
        let _lock = store.lock(known)?;
        if !self.force
            && let Some(here) = already(known, store)?
        {
            return Ok(here);
        }
        let url = match &self.endpoint {
            Some(endpoint) => at_endpoint(url, endpoint)?,
            None => url.to_owned(),
        };
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        let remote = Source::new(&url, token, source.sha256.is_some())?;
        let wanted = Wanted {
            source: &remote,
            sha256: source.sha256.as_deref(),
            bytes: source.bytes,
            connections: self.connections.into(),
            retries: self.retries,
            quiet: self.json,
        };
        let part = store.part(known);
        let fetched =
            wanted.fetch(&part).with_context(|| format!("{} could not be downloaded", known.name()))?;
        examine(known, &fetched, &store.file(known))?;
        self.install(known, store, fetched)
    }

    /// Moves a checked file into its place, manifest first: without its manifest, the pre-tokenizer would be a guess.
    fn install(&self, known: &Known, store: &Store, fetched: Fetched) -> anyhow::Result<Here> {
        let path = store.file(known);
        store.put_manifest(known)?;
        std::fs::rename(&fetched.path, &path)
            .with_context(|| format!("cannot move the file to {}", path.display()))?;
        crate::fetch::forget(&fetched.path);
        let verified = known.manifest.source.as_ref().is_some_and(|source| source.sha256.is_some());
        store.put_stamp(known, &fetched.sha256, verified)?;
        let Fetched { bytes, sha256, .. } = fetched;
        Ok(Here { path, sha256, bytes, verified, fetched: true })
    }
}

/// A model that is not fetched, because it comes with the program.
fn shipped(known: &Known, store: &Store) -> anyhow::Result<Here> {
    match store.whereabouts(known) {
        Whereabouts::Here { path, .. } => {
            let sha256 = sha256_of(&path)?;
            let bytes = std::fs::metadata(&path)?.len();
            let wanted = known.manifest.source.as_ref().and_then(|source| source.sha256.as_deref());
            let verified = wanted == Some(sha256.as_str());
            ensure!(verified || wanted.is_none(), "{} does not match its manifest", path.display());
            Ok(Here { path, sha256, bytes, verified, fetched: false })
        }
        _ => bail!("the manifest of {} has no download address", known.name()),
    }
}

/// The file that is here, if it is the right one.
fn already(known: &Known, store: &Store) -> anyhow::Result<Option<Here>> {
    let Whereabouts::Here { path, stamp } = store.whereabouts(known) else { return Ok(None) };
    let wanted = known.manifest.source.as_ref().and_then(|source| source.sha256.clone());
    let sha256 = match stamp {
        Some(stamp) => stamp.sha256,
        None => sha256_of(&path)?,
    };
    let verified = wanted.as_ref() == Some(&sha256);
    ensure!(
        verified || wanted.is_none(),
        "{} exists but does not match the manifest (its SHA-256 is {sha256}): --force downloads it again",
        path.display()
    );
    store.put_manifest(known)?;
    store.put_stamp(known, &sha256, verified)?;
    let bytes = std::fs::metadata(&path)?.len();
    Ok(Some(Here { path, sha256, bytes, verified, fetched: false }))
}

/// Refuses what is no model, or not the manifest's. A digest that fits leaves nothing to doubt but the manifest.
pub(crate) fn examine(known: &Known, fetched: &Fetched, path: &Path) -> anyhow::Result<()> {
    let forget = || crate::fetch::forget(&fetched.path);
    let file = gguf::File::open(&fetched.path)
        .inspect_err(|_| forget())
        .with_context(|| format!("the download for {} is not a model file, and was deleted", known.name()))?;
    let report = model_file::examine(path, &file, Some(&known.manifest));
    if !report.disagreements.is_empty() {
        forget();
        bail!(
            "the download for {} does not match its manifest, and was deleted: {}",
            known.name(),
            report.disagreements.join("; ")
        );
    }
    if known.manifest.not_runnable.is_none() && !report.faults.is_empty() {
        forget();
        bail!(
            "the download for {} cannot be run, and was deleted: {}",
            known.name(),
            report.faults.join("; ")
        );
    }
    Ok(())
}

/// The same path on a mirror.
fn at_endpoint(url: &str, endpoint: &str) -> anyhow::Result<String> {
    ensure!(
        endpoint.starts_with("https://") || endpoint.starts_with("http://"),
        "--endpoint {endpoint:?} is not an address: it must begin with https:// (or http://)"
    );
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    Ok(format!("{}/{path}", endpoint.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_takes_the_place_of_the_host_alone() {
        let url = "https://huggingface.co/org/model/resolve/main/a.gguf";
        assert_eq!(
            at_endpoint(url, "https://mirror.example/hf/").unwrap(),
            "https://mirror.example/hf/org/model/resolve/main/a.gguf"
        );
        assert!(at_endpoint(url, "mirror.example").is_err());
    }
}
