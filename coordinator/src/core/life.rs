//! The life of a batch: accepted, running, paused, ending, written, ended. And of this coordinator: beginning to lead.

use std::time::Duration;

use ternfleet_proto::message::{
    Abilities, BatchOptions, BatchState, EventKind, Input, JobCreate, Order, WebhookState,
};
use ternfleet_proto::{BatchId, Deadline, JobKey, Now, TimeMs, UsdMicro};

use super::batch::Origin;
use super::event::{Action, Answer, BatchSlot, Change, Content, Fed, JobRef, Lead, Outputs, Task};
use super::record::{BatchRecord, Ending};
use super::wanted::{Wanted, start_of};
use super::{Core, estimate};

impl Core {
    pub(super) fn begin_to_lead(&mut self, now: Now, lead: Lead, actions: &mut Vec<Action>) {
        self.lead = Some(lead);
        self.leads_since = now.mono;
        self.duties.sweep.rest(now.mono);
        actions.push(Action::ClearWork);
        self.money.begin_to_tell(now);
        let slots = self.ledger.active_slots();
        // Workers report within a second what they run; jobs that nobody runs are assigned after that.
        let settle = Duration::from_millis(if slots.is_empty() { 0 } else { self.limits.settle_ms });
        self.hand_after = now.mono.plus(settle);
        for slot in slots {
            let Some(batch) = self.ledger.get_mut(slot) else { continue };
            // What was replayed was not made just now.
            batch.rate_sample = (now.mono, batch.tokens_made);
            // The earlier leader may have taken jobs back from workers that are paused and do not know it.
            batch.moved = true;
            if batch.record.lines.is_none() {
                actions.push(Action::Scan { batch: slot });
            }
            self.check_through(now, slot, actions);
        }
        actions.extend(self.ledger.to_notify().map(|record| Action::Notify(Box::new(record.clone()))));
        for worker in self.fleet.workers.values_mut() {
            worker.registered = false;
        }
        actions.push(Action::Tell { worker: None, order: Order::Identify });
        self.work_changed = true;
    }

    /// A stored batch: new, or found at the start.
    pub(super) fn batch_known(&mut self, now: Now, record: BatchRecord, actions: &mut Vec<Action>) {
        if let Some(slot) = self.ledger.find(&record.id) {
            match self.lead {
                None => self.ledger.follow(now, slot, record),
                Some(lead) if record.leader < lead.revision => {
                    self.wanted_before(now, slot, &record, actions)
                }
                Some(_) => {}
            }
            return;
        }
        let origin = if record.single { Origin::Caller } else { Origin::File };
        let (scan, ended) = (record.lines.is_none(), record.state.is_terminal());
        let (id, tenant, state) = (record.id.clone(), record.tenant.clone(), record.state);
        self.checks.learn(&record, false);
        let slot = self.ledger.open(now, record, origin);
        if ended {
            return;
        }
        self.act(actions, Action::Audit(EventKind::BatchChanged { batch: id, tenant, state }));
        if scan {
            self.act(actions, Action::Scan { batch: slot });
        } else {
            self.check_through(now, slot, actions);
        }
        self.work_changed = true;
    }

    /// An earlier leader had said yes to a caller, and its record came after this leader had begun.
    fn wanted_before(&mut self, now: Now, slot: BatchSlot, stored: &BatchRecord, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get(slot) else { return };
        if !batch.record.misses(stored, batch.record.leader) {
            return;
        }
        match stored.ending {
            Some(ending) => self.begin_ending(now, slot, ending, actions),
            None => {
                let BatchOptions { budget_usd_micro, deadline, priority, .. } = stored.options;
                let change = Change { budget_usd_micro, deadline, priority: Some(priority) };
                self.change(now, slot, change, actions);
            }
        }
    }

    /// A single job that somebody waits for: a batch of one line that is stored nowhere but in RESULTS. One that was
    /// asked for before is looked for first, among the answers and at the workers.
    pub(super) fn job_created(&mut self, now: Now, job: JobCreate, actions: &mut Vec<Action>) {
        if let Some(slot) = self.ledger.find(&job.batch) {
            // Its answer was told once, and may not have been heard.
            if let Some(&sequence) = self.ledger.get(slot).and_then(|batch| batch.commits.first()) {
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
        let (mut generation, key) = (job.generation, JobKey { batch: job.batch.clone(), index: 0 });
        let task = Task {
            // One that was asked for before may be on its way.
            wanted: Wanted::of(&mut generation, key.seed()).filter(|_| !job.again),
            start: start_of(&generation.prompt),
            tokens_estimate: estimate::tokens(&generation),
            bytes: estimate::bytes(&generation),
            line: job.line,
            constrained: generation.is_constrained(),
            needs: Abilities::needed_by(&generation),
            input: Input::Inline(generation),
        };
        self.batch_known(now, record, actions);
        let Some(slot) = self.ledger.find(&job.batch) else { return };
        let fed = Fed { index: 0, content: Content::Good(task.into()) };
        self.lines_read(now, slot, vec![fed], 1, true, actions);
        if !again {
            return;
        }
        // A worker that runs it reports it within a second and keeps it; otherwise it is assigned again.
        let job = JobRef { batch: slot, index: 0 };
        self.ledger.unqueue(job);
        self.ledger.defer(job, Some(now.mono.plus(Duration::from_millis(self.limits.settle_ms))));
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
        let Some(batch) = self.ledger.get_mut(slot) else { return };
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
        let Some(batch) = self.ledger.get_mut(slot) else { return };
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
        self.changed(slot, actions);
        self.stop_jobs(now, slot, actions);
        self.check_through(now, slot, actions);
        self.work_changed = true;
    }

    /// Takes every job of the batch out of queues and from workers.
    fn stop_jobs(&mut self, now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        let id = batch.record.id.clone();
        for queue in &mut batch.queues {
            queue.jobs.clear();
        }
        batch.delayed.clear();
        let live: Vec<JobRef> =
            batch.live.keys().map(|index| JobRef { batch: slot, index: *index }).collect();
        if self.flights.committed(slot).jobs > 0 {
            self.act(actions, Action::Tell { worker: None, order: Order::Cancel { batch: id } });
        }
        for job in live {
            if self.flights.get(job).is_some() {
                self.withdraw(job, false, actions);
            } else {
                self.answer_ending(now, job, actions);
            }
        }
    }

    pub(super) fn change(&mut self, now: Now, slot: BatchSlot, change: Change, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
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
        self.changed(slot, actions);
        self.join(now, slot);
    }

    /// Budget spent, or the rest too small for one more job: wait for more money.
    pub(super) fn pause(&mut self, slot: BatchSlot, reason: String, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        batch.record.state = BatchState::PausedBudget;
        batch.record.reason = Some(reason);
        let flying: Vec<JobRef> = self.flights.of_batch(slot).map(|(job, _)| job).collect();
        for job in flying {
            self.withdraw(job, false, actions);
        }
        self.changed(slot, actions);
    }

    /// Every line answered: write the files.
    pub(super) fn check_through(&mut self, now: Now, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
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
        self.changed(slot, actions);
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
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        if batch.is_ended() {
            return;
        }
        let state = match outputs {
            Ok(outputs) => {
                batch.record.output_object = outputs.output_object;
                batch.record.error_object = outputs.error_object;
                batch.record.answers_object = outputs.answers_object;
                batch.record.proof_object = outputs.proof_object;
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
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        let notify = batch.record.webhook == Some(WebhookState::Waiting);
        if notify {
            batch.record.webhook = Some(WebhookState::Calling);
        }
        // A single job may have been begun by an earlier leader, under the same name and unknown to this one.
        let may_be_older = batch.record.single && self.lead.is_some_and(|lead| lead.term > 1);
        let (id, fenced) = (batch.record.id.clone(), batch.moved || may_be_older);
        let read = !batch.record.single;
        if batch.record.single && self.lead.is_some() {
            let commits = batch.commits.iter();
            commits.for_each(|sequence| self.leftovers.of_completion(now.mono, &id, *sequence));
        }
        self.flights.close_batch(slot);
        self.ledger.end(now, slot, state);
        self.act(actions, Action::StopReading { batch: slot });
        self.changed(slot, actions);
        if let Some(batch) = self.ledger.get(slot) {
            self.checks.learn(&batch.record, true);
        }
        self.act(actions, Action::Forget { batch: id, read, fenced });
        if notify && let Some(batch) = self.ledger.get(slot) {
            let record = Box::new(batch.record.clone());
            self.act(actions, Action::Notify(record));
        }
    }

    /// The webhook was called, or given up.
    pub(super) fn notified(&mut self, id: &BatchId, outcome: Result<(), String>, actions: &mut Vec<Action>) {
        let Some(slot) = self.ledger.find(id) else { return };
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        batch.record.webhook = Some(match outcome {
            Ok(()) => WebhookState::Delivered,
            Err(reason) => WebhookState::GivenUp(reason),
        });
        let record = Box::new(batch.record.clone());
        self.act(actions, Action::Record(record));
    }

    /// The record has changed: store it and say so.
    pub(super) fn changed(&mut self, slot: BatchSlot, actions: &mut Vec<Action>) {
        let Some(batch) = self.ledger.get_mut(slot) else { return };
        if batch.record.single {
            return;
        }
        batch.record.totals = batch.totals;
        batch.record.leader = self.lead.map_or(batch.record.leader, |lead| lead.revision);
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
