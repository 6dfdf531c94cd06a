//! A model file as the commands without a fleet open it: its metadata, its manifest, its tokenizer, its engine.

use std::path::{Path, PathBuf};

use anyhow::Context;

use ternfleet_engine::gguf::{self, File, Hyper};
use ternfleet_engine::host::Topology;
use ternfleet_engine::{Engine, Options};
use ternfleet_text::{Manifest, Tokenizer};

use crate::locate;

/// An open model file.
#[derive(Debug)]
pub(crate) struct ModelFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) hyper: Hyper,
}

impl ModelFile {
    /// Opens the model named, else the storyteller.
    pub(crate) fn open(named: Option<&Path>) -> anyhow::Result<ModelFile> {
        let path = locate::model(named)?;
        let file = File::open(&path).with_context(|| format!("cannot use the model {}", path.display()))?;
        let hyper = Hyper::read(&file).with_context(|| format!("cannot use the model {}", path.display()))?;
        Ok(ModelFile { path, file, hyper })
    }

    pub(crate) fn manifest(&self) -> anyhow::Result<Option<Manifest>> {
        manifest_of(&self.path)
    }

    /// What a worker of this file calls the model.
    pub(crate) fn name(&self) -> anyhow::Result<String> {
        name_of(&self.path)
    }

    /// The tokenizer; the choice is reported where it was not obvious.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        let manifest = self.manifest()?;
        let vocabulary = gguf::vocabulary(&self.file).context("the model's vocabulary cannot be read")?;
        let prepared = Tokenizer::from_parts(&vocabulary, manifest.as_ref())?;
        if let Some(note) = &prepared.note {
            eprintln!("note: {note}");
        }
        Ok(prepared.tokenizer)
    }

    pub(crate) fn load(&self, options: &Options) -> anyhow::Result<Engine> {
        let engine = Engine::load(&self.path, options)?;
        for warning in &engine.info().warnings {
            eprintln!("warning: {warning}");
        }
        Ok(engine)
    }
}

fn manifest_of(path: &Path) -> anyhow::Result<Option<Manifest>> {
    Manifest::beside(path).context("the model's manifest cannot be used")
}

/// What a worker of this model file calls the model.
pub(crate) fn name_of(path: &Path) -> anyhow::Result<String> {
    let stem =
        || path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(manifest_of(path)?.map_or_else(stem, |manifest| manifest.name))
}

/// The thread count to run with: as many as asked for, with a warning above what this machine can run at once.
pub(crate) fn threads(asked: Option<usize>) -> usize {
    let topology = Topology::read();
    let usable = topology.usable_threads;
    match asked {
        None => topology.default_threads(),
        Some(threads) => {
            if threads > usable {
                eprintln!(
                    "warning: {threads} threads are slower than {usable} on {usable} usable cores (limited \
                     by affinity, quota and physical cores)"
                );
            }
            threads
        }
    }
}

/// Parses `1,2,3`.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    text.split(',')
        .map(|id| {
            id.trim()
                .parse::<u32>()
                .map_err(|_| format!("{:?} is not a token id: write numbers like 1,2,3", id.trim()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_between_commas() {
        assert_eq!(parse_ids("1, 2,300"), Ok(vec![1, 2, 300]));
        assert!(parse_ids("1,two").unwrap_err().contains("two"));
        assert!(parse_ids("").is_err());
        assert!(parse_ids("-1").is_err());
    }
}
