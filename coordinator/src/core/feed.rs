//! Feeding: the input comes in windows, in order; only lines between reading and answer are in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use ternfleet_proto::Now;
use ternfleet_proto::message::{BatchState, FailureCode};

use super::Core;
use super::batch::READ_LINES;
use super::event::{Action, BatchSlot, Content, Fed, JobRef, Task};
use super::ledger::Kept;
use super::record::Ending;

/// Fewer lines than this waiting: read more.
const LOW_WATER: usize = 256;
/// However fast the fleet is, no more than this waits per batch.
const LOW_WATER_MAX: usize = 4096;
/// So many lines that wait for another's answer count as one that waits for a worker.
const FOLLOWING: usize = 4;
/// The coordinator's own answers on their way at a time, per batch.
const ANSWERING_MAX: u32 = 4000;

/// Lines that begin alike stand one after the other, where the first of them stood: a worker's prefix cache serves them then.
fn together(lines: Vec<Fed>) -> Vec<Fed> {
    let mut first: BTreeMap<u64, u32> = BTreeMap::new();
    let mut placed: Vec<(u32, Fed)> = lines
        .into_iter()
        .map(|fed| {
            let start = match &fed.content {
                Content::Good(task) => task.start,
                Content::Blank | Content::Bad(_) => None,
            };
            (start.map_or(fed.index, |start| *first.entry(start).or_insert(fed.index)), fed)
        })
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, fed)| fed).collect()
}

impl Core {
    /// Asks for more lines wherever they run short.
    pub(super) fn read_on(&mut self, actions: &mut Vec<Action>) {
        if self.lead.is_none() {
            return;
        }
        for slot in self.ledger.active_slots() {
            let in_flight = self.flights.committed(slot).jobs;
            let text_bytes = self.ledger.text_bytes();
            let Some(batch) = self.ledger.get_mut(slot) else { continue };
            let Some(lines) = batch.record.lines else { continue };
            if batch.reading || batch.read_end || batch.record.single || batch.writing {
                continue;
            }
            // Whoever waits for another's answer keeps a worker from nothing, and memory is bounded all the same.
            let waiting = batch.waiting() + batch.delayed.len() + batch.following as usize / FOLLOWING;
            let low = (in_flight as usize / 2).clamp(LOW_WATER, LOW_WATER_MAX);
            let crowded = text_bytes > self.limits.text_bytes_max && waiting > 0;
            let enough = if batch.record.ending.is_some() {
                batch.answering >= ANSWERING_MAX
            } else {
                waiting >= low || crowded || batch.answering >= ANSWERING_MAX
            };
            if enough {
                continue;
            }
            let from = batch.next_open(batch.read_next);
            batch.reading = true;
            let count = READ_LINES.min(lines.saturating_sub(from).max(1));
            let skip = batch.skip_bits(from, count);
            actions.push(Action::Read { batch: slot, from, lines: count, skip });
        }
    }

    pub(super) fn scanned(&mut self, now: Now, slot: BatchSlot, lines: u32, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get(slot) else { return };
        if batch.is_ended() || batch.record.lines.is_some() {
            return;
        }
        let tenant = &batch.record.tenant;
        let of_tenant = self.ledger.active().map(|(_, batch)| &batch.record);
        let open: u64 = of_tenant
            .filter(|record| record.tenant == *tenant)
            .map(|record| u64::from(record.lines.unwrap_or(0)))
            .sum();
        let limit = self.limits.quotas.queued_lines_max;
        if open + u64::from(lines) > u64::from(limit) {
            let reason = format!(
                "the quota of tenant {tenant} is exceeded: at most {limit} lines may be queued, {open} are \
                 queued, and the file has {lines}"
            );
            self.input_lost(now, slot, reason, actions);
            return;
        }
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        batch.record.lines = Some(lines);
        batch.cells.reserve_exact((lines as usize).saturating_sub(batch.cells.len()));
        if batch.record.state == BatchState::Validating {
            batch.record.state = BatchState::InProgress;
        }
        self.changed(slot, actions);
        self.check_through(now, slot, actions);
        self.work_changed = true;
    }

    pub(super) fn lines_read(
        &mut self,
        now: Now,
        slot: BatchSlot,
        lines: Vec<Fed>,
        next: u32,
        end: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        batch.reading = false;
        if batch.is_ended() {
            return;
        }
        batch.read_next = next;
        batch.read_end = end;
        for fed in together(lines) {
            self.line_read(now, JobRef { batch: slot, index: fed.index }, fed, actions);
        }
        self.join(now, slot);
        self.check_through(now, slot, actions);
    }

    fn line_read(&mut self, now: Now, job: JobRef, fed: Fed, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(job.batch) else { return };
        if !batch.is_open(job.index) {
            return;
        }
        match fed.content {
            Content::Blank => {
                batch.cell_mut(job.index).state = super::CellState::Blank;
                batch.totals.blank += 1;
            }
            Content::Bad(bad) => {
                let (line, failure) = *bad;
                self.answer_ourselves(now, job, Some(line), failure.code, failure.message, actions);
            }
            Content::Good(task) => self.task_read(now, job, task, actions),
        }
    }

    fn task_read(&mut self, now: Now, job: JobRef, task: Arc<Task>, actions: &mut Vec<Action>) {
        let line = task.line.clone();
        match self.ledger.keep(job, task) {
            Kept::Known => {}
            Kept::TooManyModels => {
                let why = "the file names too many different models; a batch may name 16".to_owned();
                let code = FailureCode::InvalidRequest;
                self.answer_ourselves(now, job, Some(line), code, why, actions);
            }
            // It was found running before its line was read.
            Kept::Kept if self.flights.get(job).is_some() => {}
            Kept::Kept if self.ledger.get(job.batch).is_some_and(|batch| batch.record.ending.is_some()) => {
                self.answer_ending(now, job, actions);
            }
            Kept::Kept if self.is_answered_by_another(now, job, actions) => {}
            Kept::Kept => self.ledger.queue(job, false),
        }
    }

    /// A line of a batch that ends early gets its error line.
    pub(super) fn answer_ending(&mut self, now: Now, job: JobRef, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get(job.batch) else { return };
        let (code, message) = match batch.record.ending {
            Some(Ending::Cancelled) => {
                (FailureCode::BatchCancelled, "the batch was cancelled before this line ran".to_owned())
            }
            Some(Ending::Expired) | None => (FailureCode::BatchExpired, self.expiry_reason(job)),
        };
        self.answer_ourselves(now, job, None, code, message, actions);
    }

    fn expiry_reason(&self, job: JobRef) -> String {
        let model = self.ledger.live(job).and_then(|live| live.task.as_ref()?.line.model.clone());
        match model {
            Some(model)
                if !self.fleet.kinds.iter().any(|kind| kind.model == model || kind.digest == model) =>
            {
                format!("the completion window passed, and no worker served the model {model:?}")
            }
            _ => "the completion window passed before this line ran".to_owned(),
        }
    }
}
