//! One stream: stored messages, publish conditions, limits, de-duplication, its consumers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::TimeMs;
use ternfleet_proto::bus::{BusError, Message, Publish, Result, Stored, StreamFacts};
use ternfleet_proto::table::{Retention, StreamSpec};

use super::consumer::Consumer;

/// A stored message.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) subject: String,
    pub(super) payload: Bytes,
    pub(super) at: TimeMs,
    pub(super) marker: bool,
    pub(super) expires: Option<TimeMs>,
}

#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) spec: StreamSpec,
    messages: BTreeMap<u64, Kept>,
    by_subject: BTreeMap<String, BTreeSet<u64>>,
    last_sequence: u64,
    bytes: u64,
    /// Ids inside the window, oldest first, and where each was stored.
    seen: VecDeque<(TimeMs, String)>,
    stored_as: BTreeMap<String, u64>,
    pub(super) consumers: BTreeMap<String, Consumer>,
    /// Refuses everything, as on a full disk.
    pub(super) no_room: bool,
}

impl Stream {
    pub(super) fn new(spec: StreamSpec) -> Stream {
        Stream {
            spec,
            messages: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            last_sequence: 0,
            bytes: 0,
            seen: VecDeque::new(),
            stored_as: BTreeMap::new(),
            consumers: BTreeMap::new(),
            no_room: false,
        }
    }

    pub(super) fn takes(&self, subject: &str) -> bool {
        self.spec.subjects.iter().any(|filter| subject_matches(filter, subject))
    }

    pub(super) fn facts(&self) -> StreamFacts {
        let first = self.messages.keys().next().copied();
        StreamFacts {
            first_sequence: first.unwrap_or(self.last_sequence + 1),
            last_sequence: self.last_sequence,
            messages: self.messages.len() as u64,
            bytes: self.bytes,
            bytes_max: self.spec.max_bytes.map(|max| max as u64),
        }
    }

    /// In the server's order: too large, another last sequence, seen before, no room.
    pub(super) fn publish(
        &mut self,
        now: TimeMs,
        subject: &str,
        payload: Bytes,
        how: &Publish,
    ) -> Result<Stored> {
        self.age(now);
        if self.spec.max_message_bytes.is_some_and(|max| payload.len() > max as usize) {
            return Err(BusError::Refused(format!(
                "{}: message size exceeds maximum allowed (10054)",
                self.spec.name
            )));
        }
        if how.expect_last_on_subject.is_some_and(|expected| expected != self.last_of(subject)) {
            return Err(BusError::WrongLastSequence);
        }
        if let Some(sequence) = how.message_id.as_ref().and_then(|id| self.stored_as.get(id)) {
            return Ok(Stored { sequence: *sequence, duplicate: true });
        }
        self.make_room(subject, payload.len() as u64)?;
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.bytes += payload.len() as u64;
        let header =
            |name: &str| how.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let ttl = header("Nats-TTL").and_then(|ttl| ttl.trim_end_matches('s').parse().ok());
        let kept = Kept {
            subject: subject.to_owned(),
            payload,
            at: now,
            marker: matches!(header("KV-Operation"), Some("DEL" | "PURGE")),
            expires: ttl.map(|s| now.plus(Duration::from_secs(s))),
        };
        self.messages.insert(sequence, kept);
        self.by_subject.entry(subject.to_owned()).or_default().insert(sequence);
        if let Some(id) = &how.message_id {
            self.seen.push_back((now, id.clone()));
            self.stored_as.insert(id.clone(), sequence);
        }
        self.trim_subject(subject);
        Ok(Stored { sequence, duplicate: false })
    }

    fn make_room(&mut self, subject: &str, more_bytes: u64) -> Result<()> {
        let name = self.spec.name.clone();
        let full = |reason: &str| BusError::Full { stream: name.clone(), reason: reason.to_owned() };
        if self.no_room {
            return Err(full("no space left on device (10077)"));
        }
        let there = self.by_subject.get(subject).map_or(0, |all| all.len() as i64);
        if self.spec.discard_new_per_subject
            && self.spec.max_messages_per_subject.is_some_and(|max| there >= max)
        {
            return Err(full("maximum messages per subject exceeded (10077)"));
        }
        let messages_max = self.spec.max_messages.map_or(u64::MAX, |max| max as u64);
        let bytes_max = self.spec.max_bytes.map_or(u64::MAX, |max| max as u64);
        loop {
            let fits = (self.messages.len() as u64) < messages_max && self.bytes + more_bytes <= bytes_max;
            let first = self.messages.keys().next().copied();
            match first {
                _ if fits => return Ok(()),
                Some(_) if self.spec.discard_new => {
                    return Err(full("maximum messages or bytes exceeded (10077)"));
                }
                None => return Err(full("larger than the stream (10077)")),
                Some(first) => self.remove(first),
            };
        }
    }

    fn trim_subject(&mut self, subject: &str) {
        let Some(max) = self.spec.max_messages_per_subject else { return };
        while let Some(all) = self.by_subject.get(subject).filter(|all| all.len() as i64 > max) {
            let Some(first) = all.first().copied() else { return };
            self.remove(first);
        }
    }

    /// Lets go of what time has ended: ids outside the window, old messages, expired values.
    pub(super) fn age(&mut self, now: TimeMs) {
        while let Some((at, _)) = self.seen.front()
            && now.since(*at) > self.spec.duplicate_window
        {
            if let Some((_, id)) = self.seen.pop_front() {
                self.stored_as.remove(&id);
            }
        }
        if let Some(max_age) = self.spec.max_age {
            while let Some((sequence, kept)) = self.messages.first_key_value()
                && now.since(kept.at) > max_age
            {
                self.remove(*sequence);
            }
        }
        if self.spec.name.starts_with("KV_") {
            let ended = |kept: &Kept| kept.expires.is_some_and(|expires| expires <= now);
            let ended: Vec<u64> =
                self.messages.iter().filter(|(_, kept)| ended(kept)).map(|(s, _)| *s).collect();
            for sequence in ended {
                self.remove(sequence);
            }
        }
    }

    /// The subject's last sequence, 0 when it holds nothing.
    pub(super) fn last_of(&self, subject: &str) -> u64 {
        self.by_subject.get(subject).and_then(|all| all.last()).copied().unwrap_or(0)
    }

    pub(super) fn kept(&self, sequence: u64) -> Option<&Kept> {
        self.messages.get(&sequence)
    }

    pub(super) fn message(&self, sequence: u64) -> Option<Message> {
        self.messages.get(&sequence).map(|kept| Message {
            subject: kept.subject.clone(),
            sequence,
            payload: kept.payload.clone(),
        })
    }

    /// The first message at or after `from` whose subject matches.
    pub(super) fn next_matching(&self, filter: &str, from: u64) -> Option<u64> {
        if filter.contains(['*', '>']) {
            let mut later = self.messages.range(from..);
            return later
                .find(|(_, kept)| subject_matches(filter, &kept.subject))
                .map(|(sequence, _)| *sequence);
        }
        self.by_subject.get(filter)?.range(from..).next().copied()
    }

    /// All messages, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Kept)> {
        self.messages.iter().map(|(sequence, kept)| (*sequence, kept))
    }

    pub(super) fn remove(&mut self, sequence: u64) -> bool {
        let Some(kept) = self.messages.remove(&sequence) else { return false };
        self.bytes -= kept.payload.len() as u64;
        if let Some(all) = self.by_subject.get_mut(&kept.subject) {
            all.remove(&sequence);
            if all.is_empty() {
                self.by_subject.remove(&kept.subject);
            }
        }
        for consumer in self.consumers.values_mut() {
            consumer.forget(sequence);
        }
        true
    }

    pub(super) fn purge(&mut self, filter: &str, before: u64) -> u64 {
        let matching = |kept: &Kept| subject_matches(filter, &kept.subject);
        let gone: Vec<u64> =
            self.messages.range(..before).filter(|(_, kept)| matching(kept)).map(|(s, _)| *s).collect();
        gone.iter().filter(|sequence| self.remove(**sequence)).count() as u64
    }

    /// A cache without replicas is not synced at each write; everything else is, by `sync_interval: always`.
    pub(super) fn is_unsynced(&self) -> bool {
        self.spec.clone().at(true).unsynced
    }

    /// The machine had no power: what was written after `synced` is gone, and its sequences are given out again. How the
    /// stream is set up is kept.
    pub(super) fn lose_since(&mut self, synced: &Stream) {
        *self = Stream { spec: self.spec.clone(), no_room: self.no_room, ..synced.clone() };
    }

    pub(super) fn is_work_queue(&self) -> bool {
        self.spec.retention == Retention::WorkQueue
    }
}

/// Whether a subject falls under a filter with `*` for one token and `>` for all the rest.
pub fn subject_matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for expected in filter.split('.') {
        match (expected, tokens.next()) {
            (">", Some(_)) => return true,
            (_, None) => return false,
            ("*", Some(_)) => {}
            (expected, Some(token)) if expected == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::subject_matches;

    #[test]
    fn filters_match_as_nats_documents() {
        for (filter, subject) in
            [("a.*.c", "a.b.c"), ("a.>", "a.b"), ("a.>", "a.b.c"), (">", "a"), ("a", "a")]
        {
            assert!(subject_matches(filter, subject), "{filter} {subject}");
        }
        for (filter, subject) in [("a.*", "a"), ("a.*", "a.b.c"), ("a.>", "a"), ("a", "a.b"), ("a.b", "a")] {
            assert!(!subject_matches(filter, subject), "{filter} {subject}");
        }
    }
}
