//! What a rented head is told: keys of the fleet, what may be rented and with whose money. One variable of its order.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use ternfleet_coordinator::ScaleOptions;
use ternfleet_proto::TimeMs;
use ternfleet_proto::access::{Folders, Node, Site};
use ternfleet_proto::table::Role;

use crate::commands::nats::Authority;
use crate::local::LaunchBudget;
use crate::output::write_secret;

/// The variable.
pub(crate) const VARIABLE: &str = "TERNFLEET_HEAD";
/// Inside the pod; the provider maps it to a port of a public address.
pub(crate) const NATS_PORT: u16 = 4222;
pub(crate) const MONITOR_PORT: u16 = 8222;
/// Where the head serves `/dist/`, when it does.
pub(crate) const DIST_PORT: u16 = 8081;
/// Names of a model of one's own under `/dist/`.
pub(crate) const MODEL_NAME: &str = "model.gguf";
pub(crate) const MANIFEST_NAME: &str = "manifest.toml";
/// By which the head's NATS greets.
pub(crate) const SERVER_NAME: &str = "head";
/// How long credentials of a launch last: no launch lasts longer.
const LIFE: Duration = Duration::from_secs(30 * 86_400);

/// All that a head needs. It holds the keys of this one fleet, which are void when the fleet has ended.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Bundle {
    pub(crate) site: String,
    pub(crate) authority_key: String,
    /// Of the provider's account: the head rents with it.
    pub(crate) provider_key: String,
    pub(crate) nats_server_url: String,
    pub(crate) nats_server_sha256: String,
    pub(crate) ordered_at: TimeMs,
    /// The head ends itself when it has heard of nobody for so long.
    pub(crate) unheard_limit_s: u64,
    /// What it and its pods may cost together.
    pub(crate) budget: Option<LaunchBudget>,
    /// Workers fetch their files from the head, when it is told to serve them.
    pub(crate) serves: Option<Serves>,
    pub(crate) scale: ScaleOptions,
}

/// What a head serves besides itself and nats-server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Serves {
    pub(crate) model: Option<ServedModel>,
}

/// A model that the catalogue does not know, and where the head gets it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServedModel {
    pub(crate) url: String,
    pub(crate) sha256: String,
    pub(crate) manifest_url: String,
}

/// How pods reach a head.
#[derive(Debug)]
pub(crate) struct Public {
    pub(crate) host: String,
    pub(crate) nats_port: u16,
    pub(crate) dist_port: Option<u16>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("fleet", &self.scale.fleet).finish_non_exhaustive()
    }
}

/// The coordinator's configuration, as its file holds it.
#[derive(Serialize)]
struct CoordinatorFile<'a> {
    nats_credentials_file: &'a Path,
    nats_root_certificates: &'a Path,
    issuer_file: &'a Path,
    dist_dir: Option<PathBuf>,
    dist_http: Option<SocketAddr>,
    scale: ScaleOptions,
}

/// Where a head has written what its parts read.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) nats_config: PathBuf,
    pub(crate) coordinator_config: PathBuf,
    pub(crate) credentials: PathBuf,
    pub(crate) authority: PathBuf,
}

/// Credentials by which commands of the launching machine come in, as the text of a `.creds` file.
pub(crate) fn credentials(site: &Site, now: TimeMs) -> anyhow::Result<String> {
    Ok(site.issuer().user(Role::Coordinator, "launch", now, LIFE)?.file())
}

impl Bundle {
    /// # Errors
    /// When the variable is not set, or holds something else.
    pub(crate) fn from_environment() -> anyhow::Result<Bundle> {
        let text = std::env::var(VARIABLE).with_context(|| {
            format!("{VARIABLE} is not set: this command is started only by `ternfleet launch`")
        })?;
        serde_json::from_str(&text).with_context(|| format!("{VARIABLE} cannot be parsed"))
    }

    pub(crate) fn to_variable(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("the head's bundle cannot be written")
    }

    /// Writes keys, certificates and configuration for a head that pods reach there.
    pub(crate) fn write(&self, dir: &Path, public: &Public, now: TimeMs) -> anyhow::Result<Written> {
        let (host, port) = (public.host.as_str(), public.nats_port);
        let site = Site::parse(&self.site)?;
        let authority = Authority::from_key(&self.authority_key)?;
        let secret = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = dir.join(name);
            write_secret(&path, text)?;
            Ok(path)
        };
        let certificate = authority.certificate()?;
        let pair = authority.server(SERVER_NAME, &[host, "127.0.0.1", "localhost"])?;
        secret("tls/server.crt", &pair.certificate)?;
        secret("tls/server.key", &pair.key)?;
        let authority = secret("tls/ca.crt", &certificate)?;
        let node = Node {
            name: SERVER_NAME.to_owned(),
            host: host.to_owned(),
            client_port: NATS_PORT,
            cluster_port: 6222,
            monitor_port: MONITOR_PORT,
            public: Some((host.to_owned(), port)),
        };
        let folders = Folders {
            tls: dir.join("tls").display().to_string(),
            store: dir.join("nats").display().to_string(),
        };
        let config = site.server_config(&node, std::slice::from_ref(&node), &folders, now)?;
        let nats_config = secret("nats.conf", &config)?;
        let issuer = secret("issuer.json", &site.issuer().file(&[Role::Worker, Role::Joiner]))?;
        let own = site.issuer().user(Role::Coordinator, "coordinator", now, LIFE)?;
        let credentials = secret("coordinator.creds", &own.file())?;
        let mut scale = self.scale.clone();
        scale.runpod.key_file = Some(secret("provider.key", &self.provider_key)?);
        // A container that is started again may have lost its disk, and names of pods are never used twice.
        scale.first_number = now.since(self.ordered_at).as_secs();
        let env = &mut scale.pod.env;
        env.insert("TERNFLEET_NATS".to_owned(), format!("tls://{host}:{port}"));
        env.insert("TERNFLEET_NATS_CA_PEM".to_owned(), certificate);
        // Plain HTTP: the token opens nothing but these files, and their digests come with the order.
        if let Some(port) = public.dist_port {
            let (pod, served) = (&mut scale.pod, format!("http://{host}:{port}"));
            (pod.binary_url, pod.binary_sha256) = (None, None);
            if self.serves.as_ref().is_some_and(|serves| serves.model.is_some()) {
                pod.model_url = Some(format!("{served}/dist/{MODEL_NAME}"));
                pod.manifest_url = Some(format!("{served}/dist/{MANIFEST_NAME}"));
            }
            pod.dist_url = Some(served);
        }
        let file = CoordinatorFile {
            nats_credentials_file: &credentials,
            nats_root_certificates: &authority,
            issuer_file: &issuer,
            dist_dir: public.dist_port.map(|_| dir.join("dist")),
            dist_http: public.dist_port.map(|_| (Ipv4Addr::UNSPECIFIED, DIST_PORT).into()),
            scale,
        };
        let coordinator_config = secret("coordinator.toml", &toml::to_string(&file)?)?;
        Ok(Written { nats_config, coordinator_config, credentials, authority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_writes_what_its_parts_read_and_a_bundle_shows_no_secret() {
        let bundle = Bundle {
            site: Site::new(TimeMs::now()).file(),
            authority_key: Authority::new().unwrap().key(),
            provider_key: "rpa_hush".to_owned(),
            nats_server_url: "https://files.example/nats-server".to_owned(),
            nats_server_sha256: "ab".repeat(32),
            ordered_at: TimeMs(0),
            unheard_limit_s: 21_600,
            budget: None,
            serves: Some(Serves { model: None }),
            scale: ScaleOptions { fleet: "tf-1-w1".to_owned(), ..ScaleOptions::default() },
        };
        assert!(!format!("{bundle:?}").contains("hush"));
        let variable = bundle.to_variable().unwrap();
        assert!(variable.len() < 8 << 10, "{} bytes of an order's 16 KiB", variable.len());
        let read: Bundle = serde_json::from_str(&variable).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let public = Public { host: "203.0.113.9".to_owned(), nats_port: 41_222, dist_port: Some(41_081) };
        let written = read.write(dir.path(), &public, TimeMs(7_000)).unwrap();
        let text = std::fs::read_to_string(written.coordinator_config).unwrap();
        for part in [
            "tls://203.0.113.9:41222",
            "fleet = \"tf-1-w1\"",
            "first_number = 7",
            "key_file = ",
            "BEGIN CERTIFICATE",
            "dist_http = \"0.0.0.0:8081\"",
            "dist_url = \"http://203.0.113.9:41081\"",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("hush"), "the key stands in a file of its own");
    }
}
