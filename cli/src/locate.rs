//! Finding files that belong to Ternfleet: beside the working directory's or the program's own repository.

use std::path::{Path, PathBuf};

use anyhow::bail;

/// The model that ships, relative to the repository.
const STORYTELLER: &str = "models/storyteller/storyteller.gguf";

/// The first place where `relative` exists: the working directory and its parents, then the program's folder and its
/// parents, so that both a checkout and an unpacked archive work.
pub(crate) fn shipped(relative: &str) -> Option<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let starts = [here.as_deref(), program.as_deref().and_then(Path::parent)];
    starts
        .into_iter()
        .flatten()
        .flat_map(Path::ancestors)
        .map(|folder| folder.join(relative))
        .find(|path| path.is_file())
}

/// The model to run: the one named, else the storyteller.
pub(crate) fn model(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let found = match named {
        Some(path) => path.is_file().then(|| path.to_owned()),
        None => shipped(STORYTELLER),
    };
    match (found, named) {
        (Some(path), _) => Ok(std::fs::canonicalize(&path).unwrap_or(path)),
        (None, Some(path)) => bail!("there is no model file {}", path.display()),
        (None, None) => {
            bail!("{STORYTELLER} was not found here or beside the program: name a model with --model PATH")
        }
    }
}
