//! Answers and faults: which result commits a job, what a duplicate is, when a job has failed for good.

use std::time::Duration;

use ternfleet_proto::message::{
    FailedAttempt, Failure, FailureCode, JobResult, Line, Order, Outcome, Timing, Usage,
};
use ternfleet_proto::{Attempt, BatchId, Epoch, JobKey, Now, WorkerId};

use super::batch::{CellState, Stage, bare_line};
use super::event::{Action, Answer, BatchSlot, JobRef, Trace, Verdict, WorkerSlot};
use super::{Core, coordinator_name};

/// Attempts after which a job is poison when they failed on two hosts.
const ATTEMPTS_TWO_HOSTS: u32 = 3;
/// Attempts after which a job is poison wherever they failed.
const ATTEMPTS_MAX: u32 = 5;
/// Wait before another attempt; doubled with each.
const RETRY_MS: u64 = 250;
/// Answers without a batch that are remembered.
const STRAYS_MAX: usize = 4096;
/// A host is suspected when its workers have died so often that fewer jobs cannot explain it.
const HOST_CRASHES: usize = 3;
/// Different jobs that must have failed on a host before it is suspected.
const HOST_FAILURES: usize = 5;

impl Core {
    /// An answer was read at this sequence of RESULTS. The first valid one commits; every coordinator that reads
    /// the stream comes to the same verdict.
    pub(super) fn answer(&mut self, now: Now, sequence: u64, answer: &Answer, actions: &mut Vec<Action>) {
        self.results_read_to = self.results_read_to.max(sequence);
        if !self.key.verifies(answer.tag, &answer.job, answer.epoch, &answer.worker) {
            self.counts.forged_answers += 1;
            return;
        }
        let Some(slot) = self.slot_of(&answer.job.batch) else {
            self.counts.answers_without_batch += 1;
            if self.strays.len() >= STRAYS_MAX {
                self.strays.pop_front();
            }
            self.strays.push_back((sequence, answer.clone()));
            return;
        };
        let job = JobRef { batch: slot, index: answer.job.index };
        if answer.verdict == Verdict::Fault {
            self.fault_reported(now, job, answer, actions);
            return;
        }
        let batch = self.batches.get_mut(&slot).expect("because the slot was just found");
        if batch.audit.is_some() {
            self.audited(now, job, answer, actions);
            return;
        }
        if sequence <= batch.record.results_after
            || batch.record.lines.is_some_and(|lines| job.index >= lines)
        {
            self.counts.answers_without_batch += 1;
            return;
        }
        let digest = match answer.verdict {
            Verdict::Good { ids_digest } => ids_digest as u32,
            Verdict::Bad | Verdict::Fault => 0,
        };
        if !batch.is_open(job.index) {
            self.counts.duplicate_answers += 1;
            batch.totals.wasted_tokens += u64::from(answer.completion_tokens);
            self.counts.wasted_duplicate_tokens += u64::from(answer.completion_tokens);
            let cell = batch.cell(job.index);
            if cell.state == CellState::Good && digest != 0 && cell.digest != digest {
                self.counts.divergent_answers += 1;
            }
            self.land(now, job, Some(answer), actions);
            return;
        }
        let good = matches!(answer.verdict, Verdict::Good { .. });
        let cell = batch.cell_mut(job.index);
        cell.state = if good { CellState::Good } else { CellState::Bad };
        cell.digest = digest;
        batch.commits.push(sequence);
        if good {
            batch.totals.completed += 1;
        } else {
            batch.totals.failed += 1;
        }
        batch.totals.prompt_tokens += u64::from(answer.prompt_tokens);
        batch.totals.completion_tokens += u64::from(answer.completion_tokens);
        batch.totals.wasted_tokens += u64::from(answer.repeated_tokens);
        batch.tokens_made += u64::from(answer.prompt_tokens) + u64::from(answer.completion_tokens);
        let single = batch.record.single;
        self.counts.committed[usize::from(!good)] += 1;
        self.counts.prompt_tokens += u64::from(answer.prompt_tokens);
        self.counts.completion_tokens += u64::from(answer.completion_tokens);
        self.counts.wasted_repeated_tokens += u64::from(answer.repeated_tokens);
        self.learn_length(answer);
        self.learn_output(job, answer);
        let audit = self.audit_due(job, answer);
        self.land(now, job, Some(answer), actions);
        if let Some(audit) = audit {
            self.begin_audit(now, audit, actions);
        }
        if single {
            actions.push(Action::Announce { key: answer.job.clone(), sequence });
        }
        self.check_through(now, slot, actions);
        self.work_changed = true;
    }

    /// Takes the job out of the air after its answer: frees the worker, stops whoever else runs it.
    pub(super) fn land(&mut self, now: Now, job: JobRef, answer: Option<&Answer>, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let Some(live) = batch.live.remove(&job.index) else { return };
        if let Some(task) = &live.task {
            batch.text_bytes -= u64::from(task.bytes);
            self.text_bytes -= u64::from(task.bytes);
        }
        if live.answering {
            batch.answering -= 1;
        }
        if live.flight.is_none()
            && let Some(queue) = batch.queues.get_mut(live.queue)
        {
            // An old owner answered while the job waited for a new one.
            queue.jobs.retain(|index| *index != job.index);
        }
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        let Some(flight) = live.flight else { return };
        batch.in_flight -= 1;
        batch.release(flight.tokens, flight.cost);
        let Some(worker) = self.fleet.get_mut(flight.worker) else { return };
        worker.flights.remove(&job);
        worker.held_tokens = worker.held_tokens.saturating_sub(u64::from(flight.tokens));
        let by_owner = answer.is_some_and(|a| a.worker == worker.beat.worker && a.epoch == flight.epoch);
        if by_owner {
            let answer = answer.expect("because it was just looked into");
            let made = answer.prompt_tokens + answer.completion_tokens;
            let pod = worker.beat.pod.clone();
            let host = worker.beat.host.clone();
            worker.tokens_made += u64::from(made);
            if let Some(pod) = self.fleet.pods.get_mut(&pod) {
                pod.bill.made(job.batch, u64::from(made.saturating_sub(flight.counted)));
            }
            if let Some(host) = self.fleet.hosts.get_mut(&host) {
                host.succeeded += 1;
            }
            self.counts.handover_ms_sum += now.since(flight.since).as_millis() as u64;
        } else if flight.stage != Stage::Withdrawing {
            let order = Order::Revoke { job: key.clone(), epoch: flight.epoch };
            let (name, shard) = (worker.beat.worker.clone(), worker.shard);
            self.act(actions, Action::Tell { worker: Some(name), order });
            let (epoch, sequence) = (flight.epoch, flight.sequence);
            self.act(actions, Action::Withdraw { job, key, epoch, shard, sequence });
        }
    }

    /// A worker says that it could not go on with a job.
    fn fault_reported(&mut self, now: Now, job: JobRef, answer: &Answer, actions: &mut Vec<Action>) {
        self.counts.worker_faults += 1;
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        if !batch.is_open(job.index) {
            return;
        }
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        let Some(flight) = live.flight.clone() else { return };
        let Some(worker) = self.fleet.get(flight.worker) else { return };
        if flight.epoch != answer.epoch
            || worker.beat.worker != answer.worker
            || flight.stage == Stage::Withdrawing
        {
            return;
        }
        let failed = FailedAttempt {
            at: now.wall,
            worker: Some(answer.worker.clone()),
            host: Some(worker.beat.host.clone()),
            generated: flight.generated.max(answer.completion_tokens),
            reason: answer.fault.as_deref().unwrap_or("it could not go on").to_owned(),
        };
        live.faulted.push(flight.worker);
        self.take_off(job);
        if let Some(host) = &failed.host {
            self.blame_host(job, &host.clone());
        }
        self.failed_once(now, job, failed, actions);
    }

    /// The job leaves its worker; its flight is forgotten.
    pub(super) fn take_off(&mut self, job: JobRef) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        let Some(flight) = live.flight.take() else { return };
        batch.in_flight -= 1;
        batch.release(flight.tokens, flight.cost);
        if let Some(worker) = self.fleet.get_mut(flight.worker) {
            worker.flights.remove(&job);
            worker.held_tokens = worker.held_tokens.saturating_sub(u64::from(flight.tokens));
        }
        self.work_changed = true;
    }

    /// Begins to take a job back: delete, look at its last checkpoint, then decide. `blame` makes it an attempt.
    pub(super) fn withdraw(&mut self, job: JobRef, blame: bool, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        let Some(flight) = batch.live.get_mut(&job.index).and_then(|live| live.flight.as_mut()) else {
            return;
        };
        if flight.stage == Stage::Withdrawing {
            flight.blame |= blame;
            return;
        }
        flight.stage = Stage::Withdrawing;
        flight.blame = blame;
        let (epoch, sequence, slot) = (flight.epoch, flight.sequence, flight.worker);
        batch.moved = true;
        let shard = self.fleet.get(slot).map_or(0, |worker| worker.shard);
        if let Some(worker) = self.fleet.get(slot) {
            let name = worker.beat.worker.clone();
            let order = Order::Revoke { job: key.clone(), epoch };
            self.act(actions, Action::Tell { worker: Some(name), order });
        }
        self.counts.moved_jobs += 1;
        self.act(actions, Action::Withdraw { job, key, epoch, shard, sequence });
    }

    /// All that a host's workers have goes elsewhere, and none of it is their fault.
    pub(super) fn withdraw_from(&mut self, host: &str, actions: &mut Vec<Action>) {
        let there = self.fleet.workers.values().filter(|worker| worker.beat.host == host);
        let held: Vec<JobRef> = there.flat_map(|worker| worker.flights.iter().copied()).collect();
        for job in held {
            self.withdraw(job, false, actions);
        }
    }

    /// The message is gone: the job may go elsewhere.
    pub(super) fn withdrawn(
        &mut self,
        now: Now,
        job: JobRef,
        epoch: Epoch,
        trace: Option<Trace>,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        let Some(flight) = live.flight.as_ref() else { return };
        if flight.stage != Stage::Withdrawing || flight.epoch != epoch {
            return;
        }
        let (blame, at) = (flight.blame, flight.worker);
        // Started means: the owner claimed this very epoch and did not give it back.
        let started = trace.as_ref().is_some_and(|t| t.epoch == epoch && !t.released);
        let failed = FailedAttempt {
            at: now.wall,
            worker: trace.as_ref().map(|t| t.owner.clone()),
            host: trace.as_ref().map(|t| t.host.clone()),
            generated: trace.as_ref().map_or(0, |t| t.generated),
            reason: "its worker was lost while it ran".to_owned(),
        };
        // A job that this leader hands out for the first time brings its attempts under earlier leaders with it.
        if let Some(trace) = &trace
            && live.handovers <= 1
        {
            live.attempts =
                live.attempts.max(trace.attempt.0.saturating_sub(u32::from(started || trace.released)));
        }
        self.take_off(job);
        // The host is looked at before the job: where workers die at everything, no job is to blame.
        if blame && started && !self.died_of_its_host(job, at) {
            self.failed_once(now, job, failed, actions);
        } else {
            self.requeue(now, job, 0, actions);
        }
    }

    /// An attempt has failed; another one follows, or the job is poison.
    pub(super) fn failed_once(
        &mut self,
        now: Now,
        job: JobRef,
        failed: FailedAttempt,
        actions: &mut Vec<Action>,
    ) {
        self.counts.failed_attempts += 1;
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        if batch.audit.is_some() {
            self.give_up_audit(now, job, actions);
            return;
        }
        let Some(live) = batch.live.get_mut(&job.index) else { return };
        live.attempts += 1;
        if let Some(host) = &failed.host
            && !live.hosts.contains(host)
        {
            live.hosts.push(host.clone());
        }
        live.log.push(failed);
        let (attempts, hosts) = (live.attempts, live.hosts.len());
        if attempts >= ATTEMPTS_MAX || (attempts >= ATTEMPTS_TWO_HOSTS && hosts >= 2) {
            self.poison(now, job, actions);
        } else {
            // Jitter by identity: reproducible, and different for each job.
            let jitter_ms = u64::from(job.index.wrapping_mul(2_654_435_761) >> 24);
            self.requeue(now, job, (RETRY_MS << attempts) + jitter_ms, actions);
        }
    }

    fn poison(&mut self, now: Now, job: JobRef, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get(&job.batch) else { return };
        let Some(live) = batch.live.get(&job.index) else { return };
        let attempts = live.attempts;
        let last = live.log.last().map_or(String::new(), |failed| format!("; the last: {}", failed.reason));
        let reason = format!("{attempts} attempts failed on {}{last}", live.hosts.join(", "));
        let line =
            live.task.as_ref().map_or_else(|| bare_line(job.index, &batch.record), |task| task.line.clone());
        let dead = Action::Dead {
            tenant: batch.record.tenant.clone(),
            key: JobKey { batch: batch.record.id.clone(), index: job.index },
            line: Box::new(line),
            attempts,
            hosts: live.hosts.clone(),
            reason: reason.clone(),
            log: live.log.clone(),
        };
        self.counts.dead_jobs += 1;
        // What this job explains speaks against no host.
        self.fleet.hosts.values_mut().for_each(|host| host.crashes.retain(|_, jobs| !jobs.contains(&job)));
        self.act(actions, dead);
        self.answer_ourselves(now, job, None, FailureCode::Poison, reason, actions);
    }

    /// Puts a job back to the front of its queue, or keeps it for later.
    pub(super) fn requeue(&mut self, now: Now, job: JobRef, delay_ms: u64, actions: &mut Vec<Action>) {
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        if batch.record.ending.is_some() {
            self.answer_ending(now, job, actions);
            return;
        }
        let Some(live) = batch.live.get(&job.index) else { return };
        // It was found running while it waited.
        if live.flight.is_some() {
            return;
        }
        if live.task.is_none() {
            // Its line has not been read yet, or must be read again.
            batch.live.remove(&job.index);
            batch.read_next = batch.read_next.min(job.index);
            batch.read_end = false;
        } else if delay_ms > 0 {
            batch.delayed.insert((now.mono.plus(Duration::from_millis(delay_ms)), job.index), ());
        } else if let Some(queue) = batch.queues.get_mut(live.queue) {
            queue.jobs.push_front(job.index);
            if batch.is_interactive() {
                self.interactive.push_back(job);
            }
        }
        self.work_changed = true;
        self.join(now, job.batch);
    }

    /// Answers a line that never runs, or never again.
    pub(super) fn answer_ourselves(
        &mut self,
        now: Now,
        job: JobRef,
        line: Option<Line>,
        code: FailureCode,
        message: String,
        actions: &mut Vec<Action>,
    ) {
        let Some(lead) = self.lead else { return };
        let Some(batch) = self.batches.get_mut(&job.batch) else { return };
        if !batch.is_open(job.index) {
            return;
        }
        let live = batch.live.entry(job.index).or_default();
        if live.answering {
            return;
        }
        live.answering = true;
        batch.answering += 1;
        let line = line
            .or_else(|| live.task.as_ref().map(|task| task.line.clone()))
            .unwrap_or_else(|| bare_line(job.index, &batch.record));
        let key = JobKey { batch: batch.record.id.clone(), index: job.index };
        let epoch = Epoch(lead.term << super::EPOCH_TERM_SHIFT);
        let worker = coordinator_name();
        let result = JobResult {
            tag: self.key.sign(&key, epoch, &worker),
            job: key,
            tenant: batch.record.tenant.clone(),
            epoch,
            attempt: Attempt(live.attempts),
            worker,
            line,
            outcome: Outcome::Failed(Failure { code, message }),
            usage: Usage::default(),
            timing: Timing::default(),
            finished_at: now.wall,
            traceparent: None,
        };
        actions.push(Action::Answer(Box::new(result)));
    }

    /// A job failed on this host. Many different ones make the host suspect, not the jobs.
    fn blame_host(&mut self, job: JobRef, name: &str) {
        let healthy = self.fleet.healthy_hosts();
        let Some(host) = self.fleet.hosts.get_mut(name) else { return };
        host.failed.insert(job);
        if host.quarantined
            || host.failed.len() < HOST_FAILURES
            || host.failed.len() < host.succeeded as usize / 4
        {
            return;
        }
        if healthy <= 1 {
            self.counts.last_host_suspect += 1;
            return;
        }
        self.quarantine(name);
    }

    /// A worker died with this job. True if that counts against its host alone, which is shut out.
    fn died_of_its_host(&mut self, job: JobRef, worker: WorkerSlot) -> bool {
        let healthy = self.fleet.healthy_hosts();
        let Some(name) = self.fleet.get(worker).map(|worker| worker.beat.host.clone()) else { return false };
        let Some(host) = self.fleet.hosts.get_mut(&name) else { return false };
        if host.quarantined {
            return true;
        }
        host.crashes.entry(worker).or_default().insert(job);
        if host.jobs_behind_crashes() < HOST_CRASHES {
            return false;
        }
        if healthy <= 1 {
            self.counts.last_host_suspect += 1;
            return false;
        }
        // This attempt was not counted yet.
        if let Some(crash) = host.crashes.get_mut(&worker) {
            crash.remove(&job);
        }
        self.quarantine(&name);
        true
    }

    /// The host gets nothing more, and jobs that failed there get their attempts back.
    fn quarantine(&mut self, name: &str) {
        let Some(host) = self.fleet.hosts.get_mut(name) else { return };
        host.quarantined = true;
        self.counts.quarantined_hosts += 1;
        let failed = std::mem::take(&mut host.failed);
        let crashes = std::mem::take(&mut host.crashes);
        for job in failed.into_iter().chain(crashes.into_values().flatten()) {
            let live = self.batches.get_mut(&job.batch).and_then(|batch| batch.live.get_mut(&job.index));
            if let Some(live) = live {
                live.attempts = live.attempts.saturating_sub(1);
                live.hosts.retain(|host| host != name);
                live.log.retain(|failed| failed.host.as_deref() != Some(name));
            }
        }
    }

    pub(super) fn slot_of(&self, batch: &BatchId) -> Option<BatchSlot> {
        self.slots.get(batch).copied()
    }

    /// Learns how long outputs are compared with what was reckoned.
    fn learn_length(&mut self, answer: &Answer) {
        if matches!(answer.verdict, Verdict::Good { .. }) {
            let made = f64::from(answer.prompt_tokens + answer.completion_tokens);
            self.mean_job_tokens += 0.01 * (made - self.mean_job_tokens);
        }
    }

    /// True if the worker is the coordinator itself.
    pub(super) fn is_ours(worker: &WorkerId) -> bool {
        worker.as_str() == super::COORDINATOR
    }
}
