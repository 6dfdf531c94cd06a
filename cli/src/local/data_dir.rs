//! The folder of a local fleet: its lock, its logs, the store of NATS, and the file that tells others where it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::addresses::{self, Addresses};
use crate::lock::{Claim, Lock};

/// A log larger than this is set aside when the fleet starts.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// A locked data folder. The lock goes with the process, however it ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    _lock: Lock,
}

impl DataDir {
    /// Makes the folder if need be, and locks it.
    pub(crate) fn open(root: &Path) -> anyhow::Result<DataDir> {
        let make = |path: &Path| {
            fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
        };
        make(root)?;
        let root = fs::canonicalize(root).with_context(|| format!("cannot use {}", root.display()))?;
        make(&root.join("logs"))?;
        let dir = DataDir { _lock: lock(&root)?, root };
        // What an earlier fleet left behind when it was killed.
        dir.forget_addresses();
        Ok(dir)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn nats_config(&self) -> PathBuf {
        self.root.join("nats.conf")
    }

    pub(crate) fn nats_store(&self) -> PathBuf {
        self.root.join("nats")
    }

    pub(crate) fn log(&self, part: &str) -> PathBuf {
        self.root.join("logs").join(format!("{part}.log"))
    }

    /// Opens a part's log to append to; a long one is set aside first.
    pub(crate) fn open_log(&self, part: &str) -> anyhow::Result<File> {
        let path = self.log(part);
        if fs::metadata(&path).is_ok_and(|facts| facts.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.1"))
                .with_context(|| format!("cannot move {}", path.display()))?;
        }
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The last lines of a part's log, for an error message.
    pub(crate) fn log_tail(&self, part: &str) -> String {
        let text = fs::read(self.log(part)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n  ")
    }

    /// Says where the fleet is; appears whole.
    pub(crate) fn write_addresses(&self, addresses: &Addresses) -> anyhow::Result<()> {
        self.write_whole(addresses::FILE, &serde_json::to_string(addresses).context("addresses as JSON")?)
    }

    pub(crate) fn forget_addresses(&self) {
        // It may not exist, and a stale one does no harm beyond a refused connection.
        let _ = fs::remove_file(self.root.join(addresses::FILE));
    }

    /// Keeps a small file of the folder up to date; readers see the old or the new content, never a part.
    pub(crate) fn write_whole(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.root.join(name);
        let draft = self.root.join(format!(".{name}.new"));
        fs::write(&draft, format!("{text}\n"))
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// A small file of the folder, if it is there and readable.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.root.join(name)).ok()?).ok()
    }
}

fn lock(root: &Path) -> anyhow::Result<Lock> {
    match Claim::ask(&addresses::lock_file(root))? {
        Claim::Held(lock) => Ok(lock),
        Claim::Taken(owner) => bail!(
            "{} is in use by another `ternfleet up` (process {owner}): stop that one, or give another --dir",
            root.display(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_refused_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let refusal = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn addresses_of_a_killed_fleet_are_forgotten_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let (nats, http) = ("nats://127.0.0.1:1".into(), "http://127.0.0.1:2".into());
        let addresses = Addresses { nats, http, prometheus: None, nats_monitoring: None, pid: 3 };
        let dir = DataDir::open(folder.path()).unwrap();
        dir.write_addresses(&addresses).unwrap();
        assert_eq!(dir.read::<Addresses>("addresses.json"), Some(addresses));
        drop(dir);
        let dir = DataDir::open(folder.path()).unwrap();
        assert_eq!(dir.read::<Addresses>("addresses.json"), None);
    }
}
