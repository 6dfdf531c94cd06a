//! The folder of a site: what is in it, read and written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use ternfleet_proto::TimeMs;
use ternfleet_proto::access::{Folders, Node, Site};
use ternfleet_proto::table::Role;

use crate::output::write_secret;

const SITE: &str = "site.json";
const NODES: &str = "nodes.json";

pub(super) struct Folder {
    pub(super) root: PathBuf,
    pub(super) site: Site,
    pub(super) nodes: Vec<Node>,
    pub(super) folders: Folders,
}

/// What [`Folder::write`] needs to write the servers' configuration again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    nodes: Vec<Node>,
    folders: Folders,
}

impl Folder {
    /// A new one; what is there already is never written over.
    pub(super) fn create(
        root: &Path,
        site: Site,
        nodes: Vec<Node>,
        folders: Folders,
    ) -> anyhow::Result<Folder> {
        if root.join(SITE).exists() {
            bail!("{} already contains keys of a fleet: choose another folder with --dir", root.display());
        }
        Ok(Folder { root: root.to_owned(), site, nodes, folders })
    }

    pub(super) fn open(root: &Path) -> anyhow::Result<Folder> {
        let read = |name: &str| {
            let path = root.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!("cannot read {}: create it with `ternfleet nats init --dir …`", path.display())
            })
        };
        let site = Site::parse(&read(SITE)?)?;
        let Layout { nodes, folders } =
            serde_json::from_str(&read(NODES)?).with_context(|| format!("{NODES} is not readable"))?;
        Ok(Folder { root: root.to_owned(), site, nodes, folders })
    }

    /// Writes the keys, the servers' configuration and the coordinator's signing keys.
    pub(super) fn write(&self, now: TimeMs) -> anyhow::Result<()> {
        write_secret(&self.root.join(SITE), &self.site.file())?;
        let layout = Layout { nodes: self.nodes.clone(), folders: self.folders.clone() };
        write_secret(&self.root.join(NODES), &serde_json::to_string_pretty(&layout)?)?;
        for node in &self.nodes {
            let text = self.site.server_config(node, &self.nodes, &self.folders, now)?;
            write_secret(&self.server(node).join("nats.conf"), &text)?;
        }
        let issuer = self.site.issuer().file(&[Role::Worker, Role::Joiner]);
        write_secret(&self.coordinator().join("issuer.json"), &issuer)
    }

    pub(super) fn write_coordinator(&self, now: TimeMs, life: Duration) -> anyhow::Result<()> {
        let credentials = self.site.issuer().user(Role::Coordinator, "coordinator", now, life)?;
        write_secret(&self.coordinator().join("coordinator.creds"), &credentials.file())
    }

    pub(super) fn server(&self, node: &Node) -> PathBuf {
        self.root.join("servers").join(&node.name)
    }

    pub(super) fn coordinator(&self) -> PathBuf {
        self.root.join("coordinator")
    }

    /// What a person does after the configuration has changed.
    pub(super) fn what_now(&self) -> String {
        format!(
            "copy {}/servers/NAME/nats.conf to each server, and reload each: nats-server --signal reload",
            self.root.display()
        )
    }
}
