//! The head of a launched fleet: nats-server and coordinator, wherever they run.

mod local;
mod runpod;

use anyhow::Context;
use ternfleet_cloud::Provider;

use super::bill::Bill;
use super::state::{Folder, Place, State};
use crate::connection::Connection;
use local::LocalHead;
use runpod::RunpodHead;

/// A head that answers.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) connection: Connection,
    /// It has started again: what an earlier one knew is gone.
    pub(crate) fresh: bool,
}

/// The head is gone, or somewhere else.
#[derive(Debug)]
pub(crate) struct Lost;

/// A head, running or not.
#[derive(Debug)]
pub(crate) enum Head {
    Local(LocalHead),
    Runpod(Box<RunpodHead>),
    /// Somebody else's: only asked, never started or ended.
    Elsewhere(Connection),
}

impl Head {
    pub(crate) fn of(state: &State, folder: &Folder) -> anyhow::Result<Head> {
        match state.at {
            Place::Local => Ok(Head::Local(LocalHead::new(state, folder))),
            Place::Elsewhere => {
                let elsewhere = state.elsewhere.as_ref().context("the state file has no coordinator")?;
                Ok(Head::Elsewhere(elsewhere.connection()))
            }
            Place::Runpod => Ok(Head::Runpod(Box::new(RunpodHead::new(state, folder)?))),
        }
    }

    /// The pods that are rented belong to this command, which gives them back.
    pub(crate) fn is_own(&self) -> bool {
        !matches!(self, Head::Elsewhere(_))
    }

    /// Starts it unless it runs, waits until it can take work, and answers how to reach it.
    pub(crate) async fn ensure(&self) -> anyhow::Result<Reached> {
        let kept = |connection| Reached { connection, fresh: false };
        match self {
            Head::Local(head) => head.ensure().await.map(kept),
            Head::Runpod(head) => head.ensure().await,
            Head::Elsewhere(connection) => Ok(kept(connection.clone())),
        }
    }

    /// How to reach it, if it runs.
    pub(crate) async fn find(&self) -> Option<Connection> {
        match self {
            Head::Local(head) => head.find().await,
            Head::Runpod(head) => head.find().await,
            Head::Elsewhere(connection) => Some(connection.clone()),
        }
    }

    /// Minds it. One that can be started again on what it had stored is; returns when it has to start again.
    pub(crate) async fn keep(&self) -> anyhow::Result<Lost> {
        match self {
            Head::Local(head) => match head.keep().await? {},
            Head::Runpod(head) => head.keep().await,
            Head::Elsewhere(_) => std::future::pending().await,
        }
    }

    /// Where the pods' bill is asked for.
    pub(crate) fn provider(&self) -> anyhow::Result<Option<Box<dyn Provider>>> {
        match self {
            Head::Local(head) => Ok(Some(Box::new(head.provider()?))),
            Head::Runpod(head) => Ok(Some(Box::new(head.provider()))),
            Head::Elsewhere(_) => Ok(None),
        }
    }

    /// Adds the pods that no audit log tells of.
    pub(crate) fn complete(&self, bill: &mut Bill) -> anyhow::Result<()> {
        match self {
            Head::Runpod(head) => head.complete(bill),
            Head::Local(_) | Head::Elsewhere(_) => Ok(()),
        }
    }

    /// Ends the head and every pod that bears the fleet's name; returns when none is left. `returned` when the head has
    /// given back all that it had ordered.
    pub(crate) async fn end(&self, returned: bool) -> anyhow::Result<()> {
        match self {
            Head::Local(head) => head.end().await,
            Head::Runpod(head) => head.end(returned).await,
            Head::Elsewhere(_) => Ok(()),
        }
    }
}
