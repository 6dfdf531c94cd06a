//! What the scaler must not forget, in the bucket `scale`. Every write is a compare-and-set: a leader that was paused
//! and has been followed by another finds that its revision is old, writes nothing, and orders nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{Refusal, RefusalCode, ScaleDials};
use ternfleet_proto::{TimeMs, UsdMicro, codec, table};

use super::{Ties, day_of};
use crate::scale::{Health, Intent, Intents};

const DIALS: &str = "dials";
const NUMBER: &str = "number";
const LEDGER: &str = "ledger";
const HEALTH: &str = "health";
const POD: &str = "pod.";

/// What has been spent on rented pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Days since 1970, UTC.
    pub(super) day: u64,
    pub(super) spent_today_usd_micro: UsdMicro,
    pub(super) spent_usd_micro: UsdMicro,
    /// Up to when pods have been billed; the next leader continues from there.
    pub(super) billed_to: TimeMs,
}

impl Ledger {
    pub(super) fn today(&self, now: TimeMs) -> UsdMicro {
        if self.day == day_of(now) { self.spent_today_usd_micro } else { UsdMicro::ZERO }
    }
}

/// A value and the revision under which it stands; 0 when it is not stored.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept<T> {
    pub(super) value: T,
    revision: u64,
}

/// The bucket as this leader knows it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) dials: Kept<ScaleDials>,
    pub(super) number: Kept<u64>,
    pub(super) ledger: Kept<Ledger>,
    pub(super) intents: BTreeMap<String, Kept<Intent>>,
    /// By class.
    health: Kept<BTreeMap<String, Health>>,
    pub(super) began_at: TimeMs,
    /// Up to when an earlier leader billed what it left.
    pub(super) billed_to: TimeMs,
    /// Somebody else wrote, or it is not known whether a write was stored: read again before anything is decided.
    pub(super) stale: bool,
}

impl Store {
    /// Reads until it can be read; `None` when the leader has ended.
    pub(super) async fn read_patiently(ties: &Ties) -> Option<Store> {
        loop {
            match Store::read(ties).await {
                Ok(store) => return Some(store),
                Err(error) => tracing::warn!(%error, "the scaler's bucket cannot be read; retrying"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            if ties.situations.has_changed().is_err() {
                return None;
            }
        }
    }

    async fn read(ties: &Ties) -> Result<Store, BusError> {
        let mut store = Store {
            dials: Kept::default(),
            number: Kept::default(),
            ledger: Kept::default(),
            intents: BTreeMap::new(),
            health: Kept::default(),
            began_at: ties.clock.wall(),
            billed_to: TimeMs(0),
            stale: false,
        };
        for entry in ties.bus.kv_entries(table::KV_SCALE).await? {
            match entry.key.as_str() {
                DIALS => read_into(&mut store.dials, &entry.value, entry.revision),
                NUMBER => read_into(&mut store.number, &entry.value, entry.revision),
                LEDGER => read_into(&mut store.ledger, &entry.value, entry.revision),
                HEALTH => read_into(&mut store.health, &entry.value, entry.revision),
                key => match (key.strip_prefix(POD), codec::decode::<Intent>(&entry.value)) {
                    (Some(name), Ok(value)) => {
                        store.intents.insert(name.to_owned(), Kept { value, revision: entry.revision });
                    }
                    (_, decoded) => {
                        let why = decoded.err().map(|error| error.to_string());
                        tracing::error!(key, why, "unknown key in the scaler's bucket; ignored");
                    }
                },
            }
        }
        store.billed_to = store.ledger.value.billed_to;
        Ok(store)
    }

    /// Reads again what somebody may have changed, and keeps what only this process knows.
    pub(super) async fn reload(&mut self, ties: &Ties) {
        match Store::read(ties).await {
            Ok(fresh) => {
                *self = Store { began_at: self.began_at, billed_to: self.billed_to, ..fresh };
            }
            Err(error) => tracing::warn!(%error, "the scaler's bucket cannot be read"),
        }
    }

    pub(super) fn intents(&self) -> Intents {
        self.intents.iter().map(|(name, kept)| (name.clone(), kept.value.clone())).collect()
    }

    /// Writes a new intent. Its number is taken first, so that no name is ever used twice.
    pub(super) async fn write(&mut self, ties: &Ties, intent: &Intent) -> Result<(), BusError> {
        let number =
            intent.name.rsplit('-').next().and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0);
        if number >= self.number.value {
            put(&*ties.bus, NUMBER, &mut self.number, number + 1).await.inspect_err(|_| self.stale = true)?;
        }
        self.put_intent(ties, intent.clone()).await
    }

    /// Changes a written intent.
    pub(super) async fn change(
        &mut self,
        ties: &Ties,
        name: &str,
        change: impl FnOnce(&mut Intent),
    ) -> Result<(), BusError> {
        let mut changed = self.intent(name)?.clone();
        change(&mut changed);
        if changed == *self.intent(name)? {
            return Ok(());
        }
        self.put_intent(ties, changed).await
    }

    /// Writes an intent as it is, so that an earlier leader can neither change it nor strike it out any more.
    pub(super) async fn take_over(&mut self, ties: &Ties, name: &str) -> Result<(), BusError> {
        let intent = self.intent(name)?.clone();
        self.put_intent(ties, intent).await
    }

    fn intent(&self, name: &str) -> Result<&Intent, BusError> {
        self.intents.get(name).map(|kept| &kept.value).ok_or_else(|| BusError::NotFound(name.to_owned()))
    }

    /// Over what is known of it, or as a new one.
    async fn put_intent(&mut self, ties: &Ties, intent: Intent) -> Result<(), BusError> {
        let name = intent.name.clone();
        let revision = self.intents.get(&name).map_or(0, |kept| kept.revision);
        let mut kept = Kept { value: intent.clone(), revision };
        let key = key_of(&name);
        put(&*ties.bus, &key, &mut kept, intent).await.inspect_err(|_| self.stale = true)?;
        self.intents.insert(name, kept);
        Ok(())
    }

    /// Strikes an intent out.
    pub(super) async fn strike(&mut self, ties: &Ties, name: &str) -> Result<(), BusError> {
        let Some(kept) = self.intents.get(name) else { return Ok(()) };
        let key = key_of(name);
        match ties.bus.kv_delete(table::KV_SCALE, &key, Some(kept.revision)).await {
            Ok(()) | Err(BusError::NotFound(_)) => {
                self.intents.remove(name);
                Ok(())
            }
            Err(error) => {
                self.stale = true;
                Err(error)
            }
        }
    }

    pub(super) async fn keep_dials(&mut self, ties: &Ties, dials: ScaleDials) -> Result<(), Refusal> {
        put(&*ties.bus, DIALS, &mut self.dials, dials).await.map_err(|error| {
            self.stale = true;
            Refusal {
                code: RefusalCode::Unavailable,
                message: format!("the settings could not be stored: {error}"),
                retry_after_ms: Some(1_000),
            }
        })
    }

    /// How pods of a class have done.
    pub(super) fn health(&self, class: &str) -> Health {
        self.health.value.get(class).cloned().unwrap_or_default()
    }

    pub(super) async fn change_health(&mut self, ties: &Ties, class: &str, change: impl FnOnce(&mut Health)) {
        let mut all = self.health.value.clone();
        change(all.entry(class.to_owned()).or_default());
        if all == self.health.value {
            return;
        }
        if let Err(error) = put(&*ties.bus, HEALTH, &mut self.health, all.clone()).await {
            self.stale = true;
            tracing::warn!(class, %error, "the history of this class could not be stored");
            // Known here at least: money does not wait for a write.
            self.health.value = all;
        }
    }

    /// The ledger is written at every turn in which money was spent.
    pub(super) async fn keep_ledger(&mut self, ties: &Ties, ledger: Ledger) {
        let idle = self.intents.is_empty()
            && ledger.spent_usd_micro == self.ledger.value.spent_usd_micro
            && ledger.day == self.ledger.value.day;
        if idle {
            return;
        }
        if let Err(error) = put(&*ties.bus, LEDGER, &mut self.ledger, ledger).await {
            self.stale = true;
            tracing::warn!(%error, "the scaler's ledger could not be stored");
        }
    }
}

fn key_of(pod: &str) -> String {
    format!("{POD}{pod}")
}

fn read_into<T: DeserializeOwned>(kept: &mut Kept<T>, value: &[u8], revision: u64) {
    match codec::decode(value) {
        Ok(value) => *kept = Kept { value, revision },
        Err(error) => {
            kept.revision = revision;
            tracing::error!(%error, "a value of the scaler cannot be read; starting with a new one");
        }
    }
}

/// Compare-and-set. A lost answer is an error like any other: the caller reads again.
async fn put<T: Serialize>(bus: &dyn Bus, key: &str, kept: &mut Kept<T>, value: T) -> Result<(), BusError> {
    let encoded = codec::encode(&value);
    let revision = match kept.revision {
        0 => bus.kv_create(table::KV_SCALE, key, encoded, None).await?,
        revision => bus.kv_update(table::KV_SCALE, key, encoded, revision, None).await?,
    };
    *kept = Kept { value, revision };
    Ok(())
}
