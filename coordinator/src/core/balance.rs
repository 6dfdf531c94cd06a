//! Taking work back from live workers: what waits at a slow one while a fast one idles, what hangs, what got lost.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::{Now, WorkerId};

use super::Core;
use super::batch::Flight;
use super::event::{Action, JobRef};
use super::hand::Snapshot;
use crate::route::{self, EngineKind};

/// A running job without a new token for this long goes elsewhere.
const NO_PROGRESS_AFTER: Duration = Duration::from_secs(60);
/// A job that its worker does not run, although it has free slots, was lost on the way if it stays so for this long.
const NOT_BEGUN_AFTER: Duration = Duration::from_secs(60);
/// Ledger, streams and consumers are compared this often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A job is left alone this long after a hand-over, so that it does not travel to and fro.
const REST: Duration = Duration::from_secs(1);

impl Core {
    /// Moves waiting jobs to idle workers when nothing else waits, and jobs that hang.
    pub(super) fn rebalance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.lead.is_none() {
            return;
        }
        self.move_hanging(now, actions);
        let waiting =
            self.active.iter().any(|slot| self.batches[slot].runs() && self.batches[slot].waiting() > 0);
        if waiting {
            return;
        }
        let snapshot = Snapshot::take(&self.fleet);
        for kind in 0..self.fleet.kinds.len() {
            for step in route::rebalance(&snapshot.fleet, EngineKind(kind as u16)) {
                let Some(worker) = self.fleet.get(snapshot.slot(step.from)) else { continue };
                let may_go = |job: &&JobRef| {
                    self.flight(**job)
                        .is_some_and(|f| !f.running && f.is_handed() && now.since(f.since) >= REST)
                };
                // The last handed over is the last to be begun.
                if let Some(job) = worker.flights.iter().rev().find(may_go).copied() {
                    self.withdraw(job, false, actions);
                }
            }
        }
    }

    /// Compares ledger and streams: messages can get stuck, consumers can be left behind.
    pub(super) fn sweep(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.lead.is_none() || now.since(self.swept_at) < SWEEP_EVERY {
            return;
        }
        self.swept_at = now.mono;
        let mut lost = Vec::new();
        let mut shards: BTreeMap<u16, Vec<WorkerId>> = BTreeMap::new();
        for worker in self.fleet.workers.values() {
            shards.entry(worker.shard).or_default().push(worker.beat.worker.clone());
            if worker.beat.slots_in_use >= worker.beat.slots {
                continue;
            }
            for job in &worker.flights {
                let stuck = |f: &Flight| !f.running && f.is_handed() && now.since(f.since) >= NOT_BEGUN_AFTER;
                if self.flight(*job).is_some_and(stuck) {
                    lost.push(*job);
                }
            }
        }
        self.counts.swept_jobs += lost.len() as u64;
        for job in lost {
            self.withdraw(job, false, actions);
        }
        self.act(actions, Action::Sweep { shards });
    }

    fn move_hanging(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut hanging = Vec::new();
        for worker in self.fleet.workers.values().filter(|worker| worker.beat.slots_in_use > 0) {
            for job in &worker.flights {
                let hangs = |f: &Flight| f.running && now.since(f.progress_at) >= NO_PROGRESS_AFTER;
                if self.flight(*job).is_some_and(hangs) {
                    hanging.push(*job);
                }
            }
        }
        for job in hanging {
            self.withdraw(job, true, actions);
        }
    }
}
