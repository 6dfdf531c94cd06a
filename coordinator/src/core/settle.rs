//! Answers and faults: which result commits a job, what a duplicate is, when a job has failed for good.

use std::time::Duration;

use ternfleet_proto::message::{
    EventKind, FailedAttempt, Failure, FailureCode, JobResult, Line, Order, Outcome, Timing, Usage,
};
use ternfleet_proto::{Attempt, Epoch, JobKey, Now, WorkerId};

use super::batch::{Origin, bare_line};
use super::event::{Action, Answer, JobRef, Trace, Verdict, WorkerSlot};
use super::flights::{Stage, Used};
use super::ledger::Commit;
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
            // It takes room from answers that count.
            self.counts.forged_answers += 1;
            self.act(actions, Action::Discard { sequence });
            return;
        }
        // Whatever has become of the job: its tag proves that this worker had it.
        if answer.verdict == Verdict::HostFault {
            self.host_fault_reported(answer, actions);
        }
        if let Some(author) = answer.rejected.as_deref() {
            self.checkpoint_rejected(now, &answer.job, &answer.worker, author, actions);
        }
        let found = self.ledger.find(&answer.job.batch).and_then(|slot| Some((slot, self.ledger.get(slot)?)));
        let Some((slot, batch)) = found else {
            self.counts.answers_without_batch += 1;
            if self.strays.len() >= STRAYS_MAX {
                self.strays.pop_front();
            }
            self.strays.push_back((sequence, answer.clone()));
            return;
        };
        let job = JobRef { batch: slot, index: answer.job.index };
        // All of its lines have answers, which are in its object: whatever comes now is removed again.
        let is_archived = batch.is_ended() && batch.record.answers_object.is_some();
        if is_archived && self.lead.is_some() {
            self.leftovers.of_ended(slot);
        }
        if !answer.verdict.is_answer() {
            self.fault_reported(now, job, answer, actions);
            return;
        }
        if batch.origin == Origin::Audit {
            // It is read here and nowhere else.
            self.act(actions, Action::Discard { sequence });
            self.audited(now, job, answer, actions);
            return;
        }
        if sequence <= batch.saved_to {
            return;
        }
        if sequence <= batch.record.results_after
            || batch.record.lines.is_some_and(|lines| job.index >= lines)
        {
            self.counts.answers_without_batch += 1;
            return;
        }
        let single = batch.record.single;
        if is_archived {
            self.counts.duplicate_answers += 1;
            self.counts.wasted_duplicate_tokens += u64::from(answer.completion_tokens);
            return;
        }
        match self.ledger.commit(job, sequence, answer) {
            Some(Commit::First) => {}
            Some(Commit::Again { diverges }) => {
                self.counts.duplicate_answers += 1;
                self.counts.divergent_answers += u64::from(diverges);
                self.counts.wasted_duplicate_tokens += u64::from(answer.completion_tokens);
                self.land(now, job, Some(answer), actions);
                if single {
                    self.act(actions, Action::Discard { sequence });
                }
                return;
            }
            None => return,
        }
        let good = matches!(answer.verdict, Verdict::Good { .. });
        self.counts.committed[usize::from(!good)] += 1;
        if Self::is_copy(answer) {
            self.counts.cached_answers += 1;
        } else {
            self.counts.prompt_tokens += u64::from(answer.prompt_tokens);
            self.counts.completion_tokens += u64::from(answer.completion_tokens);
            self.counts.wasted_repeated_tokens += u64::from(answer.repeated_tokens);
            let task = self.ledger.live(job).and_then(|live| live.task.as_deref());
            let context = self.fleet.slot(&answer.worker).and_then(|slot| self.fleet.get(slot));
            self.lengths.learn(answer, task, context.map_or(0, |worker| worker.beat.context_tokens));
        }
        let audit = self.audit_due(job, answer);
        let wanted = self.wanted(job);
        self.land(now, job, Some(answer), actions);
        if let Some(wanted) = wanted {
            self.answer_others(now, job, wanted, sequence, answer, actions);
        }
        if let Some(audit) = audit {
            self.begin_audit(now, audit, actions);
        }
        if single {
            actions.push(Action::Announce { key: answer.job.clone(), sequence });
        }
        self.check_through(now, slot, actions);
        self.work_changed = true;
    }

    /// Takes the job from its worker after its answer: frees the worker, stops whoever else runs it.
    pub(super) fn land(&mut self, now: Now, job: JobRef, answer: Option<&Answer>, actions: &mut Vec<Action>) {
        let flight = self.flights.arrive(job);
        // An old owner may have answered while the job waited for a new one.
        self.ledger.close_line(job, flight.is_none());
        let is_file = self.ledger.get(job.batch).is_some_and(|batch| !batch.record.single);
        if is_file && self.lead.is_some() {
            self.leftovers.of_job(now.mono, job);
        }
        let (Some(mut flight), Some(key)) = (flight, self.key_of(job)) else { return };
        let Some(worker) = self.fleet.get_mut(flight.worker()) else { return };
        let by_owner =
            answer.filter(|answer| answer.worker == worker.beat.worker && answer.epoch == flight.epoch);
        if let Some(answer) = by_owner {
            let made = answer.prompt_tokens + answer.completion_tokens;
            worker.tokens_made += u64::from(made);
            self.counts.worker_tokens += u64::from(made);
            let host = worker.host().to_owned();
            let heard = Used { engine_us: answer.engine_us, tokens: made };
            self.charge(now, flight.worker(), job.batch, flight.used.take(heard));
            if let Some(host) = self.fleet.hosts.get_mut(&host) {
                host.succeeded += 1;
            }
            self.counts.handover_ms_sum += now.since(flight.since).as_millis() as u64;
            return;
        }
        // Its worker may be paused and know nothing of the answer: what fences it has to stay for a while.
        if let Some(batch) = self.ledger.get_mut(job.batch) {
            batch.moved = true;
        }
        if flight.stage != Stage::Withdrawing {
            let order = Order::Revoke { job: key.clone(), epoch: flight.epoch };
            let (name, shard) = (worker.beat.worker.clone(), worker.shard);
            self.act(actions, Action::Tell { worker: Some(name), order });
            let (epoch, sequence) = (flight.epoch, flight.sequence);
            self.act(actions, Action::Withdraw { job, key, epoch, shard, sequence });
        }
    }

    /// A worker says that its machine is at fault, which a process of that name that began later may know nothing of:
    /// RESULTS is read again after a restart.
    fn host_fault_reported(&mut self, answer: &Answer, actions: &mut Vec<Action>) {
        let Some(worker) = self.fleet.slot(&answer.worker).and_then(|slot| self.fleet.get(slot)) else {
            return;
        };
        if worker.beat.started_at <= answer.finished_at {
            let host = worker.host().to_owned();
            self.shut_out(&host, actions);
        }
    }

    /// A worker says that it could not continue with a job.
    fn fault_reported(&mut self, now: Now, job: JobRef, answer: &Answer, actions: &mut Vec<Action>) {
        self.counts.worker_faults += 1;
        let Some(batch) = self.ledger.get_mut(job.batch).filter(|batch| batch.is_open(job.index)) else {
            return;
        };
        batch.fault_reports.entry(job.index).or_default().insert(answer.worker.clone());
        let Some(flight) = self.flights.get_mut(job) else { return };
        let slot = flight.worker();
        let Some(worker) = self.fleet.get(slot) else { return };
        if flight.epoch != answer.epoch
            || worker.beat.worker != answer.worker
            || flight.stage == Stage::Withdrawing
        {
            return;
        }
        let failed = FailedAttempt {
            at: now.wall,
            worker: Some(answer.worker.clone()),
            host: Some(worker.host().to_owned()),
            generated: flight.generated.max(answer.completion_tokens),
            reason: answer.fault.as_deref().unwrap_or("it could not continue").to_owned(),
        };
        let heard = Used { engine_us: answer.engine_us, tokens: answer.completion_tokens };
        let fresh = flight.used.take(heard);
        self.charge(now, slot, job.batch, fresh);
        if let Some(live) = self.ledger.live_mut(job) {
            live.faulted.push(slot);
        }
        self.take_off(job);
        let host = failed.host.clone().unwrap_or_default();
        if answer.verdict == Verdict::Fault {
            self.blame_host(job, &host, actions);
        } else if self.fleet.hosts.get(&host).is_some_and(|host| host.quarantined) {
            self.requeue(now, job, 0, actions);
            return;
        }
        self.failed_once(now, job, failed, actions);
    }

    /// The job leaves its worker without an answer; its flight is forgotten.
    pub(super) fn take_off(&mut self, job: JobRef) {
        self.work_changed |= self.flights.arrive(job).is_some();
    }

    /// Begins to take a job back: delete, look at its last checkpoint, then decide. `blame` makes it an attempt.
    pub(super) fn withdraw(&mut self, job: JobRef, blame: bool, actions: &mut Vec<Action>) {
        let Some(key) = self.key_of(job) else { return };
        let Some(flight) = self.flights.get_mut(job) else { return };
        if flight.stage == Stage::Withdrawing {
            flight.blame |= blame;
            return;
        }
        flight.stage = Stage::Withdrawing;
        flight.blame = blame;
        let (epoch, sequence, slot) = (flight.epoch, flight.sequence, flight.worker());
        if let Some(batch) = self.ledger.get_mut(job.batch) {
            batch.moved = true;
        }
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
        let there = self.fleet.workers.iter().filter(|(_, worker)| worker.host() == host);
        let held: Vec<JobRef> = there.flat_map(|(slot, _)| self.flights.of_worker(*slot)).collect();
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
        let Some(flight) = self.flights.get(job) else { return };
        if flight.stage != Stage::Withdrawing || flight.epoch != epoch {
            return;
        }
        let (blame, at) = (flight.blame, flight.worker());
        // Started means: the owner claimed this very epoch and did not give it back.
        let started = trace.as_ref().is_some_and(|t| t.epoch == epoch && !t.released);
        let failed = FailedAttempt {
            at: now.wall,
            worker: trace.as_ref().map(|t| t.owner.clone()),
            host: trace.as_ref().map(|t| t.host.clone()),
            generated: trace.as_ref().map_or(0, |t| t.generated),
            reason: "its worker was lost while it ran".to_owned(),
        };
        // A job that this leader assigns for the first time includes its attempts under earlier leaders.
        if let Some(trace) = &trace
            && let Some(live) = self.ledger.live_mut(job).filter(|live| live.handovers <= 1)
        {
            live.attempts =
                live.attempts.max(trace.attempt.0.saturating_sub(u32::from(started || trace.released)));
        }
        self.take_off(job);
        // The host is looked at before the job: where workers die at everything, no job is to blame.
        if blame && started && !self.died_of_its_host(job, at, actions) {
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
        if self.ledger.get(job.batch).is_some_and(|batch| batch.origin == Origin::Audit) {
            self.give_up_audit(now, job, actions);
            return;
        }
        let Some(live) = self.ledger.live_mut(job) else { return };
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
        let (Some(batch), Some(live)) = (self.ledger.get(job.batch), self.ledger.live(job)) else { return };
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
        if self.ledger.get(job.batch).is_some_and(|batch| batch.record.ending.is_some()) {
            self.answer_ending(now, job, actions);
            return;
        }
        // It was found running while it waited.
        if self.flights.get(job).is_some() {
            return;
        }
        let until = (delay_ms > 0).then(|| now.mono.plus(Duration::from_millis(delay_ms)));
        self.ledger.defer(job, until);
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
        let outcome = Outcome::Failed(Failure { code, message });
        actions.extend(self.own_result(now, job, line, outcome).map(Action::Answer));
    }

    /// An answer of the coordinator's own, which is now on its way; none if the line needs none.
    pub(super) fn own_result(
        &mut self,
        now: Now,
        job: JobRef,
        line: Option<Line>,
        outcome: Outcome,
    ) -> Option<Box<JobResult>> {
        let lead = self.lead?;
        if !self.ledger.begin_answering(job) {
            return None;
        }
        let (batch, live) = (self.ledger.get(job.batch)?, self.ledger.live(job)?);
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
            outcome,
            usage: Usage::default(),
            timing: Timing::default(),
            nondeterministic: false,
            finished_at: now.wall,
            traceparent: None,
            rejected: None,
        };
        Some(Box::new(result))
    }

    /// A job failed on this host. Many different ones make the host suspect, not the jobs.
    fn blame_host(&mut self, job: JobRef, name: &str, actions: &mut Vec<Action>) {
        let Some(host) = self.fleet.hosts.get_mut(name) else { return };
        host.failed.insert(job);
        let failed = host.failed.len();
        if !host.quarantined && failed >= HOST_FAILURES && failed >= host.succeeded as usize / 4 {
            self.shut_out(name, actions);
        }
    }

    /// A worker died with this job. True if that counts against its host alone, which is shut out.
    fn died_of_its_host(&mut self, job: JobRef, worker: WorkerSlot, actions: &mut Vec<Action>) -> bool {
        let Some(name) = self.fleet.get(worker).map(|worker| worker.host().to_owned()) else { return false };
        let Some(host) = self.fleet.hosts.get_mut(&name) else { return false };
        if host.quarantined {
            return true;
        }
        host.crashes.entry(worker).or_default().insert(job);
        if host.jobs_behind_crashes() < HOST_CRASHES {
            return false;
        }
        // This attempt was not counted yet, so it is not given back either.
        if let Some(crash) = host.crashes.get_mut(&worker) {
            crash.remove(&job);
        }
        self.shut_out(&name, actions)
    }

    /// The host gets nothing more, unless it is the last that is left. True if it is quarantined.
    fn shut_out(&mut self, name: &str, actions: &mut Vec<Action>) -> bool {
        let Some(host) = self.fleet.hosts.get(name) else { return false };
        if !host.quarantined && !self.fleet.has_healthy_host_beside(name) {
            self.counts.last_host_suspect += 1;
            return false;
        }
        if !host.quarantined {
            self.quarantine(name, actions);
        }
        true
    }

    /// Jobs that failed there get their attempts back.
    fn quarantine(&mut self, name: &str, actions: &mut Vec<Action>) {
        let Some(host) = self.fleet.hosts.get_mut(name) else { return };
        host.quarantined = true;
        self.work_changed = true;
        self.counts.quarantined_hosts += 1;
        let failed = std::mem::take(&mut host.failed);
        let crashes = std::mem::take(&mut host.crashes);
        let mut given_back = Vec::new();
        for job in failed.into_iter().chain(crashes.into_values().flatten()) {
            if let Some(live) = self.ledger.live_mut(job) {
                live.attempts = live.attempts.saturating_sub(1);
                live.hosts.retain(|host| host != name);
                live.log.retain(|failed| failed.host.as_deref() != Some(name));
                given_back.extend(self.key_of(job));
            }
        }
        self.act(actions, Action::Audit(EventKind::HostQuarantined { host: name.to_owned(), given_back }));
    }

    pub(super) fn key_of(&self, job: JobRef) -> Option<JobKey> {
        self.ledger.get(job.batch).map(|batch| JobKey { batch: batch.record.id.clone(), index: job.index })
    }

    /// True if the worker is the coordinator itself.
    pub(super) fn is_ours(worker: &WorkerId) -> bool {
        worker.as_str() == super::COORDINATOR
    }
}
