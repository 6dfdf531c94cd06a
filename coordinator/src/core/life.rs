//! The life of a batch: accepted, running, paused, ending, written, ended. And of this coordinator: beginning to lead.

use std::time::Duration;

use ternfleet_proto::message::{
    BatchCreate, BatchState, EventKind, Input, JobCreate, Order, Refusal, RefusalCode, WebhookState,
};
use ternfleet_proto::{BatchId, Deadline, JobKey, Now, TenantId, TimeMs, UsdMicro};

use super::batch::{Batch, Stage};
use super::event::{Action, Answer, BatchSlot, Change, Content, Fed, JobRef, Lead, Outputs, Task};
use super::record::{BatchRecord, Ending, Ground};
use super::{Core, estimate};

/// Ended batches kept in memory for readers; older ones are told from their record.
const ENDED_MAX: usize = 200;
/// Answered single jobs kept in memory, for callers who ask again.
const SINGLES_MAX: usize = 2000;

impl Core {
    pub(super) fn begin_to_lead(&mut self, now: Now, lead: Lead, actions: &mut Vec<Action>) {
        self.lead = Some(lead);
        self.swept_at = now.mono;
        actions.push(Action::ClearWork);
        let slots: Vec<BatchSlot> = self.active.iter().copied().collect();
        // Workers say within a second what they run; what nobody runs is handed out after that.
        let settle = Duration::from_millis(if slots.is_empty() { 0 } else { self.limits.settle_ms });
        self.hand_after = now.mono.plus(settle);
        for slot in slots {
            let Some(batch) = self.batches.get_mut(&slot) else { continue };
            // What was replayed was not made just now.
            batch.rate_sample = (now.mono, batch.tokens_made);
            if batch.record.lines.is_none() {
                actions.push(Action::Scan { batch: slot });
            }
            self.check_through(now, slot, actions);
        }
        for slot in &self.ended {
            let record = &self.batches[slot].record;
            if record.webhook == Some(WebhookState::Calling) {
                actions.push(Action::Notify(Box::new(record.clone())));
            }
        }
        for worker in self.fleet.workers.values_mut() {
            worker.registered = false;
        }
        actions.push(Action::Tell { worker: None, order: Order::Identify });
        self.work_changed = true;
    }

    /// A stored batch: new, or found at the start.
    pub(super) fn batch_known(&mut self, now: Now, record: BatchRecord, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slot_of(&record.id) {
            self.record_followed(now, slot, record);
            return;
        }
        let slot = BatchSlot(self.next_slot);
        self.next_slot += 1;
        self.slots.insert(record.id.clone(), slot);
        let ended = record.state.is_terminal();
        let scan = record.lines.is_none();
        let (id, tenant, state) = (record.id.clone(), record.tenant.clone(), record.state);
        self.batches.insert(slot, Batch::new(now, record));
        if ended {
            let batch = self.batches.get_mut(&slot).expect("because it was just inserted");
            batch.totals = batch.record.totals;
            self.keep_ended(slot);
            return;
        }
        self.active.insert(slot);
        self.act(actions, Action::Audit(EventKind::BatchChanged { batch: id, tenant, state }));
        if scan {
            self.act(actions, Action::Scan { batch: slot });
        } else {
            self.check_through(now, slot, actions);
        }
        self.work_changed = true;
    }

    /// A standby learns what the leader has stored meanwhile.
    fn record_followed(&mut self, now: Now, slot: BatchSlot, record: BatchRecord) {
        if self.lead.is_some() {
            return;
        }
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        let ended = record.state.is_terminal();
        if ended {
            batch.totals = record.totals;
        } else {
            batch.totals.cost_usd_micro = record.totals.cost_usd_micro;
        }
        if batch.record.expires_at != record.expires_at {
            batch.expiry = Deadline::new(now, record.expires_at);
        }
        batch.record = record;
        if ended && self.active.remove(&slot) {
            self.keep_ended(slot);
        }
    }

    /// An ended batch in memory becomes what its tombstone says.
    pub(super) fn aged_out(&mut self, record: BatchRecord) {
        let Some(slot) = self.slot_of(&record.id) else { return };
        if let Some(batch) = self.batches.get_mut(&slot).filter(|batch| batch.is_ended()) {
            batch.record = record;
            (batch.commits, batch.cells) = (Vec::new(), Vec::new());
        }
    }

    fn keep_ended(&mut self, slot: BatchSlot) {
        if self.batches[&slot].record.single {
            self.singles.push_back(slot);
            if self.singles.len() > SINGLES_MAX
                && let Some(batch) = self.singles.pop_front().and_then(|oldest| self.batches.remove(&oldest))
            {
                self.slots.remove(&batch.record.id);
            }
            return;
        }
        self.ended.push_back(slot);
        while self.ended.len() > ENDED_MAX {
            // One whose webhook is still being called is remembered until that is settled.
            let settled = |slot: &BatchSlot| self.batches[slot].record.webhook != Some(WebhookState::Calling);
            let Some(oldest) = self.ended.iter().position(settled).and_then(|at| self.ended.remove(at))
            else {
                break;
            };
            if let Some(batch) = self.batches.remove(&oldest) {
                self.slots.remove(&batch.record.id);
            }
        }
    }

    /// May this batch be accepted now? Called before it is stored.
    pub fn admit(&self, create: &BatchCreate, ground: &Ground) -> Result<(), Refusal> {
        let durability = ground.durability;
        let refuse = |code, message: String| Err(Refusal { code, message, retry_after_ms: None });
        if !(-10..=10).contains(&create.options.priority) {
            return refuse(RefusalCode::Invalid, "priority must be from -10 (last) to 10 (first)".to_owned());
        }
        if create.options.budget_usd_micro.is_some_and(|budget| budget.0 <= 0) {
            return refuse(RefusalCode::Invalid, "budget_usd_micro must be positive".to_owned());
        }
        if let Some(wanted) = create.options.durability
            && durability < wanted
        {
            let message = format!(
                "the batch demands {wanted:?} and this fleet's streams are {durability:?}; \
                 see the replicas and sync_interval settings of NATS"
            );
            return refuse(RefusalCode::NotDurable, message);
        }
        self.admit_quota(&create.tenant, ground)
    }

    fn admit_quota(&self, tenant: &TenantId, ground: &Ground) -> Result<(), Refusal> {
        let quotas = &self.limits.quotas;
        let Ground { input_bytes, stored_bytes, .. } = *ground;
        if stored_bytes > quotas.stored_bytes_max {
            let message = format!(
                "the files of tenant {tenant} take {stored_bytes} bytes, this one included; the limit is {}: delete \
                 files, or wait until old batches are cleared away",
                quotas.stored_bytes_max
            );
            return Err(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(3_600_000) });
        }
        let (mut batches, mut bytes, mut tokens) = (0u32, 0u64, 0u64);
        for slot in &self.active {
            let Some(batch) = self.batches.get(slot).filter(|batch| batch.record.tenant == *tenant) else {
                continue;
            };
            batches += u32::from(!batch.record.single);
            let left = batch.bytes_left();
            bytes += left;
            tokens += estimate::tokens_of_bytes(left);
        }
        let new_tokens = estimate::tokens_of_bytes(input_bytes);
        let over = if batches >= quotas.batches_max {
            Some((format!("{batches} batches are running; the limit is {}", quotas.batches_max), 0))
        } else if bytes + input_bytes > quotas.queued_bytes_max {
            let excess = estimate::tokens_of_bytes(bytes + input_bytes - quotas.queued_bytes_max);
            Some((format!("{} bytes of input may be queued, {bytes} are", quotas.queued_bytes_max), excess))
        } else if tokens + new_tokens > quotas.queued_tokens_max {
            let excess = tokens + new_tokens - quotas.queued_tokens_max;
            Some((format!("about {} tokens may be queued, {tokens} are", quotas.queued_tokens_max), excess))
        } else {
            None
        };
        let Some((what, excess_tokens)) = over else { return Ok(()) };
        let rate: f64 = self.fleet.workers.values().map(|worker| worker.rate.mean_tok_s()).sum();
        let wait_s = if rate > 0.0 { (excess_tokens as f64 / rate).clamp(1.0, 600.0) } else { 60.0 };
        let message = format!("the quota of tenant {tenant} is used up: {what}; try again in {wait_s:.0} s");
        Err(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some((wait_s * 1000.0) as u64) })
    }

    /// May this single job be accepted now? It counts towards its tenant's quota like the lines of a batch.
    pub fn admit_single(&self, job: &JobCreate) -> Result<(), Refusal> {
        let refuse =
            |message: String| Err(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(1_000) });
        let (tenant, quotas) = (&job.tenant, &self.limits.quotas);
        let open = self.active.iter().map(|slot| &self.batches[slot]);
        let mut singles = 0u32;
        let mut bytes = u64::from(estimate::bytes(&job.generation));
        for batch in open.filter(|batch| batch.record.tenant == *tenant) {
            singles += u32::from(batch.record.single);
            bytes += batch.bytes_left();
        }
        if singles >= quotas.completions_max {
            let max = quotas.completions_max;
            return refuse(format!("{max} completions of tenant {tenant} are waiting, the limit"));
        }
        if bytes > quotas.queued_bytes_max || estimate::tokens_of_bytes(bytes) > quotas.queued_tokens_max {
            return refuse(format!(
                "the quota of tenant {tenant} is used up: {bytes} bytes of input are queued"
            ));
        }
        Ok(())
    }

    /// A single job that somebody waits for: a batch of one line that is stored nowhere but in RESULTS. One that was
    /// asked for before is looked for first, among the answers and at the workers.
    pub(super) fn job_created(&mut self, now: Now, job: JobCreate, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slot_of(&job.batch) {
            // Its answer was told once, and may not have been heard.
            if let Some(&sequence) = self.batches.get(&slot).and_then(|batch| batch.commits.first()) {
                let key = JobKey { batch: job.batch, index: 0 };
                actions.push(Action::Announce { key, sequence });
            }
            return;
        }
        let (again, id) = (job.again, job.batch.clone());
        let record = BatchRecord {
            traceparent: job.traceparent,
            input_bytes: u64::from(estimate::bytes(&job.generation)),
            ..BatchRecord::single(now.wall, job.batch.clone(), job.tenant, job.line.endpoint, job.deadline)
        };
        let task = Task {
            tokens_estimate: estimate::tokens(&job.generation),
            bytes: estimate::bytes(&job.generation),
            line: job.line,
            input: Input::Inline(job.generation),
        };
        self.batch_known(now, record, actions);
        let Some(slot) = self.slot_of(&job.batch) else { return };
        let fed = Fed { index: 0, content: Content::Good(task.into()) };
        self.lines_read(now, slot, vec![fed], 1, true, actions);
        let job = JobRef { batch: slot, index: 0 };
        if !again {
            self.interactive.push_back(job);
            return;
        }
        // Whoever runs it says so within a second and keeps it; otherwise it is handed out anew.
        if let Some(batch) = self.batches.get_mut(&slot) {
            batch.queues.iter_mut().for_each(|queue| queue.jobs.clear());
            batch.delayed.insert((now.mono.plus(Duration::from_millis(self.limits.settle_ms)), 0), ());
        }
        let found: Vec<(u64, Answer)> =
            self.strays.iter().filter(|(_, a)| a.job.batch == id).cloned().collect();
        for (sequence, answer) in found {
            self.answer(now, sequence, &answer, actions);
        }
    }

    pub(super) fn input_lost(
        &mut self,
        now: Now,
        slot: BatchSlot,
        reason: String,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        batch.reading = false;
        if batch.is_ended() {
            return;
        }
        batch.record.reason = Some(reason);
        self.stop_jobs(now, slot, actions);
        self.end(now, slot, BatchState::Failed, actions);
    }

    pub(super) fn cancel(&mut self, now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        self.begin_ending(now, slot, Ending::Cancelled, actions);
    }

    /// Stops feeding; what has not run gets an error line, what has run stays.
    pub(super) fn begin_ending(
        &mut self,
        now: Now,
        slot: BatchSlot,
        ending: Ending,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        if batch.is_ended() || batch.record.ending.is_some() || batch.writing {
            return;
        }
        batch.record.ending = Some(ending);
        match ending {
            Ending::Cancelled => {
                batch.record.state = BatchState::Cancelling;
                batch.record.cancelling_at = Some(now.wall);
            }
            Ending::Expired => {
                batch.record.state = BatchState::Finalizing;
                batch.record.finalizing_at = Some(now.wall);
            }
        }
        self.changed(now, slot, actions);
        self.stop_jobs(now, slot, actions);
        self.check_through(now, slot, actions);
        self.work_changed = true;
    }

    /// Takes every job of the batch out of queues and from workers.
    fn stop_jobs(&mut self, now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        let id = batch.record.id.clone();
        for queue in &mut batch.queues {
            queue.jobs.clear();
        }
        batch.delayed.clear();
        let in_flight = batch.in_flight > 0;
        let live: Vec<(u32, bool)> =
            batch.live.iter().map(|(index, live)| (*index, live.flight.is_some())).collect();
        if in_flight {
            self.act(actions, Action::Tell { worker: None, order: Order::Cancel { batch: id } });
        }
        for (index, flying) in live {
            let job = JobRef { batch: slot, index };
            if flying {
                self.withdraw(job, false, actions);
            } else {
                self.answer_ending(now, job, actions);
            }
        }
    }

    pub(super) fn change(&mut self, now: Now, slot: BatchSlot, change: Change, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        if batch.is_ended() || batch.record.ending.is_some() {
            return;
        }
        let options = &mut batch.record.options;
        options.budget_usd_micro = change.budget_usd_micro.or(options.budget_usd_micro);
        options.priority = change.priority.unwrap_or(options.priority);
        if let Some(deadline) = change.deadline {
            options.deadline = Some(deadline);
            let window = options.completion_window_ms.unwrap_or(super::COMPLETION_WINDOW_MS);
            batch.record.expires_at = deadline.min(TimeMs(batch.record.created_at.0.saturating_add(window)));
            batch.expiry = Deadline::new(now, batch.record.expires_at);
        }
        if batch.record.state == BatchState::PausedBudget && batch.budget_left() > UsdMicro::ZERO {
            batch.record.state = BatchState::InProgress;
            batch.record.reason = None;
        }
        self.changed(now, slot, actions);
        self.join(now, slot);
    }

    /// Budget spent, or the rest too small for one more job: wait for more money.
    pub(super) fn pause(&mut self, now: Now, slot: BatchSlot, reason: String, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        batch.record.state = BatchState::PausedBudget;
        batch.record.reason = Some(reason);
        let flying: Vec<u32> = batch
            .live
            .iter()
            .filter(|(_, live)| live.flight.as_ref().is_some_and(|flight| flight.stage != Stage::Withdrawing))
            .map(|(index, _)| *index)
            .collect();
        for index in flying {
            self.withdraw(JobRef { batch: slot, index }, false, actions);
        }
        self.changed(now, slot, actions);
    }

    /// Every line answered: write the files.
    pub(super) fn check_through(&mut self, now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        if self.lead.is_none() || batch.is_ended() || batch.writing || !batch.is_through() {
            return;
        }
        if batch.record.single {
            self.end(now, slot, BatchState::Completed, actions);
            return;
        }
        batch.writing = true;
        if batch.record.ending != Some(Ending::Cancelled) {
            batch.record.state = BatchState::Finalizing;
            batch.record.finalizing_at.get_or_insert(now.wall);
        }
        self.changed(now, slot, actions);
        self.act(actions, Action::StopReading { batch: slot });
        self.act(actions, Action::Write { batch: slot });
    }

    pub(super) fn written(
        &mut self,
        now: Now,
        slot: BatchSlot,
        outputs: Result<Outputs, String>,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        if batch.is_ended() {
            return;
        }
        let state = match outputs {
            Ok(outputs) => {
                batch.record.output_object = outputs.output_object;
                batch.record.error_object = outputs.error_object;
                batch.end_state()
            }
            Err(reason) => {
                batch.record.reason = Some(reason);
                BatchState::Failed
            }
        };
        self.end(now, slot, state, actions);
    }

    pub(super) fn end(&mut self, now: Now, slot: BatchSlot, state: BatchState, actions: &mut Vec<Action>) {
        // What its last jobs cost belongs to it.
        self.accrue(now, actions);
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        batch.record.state = state;
        batch.record.ended_at = Some(now.wall);
        batch.record.totals = batch.totals;
        let notify = batch.record.webhook == Some(WebhookState::Waiting);
        if notify {
            batch.record.webhook = Some(WebhookState::Calling);
        }
        self.text_bytes -= batch.text_bytes;
        batch.text_bytes = 0;
        batch.live.clear();
        batch.queues.clear();
        batch.delayed.clear();
        let (id, single, fenced) = (batch.record.id.clone(), batch.record.single, batch.moved);
        let tenant = (!single).then(|| batch.record.tenant.clone());
        self.active.remove(&slot);
        self.act(actions, Action::StopReading { batch: slot });
        self.changed(now, slot, actions);
        self.act(actions, Action::Forget { batch: id, tenant, fenced });
        if single {
            self.batches.get_mut(&slot).expect("because it was just there").commits.shrink_to_fit();
        }
        if notify && let Some(batch) = self.batches.get(&slot) {
            let record = Box::new(batch.record.clone());
            self.act(actions, Action::Notify(record));
        }
        self.keep_ended(slot);
    }

    /// The webhook was called, or given up.
    pub(super) fn notified(&mut self, id: &BatchId, outcome: Result<(), String>, actions: &mut Vec<Action>) {
        let Some(slot) = self.slot_of(id) else { return };
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        batch.record.webhook = Some(match outcome {
            Ok(()) => WebhookState::Delivered,
            Err(reason) => WebhookState::GivenUp(reason),
        });
        let record = Box::new(batch.record.clone());
        self.act(actions, Action::Record(record));
    }

    /// The record has changed: store it and say so.
    pub(super) fn changed(&mut self, _now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&slot) else { return };
        if batch.record.single {
            return;
        }
        batch.record.totals = batch.totals;
        let record = batch.record.clone();
        let kind = EventKind::BatchChanged {
            batch: record.id.clone(),
            tenant: record.tenant.clone(),
            state: record.state,
        };
        self.act(actions, Action::Record(Box::new(record)));
        self.act(actions, Action::Audit(kind));
    }
}
