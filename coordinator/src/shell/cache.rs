//! The answers that the core remembers (`core/cache.rs`), kept in the object bucket `answers`: a few megabytes of them at a
//! time, as one segment of one tenant. A segment begins with the keys and places of its answers, so that a new leader
//! learns them without reading the answers.
//!
//! It is a cache: what is lost of it is computed again. Its age is the bucket's; its size is bounded for each tenant, and
//! the oldest segments go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{Generated, JobResult, Outcome, Usage};
use ternfleet_proto::{LeaderRevision, TenantId, codec, table};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Input;
use super::answers::Recent;
use crate::core::{Action, CacheKey, Event, JobRef, Place};
use crate::options::CacheOptions;

/// A segment is stored when it has so many bytes …
const SEGMENT_BYTES: usize = 4 << 20;
/// … or its first answer waits for so long.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Segments that were read last, in memory.
const READ_MAX: usize = 8;

/// What the leader's loop asks for.
pub(crate) enum Ask {
    /// Keep the answer at this sequence of RESULTS.
    Remember { tenant: TenantId, key: CacheKey, sequence: u64 },
    /// Publish the answer at this place as that of another line.
    Repeat { job: JobRef, key: CacheKey, place: Place, result: Box<JobResult> },
}

/// Where the answers of a segment lie, behind this head and the four bytes of its length.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    tenant: TenantId,
    answers: Vec<(CacheKey, u32, u32)>,
}

/// Answers of one tenant that are not stored yet.
#[derive(Default)]
struct Draft {
    answers: Vec<(CacheKey, Bytes)>,
    bytes: usize,
}

struct Segment {
    number: u32,
    name: String,
    bytes: u64,
}

struct Store {
    bus: Arc<dyn Bus>,
    leader: LeaderRevision,
    options: CacheOptions,
    recent: Recent,
    drafts: BTreeMap<TenantId, Draft>,
    /// Oldest first.
    segments: BTreeMap<TenantId, VecDeque<Segment>>,
    names: BTreeMap<u32, String>,
    next: u32,
    read: VecDeque<(u32, Bytes)>,
}

/// Serves the leader until it asks no more. Copies go to `actions`, to be stored like any answer of the coordinator's.
pub(crate) async fn serve(
    bus: Arc<dyn Bus>,
    leader: LeaderRevision,
    options: CacheOptions,
    recent: Recent,
    mut asks: mpsc::UnboundedReceiver<Ask>,
    actions: mpsc::UnboundedSender<Action>,
    inbox: mpsc::Sender<Input>,
) {
    let mut store = Store {
        bus,
        leader,
        options,
        recent,
        drafts: BTreeMap::new(),
        segments: BTreeMap::new(),
        names: BTreeMap::new(),
        next: 0,
        read: VecDeque::new(),
    };
    let events = store.load().await.unwrap_or_else(|error| {
        tracing::warn!(
            error = format!("{error:#}"),
            "remembered answers cannot be read; lines are computed again"
        );
        Vec::new()
    });
    if store.tell(&inbox, events).await.is_none() {
        return;
    }
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let events = tokio::select! {
            biased;
            ask = asks.recv() => match ask {
                None => break,
                Some(Ask::Remember { tenant, key, sequence }) => store.remember(tenant, key, sequence).await,
                Some(Ask::Repeat { job, key, place, result }) => match store.copy(place, result).await {
                    Ok(result) => {
                        if actions.send(Action::Answer(result)).is_err() {
                            break;
                        }
                        Vec::new()
                    }
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "a remembered answer is gone");
                        vec![Event::NotRepeated { job, key }]
                    }
                },
            },
            _ = flush.tick() => store.flush_all().await,
        };
        if store.tell(&inbox, events).await.is_none() {
            return;
        }
    }
    store.flush_all().await;
}

impl Store {
    async fn tell(&self, inbox: &mpsc::Sender<Input>, events: Vec<Event>) -> Option<()> {
        for event in events {
            inbox.send(Input::Event(event)).await.ok()?;
        }
        Some(())
    }

    /// What earlier leaders have stored.
    async fn load(&mut self) -> anyhow::Result<Vec<Event>> {
        if self.options.bytes_max == 0 {
            return Ok(Vec::new());
        }
        let mut objects = self.bus.object_list(table::ANSWERS).await.context("the bucket of answers")?;
        objects.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
        let mut events = Vec::new();
        for object in objects {
            let head = match self.head(&object.name).await {
                Ok(head) => head,
                Err(error) => {
                    tracing::debug!(object.name, error = format!("{error:#}"), "a segment cannot be parsed");
                    continue;
                }
            };
            let number = self.add(&head.tenant, object.name, object.bytes);
            events.push(Event::SegmentKept { segment: number, answers: head.answers });
        }
        Ok(events)
    }

    async fn head(&self, name: &str) -> anyhow::Result<Head> {
        let mut content = self.bus.object_get(table::ANSWERS, name, 0).await?;
        let length = content.read_u32_le().await?;
        anyhow::ensure!(length as usize <= SEGMENT_BYTES, "its head has {length} bytes");
        let mut head = vec![0; length as usize];
        content.read_exact(&mut head).await?;
        Ok(codec::decode(&head)?)
    }

    fn add(&mut self, tenant: &TenantId, name: String, bytes: u64) -> u32 {
        let number = self.next;
        self.next += 1;
        self.names.insert(number, name.clone());
        self.segments.entry(tenant.clone()).or_default().push_back(Segment { number, name, bytes });
        number
    }

    async fn remember(&mut self, tenant: TenantId, key: CacheKey, sequence: u64) -> Vec<Event> {
        let payload = self.recent.get(sequence).filter(|_| self.options.bytes_max > 0);
        let Some(payload) = payload else { return Vec::new() };
        let draft = self.drafts.entry(tenant.clone()).or_default();
        draft.bytes += payload.len();
        draft.answers.push((key, payload));
        if draft.bytes < SEGMENT_BYTES { Vec::new() } else { self.flush(tenant).await }
    }

    async fn flush_all(&mut self) -> Vec<Event> {
        let tenants: Vec<TenantId> = self.drafts.keys().cloned().collect();
        let mut events = Vec::new();
        for tenant in tenants {
            events.extend(self.flush(tenant).await);
        }
        events
    }

    /// Stores a draft. What cannot be stored is forgotten: it is still in RESULTS for a while.
    async fn flush(&mut self, tenant: TenantId) -> Vec<Event> {
        let Some(draft) = self.drafts.remove(&tenant) else { return Vec::new() };
        let mut at = 0;
        let places = draft.answers.iter().map(|(key, payload)| {
            let place = (*key, at, payload.len() as u32);
            at += payload.len() as u32;
            place
        });
        let head = Head { tenant, answers: places.collect() };
        let encoded = codec::encode(&head);
        let mut content = Vec::with_capacity(4 + encoded.len() + draft.bytes);
        content.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        content.extend_from_slice(&encoded);
        draft.answers.iter().for_each(|(_, payload)| content.extend_from_slice(payload));
        let name = format!("{}-{}", self.leader.0, self.next);
        let stored =
            self.bus.object_put(table::ANSWERS, &name, Box::pin(std::io::Cursor::new(content))).await;
        let Head { tenant, answers } = head;
        match stored {
            Ok(bytes) => {
                let segment = self.add(&tenant, name, bytes);
                let mut events = vec![Event::SegmentKept { segment, answers }];
                events.extend(self.prune(&tenant).await);
                events
            }
            Err(error) => {
                tracing::warn!(%error, "answers are not remembered beyond RESULTS");
                Vec::new()
            }
        }
    }

    /// Removes the oldest segments of a tenant that has too many bytes.
    async fn prune(&mut self, tenant: &TenantId) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(segments) = self.segments.get_mut(tenant) else { return events };
        let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        while bytes > self.options.bytes_max {
            let Some(oldest) = segments.pop_front() else { break };
            bytes -= oldest.bytes;
            self.names.remove(&oldest.number);
            match self.bus.object_delete(table::ANSWERS, &oldest.name).await {
                Ok(()) | Err(BusError::NotFound(_)) => {}
                Err(error) => tracing::debug!(%error, "an old segment goes with its age"),
            }
            events.push(Event::SegmentGone { segment: oldest.number });
        }
        events
    }

    /// The answer at this place, as that of another line.
    async fn copy(&mut self, place: Place, mut result: Box<JobResult>) -> anyhow::Result<Box<JobResult>> {
        let payload = match place {
            Place::Results(sequence) => match self.recent.get(sequence) {
                Some(payload) => payload,
                None => {
                    let message = self.bus.message(table::RESULTS, sequence).await?;
                    message.context("it is in RESULTS no longer")?.payload
                }
            },
            Place::Segment { segment, at, bytes } => self.answer_in(segment, at, bytes).await?,
        };
        let known: JobResult = codec::decode(&payload)?;
        let Outcome::Text(generated) = known.outcome else { anyhow::bail!("it is no text") };
        let Usage { prompt_tokens, completion_tokens, .. } = known.usage;
        result.outcome = Outcome::Text(Generated { copy_of: Some(known.job), ..generated });
        result.usage =
            Usage { prompt_tokens, completion_tokens, cached_tokens: prompt_tokens, ..Usage::default() };
        result.line.model = result.line.model.or(known.line.model);
        Ok(result)
    }

    async fn answer_in(&mut self, segment: u32, at: u32, bytes: u32) -> anyhow::Result<Bytes> {
        let content = match self.read.iter().find(|(number, _)| *number == segment) {
            Some((_, content)) => content.clone(),
            None => {
                let name = self.names.get(&segment).context("its segment is gone")?;
                let mut content = Vec::new();
                self.bus.object_get(table::ANSWERS, name, 0).await?.read_to_end(&mut content).await?;
                let content = Bytes::from(content);
                self.read.push_back((segment, content.clone()));
                if self.read.len() > READ_MAX {
                    self.read.pop_front();
                }
                content
            }
        };
        let first = content.get(..4).and_then(|first| <[u8; 4]>::try_from(first).ok());
        let length = first.map(u32::from_le_bytes).context("its segment is empty")?;
        let from = 4 + length as usize + at as usize;
        let to = from + bytes as usize;
        anyhow::ensure!(to <= content.len(), "its segment ends before it");
        Ok(content.slice(from..to))
    }
}
