//! The folder of fetched models.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use ternfleet_text::manifest::FILE_NAME;

use super::{Known, STORYTELLER};
use crate::lock::{Claim, Lock};
use crate::shipped;

/// Names the folder.
pub(crate) const VARIABLE: &str = "TERNFLEET_MODEL_DIR";
const STAMP_NAME: &str = "digest.json";

/// Where fetched models are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Store {
    root: PathBuf,
}

/// What is known of a file since its digest was last computed. It holds while size and time of change are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) changed_ns: u128,
    /// Whether it is the manifest's digest; false where the manifest has none.
    pub(crate) verified: bool,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// Here, and its digest as far as it is known.
    Here {
        path: PathBuf,
        stamp: Option<Stamp>,
    },
    /// Begun: so many bytes of so many.
    Partly {
        bytes: u64,
        of: u64,
    },
    Absent,
}

impl Store {
    /// `named`, else `TERNFLEET_MODEL_DIR`, else the user's data folder.
    pub(crate) fn find(named: Option<&Path>) -> anyhow::Result<Store> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(root) = named.map(Path::to_owned).or_else(|| variable(VARIABLE)) {
            return Ok(Store { root });
        }
        let data = variable("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".local/share")));
        let data = data.with_context(|| {
            format!(
                "neither HOME nor {VARIABLE} is set: set the folder of the models with --dir or {VARIABLE}"
            )
        })?;
        Ok(Store { root: data.join("ternfleet/models") })
    }

    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    /// The folders in it, in order of their names; none if it does not exist.
    pub(super) fn folders(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(reason) => {
                return Err(reason).with_context(|| format!("cannot read {}", self.root.display()));
            }
        };
        let mut folders: Vec<PathBuf> =
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        Ok(folders)
    }

    fn folder(&self, known: &Known) -> PathBuf {
        self.root.join(known.name())
    }

    /// Where the file of a model belongs; its name is the model's own where the manifest names no source.
    pub(crate) fn file(&self, known: &Known) -> PathBuf {
        let file = known.manifest.source.as_ref().map(|source| source.file.clone());
        self.folder(known).join(file.unwrap_or_else(|| format!("{}.gguf", known.name())))
    }

    /// Where it is gathered until it is whole.
    pub(crate) fn part(&self, known: &Known) -> PathBuf {
        let mut name = self.file(known).into_os_string();
        name.push(".part");
        name.into()
    }

    pub(crate) fn whereabouts(&self, known: &Known) -> Whereabouts {
        let path = self.file(known);
        if path.is_file() {
            let stamp = self.stamp(known);
            return Whereabouts::Here { path, stamp };
        }
        if known.name() == STORYTELLER
            && let Some(path) = shipped::storyteller().or_else(|| self.carried().ok())
        {
            return Whereabouts::Here { path, stamp: None };
        }
        match crate::fetch::progress_of(&self.part(known)) {
            Some((bytes, of)) => Whereabouts::Partly { bytes, of },
            None => Whereabouts::Absent,
        }
    }

    /// The storyteller that this program carries, written to a file. Each version of the model has its own.
    pub(crate) fn carried(&self) -> anyhow::Result<PathBuf> {
        let known = Known::parse(shipped::STORYTELLER_MANIFEST, "the storyteller's manifest")?;
        let digest = known.manifest.source.and_then(|source| source.sha256).unwrap_or_default();
        let folder = self.root.join(".carried").join(&digest);
        let path = folder.join("storyteller.gguf");
        if !path.is_file() {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            write_whole(&folder.join(FILE_NAME), known.text.as_bytes())?;
            write_whole(&path, shipped::STORYTELLER_FILE)?;
        }
        Ok(path)
    }

    /// The digest of a model's file when it came, whatever became of it since.
    pub(crate) fn pinned(&self, known: &Known) -> Option<String> {
        let text = fs::read(self.folder(known).join(STAMP_NAME)).ok()?;
        serde_json::from_slice::<Stamp>(&text).ok().map(|stamp| stamp.sha256)
    }

    /// The stamp of a model's file, if the file is still the one that was stamped.
    fn stamp(&self, known: &Known) -> Option<Stamp> {
        let text = fs::read(self.folder(known).join(STAMP_NAME)).ok()?;
        let stamp: Stamp = serde_json::from_slice(&text).ok()?;
        (size_and_change(&self.file(known)).ok()? == (stamp.bytes, stamp.changed_ns)).then_some(stamp)
    }

    /// Remembers the digest of the file that is there.
    pub(crate) fn put_stamp(&self, known: &Known, sha256: &str, verified: bool) -> anyhow::Result<()> {
        let path = self.file(known);
        let (bytes, changed_ns) =
            size_and_change(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let stamp = Stamp { sha256: sha256.to_owned(), bytes, changed_ns, verified };
        write_whole(&self.folder(known).join(STAMP_NAME), &serde_json::to_vec(&stamp)?)
    }

    /// Puts the manifest beside the file.
    pub(crate) fn put_manifest(&self, known: &Known) -> anyhow::Result<()> {
        write_whole(&self.folder(known).join(FILE_NAME), known.text.as_bytes())
    }

    /// Makes the model's folder, and holds it while the lock lives: two fetches at once would write the same file.
    pub(crate) fn lock(&self, known: &Known) -> anyhow::Result<Lock> {
        let folder = self.folder(known);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        match Claim::ask(&folder.join(".lock"))? {
            Claim::Held(lock) => Ok(lock),
            Claim::Taken(owner) => bail!("{} is already being downloaded by process {owner}", known.name()),
        }
    }
}

fn size_and_change(path: &Path) -> std::io::Result<(u64, u128)> {
    let facts = fs::metadata(path)?;
    let changed = facts.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((facts.len(), changed.as_nanos()))
}

/// Appears whole or not at all, however many write it at once.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        // The process's umask takes away what it does not give.
        let mut draft =
            tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
        draft.write_all(bytes)?;
        draft.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::named;

    #[test]
    fn the_storyteller_is_written_once_with_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        let path = store.carried().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(
            bytes.len() as u64,
            Known::parse(shipped::STORYTELLER_MANIFEST, "test")
                .unwrap()
                .manifest
                .source
                .unwrap()
                .bytes
                .unwrap()
        );
        assert!(path.with_file_name(FILE_NAME).is_file());
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(store.carried().unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    }

    #[test]
    fn a_stamp_holds_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        let known = named("bitnet-b1.58-2B-4T", &store).unwrap();
        assert_eq!(store.whereabouts(&known), Whereabouts::Absent);

        let _lock = store.lock(&known).unwrap();
        assert!(store.lock(&known).unwrap_err().to_string().contains(&std::process::id().to_string()));
        let path = store.file(&known);
        fs::write(&path, "model").unwrap();
        assert_eq!(store.whereabouts(&known), Whereabouts::Here { path: path.clone(), stamp: None });
        store.put_stamp(&known, "ab", true).unwrap();
        let Whereabouts::Here { stamp: Some(stamp), .. } = store.whereabouts(&known) else {
            panic!("a stamp")
        };
        assert_eq!((stamp.sha256.as_str(), stamp.bytes, stamp.verified), ("ab", 5, true));
        fs::write(&path, "other").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(UNIX_EPOCH + std::time::Duration::from_secs(1))
            .unwrap();
        assert_eq!(store.whereabouts(&known), Whereabouts::Here { path, stamp: None });
    }
}
