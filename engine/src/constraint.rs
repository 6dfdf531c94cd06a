//! Constraints at work: where each sequence is in its grammar, and the threads that work out what may come next.
//!
//! The caller's thread moves a tracker on by the token that was drawn, which takes microseconds. The mask of the token after
//! it takes longer, and a grammar's first use longest: both are done on threads of their own, which are not pinned,
//! while the pool computes the forward pass. The head waits for a mask, or works it out where no thread has begun to; the
//! pass waits for nothing: a sequence whose grammar is not ready yet holds its last token back.

use crate::Refused;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use ternfleet_text::constraint::{Constraint, DeadEnd, Mask, Matcher};

/// Most threads for masks: one works out some ten thousand a second.
const MOST_THREADS: usize = 4;
/// Pinned threads that one thread for masks serves.
const SERVED: usize = 16;

/// What a head may draw from.
#[derive(Debug, Clone)]
pub(crate) enum Allowed {
    /// A token that must come.
    One([u32; 1]),
    /// A set.
    Known(Arc<Mask>),
    /// A set that is being worked out.
    Later(Arc<Pending>),
}

/// The tokens that a head may draw from, known.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule<'a> {
    Any,
    Few(&'a [u32]),
    Many(&'a Mask),
}

impl Allowed {
    /// The set, waited for. A dead end allows nothing.
    pub(crate) fn rule(&self) -> Rule<'_> {
        match self {
            Allowed::One(token) => Rule::Few(token),
            Allowed::Known(mask) => Rule::of(mask),
            Allowed::Later(pending) => pending.wait().as_ref().map_or(Rule::Few(&[]), Rule::of),
        }
    }
}

impl<'a> Rule<'a> {
    fn of(mask: &'a Mask) -> Rule<'a> {
        mask.few().map_or(Rule::Many(mask), Rule::Few)
    }

    pub(crate) fn allows(self, token: u32) -> bool {
        match self {
            Rule::Any => true,
            Rule::Few(tokens) => tokens.binary_search(&token).is_ok(),
            Rule::Many(mask) => mask.allows(token),
        }
    }
}

/// A mask that is being worked out, by whoever comes first.
#[derive(Debug)]
pub(crate) struct Pending {
    place: Arc<Place>,
    claimed: AtomicBool,
    mask: OnceLock<Result<Mask, DeadEnd>>,
}

impl Pending {
    fn new(place: &Arc<Place>) -> Arc<Pending> {
        Arc::new(Pending { place: Arc::clone(place), claimed: AtomicBool::new(false), mask: OnceLock::new() })
    }

    /// Works it out, unless somebody does.
    fn work(&self) {
        if !self.claimed.swap(true, Ordering::SeqCst) {
            let _ = self.mask.set(guarded(|| self.place.mask()));
        }
    }

    /// The mask. A head that comes before any thread had the time for it works it out itself, rather than wait for one.
    fn wait(&self) -> &Result<Mask, DeadEnd> {
        self.work();
        self.mask.wait()
    }
}

/// What a thread shares with the sequence that it works for.
#[derive(Debug)]
struct Place {
    constraint: Arc<Constraint>,
    /// `None` until the grammar is compiled and the kept output taken.
    matcher: Mutex<Option<Matcher>>,
    /// What must come first; set when the tracker may be used.
    start: OnceLock<Result<VecDeque<u32>, DeadEnd>>,
    /// What each token of the kept output may be, until that is proved.
    kept: Mutex<Vec<Allowed>>,
}

/// One sequence's constraint.
#[derive(Debug)]
pub(crate) struct Tracker {
    place: Arc<Place>,
    /// Whether `start` is in `forced`.
    started: bool,
    /// Tokens that must come next and are not in the sequence yet.
    forced: VecDeque<u32>,
    /// What may come after them.
    mask: Arc<Pending>,
    dead: Option<DeadEnd>,
}

/// Work for the threads.
enum Task {
    /// Compile, take what was kept, work out the first mask.
    Start { kept: Vec<u32>, mask: Arc<Pending> },
    /// Work out the mask where the matcher stands.
    Mask(Arc<Pending>),
}

/// The threads. Starts have one of their own, since a grammar may take a thousand times as long as a mask.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    count: usize,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    starts: Sender<Task>,
    masks: Sender<Task>,
    threads: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    /// Threads beside `n_pinned` of the pool; none is started before the first constraint.
    pub(crate) fn new(n_pinned: usize) -> Threads {
        Threads { count: n_pinned.div_ceil(SERVED).min(MOST_THREADS), running: None }
    }

    /// Begins to track a sequence whose output begins with `kept`.
    pub(crate) fn track(&mut self, constraint: Arc<Constraint>, kept: Vec<u32>) -> Result<Tracker, Refused> {
        let (matcher, kept_rules) = (Mutex::new(None), Mutex::new(Vec::new()));
        let place = Arc::new(Place { constraint, matcher, start: OnceLock::new(), kept: kept_rules });
        let mask = Pending::new(&place);
        let running = match &self.running {
            Some(running) => running,
            None => {
                let running = Running::start(self.count)
                    .map_err(|error| Refused::Constraint { reason: error.to_string() })?;
                self.running.insert(running)
            }
        };
        let task = Task::Start { kept, mask: Arc::clone(&mask) };
        // The receiver lives as long as the sender: its thread ends when this is dropped.
        let _ = running.starts.send(task);
        Ok(Tracker { place, started: false, forced: VecDeque::new(), mask, dead: None })
    }

    fn send(&self, task: Task) {
        if let Some(running) = &self.running {
            let _ = running.masks.send(task);
        }
    }
}

impl Running {
    fn start(count: usize) -> std::io::Result<Running> {
        let mut threads = Vec::new();
        let mut serve = |name: &str, tasks: &Arc<Mutex<Receiver<Task>>>| -> std::io::Result<()> {
            let tasks = Arc::clone(tasks);
            let thread = std::thread::Builder::new().name(name.to_owned());
            threads.push(thread.spawn(move || {
                loop {
                    // The lock is held while waiting: one thread waits for a task, the others for their turn to.
                    let Ok(task) = lock(&tasks).recv() else { return };
                    task.run();
                }
            })?);
            Ok(())
        };
        let (starts, tasks) = channel();
        serve("grammar", &Arc::new(Mutex::new(tasks)))?;
        let (masks, tasks) = channel();
        let tasks = Arc::new(Mutex::new(tasks));
        for _ in 0..count {
            serve("mask", &tasks)?;
        }
        Ok(Running { starts, masks, threads })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(Running { starts, masks, threads }) = self.running.take() {
            drop((starts, masks));
            for thread in threads {
                // A task catches its panics, so joining fails only if the runtime itself broke.
                let _ = thread.join();
            }
        }
    }
}

impl Task {
    fn run(self) {
        match self {
            Task::Start { kept, mask } => {
                // The sequence is gone already: nobody waits.
                if Arc::strong_count(&mask) == 1 {
                    return;
                }
                let place = &mask.place;
                match guarded(|| place.follow(&kept)) {
                    Ok((matcher, forced, rules)) => {
                        *lock(&place.matcher) = Some(matcher);
                        *lock(&place.kept) = rules;
                        let _ = place.start.set(Ok(forced));
                        mask.work();
                    }
                    Err(dead) => {
                        let _ = place.start.set(Err(dead));
                    }
                }
            }
            Task::Mask(mask) => mask.work(),
        }
    }
}

/// A panic must not leave a head waiting forever.
fn guarded<T>(work: impl FnOnce() -> Result<T, DeadEnd>) -> Result<T, DeadEnd> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(Err(DeadEnd::TooComplex))
}

impl Place {
    /// The mask where the matcher stands. Where the automata that sequences share have grown to their limit, this one gets
    /// its own, so that how it ends depends on itself alone.
    fn mask(&self) -> Result<Mask, DeadEnd> {
        let mut place = lock(&self.matcher);
        let Some(matcher) = place.as_mut() else { return Err(DeadEnd::Uncompiled) };
        self.mask_of(matcher)
    }

    fn mask_of(&self, matcher: &mut Matcher) -> Result<Mask, DeadEnd> {
        match matcher.mask() {
            Err(DeadEnd::TooComplex) => {
                (*matcher, _) = self.constraint.matcher_alone(matcher.taken())?;
                matcher.mask()
            }
            outcome => outcome,
        }
    }

    /// A matcher that has taken the kept output, the tokens that must come next, and what each kept one might have been.
    fn follow(&self, kept: &[u32]) -> Result<(Matcher, VecDeque<u32>, Vec<Allowed>), DeadEnd> {
        let (mut matcher, mut forced) = self.constraint.matcher(&[])?;
        let mut rules = Vec::with_capacity(kept.len());
        for &token in kept {
            match forced.pop_front() {
                Some(only) if only != token => return Err(DeadEnd::Foreign),
                Some(only) => rules.push(Allowed::One([only])),
                None => {
                    rules.push(Allowed::Known(Arc::new(self.mask_of(&mut matcher)?)));
                    forced = matcher.take(token)?.into();
                }
            }
        }
        Ok((matcher, forced, rules))
    }
}

impl Tracker {
    /// Whether a head may draw for this sequence: its grammar is compiled.
    pub(crate) fn is_ready(&self) -> bool {
        self.place.start.get().is_some()
    }

    /// Waits until it is ready.
    pub(crate) fn wait(&self) {
        self.place.start.wait();
    }

    /// Takes note of how it started.
    fn begin(&mut self) {
        if self.started {
            return;
        }
        match self.place.start.get() {
            Some(Ok(forced)) => self.forced.extend(forced),
            Some(Err(dead)) => self.dead = Some(*dead),
            None => return,
        }
        self.started = true;
    }

    /// Takes the next token that must come, which the caller appends to the sequence.
    pub(crate) fn next_forced(&mut self) -> Option<u32> {
        self.begin();
        self.forced.pop_front()
    }

    /// What the kept token may be before which there are `n_before`.
    pub(crate) fn allowed_before(&self, n_before: usize) -> Option<Allowed> {
        lock(&self.place.kept).get(n_before).cloned()
    }

    /// The kept output is proved.
    pub(crate) fn forget_kept(&self) {
        lock(&self.place.kept).clear();
    }

    /// Why it could not begin.
    pub(crate) fn failed_start(&mut self) -> Option<DeadEnd> {
        self.begin();
        self.dead
    }

    /// What the next token is drawn from.
    pub(crate) fn allowed(&self) -> Allowed {
        match self.forced.front() {
            Some(&token) => Allowed::One([token]),
            None => Allowed::Later(Arc::clone(&self.mask)),
        }
    }

    /// Why nothing more can come.
    pub(crate) fn dead_end(&mut self) -> Option<DeadEnd> {
        self.begin();
        let by_mask = || self.mask.mask.get().and_then(|mask| mask.as_ref().err().copied());
        if !self.forced.is_empty() {
            return None;
        }
        self.dead.or_else(by_mask)
    }

    /// Moves on by a token that was drawn.
    pub(crate) fn take(&mut self, token: u32, threads: &Threads) {
        // A forced one was taken by the matcher long ago, and the mask after the last of them is being worked out.
        if self.forced.pop_front().is_some() {
            return;
        }
        let outcome = guarded(|| match lock(&self.place.matcher).as_mut() {
            Some(matcher) => matcher.take(token),
            None => Err(DeadEnd::Uncompiled),
        });
        match outcome {
            Ok(forced) => {
                self.forced.extend(forced);
                self.mask = Pending::new(&self.place);
                threads.send(Task::Mask(Arc::clone(&self.mask)));
            }
            Err(dead) => self.dead = Some(dead),
        }
    }
}
