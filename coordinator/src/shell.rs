//! The coordinator as a process: a thin loop around the core, and the tasks that do what takes time.
//!
//! `select → on → perform`: events come in from the bus and from tasks, the core decides, actions go out to tasks.
//! Nothing here decides what happens to a job. Called by [`crate::run`].

mod account;
mod answers;
mod api;
mod archive;
mod books;
mod bounds;
mod cache;
mod count;
mod dead;
mod deletion;
mod departure;
mod errands;
mod find;
mod grants;
mod hear;
mod join;
mod leading;
mod lease;
pub(crate) mod lines;
mod micro;
mod notify;
mod overview;
mod pages;
mod perform;
mod proof;
mod quotes;
mod reader;
mod records;
mod reply;
mod retention;
mod room;
mod savepoints;
mod scaler;
mod scratch;
mod setup;
mod spans;
mod welcome;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ternfleet_cloud::Provider;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{BatchCreate, JoinRequest, Refusal, StartFailed};
use ternfleet_proto::table::{self, ApiVerb, SyncFacts};
use ternfleet_proto::{BatchId, Clock, Now, WorkerId, codec};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::core::{Action, BatchRecord, BatchSlot, Core, Event, Lead, Limits, Supply};
use crate::metrics::Metrics;
pub(crate) use join::read_issuer;

use answers::Recent;
use api::{Api, Call};
use deletion::Reserved;
use reply::ReplyTo;

/// Inputs that may wait for the loop before their senders do.
const INBOX: usize = 16_384;
/// Inputs processed before jobs are assigned again.
const GULP: usize = 1024;
/// Batches whose output files are written at a time.
const WRITERS_MAX: usize = 16;
const TICK: Duration = Duration::from_millis(200);
/// A turn that takes longer is logged.
const LONG_TURN: Duration = Duration::from_millis(50);

/// Everything that comes to the loop.
#[derive(Debug)]
pub(crate) enum Input {
    Event(Event),
    Call(Call),
    /// A creation's surroundings are known.
    Surveyed {
        create: Box<BatchCreate>,
        found: Result<api::Surveyed, Refusal>,
        reply: ReplyTo,
        reserved: Reserved,
    },
    /// A creation is stored.
    Created {
        record: Box<BatchRecord>,
        reply: ReplyTo,
        /// Held until the core knows the batch.
        reserved: Reserved,
    },
    Ping {
        reply: String,
    },
    Join {
        /// As the server lets it publish.
        asker: String,
        request: JoinRequest,
        reply: String,
    },
    /// A pod's report that its start failed, and the name that the server lets it publish under.
    StartFailed(String, StartFailed),
    ReplyView {
        reply: ReplyTo,
        slot: BatchSlot,
    },
    PastAnswers {
        batch: BatchId,
        past: Arc<pages::Past>,
    },
    /// A batch's record as it was just stored, whoever did it.
    Recorded(Box<BatchRecord>),
    RecordGone(BatchId),
    /// Who a worker is, as it was just stored.
    Granted(Box<grants::Granted>),
    GrantGone(WorkerId),
    /// Every answer stored before this process began has been read.
    CaughtUp,
    /// Warm, and another leads.
    StandingBy,
    Leading(Lead, lease::Held),
    Deposed(String),
    Undecodable,
    /// What is stored at this sequence of RESULTS is no valid answer.
    Garbage(u64),
    /// Why nothing is accepted now, if that is so.
    Room(Option<Refusal>),
    /// What can be rented, read again.
    Footing(Arc<quotes::Footing>),
    /// What the scaler can add to the fleet now.
    Supplied(Box<Supply>),
    /// What the scaler's ledger said before this leader, as it counts today.
    RentedBefore(account::RentedBefore),
}

/// Why a turn of service ended.
enum Ended {
    Shutdown,
    Deposed,
    /// One of its tasks panicked: what it did is done by nobody, so all of it begins anew from what is stored.
    Panicked(JoinError),
}

/// Serves until shutdown: as a standby, as the leader, and as a standby again after losing the lease.
pub(crate) async fn serve(
    bus: Arc<dyn Bus>,
    options: Options,
    provider: Option<Arc<dyn Provider>>,
    sync: Option<SyncFacts>,
    metrics: Arc<Metrics>,
    clock: Clock,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut served = false;
    loop {
        let tasks = shutdown.child_token();
        let ended = serve_once(&bus, &options, &provider, sync, &metrics, &clock, &shutdown, &tasks).await;
        tasks.cancel();
        metrics.set_role(false, false);
        match ended {
            Ok(Ended::Shutdown) => return Ok(()),
            Ok(Ended::Deposed) => served = true,
            Ok(Ended::Panicked(error)) => {
                tracing::error!(%error, "a task of the coordinator panicked; starting again from the stored state");
                served = true;
            }
            Err(_) if shutdown.is_cancelled() => return Ok(()),
            // What worked once works again when NATS does: a cluster that elects new leaders is no reason to end. At the
            // first start an error is the operator's to see.
            Err(error) if served => {
                tracing::warn!(error = format!("{error:#}"), "cannot become a standby; retrying")
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn serve_once(
    bus: &Arc<dyn Bus>,
    options: &Options,
    provider: &Option<Arc<dyn Provider>>,
    sync: Option<SyncFacts>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
    shutdown: &CancellationToken,
    cancel: &CancellationToken,
) -> anyhow::Result<Ended> {
    let rental = scaler::rental(options, provider.clone())?;
    let admission = join::Admission::of(options)?;
    let bus_facts = setup::prepare(bus, options, sync).await?;
    metrics.set_durability(bus_facts.durability);
    let limits = Limits {
        quotas: options.quotas.clone(),
        text_bytes_max: options.text_bytes_max,
        able_classes: options.scale.able_classes(),
        audit_share_ppm: (options.audit_share.clamp(0.0, 1.0) * 1e6) as u32,
        cache_entries_max: options.cache.entries_max as usize,
        ..Limits::default()
    };
    let mut core = Core::new(bus_facts.key.clone(), limits);
    let mut actions = Vec::new();
    let records_end = bus.stream_facts(&table::kv_stream(table::KV_BATCHES)).await;
    let records_end = records_end.context("the stored batches cannot be counted")?.last_sequence;
    let (grants, grants_from) = grants::load(bus, admission.has_permissions(), clock.mono()).await?;
    let mut stored = find::Stored::default();
    let loaded = records::load(bus, clock.now(), &mut core, &mut stored, &mut actions).await?;
    let results_from = savepoints::restore(bus, &loaded.open, loaded.end, &mut core).await;

    let (inbox, mut inputs) = mpsc::channel(INBOX);
    let recent = Recent::default();
    let mut tasks = JoinSet::new();
    let results =
        answers::follow(Arc::clone(bus), results_from, recent.clone(), Arc::clone(metrics), inbox.clone());
    tasks.spawn(results);
    let process = options.name.clone().unwrap_or_else(|| format!("pid-{}", std::process::id()));
    let micro = Arc::new(micro::Micro::new(&process, clock.wall()));
    tasks.spawn(room::watch(Arc::clone(bus), inbox.clone()));
    tasks.spawn(hear::workers(Arc::clone(bus), inbox.clone()));
    tasks.spawn(hear::callers(Arc::clone(bus), Arc::clone(&micro), inbox.clone()));
    tasks.spawn(hear::pings(Arc::clone(bus), inbox.clone()));
    tasks.spawn(hear::joiners(Arc::clone(bus), inbox.clone()));
    tasks.spawn(hear::failed_starts(Arc::clone(bus), inbox.clone()));
    tasks.spawn(micro.serve(Arc::clone(bus)));
    for (bucket, from, understood) in [
        (table::KV_BATCHES, records_end + 1, records::understood as fn(&str, &[u8]) -> Option<Input>),
        (table::KV_GRANTS, grants_from, grants::understood),
    ] {
        tasks.spawn(records::follow(Arc::clone(bus), bucket, from, inbox.clone(), understood));
    }
    let mut service = Service {
        bus: Arc::clone(bus),
        clock: clock.clone(),
        options: options.clone(),
        admission,
        api: Api::new(Arc::clone(bus), inbox.clone(), recent.clone(), bus_facts.clone(), options),
        bus_facts,
        recent,
        diary: spans::Diary::default(),
        inbox: inbox.clone(),
        metrics: Arc::clone(metrics),
        core,
        stored,
        grants,
        hands: None,
        footing: Arc::new(quotes::Footing::begin(rental.is_some())),
        rented_before: rental.is_none().then(account::RentedBefore::default),
        overview: overview::Overview::default(),
        rental,
        readers: BTreeMap::new(),
        writers: Arc::new(Semaphore::new(WRITERS_MAX)),
        tasks,
        errands: errands::Errands::default(),
        unknown: BTreeSet::new(),
    };
    let mut ticker = tokio::time::interval(TICK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gulp = Vec::with_capacity(GULP);
    let ended = loop {
        let (began, ticked);
        tokio::select! {
            // In this order, so that a simulation can be repeated; what comes rarely comes first.
            biased;
            () = shutdown.cancelled() => break Ended::Shutdown,
            panicked = service.panicked() => break Ended::Panicked(panicked),
            _ = ticker.tick() => {
                (began, ticked) = (Instant::now(), true);
                let now = clock.now();
                service.core.on(now, Event::Tick, &mut actions);
                service.show_situation(now);
                service.save(now);
                service.core.take_quote_checks().iter().for_each(|check| metrics.quote_checked(check));
            }
            count = inputs.recv_many(&mut gulp, GULP) => {
                (began, ticked) = (Instant::now(), false);
                if count == 0 {
                    anyhow::bail!("the inbox closed");
                }
            }
        }
        let now = clock.now();
        let mut deposed = None;
        let inputs_taken = gulp.len();
        for input in gulp.drain(..) {
            match input {
                Input::CaughtUp => {
                    let lease = Duration::from_millis(options.lease_ms);
                    service.tasks.spawn(lease::keep(
                        Arc::clone(bus),
                        process.clone(),
                        lease,
                        inbox.clone(),
                        cancel.clone(),
                    ));
                }
                Input::Deposed(why) => deposed = Some(why),
                input => service.take(now, input, &mut actions).await,
            }
        }
        if let Some(why) = deposed {
            tracing::warn!(why, "the lease is lost; now a standby");
            break Ended::Deposed;
        }
        let handed_before = service.core.counts.handed_jobs;
        service.core.on(now, Event::Turn, &mut actions);
        let handed = service.core.counts.handed_jobs - handed_before;
        let actions_taken = actions.len();
        for action in actions.drain(..) {
            service.perform(now, action);
        }
        service.api.pages().serve_pollers(now, &service.core);
        metrics.observe(now, &service.core);
        let took = began.elapsed();
        metrics.turned(took);
        metrics.handed_over(handed, service.core.hand_waited() + took);
        if took > LONG_TURN {
            let took_ms = took.as_millis();
            tracing::debug!(took_ms, ticked, inputs_taken, actions_taken, "a long turn of the loop");
        }
    };
    service.close(cancel).await;
    Ok(ended)
}

struct Service {
    bus: Arc<dyn Bus>,
    clock: Clock,
    options: Options,
    bus_facts: setup::BusFacts,
    admission: join::Admission,
    api: Api,
    recent: Recent,
    diary: spans::Diary,
    inbox: mpsc::Sender<Input>,
    metrics: Arc<Metrics>,
    core: Core,
    stored: find::Stored,
    grants: grants::Grants,
    hands: Option<leading::Hands>,
    footing: Arc<quotes::Footing>,
    /// None until the scaler has read its ledger.
    rented_before: Option<account::RentedBefore>,
    overview: overview::Overview,
    rental: Option<scaler::Rental>,
    readers: BTreeMap<BatchSlot, mpsc::UnboundedSender<reader::Command>>,
    /// Turns to write output files: each writer has a consumer on RESULTS, and buffers.
    writers: Arc<Semaphore>,
    /// Without one of these nothing works.
    tasks: JoinSet<()>,
    /// Each serves one batch or one caller.
    errands: errands::Errands,
    /// Batches that answers name and nobody knows: single jobs of an earlier leader, mostly.
    unknown: BTreeSet<BatchId>,
}

impl Service {
    async fn take(&mut self, now: Now, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Event(Event::Heartbeat(beat)) => self.hear_beat(now, beat, actions),
            Input::Event(event) => {
                if let Event::Answer { answer, .. } = &event
                    && !self.core.is_leading()
                {
                    // A standby may hear an answer before it hears of the batch.
                    self.learn(now, &answer.job.batch.clone(), actions).await;
                }
                self.core.on(now, event, actions);
            }
            Input::Call(call) => {
                if let Some(hands) = &self.hands
                    && let Some(scaler) = &hands.scaler
                    && call.verb.is_of_the_scaler()
                {
                    let Call { verb, payload, reply, .. } = call;
                    let _ = scaler.calls.send(scaler::ScaleCall { verb, payload, reply });
                } else if self.core.is_leading() && call.verb == ApiVerb::Fleet {
                    let viewer = call.tenant.as_ref();
                    let fleet = self.overview.fleet_view(now, &self.core, viewer, self.rented_before);
                    self.api.answer(call.reply, Ok(fleet));
                } else if self.core.is_leading() {
                    // The page asks for pods by itself, whether somebody looks at it or not.
                    if call.verb != ApiVerb::Pods && !call.verb.is_of_the_scaler() {
                        self.metrics.question();
                    }
                    for event in self.api.call(now, call, &self.core, &self.stored, &self.footing) {
                        self.core.on(now, event, actions);
                    }
                }
            }
            Input::Ping { reply } => {
                if self.core.is_leading() {
                    self.send(reply, bytes::Bytes::new());
                }
            }
            Input::Join { asker, request, reply } => {
                if self.core.is_leading() {
                    self.let_in(now, &asker, &request, reply);
                }
            }
            Input::StartFailed(name, said) => self.start_failed(name, said),
            Input::Surveyed { create, found, reply, reserved } => {
                self.api.surveyed(now, *create, found, reply, reserved, &self.core, &self.footing);
            }
            Input::Created { record, reply, reserved: _held } => {
                let id = record.id.clone();
                self.stored.note(&record);
                self.core.on(now, Event::BatchKnown(record), actions);
                if let Some(slot) = self.core.find(&id) {
                    self.api.reply_view(now, reply, slot, &self.core);
                }
            }
            Input::ReplyView { reply, slot } => {
                if let Some(batch) = self.core.batch(slot).map(|batch| batch.record.id.clone()) {
                    let answer = Box::new(api::view_or_gone(now, slot, &self.core));
                    self.book(books::Entry::Answer { batch, reply, answer });
                }
            }
            Input::PastAnswers { batch, past } => self.api.pages().keep_past(batch, past),
            Input::Recorded(record) => {
                let news = self.stored.note(&record);
                // What has ended and left memory, as a tombstone for one, stays where it is.
                if news && (!record.state.is_terminal() || self.core.find(&record.id).is_some()) {
                    self.core.on(now, Event::BatchKnown(record), actions);
                }
            }
            Input::RecordGone(batch) => self.stored.forget(&batch),
            Input::Granted(granted) => self.grants.note(*granted),
            Input::GrantGone(worker) => self.grants.forget(&worker),
            Input::Leading(lead, held) => self.lead(now, lead, held, actions).await,
            Input::StandingBy => self.metrics.set_role(true, false),
            Input::Undecodable => self.metrics.undecodable(),
            Input::Garbage(sequence) => {
                self.metrics.undecodable();
                if self.core.is_leading() {
                    actions.push(Action::Discard { sequence });
                }
            }
            Input::Room(refusal) => self.api.set_room(refusal),
            Input::Footing(footing) => self.footing = footing,
            Input::Supplied(supply) => self.core.on(now, Event::Supplied(supply), actions),
            Input::RentedBefore(before) => self.rented_before = Some(before),
            Input::CaughtUp | Input::Deposed(_) => {}
        }
    }

    fn send(&self, subject: String, payload: bytes::Bytes) {
        let bus = Arc::clone(&self.bus);
        tokio::spawn(async move {
            if let Err(error) = bus.send(&subject, payload).await {
                tracing::debug!(%error, "a reply was not sent");
            }
        });
    }

    /// Reads the record of a batch that is unknown.
    async fn learn(&mut self, now: Now, batch: &BatchId, actions: &mut Vec<Action>) {
        if self.core.find(batch).is_some() || self.unknown.contains(batch) {
            return;
        }
        match self.bus.kv_get(table::KV_BATCHES, batch.as_str()).await {
            Ok(Some(entry)) => {
                if let Ok(record) = codec::decode(&entry.value) {
                    self.core.on(now, Event::BatchKnown(Box::new(record)), actions);
                }
            }
            Ok(None) => {
                if self.unknown.len() > 10_000 {
                    self.unknown.clear();
                }
                self.unknown.insert(batch.clone());
            }
            Err(error) => tracing::warn!(%batch, %error, "a batch's record cannot be read"),
        }
    }

    fn perform(&mut self, now: Now, action: Action) {
        match action {
            Action::Scan { batch } => self.command(batch, reader::Command::Scan),
            Action::Read { batch, from, lines, skip } => {
                self.command(batch, reader::Command::Read { from, lines, skip });
            }
            Action::StopReading { batch } => {
                self.readers.remove(&batch);
            }
            Action::Write { batch } => self.write(batch),
            Action::Record(record) => {
                // An ended batch may leave memory before its earlier records have come back from the bucket.
                if record.state.is_terminal() {
                    self.stored.note(&record);
                }
                self.book(books::Entry::Record(record));
            }
            Action::KeepTotals(record) => self.book(books::Entry::Totals(record)),
            Action::Audit(kind) => {
                self.diary.note(&kind, &self.core);
                self.book(books::Entry::Audit(now.wall, kind));
            }
            Action::KeepAccount(account) => self.book(books::Entry::Account(account)),
            Action::Notify(record) => {
                let (allow, inbox) = (self.options.webhooks.allow.clone(), self.inbox.clone());
                self.errands.spawn(notify::call(*record, allow, self.clock.clone(), inbox));
            }
            Action::Announce { key, sequence } => self.announce(key, sequence),
            Action::Remember { tenant, key, sequence } => {
                self.ask_cache(cache::Ask::Remember { tenant, key, sequence });
            }
            Action::Repeat { job, key, place, result } => {
                self.ask_cache(cache::Ask::Repeat { job, key, place, result });
            }
            Action::ClearWork => {}
            action => {
                if let Some(hands) = &self.hands {
                    let _ = hands.actions.send(action);
                }
            }
        }
    }

    /// Waits for a task that panics and that nothing works without. May be dropped and called again.
    async fn panicked(&mut self) -> JoinError {
        loop {
            let of_leader = async {
                match &mut self.hands {
                    Some(hands) => hands.next_end().await,
                    None => None,
                }
            };
            let ended = tokio::select! {
                biased;
                Some(ended) = of_leader => ended,
                Some(ended) = self.tasks.join_next() => ended,
                Some(lost) = self.errands.next_end() => {
                    if let Some(event) = lost {
                        let inbox = self.inbox.clone();
                        self.errands.spawn(async move {
                            let _ = inbox.send(Input::Event(event)).await;
                        });
                    }
                    continue;
                }
                else => std::future::pending().await,
            };
            if let Err(error) = ended
                && error.is_panic()
            {
                return error;
            }
        }
    }

    /// Lets the books be written, gives the lease back, ends all tasks.
    async fn close(mut self, cancel: &CancellationToken) {
        if let Some(hands) = self.hands.take() {
            hands.close().await;
        }
        cancel.cancel();
        self.readers.clear();
        // The lease's task ends by itself, after giving the lease back; the others are cut off.
        let _ = tokio::time::timeout(Duration::from_millis(500), async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        self.tasks.shutdown().await;
        self.errands.shutdown().await;
    }
}
