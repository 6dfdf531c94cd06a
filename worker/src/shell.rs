//! The shell around the core: it waits for the first of many things, hands it to the core, does what the core says.
//!
//! One loop owns the core. Operations on the bus run as tasks of their own and come back as events; what must stay in
//! order (heartbeats, token streams) goes through one sender. The engine has its own thread.

mod backend;
mod count;
mod dead_man;
mod generations;
mod perform;
mod setup;
mod spans;
mod upstreams;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures::{FutureExt, StreamExt};
use ternfleet_engine::host;
use ternfleet_proto::bus::{Bus, BusStream, Note as BusNote};
use ternfleet_proto::message::Control;
use ternfleet_proto::{Clock, MonoMs, codec, table};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::core::{Action, Core, Event, HostFacts};
use crate::engine_thread::EngineThread;
use crate::metrics::Metrics;
use crate::options::{EngineKind, Options};
use crate::upstream::Upstream;
use crate::{Identity, LoadedModel, heap, http, model};
pub use backend::Computer;
use backend::{Backend, Local};
use dead_man::{DeadMan, Due};
use generations::Generations;
use perform::{Performer, Preparer};
use spans::Spans;
use upstreams::{Happened, Upstreams};

const TICK: Duration = Duration::from_millis(100);
/// How often the model's file and memory are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is still on its way when the core has ended may take this long.
const FINISH_MAX: Duration = Duration::from_millis(400);

/// As [`run_then`], with nothing to do once it is ready.
pub async fn run(bus: Arc<dyn Bus>, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    run_then(bus, options, shutdown, || {}).await
}

/// Runs a worker until `shutdown` is cancelled and everything has been handed back, or until it cannot continue. The
/// caller ends the process at once on a second signal, and closes the bus. `ready_now` is called once it takes work.
pub async fn run_then(
    bus: Arc<dyn Bus>,
    options: Options,
    shutdown: CancellationToken,
    ready_now: impl FnOnce() + Send,
) -> anyhow::Result<()> {
    let kind = options.check()?;
    heap::set_aside();
    let metrics = Arc::new(Metrics::new());
    let ready = Arc::new(AtomicBool::new(false));
    let http_stop = CancellationToken::new();
    let _stop_http = http_stop.clone().drop_guard();
    let server = match options.http {
        Some(address) => Some(http::serve(address, metrics.clone(), ready.clone(), http_stop.clone()).await?),
        None => None,
    };

    let Some((computer, model)) = begin(&options, kind, &shutdown).await? else { return Ok(()) };
    let mapped = model::MappedFile::of(&options, kind);
    let parts = Parts { clock: Clock::machine(), identity: Identity::new(&options), computer, model, mapped };
    let work = work(bus, &options, parts, metrics, ready.clone(), shutdown, ready_now);
    let outcome = work.await;
    ready.store(false, Ordering::Relaxed);
    http_stop.cancel();
    if let Some(server) = server {
        server.await.context("the HTTP server stopped with an error")?;
    }
    outcome
}

/// Makes ready what computes. None if `shutdown` comes first.
async fn begin(
    options: &Options,
    kind: EngineKind,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<(Computer, LoadedModel)>> {
    if kind == EngineKind::Openai {
        let begun = Upstream::begin(options, shutdown).await?;
        return Ok(begun.map(|(upstream, model)| (Computer::Server(upstream), model)));
    }
    let load_options = options.clone();
    let (engine, loaded) = EngineThread::start(move || model::load(&load_options, kind))
        .context("the engine's thread did not start")?;
    tokio::select! {
        loaded = loaded => {
            let model = loaded.context("the engine's thread died while it loaded the model")??;
            Ok(Some((Computer::Engine(engine), model)))
        }
        () = shutdown.cancelled() => Ok(None),
    }
}

/// What a worker is made of. A simulation brings its own.
#[derive(Debug)]
pub struct Parts {
    pub clock: Clock,
    pub identity: Identity,
    pub computer: Computer,
    pub model: LoadedModel,
    pub(crate) mapped: Option<model::MappedFile>,
}

impl Parts {
    /// A worker whose model lies in no file.
    pub fn new(clock: Clock, identity: Identity, engine: EngineThread, model: LoadedModel) -> Parts {
        Parts { clock, identity, computer: Computer::Engine(engine), model, mapped: None }
    }
}

/// Runs a worker made of these parts, without an HTTP server, until it is asked to end or cannot go on.
pub async fn run_with(
    bus: Arc<dyn Bus>,
    options: Options,
    parts: Parts,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    work(bus, &options, parts, Arc::new(Metrics::new()), Arc::default(), shutdown, || {}).await
}

async fn work(
    bus: Arc<dyn Bus>,
    options: &Options,
    parts: Parts,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
    ready_now: impl FnOnce() + Send,
) -> anyhow::Result<()> {
    let Parts { clock, identity, computer, mut model, mapped } = parts;
    for note in &model.notes {
        tracing::warn!(note, "about this model");
    }
    metrics.set_model(&model, options.price_usd_per_hour);
    let keeps_text = matches!(computer, Computer::Server(_));
    let config = setup::config(options, &identity, &model, keeps_text);
    let (profile, last_metrics, last_bus) = (config.profile.clone(), metrics.clone(), bus.clone());
    tracing::info!(
        worker = %identity.worker, pod = identity.pod, model = model.name, digest = model.digest,
        slots = model.slots, threads = model.threads, isa = model.isa,
        load_s = model.load.as_secs_f64(), prefill_tok_s = model.calibration.prefill_tok_s,
        decode_tok_s = model.calibration.decode_tok_s(), "the worker is ready"
    );

    let (events, inbox) = mpsc::unbounded_channel();
    let backend = match computer {
        Computer::Engine(engine) => {
            let language = Arc::new(model.language.take().context("an engine's model has a language")?);
            let (done, prepared) = mpsc::unbounded_channel();
            let generations = Generations::new(language.clone(), model.page_tokens);
            let preparer = Preparer { language, sampling: model.sampling, context: model.context, done };
            Backend::Engine(Box::new(Local { engine, generations, preparer, prepared }))
        }
        Computer::Server(upstream) => {
            Backend::Server(Box::new(Upstreams::start_watching(upstream, bus.clone(), ready.clone())))
        }
    };
    // Whoever has no tokenizer counts nothing.
    let _counting = match backend.language() {
        Some(language) => {
            let counting = subscribe(&bus, &table::count(&identity.worker)).await?;
            let serve = tokio::spawn(count::serve(bus.clone(), counting, language));
            Some(tokio_util::task::AbortOnDropHandle::new(serve))
        }
        None => None,
    };
    let performer = Performer::new(bus.clone(), identity.worker.clone(), events);
    let silence_max = (options.dead_man_ms > 0).then(|| Duration::from_millis(options.dead_man_ms));
    let shell = Shell {
        spans: Spans::new(identity.worker.clone()),
        core: Core::new(config),
        backend,
        control: subscribe(&bus, &table::control(&identity.worker)).await?,
        control_all: subscribe(&bus, table::control_all()).await?,
        performer,
        inbox,
        metrics,
        bus,
        actions: Vec::new(),
        bus_up: true,
        throttled_at_start: host::throttling().map_or(0, |t| t.throttled_us),
        dead_man: DeadMan::new(clock.mono(), silence_max),
        clock: clock.clone(),
        alive: Arc::new(Notify::new()),
        orphaned: false,
        over: None,
        mapped,
        looked_at: clock.mono(),
    };
    ready.store(true, Ordering::Relaxed);
    ready_now();
    let stopped = shutdown.clone();
    let outcome = shell.turn(shutdown).await;
    if let Ok(Ended::Orphaned) = outcome {
        let (how, base) = (options.end_myself, options.runpod_base.clone());
        let end = || {
            let base = base.clone();
            async move { ternfleet_cloud::end_myself(how, base.as_deref()).await }.boxed()
        };
        let tell = |failures| {
            last_metrics.dead_man_failed();
            dead_man::tell(last_bus.clone(), clock.wall(), profile.clone(), failures).boxed()
        };
        dead_man::insist(end, tell, stopped).await;
    }
    outcome.map(|_| ())
}

/// Why a worker's loop ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Asked,
    /// By the dead-man timer.
    Orphaned,
}

/// The bus may be down at this moment; a worker waits for it rather than die.
async fn subscribe(bus: &Arc<dyn Bus>, subject: &str) -> anyhow::Result<BusStream<BusNote>> {
    let mut tries = 0;
    loop {
        match bus.subscribe(subject).await {
            Ok(stream) => return Ok(stream),
            Err(fault) if tries >= 20 => {
                return Err(fault).with_context(|| format!("{subject} cannot be subscribed to"));
            }
            Err(_) => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
    }
}

struct Shell {
    clock: Clock,
    core: Core,
    spans: Spans,
    backend: Backend,
    performer: Performer,
    control: BusStream<BusNote>,
    control_all: BusStream<BusNote>,
    inbox: mpsc::UnboundedReceiver<Event>,
    metrics: Arc<Metrics>,
    bus: Arc<dyn Bus>,
    actions: Vec<Action>,
    bus_up: bool,
    throttled_at_start: u64,
    dead_man: DeadMan,
    /// An answer to the dead-man timer's question.
    alive: Arc<Notify>,
    orphaned: bool,
    /// Why nothing can be computed here any more.
    over: Option<String>,
    /// Until something is wrong with it.
    mapped: Option<model::MappedFile>,
    looked_at: MonoMs,
}

impl Shell {
    async fn turn(mut self, shutdown: CancellationToken) -> anyhow::Result<Ended> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut signalled = false;
        let outcome = loop {
            let going_on = tokio::select! {
                // In this order, so that a simulation can be repeated; what comes rarely comes first.
                biased;
                () = shutdown.cancelled(), if !signalled => {
                    signalled = true;
                    tracing::info!("draining: returning jobs with their checkpoints");
                    self.handle(Event::Signal)
                }
                _ = ticks.tick() => self.on_tick(),
                Some(note) = self.control.next() => self.on_control(&note),
                Some(note) = self.control_all.next() => self.on_control(&note),
                () = self.alive.notified() => {
                    self.dead_man.heard(self.clock.mono());
                    true
                }
                Some(event) = self.inbox.recv() => self.handle(event),
                happened = self.backend.next(&self.metrics) => match happened {
                    Ok(Happened::Events(events)) => self.handle_all(events),
                    Ok(Happened::Over(why)) => self.on_over(why),
                    Err(fault) => break Err(fault),
                },
            };
            if !going_on {
                break match self.over.take() {
                    Some(why) => Err(anyhow::anyhow!(why)),
                    None => Ok(if self.orphaned { Ended::Orphaned } else { Ended::Asked }),
                };
            }
        };
        self.performer.finish(FINISH_MAX).await;
        self.backend.stop().await;
        outcome
    }

    /// Hands an event to the core and does what it says. False when the worker has ended.
    fn handle(&mut self, event: Event) -> bool {
        if let Event::WorkPulled { .. } = event {
            self.dead_man.heard(self.clock.mono());
        }
        let mut actions = std::mem::take(&mut self.actions);
        self.core.on(self.clock.now(), event, &mut actions);
        let mut going_on = true;
        let mut follow_ups = Vec::new();
        for action in actions.drain(..) {
            match action {
                Action::Exit => going_on = false,
                Action::Note(note) => {
                    self.metrics.observe(&note);
                    self.spans.note(&note);
                }
                Action::StartGeneration { slot, work, kept } => {
                    self.spans.start(&work);
                    self.backend.start(slot, work, kept, &self.performer);
                }
                Action::CancelGeneration { slot } => {
                    if let Some(event) = self.backend.cancel(slot) {
                        follow_ups.push(event);
                    }
                }
                Action::PublishResult { slot, mut result } => {
                    self.spans.sign(&mut result);
                    self.performer.perform(Action::PublishResult { slot, result });
                }
                other => self.performer.perform(other),
            }
        }
        self.actions = actions;
        going_on && self.handle_all(follow_ups)
    }

    fn handle_all(&mut self, events: Vec<Event>) -> bool {
        events.into_iter().all(|event| self.handle(event))
    }

    /// Gives everything back and ends.
    fn on_over(&mut self, why: String) -> bool {
        if self.over.is_some() {
            return true;
        }
        tracing::error!(why, "nothing can be computed here any more: jobs go back");
        self.over = Some(why);
        self.handle(Event::Signal)
    }

    fn on_control(&mut self, note: &BusNote) -> bool {
        match codec::decode::<Control>(&note.payload) {
            Ok(control) => {
                self.dead_man.heard(self.clock.mono());
                self.handle(Event::Order(control))
            }
            Err(fault) => {
                tracing::warn!(subject = note.subject, %fault, "an order could not be read");
                true
            }
        }
    }

    fn on_tick(&mut self) -> bool {
        let up = self.bus.connected();
        if up != self.bus_up {
            self.bus_up = up;
            if !self.handle(Event::Bus { up }) {
                return false;
            }
        }
        let throttled_us =
            host::throttling().map_or(0, |t| t.throttled_us).saturating_sub(self.throttled_at_start);
        let host = HostFacts { throttled_ms: throttled_us / 1000 };
        let going_on = self.handle(Event::Tick { host }) && self.look_at_machine();
        let age = self.core.checkpoint_age(self.clock.now());
        self.metrics.copy(&self.core, age, Duration::from_micros(throttled_us), up);
        match self.dead_man.due(self.clock.mono()) {
            Due::Ask => self.ask_whether_anybody_is_there(),
            Due::End if !self.orphaned => {
                self.orphaned = true;
                tracing::error!("no message from a coordinator for too long: this worker exits");
                return going_on && self.handle(Event::Signal);
            }
            Due::End | Due::Nothing => {}
        }
        going_on
    }

    /// What this worker runs from may go away: its model's file, and memory.
    fn look_at_machine(&mut self) -> bool {
        let now = self.clock.mono();
        if now.since(self.looked_at) < LOOK_EVERY {
            return true;
        }
        self.looked_at = now;
        let out_of_memory = heap::ran_out().then(|| "out of memory: this worker exits".to_owned());
        let Some(reason) = out_of_memory.or_else(|| self.mapped.as_ref()?.fault()) else { return true };
        tracing::error!(
            reason,
            "this machine failed its checks: its jobs move to other workers, and this worker exits"
        );
        self.mapped = None;
        self.handle(Event::HostFault { reason })
    }

    fn ask_whether_anybody_is_there(&self) {
        let (bus, alive, worker) = (self.bus.clone(), self.alive.clone(), self.performer.worker().clone());
        self.performer.spawn(async move {
            if dead_man::ask(bus, worker, Duration::from_secs(2)).await {
                alive.notify_one();
            }
        });
    }
}
