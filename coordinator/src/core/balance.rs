//! Comparing what workers have: waiting jobs go to idle workers when nothing else waits, and streams are held against
//! the ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::{Now, WorkerId};

use super::Core;
use super::event::{Action, JobRef};
use crate::route::{self, EngineKind};

/// A job is not moved for this long after an assignment, so that it does not move back and forth.
const REST: Duration = Duration::from_secs(1);

impl Core {
    /// Moves waiting jobs to idle workers when nothing else waits.
    pub(super) fn rebalance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.ledger.active().any(|(_, batch)| batch.runs() && batch.waiting() > 0) {
            return;
        }
        let snapshot = self.snapshot();
        for kind in 0..self.fleet.kinds.len() {
            for step in route::rebalance(&snapshot.fleet, EngineKind(kind as u16)) {
                let may_go = |job: &JobRef| {
                    self.flights
                        .get(*job)
                        .is_some_and(|f| !f.running && f.is_handed() && now.since(f.since) >= REST)
                };
                // The last assigned is the last to be begun.
                let job = self.flights.of_worker(snapshot.slot(step.from)).rev().find(may_go);
                if let Some(job) = job {
                    self.withdraw(job, false, actions);
                }
            }
        }
    }

    /// Compares ledger and streams: messages can get stuck, consumers can be left behind.
    pub(super) fn sweep(&mut self, actions: &mut Vec<Action>) {
        let mut shards: BTreeMap<u16, Vec<WorkerId>> = BTreeMap::new();
        for worker in self.fleet.workers.values() {
            shards.entry(worker.shard).or_default().push(worker.beat.worker.clone());
        }
        self.act(actions, Action::Sweep { shards });
    }
}
