//! What the machine could do at best: memory read rate and multiply-add rate of an engine's own pinned threads.
//!
//! The ceilings that `bench` divides by. They interleave with steps of the same engine, so that both see the same machine.
#![allow(unsafe_code)] // Members of the pool write, then read, disjoint parts of one region.

use crate::Engine;
use crate::memory::Region;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes that one pass reads in all: more than one process can keep in a shared cache.
const PASS_BYTES: usize = 1 << 30;
/// Rounds of multiply-adds of one measurement: about 50 ms, long enough for the clock to settle under them.
const ROUNDS: u64 = 16_000_000;

/// Meetings of one measurement of the barrier.
const MEETINGS: u32 = 20_000;

/// Seconds that one meeting of all threads takes; 0 for one thread.
pub fn barrier_s(engine: &mut Engine) -> f64 {
    let (pool, _) = engine.machine();
    let nanoseconds = AtomicU64::new(0);
    pool.run(&|member| {
        member.wait();
        let start = Instant::now();
        (0..MEETINGS).for_each(|_| member.wait());
        if member.index == 0 {
            nanoseconds.store(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    });
    nanoseconds.into_inner() as f64 * 1e-9 / f64::from(MEETINGS)
}

/// Memory to read, touched first by the threads that read it.
#[derive(Debug)]
pub struct Probe {
    region: Region,
    first_touch_gb_s: f64,
}

impl Probe {
    /// Takes 1 GiB of memory.
    pub fn new(engine: &mut Engine) -> std::io::Result<Probe> {
        let region = Region::new(PASS_BYTES, true)?;
        let (pool, _) = engine.machine();
        let start = Instant::now();
        pool.run(&|member| {
            let pages = member.share(PASS_BYTES / 4096);
            // SAFETY: members' shares are disjoint.
            unsafe { region.write::<u8>(pages.start * 4096..pages.end * 4096) }.fill(1);
        });
        let first_touch_gb_s = PASS_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9;
        Ok(Probe { region, first_touch_gb_s })
    }

    /// How fast the system gave and all threads filled fresh memory, in 10^9 bytes a second. Loading a model cannot be faster:
    /// its weights are packed into such memory. On virtual machines that hand free pages back to their host it may be below
    /// one, and then it is what loading waits for.
    pub fn first_touch_gb_s(&self) -> f64 {
        self.first_touch_gb_s
    }

    /// How fast all threads read the memory, in 10^9 bytes a second: the faster of two passes, one that asks ahead as the
    /// kernels do and one that leaves it to the CPU. Intel's cores are faster with the one, AMD's with the other.
    pub fn read_gb_s(&self, engine: &mut Engine) -> f64 {
        let pass = |engine: &mut Engine, ask| {
            let (pool, kernels) = engine.machine();
            let start = Instant::now();
            let seen = AtomicU64::new(0);
            pool.run(&|member| {
                let pages = member.share(PASS_BYTES / 4096);
                // SAFETY: nothing writes into the region any more.
                let bytes = unsafe { self.region.read::<u8>(pages.start * 4096..pages.end * 4096) };
                seen.fetch_or(kernels.read_all(bytes, ask), Ordering::Relaxed);
            });
            assert_ne!(seen.into_inner(), 0, "the memory was filled with ones");
            PASS_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        pass(engine, true).max(pass(engine, false))
    }

    /// Multiply-adds a second of all threads together, by the instruction that the ternary kernel uses.
    pub fn mac_per_s(&self, engine: &mut Engine) -> f64 {
        let (pool, kernels) = engine.machine();
        let rounds = if kernels.isa() == crate::Isa::Scalar { ROUNDS / 10 } else { ROUNDS };
        let start = Instant::now();
        let done = AtomicU64::new(0);
        pool.run(&|_| {
            done.fetch_add(kernels.multiply_all(rounds), Ordering::Relaxed);
        });
        done.into_inner() as f64 / start.elapsed().as_secs_f64()
    }
}
