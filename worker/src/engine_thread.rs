//! The engine's own thread: commands in, one report a step out to the async shell.
//!
//! Token ids only; text is made by the receiver, away from the pinned threads. The channel out is bounded: a shell
//! that falls behind slows the engine down instead of filling memory.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ternfleet_engine::{Event, HeadCounters, Refused, Request, SequenceId, StopReason, TokenLogprob, Usage};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::core::{SlotId, Steps};
use crate::generator::Generator;

/// Reports that may wait for the shell.
const REPORTS: usize = 256;

/// What the shell asks of the engine.
#[derive(Debug)]
pub enum Command {
    /// Requests by the number of their choice; all of them are taken, or none.
    Submit { slot: SlotId, requests: Vec<(u16, Request)> },
    /// One choice, or all of them.
    Cancel { slot: SlotId, choice: Option<u16> },
}

/// A choice of a job.
pub type Place = (SlotId, u16);

/// What happened in one step, and to the commands before it.
#[derive(Debug, Default)]
pub struct Report {
    pub admitted: Vec<SlotId>,
    pub refused: Vec<(SlotId, Refused)>,
    /// In the order of generation.
    pub tokens: Vec<(Place, u32, Option<TokenLogprob>)>,
    /// Of prompts, before the first token of their choice.
    pub prompts: Vec<(Place, Vec<TokenLogprob>)>,
    pub ended: Vec<(Place, StopReason, Usage)>,
    /// A sequence came to no numbers, and the canary no longer says what it said at the start.
    pub unsound: bool,
    pub steps: Steps,
}

/// The running thread. When it is dropped, the thread ends after its present step.
#[derive(Debug)]
pub struct EngineThread {
    commands: Option<mpsc::UnboundedSender<Command>>,
    pub reports: mpsc::Receiver<Report>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EngineThread {
    /// Starts the thread; `load` runs on it, since an engine's memory belongs near the thread that drives it. What
    /// `load` returns beside the generator comes back through the receiver.
    pub fn start<T, F>(load: F) -> std::io::Result<(EngineThread, oneshot::Receiver<anyhow::Result<T>>)>
    where
        T: Send + 'static,
        F: FnOnce() -> anyhow::Result<(Box<dyn Generator>, T)> + Send + 'static,
    {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::channel(REPORTS);
        let (loaded, about) = oneshot::channel();
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || match load() {
            Ok((generator, facts)) => {
                if loaded.send(Ok(facts)).is_ok() {
                    futures::executor::block_on(Drive::new(generator).run(inbox, outbox, None));
                }
            }
            Err(fault) => {
                // Nobody listens only if the shell is gone already.
                let _ = loaded.send(Err(fault));
            }
        })?;
        Ok((EngineThread { commands: Some(commands), reports, thread: Some(thread) }, about))
    }

    /// Drives `generator` in a task of this runtime instead, a step every `pace`: for runtimes on simulated time, where
    /// a thread would take real time.
    pub fn simulated(generator: Box<dyn Generator + Send>, pace: Duration) -> EngineThread {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::channel(REPORTS);
        tokio::spawn(Drive::new(generator).run(inbox, outbox, Some(pace)));
        EngineThread { commands: Some(commands), reports, thread: None }
    }

    /// False when the thread is gone.
    pub fn send(&self, command: Command) -> bool {
        self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok())
    }

    /// Ends the thread and waits for its present step.
    pub fn stop(mut self) {
        self.commands = None;
        self.reports.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the engine was seen by the shell as a closed channel.
            let _ = thread.join();
        }
    }
}

/// A generator and the jobs that it works on.
struct Drive<G: ?Sized> {
    sequences: BTreeMap<Place, SequenceId>,
    places: HashMap<SequenceId, Place>,
    events: Vec<Event>,
    head: HeadCounters,
    generator: Box<G>,
}

impl<G: Generator + ?Sized> Drive<G> {
    fn new(generator: Box<G>) -> Drive<G> {
        Drive {
            sequences: BTreeMap::new(),
            places: HashMap::new(),
            events: Vec::new(),
            head: HeadCounters::default(),
            generator,
        }
    }

    /// Until nobody sends commands or reads reports any more. A step waits for `pace` first, if there is one.
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Command>,
        outbox: mpsc::Sender<Report>,
        pace: Option<Duration>,
    ) {
        loop {
            let mut report = Report::default();
            loop {
                let next = if self.has_nothing_to_do(&report) {
                    inbox.recv().await.ok_or(TryRecvError::Disconnected)
                } else {
                    inbox.try_recv()
                };
                match next {
                    Ok(command) => self.take(command, &mut report),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Some(pace) = pace {
                tokio::time::sleep(pace).await;
            }
            self.step(&mut report);
            if outbox.send(report).await.is_err() {
                return;
            }
        }
    }

    fn has_nothing_to_do(&self, report: &Report) -> bool {
        self.generator.is_idle() && report.refused.is_empty()
    }

    fn take(&mut self, command: Command, report: &mut Report) {
        match command {
            Command::Submit { slot, requests } => {
                let mut taken = Vec::new();
                let all = requests.into_iter().try_for_each(|(choice, request)| {
                    taken.push(((slot, choice), self.generator.submit(request)?));
                    Ok(())
                });
                match all {
                    Ok(()) => report.admitted.push(slot),
                    Err(refused) => {
                        for (_, id) in taken.drain(..) {
                            self.generator.cancel(id);
                        }
                        report.refused.push((slot, refused));
                    }
                }
                for (place, id) in taken {
                    self.places.insert(id, place);
                    // An earlier run of the job may not have ended yet: nothing more is heard of it.
                    if let Some(earlier) = self.sequences.insert(place, id) {
                        self.places.remove(&earlier);
                    }
                }
            }
            Command::Cancel { slot, choice } => {
                let (first, last) = choice.map_or((0, u16::MAX), |choice| (choice, choice));
                for (_, &id) in self.sequences.range((slot, first)..=(slot, last)) {
                    self.generator.cancel(id);
                }
            }
        }
    }

    fn step(&mut self, report: &mut Report) {
        let mut events = std::mem::take(&mut self.events);
        let stats = self.generator.step(&mut events);
        let head = self.generator.head_counters();
        report.steps = Steps {
            steps: 1,
            prefill_tokens: stats.prefill_tokens as u64,
            decode_tokens: stats.decode_tokens as u64,
            sequences: stats.sequences as u64,
            busy: stats.elapsed,
            head: head.since(std::mem::replace(&mut self.head, head)),
            speculation: stats.speculation,
            prefix_cache_hits: 0,
            overlapping: false,
        };
        let broken = |event: &Event| matches!(event, Event::Finished { reason: StopReason::NotFinite, .. });
        if events.iter().any(broken) {
            // The model's fault or the machine's? What runs continues meanwhile, and is reported after it.
            report.unsound = !self.generator.is_sound(&mut events);
        }
        for event in events.drain(..) {
            match event {
                Event::Token { sequence, token, logprob } => {
                    if let Some(&place) = self.places.get(&sequence) {
                        report.tokens.push((place, token, logprob));
                    }
                }
                Event::Prompt { sequence, logprobs } => {
                    if let Some(&place) = self.places.get(&sequence) {
                        report.prompts.push((place, logprobs));
                    }
                }
                Event::Finished { sequence, reason, usage } => {
                    report.steps.prefix_cache_hits += u64::from(usage.cached_tokens > 0);
                    if let Some(place) = self.places.remove(&sequence) {
                        self.sequences.remove(&place);
                        report.ended.push((place, reason, usage));
                    }
                }
            }
        }
        self.events = events;
    }
}
