//! A stand-in for RunPod: its REST API, version 2, as the saved OpenAPI text has it, over pods that are real. Each pod
//! is a container of the named image in a network namespace with an address of its own, billed by the second, and
//! reached through ports of a public address.
//!
//! What it cannot show is how the provider itself behaves where its text says nothing. It takes root, for namespaces
//! and mounts; [`StandIn::possible`] says what is missing.

mod api;
mod container;
mod dockerfile;
mod network;
mod pod;
mod schema;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use ternfleet_proto::TimeMs;
use tokio::runtime::Runtime;

pub use container::{Image, User};
pub use network::Network;
pub use pod::Pod;
pub use schema::Text;

/// What happens to one creation, in place of what should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and this status says so.
    Refuse(u16),
    /// The pod is rented, and this status says that it is not.
    DoneBut(u16),
    /// The pod is rented, and nothing is said.
    DoneAndCut,
    /// The pod is rented and billed, and its container never starts.
    Mute,
    /// The pod is rented and billed, and its container starts so many milliseconds later.
    Late(u64),
    /// What its container runs says [`LAST_WORD`] and ends at once, however often it is started.
    Doomed,
}

impl Fault {
    fn kind(self) -> &'static str {
        match self {
            Fault::Refuse(402) => "an order was not paid",
            Fault::Refuse(429) => "there were too many requests",
            Fault::Refuse(_) => "an order was refused",
            Fault::DoneBut(_) => "an order was carried out and said to have failed",
            Fault::DoneAndCut => "an order was carried out and nothing said",
            Fault::Mute => "a pod never started",
            Fault::Late(_) => "a pod started too late",
            Fault::Doomed => "a pod died at every start",
        }
    }
}

/// What a doomed container says.
pub const LAST_WORD: &str = "the disk of this host is broken";

/// A price list of one entry each.
#[derive(Debug, Clone)]
pub struct Market {
    pub cpu: String,
    pub usd_micro_per_vcpu_hour: i64,
    pub gpu: String,
    pub gpu_usd_micro_per_hour: i64,
    pub data_center: String,
    /// Pods at once; an order beyond is refused as the provider refuses what it cannot place.
    pub capacity: usize,
    /// Of the account, spent by what runs.
    pub balance_usd_micro: i64,
}

impl Default for Market {
    fn default() -> Market {
        Market {
            cpu: "cpu5c".to_owned(),
            usd_micro_per_vcpu_hour: 40_000,
            gpu: "NVIDIA GeForce RTX 4090".to_owned(),
            gpu_usd_micro_per_hour: 340_000,
            data_center: "EU-RO-1".to_owned(),
            capacity: 64,
            balance_usd_micro: 100_000_000,
        }
    }
}

/// What is going on.
#[derive(Debug, Default)]
pub struct State {
    /// In the order of their creation; those that have ended stay, for the bill.
    pub pods: Vec<Pod>,
    pub market: Market,
    /// Pods of one page of the list.
    pub page: usize,
    /// Each creation takes the next; none means that all is well.
    pub creations: VecDeque<Option<Fault>>,
    /// Each list, each deletion that is refused takes the next status.
    pub lists: VecDeque<Option<u16>>,
    pub deletions: VecDeque<Option<u16>>,
    /// A pod is listed so many milliseconds after its creation.
    pub list_lag_ms: u64,
    /// Network volumes are mounted for reading alone.
    pub volumes_read_only: bool,
    /// The faults that have happened, by their kinds.
    pub played: BTreeSet<&'static str>,
    /// Names of files that were fetched, one for each request.
    pub fetched: Vec<String>,
    /// Bodies of creations.
    pub orders: Vec<serde_json::Value>,
    /// What was answered against the provider's own text; nothing, if the stand-in is right.
    pub faults: Vec<String>,
    next: u32,
}

impl State {
    /// The pod of that id, unless it has ended.
    fn pod(&self, id: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.id == id && pod.ended_at.is_none())
    }

    fn pod_mut(&mut self, id: &str) -> Option<&mut Pod> {
        self.pods.iter_mut().find(|pod| pod.id == id && pod.ended_at.is_none())
    }
}

/// What the server and the pods share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    network: Network,
    text: Text,
    images: BTreeMap<String, Image>,
    folder: TempDir,
    key: String,
    port: u16,
    /// Served under `/files/`.
    files: BTreeMap<String, PathBuf>,
    runtime: tokio::runtime::Handle,
}

/// A running stand-in.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    // Dropped last: what runs on it belongs to the parts above.
    runtime: Option<Runtime>,
}

impl StandIn {
    /// What this machine lacks for it.
    pub fn possible() -> Result<(), String> {
        if std::fs::metadata("/proc/self").map_or(1, |this| this.uid()) != 0 {
            return Err("needs root, for network namespaces and mounts: run the tests as root".to_owned());
        }
        for (program, package) in [("ip", "iproute2"), ("unshare", "util-linux"), ("curl", "curl")] {
            let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
            if !found.is_ok_and(|found| found.status.success()) {
                return Err(format!("needs {program} (Debian package {package})"));
            }
        }
        Network::new().map(drop).map_err(|error| format!("may not make network namespaces here: {error:#}"))
    }

    /// Starts it with images by name, and files to be fetched under `/files/NAME`.
    ///
    /// # Errors
    /// When the network cannot be made.
    pub fn start(
        images: BTreeMap<String, Image>,
        files: BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<StandIn> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let network = Network::new()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let bridge = std::net::TcpListener::bind((network.gateway(), port))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { page: 3, ..State::default() }),
            network,
            text: Text::read()?,
            images,
            folder: tempfile::tempdir()?,
            key: format!("rpa_account_{}", std::process::id()),
            port,
            files,
            runtime: runtime.handle().clone(),
        });
        for listener in [listener, bridge] {
            listener.set_nonblocking(true)?;
            let _inside = runtime.enter();
            runtime.spawn(api::serve(Arc::clone(&shared), tokio::net::TcpListener::from_std(listener)?));
        }
        Ok(StandIn { shared, runtime: Some(runtime) })
    }

    /// The account's key.
    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// This machine's address in the network of the pods.
    pub fn gateway(&self) -> Ipv4Addr {
        self.shared.network.gateway()
    }

    /// The API's address, for this machine and in every pod.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.shared.port)
    }

    /// Where a file is fetched from, in every pod.
    pub fn file(&self, name: &str) -> String {
        format!("{}/files/{name}", self.base())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// What a pod's container has said.
    pub fn log(&self, name: &str) -> String {
        let state = self.state();
        let pods = state.pods.iter().filter(|pod| pod.name == name);
        pods.map(|pod| std::fs::read_to_string(&pod.log).unwrap_or_default()).collect()
    }

    /// Pods that are listed, with their ids.
    pub fn alive(&self) -> Vec<(String, String)> {
        let state = self.state();
        state
            .pods
            .iter()
            .filter(|pod| pod.ended_at.is_none())
            .map(|pod| (pod.name.clone(), pod.id.clone()))
            .collect()
    }

    /// What has been billed up to now, in all.
    pub fn billed_usd_micro(&self) -> i64 {
        let now = TimeMs::now();
        self.state().pods.iter().map(|pod| pod.billed_usd_micro(now)).sum()
    }

    /// The pod's machine is lost: everything on it, and its entry in the list.
    pub fn vanish(&self, name: &str) {
        self.shared.end(|pod| pod.name == name);
    }

    /// `kill -9` of what runs in a pod; its container is started again.
    pub fn kill(&self, name: &str) {
        for pod in self.state().pods.iter_mut().filter(|pod| pod.name == name) {
            if let Some(container) = &mut pod.container {
                let _ = container.kill();
            }
        }
    }

    /// Cuts or restores a pod's network link.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn connect(&self, name: &str, connected: bool) -> anyhow::Result<()> {
        let link = {
            let state = self.state();
            let pod = state.pods.iter().find(|pod| pod.name == name && pod.ended_at.is_none());
            pod.and_then(|pod| pod.link.clone()).with_context(|| format!("{name} has no link"))?
        };
        link.connect(connected)
    }

    /// Network namespaces that there are of it.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        let state = self.state();
        let links = state.pods.iter().filter_map(|pod| pod.link.as_ref());
        links.map(|link| Path::new("/run/netns").join(&link.namespace)).collect()
    }

    /// For volumes and other files of the test.
    pub fn folder(&self) -> &Path {
        self.shared.folder.path()
    }

    /// The folder of a network volume, owned by root.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn volume(&self, id: &str) -> std::io::Result<PathBuf> {
        self.shared.volume(id)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.end(|_| true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(500));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volume(&self, id: &str) -> std::io::Result<PathBuf> {
        let folder = self.folder.path().join("volumes").join(id);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Ends the pods that `which` names; true if there was one.
    fn end(&self, which: impl Fn(&Pod) -> bool) -> bool {
        let now = TimeMs::now();
        let mut left = Vec::new();
        {
            let mut state = self.state();
            for pod in state.pods.iter_mut().filter(|pod| pod.ended_at.is_none() && which(pod)) {
                pod.ended_at = Some(now);
                left.push((pod.container.take(), pod.link.take()));
            }
        }
        let found = !left.is_empty();
        for (container, link) in left {
            if let Some(mut container) = container {
                let _ = container.kill();
                let _ = container.wait();
            }
            if let Some(link) = link {
                link.leave();
            }
        }
        found
    }

    fn public_address(&self, port: u16) -> SocketAddr {
        (self.network.gateway(), port).into()
    }
}
