//! Audits of answers: outputs are deterministic, so a job that runs again elsewhere must give the same ids.
//!
//! A share of the good answers is run a second time, on another pod, as a job of its own that its worker cannot tell
//! from others. Which ones follows from the assignment key, which workers cannot read: nobody knows beforehand. Two
//! answers that differ raise an alarm, and a third pod is asked; whoever stands alone is quarantined with its host,
//! for as long as this coordinator leads. Two pods cannot outvote each other: then the alarm is all.
//!
//! A worker that continues a job computes the output in its checkpoint again. Where that differs, it says so with its answer:
//! the next answers of the host that is named are all audited. That is all that follows, since the worker may lie, and so may
//! the checkpoint: any worker that was ever given the job can have written it.
//!
//! What an audit costs is paid by the fleet, under the audit's own batch id, never by the tenant. Audits are held in
//! memory alone: a coordinator that dies forgets those under way.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::message::{Author, EventKind, Input};
use ternfleet_proto::{BatchId, Epoch, JobKey, MonoMs, Now, TenantId, WorkerId};

use super::batch::{CellState, Origin};
use super::event::{Action, Answer, BatchSlot, Content, Fed, JobRef, Task, Verdict};
use super::record::{BatchRecord, Ending};
use super::{Core, coordinator_name};
use crate::route::EngineKind;

/// A second run that nobody could do in this time is given up.
const WITHIN: Duration = Duration::from_secs(3600);
const MILLION: u128 = 1_000_000;
/// Answers of a suspect host that are audited, and how often it may become one: whoever reports it without cause costs no more.
const SUSPECT_ANSWERS: u32 = 8;
const SUSPECT_EVERY: Duration = Duration::from_secs(3600);

/// Who gave an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    pub worker: WorkerId,
    pub pod: String,
    pub host: String,
    pub ids_digest: u64,
}

impl Party {
    /// An answer that was remembered is nobody's, and no host is at fault.
    fn cache(ids_digest: u64) -> Party {
        let (pod, host) = (String::new(), String::new());
        Party { worker: coordinator_name(), pod, host, ids_digest }
    }
}

/// The second runs that are under way, by the batch that each of them is, and whom to look at.
#[derive(Debug, Default)]
pub(super) struct Audits {
    running: BTreeMap<BatchSlot, Audit>,
    /// By host: since when, and how many of its answers are still to be audited.
    suspects: BTreeMap<String, (MonoMs, u32)>,
}

impl Audits {
    fn suspect(&mut self, now: MonoMs, host: &str) {
        self.suspects.retain(|_, (since, _)| now.since(*since) < SUSPECT_EVERY);
        self.suspects.entry(host.to_owned()).or_insert((now, SUSPECT_ANSWERS));
    }

    /// Whether an answer of this host is to be audited because it is suspect. It counts.
    fn looks_at(&mut self, host: &str) -> bool {
        let left = self.suspects.get_mut(host).map(|(_, left)| left).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

/// An answer that is being looked into.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Audit {
    pub job: JobKey,
    pub tenant: TenantId,
    /// Whose answer is committed.
    pub first: Party,
    /// Whose differs from it, once one does.
    pub second: Option<Party>,
    kind: EngineKind,
    task: Task,
}

impl Core {
    /// The audit that this good answer is due, if it is one of the share. To be called before the job lands, while its
    /// text is still held.
    pub(super) fn audit_due(&mut self, job: JobRef, answer: &Answer) -> Option<Audit> {
        let Verdict::Good { ids_digest } = answer.verdict else { return None };
        self.lead.as_ref()?;
        let lot = self.key.sign(&answer.job, Epoch(0), &coordinator_name()).0 % MILLION;
        let worker = self.fleet.slot(&answer.worker).and_then(|slot| self.fleet.get(slot));
        let is_suspect = worker.is_some_and(|worker| self.audits.looks_at(worker.host()));
        if !is_suspect && lot >= u128::from(self.limits.audit_share_ppm) {
            return None;
        }
        let batch = self.ledger.get(job.batch)?;
        let mut task = (**batch.live.get(&job.index)?.task.as_ref()?).clone();
        if let Input::Inline(generation) = &mut task.input {
            generation.stream = false;
        }
        let copied = Self::is_copy(answer);
        let first = if copied { Party::cache(ids_digest) } else { self.party(&answer.worker, ids_digest)? };
        let kind = match copied {
            true => self.kind_of(job)?,
            false => self.fleet.get(self.fleet.slot(&answer.worker)?)?.kind,
        };
        if !self.fleet.kinds[usize::from(kind.0)].abilities.deterministic {
            return None;
        }
        let tenant = batch.record.tenant.clone();
        Some(Audit { job: answer.job.clone(), tenant, first, second: None, kind, task })
    }

    /// A worker has computed other output than was in a checkpoint.
    pub(super) fn checkpoint_rejected(
        &mut self,
        now: Now,
        job: &JobKey,
        worker: &WorkerId,
        author: &Author,
        actions: &mut Vec<Action>,
    ) {
        self.counts.checkpoints_rejected += 1;
        // Who a worker is follows from its grant; one that is gone may have come back on the host that is named.
        let known = self.fleet.slot(&author.worker).and_then(|slot| self.fleet.get(slot));
        let said = || self.fleet.workers.values().find(|worker| worker.host() == author.host);
        let host = known.or_else(said).map(|worker| worker.host().to_owned());
        if let Some(host) = &host {
            self.audits.suspect(now.mono, host);
        }
        let what = EventKind::CheckpointRejected {
            job: job.clone(),
            worker: worker.clone(),
            author: author.worker.clone(),
            host,
        };
        self.act(actions, Action::Audit(what));
    }

    /// Hands the job out once more, to a pod that has not answered it. False when there is none.
    pub(super) fn begin_audit(&mut self, now: Now, audit: Audit, actions: &mut Vec<Action>) -> bool {
        let asked = |pod: &str| {
            pod == audit.first.pod || audit.second.as_ref().is_some_and(|second| pod == second.pod)
        };
        let able = self.fleet.workers.values().any(|worker| {
            let free = worker.takes_work() && !self.fleet.quarantined(worker);
            worker.kind == audit.kind && free && !asked(worker.pod_name())
        });
        let id = self.audit_id(&audit);
        if !able || self.ledger.find(&id).is_some() {
            self.counts.audits_skipped += 1;
            return false;
        }
        let pods = std::iter::once(&audit.first).chain(&audit.second).map(|party| &party.pod);
        let pods = pods.filter_map(|pod| self.money.pods().get(pod));
        let excluded = pods.flat_map(|pod| pod.workers.iter().copied()).collect();
        let record = BatchRecord::single(
            now.wall,
            id.clone(),
            audit.tenant.clone(),
            audit.task.line.endpoint,
            now.wall.plus(WITHIN),
        );
        let kind = audit.kind;
        let content = Content::Good(audit.task.clone().into());
        let slot = self.ledger.open(now, record, Origin::Audit);
        self.audits.running.insert(slot, audit);
        self.lines_read(now, slot, vec![Fed { index: 0, content }], 1, true, actions);
        if let Some(batch) = self.ledger.get_mut(slot) {
            batch.queues.iter_mut().for_each(|queue| queue.kind = Some(kind));
            if let Some(live) = batch.live.get_mut(&0) {
                live.faulted = excluded;
            }
        }
        self.counts.audits_begun += 1;
        true
    }

    /// The second run has ended, well or not.
    pub(super) fn audited(&mut self, now: Now, job: JobRef, answer: &Answer, actions: &mut Vec<Action>) {
        let Some(audit) = self.audits.running.remove(&job.batch) else { return };
        self.land(now, job, Some(answer), actions);
        self.close_audit(now, job, actions);
        let party = match answer.verdict {
            Verdict::Good { ids_digest } => self.party(&answer.worker, ids_digest),
            Verdict::Bad | Verdict::Fault | Verdict::HostFault => None,
        };
        // A pod that has answered before may have come back under another name of a worker, and would agree with itself.
        let has_answered = |party: &Party| {
            party.pod == audit.first.pod
                || audit.second.as_ref().is_some_and(|second| second.pod == party.pod)
        };
        let party = party.filter(|party| !has_answered(party));
        let Some(party) = party else {
            self.counts.audits_skipped += 1;
            return;
        };
        let agrees = party.ids_digest == audit.first.ids_digest;
        match audit.second.clone() {
            None if agrees => self.counts.audits_agreed += 1,
            None => {
                self.counts.audits_diverged += 1;
                self.counts.divergent_answers += 1;
                // Whoever is right, nobody else is to get it.
                self.forget_answer(&audit.tenant, audit.task.wanted, audit.kind);
                let arbiter = Audit { second: Some(party.clone()), ..audit.clone() };
                if !self.begin_audit(now, arbiter, actions) {
                    self.tell_of(&audit, &party, None, actions);
                }
            }
            // A remembered answer is nobody's: its author may be the third to run, and would agree with itself.
            Some(second) if audit.first.host.is_empty() => self.tell_of(&audit, &second, None, actions),
            Some(second) if agrees => self.convict(&audit, &second, second.host.clone(), actions),
            Some(second) if second.ids_digest == party.ids_digest => {
                self.convict(&audit, &second, audit.first.host.clone(), actions);
            }
            Some(second) => self.tell_of(&audit, &second, None, actions),
        }
    }

    /// An audit that cannot be carried out ends without a verdict.
    pub(super) fn give_up_audit(&mut self, now: Now, job: JobRef, actions: &mut Vec<Action>) {
        if self.audits.running.remove(&job.batch).is_some() {
            self.counts.audits_skipped += 1;
            self.land(now, job, None, actions);
            self.close_audit(now, job, actions);
        }
    }

    fn close_audit(&mut self, now: Now, job: JobRef, actions: &mut Vec<Action>) {
        if let Some(batch) = self.ledger.get_mut(job.batch) {
            batch.record.ending = Some(Ending::Cancelled);
            // A late second answer to it is a duplicate, and commits nothing.
            batch.cell_mut(job.index).state = CellState::Bad;
        }
        self.end(now, job.batch, ternfleet_proto::message::BatchState::Cancelled, actions);
    }

    /// The host is given nothing more, and what it has goes elsewhere; the last healthy one is only told of.
    fn convict(&mut self, audit: &Audit, second: &Party, host: String, actions: &mut Vec<Action>) {
        let spared = !self.fleet.has_healthy_host_beside(&host);
        if spared {
            self.counts.last_host_suspect += 1;
        } else if self.fleet.convict(&host) {
            self.counts.quarantined_hosts += 1;
        }
        self.tell_of(audit, second, Some(host.clone()), actions);
        if !spared {
            self.withdraw_from(&host, actions);
        }
    }

    fn tell_of(
        &mut self,
        audit: &Audit,
        second: &Party,
        convicted: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let what = EventKind::AuditDiverged {
            job: audit.job.clone(),
            tenant: audit.tenant.clone(),
            first: audit.first.worker.clone(),
            second: second.worker.clone(),
            convicted_host: convicted,
        };
        self.act(actions, Action::Audit(what));
    }

    fn party(&self, worker: &WorkerId, ids_digest: u64) -> Option<Party> {
        let found = self.fleet.get(self.fleet.slot(worker)?)?;
        let (pod, host) = (found.pod_name().to_owned(), found.host().to_owned());
        Some(Party { worker: worker.clone(), pod, host, ids_digest })
    }

    /// Looks like any batch's id, and cannot be computed without the key.
    fn audit_id(&self, audit: &Audit) -> BatchId {
        let round = Epoch(1 + u32::from(audit.second.is_some()));
        let mark = self.key.sign(&audit.job, round, &coordinator_name()).0;
        format!("batch_{:024x}", mark >> 32).parse().expect("because hexadecimal digits are id characters")
    }
}
