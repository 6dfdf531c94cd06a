//! Workers as they come in: when they ask for credentials, and with each heartbeat.

use std::sync::Arc;

use ternfleet_proto::message::{Heartbeat, JoinGrant, JoinRequest, Reply};
use ternfleet_proto::{Now, codec};

use super::join::LetIn;
use super::{Input, Service, grants};
use crate::core::{Action, Event};

impl Service {
    /// The core is told who a worker is by its grant, and the rest by its heartbeat.
    pub(super) fn hear_beat(&mut self, now: Now, mut beat: Box<Heartbeat>, actions: &mut Vec<Action>) {
        match self.grants.vouch(now.mono, &mut beat, self.core.is_leading(), self.core.fleet()) {
            Ok(fresh) => {
                if let Some(fresh) = fresh {
                    let bus = Arc::clone(&self.bus);
                    tokio::spawn(async move { grants::store(&bus, &fresh).await });
                }
                self.core.on(now, Event::Heartbeat(beat), actions);
            }
            Err(()) => tracing::debug!(worker = %beat.worker, "no grant exists for this worker yet"),
        }
    }

    pub(super) fn let_in(&mut self, now: Now, asker: &str, request: &JoinRequest, reply: String) {
        let (fleet, money) = (self.core.fleet(), self.core.money());
        let answer = self.admission.answer(now, asker, request, fleet, money, &self.grants);
        let LetIn { grant, granted, once } = match answer {
            Ok(let_in) => let_in,
            Err(refusal) => return self.send(reply, codec::encode(&Reply::<JoinGrant>::Err(refusal))),
        };
        let (bus, inbox) = (Arc::clone(&self.bus), self.inbox.clone());
        tokio::spawn(async move {
            let answer: Reply<JoinGrant> = match once {
                Some(token) => token.claim(&bus, grant).await,
                None => Ok(grant),
            };
            if let (Ok(_), Some(granted)) = (&answer, granted) {
                if !grants::store(&bus, &granted).await {
                    return;
                }
                // Before the worker has its credentials, so that no heartbeat overtakes it.
                let _ = inbox.send(Input::Granted(Box::new(granted))).await;
            }
            // The pod asks again if this is lost.
            let _ = bus.send(&reply, codec::encode(&answer)).await;
        });
    }
}
