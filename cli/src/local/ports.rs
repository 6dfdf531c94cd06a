//! The ports of a local fleet: asked for, or chosen; the same ones again after a restart where they are free.

use std::cell::Cell;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::data_dir::DataDir;
use super::probe::{free_port, is_free};

/// What `ternfleet submit` looks for when it is told nothing.
const USUAL_NATS: u16 = 4222;
const USUAL_HTTP: u16 = 8080;
const FILE: &str = "ports.json";

/// One port, and whether it may still move.
#[derive(Debug)]
pub(crate) struct Port {
    number: Cell<u16>,
    fixed: Cell<bool>,
}

impl Port {
    fn choose(asked: Option<u16>, preferred: &[u16], others: &[u16], what: &str) -> anyhow::Result<Port> {
        let (number, fixed) = match asked {
            Some(0) => (free_port(&[], others)?, false),
            Some(port) if is_free(port) && !others.contains(&port) => (port, true),
            Some(port) => {
                bail!("port {port} for {what} is in use: stop what listens there, or choose another")
            }
            None => (free_port(preferred, others)?, false),
        };
        Ok(Port { number: Cell::new(number), fixed: Cell::new(fixed) })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number.get()
    }

    /// Others know it now: it stays.
    pub(crate) fn fix(&self) {
        self.fixed.set(true);
    }
}

#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) nats: Port,
    pub(crate) monitor: Port,
    pub(crate) http: Port,
}

#[derive(Debug, Serialize, Deserialize)]
struct Last {
    nats: u16,
    http: u16,
}

impl Ports {
    pub(crate) fn choose(
        dir: &DataDir,
        nats: Option<u16>,
        monitor: Option<u16>,
        http: Option<u16>,
    ) -> anyhow::Result<Ports> {
        let last: Option<Last> = dir.read(FILE);
        let preferred = |last: Option<u16>, usual: u16| last.into_iter().chain([usual]).collect::<Vec<_>>();
        let usual_nats = preferred(last.as_ref().map(|last| last.nats), USUAL_NATS);
        let usual_http = preferred(last.as_ref().map(|last| last.http), USUAL_HTTP);
        let nats = Port::choose(nats, &usual_nats, &[], "NATS")?;
        let http = Port::choose(http, &usual_http, &[nats.number()], "HTTP")?;
        let monitor = Port::choose(monitor, &[], &[nats.number(), http.number()], "NATS monitoring")?;
        Ok(Ports { nats, monitor, http })
    }

    /// Changes one of them to a free port if another process has taken it in the meantime; called before each start of
    /// its server.
    pub(crate) fn confirm(&self, port: &Port) -> anyhow::Result<u16> {
        if !port.fixed.get() && !is_free(port.number()) {
            port.number.set(free_port(&[], &self.numbers())?);
        }
        Ok(port.number())
    }

    pub(crate) fn numbers(&self) -> [u16; 3] {
        [&self.nats, &self.monitor, &self.http].map(Port::number)
    }

    /// Remembers them for the next start.
    pub(crate) fn remember(&self, dir: &DataDir) -> anyhow::Result<()> {
        let last = Last { nats: self.nats.number(), http: self.http.number() };
        dir.write_whole(FILE, &serde_json::to_string(&last)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_of_a_fleet_has_a_port_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let port = free_port(&[], &[]).unwrap();
        let refused = Ports::choose(&dir, Some(port), None, Some(port)).unwrap_err().to_string();
        assert!(refused.contains("for HTTP is in use"), "{refused}");

        let ports = Ports::choose(&dir, Some(0), None, Some(0)).unwrap();
        let taken = std::net::TcpListener::bind(("127.0.0.1", ports.nats.number())).unwrap();
        assert_ne!(ports.confirm(&ports.nats).unwrap(), taken.local_addr().unwrap().port());
        let mut numbers = ports.numbers();
        numbers.sort_unstable();
        assert!(numbers[0] < numbers[1] && numbers[1] < numbers[2], "{numbers:?}");
    }
}
