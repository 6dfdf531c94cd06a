//! Why an open batch does not advance. It decides nothing: it reads what the other parts of the core know, and what the
//! scaler said last.

use ternfleet_proto::message::{BatchState, Binds, Stall, StallCode, WorkerState};

use super::Core;
use super::batch::Batch;
use super::event::BatchSlot;
use super::fleet::{Liveness, Worker};
use super::record::Ending;

/// The workers that could run a job, by what keeps them from it.
#[derive(Debug, Default)]
struct Able {
    /// 1 if there is any.
    ready: u32,
    /// They calibrate, register or drain.
    not_ready: u32,
    /// Silent or hanging.
    silent: u32,
    quarantined: u32,
}

impl Able {
    fn all(&self) -> u32 {
        self.ready + self.not_ready + self.silent + self.quarantined
    }
}

fn stall(code: StallCode, reason: impl Into<String>, advice: Option<String>) -> Option<Stall> {
    Some(Stall { code, reason: reason.into(), advice })
}

/// `1 pod`, `2 pods`.
fn count(number: impl Into<u64>, one: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    }
}

impl Core {
    /// Why the batch does not advance; none while it does, and once it has ended.
    pub(super) fn stall(&self, slot: BatchSlot, batch: &Batch) -> Option<Stall> {
        let id = &batch.record.id;
        match batch.record.state {
            BatchState::Completed | BatchState::Failed | BatchState::Expired | BatchState::Cancelled => None,
            BatchState::Cancelling => None,
            BatchState::Validating => stall(StallCode::Validating, "its input is being checked", None),
            BatchState::PausedBudget => {
                let reason = batch.record.reason.clone().unwrap_or_else(|| "its budget is spent".to_owned());
                let advice = format!("raise the budget: `ternfleet batch set {id} --budget USD`");
                stall(StallCode::BudgetSpent, reason, Some(advice))
            }
            BatchState::Finalizing if batch.record.ending == Some(Ending::Expired) => stall(
                StallCode::DeadlinePassed,
                "its deadline has passed: lines without an answer become error lines",
                Some(format!("send them again as a new batch: `ternfleet resubmit {id} --failed`")),
            ),
            BatchState::Finalizing => None,
            BatchState::InProgress => self.stall_of_jobs(slot, batch),
        }
    }

    /// Of a batch whose jobs may be assigned.
    fn stall_of_jobs(&self, slot: BatchSlot, batch: &Batch) -> Option<Stall> {
        if self.flights.committed(slot).jobs > 0 {
            let moves = |worker: &Worker| worker.liveness == Liveness::Live && !worker.hangs;
            let mut holders =
                self.flights.of_batch(slot).filter_map(|(_, flight)| self.fleet.get(flight.worker()));
            return match holders.any(moves) {
                true => None,
                false => stall(
                    StallCode::NoHealthyHost,
                    "the workers that have its jobs send no heartbeats; the jobs move to other workers",
                    Some("see which pods are quiet with `ternfleet pods`".to_owned()),
                ),
            };
        }
        let Some(stuck) = batch.queues.iter().find(|queue| !queue.jobs.is_empty()) else {
            return match batch.delayed.is_empty() {
                true => None,
                false => stall(
                    StallCode::Retrying,
                    format!("{} failed and will be retried", count(batch.delayed.len() as u64, "line")),
                    None,
                ),
            };
        };
        if let Some(words) = self.fleet.nobody_can(stuck.model.as_deref(), &stuck.needs) {
            return stall(
                StallCode::ModelNotServed,
                format!("no connected worker of its model can {words}"),
                Some("start a worker with an engine that can, or leave that out".to_owned()),
            );
        }
        self.stall_of_model(slot, batch, stuck.model.as_deref())
    }

    /// Nothing of it runs, and its next job needs this model, or any.
    fn stall_of_model(&self, slot: BatchSlot, batch: &Batch, model: Option<&str>) -> Option<Stall> {
        let able = self.able(model);
        let of_model = model.map_or(String::new(), |model| format!(" of the model {model:?}"));
        if able.ready > 0 {
            let (batches, jobs) = self.ahead_of(slot);
            return match jobs {
                // It is assigned in the next turn.
                0 => None,
                jobs => stall(
                    StallCode::BehindOtherBatches,
                    format!(
                        "every worker{of_model} is busy with {} of {}",
                        count(jobs, "job"),
                        if batches == 1 {
                            "another batch".to_owned()
                        } else {
                            format!("{batches} other batches")
                        }
                    ),
                    Some(format!("to run it first: `ternfleet batch set {} --priority 5`", batch.record.id)),
                ),
            };
        }
        if able.all() == 0 {
            return self.stall_without_workers(batch, model);
        }
        if able.not_ready > 0 {
            let workers = count(able.not_ready, "worker");
            let verb = if able.not_ready == 1 { "is" } else { "are" };
            return stall(
                StallCode::WorkersNotReady,
                format!("{workers}{of_model} {verb} not ready yet"),
                None,
            );
        }
        let (reason, advice) = match (able.quarantined, able.silent) {
            (0, _) => (
                format!("every worker{of_model} is quiet or hanging"),
                "check the pods: `ternfleet pods` and `ternfleet doctor`",
            ),
            (_, 0) => (
                format!(
                    "every worker{of_model} is on a quarantined host, whose answers failed or were wrong"
                ),
                "replace the pods, or start a worker on another host: `ternfleet worker`",
            ),
            (_, _) => (
                format!("every worker{of_model} is quiet, hanging, or on a quarantined host"),
                "check the pods: `ternfleet pods` and `ternfleet doctor`",
            ),
        };
        stall(StallCode::NoHealthyHost, reason, Some(advice.to_owned()))
    }

    fn stall_without_workers(&self, batch: &Batch, model: Option<&str>) -> Option<Stall> {
        let id = &batch.record.id;
        let connected = self.fleet.workers.values().any(|worker| worker.liveness != Liveness::Lost);
        let Some(supply) = &self.supply else {
            let start = model.map_or(String::new(), |model| format!(" --model {model}"));
            return match (model, connected) {
                (Some(model), true) => stall(
                    StallCode::ModelNotServed,
                    format!("no worker serves the model {model:?}; served: {}", self.models_served()),
                    Some(format!("start one with `ternfleet worker{start}`, or `ternfleet cancel {id}`")),
                ),
                _ => stall(
                    StallCode::NoWorkers,
                    "no worker is connected",
                    Some(format!(
                        "start one with `ternfleet worker{start}`, or rent pods: `ternfleet scale --help`"
                    )),
                ),
            };
        };
        if supply.starting > 0 {
            let pods = count(supply.starting, "pod");
            return stall(StallCode::PodsStarting, format!("{pods} starting"), None);
        }
        if let (Some(model), true) = (model, connected) {
            return stall(
                StallCode::ModelNotServed,
                format!("no worker serves the model {model:?}; served: {}", self.models_served()),
                Some(format!(
                    "start a worker for it, rent a class that serves it, or `ternfleet cancel {id}`"
                )),
            );
        }
        if let Some(why) = &supply.obstacle {
            let advice = "see `ternfleet scale show`".to_owned();
            return stall(StallCode::PodsUnavailable, why.clone(), Some(advice));
        }
        match supply.binds.get(id.as_str()) {
            Some(Binds::Budget) => stall(
                StallCode::PodsUnavailable,
                "its budget does not pay for a pod",
                Some(format!("raise the budget: `ternfleet batch set {id} --budget USD`")),
            ),
            Some(Binds::Deadline) => stall(
                StallCode::PodsUnavailable,
                "no pod would start before its deadline",
                Some(format!("move the deadline: `ternfleet batch set {id} --deadline TIME`")),
            ),
            Some(Binds::FleetLimit) => stall(
                StallCode::PodsUnavailable,
                "a limit of the scaler allows no further pod",
                Some("see `ternfleet scale show`; change it with `ternfleet scale set`".to_owned()),
            ),
            Some(Binds::Capacity) | None => {
                stall(StallCode::PodsStarting, "pods are about to be rented", None)
            }
        }
    }

    /// Ends at the first worker that is ready, since then the others do not matter.
    fn able(&self, model: Option<&str>) -> Able {
        let mut able = Able::default();
        for worker in self.fleet.workers.values().filter(|worker| worker.liveness != Liveness::Lost) {
            let kind = &self.fleet.kinds[usize::from(worker.kind.0)];
            if model.is_some_and(|model| model != kind.model && model != kind.digest) {
                continue;
            }
            let place = if self.fleet.quarantined(worker) {
                &mut able.quarantined
            } else if worker.liveness == Liveness::Quiet || worker.hangs {
                &mut able.silent
            } else if worker.takes_work() {
                able.ready += 1;
                break;
            } else if worker.beat.state == WorkerState::Gone {
                continue;
            } else {
                &mut able.not_ready
            };
            *place += 1;
        }
        able
    }

    /// Other batches with jobs at workers, and how many jobs those are.
    fn ahead_of(&self, slot: BatchSlot) -> (u32, u64) {
        let others = self.ledger.active().filter(|(other, _)| *other != slot);
        let jobs =
            others.map(|(other, _)| u64::from(self.flights.committed(other).jobs)).filter(|jobs| *jobs > 0);
        jobs.fold((0, 0), |(batches, sum), jobs| (batches + 1, sum + jobs))
    }

    fn models_served(&self) -> String {
        let workers = self.fleet.workers.values().filter(|worker| worker.liveness != Liveness::Lost);
        let names: std::collections::BTreeSet<&str> =
            workers.map(|worker| worker.beat.model.as_str()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}
