//! What connects the processes of a simulation with their one server, and what can go wrong on the way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ternfleet_proto::TimeMs;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::SimBus;
use super::chance::Chance;
use super::check::Checker;
use super::cloud::Cloud;

/// An operation that gets no answer waits for so long at most.
const TIMEOUT_MS: u64 = 5_000;
/// Bytes of an HTTP connection that are on their way in one direction.
const SOCKET_BYTES: usize = 64 << 10;

/// The server, the network's faults, and the checker. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) bus: SimBus,
    /// Wall time in milliseconds, by the server's clock.
    pub(super) now: Arc<AtomicU64>,
    /// Since when nothing has been wrong, by the same clock.
    calm_since: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
    check: Arc<Mutex<Checker>>,
    cloud: Arc<Mutex<Cloud>>,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    faults: Faults,
    lines: Vec<LineState>,
    /// Where processes take HTTP connections.
    doors: Vec<Option<mpsc::UnboundedSender<DuplexStream>>>,
}

/// What is wrong with the server and with all lines to it.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) server_down: u32,
    pub(super) lose_requests: Vec<u64>,
    pub(super) lose_answers: Vec<u64>,
    pub(super) doubling: u32,
}

/// One process's connection.
#[derive(Debug, Default, Clone)]
pub(super) struct LineState {
    pub(super) cut: u32,
    /// The process is to be stopped when it has begun so many more operations.
    pub(super) stop_after: Option<u64>,
    /// It has been stopped in the middle of one.
    pub(super) stopped: bool,
}

impl State {
    fn is_up(&self, place: usize) -> bool {
        self.lines[place].cut == 0 && self.faults.server_down == 0
    }

    /// Whether something gets through that is lost at each of these rates.
    fn arrives(&mut self, place: usize, rates: impl FnOnce(&Faults) -> &Vec<u64>) -> bool {
        let State { chance, faults, .. } = &mut *self;
        let lost = rates(faults).iter().any(|one_in| chance.one_in(*one_in));
        !lost && self.is_up(place)
    }
}

impl Network {
    pub(super) fn new(seed: u64, lines: usize, begin: TimeMs, check: Checker, cloud: Cloud) -> Network {
        let now = Arc::new(AtomicU64::new(begin.0));
        let state = State {
            chance: Chance::new(seed ^ 0xfeed),
            faults: Faults::default(),
            lines: vec![LineState::default(); lines],
            doors: vec![None; lines],
        };
        Network {
            bus: SimBus::driven(Arc::clone(&now)),
            now,
            calm_since: Arc::new(AtomicU64::new(begin.0)),
            state: Arc::new(Mutex::new(state)),
            check: Arc::new(Mutex::new(check)),
            cloud: Arc::new(Mutex::new(cloud)),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// How long nothing has been wrong.
    pub(super) fn calm_ms(&self) -> u64 {
        self.now_ms() - self.calm_since.load(Ordering::Relaxed)
    }

    /// Something is wrong now.
    pub(super) fn disturb(&self) {
        self.calm_since.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Takes the connections to a process from now on.
    pub(super) fn open_door(&self, place: usize) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (door, connections) = mpsc::unbounded_channel();
        self.state().doors[place] = Some(door);
        connections
    }

    /// An HTTP connection; `None` when nobody listens there.
    pub(super) fn connect(&self, place: usize) -> Option<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(SOCKET_BYTES);
        self.state().doors[place].as_ref()?.send(theirs).ok()?;
        Some(ours)
    }

    /// The provider of pods.
    pub(super) fn cloud(&self) -> MutexGuard<'_, Cloud> {
        self.cloud.lock().expect("because no holder of this lock panics")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("because no holder of this lock panics")
    }

    /// The checker of invariants.
    pub(super) fn check(&self) -> MutexGuard<'_, Checker> {
        self.check.lock().expect("because no holder of this lock panics")
    }

    pub(super) fn chance<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.state().chance)
    }

    pub(super) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    pub(super) fn line(&self, place: usize, change: impl FnOnce(&mut LineState)) {
        change(&mut self.state().lines[place]);
    }

    pub(super) fn is_stopped(&self, place: usize) -> bool {
        self.state().lines[place].stopped
    }

    /// An operation begins: true if its process is to stop right here.
    pub(super) fn begins(&self, place: usize) -> bool {
        let line = &mut self.state().lines[place];
        let Some(left) = line.stop_after.as_mut() else { return false };
        *left = left.saturating_sub(1);
        if *left == 0 {
            line.stop_after = None;
            line.stopped = true;
        }
        line.stopped
    }

    pub(super) fn is_up(&self, place: usize) -> bool {
        self.state().is_up(place)
    }

    pub(super) fn request_arrives(&self, place: usize) -> bool {
        self.state().arrives(place, |faults| &faults.lose_requests)
    }

    pub(super) fn answer_arrives(&self, place: usize) -> bool {
        self.state().arrives(place, |faults| &faults.lose_answers)
    }

    pub(super) fn copies(&self) -> u32 {
        1 + u32::from(self.state().faults.doubling > 0)
    }

    /// One way, in milliseconds.
    pub(super) fn latency_ms(&self) -> u64 {
        self.chance(|chance| if chance.one_in(50) { chance.within(20, 400) } else { chance.within(1, 4) })
    }

    /// How long somebody waits for an answer that does not come, in milliseconds.
    pub(super) fn patience_ms(&self) -> u64 {
        self.chance(|chance| chance.within(100, TIMEOUT_MS))
    }
}
