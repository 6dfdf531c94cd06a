//! Files that ship with Ternfleet: beside the working directory's or the program's own repository, or where a package
//! manager has put them.

use std::path::{Path, PathBuf};

/// The model that ships, relative to the repository.
pub(crate) const STORYTELLER_PATH: &str = "models/storyteller/storyteller.gguf";

/// Where packages put such files, below the folder that holds `bin` (`scripts/wheel.py`).
const SHARED: &str = "share/ternfleet";

/// The first place where `relative` exists: the working directory and its parents, then the program's folder and its
/// parents, so that a checkout, an unpacked archive and an installed package work.
pub(crate) fn file(relative: &str) -> Option<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let starts = [here.as_deref(), program.as_deref().and_then(Path::parent)];
    starts
        .into_iter()
        .flatten()
        .flat_map(Path::ancestors)
        .flat_map(|folder| [folder.join(relative), folder.join(SHARED).join(relative)])
        .find(|path| path.is_file())
}

/// A program that a package manager has put beside this one.
pub(crate) fn beside(program: &str) -> Option<PathBuf> {
    std::env::current_exe().ok().map(|own| own.with_file_name(program))
}

/// The model that ships, where it is.
pub(crate) fn storyteller() -> Option<PathBuf> {
    file(STORYTELLER_PATH)
}
