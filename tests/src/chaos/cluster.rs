//! One nats-server, or a cluster of three on loopback, whose disks can be filled.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::processes::Part;
use crate::program::wait_for;
use crate::server::{find_binary, free_port};

/// Far more than a run stores, and soon full of ballast.
const DISK_MB: u64 = 160;

#[derive(Debug)]
struct Place {
    port: u16,
    monitor_port: u16,
    store: PathBuf,
    /// On a file system of its own.
    mounted: bool,
    part: Part,
}

#[derive(Debug)]
pub(super) struct Servers {
    places: Vec<Place>,
}

impl Servers {
    /// `small_disks` mounts a small tmpfs under each server's store; that takes root, and is left out where it fails.
    pub(super) fn start(count: usize, folder: &Path, small_disks: bool) -> anyhow::Result<Servers> {
        let binary = find_binary()?.display().to_string();
        let ports: Vec<[u16; 3]> = (0..count)
            .map(|_| Ok([free_port()?, free_port()?, free_port()?]))
            .collect::<anyhow::Result<_>>()?;
        let routes: Vec<String> =
            ports.iter().map(|[_, _, route]| format!("nats-route://127.0.0.1:{route}")).collect();
        let mut places = Vec::new();
        for (place, [port, monitor_port, route]) in ports.iter().copied().enumerate() {
            let store = folder.join(format!("store-{place}"));
            std::fs::create_dir_all(&store)?;
            let mounted = small_disks && mount(&store);
            let mut text = format!(
                "server_name: n{place}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor_port}\n\
                 jetstream {{ store_dir: {store:?}, max_file_store: 10GB }}\n"
            );
            if count > 1 {
                writeln!(
                    text,
                    "cluster {{ name: chaos, listen: 127.0.0.1:{route}, no_advertise: true, routes: [{}] }}",
                    routes.join(", ")
                )?;
            }
            let configuration = folder.join(format!("nats-{place}.conf"));
            std::fs::write(&configuration, text)?;
            let command = vec![binary.clone(), "-c".to_owned(), configuration.display().to_string()];
            let part = Part::start(command, folder.join(format!("nats-{place}.log")))?;
            places.push(Place { port, monitor_port, store, mounted, part });
        }
        let servers = Servers { places };
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
        self.places[place].port
    }

    /// Addresses of all, as callers write them.
    pub(super) fn url(&self) -> String {
        let urls: Vec<String> =
            self.places.iter().map(|place| format!("nats://127.0.0.1:{}", place.port)).collect();
        urls.join(",")
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
        self.places.iter().all(|place| is_ready(place.monitor_port))
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
