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
    fn choose(asked: Option<u16>, preferred: &[u16], what: &str) -> anyhow::Result<Port> {
        match asked {
            Some(port) if port == 0 || is_free(port) => {
                let number = if port == 0 { free_port(&[])? } else { port };
                Ok(Port { number: Cell::new(number), fixed: Cell::new(port != 0) })
            }
            Some(port) => {
                bail!("port {port} for {what} is in use: stop what listens there, or choose another")
            }
            None => Ok(Port { number: Cell::new(free_port(preferred)?), fixed: Cell::new(false) }),
        }
    }

    pub(crate) fn number(&self) -> u16 {
        self.number.get()
    }

    /// Changes to a free port if another process has taken it in the meantime; called before each start of its server.
    pub(crate) fn confirm(&self) -> anyhow::Result<u16> {
        if !self.fixed.get() && !is_free(self.number()) {
            self.number.set(free_port(&[])?);
        }
        Ok(self.number())
    }

    /// Somebody else has chosen.
    pub(crate) fn set(&self, number: u16) {
        self.number.set(number);
        self.fix();
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
    pub(crate) fn choose(dir: &DataDir, nats: Option<u16>, http: Option<u16>) -> anyhow::Result<Ports> {
        let last: Option<Last> = dir.read(FILE);
        let preferred = |last: Option<u16>, usual: u16| last.into_iter().chain([usual]).collect::<Vec<_>>();
        Ok(Ports {
            nats: Port::choose(nats, &preferred(last.as_ref().map(|last| last.nats), USUAL_NATS), "NATS")?,
            monitor: Port::choose(None, &[], "NATS monitoring")?,
            http: Port::choose(http, &preferred(last.as_ref().map(|last| last.http), USUAL_HTTP), "HTTP")?,
        })
    }

    /// Remembers them for the next start.
    pub(crate) fn remember(&self, dir: &DataDir) -> anyhow::Result<()> {
        let last = Last { nats: self.nats.number(), http: self.http.number() };
        dir.write_whole(FILE, &serde_json::to_string(&last)?)
    }
}
