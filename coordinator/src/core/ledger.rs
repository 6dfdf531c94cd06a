//! Batches, their lines and the answers to them. What is kept in memory of a line, and what the batches' totals say,
//! changes here alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ternfleet_proto::message::{BatchState, WebhookState};
use ternfleet_proto::{BatchId, Deadline, MonoMs, Now};

use super::batch::{Batch, CellState, Live, Origin};
use super::event::{Answer, BatchSlot, JobRef, Task, Verdict};
use super::money::Claim;
use super::record::BatchRecord;

/// Records of ended batches kept in memory; older ones are read again.
const ENDED_MAX: usize = 200;
/// Answered single jobs kept in memory, for callers who ask again.
const SINGLES_MAX: usize = 2000;

/// What became of a line that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was known already, or answered.
    Known,
    /// It is kept, and is in no queue yet.
    Kept,
    TooManyModels,
}

/// What an answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    First,
    /// The line was answered before; did this one say something else?
    Again {
        diverges: bool,
    },
}

#[derive(Debug, Default)]
pub struct Ledger {
    batches: BTreeMap<BatchSlot, Batch>,
    slots: BTreeMap<BatchId, BatchSlot>,
    next_slot: u32,
    /// Batches that have not ended.
    active: BTreeSet<BatchSlot>,
    /// Ended ones, oldest first, kept for readers: files, and what one caller waited for.
    ended: VecDeque<BatchSlot>,
    ended_singles: VecDeque<BatchSlot>,
    text_bytes: u64,
}

impl Ledger {
    pub fn get(&self, slot: BatchSlot) -> Option<&Batch> {
        self.batches.get(&slot)
    }

    pub fn get_mut(&mut self, slot: BatchSlot) -> Option<&mut Batch> {
        self.batches.get_mut(&slot)
    }

    pub fn find(&self, id: &BatchId) -> Option<BatchSlot> {
        self.slots.get(id).copied()
    }

    /// Those that have not ended.
    pub fn active(&self) -> impl Iterator<Item = (BatchSlot, &Batch)> {
        self.active.iter().filter_map(|slot| Some((*slot, self.batches.get(slot)?)))
    }

    pub fn active_slots(&self) -> Vec<BatchSlot> {
        self.active.iter().copied().collect()
    }

    pub fn n_active(&self) -> usize {
        self.active.len()
    }

    /// Text of jobs between reading and answer, over all batches.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    pub fn live(&self, job: JobRef) -> Option<&Live> {
        self.batches.get(&job.batch)?.live.get(&job.index)
    }

    pub fn live_mut(&mut self, job: JobRef) -> Option<&mut Live> {
        self.batches.get_mut(&job.batch)?.live.get_mut(&job.index)
    }

    /// A batch that was not known.
    pub fn open(&mut self, now: Now, record: BatchRecord, origin: Origin) -> BatchSlot {
        let slot = BatchSlot(self.next_slot);
        self.next_slot += 1;
        self.slots.insert(record.id.clone(), slot);
        let mut batch = Batch::new(now, record, origin);
        if batch.is_ended() {
            batch.totals = batch.record.totals;
            self.batches.insert(slot, batch);
            self.keep_ended(slot);
        } else {
            self.batches.insert(slot, batch);
            self.active.insert(slot);
        }
        slot
    }

    /// What the leader has stored, heard by one that does not lead.
    pub fn follow(&mut self, now: Now, slot: BatchSlot, record: BatchRecord) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        let ended = record.state.is_terminal();
        if ended {
            batch.totals = record.totals;
        } else {
            batch.totals.cost_usd_micro = record.totals.cost_usd_micro;
            batch.totals.over_budget_usd_micro = record.totals.over_budget_usd_micro;
        }
        if batch.record.expires_at != record.expires_at {
            batch.expiry = Deadline::new(now, record.expires_at);
        }
        if record.answers_object.is_some() {
            (batch.commits, batch.cells) = (Vec::new(), Vec::new());
        }
        batch.record = record;
        if ended && self.active.remove(&slot) {
            self.keep_ended(slot);
        }
    }

    /// An ended batch in memory becomes what its tombstone says.
    pub fn age_out(&mut self, record: BatchRecord) {
        let slot = self.find(&record.id);
        if let Some(batch) =
            slot.and_then(|slot| self.batches.get_mut(&slot)).filter(|batch| batch.is_ended())
        {
            batch.record = record;
        }
    }

    /// Keeps a line's request until it is answered.
    pub fn keep(&mut self, job: JobRef, task: Arc<Task>) -> Kept {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return Kept::Known };
        if batch.live.get(&job.index).is_some_and(|live| live.task.is_some() || live.answering) {
            return Kept::Known;
        }
        let Some(queue) = batch.queue_for(task.line.model.as_deref(), task.needs) else {
            return Kept::TooManyModels;
        };
        batch.text_bytes += u64::from(task.bytes);
        self.text_bytes += u64::from(task.bytes);
        let live = batch.live.entry(job.index).or_default();
        live.task = Some(task);
        live.queue = queue;
        Kept::Kept
    }

    /// The job waits for a worker, before or behind the others of its queue.
    pub fn queue(&mut self, job: JobRef, first: bool) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let Some(live) = batch.live.get(&job.index) else { return };
        let Some(queue) = batch.queues.get_mut(live.queue) else { return };
        if first {
            queue.jobs.push_front(job.index);
        } else {
            queue.jobs.push_back(job.index);
        }
    }

    /// The job waits no longer: it was found running somewhere, or answered.
    pub fn unqueue(&mut self, job: JobRef) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let place = batch.live.get(&job.index).filter(|live| live.task.is_some()).map(|live| live.queue);
        if let Some(queue) = place.and_then(|place| batch.queues.get_mut(place)) {
            queue.jobs.retain(|index| *index != job.index);
        }
    }

    /// The job waits until then, and for a worker after that. One whose line is not in memory is read again.
    pub fn defer(&mut self, job: JobRef, until: Option<MonoMs>) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        match (batch.live.get(&job.index), until) {
            (None, _) => {}
            (Some(live), _) if live.task.is_none() => {
                batch.live.remove(&job.index);
                batch.read_next = batch.read_next.min(job.index);
                batch.read_end = false;
            }
            (Some(_), Some(until)) => _ = batch.delayed.insert((until, job.index), ()),
            (Some(_), None) => self.queue(job, true),
        }
    }

    /// An answer of the coordinator's own is on its way. False when there is no need of one.
    pub fn begin_answering(&mut self, job: JobRef) -> bool {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return false };
        if !batch.is_open(job.index) {
            return false;
        }
        let live = batch.live.entry(job.index).or_default();
        if live.answering {
            return false;
        }
        live.answering = true;
        batch.answering += 1;
        true
    }

    /// The answer of the coordinator's own does not come. False if the line has one.
    pub fn stop_answering(&mut self, job: JobRef) -> bool {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return false };
        let Some(live) = batch.live.get_mut(&job.index).filter(|live| live.answering) else { return false };
        live.answering = false;
        batch.answering -= 1;
        true
    }

    /// Forgets what was kept of a line that is answered; `waits` if it may be in a queue.
    pub fn close_line(&mut self, job: JobRef, waits: bool) {
        if waits {
            self.unqueue(job);
        }
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let Some(live) = batch.live.remove(&job.index) else { return };
        if let Some(task) = &live.task {
            batch.text_bytes -= u64::from(task.bytes);
            self.text_bytes -= u64::from(task.bytes);
        }
        batch.answering -= u32::from(live.answering);
    }

    /// Takes an answer in, at this sequence of RESULTS.
    pub fn commit(&mut self, job: JobRef, sequence: u64, answer: &Answer) -> Option<Commit> {
        let batch = self.batches.get_mut(&job.batch)?;
        let digest = match answer.verdict {
            Verdict::Good { ids_digest } => ids_digest as u32,
            Verdict::Bad | Verdict::Fault | Verdict::HostFault => 0,
        };
        if !batch.is_open(job.index) {
            batch.totals.wasted_tokens += u64::from(answer.completion_tokens);
            let cell = batch.cell(job.index);
            let same_each_time = !answer.nondeterministic;
            let diverges =
                cell.state == CellState::Good && digest != 0 && cell.digest != digest && same_each_time;
            return Some(Commit::Again { diverges });
        }
        let good = matches!(answer.verdict, Verdict::Good { .. });
        let cell = batch.cell_mut(job.index);
        cell.state = if good { CellState::Good } else { CellState::Bad };
        cell.digest = digest;
        batch.commits.push(sequence);
        batch.fault_reports.remove(&job.index);
        let totals = &mut batch.totals;
        totals.completed += u32::from(good);
        totals.failed += u32::from(!good);
        totals.prompt_tokens += u64::from(answer.prompt_tokens);
        totals.completion_tokens += u64::from(answer.completion_tokens);
        totals.wasted_tokens += u64::from(answer.repeated_tokens);
        totals.cached_tokens += u64::from(answer.cached_tokens);
        totals.nondeterministic += u32::from(answer.nondeterministic);
        if good && batch.record.model.is_none() {
            batch.record.model = answer.model.as_deref().map(str::to_owned);
        }
        batch.tokens_made += u64::from(answer.prompt_tokens) + u64::from(answer.completion_tokens);
        Some(Commit::First)
    }

    pub fn charge(&mut self, slot: BatchSlot, claim: Claim) {
        if let Some(batch) = self.batches.get_mut(&slot) {
            batch.totals.cost_usd_micro += claim.cost;
            batch.totals.over_budget_usd_micro += claim.over;
        }
    }

    /// The batch has ended: its record says how, and nothing else of it is kept but its answers' places.
    pub fn end(&mut self, now: Now, slot: BatchSlot, state: BatchState) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        batch.record.state = state;
        batch.record.ended_at = Some(now.wall);
        batch.record.totals = batch.totals;
        self.text_bytes -= batch.text_bytes;
        batch.text_bytes = 0;
        batch.answering = 0;
        batch.live.clear();
        batch.fault_reports.clear();
        batch.queues.clear();
        batch.delayed.clear();
        batch.same.clear();
        batch.following = 0;
        batch.commits.shrink_to_fit();
        if self.active.remove(&slot) {
            self.keep_ended(slot);
        }
    }

    /// The record of an ended batch is stored, and names the object that holds its answers: readers go on from there.
    pub fn archived(&mut self, id: &BatchId) {
        let slot = self.find(id);
        if let Some(batch) = slot.and_then(|slot| self.batches.get_mut(&slot)) {
            (batch.commits, batch.cells) = (Vec::new(), Vec::new());
        }
    }

    /// An ended completion whose answer is nowhere any more: whoever asks for it again starts it again.
    pub fn forget_single(&mut self, id: &BatchId) {
        let Some(slot) = self.find(id) else { return };
        if self.batches.get(&slot).is_some_and(|batch| batch.record.single && batch.is_ended()) {
            self.batches.remove(&slot);
            self.slots.remove(id);
            self.ended_singles.retain(|ended| *ended != slot);
        }
    }

    /// Ended ones whose webhook is still to be called.
    pub fn to_notify(&self) -> impl Iterator<Item = &BatchRecord> {
        let records = self.ended.iter().map(|slot| &self.batches[slot].record);
        records.filter(|record| record.webhook == Some(WebhookState::Calling))
    }

    fn keep_ended(&mut self, slot: BatchSlot) {
        let Self { batches, slots, ended, ended_singles, .. } = self;
        let single = batches.get(&slot).is_some_and(|batch| batch.record.single);
        let (ended, most) = if single { (ended_singles, SINGLES_MAX) } else { (ended, ENDED_MAX) };
        ended.push_back(slot);
        while ended.len() > most {
            // One whose webhook is still being called is remembered until that is settled.
            let settled = |slot: &BatchSlot| batches[slot].record.webhook != Some(WebhookState::Calling);
            let Some(oldest) = ended.iter().position(settled).and_then(|at| ended.remove(at)) else { break };
            if let Some(batch) = batches.remove(&oldest) {
                slots.remove(&batch.record.id);
            }
        }
    }
}
