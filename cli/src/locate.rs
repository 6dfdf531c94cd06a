//! Which model to run: a file, a name, or the one that ships.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::models::{self, Known, STORYTELLER, Store, Whereabouts};
use crate::shipped::storyteller;

/// The model to run: the file or the name given, else the storyteller.
pub(crate) fn model(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) if path.is_file() => path.to_owned(),
        Some(path) => {
            let known = by_name(path)?;
            if let Some(reason) = &known.manifest.not_runnable {
                bail!("{} cannot be run: {reason}", known.name());
            }
            here(&known)?
        }
        None => match storyteller() {
            Some(path) => path,
            None => Store::find(None)?.carried()?,
        },
    };
    Ok(std::fs::canonicalize(&path).unwrap_or(path))
}

/// A model file to look into, by its path or its name, whether it can be run or not.
pub(crate) fn file(given: &Path) -> anyhow::Result<PathBuf> {
    if given.is_file() { Ok(given.to_owned()) } else { here(&by_name(given)?) }
}

/// A model that is known by its name.
fn by_name(given: &Path) -> anyhow::Result<Known> {
    let shown = given.display();
    let name = given.to_str().filter(|text| !text.contains('/') && !text.ends_with(".gguf"));
    let Some(name) = name else { bail!("there is no model file {shown}") };
    let Ok(known) = models::named(name, &Store::find(None)?) else {
        bail!("there is no model file {shown}, and no model of that name: see `ternfleet model list`")
    };
    Ok(known)
}

/// Where its file is.
fn here(known: &Known) -> anyhow::Result<PathBuf> {
    let store = Store::find(None)?;
    match store.whereabouts(known) {
        Whereabouts::Here { path, .. } => Ok(path),
        // It says why it cannot be written.
        _ if known.name() == STORYTELLER => store.carried(),
        Whereabouts::Partly { .. } | Whereabouts::Absent => {
            bail!("{0} is not downloaded: run `ternfleet model pull {0}`", known.name())
        }
    }
}
