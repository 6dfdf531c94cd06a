//! `ternfleet model verify`: reads model files whole and compares digest, shape and codes with their manifests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use ternfleet_engine::gguf;
use ternfleet_engine::model_file;
use ternfleet_text::Manifest;
use ternfleet_text::tokenizer::{Difference, compare};

use crate::fetch::{sha256_of, size};
use crate::model_file::ModelFile;
use crate::models::{self, Store, Whereabouts};
use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Model names, or files with a manifest next to them [default: all downloaded models]
    #[arg(value_name = "NAME|FILE")]
    models: Vec<String>,
    /// Folder of the models [default: the user's data folder]
    #[arg(long, value_name = "DIR", env = "TERNFLEET_MODEL_DIR")]
    dir: Option<PathBuf>,
    /// The model's own tokenizer.json, to compare the token ids of a stored text; for one model
    #[arg(long, value_name = "tokenizer.json")]
    tokenizer: Option<PathBuf>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// One file, and all that is wrong with it.
struct Verdict {
    name: String,
    path: PathBuf,
    bytes: u64,
    sha256: String,
    /// Whether there was a digest to compare with.
    has_digest: bool,
    faults: Vec<String>,
}

impl Verify {
    /// Fails when anything is not as its manifest says.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let store = Store::find(self.dir.as_deref())?;
        let mut verdicts = self.verdicts(&store)?;
        ensure!(!verdicts.is_empty(), "no model is downloaded: see `ternfleet model list`");
        if let Some(path) = &self.tokenizer {
            ensure!(verdicts.len() == 1, "--tokenizer needs the name of one model");
            let faults = compare_tokenizers(&verdicts[0].path, path)?;
            verdicts[0].faults.extend(faults);
        }
        if self.json {
            say_json(&verdicts.iter().map(as_json).collect::<Vec<Value>>())?;
        } else {
            verdicts.iter().try_for_each(tell)?;
        }
        let sound = verdicts.iter().all(|verdict| verdict.faults.is_empty());
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn verdicts(&self, store: &Store) -> anyhow::Result<Vec<Verdict>> {
        if self.models.is_empty() {
            let here =
                models::known(store)?.into_iter().filter_map(|known| match store.whereabouts(&known) {
                    Whereabouts::Here { path, .. } => Some((known, path)),
                    _ => None,
                });
            return here.map(|(known, path)| of_known(store, &known, &path)).collect();
        }
        self.models.iter().map(|given| of_given(store, given)).collect()
    }
}

fn of_given(store: &Store, given: &str) -> anyhow::Result<Verdict> {
    let path = Path::new(given);
    if path.is_file() {
        let manifest =
            Manifest::beside(path)?.with_context(|| format!("{given} has no manifest.toml next to it"))?;
        return examine(&manifest, path);
    }
    let known = models::named(given, store)?;
    match store.whereabouts(&known) {
        Whereabouts::Here { path, .. } => of_known(store, &known, &path),
        _ => anyhow::bail!("{} is not downloaded: run `ternfleet model pull {0}`", known.name()),
    }
}

/// Where the two make other ids of the same text.
fn compare_tokenizers(model: &Path, tokenizer_json: &Path) -> anyhow::Result<Vec<String>> {
    let tokenizer = ModelFile::open(Some(model))?.tokenizer()?;
    let (n_texts, differences) = compare(&tokenizer, tokenizer_json)?;
    if differences.is_empty() {
        eprintln!(
            "{}: {n_texts} texts give the same token ids as {}",
            model.display(),
            tokenizer_json.display()
        );
    }
    let fault = |Difference { text, ours, theirs }: Difference| {
        format!("{text:?} becomes {ours:?}, but {theirs:?} by {}", tokenizer_json.display())
    };
    Ok(differences.into_iter().map(fault).collect())
}

/// A model of the store is stamped again when it is right. Where the manifest knows no digest, that of the first pull counts.
fn of_known(store: &Store, known: &models::Known, path: &Path) -> anyhow::Result<Verdict> {
    let mut verdict = examine(&known.manifest, path)?;
    if let Some(pinned) =
        store.pinned(known).filter(|pinned| !verdict.has_digest && *pinned != verdict.sha256)
    {
        let Verdict { sha256, .. } = &verdict;
        verdict.faults.push(format!("its SHA-256 is {sha256}, but it was {pinned} when it was downloaded"));
    }
    if verdict.faults.is_empty() && store.file(known) == path {
        // A folder that cannot be written only forgets the result.
        let _ = store.put_stamp(known, &verdict.sha256, verdict.has_digest);
    }
    Ok(verdict)
}

fn examine(manifest: &Manifest, path: &Path) -> anyhow::Result<Verdict> {
    let sha256 = sha256_of(path)?;
    let wanted = manifest.source.as_ref().and_then(|source| source.sha256.as_ref());
    let mut faults = Vec::new();
    if let Some(wanted) = wanted.filter(|wanted| **wanted != sha256) {
        faults.push(format!("its SHA-256 is {sha256}, but the manifest says {wanted}"));
    }
    match gguf::File::open(path) {
        Ok(file) => {
            let report = model_file::examine(path, &file, Some(manifest));
            faults.extend(report.disagreements);
            if manifest.not_runnable.is_none() {
                faults.extend(report.faults);
            }
        }
        Err(fault) => faults.push(fault.to_string()),
    }
    let bytes = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    let (name, path) = (manifest.name.clone(), path.to_owned());
    Ok(Verdict { name, path, bytes, sha256, has_digest: wanted.is_some(), faults })
}

fn tell(verdict: &Verdict) -> anyhow::Result<()> {
    let Verdict { name, bytes, sha256, .. } = verdict;
    if verdict.faults.is_empty() {
        let digest = if verdict.has_digest {
            "digest and shape match the manifest"
        } else {
            "shape matches the manifest, which has no digest"
        };
        return say(&format!("ok      {name}: {digest} ({}, SHA-256 {sha256})", size(*bytes)));
    }
    say(&format!("WRONG   {name}: {}", verdict.path.display()))?;
    verdict.faults.iter().try_for_each(|fault| say(&format!("        {fault}")))
}

fn as_json(verdict: &Verdict) -> Value {
    json!({
        "name": verdict.name,
        "path": verdict.path,
        "bytes": verdict.bytes,
        "sha256": verdict.sha256,
        "has_digest": verdict.has_digest,
        "faults": verdict.faults,
    })
}
