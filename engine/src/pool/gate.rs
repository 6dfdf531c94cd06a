//! A counter that threads wait on: spin, then yield, then sleep. Barriers, job starts and job ends are made of it.

use super::sync::{AtomicU64, Condvar, Mutex, Ordering, YIELDS, spin_loop, yield_now};
use std::sync::PoisonError;

/// The state's low bits count sleepers, the others are the generation.
const SLEEPER_BITS: u32 = 16;

/// A generation that only grows; the sense of a sense-reversing barrier with more than one bit.
///
/// Generation and sleepers are one atomic number, so each change sees all changes before it: whoever opens the gate after
/// somebody went to sleep knows, and who goes to sleep after it was opened finds it open.
pub(crate) struct Gate {
    state: AtomicU64,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate { state: AtomicU64::new(0), lock: Mutex::new(()), bell: Condvar::new() }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> SLEEPER_BITS
    }

    /// Opens the gate for everyone who waits past the present generation.
    pub(crate) fn advance(&self) {
        let before = self.state.fetch_add(1 << SLEEPER_BITS, Ordering::AcqRel);
        if !before.is_multiple_of(1 << SLEEPER_BITS) {
            // A sleeper holds the lock from counting itself to lying down: with the lock taken once, it lies.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// Waits until the generation is another than `seen`; true if `give_up` said so first. `give_up` is called at intervals.
    pub(crate) fn wait_past(&self, seen: u64, spins: u32, give_up: impl Fn() -> bool) -> bool {
        for _ in 0..spins {
            if self.generation() != seen {
                return false;
            }
            spin_loop();
        }
        if spins > 0 {
            for _ in 0..YIELDS {
                if self.generation() != seen {
                    return false;
                }
                if give_up() {
                    return true;
                }
                yield_now();
            }
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.fetch_add(1, Ordering::AcqRel);
        let mut gave_up = false;
        while self.generation() == seen && !gave_up {
            // The time limit is for `give_up` alone; the bell never goes unheard.
            let limit = std::time::Duration::from_millis(50);
            guard = self.bell.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0;
            gave_up = give_up();
        }
        self.state.fetch_sub(1, Ordering::AcqRel);
        gave_up && self.generation() == seen
    }
}
