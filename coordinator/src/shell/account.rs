//! Where the fleet's account is stored (`control`, key `account`).

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::{UsdMicro, codec, table};

use crate::core::Account;

const KEY: &str = "account";
const TRIES: u32 = 10;

/// Under which revision the account is stored. Another leader's later write ends this one's writing.
#[derive(Debug, Default)]
pub(super) struct AccountStamp {
    revision: u64,
    /// What was written since, and may be stored: nobody answered.
    unheard: Vec<Vec<u8>>,
    /// Another leader writes now, or what is stored cannot be read and is left alone.
    closed: bool,
}

/// What is stored; in a new fleet, nothing.
pub(super) async fn read(bus: &Arc<dyn Bus>) -> (Account, AccountStamp) {
    for _ in 0..TRIES {
        match bus.kv_get(table::KV_CONTROL, KEY).await {
            Ok(None) | Err(BusError::NotFound(_)) => return Default::default(),
            Ok(Some(entry)) => match codec::decode(&entry.value) {
                Ok(account) => {
                    return (account, AccountStamp { revision: entry.revision, ..AccountStamp::default() });
                }
                Err(error) => {
                    tracing::error!(%error, "the account of the fleet cannot be read; ignored");
                    break;
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the account of the fleet cannot be read; retrying");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    (Account::default(), AccountStamp { closed: true, ..AccountStamp::default() })
}

impl AccountStamp {
    /// By compare-and-set.
    pub(super) async fn store(&mut self, bus: &dyn Bus, account: &Account) {
        if self.closed || (!self.unheard.is_empty() && self.look_again(bus).await.is_err()) {
            return;
        }
        let value = codec::encode(account);
        let stored = match self.revision {
            0 => bus.kv_create(table::KV_CONTROL, KEY, value.clone(), None).await,
            revision => bus.kv_update(table::KV_CONTROL, KEY, value.clone(), revision, None).await,
        };
        match stored {
            Ok(revision) => (self.revision, self.unheard) = (revision, Vec::new()),
            Err(BusError::Unreachable(_)) => self.unheard.push(value.into()),
            // An earlier write of this leader may have arrived after all: then the next one follows it.
            Err(BusError::Exists(_) | BusError::WrongLastSequence) => {
                if self.look_again(bus).await == Ok(false) {
                    tracing::warn!("another leader has written the account of the fleet; this leader stops");
                    self.closed = true;
                }
            }
            Err(error) => tracing::warn!(%error, "the account of the fleet could not be stored"),
        }
    }

    /// True if what is stored was written by this leader and not known to be stored.
    async fn look_again(&mut self, bus: &dyn Bus) -> Result<bool, BusError> {
        let stored = bus.kv_get(table::KV_CONTROL, KEY).await?;
        let own = stored.filter(|entry| self.unheard.iter().any(|written| entry.value == *written));
        if let Some(entry) = &own {
            (self.revision, self.unheard) = (entry.revision, Vec::new());
        }
        Ok(own.is_some())
    }
}

/// What the scaler's ledger held when this leader began; what it has rented since is in the core's bills.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RentedBefore {
    pub(crate) total: UsdMicro,
    /// Of the present day; negative when this process began before midnight.
    pub(crate) today: UsdMicro,
}
