//! The fleet as the router sees it, with the prices that budgets are held against. Taken when jobs are to be assigned,
//! and discarded after that.

use ternfleet_proto::UsdMicro;

use super::event::WorkerSlot;
use super::fleet::Fleet;
use super::flights::Flights;
use crate::route::{self, EngineKind, FleetSnapshot, WorkerLoad};

/// The fleet as the router sees it.
pub(super) struct Snapshot {
    pub(super) fleet: FleetSnapshot,
    /// Speed of each kind, by its number.
    kinds: Vec<f64>,
    /// Slots of each kind that neither hold a job nor await one that was drawn, by its number.
    free: Vec<i64>,
    /// Price of a million tokens at each worker, in micro-dollars, not finite while nothing was measured.
    kappas: Vec<f64>,
    /// Lowest known price of each kind, by its number.
    kappa_min: Vec<f64>,
    /// Highest known price of all.
    pub(super) kappa_max: f64,
}

impl Snapshot {
    /// `pods` is one more than the highest number of a pod.
    pub(super) fn take(fleet: &Fleet, flights: &Flights, pods: usize) -> Self {
        let mut pod_rates = vec![0.0; pods];
        let any_quarantined = fleet.any_shut_out();
        for worker in fleet.workers.values().filter(|worker| worker.takes_work()) {
            pod_rates[worker.pod.0 as usize] += worker.rate.mean_tok_s();
        }
        let mut taken = Self {
            fleet: FleetSnapshot { workers: Vec::with_capacity(fleet.workers.len()) },
            kinds: vec![0.0; fleet.kinds.len()],
            free: vec![0; fleet.kinds.len()],
            kappas: Vec::with_capacity(fleet.workers.len()),
            kappa_min: vec![f64::INFINITY; fleet.kinds.len()],
            kappa_max: 0.0,
        };
        for (slot, worker) in &fleet.workers {
            if !worker.takes_work() || (any_quarantined && fleet.quarantined(worker)) {
                continue;
            }
            let mean = worker.rate.mean_tok_s();
            let pod_rate = pod_rates[worker.pod.0 as usize];
            let share = if pod_rate > 0.0 { mean / pod_rate } else { 1.0 };
            let price = UsdMicro((worker.price().0 as f64 * share).round() as i64);
            let (held_jobs, held_tokens) = flights.held(*slot);
            let load = WorkerLoad {
                worker: *slot,
                kind: worker.kind,
                rate_mean_tok_s: mean,
                rate_low_tok_s: worker.rate.low_tok_s(),
                price_usd_micro_per_hour: price,
                slots: worker.beat.slots,
                // The worker itself pulls by free pages.
                free_pages: u32::MAX,
                held_tokens,
                held_jobs,
            };
            let kappa = route::kappa(&load);
            if kappa.is_finite() {
                taken.kappa_max = taken.kappa_max.max(kappa);
            }
            let lowest = &mut taken.kappa_min[usize::from(worker.kind.0)];
            *lowest = lowest.min(kappa);
            taken.kappas.push(kappa);
            taken.kinds[usize::from(worker.kind.0)] += mean.max(1e-9);
            taken.free[usize::from(worker.kind.0)] += i64::from(load.slots.saturating_sub(held_jobs));
            taken.fleet.workers.push(load);
        }
        taken
    }

    /// A job goes to the worker at this place.
    pub(super) fn fill(&mut self, place: usize, tokens: u32) {
        let load = &mut self.fleet.workers[place];
        load.held_jobs += 1;
        load.held_tokens += u64::from(tokens);
    }

    /// A job of the kind was drawn, which takes a slot.
    pub(super) fn reserve(&mut self, kind: EngineKind) {
        self.free[usize::from(kind.0)] -= 1;
    }

    /// It goes back to its queue.
    pub(super) fn release(&mut self, kind: EngineKind) {
        self.free[usize::from(kind.0)] += 1;
    }

    /// Some worker of the kind has a slot for one more job.
    pub(super) fn has_room(&self, kind: EngineKind) -> bool {
        self.free.get(usize::from(kind.0)).is_some_and(|free| *free > 0)
    }

    /// The worker at this place.
    pub(super) fn slot(&self, place: usize) -> WorkerSlot {
        self.fleet.workers[place].worker
    }

    /// Speed of all workers of a kind, above zero as soon as there is one.
    pub(super) fn rate(&self, kind: EngineKind) -> f64 {
        self.kinds.get(usize::from(kind.0)).copied().unwrap_or(0.0)
    }

    /// Kinds of which there is a worker.
    pub(super) fn serving(&self) -> impl Iterator<Item = EngineKind> {
        let kinds = (0..self.kinds.len()).map(|n| EngineKind(n as u16));
        kinds.filter(|kind| self.serves(*kind))
    }

    pub(super) fn serves(&self, kind: EngineKind) -> bool {
        self.rate(kind) > 0.0
    }

    /// Price at a worker; one that nobody has measured is taken to be as expensive as the most expensive known, and when none is
    /// known, for nothing: somebody must try it, and the bill stops at the budget.
    pub(super) fn kappa(&self, place: usize) -> f64 {
        self.known_or_dearest(self.kappas[place])
    }

    /// Lowest price among the workers of a kind.
    pub(super) fn kappa_min(&self, kind: EngineKind) -> f64 {
        self.known_or_dearest(self.kappa_min.get(usize::from(kind.0)).copied().unwrap_or(f64::INFINITY))
    }

    fn known_or_dearest(&self, kappa: f64) -> f64 {
        if kappa.is_finite() { kappa } else { self.kappa_max }
    }

    /// How many jobs of so many tokens the workers of a kind would take now.
    pub(super) fn room(&self, kind: EngineKind, tokens: u32) -> usize {
        let loads = self.fleet.workers.iter().filter(|load| load.kind == kind);
        loads.map(|load| route::room(load, tokens)).sum()
    }
}
