//! Performing actions on the bus: many at a time where order does not matter, one after the other where it does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ternfleet_proto::bus::{Bus, BusError, Publish};
use ternfleet_proto::message::{Checkpoint, Control, DeadJob};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{Clock, Epoch, JobKey, Lane, LeaderRevision, WorkerId, codec, table, trace};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{Input, departure, reader, savepoints, spans};
use crate::core::{Action, Event, HandOut, JobRef, Trace};

/// Operations on their way at a time.
const IN_FLIGHT_MAX: usize = 4096;
/// Assignments are given up, and started again with a new epoch, after so many attempts.
const HAND_ATTEMPTS: u32 = 20;
const WAIT: Duration = Duration::from_millis(150);

/// A worker that was paused when its job was taken back finds for so long after the end that it has lost it. One that
/// wakes later may claim the job once more, and its answer commits nothing.
const FENCE_STANDS: Duration = table::ACK_WAIT.saturating_mul(3);

/// Checkpoints of answered jobs that are removed at a time: there is no hurry, and work goes before.
const CLEANED_AT_A_TIME: usize = 8;

/// What everything is done under.
#[derive(Debug)]
pub(crate) struct Under {
    pub(crate) leader: LeaderRevision,
    pub(crate) syncs_always: bool,
    /// What is stored is on the server's disk after this time.
    pub(crate) synced_after: Duration,
    pub(crate) key: AssignmentKey,
    pub(crate) clock: Clock,
    /// Whose work stream this leader has made, or brought up to date.
    pub(crate) shards: Mutex<BTreeSet<u16>>,
}

/// Performs what may go side by side; what comes of it goes to the inbox.
pub(crate) async fn side_by_side(
    bus: Arc<dyn Bus>,
    under: Under,
    mut actions: mpsc::UnboundedReceiver<Action>,
    inbox: mpsc::Sender<Input>,
) {
    let mut running = FuturesUnordered::new();
    // What is not to be done yet. A leader that ends leaves it to the age of the checkpoints.
    let mut waiting = FuturesUnordered::new();
    let mut dropping = FuturesUnordered::new();
    let mut open = true;
    while open || !running.is_empty() {
        tokio::select! {
            biased;
            action = actions.recv(), if open && running.len() < IN_FLIGHT_MAX => match action {
                Some(action @ Action::Forget { fenced: true, .. }) => waiting.push(async {
                    tokio::time::sleep(FENCE_STANDS).await;
                    action
                }),
                Some(Action::DropAnswers { tenant, batch }) => {
                    dropping.push(departure::drop_answers(&bus, tenant, batch, under.synced_after));
                }
                Some(action) => running.push(perform(&bus, &under, action)),
                None => open = false,
            },
            Some(action) = waiting.next(), if !waiting.is_empty() => {
                running.push(perform(&bus, &under, action));
            }
            Some(()) = dropping.next(), if !dropping.is_empty() => {}
            Some(input) = running.next(), if !running.is_empty() => {
                if let Some(input) = input && inbox.send(input).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn perform(bus: &Arc<dyn Bus>, under: &Under, action: Action) -> Option<Input> {
    match action {
        Action::Hand(hand) => Some(Input::Event(hand_over(bus, *hand).await)),
        Action::Withdraw { job, key, epoch, shard, sequence } => {
            if let Some(sequence) = sequence {
                let stream = table::work_stream(shard);
                retry(|| bus.delete_message(&stream, sequence)).await;
            }
            let subject = table::checkpoint(&key);
            let last = retry(|| bus.last_on_subject(table::CHECKPOINTS, &subject)).await.flatten();
            let trace = match last.map(|message| (assigned(&under.key, &key, &message.payload), message)) {
                None => None,
                Some((Some(checkpoint), _)) => Some(trace_of(checkpoint)),
                // Whoever wrote that was not given the job: it must not keep the job from whoever is.
                Some((None, message)) => {
                    retry(|| bus.delete_message(table::CHECKPOINTS, message.sequence)).await;
                    None
                }
            };
            Some(Input::Event(Event::Withdrawn { job, epoch, trace }))
        }
        Action::Answer(result) => {
            let subject = table::result(&result.tenant, &result.job, &result.worker);
            store_once(bus, &subject, codec::encode(&*result)).await;
            None
        }
        Action::Discard { sequence } => {
            retry(|| bus.delete_message(table::RESULTS, sequence)).await;
            None
        }
        Action::Register { worker, shard } => {
            let known = under.shards.lock().unwrap_or_else(PoisonError::into_inner).contains(&shard);
            if !known || make_consumers(bus, shard, &worker).await.is_none() {
                let spec = table::work_stream_spec(shard, 1).at(under.syncs_always);
                retry(|| bus.ensure_stream(&spec)).await?;
                under.shards.lock().unwrap_or_else(PoisonError::into_inner).insert(shard);
                make_consumers(bus, shard, &worker).await?;
            }
            Some(Input::Event(Event::Registered { worker, shard }))
        }
        Action::Retire { worker, shard } => {
            let stream = table::work_stream(shard);
            for consumer in table::work_consumers(shard, &worker) {
                retry(|| bus.delete_consumer(&stream, &consumer.name)).await;
                retry(|| bus.purge(&stream, &consumer.filter)).await;
            }
            None
        }
        Action::Tell { worker, order } => {
            let subject =
                worker.map_or_else(|| table::control_all().to_owned(), |worker| table::control(&worker));
            let control = codec::encode(&Control { leader: under.leader, order });
            if let Err(error) = bus.send(&subject, control).await {
                tracing::debug!(%error, subject, "an order to a worker was not sent; it is repeated or \
                                                  fenced");
            }
            None
        }
        Action::Dead { tenant, key, line, attempts, hosts, reason, log } => {
            let subject = table::dead(&tenant, &key);
            let at = under.clock.wall();
            let dead = DeadJob { job: key, tenant, line: *line, attempts, hosts, reason, at, log };
            retry(|| bus.publish(&subject, codec::encode(&dead), Publish::default())).await;
            None
        }
        Action::Sweep { shards } => {
            for (shard, workers) in shards {
                sweep(bus, shard, &workers).await;
            }
            None
        }
        Action::Forget { batch, read, .. } => {
            if read {
                let filter = table::checkpoints_of(&batch);
                retry(|| bus.purge(table::CHECKPOINTS, &filter)).await;
                retry(|| reader::forget(&**bus, &batch)).await;
                for name in savepoints::objects(&batch) {
                    retry(|| bus.object_delete(table::LEDGER, &name)).await;
                }
            } else {
                forget_checkpoint(bus, &JobKey { batch: batch.clone(), index: 0 }).await;
            }
            None
        }
        Action::Clean { batch, lines } => {
            let key = |index| JobKey { batch: batch.clone(), index };
            let cleaned =
                lines.into_iter().map(|index| async move { forget_checkpoint(bus, &key(index)).await });
            futures::stream::iter(cleaned).buffer_unordered(CLEANED_AT_A_TIME).collect::<()>().await;
            None
        }
        Action::DropAnswer { batch, sequence } => {
            // A server that lost power may have given the sequence to another answer.
            let stored = retry(|| bus.message(table::RESULTS, sequence)).await.flatten();
            let job = stored.and_then(|message| table::parse_result_subject(&message.subject));
            if job.is_some_and(|(_, job, _)| job.batch == batch) {
                retry(|| bus.delete_message(table::RESULTS, sequence)).await;
            }
            None
        }
        // Above.
        Action::DropAnswers { .. } => None,
        // The shell keeps these to itself.
        Action::Scan { .. }
        | Action::Read { .. }
        | Action::StopReading { .. }
        | Action::Write { .. }
        | Action::Record(_)
        | Action::KeepTotals(_)
        | Action::Audit(_)
        | Action::KeepAccount(_)
        | Action::Announce { .. }
        | Action::Notify(_)
        | Action::Remember { .. }
        | Action::Repeat { .. }
        | Action::ClearWork => None,
    }
}

/// `None` if the stream is not there.
async fn make_consumers(bus: &Arc<dyn Bus>, shard: u16, worker: &WorkerId) -> Option<()> {
    for consumer in table::work_consumers(shard, worker) {
        retry(|| bus.ensure_consumer(&consumer)).await?;
    }
    Some(())
}

/// Removes the checkpoint of a job. By its sequence: a removal by subject looks at all blocks of the stream.
async fn forget_checkpoint(bus: &Arc<dyn Bus>, job: &JobKey) {
    let subject = table::checkpoint(job);
    let last = retry(|| bus.last_on_subject(table::CHECKPOINTS, &subject)).await.flatten();
    if let Some(message) = last {
        retry(|| bus.delete_message(table::CHECKPOINTS, message.sequence)).await;
    }
}

/// Consumers of one shard: those that should be there are made, those of unknown workers removed with their messages.
async fn sweep(bus: &Arc<dyn Bus>, shard: u16, workers: &[WorkerId]) {
    let stream = table::work_stream(shard);
    let Some(found) = retry(|| bus.consumers(&stream)).await else { return };
    for consumer in workers.iter().flat_map(|worker| table::work_consumers(shard, worker)) {
        if !found.contains(&consumer.name) {
            tracing::warn!(consumer = consumer.name, "a consumer was missing and is created again");
            retry(|| bus.ensure_consumer(&consumer)).await;
        }
    }
    for name in found {
        let owner = Lane::ALL.iter().find_map(|lane| {
            let worker = name.strip_suffix(lane.as_str())?.strip_suffix('-')?.parse::<WorkerId>().ok()?;
            Some((worker, *lane))
        });
        let Some((worker, lane)) = owner.filter(|(worker, _)| !workers.contains(worker)) else { continue };
        retry(|| bus.delete_consumer(&stream, &name)).await;
        let subject = table::work(shard, &worker, lane);
        retry(|| bus.purge(&stream, &subject)).await;
    }
}

/// The same message id for every attempt: an assignment that was stored unheard is not stored twice.
async fn hand_over(bus: &Arc<dyn Bus>, hand: HandOut) -> Event {
    let HandOut { job, shard, worker, mut work } = hand;
    let span = spans::hand_over(&mut work, &worker);
    let subject = table::work(shard, &worker, work.lane);
    let message_id = Some(table::work_message_id(&work.job, work.epoch));
    let how =
        Publish { message_id, headers: trace::header(work.traceparent.as_deref()), ..Publish::default() };
    let epoch = work.epoch;
    let payload = codec::encode(&work);
    let bus = Arc::clone(bus);
    store_hand_over(bus, job, epoch, subject, payload, how).instrument(span).await
}

async fn store_hand_over(
    bus: Arc<dyn Bus>,
    job: JobRef,
    epoch: Epoch,
    subject: String,
    payload: bytes::Bytes,
    how: Publish,
) -> Event {
    for attempt in 0..HAND_ATTEMPTS {
        let stored = match bus.enqueue(&subject, payload.clone(), how.clone()).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(stored) => return Event::Handed { job, epoch, sequence: Some(stored.sequence) },
            Err(BusError::Unreachable(_)) => tokio::time::sleep(WAIT * (attempt + 1)).await,
            Err(error) => {
                tracing::warn!(%error, %subject, "an assignment was rejected");
                break;
            }
        }
    }
    Event::Handed { job, epoch, sequence: None }
}

/// Publishes where nothing may have been before; an answer that is there already is as good.
async fn store_once(bus: &Arc<dyn Bus>, subject: &str, payload: bytes::Bytes) {
    let how = Publish { expect_last_on_subject: Some(0), ..Publish::default() };
    let mut wait = WAIT;
    loop {
        let stored = match bus.enqueue(subject, payload.clone(), how.clone()).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(_) | Err(BusError::WrongLastSequence) => return,
            Err(error) => {
                tracing::warn!(%error, subject, "an answer could not be stored yet; retrying");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// Tries until there is an answer; what does not exist, or is refused for good, is `None`.
pub(crate) async fn retry<T, F: Future<Output = Result<T, BusError>>>(
    operation: impl Fn() -> F,
) -> Option<T> {
    let mut wait = WAIT;
    loop {
        match operation().await {
            Ok(value) => return Some(value),
            Err(BusError::NotFound(_) | BusError::WrongLastSequence | BusError::Exists(_)) => return None,
            Err(BusError::Refused(reason)) => {
                tracing::warn!(reason, "NATS rejected an operation");
                return None;
            }
            Err(BusError::Unreachable(_) | BusError::Full { .. }) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(2));
            }
        }
    }
}

/// A checkpoint that counts: of this job, by a worker whom a coordinator had given this epoch of it.
fn assigned(key: &AssignmentKey, job: &JobKey, payload: &[u8]) -> Option<Checkpoint> {
    let checkpoint = key.checkpoint_key(job).open(payload)?;
    let shown = checkpoint.tag.is_some_and(|tag| key.verifies(tag, job, checkpoint.epoch, &checkpoint.owner));
    (shown && checkpoint.job == *job).then_some(checkpoint)
}

fn trace_of(checkpoint: Checkpoint) -> Trace {
    Trace {
        attempt: checkpoint.attempt,
        epoch: checkpoint.epoch,
        owner: checkpoint.owner,
        host: checkpoint.host,
        generated: checkpoint.generated.len() as u32,
        released: checkpoint.released,
    }
}
