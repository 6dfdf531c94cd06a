//! Workers as they come in: at the door, and with each heartbeat.

use std::sync::Arc;

use ternfleet_proto::message::{Heartbeat, JoinGrant, JoinRequest, Reply};
use ternfleet_proto::{Now, codec};

use super::join::{LetIn, UsedToken};
use super::{Service, grants};
use crate::core::{Action, Event};

impl Service {
    /// The core is told who a worker is by its grant, and the rest by its heartbeat.
    pub(super) fn hear_beat(&mut self, now: Now, mut beat: Box<Heartbeat>, actions: &mut Vec<Action>) {
        match self.grants.vouch(&mut beat, self.core.is_leading(), self.core.fleet()) {
            Ok(fresh) => {
                if let Some(fresh) = fresh {
                    self.store_grant(fresh, None);
                }
                self.core.on(now, Event::Heartbeat(beat), actions);
            }
            Err(()) => tracing::debug!(worker = %beat.worker, "nobody vouches for this worker yet"),
        }
    }

    pub(super) fn let_in(&mut self, now: Now, asker: &str, request: &JoinRequest, reply: String) {
        let answer = self.door.answer(now.wall, asker, request, self.core.fleet(), &self.grants);
        match answer {
            Ok(LetIn { grant, granted, once: Some(token) }) => self.let_in_once(token, grant, granted, reply),
            Ok(LetIn { grant, granted: Some(granted), once: None }) => {
                let payload = codec::encode(&Reply::Ok(grant));
                self.grants.note(granted.clone());
                self.store_grant(granted, Some((reply, payload)));
            }
            Ok(LetIn { grant, granted: None, once: None }) => {
                self.send(reply, codec::encode(&Reply::Ok(grant)))
            }
            Err(refusal) => self.send(reply, codec::encode(&Reply::<JoinGrant>::Err(refusal))),
        }
    }

    /// With the token of an order: whoever used it first is in, and nobody else.
    fn let_in_once(
        &self,
        token: UsedToken,
        grant: JoinGrant,
        granted: Option<grants::Granted>,
        reply: String,
    ) {
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            let answer = token.claim(&bus, grant).await;
            if let (Ok(_), Some(granted)) = (&answer, &granted)
                && let Err(error) = grants::store(&bus, granted).await
            {
                tracing::warn!(%error, "who a worker is was not stored; it asks again");
                return;
            }
            // The pod asks again if this is lost.
            let _ = bus.send(&reply, codec::encode(&answer)).await;
        });
    }

    /// Stores who a worker is; then its answer goes out, if it waits for one.
    fn store_grant(&self, granted: grants::Granted, answer: Option<(String, bytes::Bytes)>) {
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            if let Err(error) = grants::store(&bus, &granted).await {
                tracing::warn!(%error, "who a worker is was not stored; it asks again");
                return;
            }
            if let Some((reply, payload)) = answer
                && let Err(error) = bus.send(&reply, payload).await
            {
                tracing::debug!(%error, "a reply was not sent");
            }
        });
    }
}
