//! Which job is where: every assignment from its publication to its end, with the sums that follow from it.
//!
//! A job moves to a worker by [`Flights::depart`] and from it by [`Flights::arrive`], and by nothing else. So what a
//! worker holds, what a batch has in flight and what its budget has promised cannot disagree.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_proto::{Epoch, MonoMs, UsdMicro};

use super::event::{BatchSlot, JobRef, WorkerSlot};

/// Where an assignment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being published.
    Leaving,
    /// Stored in the worker's queue, or already running there.
    Handed,
    /// Being taken back.
    Withdrawing,
}

/// What a job needs of a worker and of its batch's budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub tokens: u32,
    /// What it was estimated to cost at this worker when it was assigned.
    pub cost: UsdMicro,
}

/// A job that a worker has.
#[derive(Debug, Clone, PartialEq)]
pub struct Flight {
    worker: WorkerSlot,
    size: Size,
    pub epoch: Epoch,
    pub stage: Stage,
    /// Of the message in the shard's stream, when known.
    pub sequence: Option<u64>,
    pub since: MonoMs,
    /// Seen in a slot, in a heartbeat.
    pub running: bool,
    /// Tokens generated, as last heard.
    pub generated: u32,
    /// When `generated` last grew, or the assignment.
    pub progress_at: MonoMs,
    /// What was billed of it.
    pub used: Used,
    /// Why it is being taken back counts as a fault of the job.
    pub blame: bool,
}

/// What a job has used of its worker: time of the engine, and tokens for workers that do not tell the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub engine_us: u64,
    pub tokens: u32,
}

impl Used {
    /// The counts are cumulative: what is new in `heard` since the last time. Never less than nothing.
    pub fn take(&mut self, heard: Used) -> Used {
        let fresh = Used {
            engine_us: heard.engine_us.saturating_sub(self.engine_us),
            tokens: heard.tokens.saturating_sub(self.tokens),
        };
        self.engine_us += fresh.engine_us;
        self.tokens += fresh.tokens;
        fresh
    }
}

impl Flight {
    /// On its way to a worker.
    pub fn leaving(now: MonoMs, worker: WorkerSlot, epoch: Epoch, size: Size) -> Flight {
        Flight {
            worker,
            size,
            epoch,
            stage: Stage::Leaving,
            sequence: None,
            since: now,
            running: false,
            generated: 0,
            progress_at: now,
            used: Used::default(),
            blame: false,
        }
    }

    /// Found running at a worker; what it has used up to now was another leader's to bill.
    pub fn found(
        now: MonoMs,
        worker: WorkerSlot,
        epoch: Epoch,
        size: Size,
        generated: u32,
        used: Used,
    ) -> Flight {
        let stage = Stage::Handed;
        Flight { stage, running: true, generated, used, ..Flight::leaving(now, worker, epoch, size) }
    }

    pub fn worker(&self) -> WorkerSlot {
        self.worker
    }

    /// It is in the worker's queue or runs there, and nobody takes it back.
    pub fn is_handed(&self) -> bool {
        self.stage == Stage::Handed
    }
}

/// What a worker has.
#[derive(Debug, Default)]
struct Held {
    jobs: BTreeSet<JobRef>,
    tokens: u64,
}

/// What a batch has in flight or is about to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    pub jobs: u32,
    pub tokens: u64,
    /// What its jobs in flight are estimated to cost, each at the price of its worker.
    pub cost: UsdMicro,
}

impl Committed {
    fn add(&mut self, size: Size) {
        self.tokens += u64::from(size.tokens);
        self.cost += size.cost;
    }

    fn subtract(&mut self, size: Size) {
        self.tokens = self.tokens.saturating_sub(u64::from(size.tokens));
        self.cost = (self.cost - size.cost).max(UsdMicro::ZERO);
    }
}

/// All jobs that workers have.
#[derive(Debug, Default)]
pub struct Flights {
    flights: BTreeMap<JobRef, Flight>,
    held: BTreeMap<WorkerSlot, Held>,
    committed: BTreeMap<BatchSlot, Committed>,
}

impl Flights {
    pub fn get(&self, job: JobRef) -> Option<&Flight> {
        self.flights.get(&job)
    }

    pub fn get_mut(&mut self, job: JobRef) -> Option<&mut Flight> {
        self.flights.get_mut(&job)
    }

    /// The job goes to a worker. One that is in flight already stays where it is.
    pub fn depart(&mut self, job: JobRef, flight: Flight) {
        if self.flights.contains_key(&job) {
            return;
        }
        let committed = self.committed.entry(job.batch).or_default();
        committed.jobs += 1;
        committed.add(flight.size);
        let held = self.held.entry(flight.worker).or_default();
        held.jobs.insert(job);
        held.tokens += u64::from(flight.size.tokens);
        self.flights.insert(job, flight);
    }

    /// The job leaves its worker, with an answer or without.
    pub fn arrive(&mut self, job: JobRef) -> Option<Flight> {
        let flight = self.flights.remove(&job)?;
        if let Some(committed) = self.committed.get_mut(&job.batch) {
            committed.jobs -= 1;
            committed.subtract(flight.size);
        }
        if let Some(held) = self.held.get_mut(&flight.worker) {
            held.jobs.remove(&job);
            held.tokens = held.tokens.saturating_sub(u64::from(flight.size.tokens));
        }
        Some(flight)
    }

    /// Sets part of a budget aside for a job whose worker is being chosen.
    pub fn reserve(&mut self, batch: BatchSlot, size: Size) {
        self.committed.entry(batch).or_default().add(size);
    }

    /// Undoes [`Flights::reserve`]: the job departs now, or has to wait.
    pub fn release(&mut self, batch: BatchSlot, size: Size) {
        if let Some(committed) = self.committed.get_mut(&batch) {
            committed.subtract(size);
        }
    }

    pub fn committed(&self, batch: BatchSlot) -> Committed {
        self.committed.get(&batch).copied().unwrap_or_default()
    }

    pub fn of_batch(&self, batch: BatchSlot) -> impl Iterator<Item = (JobRef, &Flight)> {
        let whole = JobRef { batch, index: 0 }..=JobRef { batch, index: u32::MAX };
        self.flights.range(whole).map(|(job, flight)| (*job, flight))
    }

    /// In the order in which they were assigned, batch by batch.
    pub fn of_worker(&self, worker: WorkerSlot) -> impl DoubleEndedIterator<Item = JobRef> {
        self.held.get(&worker).into_iter().flat_map(|held| held.jobs.iter().copied())
    }

    /// Jobs and tokens that a worker has.
    pub fn held(&self, worker: WorkerSlot) -> (u32, u64) {
        self.held.get(&worker).map_or((0, 0), |held| (held.jobs.len() as u32, held.tokens))
    }

    /// Nothing will be asked about this batch again.
    pub fn close_batch(&mut self, batch: BatchSlot) {
        let jobs: Vec<JobRef> = self.of_batch(batch).map(|(job, _)| job).collect();
        for job in jobs {
            self.arrive(job);
        }
        self.committed.remove(&batch);
    }

    /// A worker that has nothing is gone.
    pub fn close_worker(&mut self, worker: WorkerSlot) {
        if self.held.get(&worker).is_some_and(|held| held.jobs.is_empty()) {
            self.held.remove(&worker);
        }
    }

    /// True if every sum is that of the flights.
    #[cfg(test)]
    pub fn sums_agree(&self) -> bool {
        let mut again = Flights::default();
        for (job, flight) in &self.flights {
            again.depart(*job, flight.clone());
        }
        let held = self.held.iter().all(|(worker, held)| {
            let other = again.held(*worker);
            (held.jobs.len() as u32, held.tokens) == other
                && again.of_worker(*worker).eq(held.jobs.iter().copied())
        });
        held && again.held.keys().all(|worker| self.held.contains_key(worker))
            && self.committed.iter().all(|(batch, sum)| again.committed(*batch) == *sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_moves_the_sums_agree(steps in prop::collection::vec((0u32..3, 0u32..6, 0u32..4, 0u8..3), 0..200)) {
            let mut flights = Flights::default();
            for (batch, index, worker, what) in steps {
                let job = JobRef { batch: BatchSlot(batch), index };
                let size = Size { tokens: 10 + index, cost: UsdMicro(i64::from(worker)) };
                match what {
                    0 => flights.depart(job, Flight::leaving(MonoMs(0), WorkerSlot(worker), Epoch(1), size)),
                    1 => drop(flights.arrive(job)),
                    _ => {
                        flights.reserve(job.batch, size);
                        flights.release(job.batch, size);
                    }
                }
                prop_assert!(flights.sums_agree(), "{flights:?}");
            }
        }
    }

    #[test]
    fn cumulative_counts_are_taken_once_however_often_and_in_whatever_order_they_come() {
        let mut used = Used::default();
        let heard = [300, 100, 300, 500].map(|engine_us| used.take(Used { engine_us, tokens: 0 }).engine_us);
        assert_eq!(heard, [300, 0, 0, 200]);
    }
}
