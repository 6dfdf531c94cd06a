//! The manifests that are known.

use anyhow::{Context, bail};

use ternfleet_text::Manifest;
use ternfleet_text::manifest::{CARRIED, FILE_NAME};

use super::Store;

/// A model that can be named.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    pub(crate) manifest: Manifest,
    /// The manifest as it was written: this is what is put beside a fetched file.
    pub(crate) text: String,
}

impl Known {
    pub(crate) fn parse(text: &str, origin: &str) -> anyhow::Result<Known> {
        Ok(Known { manifest: Manifest::parse(text, origin)?, text: text.to_owned() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.manifest.name
    }
}

/// All of them, those of the program first. A manifest in the models' folder holds over the program's of the same name: it
/// belongs to the file beside it.
pub(crate) fn known(store: &Store) -> anyhow::Result<Vec<Known>> {
    let carried = CARRIED.iter().map(|text| Known::parse(text, "a manifest of this program"));
    let mut all: Vec<Known> = carried.collect::<anyhow::Result<_>>()?;
    for folder in store.folders()? {
        let path = folder.join(FILE_NAME);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let found = Known::parse(&text, &path.display().to_string())?;
        match all.iter_mut().find(|known| same(known.name(), found.name())) {
            Some(known) => *known = found,
            None => all.push(found),
        }
    }
    Ok(all)
}

/// The one of that name, in large or small letters.
pub(crate) fn named(name: &str, store: &Store) -> anyhow::Result<Known> {
    let all = known(store).context("the manifests cannot be read")?;
    let names: Vec<String> = all.iter().map(|known| known.name().to_owned()).collect();
    match all.into_iter().find(|known| same(known.name(), name)) {
        Some(known) => Ok(known),
        None => bail!("no model is named {name:?}; known are {}", names.join(", ")),
    }
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_of_the_repository_is_carried() {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../models");
        let mut on_disk: Vec<String> = std::fs::read_dir(models)
            .unwrap()
            .filter_map(|folder| Some(Manifest::open(&folder.unwrap().path().join(FILE_NAME)).ok()?.name))
            .collect();
        let mut carried: Vec<String> =
            CARRIED.iter().map(|text| Manifest::parse(text, "test").unwrap().name).collect();
        on_disk.sort();
        carried.sort();
        assert_eq!(carried, on_disk);
    }

    #[test]
    fn a_model_is_found_by_its_name_and_a_wrong_name_lists_the_right_ones() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        assert_eq!(named("BitNet-b1.58-2b-4t", &store).unwrap().name(), "bitnet-b1.58-2B-4T");
        assert!(named("gpt", &store).unwrap_err().to_string().contains("storyteller, bitnet"));

        let own = folder.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join(FILE_NAME), CARRIED[0].replace("\"storyteller\"", "\"own\"")).unwrap();
        assert_eq!(named("own", &store).unwrap().name(), "own");
    }
}
