//! Workers as they come in: at the door, and with each heartbeat.

use std::sync::Arc;

use ternfleet_proto::message::{Heartbeat, JoinRequest};
use ternfleet_proto::{Now, codec};

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
        let payload = codec::encode(&answer.as_ref().map(|(grant, _)| grant));
        match answer {
            Ok((_, Some(granted))) => {
                self.grants.note(granted.clone());
                self.store_grant(granted, Some((reply, payload)));
            }
            Ok((_, None)) | Err(_) => self.send(reply, payload),
        }
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
