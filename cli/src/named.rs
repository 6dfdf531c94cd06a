//! A batch as a person names it: its id, the beginning of its id, or its name.

use std::convert::Infallible;
use std::str::FromStr;

use anyhow::{Context, bail};

use ternfleet_proto::BatchId;
use ternfleet_proto::message::{BatchView, Refusal, RefusalCode};

use crate::client::{Fleet, Patience};
use crate::listing;
use crate::progress::state_name;

/// Candidates that an error message lists.
const SHOWN_MAX: usize = 5;
/// What every id begins with; it may be left out.
const ID_BEGINS: &str = "batch_";

#[derive(Debug, Clone)]
pub(crate) struct Named(String);

impl FromStr for Named {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Named, Infallible> {
        Ok(Named(text.to_owned()))
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Named {
    /// The one batch that goes by this name.
    pub(crate) async fn find(&self, fleet: &Fleet) -> anyhow::Result<BatchView> {
        if let Ok(id) = self.0.parse::<BatchId>()
            && let Some(batch) = known(fleet.batch(&id, Patience::Short).await)?
        {
            return Ok(batch);
        }
        let mut found = listing::read_once(fleet, Some(&self.0), |_| false).await?.batches;
        found.retain(|batch| self.means(batch));
        self.only(found)
    }

    fn means(&self, batch: &BatchView) -> bool {
        let id = batch.id.as_str();
        let begins = |id: &str| !self.0.is_empty() && id.starts_with(&self.0);
        batch.name.as_ref() == Some(&self.0) || begins(id) || id.strip_prefix(ID_BEGINS).is_some_and(begins)
    }

    fn only(&self, mut found: Vec<BatchView>) -> anyhow::Result<BatchView> {
        match found.len() {
            0 => bail!("no batch has the id or name {}: see `ternfleet batches`", self.0),
            1 => Ok(found.remove(0)),
            count => {
                let ids: Vec<&str> = found.iter().take(SHOWN_MAX).map(|batch| batch.id.as_str()).collect();
                let more = if count > SHOWN_MAX { ", …" } else { "" };
                bail!("{} matches {count} batches: {}{more}", self.0, ids.join(", "))
            }
        }
    }
}

/// A batch that may still be changed; an error if it has ended.
pub(crate) fn running(batch: BatchView) -> anyhow::Result<BatchView> {
    if batch.state.is_terminal() {
        bail!("{} has already ended ({}): nothing was changed", batch.id, state_name(batch.state));
    }
    Ok(batch)
}

/// The batch that was asked for; none if the coordinator knows no such id.
fn known(answer: anyhow::Result<BatchView>) -> anyhow::Result<Option<BatchView>> {
    match answer {
        Ok(batch) => Ok(Some(batch)),
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) if refusal.code == RefusalCode::NotFound => Ok(None),
            _ => Err(error).context("the batch cannot be looked up"),
        },
    }
}
