//! JetStream's request and reply API: one way to ask, one mapping from its refusals to [`BusError`].

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::{RequestError, RequestErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{ANSWER_WITHIN, NatsBus};
use crate::bus::{BusError, Message, Result};

/// The server is there, and nobody behind it stores anything.
const JETSTREAM_IS_SILENT: &str = "JetStream is starting, without a leader, or off (a full disk turns it \
                                   off until nats-server is restarted)";

/// What a refusal carries.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// A stored message with its headers, as the API returns it.
#[derive(Debug)]
pub(super) struct StoredMessage {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Bytes,
}

impl StoredMessage {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn into_message(self) -> Message {
        Message { subject: self.subject, sequence: self.sequence, payload: self.payload }
    }
}

impl NatsBus {
    /// Asks `$JS.API.<call>`; `what` names the thing in errors.
    pub(super) async fn api<T: DeserializeOwned>(&self, call: &str, body: &Value, what: &str) -> Result<T> {
        let payload = Bytes::from(body.to_string());
        let request = async_nats::Request::new().payload(payload).timeout(Some(ANSWER_WITHIN));
        let subject = format!("$JS.API.{call}");
        let asked = async {
            let answer = self.client.send_request(subject.clone(), request).await;
            answer.map_err(|reason| request_failed(&subject, &reason))
        };
        let answer = self.refusals.listen().or(&subject, asked).await?;
        let unreadable = |reason: serde_json::Error| {
            BusError::Refused(format!(
                "the reply to {call} cannot be parsed: \
                                                                   {reason}"
            ))
        };
        let mut value: Value = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
        if let Some(error) = value.get_mut("error") {
            let refusal: Refusal = serde_json::from_value(error.take()).map_err(unreadable)?;
            return Err(refused(refusal.err_code, &refusal.description, what));
        }
        serde_json::from_value(value).map_err(unreadable)
    }

    /// The leader's copy, never a follower's: a compare-and-set built on a stale read would fence its own caller.
    pub(super) async fn stored_last(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>> {
        self.stored(stream, &json!({ "last_by_subj": subject })).await
    }

    pub(super) async fn stored_at(&self, stream: &str, sequence: u64) -> Result<Option<StoredMessage>> {
        if sequence == 0 {
            return Ok(None);
        }
        self.stored(stream, &json!({ "seq": sequence })).await
    }

    /// The first message of the subject at or after a sequence.
    pub(super) async fn stored_next(
        &self,
        stream: &str,
        subject: &str,
        sequence: u64,
    ) -> Result<Option<StoredMessage>> {
        self.stored(stream, &json!({ "next_by_subj": subject, "seq": sequence })).await
    }

    async fn stored(&self, stream: &str, which: &Value) -> Result<Option<StoredMessage>> {
        #[derive(Deserialize)]
        struct Found {
            message: Raw,
        }
        #[derive(Deserialize)]
        struct Raw {
            subject: String,
            seq: u64,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
        }
        let found: Result<Found> = self.api(&format!("STREAM.MSG.GET.{stream}"), which, "the message").await;
        let raw = match found {
            Ok(found) => found.message,
            Err(BusError::NotFound(what)) if what == "the message" => return Ok(None),
            Err(BusError::NotFound(_)) => return Err(BusError::NotFound(format!("stream {stream}"))),
            Err(other) => return Err(other),
        };
        let decoded = |text: &str| {
            STANDARD.decode(text).map_err(|reason| {
                BusError::Refused(format!("message {} of {stream} cannot be parsed: {reason}", raw.seq))
            })
        };
        Ok(Some(StoredMessage {
            sequence: raw.seq,
            headers: headers(&decoded(&raw.hdrs)?),
            payload: decoded(&raw.data)?.into(),
            subject: raw.subject,
        }))
    }
}

/// `NATS/1.0\r\nName: value\r\n…`
fn headers(raw: &[u8]) -> Vec<(String, String)> {
    String::from_utf8_lossy(raw)
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// JetStream's error codes, by what the caller can do. The list is `server/errors.json` of nats-server.
fn refused(code: u64, description: &str, what: &str) -> BusError {
    match code {
        10071 | 10164 => BusError::WrongLastSequence,
        // Store failed (limits with discard new, or the disk), and the account's or server's storage limits.
        10077 | 10047 | 10028 | 10023 | 10002 => {
            BusError::Full { stream: what.to_owned(), reason: format!("{description} ({code})") }
        }
        10059 => {
            BusError::NotFound(if what == "the message" { "the stream".into() } else { what.to_owned() })
        }
        10014 | 10037 | 10043 => BusError::NotFound(what.to_owned()),
        10148 => BusError::Exists(what.to_owned()),
        10039 | 10076 => BusError::Unreachable(format!("{JETSTREAM_IS_SILENT} ({code})")),
        // No leader yet, or the cluster is between two.
        10004 | 10005 | 10007 | 10008 | 10009 | 10163 => {
            BusError::Unreachable(format!("{description} ({code})"))
        }
        _ => BusError::Refused(format!("{what}: {description} ({code})")),
    }
}

pub(super) fn request_failed(subject: &str, reason: &RequestError) -> BusError {
    match reason.kind() {
        RequestErrorKind::NoResponders if subject.starts_with("$JS.API.") => {
            BusError::Unreachable(JETSTREAM_IS_SILENT.to_owned())
        }
        RequestErrorKind::NoResponders => BusError::Unreachable(format!("no responder on {subject}")),
        RequestErrorKind::TimedOut => BusError::Unreachable(format!("no reply on {subject} in time")),
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
            BusError::Refused(format!("{subject}: {reason}"))
        }
        RequestErrorKind::Other => BusError::Unreachable(format!("{subject}: {reason}")),
    }
}

pub(super) fn publish_failed(subject: &str, reason: &PublishError) -> BusError {
    use std::error::Error as _;
    if let Some(error) = reason.source().and_then(|s| s.downcast_ref::<async_nats::jetstream::Error>()) {
        return refused(error.error_code().0, &error.to_string(), &format!("the stream of {subject}"));
    }
    match reason.kind() {
        PublishErrorKind::WrongLastSequence => BusError::WrongLastSequence,
        PublishErrorKind::StreamNotFound => BusError::NotFound(format!("a stream for {subject}")),
        PublishErrorKind::MaxPayloadExceeded => BusError::Refused(format!("{subject}: {reason}")),
        _ => BusError::Unreachable(format!("{subject}: {reason}")),
    }
}

/// Failures of the local side: the connection's task has ended, or the subject is malformed.
pub(super) fn send_failed(reason: impl std::fmt::Display) -> BusError {
    BusError::Unreachable(reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_already_and_no_room_are_told_apart() {
        assert_eq!(refused(10071, "wrong last sequence: 7", "RESULTS"), BusError::WrongLastSequence);
        assert!(matches!(refused(10077, "maximum bytes exceeded", "RESULTS"), BusError::Full { .. }));
        assert!(matches!(refused(10014, "consumer not found", "c"), BusError::NotFound(_)));
        assert!(
            matches!(refused(10039, "not enabled", "x"), BusError::Unreachable(text) if text.contains("restarted"))
        );
        assert!(matches!(refused(10008, "unavailable", "x"), BusError::Unreachable(_)));
        assert!(
            matches!(refused(10100, "not unique", "x"), BusError::Refused(text) if text.contains("10100"))
        );
    }

    #[test]
    fn headers_are_read_past_the_status_line() {
        let raw = b"NATS/1.0\r\nKV-Operation: DEL\r\nA:b\r\n\r\n";
        assert_eq!(headers(raw), [("KV-Operation".into(), "DEL".into()), ("A".into(), "b".into())]);
        assert!(headers(b"").is_empty());
    }
}
