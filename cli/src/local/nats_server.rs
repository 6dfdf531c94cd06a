//! The nats-server of a local fleet: finding one that is new enough, and its configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use ternfleet_proto::table::server_is_new_enough;

use super::data_dir::DataDir;
use crate::shipped;

/// Names the program to use.
pub(crate) const PROGRAM_VARIABLE: &str = "TERNFLEET_NATS_SERVER";
/// Where `scripts/fetch-nats-server.sh` puts it, relative to the repository.
const FETCHED: &str = "target/tools/nats-server";
/// Large prompts and results go by reference, so this bounds a page of results and a work message.
const MAX_PAYLOAD_BYTES: usize = 8 << 20;

/// The program: the one named in the environment, else one on PATH that is new enough, else the one beside this program,
/// else the fetched one.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(PROGRAM_VARIABLE).filter(|name| !name.is_empty()) {
        let program = PathBuf::from(named);
        let version =
            version(&program).with_context(|| format!("{PROGRAM_VARIABLE} names {}", program.display()))?;
        if !server_is_new_enough(&version) {
            bail!(
                "{} is version {version}: {PROGRAM_VARIABLE} must point to 2.14 or newer",
                program.display()
            );
        }
        return Ok(program);
    }
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let found = on_path
        .unwrap_or_default()
        .into_iter()
        .map(|folder| folder.join("nats-server"))
        .chain(shipped::beside("nats-server"))
        .chain(shipped::file(FETCHED))
        .filter(|program| program.is_file())
        .find(|program| version(program).is_ok_and(|version| server_is_new_enough(&version)));
    found.with_context(|| {
        format!(
            "no nats-server of version 2.14 or newer was found: put one on PATH (from \
             https://github.com/nats-io/nats-server/releases), or set {PROGRAM_VARIABLE}; in a checkout, \
             scripts/fetch-nats-server.sh downloads one"
        )
    })
}

/// What `nats-server --version` says, as in `2.15.1`.
fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("--version").output().context("it cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("its version {:?} cannot be parsed", text.trim()))
}

fn parse_version(text: &str) -> Option<String> {
    let (_, version) = text.trim().rsplit_once('v')?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// Ports and name of one server.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Its greeting carries the name, so that another server on the port is not taken for ours.
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) monitor_port: u16,
}

/// Writes the configuration file.
pub(crate) fn configure(dir: &DataDir, settings: &Settings) -> anyhow::Result<()> {
    let Settings { name, port, monitor_port } = settings;
    // A JSON string is also a string of this format.
    let store = serde_json::to_string(&dir.nats_store()).context("the data folder's name is not UTF-8")?;
    let text = format!(
        "# Written by `ternfleet up` at each start.\n\
         server_name: \"{name}\"\n\
         listen: \"127.0.0.1:{port}\"\n\
         http: \"127.0.0.1:{monitor_port}\"\n\
         max_payload: {MAX_PAYLOAD_BYTES}\n\
         jetstream {{ store_dir: {store} }}\n"
    );
    let path = dir.nats_config();
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_server_prints_them() {
        assert_eq!(parse_version("nats-server: v2.15.1\n").as_deref(), Some("2.15.1"));
        assert_eq!(parse_version("nats-server: v2.9.0-RC.1\n").as_deref(), Some("2.9.0-RC.1"));
        assert_eq!(parse_version("something else"), None);
    }
}
