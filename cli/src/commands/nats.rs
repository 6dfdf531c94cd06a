//! `ternfleet nats`: keys, permissions and server configuration of a NATS that several parties share.
//!
//! `init` makes a folder: what each server gets (`servers/NAME`), what the coordinator gets (`coordinator`), and what
//! stays with the operator (`site.json`, `ca.key`). `user` and `token` let somebody in, `revoke` and `rotate` shut
//! somebody out. What the roles may do is in `ternfleet_proto::table::permissions`.

mod certificates;
mod folder;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use ternfleet_proto::TimeMs;
use ternfleet_proto::access::{Folders, JoinToken, Node, Site};
use ternfleet_proto::table::Role;

use crate::output::say;
use crate::span;
pub(crate) use certificates::Authority;
use folder::Folder;

#[derive(Debug, Args)]
pub(crate) struct Nats {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create keys, certificates and the configuration of each server
    Init(Init),
    /// Print credentials for a tenant, a coordinator or one worker
    User(User),
    /// Print a short-lived token with which new pods can join
    Token(Token),
    /// Revoke one key; takes effect when the servers have reloaded their configuration
    Revoke(Revoke),
    /// Replace the signing key of a role; revokes all credentials of the role
    Rotate(Rotate),
}

#[derive(Debug, Args)]
struct Where {
    /// Folder of keys and configuration
    #[arg(long, value_name = "DIR", default_value = "ternfleet-nats")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct Init {
    #[command(flatten)]
    place: Where,
    /// A server: its name and the address at which others reach it; one or three servers. Ports: client, cluster, monitoring
    #[arg(long = "node", value_name = "NAME=HOST[:4222[:6222[:8222]]]", value_parser = parse_node, required = true)]
    nodes: Vec<Node>,
    /// Address of a server for clients elsewhere, if it differs: a mapped port or a public name
    #[arg(long = "public", value_name = "NAME=HOST:PORT", value_parser = parse_public)]
    publics: Vec<(String, (String, u16))>,
    /// Folder of the certificates on the server
    #[arg(long, value_name = "DIR", default_value = "/etc/nats/tls")]
    tls_dir: String,
    /// Folder of the streams on the server
    #[arg(long, value_name = "DIR", default_value = "/data/jetstream")]
    store_dir: String,
    /// How long the coordinator's credentials are valid
    #[arg(long, value_name = "SPAN", default_value = "365d", value_parser = span::parse)]
    life: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NamedRole {
    Tenant,
    Coordinator,
    Worker,
    Joiner,
}

impl From<NamedRole> for Role {
    fn from(role: NamedRole) -> Role {
        match role {
            NamedRole::Tenant => Role::Tenant,
            NamedRole::Coordinator => Role::Coordinator,
            NamedRole::Worker => Role::Worker,
            NamedRole::Joiner => Role::Joiner,
        }
    }
}

#[derive(Debug, Args)]
struct User {
    #[command(flatten)]
    place: Where,
    #[arg(long, value_enum, default_value = "tenant")]
    role: NamedRole,
    /// Tenant name or worker id
    #[arg(long)]
    name: String,
    /// How long the credentials are valid
    #[arg(long, value_name = "SPAN", default_value = "90d", value_parser = span::parse)]
    life: Duration,
}

#[derive(Debug, Args)]
struct Token {
    #[command(flatten)]
    place: Where,
    /// How long the token is valid
    #[arg(long, value_name = "SPAN", default_value = "15m", value_parser = span::parse)]
    life: Duration,
}

#[derive(Debug, Args)]
struct Revoke {
    #[command(flatten)]
    place: Where,
    /// The user's public key, as shown in the coordinator's log when it issues credentials
    key: String,
}

#[derive(Debug, Args)]
struct Rotate {
    #[command(flatten)]
    place: Where,
    #[arg(value_enum)]
    role: NamedRole,
}

impl Nats {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let now = TimeMs::now();
        match self.action {
            Action::Init(init) => init.run(now)?,
            Action::User(user) => {
                let issuer = Folder::open(&user.place.dir)?.site.issuer();
                say(issuer.user(user.role.into(), &user.name, now, user.life)?.file().trim_end())?;
            }
            Action::Token(token) => {
                let issuer = Folder::open(&token.place.dir)?.site.issuer();
                say(&JoinToken::make(&issuer, &token_name()?, now, token.life)?.line())?;
            }
            Action::Revoke(revoke) => {
                let mut folder = Folder::open(&revoke.place.dir)?;
                folder.site.revoke(&revoke.key, now)?;
                folder.write(now)?;
                eprintln!("{}", folder.what_now());
            }
            Action::Rotate(rotate) => {
                let mut folder = Folder::open(&rotate.place.dir)?;
                folder.site.rotate(rotate.role.into());
                folder.write(now)?;
                eprintln!("{}", folder.what_now());
                eprintln!("restart the coordinator with the new coordinator/issuer.json");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(self, now: TimeMs) -> anyhow::Result<()> {
        if self.nodes.len() == 2 {
            bail!("two servers have no majority when one fails: use one node or three");
        }
        let mut names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < self.nodes.len() {
            bail!("two nodes have the same name");
        }
        let mut nodes = self.nodes;
        for (name, public) in self.publics {
            let node = nodes.iter_mut().find(|node| node.name == name);
            node.with_context(|| format!("--public {name}: no such node"))?.public = Some(public);
        }
        let folders = Folders { tls: self.tls_dir, store: self.store_dir };
        let folder = Folder::create(&self.place.dir, Site::new(now), nodes, folders)?;
        folder.write(now)?;
        certificates::write(&folder, &Authority::new()?)?;
        folder.write_coordinator(now, self.life)?;
        let dir = folder.root.display();
        eprintln!(
            "{dir}/servers/NAME      copy to each server: nats.conf to the folder where it is started, the \
             rest to {}",
            folder.folders.tls
        );
        eprintln!(
            "{dir}/coordinator       copy to the coordinator: nats_credentials_file, \
             nats_root_certificates, issuer_file"
        );
        eprintln!(
            "{dir}/site.json, ca.key keep these secret and off the servers: they give full control \
                   of the fleet"
        );
        eprintln!(
            "next: `ternfleet nats user --name TENANT` for each tenant, `ternfleet nats token` for new pods"
        );
        Ok(())
    }
}

/// Tokens are told apart in logs by it.
fn token_name() -> anyhow::Result<String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).context("the system returns no random bytes")?;
    Ok(bytes.iter().fold("token-".to_owned(), |name, byte| format!("{name}{byte:02x}")))
}

fn parse_public(text: &str) -> Result<(String, (String, u16)), String> {
    let parts = text.split_once('=').and_then(|(name, address)| Some((name, address.rsplit_once(':')?)));
    let parsed = parts.and_then(|(name, (host, port))| Some((name, host, port.parse().ok()?)));
    match parsed {
        Some((name, host, port)) if !name.is_empty() && is_usable(host) => {
            Ok((name.to_owned(), (host.to_owned(), port)))
        }
        _ => Err(format!("{text:?} is not a public address: write NAME=HOST:PORT")),
    }
}

/// Part of a node's description.
fn is_usable(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn parse_node(text: &str) -> Result<Node, String> {
    let wrong = || format!("{text:?} is not a node: write NAME=HOST or NAME=HOST:CLIENT:CLUSTER:MONITORING");
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let mut parts = address.split(':');
    let host = parts.next().filter(|host| is_usable(host)).ok_or_else(wrong)?;
    let mut port = |default: u16| match parts.next() {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| wrong()),
    };
    let node = Node {
        name: Some(name).filter(|name| is_usable(name)).ok_or_else(wrong)?.to_owned(),
        host: host.to_owned(),
        client_port: port(4222)?,
        cluster_port: port(6222)?,
        monitor_port: port(8222)?,
        public: None,
    };
    if parts.next().is_some() { Err(wrong()) } else { Ok(node) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_with_and_without_ports() {
        let node = parse_node("tern-0=nats-0.example.net").unwrap();
        assert_eq!((node.client_port, node.cluster_port, node.monitor_port), (4222, 6222, 8222));
        let node = parse_node("a=127.0.0.1:1:2:3").unwrap();
        assert_eq!((node.client_port, node.cluster_port, node.monitor_port), (1, 2, 3));
        for wrong in ["a", "=h", "a=", "a=h:x", "a=h:1:2:3:4", "a b=h", "a=\"h\""] {
            assert!(parse_node(wrong).is_err(), "{wrong}");
        }
    }
}
