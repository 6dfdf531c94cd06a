//! Two times that must not be swapped: how much has passed, and what date it is.
//!
//! Decisions take monotonic time ([`MonoMs`]), which no operator and no time server can step. The wall clock
//! ([`TimeMs`]) serves records, deadlines and what people read. Cores are handed both as one [`Now`]; shells read it
//! from the [`Clock`] that they were given and from nowhere else, so a simulation can drive them on a paused runtime
//! and step the wall clock of each process by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::id::TimeMs;

/// A difference between the clocks that is a step and no slewing or rounding.
const STEP_MIN_MS: i64 = 500;

/// Milliseconds of one process's monotonic clock. Only differences of the same process mean anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonoMs(pub u64);

impl MonoMs {
    /// Time from `earlier` to `self`, zero when that is later.
    pub fn since(self, earlier: MonoMs) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub fn plus(self, span: Duration) -> MonoMs {
        MonoMs(self.0.saturating_add(span.as_millis() as u64))
    }
}

/// One moment by both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    pub mono: MonoMs,
    pub wall: TimeMs,
}

impl Now {
    /// What has passed since then, by the clock that cannot be stepped.
    pub fn since(self, earlier: MonoMs) -> Duration {
        self.mono.since(earlier)
    }

    /// The moment so much later, if nobody steps the wall clock meanwhile.
    #[must_use]
    pub fn plus(self, span: Duration) -> Now {
        Now { mono: self.mono.plus(span), wall: self.wall.plus(span) }
    }
}

/// A deadline by the wall clock that no step of that clock brings nearer: it has passed when the wall clock says so
/// and as much time has gone by as there was left when it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: TimeMs,
    not_before: MonoMs,
}

impl Deadline {
    pub fn new(now: Now, at: TimeMs) -> Deadline {
        Deadline { at, not_before: now.mono.plus(at.since(now.wall)) }
    }

    /// One that another machine has set, with the time that was left of it when it said so.
    pub fn told(now: Now, at: TimeMs, left: Duration) -> Deadline {
        Deadline { at, not_before: now.mono.plus(left) }
    }

    /// Time until it has passed, if nobody steps the wall clock.
    pub fn left(&self, now: Now) -> Duration {
        self.at.since(now.wall).max(self.not_before.since(now.mono))
    }

    pub fn passed(&self, now: Now) -> bool {
        now.wall >= self.at && now.mono >= self.not_before
    }
}

/// Notices when somebody steps the wall clock.
#[derive(Debug, Clone, Default)]
pub struct StepWatch {
    /// Wall minus monotonic time at the last look.
    offset_ms: Option<i64>,
}

impl StepWatch {
    /// By how much the wall clock has been stepped since the last look, if it has.
    pub fn look(&mut self, now: Now) -> Option<i64> {
        let offset_ms = now.wall.0 as i64 - now.mono.0 as i64;
        let by_ms = offset_ms - self.offset_ms.replace(offset_ms).unwrap_or(offset_ms);
        (by_ms.abs() >= STEP_MIN_MS).then_some(by_ms)
    }
}

/// Where a process reads the time. Cheap to clone; clones are the same clock.
#[derive(Debug, Clone)]
pub struct Clock {
    began: Instant,
    wall: Wall,
}

#[derive(Debug, Clone)]
enum Wall {
    Machine,
    /// What the wall clock said when this clock began, and by how much it was stepped since.
    Simulated {
        began: TimeMs,
        stepped_ms: Arc<AtomicI64>,
    },
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::machine()
    }
}

impl Clock {
    /// The clocks of this machine. Inside a paused runtime, time passes as the runtime says.
    pub fn machine() -> Clock {
        Clock { began: Instant::now(), wall: Wall::Machine }
    }

    /// A wall clock that begins at `wall`, advances with the runtime's time and is stepped by [`Clock::step`] alone.
    pub fn simulated(wall: TimeMs) -> Clock {
        Clock { began: Instant::now(), wall: Wall::Simulated { began: wall, stepped_ms: Arc::default() } }
    }

    /// Steps the wall clock of a simulated process, for all clones.
    pub fn step(&self, by_ms: i64) {
        if let Wall::Simulated { stepped_ms, .. } = &self.wall {
            stepped_ms.fetch_add(by_ms, Ordering::Relaxed);
        }
    }

    pub fn now(&self) -> Now {
        Now { mono: self.mono(), wall: self.wall() }
    }

    pub fn mono(&self) -> MonoMs {
        MonoMs(self.began.elapsed().as_millis() as u64)
    }

    /// For records, deadlines and people.
    pub fn wall(&self) -> TimeMs {
        match &self.wall {
            Wall::Machine => TimeMs::now(),
            Wall::Simulated { began, stepped_ms } => {
                let passed = began.plus(self.began.elapsed());
                TimeMs(passed.0.saturating_add_signed(stepped_ms.load(Ordering::Relaxed)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64, wall: u64) -> Now {
        Now { mono: MonoMs(mono), wall: TimeMs(wall) }
    }

    #[test]
    fn a_step_is_noticed_once_and_slewing_never() {
        let mut watch = StepWatch::default();
        let seen: Vec<Option<i64>> =
            [at(0, 9_000), at(200, 9_201), at(400, 19_401), at(600, 19_600), at(800, 4_800)]
                .into_iter()
                .map(|now| watch.look(now))
                .collect();
        assert_eq!(seen, [None, None, Some(10_000), None, Some(-15_000)]);
    }

    #[test]
    fn a_step_brings_no_deadline_nearer_and_a_step_back_defers_it() {
        let deadline = Deadline::new(at(1_000, 50_000), TimeMs(60_000));
        assert!(!deadline.passed(at(1_200, 90_000)), "the clock was stepped by 40 s");
        assert!(deadline.passed(at(11_000, 99_800)));
        assert!(!deadline.passed(at(11_000, 59_000)), "stepped back");
        assert!(Deadline::new(at(1_000, 50_000), TimeMs(40_000)).passed(at(1_000, 50_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_goes_with_the_runtime_and_is_stepped_alone() {
        let clock = Clock::simulated(TimeMs(5_000));
        let same = clock.clone();
        tokio::time::advance(Duration::from_secs(2)).await;
        same.step(-1_500);
        assert_eq!(clock.now(), at(2_000, 5_500));
    }
}
