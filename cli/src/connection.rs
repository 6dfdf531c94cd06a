//! Which fleet a command talks to, and on whose behalf: the flags that all of these commands share.

use std::path::{Path, PathBuf};

use clap::Args;
use ternfleet_proto::TenantId;

use crate::addresses;

/// Where nats-server listens unless it is told otherwise.
const USUAL_ADDRESS: &str = "127.0.0.1:4222";
/// Where `ternfleet up` keeps its files unless it is told otherwise.
pub(crate) const USUAL_FOLDER: &str = "ternfleet-data";

#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// Address of NATS [default: the fleet that runs in ./ternfleet-data, else 127.0.0.1:4222]
    #[arg(long, value_name = "URL", env = "TERNFLEET_NATS")]
    nats: Option<String>,
    /// Credentials for a NATS server with permissions (created by `ternfleet nats user`)
    #[arg(long, value_name = "FILE", env = "TERNFLEET_NATS_CREDENTIALS_FILE")]
    pub(crate) nats_credentials_file: Option<PathBuf>,
    /// Additional certificates to trust (PEM file)
    #[arg(long, value_name = "FILE", env = "TERNFLEET_NATS_ROOT_CERTIFICATES")]
    pub(crate) nats_root_certificates: Option<PathBuf>,
    /// Tenant of the batches
    #[arg(long, value_name = "NAME", env = "TERNFLEET_TENANT", default_value = "default")]
    pub(crate) tenant: TenantId,
}

/// An address of NATS, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Given(String),
    /// Of a fleet of `ternfleet up`, by this file.
    Found(String, PathBuf),
    Usual,
}

impl Address {
    pub(crate) fn url(&self) -> &str {
        match self {
            Address::Given(url) | Address::Found(url, _) => url,
            Address::Usual => USUAL_ADDRESS,
        }
    }

    fn is_usual(&self) -> bool {
        self.url().trim_start_matches("nats://") == USUAL_ADDRESS
    }

    /// The flag that the next command needs to find the same fleet, with a blank before it.
    pub(crate) fn flag(&self) -> String {
        match self {
            Address::Given(url) if !self.is_usual() => format!(" --nats {url}"),
            _ => String::new(),
        }
    }

    /// A line for people, if the fleet is one that they did not name and might not expect.
    pub(crate) fn notice(&self) -> Option<String> {
        match self {
            Address::Found(url, file) if !self.is_usual() => {
                Some(format!("fleet: {url} (from {})", file.display()))
            }
            _ => None,
        }
    }
}

/// The line that makes other shells find a fleet with this address, if they would not by themselves.
pub(crate) fn export_line(nats: &str) -> Option<String> {
    let address = Address::Given(nats.to_owned());
    (!address.is_usual()).then(|| format!("export TERNFLEET_NATS={nats}"))
}

impl Connection {
    /// To a fleet on this machine that needs no credentials.
    pub(crate) fn local(nats: String) -> Connection {
        Connection {
            nats: Some(nats),
            nats_credentials_file: None,
            nats_root_certificates: None,
            tenant: TenantId::default_tenant(),
        }
    }

    /// To a secured fleet, by credentials and authority of its own.
    pub(crate) fn secured(nats: String, credentials: PathBuf, authority: PathBuf) -> Connection {
        Connection {
            nats: Some(nats),
            nats_credentials_file: Some(credentials),
            nats_root_certificates: Some(authority),
            tenant: TenantId::default_tenant(),
        }
    }

    /// The address that was given, that of the fleet in the current folder, or the usual one.
    pub(crate) fn address(&self) -> Address {
        self.address_from(Path::new(""))
    }

    fn address_from(&self, here: &Path) -> Address {
        if let Some(url) = &self.nats {
            return Address::Given(url.clone());
        }
        let folder = here.join(USUAL_FOLDER);
        match addresses::of_running(&folder) {
            Some(found) => Address::Found(found.nats, folder.join(addresses::FILE)),
            None => Address::Usual,
        }
    }

    /// The monitoring address of the nats-server, if it belongs to the fleet that runs in the current folder.
    pub(crate) fn monitoring(&self) -> Option<String> {
        self.monitoring_from(Path::new(""))
    }

    fn monitoring_from(&self, here: &Path) -> Option<String> {
        let local = addresses::of_running(&here.join(USUAL_FOLDER))?;
        (self.address_from(here).url() == local.nats).then_some(local.nats_monitoring)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Claim;

    fn nowhere() -> Connection {
        Connection { nats: None, ..Connection::local(String::new()) }
    }

    #[test]
    fn the_fleet_of_the_current_folder_is_found_and_named() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(nowhere().address_from(here.path()), Address::Usual);
        std::fs::create_dir(here.path().join(USUAL_FOLDER)).unwrap();
        let running = addresses::Addresses {
            nats: "nats://127.0.0.1:4333".into(),
            http: "http://127.0.0.1:8081".into(),
            prometheus: None,
            nats_monitoring: Some("http://127.0.0.1:8333".into()),
            pid: std::process::id(),
        };
        let file = here.path().join(USUAL_FOLDER).join(addresses::FILE);
        std::fs::write(&file, serde_json::to_string(&running).unwrap()).unwrap();
        let _lock = Claim::ask(&addresses::lock_file(&here.path().join(USUAL_FOLDER))).unwrap();
        let found = nowhere().address_from(here.path());
        assert_eq!(found.url(), "nats://127.0.0.1:4333");
        assert!(found.notice().unwrap().contains(&file.display().to_string()));
        assert_eq!(found.flag(), "");
        let monitoring = |connection: Connection| connection.monitoring_from(here.path());
        assert_eq!(monitoring(nowhere()).as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(monitoring(Connection::local(running.nats)).as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(monitoring(Connection::local("nats://10.0.0.1:4222".into())), None);
        // What was named counts more.
        let named = Connection::local("nats://10.0.0.1:4222".into()).address_from(here.path());
        assert_eq!((named.url(), named.notice()), ("nats://10.0.0.1:4222", None));
        assert_eq!(named.flag(), " --nats nats://10.0.0.1:4222");
    }

    #[test]
    fn only_an_unusual_address_is_worth_exporting() {
        assert_eq!(export_line("nats://127.0.0.1:4222"), None);
        assert_eq!(
            export_line("nats://127.0.0.1:4333").as_deref(),
            Some("export TERNFLEET_NATS=nats://127.0.0.1:4333")
        );
    }
}
