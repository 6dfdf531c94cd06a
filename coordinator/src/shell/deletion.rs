//! Deleting files, and what keeps one from being deleted: the input of a batch that is being created, which the ledger does
//! not know yet. (That it keeps those of the batches it knows is the caller's affair.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{FileRef, RefusalCode, Reply};
use ternfleet_proto::{TenantId, TimeMs, table};

use super::api::{refusal, unreachable};
use crate::files;

type Counts = Mutex<BTreeMap<(TenantId, String), u32>>;

/// Which inputs are reserved, and how often.
#[derive(Debug, Default)]
pub(crate) struct Reserves {
    counts: Arc<Counts>,
}

/// Keeps one input from being deleted until it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    counts: Arc<Counts>,
    key: (TenantId, String),
}

impl Reserves {
    pub(crate) fn reserve(&self, tenant: &TenantId, object: &str) -> Reserved {
        let key = (tenant.clone(), object.to_owned());
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default() += 1;
        Reserved { counts: Arc::clone(&self.counts), key }
    }

    pub(crate) fn holds(&self, tenant: &TenantId, object: &str) -> bool {
        let key = (tenant.clone(), object.to_owned());
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Removes a file, whether it came with a record or as an object alone.
pub(crate) async fn delete(bus: &dyn Bus, file: &FileRef, now: TimeMs) -> Reply<()> {
    let removed = async {
        let found = files::find(bus, &file.tenant, &file.object).await?;
        let place = match found {
            Some(record) if record.is_gone(now) => return Ok(false),
            Some(record) => record.created_at,
            None => {
                let objects = match bus.object_list(&table::files_bucket(&file.tenant)).await {
                    Err(BusError::NotFound(_)) => Vec::new(),
                    listed => listed?,
                };
                match objects.into_iter().find(|facts| facts.name == file.object) {
                    Some(facts) => facts.modified,
                    None => return Ok(false),
                }
            }
        };
        files::remove(bus, &file.tenant, &file.object, Some(place), now).await.map(|()| true)
    };
    match removed.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(refusal(RefusalCode::NotFound, format!("there is no file {:?}", file.object))),
        Err(error) => Err(unreachable(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_free_when_the_last_creation_is_over() {
        let (reserves, tenant) = (Reserves::default(), TenantId::default_tenant());
        let first = reserves.reserve(&tenant, "a");
        let second = reserves.reserve(&tenant, "a");
        drop(first);
        assert!(reserves.holds(&tenant, "a") && !reserves.holds(&tenant, "b"));
        drop(second);
        assert!(!reserves.holds(&tenant, "a"));
    }
}
