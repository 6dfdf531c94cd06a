//! Where a running fleet is: the file `addresses.json` in its data folder, which is there while the fleet is ready.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::lock::Claim;

/// The file's name in the data folder.
pub(crate) const FILE: &str = "addresses.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) nats: String,
    pub(crate) http: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prometheus: Option<String>,
    /// The monitoring address of its nats-server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nats_monitoring: Option<String>,
    /// Of `ternfleet up`.
    pub(crate) pid: u32,
}

/// Held while a fleet runs in the folder `root`.
pub(crate) fn lock_file(root: &Path) -> PathBuf {
    root.join("lock")
}

/// The process of the fleet that runs in the folder `root`, if one does.
pub(crate) fn running(root: &Path) -> Option<i32> {
    Claim::holder(&lock_file(root))
}

/// Where the fleet in the folder `root` is; `None` until it is ready.
pub(crate) fn at(root: &Path) -> anyhow::Result<Option<Addresses>> {
    match std::fs::read(root.join(FILE)) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).with_context(|| format!("{FILE} cannot be parsed"))
        }
        Err(_) => Ok(None),
    }
}

/// Of a fleet that runs in the folder `root`. One that was killed leaves its file behind.
pub(crate) fn of_running(root: &Path) -> Option<Addresses> {
    running(root)?;
    at(root).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_does_not_hold_its_lock_is_not_running() {
        let folder = tempfile::tempdir().unwrap();
        let (nats, http) = ("n".into(), "h".into());
        let addresses = Addresses { nats, http, prometheus: None, nats_monitoring: None, pid: 1 };
        std::fs::write(folder.path().join(FILE), serde_json::to_string(&addresses).unwrap()).unwrap();
        assert_eq!(of_running(folder.path()), None);
        let Claim::Held(lock) = Claim::ask(&lock_file(folder.path())).unwrap() else {
            panic!("the lock is free")
        };
        assert_eq!(of_running(folder.path()), Some(addresses));
        drop(lock);
        assert_eq!(of_running(folder.path()), None);
    }
}
