//! RESULTS: followed from where the ledger needs it, in stream order; the newest answers kept at hand for readers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use ternfleet_proto::bus::{Bus, Replayed};
use ternfleet_proto::message::JobResult;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{codec, table};
use tokio::sync::mpsc;

use super::Input;
use crate::core::{Answer, BatchRecord, Event};
use crate::metrics::Metrics;

/// Newest answers kept in memory, in bytes.
const RECENT_BYTES: usize = 48 << 20;

/// The newest answers as they are in the stream, by sequence. Callers that follow a batch read from here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Recent {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    answers: BTreeMap<u64, Bytes>,
}

impl Recent {
    fn keep(&self, sequence: u64, payload: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += payload.len() + 64;
        kept.answers.insert(sequence, payload);
        while kept.bytes > RECENT_BYTES {
            let Some((_, oldest)) = kept.answers.pop_first() else { break };
            kept.bytes -= oldest.len() + 64;
        }
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Bytes> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).answers.get(&sequence).cloned()
    }
}

/// Feeds every answer from `from_sequence` on to the inbox, forever; `CaughtUp` once in between.
pub(crate) async fn follow(
    bus: Arc<dyn Bus>,
    from_sequence: u64,
    recent: Recent,
    metrics: Arc<Metrics>,
    inbox: mpsc::Sender<Input>,
) {
    let mut next = from_sequence;
    let mut told = false;
    loop {
        match bus.replay(table::RESULTS, table::results_all(), next).await {
            Ok(mut replay) => {
                while let Some(item) = replay.next().await {
                    let input = match item {
                        Ok(Replayed::CaughtUp) if told => continue,
                        Ok(Replayed::CaughtUp) => {
                            told = true;
                            Input::CaughtUp
                        }
                        Ok(Replayed::Message(message)) => {
                            next = message.sequence + 1;
                            match codec::decode::<JobResult>(&message.payload) {
                                Ok(result) => {
                                    recent.keep(message.sequence, message.payload);
                                    if told {
                                        super::spans::answered(&result);
                                        metrics.answered(&result);
                                    }
                                    let answer = Box::new(Answer::from(&result));
                                    Input::Event(Event::Answer { sequence: message.sequence, answer })
                                }
                                Err(error) => {
                                    tracing::warn!(subject = message.subject, %error, "dropped");
                                    Input::Garbage(message.sequence)
                                }
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "RESULTS must be read again");
                            break;
                        }
                    };
                    if inbox.send(input).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "RESULTS cannot be read"),
        }
        if inbox.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// An answer as it is in the stream.
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) payload: Bytes,
    pub(crate) result: JobResult,
}

/// The committed answers of one batch, in the order of their commit, read from the stream by the ledger's own rule.
pub(crate) struct Committed {
    replay: ternfleet_proto::bus::BusStream<ternfleet_proto::bus::Result<Replayed>>,
    key: AssignmentKey,
    lines: u32,
    seen: Vec<u64>,
}

impl Committed {
    pub(crate) async fn of(
        bus: &Arc<dyn Bus>,
        key: &AssignmentKey,
        record: &BatchRecord,
    ) -> anyhow::Result<Self> {
        let filter = table::results_of(&record.tenant, &record.id);
        Self::among(bus, key, &filter, record.results_after + 1, record.lines.unwrap_or(0)).await
    }

    /// Of a batch of so many lines whose answers are under `filter`.
    pub(crate) async fn among(
        bus: &Arc<dyn Bus>,
        key: &AssignmentKey,
        filter: &str,
        from_sequence: u64,
        lines: u32,
    ) -> anyhow::Result<Self> {
        let replay = bus.replay(table::RESULTS, filter, from_sequence).await?;
        Ok(Self { replay, key: key.clone(), lines, seen: vec![0; (lines as usize).div_ceil(64)] })
    }

    /// The next committed answer; `None` when the stream's end is reached.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Stored>> {
        while let Some(item) = self.replay.next().await {
            let message = match item? {
                Replayed::CaughtUp => return Ok(None),
                Replayed::Message(message) => message,
            };
            let Ok(result) = codec::decode::<JobResult>(&message.payload) else { continue };
            if !Answer::from(&result).verdict.is_answer()
                || result.job.index >= self.lines
                || !self.key.verifies(result.tag, &result.job, result.epoch, &result.worker)
            {
                continue;
            }
            let (word, bit) = ((result.job.index / 64) as usize, 1u64 << (result.job.index % 64));
            if self.seen[word] & bit == 0 {
                self.seen[word] |= bit;
                return Ok(Some(Stored { sequence: message.sequence, payload: message.payload, result }));
            }
        }
        Ok(None)
    }
}
