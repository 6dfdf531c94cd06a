//! Deleting files, and what keeps one from being deleted: the input of a batch that is being created, which the ledger does
//! not know yet. (That it keeps those of the batches it knows is the caller's affair.)

use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{FileRef, RefusalCode, Reply};
use ternfleet_proto::{TenantId, TimeMs, table};

use super::api::{refusal, unreachable};
use crate::counted::{Counted, Counts};
use crate::files;

/// Which inputs are reserved, and how often.
#[derive(Debug, Default)]
pub(crate) struct Reserves(Counts<(TenantId, String)>);

/// Keeps one input from being deleted until it is dropped.
pub(crate) type Reserved = Counted<(TenantId, String)>;

impl Reserves {
    pub(crate) fn reserve(&self, tenant: &TenantId, object: &str) -> Reserved {
        self.0.take((tenant.clone(), object.to_owned()))
    }

    pub(crate) fn holds(&self, tenant: &TenantId, object: &str) -> bool {
        self.0.holds(&(tenant.clone(), object.to_owned()))
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
