//! A savepoint: what the ledger knows of an open batch's answers as of a sequence of RESULTS. A coordinator that starts
//! from nothing takes it over and replays what came after it. Whether it may be believed is the shell's to find out.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_proto::WorkerId;

use super::Core;
use super::batch::{Cell, CellState};
use super::event::BatchSlot;
use super::record::Totals;

#[derive(Debug, Clone, PartialEq)]
pub struct Savepoint {
    /// Every answer up to this sequence is counted.
    pub upto: u64,
    pub cells: Vec<Cell>,
    pub commits: Vec<u64>,
    pub fault_reports: BTreeMap<u32, BTreeSet<WorkerId>>,
    pub totals: Totals,
    pub tokens_made: u64,
    pub model: Option<String>,
}

impl Savepoint {
    /// Its parts agree with one another.
    pub fn adds_up(&self) -> bool {
        let count = |state| self.cells.iter().filter(|cell| cell.state == state).count();
        let Totals { completed, failed, blank, .. } = self.totals;
        count(CellState::Good) == completed as usize
            && count(CellState::Bad) == failed as usize
            && count(CellState::Blank) == blank as usize
            && self.commits.len() == completed as usize + failed as usize
            && self.commits.is_sorted()
            && self.commits.last().is_none_or(|last| *last <= self.upto)
    }
}

impl Core {
    /// Of an open batch of a file; a copy, so that others may write it down.
    pub fn savepoint(&self, slot: BatchSlot) -> Option<Savepoint> {
        let batch = self.ledger.get(slot).filter(|batch| !batch.is_ended() && !batch.record.single)?;
        Some(Savepoint {
            upto: self.results_read_to.max(batch.saved_to),
            cells: batch.cells.clone(),
            commits: batch.commits.clone(),
            fault_reports: batch.fault_reports.clone(),
            totals: batch.totals,
            tokens_made: batch.tokens_made,
            model: batch.record.model.clone(),
        })
    }

    /// Takes over what an earlier coordinator has saved of a batch of which nothing is known yet but its record. Called
    /// before the replay begins.
    pub fn restore(&mut self, slot: BatchSlot, savepoint: Savepoint) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        if batch.is_ended() || !batch.commits.is_empty() {
            return;
        }
        // What it cost is in the record, which is stored more often.
        batch.totals = Totals {
            cost_usd_micro: batch.totals.cost_usd_micro,
            over_budget_usd_micro: batch.totals.over_budget_usd_micro,
            ..savepoint.totals
        };
        (batch.cells, batch.commits) = (savepoint.cells, savepoint.commits);
        batch.fault_reports = savepoint.fault_reports;
        batch.tokens_made = savepoint.tokens_made;
        batch.record.model = savepoint.model.or(batch.record.model.take());
        batch.saved_to = savepoint.upto;
    }
}
