//! Models by name: which are known, and which of them are here.
//!
//! Known are the manifests that the program carries (those under `models/` of its sources) and any `manifest.toml` in the
//! models' folder. Fetched models live there, one folder each: the file, its manifest, and a stamp that remembers its digest.
//! Called by `ternfleet model …`, and wherever a command takes `--model`.

mod catalogue;
mod store;

pub(crate) use self::catalogue::{Known, known, named};
pub(crate) use self::store::{Store, Whereabouts};

/// The model that ships with the sources.
pub(crate) const STORYTELLER: &str = "storyteller";
