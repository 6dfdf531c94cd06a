//! What an answered line leaves behind: its checkpoint, and, of a completion, its answer in RESULTS. Both go after a while,
//! so that NATS holds what is open and no more.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use ternfleet_proto::{BatchId, MonoMs, Now};

use super::Core;
use super::event::{Action, BatchSlot, JobRef};

/// So long a worker that was paused finds that its job has an answer; one that wakes later may run it once more, and its
/// answer commits nothing.
const CHECKPOINT_STAYS: Duration = Duration::from_secs(60);
/// So long a caller whose connection was lost finds the answer to its completion.
const ANSWER_STAYS: Duration = Duration::from_secs(120);
/// Jobs that one action names.
const JOBS_AT_A_TIME: usize = 1000;

/// In the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    jobs: VecDeque<(MonoMs, JobRef)>,
    /// Of completions, each at its sequence in RESULTS.
    answers: VecDeque<(MonoMs, BatchId, u64)>,
    /// Ended batches that got another answer since.
    late: BTreeSet<BatchSlot>,
}

impl Leftovers {
    pub(super) fn of_job(&mut self, now: MonoMs, job: JobRef) {
        self.jobs.push_back((now.plus(CHECKPOINT_STAYS), job));
    }

    /// RESULTS may hold answers that are in the batch's object, too.
    pub(super) fn of_ended(&mut self, batch: BatchSlot) {
        self.late.insert(batch);
    }

    pub(super) fn of_completion(&mut self, now: MonoMs, batch: &BatchId, sequence: u64) {
        self.answers.push_back((now.plus(ANSWER_STAYS), batch.clone(), sequence));
    }
}

impl Core {
    pub(super) fn clean(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut due: Vec<(BatchId, Vec<u32>)> = Vec::new();
        while let Some((at, job)) = self.leftovers.jobs.front().copied() {
            if at > now.mono {
                break;
            }
            self.leftovers.jobs.pop_front();
            // What has ended is cleaned as a whole.
            let Some(batch) = self.ledger.get(job.batch).filter(|batch| !batch.is_ended()) else { continue };
            let id = &batch.record.id;
            match due.last_mut() {
                Some((last, lines)) if last == id && lines.len() < JOBS_AT_A_TIME => lines.push(job.index),
                _ => due.push((id.clone(), vec![job.index])),
            }
        }
        actions.extend(due.into_iter().map(|(batch, lines)| Action::Clean { batch, lines }));
        while self.leftovers.answers.front().is_some_and(|(at, ..)| *at <= now.mono) {
            let Some((_, batch, sequence)) = self.leftovers.answers.pop_front() else { break };
            self.ledger.forget_single(&batch);
            actions.push(Action::DropAnswer { batch, sequence });
        }
        for slot in std::mem::take(&mut self.leftovers.late) {
            let Some(batch) = self.ledger.get(slot) else { continue };
            let (tenant, batch) = (batch.record.tenant.clone(), batch.record.id.clone());
            actions.push(Action::DropAnswers { tenant, batch });
        }
    }
}
