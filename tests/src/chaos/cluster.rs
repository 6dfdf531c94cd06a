//! One nats-server, or a cluster of three on loopback, with keys and permissions, whose disks can be filled.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::processes::Part;
use crate::cluster::Cluster;
use crate::program::wait_for;

/// Far more than a run stores, and soon full of ballast.
const DISK_MB: u64 = 160;

#[derive(Debug)]
struct Place {
    store: PathBuf,
    /// On a file system of its own.
    mounted: bool,
    part: Part,
}

#[derive(Debug)]
pub(super) struct Servers {
    pub(super) site: Cluster,
    places: Vec<Place>,
}

impl Servers {
    /// `small_disks` mounts a small tmpfs under each server's store; that takes root, and is left out where it fails.
    pub(super) fn start(count: usize, folder: &Path, small_disks: bool) -> anyhow::Result<Servers> {
        let site = Cluster::prepare(count)?;
        let mut places = Vec::new();
        for place in 0..count {
            let store = folder.join(format!("store-{place}"));
            std::fs::create_dir_all(&store)?;
            let mounted = small_disks && mount(&store);
            let part =
                Part::start(site.command(place, &store)?, folder.join(format!("nats-{place}.log")), None)?;
            places.push(Place { store, mounted, part });
        }
        let servers = Servers { site, places };
        wait_for(Duration::from_secs(60), || Ok(servers.all_ready().then_some(())))
            .context("the nats-servers are not ready")?;
        Ok(servers)
    }

    /// Whether disks can be filled.
    pub(super) fn small_disks(&self) -> bool {
        self.places.iter().all(|place| place.mounted)
    }

    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    pub(super) fn port(&self, place: usize) -> u16 {
        self.site.ports(place).0
    }

    pub(super) fn part(&mut self, place: usize) -> &mut Part {
        &mut self.places[place].part
    }

    /// Takes all room on the server's disk. False where the disk is not its own.
    pub(super) fn fill_disk(&self, place: usize) -> bool {
        let place = &self.places[place];
        if !place.mounted {
            return false;
        }
        let Ok(mut ballast) = std::fs::File::create(place.store.join("ballast")) else { return false };
        let block = vec![0u8; 1 << 20];
        while ballast.write_all(&block).is_ok() {}
        true
    }

    /// Gives the room back and starts the server again, as its operator would: it may have turned JetStream off.
    pub(super) fn free_disk(&mut self, place: usize) -> anyhow::Result<()> {
        let place = &mut self.places[place];
        let _ = std::fs::remove_file(place.store.join("ballast"));
        place.part.signal(Signal::SIGTERM);
        let ended = wait_for(Duration::from_secs(3), || Ok((!place.part.is_alive()).then_some(())));
        if ended.is_err() {
            place.part.kill();
        }
        place.part.start_again()
    }

    pub(super) fn all_ready(&self) -> bool {
        (0..self.count()).all(|place| is_ready(self.site.ports(place).1))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for place in &mut self.places {
            place.part.kill();
            if place.mounted {
                let _ = Command::new("umount").arg("-l").arg(&place.store).status();
            }
        }
    }
}

fn mount(folder: &Path) -> bool {
    let size = format!("size={DISK_MB}m");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
    mounted.is_ok_and(|output| output.status.success())
}

/// The health page answers 200 once JetStream has recovered its streams.
fn is_ready(port: u16) -> bool {
    let Ok(mut connection) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = connection.set_read_timeout(Some(Duration::from_secs(2)));
    let mut answer = String::new();
    connection.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
        && connection.read_to_string(&mut answer).is_ok()
        && answer.split_whitespace().nth(1) == Some("200")
}
