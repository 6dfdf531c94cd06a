//! A durable pull consumer: the messages that it has delivered, until when, and those that it will deliver again.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::TimeMs;
use ternfleet_proto::table::ConsumerSpec;

#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub(super) spec: ConsumerSpec,
    next_sequence: u64,
    /// Delivered: until when it may be acknowledged.
    pending: BTreeMap<u64, TimeMs>,
    /// Returned: from when on it may be delivered again.
    returned: BTreeMap<u64, TimeMs>,
    delivered: BTreeMap<u64, u64>,
}

impl Consumer {
    pub(super) fn new(spec: ConsumerSpec) -> Consumer {
        Consumer {
            spec,
            next_sequence: 1,
            pending: BTreeMap::new(),
            returned: BTreeMap::new(),
            delivered: BTreeMap::new(),
        }
    }

    /// Next message to deliver, returned ones first; `find` looks in the stream from a sequence on.
    pub(super) fn take(
        &mut self,
        now: TimeMs,
        find: impl Fn(&str, u64) -> Option<u64>,
    ) -> Option<(u64, u64)> {
        self.expire(now);
        if self.pending.len() as i64 >= self.spec.max_ack_pending {
            return None;
        }
        let returned = self.returned.iter().find(|(_, from)| **from <= now).map(|(sequence, _)| *sequence);
        let sequence = match returned {
            Some(sequence) => {
                self.returned.remove(&sequence);
                sequence
            }
            None => {
                let sequence = find(&self.spec.filter, self.next_sequence)?;
                self.next_sequence = sequence + 1;
                sequence
            }
        };
        self.pending.insert(sequence, now.plus(self.spec.ack_wait));
        let delivered = self.delivered.entry(sequence).or_default();
        *delivered += 1;
        Some((sequence, *delivered))
    }

    fn expire(&mut self, now: TimeMs) {
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, until)| **until <= now).map(|(s, _)| *s).collect();
        for sequence in late {
            self.pending.remove(&sequence);
            self.returned.insert(sequence, now);
        }
    }

    /// When something may come back by the passing of time alone.
    pub(super) fn next_return(&self) -> Option<TimeMs> {
        self.pending.values().chain(self.returned.values()).min().copied()
    }

    /// True when the message was delivered, or returned but not yet delivered again.
    pub(super) fn settle(&mut self, sequence: u64) -> bool {
        let known = self.pending.contains_key(&sequence) || self.returned.contains_key(&sequence);
        self.forget(sequence);
        known
    }

    pub(super) fn give_back(&mut self, now: TimeMs, sequence: u64, delay: Duration) {
        if self.pending.remove(&sequence).is_some() {
            self.returned.insert(sequence, now.plus(delay));
        }
    }

    pub(super) fn extend(&mut self, now: TimeMs, sequence: u64) {
        let until = now.plus(self.spec.ack_wait);
        if let Some(before) = self.pending.get_mut(&sequence).filter(|before| **before > now) {
            *before = until;
        }
    }

    pub(super) fn forget(&mut self, sequence: u64) {
        self.pending.remove(&sequence);
        self.returned.remove(&sequence);
        self.delivered.remove(&sequence);
    }
}
