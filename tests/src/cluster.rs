//! Three nats-servers on loopback as `ternfleet nats init` sets them up: TLS, a token for everybody, permissions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use ternfleet_proto::Bus;
use ternfleet_proto::access::Credentials;
use ternfleet_proto::nats::{ConnectOptions, connect_as};

use crate::program;
use crate::server::{Watched, find_binary, free_port, is_healthy};

const READY_WITHIN: Duration = Duration::from_secs(40);

/// A running cluster and the folder of its keys. Killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    binary: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    name: String,
    ports: [u16; 3],
    running: Option<Watched>,
}

impl Cluster {
    /// Makes keys, starts `size` servers, and waits until each answers.
    ///
    /// # Errors
    /// When `ternfleet nats init` fails or a server does not come up.
    pub fn start(size: usize) -> anyhow::Result<Cluster> {
        let mut cluster = Self::prepare(size)?;
        for number in 0..size {
            cluster.restart(number)?;
        }
        for number in 0..size {
            cluster.wait(number)?;
        }
        Ok(cluster)
    }

    /// Makes the keys of `size` servers, which somebody else runs by [`Cluster::command`].
    ///
    /// # Errors
    /// When `ternfleet nats init` fails.
    pub fn prepare(size: usize) -> anyhow::Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let mut arguments = vec!["nats".to_owned(), "init".to_owned(), "--dir".to_owned()];
        arguments.push(folder.path().join("site").display().to_string());
        let mut nodes = Vec::new();
        for number in 0..size {
            let name = format!("tern-{number}");
            let ports = [free_port()?, free_port()?, free_port()?];
            let [client, cluster, monitor] = ports;
            arguments.extend(["--node".to_owned(), format!("{name}=127.0.0.1:{client}:{cluster}:{monitor}")]);
            nodes.push(Node { name, ports, running: None });
        }
        let made = program::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(made.code == Some(0), "nats init: {}", made.stderr);
        Ok(Cluster { folder, binary: find_binary()?, nodes })
    }

    /// What runs one server, with its data in `store`.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn command(&self, number: usize, store: &Path) -> anyhow::Result<Vec<String>> {
        let conf = self.effective_config(number, store)?;
        Ok([&self.binary, Path::new("-c"), &conf].map(|part| part.display().to_string()).to_vec())
    }

    /// Where clients reach one server, and where its monitoring answers.
    pub fn ports(&self, number: usize) -> (u16, u16) {
        let [client, _, monitor] = self.nodes[number].ports;
        (client, monitor)
    }

    /// The folder that `ternfleet nats` works in.
    pub fn site(&self) -> PathBuf {
        self.folder.path().join("site")
    }

    /// For files of the test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration of one server as it was generated.
    pub fn config(&self, number: usize) -> PathBuf {
        self.site().join("servers").join(&self.nodes[number].name).join("nats.conf")
    }

    pub fn url(&self) -> String {
        let each = self.nodes.iter().map(|node| format!("tls://127.0.0.1:{}", node.ports[0]));
        each.collect::<Vec<_>>().join(",")
    }

    pub fn monitor_url(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[number].ports[2])
    }

    pub fn root_certificates(&self) -> PathBuf {
        self.site().join("ca.crt")
    }

    pub fn coordinator_credentials(&self) -> PathBuf {
        self.site().join("coordinator/coordinator.creds")
    }

    /// `kill -9` of one server.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number].running = None;
    }

    /// Starts one server on the data it has.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        self.kill(number);
        let name = self.nodes[number].name.clone();
        let home = self.folder.path().join(&name);
        std::fs::create_dir_all(&home)?;
        let command = self.command(number, &home)?;
        let log = std::fs::File::options().create(true).append(true).open(home.join("nats.log"))?;
        let server = Command::new(&self.binary)
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.nodes[number].running = Some(Watched::new(server)?);
        Ok(())
    }

    /// The generated file with this machine's folders in it, and on loopback.
    fn effective_config(&self, number: usize, store: &Path) -> anyhow::Result<PathBuf> {
        let node = &self.nodes[number];
        let home = self.folder.path().join(&node.name);
        std::fs::create_dir_all(&home)?;
        let text = std::fs::read_to_string(self.config(number))?;
        let servers = self.site().join("servers").join(&node.name);
        let text = text
            .replace("/etc/nats/tls", &servers.display().to_string())
            .replace("/data/jetstream", &store.display().to_string())
            .replace("0.0.0.0", "127.0.0.1");
        let path = home.join("nats.conf");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Has every server read its configuration again, as `nats-server --signal reload` does.
    ///
    /// # Errors
    /// When a server is gone.
    pub fn reload(&self) -> anyhow::Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            self.effective_config(number, &self.folder.path().join(&node.name))?;
            if let Some(running) = &node.running {
                running.signal(nix::sys::signal::Signal::SIGHUP)?;
            }
        }
        Ok(())
    }

    /// Waits until a server has joined its cluster and recovered its streams.
    ///
    /// # Errors
    /// When that takes too long; the message holds its log.
    pub fn wait(&self, number: usize) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        program::wait_for(READY_WITHIN, || Ok(is_healthy(node.ports[2]).then_some(()))).with_context(|| {
            let log = self.folder.path().join(&node.name).join("nats.log");
            format!("{}: {}", node.name, std::fs::read_to_string(log).unwrap_or_default())
        })
    }

    /// Credentials made by `ternfleet nats user`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn user(&self, role: &str, name: &str) -> anyhow::Result<Credentials> {
        Ok(Credentials::parse(&std::fs::read_to_string(self.user_file(role, name)?)?)?)
    }

    /// As [`Cluster::user`], in a file.
    ///
    /// # Errors
    /// As [`Cluster::user`].
    pub fn user_file(&self, role: &str, name: &str) -> anyhow::Result<PathBuf> {
        let text = self.nats(&["user", "--role", role, "--name", name])?;
        let path = self.scratch(&format!("{role}-{name}.creds"));
        // A program that was started with an earlier one may be reading it just now.
        let new = self.scratch(&format!("{role}-{name}.creds.new"));
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &path)?;
        Ok(path)
    }

    /// Runs a `ternfleet nats` command on this site; answers what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn nats(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let site = self.site().display().to_string();
        let ended = program::run(&[&["nats"], arguments, &["--dir", &site]].concat())?;
        ensure!(ended.code == Some(0), "nats {arguments:?}: {}", ended.stderr);
        Ok(ended.stdout)
    }

    pub fn options(&self) -> ConnectOptions {
        ConnectOptions {
            url: self.url(),
            name: "test".into(),
            root_certificates: Some(self.root_certificates()),
            ..ConnectOptions::default()
        }
    }

    /// A connection with these credentials.
    ///
    /// # Errors
    /// When the server does not let them in.
    pub async fn bus(&self, credentials: &Credentials) -> anyhow::Result<Arc<dyn Bus>> {
        Ok(connect_as(&self.options(), credentials).await?)
    }

    /// A connection as the coordinator.
    ///
    /// # Errors
    /// As [`Cluster::bus`].
    pub async fn coordinator_bus(&self) -> anyhow::Result<Arc<dyn Bus>> {
        let text = std::fs::read_to_string(self.coordinator_credentials())?;
        self.bus(&Credentials::parse(&text)?).await
    }

    /// The environment of a service that connects to this cluster, for [`Command::envs`].
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TERNFLEET_NATS", self.url()),
            ("TERNFLEET_NATS_ROOT_CERTIFICATES", self.root_certificates().display().to_string()),
        ]
    }
}

/// Runs `nats-server -t` on a file.
///
/// # Errors
/// When the server finds fault with it.
pub fn check_config(config: &Path) -> anyhow::Result<()> {
    let output = Command::new(find_binary()?).arg("-t").arg("-c").arg(config).output()?;
    ensure!(
        output.status.success(),
        "{}: {}{}",
        config.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
