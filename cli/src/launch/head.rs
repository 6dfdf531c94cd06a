//! The head of a launched fleet: nats-server and coordinator, wherever they run.

mod local;

use std::convert::Infallible;

use anyhow::{Context, bail};
use ternfleet_cloud::Provider;

use super::state::{Folder, Place, State};
use crate::connection::Connection;
use local::LocalHead;

/// A head, running or not.
#[derive(Debug)]
pub(crate) enum Head {
    Local(LocalHead),
    /// Somebody else's: only asked, never started or ended.
    Elsewhere(Connection),
}

impl Head {
    pub(crate) fn of(state: &State, folder: &Folder) -> anyhow::Result<Head> {
        match state.at {
            Place::Local => Ok(Head::Local(LocalHead::new(state, folder))),
            Place::Elsewhere => {
                let nats = state.nats.clone().context("the state names no coordinator")?;
                Ok(Head::Elsewhere(Connection::local(nats)))
            }
            Place::Runpod => bail!("this version cannot launch at RunPod"),
        }
    }

    /// The pods that are rented belong to this command, which gives them back.
    pub(crate) fn is_own(&self) -> bool {
        !matches!(self, Head::Elsewhere(_))
    }

    /// Starts it unless it runs, waits until it can take work, and answers how to reach it.
    pub(crate) async fn ensure(&self) -> anyhow::Result<Connection> {
        match self {
            Head::Local(head) => head.ensure().await,
            Head::Elsewhere(connection) => Ok(connection.clone()),
        }
    }

    /// How to reach it, if it runs.
    pub(crate) async fn find(&self) -> Option<Connection> {
        match self {
            Head::Local(head) => head.find().await,
            Head::Elsewhere(connection) => Some(connection.clone()),
        }
    }

    /// Starts it again whenever it has ended; returns only when that fails.
    pub(crate) async fn keep(&self) -> anyhow::Result<Infallible> {
        match self {
            Head::Local(head) => head.keep().await,
            Head::Elsewhere(_) => std::future::pending().await,
        }
    }

    /// Where the pods' bill is asked for.
    pub(crate) fn provider(&self) -> anyhow::Result<Option<Box<dyn Provider>>> {
        match self {
            Head::Local(head) => Ok(Some(Box::new(head.provider()?))),
            Head::Elsewhere(_) => Ok(None),
        }
    }

    /// Ends the head and every pod that bears the fleet's name; returns when none is left.
    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        match self {
            Head::Local(head) => head.end().await,
            Head::Elsewhere(_) => Ok(()),
        }
    }
}
