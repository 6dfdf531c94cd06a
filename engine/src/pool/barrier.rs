//! The meeting point of a team: nobody leaves before everybody has come.
//!
//! Arrivals are counted within each cache group first and then across, so that on machines with several last-level caches
//! one line a group goes between caches, not one a thread. Leaving is a gate that all watch. A member that panics poisons
//! the barrier, so that the others give up instead of waiting forever.

use super::gate::Gate;
use super::sync::{AtomicBool, AtomicUsize, Ordering};

/// One group's count, on a cache line of its own.
#[repr(align(128))]
struct Group {
    size: usize,
    arrived: AtomicUsize,
}

/// A barrier for a fixed team.
pub(crate) struct Barrier {
    groups: Vec<Group>,
    groups_complete: AtomicUsize,
    gate: Gate,
    poisoned: AtomicBool,
}

/// Another member of the team panicked.
#[derive(Debug)]
pub(crate) struct Poisoned;

impl Barrier {
    /// For groups of these sizes.
    pub(crate) fn new(sizes: &[usize]) -> Barrier {
        let group = |&size: &usize| Group { size, arrived: AtomicUsize::new(0) };
        Barrier {
            groups: sizes.iter().map(group).collect(),
            groups_complete: AtomicUsize::new(0),
            gate: Gate::new(),
            poisoned: AtomicBool::new(false),
        }
    }

    /// What a member must know when it first waits in a run; all members read it between two meetings.
    pub(crate) fn generation(&self) -> u64 {
        self.gate.generation()
    }

    /// Waits for all; what any member wrote before, all may read after. Returns the next generation.
    pub(crate) fn wait(&self, group: usize, generation: u64, spins: u32) -> Result<u64, Poisoned> {
        let group = &self.groups[group];
        let group_complete = group.arrived.fetch_add(1, Ordering::AcqRel) + 1 == group.size;
        // Counts go back to zero before the gate opens, and nobody counts again until it has opened.
        if group_complete {
            group.arrived.store(0, Ordering::Relaxed);
        }
        if group_complete && self.groups_complete.fetch_add(1, Ordering::AcqRel) + 1 == self.groups.len() {
            self.groups_complete.store(0, Ordering::Relaxed);
            self.gate.advance();
        } else if self.gate.wait_past(generation, spins, || self.poisoned.load(Ordering::Relaxed)) {
            return Err(Poisoned);
        }
        Ok(generation.wrapping_add(1))
    }

    /// Lets everyone who waits, or will, give up.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }

    /// Ready for a new run, once no member is inside; true if it was poisoned.
    pub(crate) fn repair(&self) -> bool {
        if !self.poisoned.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.groups_complete.store(0, Ordering::SeqCst);
        self.groups.iter().for_each(|group| group.arrived.store(0, Ordering::SeqCst));
        true
    }
}
