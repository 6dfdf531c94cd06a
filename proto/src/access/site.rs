//! Everything that an operator makes once for a fleet: keys, the operator's and the accounts' tokens, the configuration
//! of each server. The seeds belong on a machine that nobody serves from.

use std::fmt::Write as _;

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use super::{AccessError, Issuer, jwt, unusable};
use crate::id::TimeMs;
use crate::table::Role;

const ACCOUNT: &str = "ternfleet";

/// Keys of a fleet, and who has been shut out.
#[derive(Debug)]
pub struct Site {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
    signers: Vec<(Role, KeyPair)>,
    revoked: Vec<(String, TimeMs)>,
    /// The operator's token bears this time forever: a server that runs takes no other in.
    made_at: TimeMs,
}

/// One server of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Host name or address under which the others reach it.
    pub host: String,
    pub client_port: u16,
    pub cluster_port: u16,
    pub monitor_port: u16,
    /// Host and port under which clients reach it from elsewhere, where these differ: behind a mapped port, or by a public
    /// name.
    #[serde(default)]
    pub public: Option<(String, u16)>,
}

impl Node {
    /// What clients are told.
    pub fn client_address(&self) -> String {
        match &self.public {
            Some((host, port)) => format!("{host}:{port}"),
            None => format!("{}:{}", self.host, self.client_port),
        }
    }

    /// Names and addresses that its certificate must have.
    pub fn hosts(&self) -> Vec<&str> {
        let public =
            self.public.as_ref().map(|(host, _)| host.as_str()).filter(|public| *public != self.host);
        std::iter::once(self.host.as_str()).chain(public).collect()
    }
}

/// Where a server finds its files and keeps its streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folders {
    pub tls: String,
    pub store: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteFile {
    operator: String,
    account: String,
    system: String,
    signers: Vec<(String, String)>,
    #[serde(default)]
    revoked: Vec<(String, TimeMs)>,
    #[serde(default)]
    made_at: TimeMs,
}

impl Site {
    /// New keys for everything.
    pub fn new(now: TimeMs) -> Site {
        Site {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            system: KeyPair::new_account(),
            signers: Role::ALL.map(|role| (role, KeyPair::new_account())).into(),
            revoked: Vec::new(),
            made_at: now,
        }
    }

    /// Reads what [`Site::file`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Site, AccessError> {
        let what = "the site's key file";
        let file: SiteFile = serde_json::from_str(text).map_err(|reason| unusable(what, reason))?;
        let key = |seed: &str| KeyPair::from_seed(seed).map_err(|reason| unusable(what, reason));
        let signers = file.signers.iter().map(|(role, seed)| {
            let role = Role::parse(role).ok_or_else(|| unusable(what, format!("no role {role:?}")))?;
            Ok((role, key(seed)?))
        });
        Ok(Site {
            operator: key(&file.operator)?,
            account: key(&file.account)?,
            system: key(&file.system)?,
            signers: signers.collect::<Result<_, AccessError>>()?,
            revoked: file.revoked,
            made_at: file.made_at,
        })
    }

    /// All seeds. Whoever has this file has the fleet.
    pub fn file(&self) -> String {
        let file = SiteFile {
            operator: seed(&self.operator),
            account: seed(&self.account),
            system: seed(&self.system),
            signers: self.signers.iter().map(|(role, key)| (role.as_str().to_owned(), seed(key))).collect(),
            revoked: self.revoked.clone(),
            made_at: self.made_at,
        };
        serde_json::to_string_pretty(&file).expect("because the file holds only strings and times") + "\n"
    }

    /// Makes tokens for every role.
    pub fn issuer(&self) -> Issuer {
        let keys = self.signers.iter().map(|(role, key)| (*role, copy(key))).collect();
        Issuer::new(self.account.public_key(), keys)
    }

    /// Shuts a user out: tokens of this key issued up to now are void once the servers have read their configuration
    /// again.
    ///
    /// # Errors
    /// When it is no user's public key.
    pub fn revoke(&mut self, user_key: &str, now: TimeMs) -> Result<(), AccessError> {
        if !user_key.starts_with('U') || KeyPair::from_public_key(user_key).is_err() {
            return Err(unusable("the key", "it is not a user's public key (they begin with U)"));
        }
        self.revoked.retain(|(key, _)| key != user_key);
        self.revoked.push((user_key.to_owned(), now));
        Ok(())
    }

    /// New signing keys for a role: every token of it is void once the servers have read their configuration again.
    pub fn rotate(&mut self, role: Role) {
        for (of, key) in &mut self.signers {
            if *of == role {
                *key = KeyPair::new_account();
            }
        }
    }

    /// The configuration of one server of a cluster; a lone one has no cluster.
    ///
    /// # Errors
    /// When a key has no seed.
    pub fn server_config(
        &self,
        node: &Node,
        all: &[Node],
        folders: &Folders,
        now: TimeMs,
    ) -> Result<String, AccessError> {
        let system = self.system.public_key();
        let account = self.account.public_key();
        let operator_token = jwt::sign(
            &self.operator,
            &self.operator.public_key(),
            ACCOUNT,
            self.made_at,
            None,
            jwt::operator(&system),
        )?;
        let signers: Vec<_> = self.signers.iter().map(|(role, key)| (*role, key.public_key())).collect();
        let account_token =
            jwt::sign(&self.operator, &account, ACCOUNT, now, None, jwt::account(&signers, &self.revoked))?;
        let system_token = jwt::sign(&self.operator, &system, "SYS", now, None, jwt::system_account())?;
        let tls = |verify: &str| {
            let folder = &folders.tls;
            format!(
                "tls {{\n  cert_file: \"{folder}/server.crt\"\n  key_file: \"{folder}/server.key\"\n  \
                 ca_file: \"{folder}/ca.crt\"\n{verify}}}"
            )
        };
        let mut text = String::new();
        let Node { name, client_port, cluster_port, monitor_port, .. } = node;
        let advertised = node.client_address();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# {name}, one of {} nats-server(s) of a fleet. Written by `ternfleet nats init`; do not edit: \
             `ternfleet nats`\n\
             # writes it again when a key is revoked. Check with: nats-server -t -c nats.conf\n\
             server_name: \"{name}\"\n\
             listen: \"0.0.0.0:{client_port}\"\n\
             # The only address that clients learn: the machine's own may be private and not in the certificate.\n\
             client_advertise: \"{advertised}\"\n\
             # Plain HTTP without a key: only for this machine and its coordinator.\n\
             http: \"127.0.0.1:{monitor_port}\"\n\
             max_payload: 4MB\n\n\
             {}\n\n\
             jetstream {{\n  store_dir: \"{}\"\n  # Sync each message to disk before it is acknowledged; the \
             default syncs every two minutes.\n  \
             sync_interval: always\n  max_mem: 256MB\n}}\n\n\
             # Users are not listed: each has a token, signed by a key in the account's token. The scope of that\n\
             # key has the user's permissions.\n\
             operator: \"{operator_token}\"\n\
             system_account: \"{system}\"\n\
             resolver: MEMORY\n\
             resolver_preload {{\n  {system}: \"{system_token}\"\n  {account}: \"{account_token}\"\n}}\n",
            all.len(),
            tls(""),
            folders.store,
        );
        if all.len() > 1 {
            let routes: Vec<String> = all
                .iter()
                .filter(|other| other.name != *name)
                .map(|other| format!("    \"tls://{}:{}\"", other.host, other.cluster_port))
                .collect();
            let _ = write!(
                text,
                "\ncluster {{\n  name: \"{ACCOUNT}\"\n  listen: \"0.0.0.0:{cluster_port}\"\n  \
                 # Clients get all addresses from their configuration, not by gossip.\n  \
                 no_advertise: true\n  routes: [\n{}\n  ]\n  {}\n}}\n",
                routes.join("\n"),
                // A route is let in by its certificate alone.
                tls("  verify: true\n").replace('\n', "\n  "),
            );
        }
        Ok(text)
    }
}

fn seed(key: &KeyPair) -> String {
    key.seed().expect("because a site's keys are made with their seeds")
}

fn copy(key: &KeyPair) -> KeyPair {
    KeyPair::from_seed(&seed(key)).expect("because a seed of ours reads back")
}
