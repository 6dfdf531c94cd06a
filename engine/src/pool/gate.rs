//! A counter that threads wait on: spin, then yield, then sleep. Barriers, job starts and job ends are made of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Turns given to other threads between spinning and sleeping.
const YIELDS: u32 = 64;

/// A generation that only grows; the sense of a sense-reversing barrier with more than one bit.
pub(crate) struct Gate {
    generation: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            generation: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            lock: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Opens the gate for everyone who waits past the present generation.
    pub(crate) fn advance(&self) {
        // Sequentially consistent against `sleepers` in `wait_past`: either this sees the sleeper, or the sleeper sees
        // the new generation before it sleeps.
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// Waits until the generation is another than `seen`; true if `give_up` said so first. `give_up` is asked now and then.
    pub(crate) fn wait_past(&self, seen: u32, spins: u32, give_up: impl Fn() -> bool) -> bool {
        for _ in 0..spins {
            if self.generation.load(Ordering::Acquire) != seen {
                return false;
            }
            std::hint::spin_loop();
        }
        if spins > 0 {
            for _ in 0..YIELDS {
                if self.generation.load(Ordering::Acquire) != seen {
                    return false;
                }
                if give_up() {
                    return true;
                }
                std::thread::yield_now();
            }
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut gave_up = false;
        while self.generation.load(Ordering::SeqCst) == seen && !gave_up {
            // The time limit is for `give_up` alone; the bell never goes unheard.
            let limit = std::time::Duration::from_millis(50);
            guard = self.bell.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0;
            gave_up = give_up();
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        gave_up && self.generation.load(Ordering::SeqCst) == seen
    }
}
