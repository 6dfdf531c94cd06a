//! R1: an answer leaves RESULTS only when it is kept elsewhere, on disk; and then it does leave.

use std::ops::Range;
use std::time::Duration;

use ternfleet_proto::message::JobResult;
use ternfleet_proto::{BatchId, TimeMs, codec, table};

use super::super::JetStream;
use super::{Checker, stored_record};

/// What was stored before that is on the simulated server's disk.
const ON_DISK_AFTER: Duration = Duration::from_secs(5);
/// So long whoever asked for a completion finds its answer.
const COMPLETION_STAYS: Duration = Duration::from_secs(100);

impl Checker {
    /// Somebody is about to remove these messages of RESULTS.
    pub(in super::super) fn answers_leave(
        &mut self,
        net: &mut JetStream,
        now: TimeMs,
        filter: &str,
        sequences: Range<u64>,
    ) {
        self.results(net, now);
        let mut from = sequences.start;
        while let Ok(Some(message)) = net.next_message(table::RESULTS, filter, from) {
            if message.sequence >= sequences.end {
                return;
            }
            from = message.sequence + 1;
            let Ok(result) = codec::decode::<JobResult>(&message.payload) else { continue };
            let batch = &result.job.batch;
            let counts =
                self.committed.get(&result.job).is_some_and(|(sequence, _)| *sequence == message.sequence);
            if counts && !self.is_archived(net, now, batch, &message.payload) {
                let JobResult { job, .. } = &result;
                self.fail(format!("R1: the answer to {job} leaves RESULTS, and is on no disk elsewhere"));
            }
            let completion = self.completions.get(batch);
            if completion.is_some_and(|(sequence, at)| {
                *sequence == message.sequence && now.since(*at) < COMPLETION_STAYS
            }) {
                let batch = batch.clone();
                self.fail(format!(
                    "R1: the answer to {batch} leaves RESULTS while its caller may ask for it"
                ));
            }
        }
    }

    /// The record that names the object was on the disk, and the object holds the answer as it is in the stream.
    fn is_archived(&self, net: &mut JetStream, now: TimeMs, batch: &BatchId, payload: &[u8]) -> bool {
        if self.archived.get(batch).is_none_or(|at| now.since(*at) < ON_DISK_AFTER) {
            return false;
        }
        let name = stored_record(net, now, batch).and_then(|record| record.answers_object);
        let content = name.and_then(|name| net.object(table::LEDGER, &name).ok().flatten());
        let Some(mut rest) = content.as_deref() else { return false };
        while let Some((length, answers)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some((answer, after)) = answers.split_at_checked(length) else { return false };
            if answer == payload {
                return true;
            }
            rest = after;
        }
        false
    }

    /// Ended batches whose answers are in an object, and in RESULTS all the same.
    pub(in super::super) fn staying<'a>(
        &'a self,
        net: &'a mut JetStream,
        now: TimeMs,
    ) -> impl Iterator<Item = &'a BatchId> {
        self.batches.keys().filter(move |id| {
            let Some(record) = stored_record(net, now, id) else { return false };
            let filter = table::results_of(&record.tenant, id);
            record.answers_object.is_some()
                && net.next_message(table::RESULTS, &filter, 1).ok().flatten().is_some()
        })
    }
}
