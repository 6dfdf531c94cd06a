//! Folders of a pod: what a mount is owned by is not known beforehand, so each is tried.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::fetch::free_bytes;

/// Tried after those that were named: usual mounts, then the container's own disk.
const MOUNTS: [&str; 3] = ["/models", "/workspace", "/runpod-volume"];
const OWN: [&str; 4] = ["/var/lib/ternfleet", "/data", "/var/tmp/ternfleet", "/tmp/ternfleet"];
/// Left free besides what is put there.
const SPARE_BYTES: u64 = 128 << 20;

#[derive(Debug)]
pub(crate) struct Places {
    named: Vec<PathBuf>,
    own: Vec<PathBuf>,
}

impl Places {
    pub(crate) fn find(named: &[PathBuf]) -> Places {
        let named = named.iter().filter(|path| !path.as_os_str().is_empty()).cloned();
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute() && home != Path::new("/"));
        let home = home.map(|home| home.join(".local/share/ternfleet/pod"));
        Places {
            named: named.chain(MOUNTS.map(PathBuf::from)).collect(),
            own: home.into_iter().chain(OWN.map(PathBuf::from)).collect(),
        }
    }

    /// All that exist, whether they can be written or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        self.named.iter().chain(&self.own).map(PathBuf::as_path).filter(|path| path.is_dir())
    }

    /// The first that can be written and has room. A folder that was named or is mounted keeps the file longer.
    pub(crate) fn with_room(&self, bytes: u64) -> anyhow::Result<PathBuf> {
        // Only what exists counts as a mount; what was not there would be made on the container's disk.
        let mounted = self.named.iter().filter(|path| path.is_dir());
        choose(mounted.chain(&self.own), bytes)
    }

    /// A folder of this pod alone: secrets do not go to a volume that other pods mount.
    pub(crate) fn own(&self) -> anyhow::Result<PathBuf> {
        choose(self.own.iter(), 0)
    }
}

fn choose<'a>(places: impl Iterator<Item = &'a PathBuf>, bytes: u64) -> anyhow::Result<PathBuf> {
    let mut faults = Vec::new();
    for place in places {
        match try_out(place, bytes) {
            Ok(()) => return Ok(place.clone()),
            Err(fault) => faults.push(format!("{}: {fault}", place.display())),
        }
    }
    bail!("no folder can take {bytes} bytes ({})", faults.join("; "))
}

fn try_out(place: &Path, bytes: u64) -> Result<(), String> {
    let fault = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(place).map_err(fault)?;
    tempfile::Builder::new().prefix(".ternfleet-").tempfile_in(place).map_err(fault)?;
    let Some(free) = free_bytes(place) else { return Ok(()) };
    if bytes > 0 && bytes.saturating_add(SPARE_BYTES) > free {
        return Err(format!("{free} bytes are free"));
    }
    Ok(())
}
