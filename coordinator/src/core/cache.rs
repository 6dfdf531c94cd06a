//! Answers that are known already. An answer is a function of model, arithmetic and request, so a line that asks for the
//! same as an earlier one gets that one's answer, before anything is routed.
//!
//! Lines of one batch that ask for the same run once: the first is assigned, the others wait for its answer. Answers of all
//! batches of a tenant are remembered by their key; where they lie is told by the shell, which keeps them
//! (`shell/cache.rs`). Only requests without chance have a key: greedy ones, and those with a seed of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ternfleet_proto::message::{Generated, Outcome, WorkSample};
use ternfleet_proto::{Now, TenantId};

use super::Core;
use super::batch::Origin;
use super::event::{Action, Answer, JobRef, Verdict};
use super::wanted::{CacheKey, Place, Same, Wanted};
use crate::route::EngineKind;

/// The remembered answers, the oldest first out.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: BTreeMap<CacheKey, Place>,
    order: VecDeque<CacheKey>,
}

impl Known {
    fn remember(&mut self, key: CacheKey, place: Place, most: usize) {
        if self.places.insert(key, place).is_none() {
            self.order.push_back(key);
        }
        while self.places.len() > most {
            let Some(oldest) = self.order.pop_front() else { break };
            self.places.remove(&oldest);
        }
        // What was forgotten by its key leaves its place in the order behind.
        if self.order.len() > 2 * self.places.len() + 64 {
            let places = &self.places;
            self.order.retain(|key| places.contains_key(key));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = CacheKey> {
        self.places.keys().copied()
    }
}

impl Core {
    /// True if the line needs no worker: its answer is known, or the same line of its batch is on its way.
    pub(super) fn is_answered_by_another(
        &mut self,
        now: Now,
        job: JobRef,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some((queue, wanted)) = self.wanted(job) else { return false };
        if let Some((kind, key)) =
            self.kind_of(job).and_then(|kind| Some((kind, self.cache_key(job, wanted, kind)?)))
            && let Some(&place) = self.known.places.get(&key)
        {
            if let Some(batch) = self.ledger.get_mut(job.batch) {
                batch.queues[queue].kind = Some(kind);
            }
            self.repeat(now, job, key, place, actions);
            return true;
        }
        let Some(batch) = self.ledger.get_mut(job.batch) else { return false };
        match batch.same.get_mut(&(queue, wanted)) {
            Some(same) => {
                same.others.push(job.index);
                batch.following += 1;
                true
            }
            None => {
                batch.same.insert((queue, wanted), Same { first: job.index, others: Vec::new() });
                false
            }
        }
    }

    /// What a line asks for, and its queue, if it may be answered by another's answer. The second run of an audit is not.
    pub(super) fn wanted(&self, job: JobRef) -> Option<(usize, Wanted)> {
        let batch = self.ledger.get(job.batch).filter(|batch| batch.origin != Origin::Audit)?;
        let live = batch.live.get(&job.index)?;
        Some((live.queue, live.task.as_ref()?.wanted?))
    }

    /// The line was answered: whoever waits for it is answered too, or runs after all.
    pub(super) fn answer_others(
        &mut self,
        now: Now,
        job: JobRef,
        (queue, wanted): (usize, Wanted),
        sequence: u64,
        answer: &Answer,
        actions: &mut Vec<Action>,
    ) {
        let good = matches!(answer.verdict, Verdict::Good { .. });
        let place = Place::Results(sequence);
        let kind =
            self.fleet.slot(&answer.worker).and_then(|slot| self.fleet.get(slot)).map(|worker| worker.kind);
        let key = kind.and_then(|kind| self.cache_key(job, wanted, kind));
        if let Some(key) = key.filter(|_| good && self.limits.cache_entries_max > 0 && self.lead.is_some()) {
            self.known.remember(key, place, self.limits.cache_entries_max);
            let tenant = self.ledger.get(job.batch).map(|batch| batch.record.tenant.clone());
            actions.extend(tenant.map(|tenant| Action::Remember { tenant, key, sequence }));
        }
        let Some(batch) = self.ledger.get_mut(job.batch) else { return };
        if batch.same.get(&(queue, wanted)).is_none_or(|same| same.first != job.index) {
            return;
        }
        let others = batch.same.remove(&(queue, wanted)).map_or_else(Vec::new, |same| same.others);
        batch.following -= others.len() as u32;
        for index in others {
            let other = JobRef { batch: job.batch, index };
            match key.filter(|_| good) {
                Some(key) => self.repeat(now, other, key, place, actions),
                None => self.requeue(now, other, 0, actions),
            }
        }
    }

    /// Answers a line with the answer at this place, unless it has one.
    fn repeat(&mut self, now: Now, job: JobRef, key: CacheKey, place: Place, actions: &mut Vec<Action>) {
        let outcome = Outcome::Text(Generated::default());
        if let Some(result) = self.own_result(now, job, None, outcome) {
            actions.push(Action::Repeat { job, key, place, result });
        }
    }

    /// The answer is not where it was: the line runs.
    pub(super) fn not_repeated(&mut self, now: Now, job: JobRef, key: CacheKey, actions: &mut Vec<Action>) {
        self.known.places.remove(&key);
        if self.ledger.stop_answering(job) {
            self.requeue(now, job, 0, actions);
        }
    }

    /// A segment was stored: answers that were in RESULTS are there now, too.
    pub(super) fn segment_kept(&mut self, segment: u32, answers: Vec<(CacheKey, u32, u32)>) {
        for (key, at, bytes) in answers {
            self.known.remember(key, Place::Segment { segment, at, bytes }, self.limits.cache_entries_max);
        }
    }

    pub(super) fn segment_gone(&mut self, gone: u32) {
        self.known
            .places
            .retain(|_, place| !matches!(place, Place::Segment { segment, .. } if *segment == gone));
    }

    /// An audit has shown that the remembered answer may be wrong.
    pub(super) fn forget_answer(&mut self, tenant: &TenantId, wanted: Option<Wanted>, kind: EngineKind) {
        let known = &self.fleet.kinds[usize::from(kind.0)];
        if let Some(wanted) = wanted {
            self.known.places.remove(&wanted.key(tenant, &known.digest, &known.numerics));
        }
    }

    fn cache_key(&self, job: JobRef, wanted: Wanted, kind: EngineKind) -> Option<CacheKey> {
        // Of an engine that may answer otherwise the next time, no answer stands for another.
        let known = self.fleet.kinds.get(usize::from(kind.0)).filter(|kind| kind.abilities.deterministic)?;
        Some(wanted.key(&self.ledger.get(job.batch)?.record.tenant, &known.digest, &known.numerics))
    }

    /// The kind of engine that answers the line: the one of its queue, or the only one that serves its model.
    pub(super) fn kind_of(&self, job: JobRef) -> Option<EngineKind> {
        let batch = self.ledger.get(job.batch)?;
        let queue = batch.queues.get(batch.live.get(&job.index)?.queue)?;
        if queue.kind.is_some() {
            return queue.kind;
        }
        self.only_kind(queue.model.as_deref())
    }

    fn only_kind(&self, model: Option<&str>) -> Option<EngineKind> {
        let serves = |n: &usize| {
            let known = &self.fleet.kinds[*n];
            model.is_none_or(|wanted| wanted == known.model || wanted == known.digest)
        };
        let mut kinds = (0..self.fleet.kinds.len()).filter(serves);
        let only = kinds.next().filter(|_| kinds.next().is_none());
        only.map(|n| EngineKind(n as u16))
    }

    /// Takes the lines of a sample away that no worker would run: answers are known, or other lines ask for the same. Returns
    /// how many lines of the file that is, as far as the sample tells. Which line names which of several models is not
    /// told, so of such files every line runs.
    pub fn take_known(&self, tenant: &TenantId, work: &mut WorkSample) -> u64 {
        let named: u64 = work.models.values().sum();
        let model = match work.models.keys().next() {
            None => None,
            Some(model) if work.models.len() == 1 && named == work.lines => Some(model.as_str()),
            Some(_) => return 0,
        };
        let kind = self.only_kind(model).and_then(|kind| self.fleet.kinds.get(usize::from(kind.0)));
        let deterministic = kind.is_none_or(|kind| kind.abilities.deterministic);
        let (mut before, all) = (BTreeSet::new(), work.sample.len());
        work.sample.retain(|line| {
            let Some(wanted) = line.wanted.filter(|_| deterministic).map(Wanted::heard) else { return true };
            let known = kind.map(|kind| wanted.key(tenant, &kind.digest, &kind.numerics));
            !known.is_some_and(|key| self.known.places.contains_key(&key)) && before.insert(wanted)
        });
        let share = 1.0 - work.sample.len() as f64 / all.max(1) as f64;
        let known = (work.lines as f64 * share).round() as u64;
        work.lines -= known.min(work.lines);
        known
    }

    /// True if the answer is a copy of another line's: the coordinator makes no others.
    pub(super) fn is_copy(answer: &Answer) -> bool {
        Self::is_ours(&answer.worker) && matches!(answer.verdict, Verdict::Good { .. })
    }
}
