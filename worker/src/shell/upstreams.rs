//! Jobs at somebody else's server: a task for each, and what they and the server's watch say, as events of the core.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::Work;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::perform::fetch;
use crate::core::{End, Event, Kept, SlotId, Steps, Tokens};
use crate::metrics::Metrics;
use crate::upstream::{self, Job, Notice, Said, Upstream, Watch};

/// What is taken at once of all that has been said.
const SAID_MAX: usize = 1024;

/// What came of waiting.
pub(super) enum Happened {
    Events(Vec<Event>),
    /// Nothing can be computed here any more: in good order, for this reason.
    Over(String),
}

/// Each run of a job has a number, so that the last words of one that was cancelled count for nothing.
type Saying = (SlotId, u64, Said);

pub(super) struct Upstreams {
    job: Job,
    watch: Watch,
    bus: Arc<dyn Bus>,
    running: HashMap<SlotId, (u64, AbortOnDropHandle<()>)>,
    next_run: u64,
    say: mpsc::UnboundedSender<Saying>,
    said: mpsc::UnboundedReceiver<Saying>,
    notices: mpsc::UnboundedReceiver<Notice>,
    /// Whether the worker takes work, for those who ask over HTTP.
    ready: Arc<AtomicBool>,
    silence: Duration,
    /// When something was last heard of a job, or none was under way.
    heard_at: Instant,
    /// Until when the server's time has been counted.
    counted_to: Instant,
    /// Parts of steps that are not told yet.
    steps_due: f64,
}

impl Upstreams {
    pub(super) fn start_watching(upstream: Upstream, bus: Arc<dyn Bus>, ready: Arc<AtomicBool>) -> Upstreams {
        let (say, said) = mpsc::unbounded_channel();
        let (tell, notices) = mpsc::unbounded_channel();
        let Upstream { client, facts, server, silence } = upstream;
        let watch = Watch::start(client.clone(), facts.clone(), server, silence, tell);
        let now = Instant::now();
        Upstreams {
            job: Job { client, facts, asker: watch.asker() },
            watch,
            bus,
            running: HashMap::new(),
            next_run: 0,
            say,
            said,
            notices,
            ready,
            silence,
            heard_at: now,
            counted_to: now,
            steps_due: 0.0,
        }
    }

    pub(super) fn start(&mut self, slot: SlotId, work: Box<Work>, kept: Kept) {
        let (bus, job, say, run) = (self.bus.clone(), self.job.clone(), self.say.clone(), self.next_run);
        self.next_run += 1;
        if self.running.is_empty() {
            (self.heard_at, self.counted_to) = (Instant::now(), Instant::now());
        }
        let task = tokio::spawn(async move {
            // Nobody listens only when the worker has ended.
            let tell = |said| drop(say.send((slot, run, said)));
            match fetch(&*bus, *work).await {
                Ok(generation) => upstream::run_job(&job, generation, kept, &tell).await,
                Err(why) => tell(Said::StartFailed(why)),
            }
        });
        self.running.insert(slot, (run, AbortOnDropHandle::new(task)));
    }

    /// Dropping the task hangs up, which ends the request at the server.
    pub(super) fn cancel(&mut self, slot: SlotId) -> Option<Event> {
        drop(self.running.remove(&slot)?);
        Some(Event::Ended { slot, end: End::Cancelled })
    }

    pub(super) async fn next(&mut self, metrics: &Metrics) -> Happened {
        let mut sayings = Vec::new();
        tokio::select! {
            biased;
            Some(notice) = self.notices.recv() => return self.on_notice(notice, metrics),
            _ = self.said.recv_many(&mut sayings, SAID_MAX) => {}
        }
        Happened::Events(self.on_said(sayings, metrics))
    }

    fn on_notice(&mut self, notice: Notice, metrics: &Metrics) -> Happened {
        match notice {
            Notice::Present => {
                self.ready.store(true, Ordering::Relaxed);
                if self.running.is_empty() {
                    self.heard_at = Instant::now();
                } else if self.heard_at.elapsed() >= self.silence {
                    self.heard_at = Instant::now();
                    self.watch.hangs();
                    return Happened::Events(Vec::new());
                }
                let mut events = vec![Event::Server { ready: true }];
                events.extend(self.steps(0, 0, BTreeMap::new(), metrics));
                Happened::Events(events)
            }
            Notice::Away(why) => {
                tracing::error!(
                    why,
                    "the server is away: its jobs go back, and none is taken until it returns"
                );
                self.ready.store(false, Ordering::Relaxed);
                Happened::Events(vec![Event::Server { ready: false }])
            }
            Notice::Changed(why) => Happened::Over(format!(
                "the server is not the one that it was: {why}. Start the worker again"
            )),
        }
    }

    fn on_said(&mut self, sayings: Vec<Saying>, metrics: &Metrics) -> Vec<Event> {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut tokens: Vec<(SlotId, Tokens)> = Vec::new();
        let mut made: BTreeMap<SlotId, u32> = BTreeMap::new();
        let (mut prefilled, mut decoded) = (0, 0);
        let concurrency = self.running.len();
        for (slot, run, said) in sayings {
            if self.running.get(&slot).is_none_or(|(current, _)| *current != run) {
                continue;
            }
            self.heard_at = Instant::now();
            match said {
                Said::Busy => {}
                Said::Started { prompt_tokens, kept } => {
                    starts.push(Event::Started { slot, prompt_tokens, kept });
                }
                Said::Prefilled(count) => prefilled += u64::from(count),
                Said::Tokens(more) => {
                    let count = more.ids.len() as u32;
                    *made.entry(slot).or_default() += count;
                    decoded += u64::from(count);
                    match tokens.last_mut() {
                        Some((last, before)) if *last == slot && joins(before, &more) => join(before, more),
                        _ => tokens.push((slot, more)),
                    }
                }
                Said::StartFailed(why) => {
                    self.running.remove(&slot);
                    ends.push(Event::StartFailed { slot, why });
                }
                Said::Ended(end) => {
                    self.running.remove(&slot);
                    ends.push(Event::Ended { slot, end });
                }
            }
        }
        let mut events = starts;
        events.extend(self.steps_of(concurrency, prefilled, decoded, made, metrics));
        events.extend(tokens.into_iter().map(|(slot, tokens)| Event::Tokens { slot, tokens }));
        events.extend(ends);
        events
    }

    fn steps(
        &mut self,
        prefilled: u64,
        decoded: u64,
        made: BTreeMap<SlotId, u32>,
        metrics: &Metrics,
    ) -> Option<Event> {
        self.steps_of(self.running.len(), prefilled, decoded, made, metrics)
    }

    /// The server's time since it was last counted, while something was asked of it. In a step each sequence makes a token.
    fn steps_of(
        &mut self,
        concurrency: usize,
        prefilled: u64,
        decoded: u64,
        made: BTreeMap<SlotId, u32>,
        metrics: &Metrics,
    ) -> Option<Event> {
        let now = Instant::now();
        let busy = now.duration_since(std::mem::replace(&mut self.counted_to, now));
        if concurrency == 0 {
            return None;
        }
        self.steps_due += decoded as f64 / concurrency as f64;
        let steps = self.steps_due as u32;
        self.steps_due -= f64::from(steps);
        let steps = Steps {
            steps,
            prefill_tokens: prefilled,
            decode_tokens: decoded,
            sequences: decoded,
            busy,
            overlapping: true,
            ..Steps::default()
        };
        metrics.observe_steps(&steps);
        Some(Event::Steps { steps, made: made.into_iter().collect() })
    }

    pub(super) async fn stop(self) {
        drop(self.running);
        self.watch.end().await;
    }
}

/// Two parts of an output make one, unless something stands between them.
fn joins(before: &Tokens, more: &Tokens) -> bool {
    before.choice == more.choice
        && before.calls.is_empty()
        && more.calls.is_empty()
        && more.prompt_ids.is_empty()
}

/// Text that is whole with the first part alone is so no more when the second lags behind.
fn join(before: &mut Tokens, more: Tokens) {
    before.ids.extend(more.ids);
    before.text.push_str(&more.text);
    before.logprobs.extend(more.logprobs);
    before.shown_ids.extend(more.shown_ids);
    before.is_whole = more.is_whole;
}
