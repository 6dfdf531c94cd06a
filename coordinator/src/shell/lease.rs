//! The leader's lease: one key that the server removes when it is not renewed. Whoever creates it leads.
//!
//! A server that is killed may forget that the key was to go (seen with nats-server 2.15.1 under repeated kill -9). So
//! whoever sees one revision of it for twice its time takes it over by compare-and-set: a living leader has renewed it
//! by then, and one that wakes later finds that it has lost it.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::LeaderRevision;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::{codec, table};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Input;
use crate::core::Lead;

const LEADER: &str = "leader";
const TERM: &str = "term";
const ASK_EVERY: Duration = Duration::from_millis(400);

/// Until when this process leads for certain. What cannot be taken back looks at it first: a process that was stopped
/// may have been followed by another before it learns of it.
#[derive(Debug, Clone)]
pub(crate) struct Held(watch::Receiver<Instant>);

impl Held {
    pub(crate) fn lasts(&self) -> bool {
        Instant::now() < *self.0.borrow()
    }
}

/// Contends for the lease, then keeps it, until it is lost or the process ends. A leader that cannot renew in time
/// stops by itself: it does not wait to be told.
pub(crate) async fn keep(
    bus: Arc<dyn Bus>,
    name: String,
    lease: Duration,
    inbox: mpsc::Sender<Input>,
    shutdown: CancellationToken,
) {
    let ttl = Duration::from_secs(lease.as_secs().max(1));
    let value = codec::encode(&name);
    let mut told = false;
    let mut seen = Seen::default();
    let mut revision = loop {
        let asked_at = Instant::now();
        match bus.kv_create(table::KV_CONTROL, LEADER, value.clone(), Some(ttl)).await {
            // An answer that took longer than the lease lasts proves nothing any more.
            Ok(revision) if asked_at.elapsed() < ttl => break revision,
            Ok(_) | Err(BusError::Exists(_) | BusError::WrongLastSequence) => {
                if !std::mem::replace(&mut told, true) && inbox.send(Input::StandingBy).await.is_err() {
                    return;
                }
                if let Some(left) = seen.look(&bus, 2 * ttl).await {
                    let asked_at = Instant::now();
                    match bus.kv_update(table::KV_CONTROL, LEADER, value.clone(), left, Some(ttl)).await {
                        Ok(revision) if asked_at.elapsed() < ttl => {
                            tracing::warn!("the server kept an expired lease; taking it over");
                            break revision;
                        }
                        Ok(_) | Err(_) => seen = Seen::default(),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the leader's lease cannot be requested"),
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    };
    let mut renewed_at = Instant::now();
    let term = match next_term(&bus).await {
        Ok(term) => term,
        Err(error) => {
            let _ = inbox.send(Input::Deposed(format!("the term cannot be counted: {error}"))).await;
            return;
        }
    };
    let lead = Lead { revision: LeaderRevision(revision), term };
    let (until, held) = watch::channel(renewed_at + ttl);
    if inbox.send(Input::Leading(lead, Held(held))).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(ttl / 4) => {}
            () = shutdown.cancelled() => {
                let _ = bus.kv_delete(table::KV_CONTROL, LEADER, Some(revision)).await;
                return;
            }
        }
        let asked_at = Instant::now();
        let left = ttl.saturating_sub(renewed_at.elapsed());
        let renewal = bus.kv_update(table::KV_CONTROL, LEADER, value.clone(), revision, Some(ttl));
        let lost = match tokio::time::timeout(left, renewal).await {
            Ok(Ok(next)) => {
                revision = next;
                renewed_at = asked_at;
                until.send_replace(renewed_at + ttl);
                continue;
            }
            Ok(Err(BusError::WrongLastSequence | BusError::NotFound(_))) => {
                "it has expired or another coordinator holds it".to_owned()
            }
            Ok(Err(error)) if renewed_at.elapsed() < ttl => {
                tracing::warn!(%error, "the leader's lease could not be renewed; retrying");
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no reply in time".to_owned(),
        };
        let _ = inbox.send(Input::Deposed(lost)).await;
        return;
    }
}

/// The revision of the lease that was last seen, and since when.
#[derive(Debug, Default)]
struct Seen(Option<(u64, Instant)>);

impl Seen {
    /// The revision of a lease that nobody has renewed for so long.
    async fn look(&mut self, bus: &Arc<dyn Bus>, patience: Duration) -> Option<u64> {
        let Ok(Some(entry)) = bus.kv_get(table::KV_CONTROL, LEADER).await else {
            // Not there, or nobody can say: what was seen before proves nothing any more.
            self.0 = None;
            return None;
        };
        match self.0 {
            Some((revision, since)) if revision == entry.revision => {
                (since.elapsed() >= patience).then_some(revision)
            }
            _ => {
                self.0 = Some((entry.revision, Instant::now()));
                None
            }
        }
    }
}

/// Counts leaderships: every leader has a higher term than all before it.
async fn next_term(bus: &Arc<dyn Bus>) -> Result<u32, BusError> {
    loop {
        let entry = bus.kv_get(table::KV_CONTROL, TERM).await?;
        let term = entry.as_ref().and_then(|entry| codec::decode::<u32>(&entry.value).ok()).unwrap_or(0) + 1;
        let value = codec::encode(&term);
        let stored = match entry {
            Some(entry) => bus.kv_update(table::KV_CONTROL, TERM, value, entry.revision, None).await,
            None => bus.kv_create(table::KV_CONTROL, TERM, value, None).await,
        };
        match stored {
            Ok(_) => return Ok(term),
            Err(BusError::WrongLastSequence | BusError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
}
