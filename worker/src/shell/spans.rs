//! One span a job, from its start on the engine to its end on this worker; the notes about it are logged inside.

use std::collections::BTreeMap;

use ternfleet_proto::message::{JobResult, Work};
use ternfleet_proto::trace::{self, TraceContext};
use ternfleet_proto::{Attempt, Epoch, JobKey, WorkerId};
use tracing::Span;

use super::perform::log;
use crate::core::Note;

/// A job that ends in a way that has no note would stay: then the oldest go.
const OPEN_MAX: usize = 4096;

pub(super) struct Spans {
    worker: WorkerId,
    open: BTreeMap<(JobKey, Epoch), Span>,
}

impl Spans {
    pub(super) fn new(worker: WorkerId) -> Spans {
        Spans { worker, open: BTreeMap::new() }
    }

    /// A job starts, or starts again after a fault: then its span continues.
    pub(super) fn start(&mut self, work: &Work) {
        while self.open.len() >= OPEN_MAX {
            self.open.pop_first();
        }
        let (worker, attempt) = (&self.worker, work.attempts_before.next());
        let cause = TraceContext::of(work.traceparent.as_deref());
        self.open
            .entry((work.job.clone(), work.epoch))
            .or_insert_with(|| span_of(&work.job, attempt, worker, cause));
    }

    /// Puts the job's span in between, when it is exported.
    pub(super) fn sign(&self, result: &mut JobResult) {
        let span = self.open.get(&(result.job.clone(), result.epoch));
        if let Some(own) = span.and_then(trace::context_of) {
            result.traceparent = Some(own.to_string());
        }
    }

    /// Logs a note, inside its job's span if there is one, and ends the span with the job.
    pub(super) fn note(&mut self, note: &Note) {
        let (job, epoch, ends) = match note {
            Note::Answered(result) => (&result.job, Some(result.epoch), true),
            Note::Fenced { job, epoch }
            | Note::Released { job, epoch, .. }
            | Note::Dropped { job, epoch, .. } => (job, Some(*epoch), true),
            Note::Duplicate { job, .. }
            | Note::ResultsFull { job }
            | Note::CheckpointSkipped { job }
            | Note::Fault { job, .. }
            | Note::CheckpointRejected { job, .. }
            | Note::Misrouted { job, .. } => (job, None, false),
            Note::Undecodable { .. } | Note::StaleLeader { .. } | Note::ClockStepped { .. } => {
                return log(note);
            }
        };
        let range = match epoch {
            Some(epoch) => (job.clone(), epoch)..=(job.clone(), epoch),
            None => (job.clone(), Epoch(0))..=(job.clone(), Epoch(u32::MAX)),
        };
        match self.open.range(range).next_back() {
            Some((_, span)) => span.in_scope(|| log(note)),
            // It ended before it started: expired in the queue, say.
            None => match note {
                Note::Answered(result) => {
                    let cause = TraceContext::of(result.traceparent.as_deref());
                    span_of(job, result.attempt, &self.worker, cause).in_scope(|| log(note));
                }
                _ => log(note),
            },
        }
        if let (Some(epoch), true) = (epoch, ends) {
            self.open.remove(&(job.clone(), epoch));
        }
    }
}

fn span_of(job: &JobKey, attempt: Attempt, worker: &WorkerId, cause: Option<TraceContext>) -> Span {
    let (batch, index, attempt) = (&job.batch, job.index, attempt.0);
    let span = tracing::info_span!("job", %batch, index, attempt, %worker, trace_id = tracing::field::Empty);
    if let Some(cause) = cause {
        span.record("trace_id", cause.trace_id());
    }
    trace::link(&span, cause);
    span
}
