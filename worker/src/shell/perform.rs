//! Doing what the core says: one task for each operation on the bus, whose outcome comes back as an event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::bus::{Bus, BusError, Delivery, Publish};
use ternfleet_proto::message::{Generation, Input, JobResult, Work};
use ternfleet_proto::{Lane, WorkerId, aside, codec, table, trace};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::generations::Preparation;
use crate::core::{
    Action, Event, Kept, PullOutcome, Read, Settled, SlotId, StartFailure, Undecodable, WorkIdentity, Write,
};
use crate::language::Language;
use crate::request::prepare;

mod notes;

pub(super) use notes::log;

/// Messages that wait for the ordered sender.
const SENDS: usize = 4096;
/// Largest request that is fetched by reference, in bytes.
const OBJECT_BYTES_MAX: u64 = 64 << 20;

/// Where requests are made ready: what it takes, and who waits for them.
#[derive(Clone)]
pub(super) struct Preparer {
    pub(super) language: Arc<Language>,
    pub(super) sampling: ternfleet_text::Sampling,
    pub(super) context: usize,
    pub(super) done: mpsc::UnboundedSender<Preparation>,
}

pub(super) struct Performer {
    bus: Arc<dyn Bus>,
    worker: WorkerId,
    events: mpsc::UnboundedSender<Event>,
    /// Owns every task that is started here.
    tasks: TaskTracker,
    sends: Option<mpsc::Sender<(String, Bytes)>>,
}

impl Performer {
    pub(super) fn new(
        bus: Arc<dyn Bus>,
        worker: WorkerId,
        events: mpsc::UnboundedSender<Event>,
    ) -> Performer {
        let (sends, outbox) = mpsc::channel(SENDS);
        let tasks = TaskTracker::new();
        tasks.spawn(send_in_order(bus.clone(), outbox));
        Performer { bus, worker, events, tasks, sends: Some(sends) }
    }

    pub(super) fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// Waits for what is on its way, at most so long.
    pub(super) async fn finish(&mut self, most: Duration) {
        self.sends = None;
        self.tasks.close();
        if tokio::time::timeout(most, self.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.len(), "messages were not sent before the exit");
        }
        // An answer of the server shows that it has read everything sent before.
        let _ = self.bus.request(&table::ping(&self.worker), Bytes::new(), most).await;
    }

    /// Owns a task until the end.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Makes a request ready to run: fetches it if it lies elsewhere, tokenizes it, feeds the kept output through.
    pub(super) fn prepare(&self, preparer: &Preparer, slot: SlotId, work: Box<Work>, kept: Kept) {
        let (bus, preparer) = (self.bus.clone(), preparer.clone());
        self.tasks.spawn(async move {
            let made = match fetch(&*bus, *work).await {
                Ok(generation) => {
                    let (language, context) = (preparer.language.clone(), preparer.context);
                    let sampling = preparer.sampling.clone();
                    // Tokenizing a long prompt takes milliseconds: not on the threads that serve the network.
                    aside::run(move || prepare(&generation, kept, &language, &sampling, context))
                        .await
                        .map_err(|fault| StartFailure::Transient(format!("the tokenizer failed: {fault}")))
                        .and_then(|made| made.map(Box::new).map_err(StartFailure::Permanent))
                }
                Err(why) => Err(why),
            };
            // Nobody listens only when the worker has ended.
            let _ = preparer.done.send((slot, made));
        });
    }

    /// Starts an operation on the bus. Actions that are the shell's own do not come here.
    pub(super) fn perform(&self, action: Action) {
        match action {
            Action::Pull { lane, stream, consumer, max, expires } => {
                self.pull(lane, stream, consumer, max, expires);
            }
            Action::ReadCheckpoint { slot, job, key } => self.answering(move |bus| async move {
                let found = bus.last_on_subject(table::CHECKPOINTS, &table::checkpoint(&job)).await;
                let outcome = match found {
                    Ok(Some(message)) => match key.open(&message.payload) {
                        Some(checkpoint) => Read::Found((message.sequence, checkpoint)),
                        None => {
                            tracing::warn!(%job, "a checkpoint has no valid seal; it will be overwritten");
                            Read::Unreadable(message.sequence)
                        }
                    },
                    Ok(None) => Read::Nothing,
                    Err(_) => Read::Unreachable,
                };
                Event::CheckpointRead { slot, outcome }
            }),
            Action::WriteCheckpoint { slot, checkpoint, key, expect } => {
                self.answering(move |bus| async move {
                    let subject = table::checkpoint(&checkpoint.job);
                    let outcome = publish(&*bus, &subject, key.seal(&checkpoint), expect, None).await;
                    Event::CheckpointWritten { slot, outcome }
                });
            }
            Action::PublishResult { slot, result } => self.answering(move |bus| async move {
                let subject = table::result(&result.tenant, &result.job, &result.worker);
                let cause = result.traceparent.as_deref();
                let outcome = publish(&*bus, &subject, codec::encode(&*result), 0, cause).await;
                Event::ResultWritten { slot, outcome }
            }),
            Action::ReadResult { slot, tenant, job } => {
                let subject = table::result(&tenant, &job, &self.worker);
                self.answering(move |bus| async move {
                    if !bus.may_read_results() {
                        return Event::ResultRead { slot, outcome: Read::Withheld };
                    }
                    let outcome = match bus.last_on_subject(table::RESULTS, &subject).await {
                        Ok(Some(message)) => codec::decode::<JobResult>(&message.payload)
                            .map_or(Read::Unreadable(message.sequence), Read::Found),
                        Ok(None) => Read::Nothing,
                        Err(_) => Read::Unreachable,
                    };
                    Event::ResultRead { slot, outcome }
                });
            }
            Action::Settle { slot, delivery, how } => {
                let (bus, events) = (self.bus.clone(), self.events.clone());
                self.tasks.spawn(async move {
                    let settled = bus.settle(&delivery, how).await;
                    let Some(slot) = slot else { return };
                    let outcome = match settled {
                        Ok(()) | Err(BusError::NotFound(_)) => Settled::Done,
                        Err(_) => Settled::Unreachable,
                    };
                    let _ = events.send(Event::Settled { slot, outcome });
                });
            }
            Action::SendHeartbeat(beat) => self.send(table::heartbeat(&beat.worker), codec::encode(&*beat)),
            Action::SendTokens(chunk) => self.send(table::tokens(&chunk.job), codec::encode(&*chunk)),
            Action::StartGeneration { .. }
            | Action::CancelGeneration { .. }
            | Action::Note(_)
            | Action::Exit => {}
        }
    }

    /// Runs an operation whose outcome is one event.
    fn answering<F, Fut>(&self, operation: F)
    where
        F: FnOnce(Arc<dyn Bus>) -> Fut,
        Fut: Future<Output = Event> + Send + 'static,
    {
        let events = self.events.clone();
        let operation = operation(self.bus.clone());
        self.tasks.spawn(async move {
            // Nobody listens only when the worker has ended.
            let _ = events.send(operation.await);
        });
    }

    fn pull(&self, lane: Lane, stream: String, consumer: String, max: usize, expires: Duration) {
        let (bus, events) = (self.bus.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let outcome = match bus.pull(&stream, &consumer, max, expires).await {
                Ok(deliveries) => {
                    for mut delivery in deliveries {
                        let work = read_work(&delivery);
                        delivery.payload = Bytes::new();
                        let _ = events.send(Event::WorkPulled { lane, delivery, work });
                    }
                    PullOutcome::Served
                }
                Err(BusError::NotFound(_)) => PullOutcome::QueueGone,
                Err(_) => PullOutcome::Unreachable,
            };
            let _ = events.send(Event::PullEnded { lane, outcome });
        });
    }

    /// Core messages keep their order; when too many wait they are dropped, as the network might drop them.
    fn send(&self, subject: String, payload: Bytes) {
        if let Some(sends) = &self.sends
            && sends.try_send((subject, payload)).is_err()
        {
            tracing::debug!("a core message was dropped: the connection is slow or down");
        }
    }
}

async fn send_in_order(bus: Arc<dyn Bus>, mut outbox: mpsc::Receiver<(String, Bytes)>) {
    while let Some((subject, payload)) = outbox.recv().await {
        // Core messages promise nothing; the next heartbeat says it again.
        let _ = bus.send(&subject, payload).await;
    }
}

async fn publish(
    bus: &dyn Bus,
    subject: &str,
    payload: Bytes,
    expect: u64,
    traceparent: Option<&str>,
) -> Write {
    let (bytes, max_bytes) = (payload.len(), bus.server().max_payload_bytes);
    // Headers and subject take their share.
    if bytes + 1024 > max_bytes {
        return Write::TooLarge { bytes, max_bytes };
    }
    let headers = trace::header(traceparent);
    let how = Publish { expect_last_on_subject: Some(expect), headers, ..Publish::default() };
    match bus.publish(subject, payload, how).await {
        Ok(stored) => Write::Stored(stored.sequence),
        Err(BusError::WrongLastSequence) => Write::Conflict,
        Err(BusError::Full { .. }) => Write::Full,
        Err(fault) => {
            tracing::debug!(subject, %fault, "a publish was not confirmed");
            Write::Unreachable
        }
    }
}

fn read_work(delivery: &Delivery) -> Result<Box<Work>, Undecodable> {
    codec::decode::<Work>(&delivery.payload).map(Box::new).map_err(|fault| Undecodable {
        reason: fault.to_string(),
        identity: codec::decode::<WorkIdentity>(&delivery.payload).ok().map(Box::new),
    })
}

/// The request of a job, from wherever it lies.
pub(super) async fn fetch(bus: &dyn Bus, work: Work) -> Result<Generation, StartFailure> {
    let name = match work.input {
        Input::Inline(generation) => return Ok(generation),
        Input::Object(name) => name,
    };
    let transient =
        |fault: String| StartFailure::Transient(format!("the request {name} cannot be read: {fault}"));
    let object = bus
        .object_get(table::LARGE_REQUESTS, &name, 0)
        .await
        .map_err(|fault| transient(fault.to_string()))?;
    let mut content = Vec::new();
    let read = object.take(OBJECT_BYTES_MAX).read_to_end(&mut content).await;
    read.map_err(|fault| transient(fault.to_string()))?;
    codec::decode(&content).map_err(|fault| transient(fault.to_string()))
}
