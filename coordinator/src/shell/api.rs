//! The callers' verbs: requests on `tf.api.*`, answered by the leader alone.

mod creation;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{
    BatchFind, BatchList, BatchPage, BatchRef, BatchSet, BatchView, CountTokens, FileRef, JobCreate, PodList,
    PodRef, Quote, QuoteAsk, Refusal, RefusalCode, Reply, ResultsRequest, TenantOpen,
};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{BatchId, Now, TenantId, TimeMs, codec};
use tokio::sync::mpsc;

use super::Input;
use super::answers::{Committed, Recent, Stored as StoredAnswer};
use super::deletion::Reserves;
use super::find::{self, Found, Stored};
use super::pages::Pages;
use super::quotes::{Footing, Question};
use super::reply::ReplyTo;
use super::{bounds, count, dead, deletion, overview, setup, spans};
use crate::Options;
use crate::core::{BatchRecord, BatchSlot, Change, Core, Event, view_of};

pub(super) use creation::Surveyed;

const LIST_MAX: u32 = 200;

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) verb: ApiVerb,
    /// Whom the server vouches for; `None` for callers who act for every tenant.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) payload: Bytes,
    pub(crate) reply: ReplyTo,
}

/// Serves callers. Owned by the main loop; what takes time goes to tasks of its own.
pub(crate) struct Api {
    bus: Arc<dyn Bus>,
    inbox: mpsc::Sender<Input>,
    bus_facts: setup::BusFacts,
    pages: Pages,
    /// Inputs of batches that are being created.
    reserves: Reserves,
    /// Hosts that webhooks may name although they are private.
    webhooks_allow: Arc<[String]>,
    lines_max: u32,
    /// Why nothing is accepted now, if that is so.
    full: Option<Refusal>,
}

pub(super) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), retry_after_ms: None }
}

/// Whether a question is asked in the name of `tenant`.
fn names(payload: &[u8], tenant: &TenantId) -> bool {
    #[derive(serde::Deserialize)]
    struct Named {
        tenant: TenantId,
    }
    codec::decode::<Named>(payload).is_ok_and(|named| named.tenant == *tenant)
}

pub(super) fn unknown(id: &BatchId) -> Refusal {
    refusal(RefusalCode::NotFound, format!("there is no batch {id}"))
}

pub(super) fn unreachable(error: &BusError) -> Refusal {
    Refusal { code: RefusalCode::Unavailable, message: error.to_string(), retry_after_ms: Some(1000) }
}

impl Api {
    pub(crate) fn new(
        bus: Arc<dyn Bus>,
        inbox: mpsc::Sender<Input>,
        recent: Recent,
        bus_facts: setup::BusFacts,
        options: &Options,
    ) -> Self {
        let webhooks_allow = options.webhooks.allow.clone().into();
        let lines_max = options.quotas.queued_lines_max;
        let pages = Pages::new(Arc::clone(&bus), bus_facts.key.clone(), recent, inbox.clone());
        let (reserves, full) = (Reserves::default(), None);
        Self { bus, inbox, bus_facts, pages, reserves, webhooks_allow, lines_max, full }
    }

    pub(crate) fn pages(&mut self) -> &mut Pages {
        &mut self.pages
    }

    pub(super) fn set_room(&mut self, refusal: Option<Refusal>) {
        self.full = refusal;
    }

    fn has_room(&self) -> Result<(), Refusal> {
        self.full.clone().map_or(Ok(()), Err)
    }

    /// One call. Events for the core are returned; replies are sent from here or from tasks.
    pub(super) fn call(
        &mut self,
        now: Now,
        call: Call,
        core: &Core,
        stored: &Stored,
        footing: &Footing,
    ) -> Vec<Event> {
        let Call { verb, tenant, payload, reply } = call;
        if let Some(tenant) = &tenant
            && !matches!(verb, ApiVerb::Pods | ApiVerb::Fleet | ApiVerb::PodDismiss)
            && !verb.is_of_the_scaler()
            && !names(&payload, tenant)
        {
            let message = format!(
                "these credentials belong to tenant {tenant}: send requests for that \
                                   tenant"
            );
            self.answer::<()>(reply, Err(refusal(RefusalCode::Invalid, message)));
            return Vec::new();
        }
        match verb {
            ApiVerb::BatchCreate => {
                self.with(&payload, reply, |api, create, reply| api.create(create, reply))
            }
            ApiVerb::BatchGet => self.with(&payload, reply, |api, batch: BatchRef, reply| {
                match find(core, &batch.tenant, &batch.id).and_then(|slot| core.batch_view(now, slot)) {
                    Some(view) => api.answer(reply, Ok(view)),
                    None => api.answer_from_record(batch, reply),
                }
                Vec::new()
            }),
            ApiVerb::BatchList => self.with(&payload, reply, |api, list: BatchList, reply| {
                let limit = list.limit.clamp(1, LIST_MAX) as usize;
                if let Some(after) = &list.after
                    && !stored.knows(&list.tenant, after)
                {
                    api.answer::<()>(reply, Err(unknown(after)));
                    return Vec::new();
                }
                let ids = stored.newest(&list.tenant, list.after.as_ref(), limit);
                api.list(now, ids, reply, core);
                Vec::new()
            }),
            ApiVerb::BatchFind => self.with(&payload, reply, |api, ask: BatchFind, reply| {
                match stored.find(&ask) {
                    Ok(found) => api.page(now, &ask.tenant, found, reply, core),
                    Err(refused) => api.answer::<()>(reply, Err(refused)),
                }
                Vec::new()
            }),
            ApiVerb::BatchCancel => self.with(&payload, reply, |api, batch: BatchRef, reply| {
                let Some(slot) = find(core, &batch.tenant, &batch.id) else {
                    api.answer_from_record(batch, reply);
                    return Vec::new();
                };
                api.later(reply, slot);
                vec![Event::Cancel { batch: slot }]
            }),
            ApiVerb::BatchSet => self.with(&payload, reply, |api, set: BatchSet, reply| {
                let Some(slot) = find(core, &set.tenant, &set.id) else {
                    api.answer::<()>(reply, Err(unknown(&set.id)));
                    return Vec::new();
                };
                if core.batch(slot).is_some_and(|batch| batch.is_ended()) {
                    let message = format!("batch {} has ended and cannot be changed", set.id);
                    api.answer::<()>(reply, Err(refusal(RefusalCode::Conflict, message)));
                    return Vec::new();
                }
                if set.priority.is_some_and(|priority| !(-10..=10).contains(&priority)) {
                    let message = "priority must be from -10 (last) to 10 (first)";
                    api.answer::<()>(reply, Err(refusal(RefusalCode::Invalid, message)));
                    return Vec::new();
                }
                let change = Change {
                    budget_usd_micro: set.budget_usd_micro,
                    deadline: set.deadline,
                    priority: set.priority,
                };
                api.later(reply, slot);
                vec![Event::Change { batch: slot, change }]
            }),
            ApiVerb::Results => self.with(&payload, reply, |api, request: ResultsRequest, reply| {
                let slot = find(core, &request.tenant, &request.id);
                api.pages.ask(now, slot, request, reply, core);
                Vec::new()
            }),
            ApiVerb::DeadList => self.with(&payload, reply, |api, list, reply| {
                tokio::spawn(dead::answer(Arc::clone(&api.bus), list, reply));
                Vec::new()
            }),
            ApiVerb::Pods => self.with(&payload, reply, |api, ask: Option<PodList>, reply| {
                api.answer(reply, Ok(overview::pods(core, tenant.as_ref(), ask)));
                Vec::new()
            }),
            // Answered by the loop, which knows the ledgers.
            ApiVerb::Fleet => Vec::new(),
            ApiVerb::PodDismiss => self.with(&payload, reply, |api, lost: PodRef, reply| {
                if !core.account().lost.iter().any(|known| known.pod == lost.pod) {
                    let message = format!("no lost pod {:?} in the list", lost.pod);
                    api.answer::<()>(reply, Err(refusal(RefusalCode::NotFound, message)));
                    return Vec::new();
                }
                api.answer(reply, Ok(()));
                vec![Event::Dismiss { pod: lost.pod }]
            }),
            ApiVerb::TenantOpen => self.with(&payload, reply, |api, open: TenantOpen, reply| {
                let (bus, replicas) = (Arc::clone(&api.bus), api.bus_facts.replicas as usize);
                tokio::spawn(async move {
                    let made = bus.ensure_objects(&table::files_spec(&open.tenant, replicas)).await;
                    let answer: Reply<()> = made.map_err(|error| unreachable(&error));
                    reply.send(&*bus, &answer).await;
                });
                Vec::new()
            }),
            ApiVerb::FileDelete => self.with(&payload, reply, |api, file: FileRef, reply| {
                api.delete_file(now.wall, file, reply, core);
                Vec::new()
            }),
            ApiVerb::Quote => self.with(&payload, reply, |api, ask: QuoteAsk, reply| {
                let question = Question::new(now, core, footing, ask);
                let bus = Arc::clone(&api.bus);
                tokio::spawn(async move {
                    let answer: Reply<Quote> = question.answer().await.map(|(quote, _)| quote);
                    reply.send(&*bus, &answer).await;
                });
                Vec::new()
            }),
            ApiVerb::Count => self.with(&payload, reply, |api, ask: CountTokens, reply| {
                tokio::spawn(count::answer(
                    Arc::clone(&api.bus),
                    core.some_worker(ask.model.as_deref()),
                    ask,
                    reply,
                ));
                Vec::new()
            }),
            ApiVerb::ScaleShow | ApiVerb::ScaleSet | ApiVerb::ScalePlan => {
                let message = "scaling is off: this coordinator rents no pods. To enable it, start the \
                               fleet with \
                               `ternfleet up --scale 0..2`, or add a [scale] section to the coordinator's \
                               configuration (docs/runpod.md)";
                self.answer::<()>(reply, Err(refusal(RefusalCode::Conflict, message)));
                Vec::new()
            }
            ApiVerb::JobCreate => self.with(&payload, reply, |api, mut job: JobCreate, reply| {
                let admitted = match job.again {
                    // It was admitted before.
                    true => bounds::job(&job),
                    false => bounds::job(&job)
                        .and_then(|()| api.has_room())
                        .and_then(|()| match &job.line.model {
                            Some(model) if !job.wait_for_model => footing.check(now, core, [model.as_str()]),
                            _ => Ok(()),
                        })
                        .and_then(|()| core.admit_single(now, &job)),
                };
                if let Err(refused) = admitted {
                    api.answer::<()>(reply, Err(refused));
                    return Vec::new();
                }
                api.answer(reply, Ok(()));
                if job.again && core.find(&job.batch).is_none() {
                    api.revive(job);
                    return Vec::new();
                }
                spans::accepted(&job.batch, &mut job.traceparent);
                vec![Event::JobCreated(Box::new(job))]
            }),
        }
    }

    fn with<Q: DeserializeOwned>(
        &mut self,
        payload: &[u8],
        reply: ReplyTo,
        handle: impl FnOnce(&mut Self, Q, ReplyTo) -> Vec<Event>,
    ) -> Vec<Event> {
        match codec::decode(payload) {
            Ok(question) => handle(self, question, reply),
            Err(error) => {
                self.answer::<()>(reply, Err(refusal(RefusalCode::Invalid, error.to_string())));
                Vec::new()
            }
        }
    }

    pub(super) fn answer<T: Serialize + Send + Sync + 'static>(&self, reply: ReplyTo, answer: Reply<T>) {
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move { reply.send(&*bus, &answer).await });
    }

    /// The reply is the batch as it stands once the core has taken the event in, and the books have stored it.
    fn later(&self, reply: ReplyTo, slot: BatchSlot) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move { inbox.send(Input::ReplyView { reply, slot }).await });
    }

    pub(crate) fn reply_view(&self, now: Now, reply: ReplyTo, slot: BatchSlot, core: &Core) {
        self.answer(reply, view_or_gone(now, slot, core));
    }

    /// A single job of an earlier leader: if its answer is stored, whoever waits is told; otherwise it is started again.
    fn revive(&self, job: JobCreate) {
        let (bus, key, inbox) = (Arc::clone(&self.bus), self.bus_facts.key.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let answered = async {
                let filter = table::results_of(&job.tenant, &job.batch);
                let mut committed = Committed::among(&bus, &key, &filter, 1, 1).await?;
                anyhow::Ok(committed.next().await?)
            };
            match answered.await {
                Ok(Some(StoredAnswer { result, .. })) => {
                    let _ = bus.send(&table::done(&result.job), codec::encode(&result)).await;
                }
                Ok(None) => {
                    let _ = inbox.send(Input::Event(Event::JobCreated(Box::new(job)))).await;
                }
                // Whoever waits asks again.
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "the state of RESULTS cannot be read")
                }
            }
        });
    }

    /// Batches in memory as they stand now, the others as their records say.
    fn list(&self, now: Now, ids: Vec<BatchId>, reply: ReplyTo, core: &Core) {
        let (bus, known) = (Arc::clone(&self.bus), find::in_memory(now, ids, core));
        tokio::spawn(async move {
            let answer: Reply<Vec<BatchView>> = find::views(&bus, known).await.map(|(views, _)| views);
            reply.send(&*bus, &answer).await;
        });
    }

    fn page(&self, now: Now, tenant: &TenantId, found: Found, reply: ReplyTo, core: &Core) {
        let Found { places, next, counts } = found;
        let (open_lines, oldest_open) = core.open_lines(tenant);
        let ids = places.iter().map(|place| place.id().clone()).collect();
        let (bus, known) = (Arc::clone(&self.bus), find::in_memory(now, ids, core));
        tokio::spawn(async move {
            let views = find::views(&bus, known).await;
            let answer: Reply<BatchPage> = views.map(|(batches, fit)| {
                // A page that had to be shorter is continued behind its last entry.
                let next = if fit < places.len() { Some(places[fit - 1].cursor()) } else { next };
                BatchPage { batches, next, counts, open_lines, oldest_open }
            });
            reply.send(&*bus, &answer).await;
        });
    }

    fn answer_from_record(&self, batch: BatchRef, reply: ReplyTo) {
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            let answer = match stored_record(&bus, &batch.id).await {
                Ok(Some(record)) if record.tenant == batch.tenant => Ok(view_of(&record, record.totals)),
                Ok(_) => Err(unknown(&batch.id)),
                Err(error) => Err(unreachable(&error)),
            };
            reply.send(&*bus, &answer).await;
        });
    }

    /// A batch that was accepted is answered, so its input stays until it has ended.
    fn delete_file(&self, now: TimeMs, file: FileRef, reply: ReplyTo, core: &Core) {
        let reader = core.reader_of(&file.tenant, &file.object).map(ToString::to_string);
        let being_made =
            || self.reserves.holds(&file.tenant, &file.object).then(|| "being created".to_owned());
        if let Some(reader) = reader.or_else(being_made) {
            let message = format!(
                "the file {} is the input of a batch that has not ended ({reader}): cancel the batch or \
                 wait for its end",
                file.object
            );
            return self.answer::<()>(reply, Err(refusal(RefusalCode::Conflict, message)));
        }
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            reply.send(&*bus, &deletion::delete(&*bus, &file, now).await).await;
        });
    }
}

/// What a caller is answered who asked for a batch, or changed it.
pub(crate) fn view_or_gone(now: Now, slot: BatchSlot, core: &Core) -> Reply<BatchView> {
    core.batch_view(now, slot).ok_or_else(|| refusal(RefusalCode::NotFound, "the batch no longer exists"))
}

fn find(core: &Core, tenant: &TenantId, id: &BatchId) -> Option<BatchSlot> {
    let slot = core.find(id)?;
    core.batch(slot).filter(|batch| batch.record.tenant == *tenant).map(|_| slot)
}

pub(super) async fn stored_record(bus: &Arc<dyn Bus>, id: &BatchId) -> Result<Option<BatchRecord>, BusError> {
    let entry = bus.kv_get(table::KV_BATCHES, id.as_str()).await?;
    Ok(entry.and_then(|entry| codec::decode(&entry.value).ok()))
}
