//! The engine's own thread: commands in by a std channel, one report a step out to the async shell.
//!
//! Token ids only; text is made by the receiver, away from the pinned threads. The channel out is bounded: a shell
//! that falls behind slows the engine down instead of filling memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc;

use ternfleet_engine::{Event, HeadCounters, Refused, Request, SequenceId, StopReason, TokenLogprob, Usage};
use tokio::sync::{mpsc as async_mpsc, oneshot};

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
    commands: Option<mpsc::Sender<Command>>,
    pub reports: async_mpsc::Receiver<Report>,
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
        let (commands, inbox) = mpsc::channel();
        let (outbox, reports) = async_mpsc::channel(REPORTS);
        let (loaded, about) = oneshot::channel();
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || match load() {
            Ok((generator, facts)) => {
                if loaded.send(Ok(facts)).is_ok() {
                    drive(generator, &inbox, &outbox);
                }
            }
            Err(fault) => {
                // Nobody listens only if the shell is gone already.
                let _ = loaded.send(Err(fault));
            }
        })?;
        Ok((EngineThread { commands: Some(commands), reports, thread: Some(thread) }, about))
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

fn drive(
    mut generator: Box<dyn Generator>,
    inbox: &mpsc::Receiver<Command>,
    outbox: &async_mpsc::Sender<Report>,
) {
    let mut sequences: BTreeMap<Place, SequenceId> = BTreeMap::new();
    let mut places: HashMap<SequenceId, Place> = HashMap::new();
    let mut events = Vec::new();
    let mut head = HeadCounters::default();
    loop {
        let mut report = Report::default();
        loop {
            let next = if generator.is_idle() && report.refused.is_empty() {
                inbox.recv().map_err(|_| mpsc::TryRecvError::Disconnected)
            } else {
                inbox.try_recv()
            };
            match next {
                Ok(Command::Submit { slot, requests }) => {
                    let mut taken = Vec::new();
                    let all = requests.into_iter().try_for_each(|(choice, request)| {
                        taken.push(((slot, choice), generator.submit(request)?));
                        Ok(())
                    });
                    match all {
                        Ok(()) => report.admitted.push(slot),
                        Err(refused) => {
                            for (_, id) in taken.drain(..) {
                                generator.cancel(id);
                            }
                            report.refused.push((slot, refused));
                        }
                    }
                    for (place, id) in taken {
                        places.insert(id, place);
                        // An earlier run of the job may not have ended yet: nothing more is heard of it.
                        if let Some(earlier) = sequences.insert(place, id) {
                            places.remove(&earlier);
                        }
                    }
                }
                Ok(Command::Cancel { slot, choice }) => {
                    let (first, last) = choice.map_or((0, u16::MAX), |choice| (choice, choice));
                    for (_, &id) in sequences.range((slot, first)..=(slot, last)) {
                        generator.cancel(id);
                    }
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
        let stats = generator.step(&mut events);
        report.steps = Steps {
            steps: 1,
            prefill_tokens: stats.prefill_tokens as u64,
            decode_tokens: stats.decode_tokens as u64,
            sequences: stats.sequences as u64,
            busy: stats.elapsed,
            head: generator.head_counters().since(head),
            speculation: stats.speculation,
            prefix_cache_hits: 0,
        };
        head = generator.head_counters();
        let broken = |event: &Event| matches!(event, Event::Finished { reason: StopReason::NotFinite, .. });
        if events.iter().any(broken) {
            // The model's fault or the machine's? What runs continues meanwhile, and is reported after it.
            report.unsound = !generator.is_sound(&mut events);
        }
        for event in events.drain(..) {
            match event {
                Event::Token { sequence, token, logprob } => {
                    if let Some(&place) = places.get(&sequence) {
                        report.tokens.push((place, token, logprob));
                    }
                }
                Event::Prompt { sequence, logprobs } => {
                    if let Some(&place) = places.get(&sequence) {
                        report.prompts.push((place, logprobs));
                    }
                }
                Event::Finished { sequence, reason, usage } => {
                    report.steps.prefix_cache_hits += u64::from(usage.cached_tokens > 0);
                    if let Some(place) = places.remove(&sequence) {
                        sequences.remove(&place);
                        report.ended.push((place, reason, usage));
                    }
                }
            }
        }
        if outbox.blocking_send(report).is_err() {
            return;
        }
    }
}
