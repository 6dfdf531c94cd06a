//! The engine's threads: one a core, pinned, entered once a forward step, meeting at a barrier between operations.
//!
//! The caller's thread is not one of them: it hands a job over and sleeps until all members are done, so that it need not
//! be pinned. Members spin for a bounded time, then yield, then sleep. Used by loading, the forward pass and the probes.
#![allow(unsafe_code)] // The job crosses threads as a pointer, and affinity is a system call; each block says why it holds.

mod barrier;
mod gate;
mod shared;
mod sync;

use barrier::Barrier;
pub(crate) use gate::Gate;
pub(crate) use shared::{Plain, Shared};
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Spins at a barrier when every member has a core of its own.
const PATIENT_SPINS: u32 = 2000;
/// Spins when members share cores: the one waited for needs this very core.
const HASTY_SPINS: u32 = 20;

type Job = dyn Fn(&Member<'_>) + Sync;

struct Team {
    count: usize,
    /// By member: its cache group.
    groups: Vec<usize>,
    spins: u32,
    /// The job of the present run; written only while every member waits at `start`.
    job: UnsafeCell<Option<*const Job>>,
    start: Gate,
    barrier: Barrier,
    done: Gate,
    finished: AtomicUsize,
    quit: AtomicBool,
}

// SAFETY: `job` is written by `Pool::run` before `start` advances and after `done` did, and read by members in between
// only; the gates order those accesses. Everything else is atomic.
unsafe impl Sync for Team {}
// SAFETY: as above; the pointer in `job` is only followed during a run, while the caller keeps its target alive.
unsafe impl Send for Team {}

/// A team of pinned threads.
pub(crate) struct Pool {
    team: Arc<Team>,
    threads: Vec<JoinHandle<()>>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Pool({} threads)", self.team.count)
    }
}

/// One thread's view of a run.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) index: usize,
    team: &'a Team,
    generation: Cell<u64>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Team({} threads)", self.count)
    }
}

impl Pool {
    /// Starts `count` threads and pins them to `cpus` in turn, if there are as many CPUs. Each CPU comes with the number of
    /// its cache group.
    pub(crate) fn new(count: usize, cpus: &[(usize, usize)]) -> std::io::Result<Pool> {
        assert!(count > 0, "a pool has at least one thread");
        let n_cpus = cpus.len();
        let shares_cores = count > n_cpus;
        let (groups, sizes) = cache_groups(count, if shares_cores { &[] } else { cpus });
        let team = Arc::new(Team {
            count,
            groups,
            spins: if shares_cores { HASTY_SPINS } else { PATIENT_SPINS },
            job: UnsafeCell::new(None),
            start: Gate::new(),
            barrier: Barrier::new(&sizes),
            done: Gate::new(),
            finished: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
        });
        let mut pool = Pool { team: team.clone(), threads: Vec::new(), warnings: Vec::new() };
        let (report, reports) = std::sync::mpsc::channel();
        let cpus = (0..count).map(|index| if shares_cores { None } else { cpus.get(index).copied() });
        for (index, cpu) in cpus.enumerate() {
            let (team, report) = (team.clone(), report.clone());
            let thread = std::thread::Builder::new().name(format!("engine-{index}")).spawn(move || {
                let warning = cpu.and_then(|(cpu, _)| pin(cpu).err().map(|error| (cpu, error)));
                let sent = report.send(warning);
                drop(report);
                if sent.is_ok() {
                    serve(&team, index);
                }
            })?;
            pool.threads.push(thread);
        }
        drop(report);
        for (cpu, error) in reports.iter().flatten() {
            pool.warnings
                .push(format!("a thread could not be pinned to CPU {cpu} ({error}): speed may vary"));
        }
        if shares_cores {
            pool.warnings.push(format!(
                "{count} threads share {n_cpus} CPUs and are not pinned: fewer threads would be faster"
            ));
        }
        Ok(pool)
    }

    /// Threads.
    pub(crate) fn count(&self) -> usize {
        self.threads.len()
    }

    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every member runs `job` once; returns when all have.
    ///
    /// # Panics
    /// If `job` panicked on any member.
    pub(crate) fn run(&mut self, job: &(dyn Fn(&Member<'_>) + Sync)) {
        let team = &*self.team;
        let generation = team.done.generation();
        // SAFETY: `&mut self` and the wait below make this the only run; all members wait at `start`, so none reads `job`.
        // The lifetime is stretched for storage only: `run` returns after the last member has left `job`.
        unsafe {
            *team.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(&Member<'_>) + Sync + '_), *const Job>(job));
        }
        team.start.advance();
        team.done.wait_past(generation, 0, || false);
        if team.barrier.repair() {
            panic!("because a pool thread panicked: its message stands above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.team.quit.store(true, Ordering::SeqCst);
        self.team.start.advance();
        for thread in self.threads.drain(..) {
            // A member catches its job's panics, so joining fails only if the runtime itself broke.
            let _ = thread.join();
        }
    }
}

fn serve(team: &Team, index: usize) {
    let mut generation = 0;
    loop {
        team.start.wait_past(generation, team.spins, || false);
        generation = generation.wrapping_add(1);
        if team.quit.load(Ordering::SeqCst) {
            return;
        }
        let member = Member { index, team, generation: Cell::new(team.barrier.generation()) };
        // SAFETY: `run` stored the job before this generation of `start` and keeps it alive until `done` advances.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
            let job = (*team.job.get()).expect("because a run stores its job before it starts");
            (*job)(&member);
        }));
        if outcome.is_err() {
            team.barrier.poison();
        }
        if team.finished.fetch_add(1, Ordering::SeqCst) + 1 == team.count {
            team.finished.store(0, Ordering::SeqCst);
            team.done.advance();
        }
    }
}

impl Member<'_> {
    pub(crate) fn count(&self) -> usize {
        self.team.count
    }

    /// Waits until every member has come here: what any of them wrote before, all may read after.
    ///
    /// # Panics
    /// If another member panicked, instead of waiting for it forever.
    pub(crate) fn wait(&self) {
        let team = self.team;
        if team.count == 1 {
            return;
        }
        match team.barrier.wait(team.groups[self.index], self.generation.get(), team.spins) {
            Ok(generation) => self.generation.set(generation),
            Err(barrier::Poisoned) => panic!("because another pool thread panicked"),
        }
    }

    /// This member's contiguous part of `n` equal pieces of work; the parts cover all of them.
    pub(crate) fn share(&self, n: usize) -> Range<usize> {
        self.share_of(self.index, n)
    }

    /// The `index`-th member's part.
    pub(crate) fn share_of(&self, index: usize, n: usize) -> Range<usize> {
        let count = self.team.count;
        n * index / count..n * (index + 1) / count
    }

    /// All members, this one first, then those of its cache group, then the others.
    pub(crate) fn nearest(&self) -> impl Iterator<Item = usize> + '_ {
        let (count, groups) = (self.team.count, &self.team.groups);
        let all = move |near: bool| {
            let others = (0..count).map(move |step| (self.index + step) % count);
            others.filter(move |&other| (groups[other] == groups[self.index]) == near)
        };
        all(true).chain(all(false))
    }

    /// This member's pieces when dealt out in turn: better balanced where pieces differ.
    pub(crate) fn deal(&self, n: usize) -> impl Iterator<Item = usize> + use<> {
        (self.index..n).step_by(self.team.count)
    }
}

/// Each member's group and each group's size, groups numbered as they come; one group where members are not pinned.
fn cache_groups(count: usize, cpus: &[(usize, usize)]) -> (Vec<usize>, Vec<usize>) {
    let mut names: Vec<usize> = Vec::new();
    let mut groups = vec![0; count];
    for (group, &(_, name)) in groups.iter_mut().zip(cpus) {
        *group = names.iter().position(|&known| known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
    }
    let sizes = (0..names.len().max(1)).map(|group| groups.iter().filter(|&&g| g == group).count());
    (groups.clone(), sizes.collect())
}

/// Pins the calling thread to one CPU.
fn pin(cpu: usize) -> std::io::Result<()> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    // SAFETY: `cpu` is below CPU_SETSIZE, and the set is a local that outlives the calls.
    let code = unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set)
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn what_is_written_before_the_barrier_is_read_after_it() {
        for (count, cpus) in [(1, vec![(0, 0)]), (2, vec![]), (3, vec![(0, 0), (0, 8), (0, 0)]), (7, vec![])]
        {
            let mut pool = Pool::new(count, &cpus).unwrap();
            let cells: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..20 {
                pool.run(&|member| {
                    for round in 1..20u64 {
                        cells[member.index].store(round, Ordering::Relaxed);
                        member.wait();
                        assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == round));
                        member.wait();
                    }
                });
            }
        }
    }

    #[test]
    fn members_are_grouped_by_cache() {
        assert_eq!(cache_groups(3, &[]), (vec![0, 0, 0], vec![3]));
        let cpus = [(0, 5), (1, 5), (8, 9), (9, 9), (2, 5)];
        assert_eq!(cache_groups(5, &cpus), (vec![0, 0, 1, 1, 0], vec![3, 2]));
        assert_eq!(cache_groups(2, &cpus), (vec![0, 0], vec![2]));
    }

    #[test]
    fn those_of_the_own_cache_group_are_nearest() {
        let mut pool = Pool::new(4, &[(0, 5), (0, 5), (0, 9), (0, 9)]).unwrap();
        pool.run(&|member| {
            let expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 3, 0, 1], [3, 2, 0, 1]][member.index];
            assert_eq!(member.nearest().collect::<Vec<_>>(), expected);
        });
    }

    #[test]
    fn shares_cover_everything_once() {
        let mut pool = Pool::new(3, &[]).unwrap();
        for n in [0, 1, 2, 3, 100] {
            let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|member| {
                for i in member.share(n).chain(member.deal(n)) {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 2));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3, &[(0, 0)]).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|member| {
                assert!(member.index != 1, "one member fails");
                member.wait();
            });
        }));
        assert!(outcome.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(&|member| {
            member.wait();
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 3);
    }
}
