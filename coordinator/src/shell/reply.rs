//! Where a caller's answer goes. Each answer passes here, so it is counted for NATS's service protocol.

use std::sync::Arc;

use serde::Serialize;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::codec;
use ternfleet_proto::message::Reply;
use ternfleet_proto::table::ApiVerb;
use tokio::time::Instant;

use super::micro::Micro;

/// Who asked, what, and when.
#[derive(Debug, Clone)]
pub(crate) struct ReplyTo {
    inbox: String,
    verb: ApiVerb,
    asked: Instant,
    micro: Arc<Micro>,
}

impl ReplyTo {
    /// A request for `verb` came just now.
    pub(super) fn new(inbox: String, verb: ApiVerb, micro: Arc<Micro>) -> ReplyTo {
        ReplyTo { inbox, verb, asked: Instant::now(), micro }
    }

    /// If the answer is lost, whoever asked has a time-out of their own.
    pub(super) async fn send<T: Serialize>(&self, bus: &dyn Bus, answer: &Reply<T>) {
        self.micro.answered(self.verb, self.asked.elapsed(), answer.as_ref().err());
        if let Err(error) = bus.send(&self.inbox, codec::encode(answer)).await {
            tracing::debug!(verb = self.verb.as_str(), %error, "a reply was not sent");
        }
    }
}
