//! Files that ship with Ternfleet: beside the working directory's or the program's own repository, and those that the
//! program carries, so that one that was installed alone works.

use std::path::{Path, PathBuf};

/// The model that ships, relative to the repository.
const STORYTELLER_PATH: &str = "models/storyteller/storyteller.gguf";

/// The storyteller as the program carries it.
pub(crate) const STORYTELLER_FILE: &[u8] = include_bytes!("../../models/storyteller/storyteller.gguf");
pub(crate) const STORYTELLER_MANIFEST: &str = include_str!("../../models/storyteller/manifest.toml");
/// Prompts for it, as JSON lines.
pub(crate) const STORYTELLER_PROMPTS: &str = include_str!("../../models/storyteller/prompts.jsonl");

/// The first place where `relative` exists: the working directory and its parents, then the program's folder and its
/// parents, so that both a checkout and an unpacked archive work.
pub(crate) fn file(relative: &str) -> Option<PathBuf> {
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

/// A program that a package manager has put beside this one.
pub(crate) fn beside(program: &str) -> Option<PathBuf> {
    std::env::current_exe().ok().map(|own| own.with_file_name(program))
}

/// The model that ships, where a checkout or an unpacked archive has it.
pub(crate) fn storyteller() -> Option<PathBuf> {
    file(STORYTELLER_PATH)
}
