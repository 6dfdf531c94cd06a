//! Pulling from a consumer and settling what came.

use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{ANSWER_WITHIN, NatsBus, api};
use crate::bus::{Bus as _, BusError, Delivery, Result, Settle};

/// How much longer than the server we wait for its word that nothing came.
const GRACE: Duration = Duration::from_secs(2);

/// What JetStream writes into the reply subject of a message it delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) delivered: u64,
    pub(super) stream_sequence: u64,
    pub(super) consumer_sequence: u64,
    /// Messages of the consumer's filter after this one.
    pub(super) pending: u64,
}

impl Position {
    /// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`,
    /// the long form ending in a random token.
    pub(super) fn parse(reply: &str) -> Option<Position> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let at = match tokens.len() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let number = |index: usize| tokens.get(index)?.parse().ok();
        Some(Position {
            delivered: number(at)?,
            stream_sequence: number(at + 1)?,
            consumer_sequence: number(at + 2)?,
            pending: number(at + 4)?,
        })
    }
}

impl NatsBus {
    /// One pull request with `no_wait` and an expiry: the server delivers the available messages and closes the request, or
    /// waits for the first message. It never holds more for us than was asked for.
    pub(super) async fn fetch(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let call = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        self.refusals.listen().or(&call, self.fetch_by(&call, stream, consumer, max, expires)).await
    }

    async fn fetch_by(
        &self,
        call: &str,
        stream: &str,
        consumer: &str,
        max: usize,
        expires: Duration,
    ) -> Result<Vec<Delivery>> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(api::send_failed)?;
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        let mut request = json!({ "batch": max, "no_wait": true });
        if !expires.is_zero() {
            request["expires"] = json!(expires.as_nanos() as u64);
        }
        let payload = Bytes::from(request.to_string());
        self.client.publish_with_reply(call.to_owned(), inbox, payload).await.map_err(api::send_failed)?;

        let mut deadline = Instant::now() + expires + GRACE;
        let mut deliveries: Vec<Delivery> = Vec::new();
        while deliveries.len() < max {
            let mut lost = false;
            let answered = tokio::select! {
                biased;
                answered = timeout_at(deadline, answers.next()) => answered.ok().flatten(),
                Ok(()) = losses.changed() => {
                    lost = true;
                    None
                }
            };
            let message = match answered {
                Some(message) => message,
                // The request or its answer was lost with the connection; what came is ours all the same.
                None if deliveries.is_empty() && (lost || !self.connected()) => {
                    return Err(BusError::Unreachable(format!("while pulling from {consumer}")));
                }
                None => break,
            };
            match message.status {
                None => {
                    let reply = message.reply.map(|reply| reply.to_string()).unwrap_or_default();
                    let Some(position) = Position::parse(&reply) else { continue };
                    if deliveries.is_empty() {
                        deadline = deadline.min(Instant::now() + GRACE);
                    }
                    deliveries.push(Delivery {
                        stream: stream.to_owned(),
                        subject: message.subject.to_string(),
                        sequence: position.stream_sequence,
                        payload: message.payload,
                        delivered: position.delivered,
                        reply,
                    });
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(_) if !deliveries.is_empty() => break,
                Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => break,
                Some(status) => return Err(closed(status, message.description.as_deref(), consumer, stream)),
            }
        }
        Ok(deliveries)
    }

    pub(super) async fn settle_delivery(&self, delivery: &Delivery, how: Settle) -> Result<()> {
        let reply = delivery.reply.clone();
        let word = match how {
            Settle::Ack => {
                let request = async_nats::Request::new()
                    .payload(Bytes::from_static(b"+ACK"))
                    .timeout(Some(ANSWER_WITHIN));
                return match self.client.send_request(reply, request).await {
                    Ok(_) => Ok(()),
                    Err(reason) if reason.kind() == async_nats::RequestErrorKind::NoResponders => {
                        Err(BusError::NotFound(format!("the consumer of message {}", delivery.sequence)))
                    }
                    Err(reason) => Err(api::request_failed("an ack", &reason)),
                };
            }
            Settle::Nak(delay) if delay.is_zero() => Bytes::from_static(b"-NAK"),
            Settle::Nak(delay) => format!("-NAK {}", json!({ "delay": delay.as_nanos() as u64 })).into(),
            Settle::Progress => Bytes::from_static(b"+WPI"),
            Settle::Term => Bytes::from_static(b"+TERM"),
        };
        self.client.publish(reply, word).await.map_err(api::send_failed)
    }
}

fn closed(status: StatusCode, description: Option<&str>, consumer: &str, stream: &str) -> BusError {
    let description = description.unwrap_or_default();
    let gone = status == StatusCode::NO_RESPONDERS || description.contains("Consumer Deleted");
    if gone {
        BusError::NotFound(format!("consumer {consumer} of {stream}"))
    } else if ["Leadership Change", "Server Shutdown"].iter().any(|passing| description.contains(passing)) {
        BusError::Unreachable(format!("{description} while pulling from {consumer}"))
    } else {
        BusError::Refused(format!("{consumer} of {stream}: {description} ({status})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        let short = "$JS.ACK.W.c.2.17.5.1795408994582888419.3";
        let long = "$JS.ACK.hub.ABC123.W.c.2.17.5.1795408994582888419.3.rnd";
        let expected = Position { delivered: 2, stream_sequence: 17, consumer_sequence: 5, pending: 3 };
        assert_eq!(Position::parse(short), Some(expected));
        assert_eq!(Position::parse(long), Some(expected));
        for broken in ["", "_INBOX.x", "$JS.ACK.W.c.2", "$JS.ACK.W.c.x.17.5.1.3"] {
            assert_eq!(Position::parse(broken), None);
        }
    }
}
