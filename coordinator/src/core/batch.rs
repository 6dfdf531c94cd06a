//! The ledger of one batch: sixteen bytes for every line, and full records only for the lines between reading and
//! answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ternfleet_proto::message::{Abilities, BatchState, FailedAttempt, Line};
use ternfleet_proto::{Deadline, MonoMs, Now, UsdMicro, WorkerId};

use super::event::{Task, WorkerSlot};
use super::record::{BatchRecord, Ending, Totals};
use super::wanted::{Same, Wanted};
use crate::route::EngineKind;

/// Lines asked for at a time.
pub(super) const READ_LINES: u32 = 1000;
/// A batch may name this many different models; lines that name more get an error.
pub const MODELS_MAX: usize = 16;

/// What is known of a line for as long as the batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cell {
    pub state: CellState,
    /// Low half of the committed answer's ids digest, to notice a divergent duplicate.
    pub digest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CellState {
    #[default]
    Open,
    Blank,
    Good,
    Bad,
}

/// A line between reading and answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Live {
    /// `None` for a job found running at a worker before its line was read.
    pub task: Option<Arc<Task>>,
    /// Which of the batch's queues it belongs to.
    pub queue: usize,
    /// How often it was assigned by this leader.
    pub handovers: u16,
    /// Attempts that ended in a fault.
    pub attempts: u32,
    /// Hosts on which attempts failed.
    pub hosts: Vec<String>,
    /// What is known of those attempts.
    pub log: Vec<FailedAttempt>,
    /// Workers that reported a fault: their subject in RESULTS is taken, so they cannot answer this job any more.
    pub faulted: Vec<WorkerSlot>,
    /// The coordinator has published an answer of its own and waits to see it in RESULTS.
    pub answering: bool,
}

/// Kinds of requests, by model and by what they need of an engine, that are kept apart.
const QUEUES_MAX: usize = 128;

/// Jobs that wait for one kind of engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    pub model: Option<String>,
    /// What an engine must be able to do for them.
    pub needs: Abilities,
    /// Chosen once: all jobs of the queue run on one kind, so that a rerun gives the same bits.
    pub kind: Option<EngineKind>,
    pub jobs: VecDeque<u32>,
}

/// Where the jobs of a batch come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file of lines.
    File,
    /// One request that somebody waits for.
    Caller,
    /// The second run of somebody else's job.
    Audit,
}

#[derive(Debug)]
pub struct Batch {
    pub record: BatchRecord,
    pub origin: Origin,
    /// Of the record's `expires_at`.
    pub expiry: Deadline,
    pub cells: Vec<Cell>,
    /// Answers up to this sequence were counted in a savepoint.
    pub saved_to: u64,
    /// Sequences in RESULTS of the committed answers, in the order of their commit.
    pub commits: Vec<u64>,
    pub live: BTreeMap<u32, Live>,
    /// Of open lines, the workers that have reported a fault, to whichever leader.
    pub fault_reports: BTreeMap<u32, BTreeSet<WorkerId>>,
    pub queues: Vec<Queue>,
    /// Jobs to try again, and when.
    pub delayed: BTreeMap<(MonoMs, u32), ()>,
    /// Lines that ask for the same, by their queue: one of them runs, the others wait for its answer.
    pub same: BTreeMap<(usize, Wanted), Same>,
    /// How many wait so.
    pub following: u32,
    pub totals: Totals,
    /// Next line to read.
    pub read_next: u32,
    pub reading: bool,
    pub read_end: bool,
    /// Answers of the coordinator's own that are on their way.
    pub answering: u32,
    /// Bytes of text held in memory.
    pub text_bytes: u64,
    /// Tokens made up to the last sample, and the rate since, for progress.
    pub tokens_made: u64,
    pub rate_tok_s: f64,
    pub rate_sample: (MonoMs, u64),
    pub writing: bool,
    /// A job of it was taken back from a worker, or may have been by an earlier leader.
    pub moved: bool,
}

impl Batch {
    pub fn new(now: Now, record: BatchRecord, origin: Origin) -> Self {
        let cells = Vec::with_capacity(record.lines.unwrap_or(0) as usize);
        Self {
            totals: Totals {
                cost_usd_micro: record.totals.cost_usd_micro,
                over_budget_usd_micro: record.totals.over_budget_usd_micro,
                ..Totals::default()
            },
            rate_sample: (now.mono, 0),
            expiry: Deadline::new(now, record.expires_at),
            record,
            cells,
            saved_to: 0,
            commits: Vec::new(),
            live: BTreeMap::new(),
            fault_reports: BTreeMap::new(),
            queues: Vec::new(),
            delayed: BTreeMap::new(),
            same: BTreeMap::new(),
            following: 0,
            read_next: 0,
            reading: false,
            read_end: false,
            answering: 0,
            text_bytes: 0,
            tokens_made: 0,
            rate_tok_s: 0.0,
            writing: false,
            moved: false,
            origin,
        }
    }

    pub fn cell(&self, index: u32) -> Cell {
        self.cells.get(index as usize).copied().unwrap_or_default()
    }

    pub fn cell_mut(&mut self, index: u32) -> &mut Cell {
        if self.cells.len() <= index as usize {
            self.cells.resize(index as usize + 1, Cell::default());
        }
        &mut self.cells[index as usize]
    }

    pub fn is_open(&self, index: u32) -> bool {
        self.cell(index).state == CellState::Open
    }

    pub fn is_ended(&self) -> bool {
        self.record.state.is_terminal()
    }

    /// Jobs are assigned.
    pub fn runs(&self) -> bool {
        self.record.state == BatchState::InProgress && self.record.ending.is_none()
    }

    /// Lines that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.jobs.len()).sum()
    }

    /// Lines with a job, as far as they are known.
    pub fn jobs_total(&self) -> u32 {
        let lines = self.record.lines.unwrap_or(self.cells.len() as u32).max(self.cells.len() as u32);
        lines - self.totals.blank.min(lines)
    }

    pub fn answered(&self) -> u32 {
        self.totals.completed + self.totals.failed
    }

    /// Every line has its answer.
    pub fn is_through(&self) -> bool {
        self.record.lines.is_some_and(|lines| self.answered() + self.totals.blank >= lines)
    }

    /// The queue of jobs that name this model and need this, made if there is room for one more model. Beyond very many
    /// kinds of requests those that are left go to engines that can do everything.
    pub fn queue_for(&mut self, model: Option<&str>, needs: Abilities) -> Option<usize> {
        let needs = if self.queues.len() < QUEUES_MAX { needs } else { Abilities::ALL };
        let mut of_model =
            self.queues.iter().enumerate().filter(|(_, queue)| queue.model.as_deref() == model);
        if let Some((place, _)) = of_model.find(|(_, queue)| queue.needs == needs) {
            return Some(place);
        }
        let models: BTreeSet<Option<&str>> =
            self.queues.iter().map(|queue| queue.model.as_deref()).chain([model]).collect();
        if models.len() > MODELS_MAX {
            return None;
        }
        let model = model.map(str::to_owned);
        self.queues.push(Queue { model, needs, kind: None, jobs: VecDeque::new() });
        Some(self.queues.len() - 1)
    }

    /// Lines from `from` on that need no reading: a set bit for each that is answered or in memory.
    pub fn skip_bits(&self, from: u32, lines: u32) -> Vec<u64> {
        let mut bits = vec![0u64; lines.div_ceil(64) as usize];
        for offset in 0..lines {
            let held = |live: &Live| live.task.is_some() || live.answering;
            if !self.is_open(from + offset) || self.live.get(&(from + offset)).is_some_and(held) {
                bits[(offset / 64) as usize] |= 1 << (offset % 64);
            }
        }
        bits
    }

    /// The first line from `from` on that has no answer.
    pub fn next_open(&self, from: u32) -> u32 {
        let answered = self.cells.get(from as usize..).unwrap_or(&[]);
        from + answered.iter().take_while(|cell| cell.state != CellState::Open).count() as u32
    }

    /// Bytes of the input that have no answer yet, by share of lines.
    pub fn bytes_left(&self) -> u64 {
        let lines = u64::from(self.record.lines.unwrap_or(0).max(1));
        let done = u64::from(self.answered() + self.totals.blank).min(lines);
        (u128::from(self.record.input_bytes) * u128::from(lines - done) / u128::from(lines)) as u64
    }

    /// What the budget leaves; everything when there is none.
    pub fn budget_left(&self) -> UsdMicro {
        match self.record.options.budget_usd_micro {
            Some(budget) => budget - self.totals.cost_usd_micro,
            None => UsdMicro(i64::MAX),
        }
    }

    /// True if this much more fits into the budget beside what is spent and in flight.
    pub fn affords(&self, committed: UsdMicro, cost: UsdMicro) -> bool {
        self.record.options.budget_usd_micro.is_none() || committed + cost <= self.budget_left()
    }

    /// Somebody waits for its one answer.
    pub fn is_interactive(&self) -> bool {
        self.origin == Origin::Caller
    }

    /// The state in which the batch ends.
    pub fn end_state(&self) -> BatchState {
        match self.record.ending {
            None => BatchState::Completed,
            Some(Ending::Cancelled) => BatchState::Cancelled,
            Some(Ending::Expired) => BatchState::Expired,
        }
    }
}

/// What the coordinator knows of a line whose text it no longer holds.
pub(super) fn bare_line(index: u32, record: &BatchRecord) -> Line {
    let endpoint = record.endpoint.unwrap_or(ternfleet_proto::openai::Endpoint::Completions);
    Line::new(Some(format!("line-{}", u64::from(index) + 1)), endpoint, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_lines_cost_sixteen_bytes_each() {
        assert!(size_of::<Cell>() + size_of::<u64>() <= 16);
    }
}
