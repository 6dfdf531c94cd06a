//! Workers as they come in: when they ask for credentials, and with each heartbeat.

use std::sync::Arc;

use ternfleet_proto::message::{Heartbeat, JoinGrant, JoinRequest, Reply};
use ternfleet_proto::{Now, codec};

use super::join::LetIn;
use super::{Service, grants};
use crate::core::{Action, Event};

impl Service {
    /// The core is told who a worker is by its grant, and the rest by its heartbeat.
    pub(super) fn hear_beat(&mut self, now: Now, mut beat: Box<Heartbeat>, actions: &mut Vec<Action>) {
        match self.grants.vouch(&mut beat, self.core.is_leading(), self.core.fleet()) {
            Ok(fresh) => {
                if let Some(fresh) = fresh {
                    let bus = Arc::clone(&self.bus);
                    tokio::spawn(async move { grants::store(&bus, &fresh).await });
                }
                self.core.on(now, Event::Heartbeat(beat), actions);
            }
            Err(()) => tracing::debug!(worker = %beat.worker, "nobody vouches for this worker yet"),
        }
    }

    pub(super) fn let_in(&mut self, now: Now, asker: &str, request: &JoinRequest, reply: String) {
        let (fleet, money) = (self.core.fleet(), self.core.money());
        let answer = self.admission.answer(now.wall, asker, request, fleet, money, &self.grants);
        let LetIn { grant, granted, once } = match answer {
            Ok(let_in) => let_in,
            Err(refusal) => return self.send(reply, codec::encode(&Reply::<JoinGrant>::Err(refusal))),
        };
        // Whether the token of an order is good is not known before it is claimed.
        if let (Some(granted), None) = (&granted, &once) {
            self.grants.note(granted.clone());
        }
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            let answer: Reply<JoinGrant> = match once {
                Some(token) => token.claim(&bus, grant).await,
                None => Ok(grant),
            };
            if let (Ok(_), Some(granted)) = (&answer, &granted)
                && !grants::store(&bus, granted).await
            {
                return;
            }
            // The pod asks again if this is lost.
            let _ = bus.send(&reply, codec::encode(&answer)).await;
        });
    }
}
