//! Gate and barrier of the thread pool under loom: every order of steps, and every value that the memory model allows.
//!
//! The very files of the pool are compiled here once more, over loom's atomics, locks and cells. A data race, a missed
//! wake-up or a member that leaves early fails. Long patience (spinning) adds orders without adding kinds of them, so it is
//! kept at one turn. Not here: giving up when a member panics, which rests on a clock (`pool.rs` tests it on real threads).
#![allow(unsafe_code)] // loom's cells hand out pointers, and check each access.

mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Condvar, Mutex};
    pub(crate) use loom::thread::yield_now;
    pub(crate) const YIELDS: u32 = 1;
}

#[allow(dead_code, unreachable_pub)]
#[path = "../src/pool/barrier.rs"]
mod barrier;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/pool/gate.rs"]
mod gate;

use barrier::Barrier;
use gate::Gate;
use loom::cell::UnsafeCell;
use loom::sync::Arc;

/// Orders with at most so many switches away from a thread that could have continued: all bugs known of barriers need fewer.
const PREEMPTIONS: usize = 3;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// A team of `groups` by member meets `rounds` times; each round everyone writes a cell of his own, meets, reads all cells,
/// and meets.
fn meets(groups: &'static [usize], sizes: &'static [usize], rounds: u32, spins: u32) {
    check(move || {
        let shared =
            Arc::new((Barrier::new(sizes), groups.iter().map(|_| UnsafeCell::new(0)).collect::<Vec<_>>()));
        let member = move |index: usize, shared: &(Barrier, Vec<UnsafeCell<u32>>)| {
            let (barrier, cells) = shared;
            let mut generation = barrier.generation();
            for round in 1..=rounds {
                // SAFETY: loom checks that nobody else touches the cell meanwhile: that is the test.
                cells[index].with_mut(|cell| unsafe { *cell = round });
                generation = barrier.wait(groups[index], generation, spins).expect("nobody panicked");
                // SAFETY: as above.
                let seen = cells.iter().map(|cell| cell.with(|cell| unsafe { *cell }));
                assert!(seen.into_iter().all(|value| value == round));
                if round < rounds {
                    generation = barrier.wait(groups[index], generation, spins).expect("nobody panicked");
                }
            }
        };
        let others: Vec<_> = (1..groups.len())
            .map(|index| {
                let shared = shared.clone();
                loom::thread::spawn(move || member(index, &shared))
            })
            .collect();
        member(0, &shared);
        others.into_iter().for_each(|thread| thread.join().expect("a member that ends"));
    });
}

#[test]
fn two_members_meet_again_and_again_asleep() {
    meets(&[0, 0], &[2], 2, 0);
}

#[test]
fn two_members_meet_again_and_again_awake() {
    meets(&[0, 0], &[2], 2, 1);
}

#[test]
fn two_cache_groups_meet() {
    meets(&[0, 1], &[1, 1], 2, 0);
}

#[test]
fn a_pair_and_a_single_meet() {
    meets(&[0, 0, 1], &[2, 1], 1, 0);
}

#[test]
fn a_gate_never_forgets_a_sleeper() {
    check(|| {
        let shared = Arc::new((Gate::new(), UnsafeCell::new(0)));
        let seen = shared.0.generation();
        let opener = shared.clone();
        let opener = loom::thread::spawn(move || {
            // SAFETY: loom checks it.
            opener.1.with_mut(|job| unsafe { *job = 7 });
            opener.0.advance();
        });
        assert!(!shared.0.wait_past(seen, 0, || false));
        // SAFETY: loom checks it.
        assert_eq!(shared.1.with(|job| unsafe { *job }), 7);
        opener.join().expect("an opener that ends");
    });
}
