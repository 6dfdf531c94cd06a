//! The coordinator's part of a trace, and its log of batches and workers: accepting, assigning, committing.
//!
//! A context that came with a message continues with the next one; when spans are exported, the span in between is its cause.

use std::collections::BTreeMap;

use ternfleet_proto::message::{BatchState, EventKind, JobResult, Work};
use ternfleet_proto::trace::{self, TraceContext};
use ternfleet_proto::{BatchId, WorkerId};
use tracing::Span;

use crate::core::{Batch, Core};

/// The log's lines about the fleet are under the program's own name, wherever they are written.
const TARGET: &str = "ternfleet_coordinator";

/// Hangs `span` under the context and makes itself the context of what follows.
fn pass_through(span: &Span, traceparent: &mut Option<String>) {
    trace::link(span, TraceContext::of(traceparent.as_deref()));
    if let Some(own) = trace::context_of(span) {
        *traceparent = Some(own.to_string());
    }
}

/// A batch or a single job is accepted.
pub(super) fn accepted(batch: &BatchId, traceparent: &mut Option<String>) {
    pass_through(&tracing::info_span!("accept", %batch), traceparent);
}

/// Lasts until the assignment is stored. Without a trace there is none: thousands of jobs a second go this way.
pub(super) fn hand_over(work: &mut Work, worker: &WorkerId) -> Span {
    if work.traceparent.is_none() {
        return Span::none();
    }
    let (batch, index) = (&work.job.batch, work.job.index);
    let attempt = work.attempts_before.next().0;
    let span = tracing::info_span!("hand_over", %batch, index, attempt, %worker, epoch = %work.epoch);
    pass_through(&span, &mut work.traceparent);
    span
}

/// An answer has come back.
pub(super) fn answered(result: &JobResult) {
    let Some(cause) = TraceContext::of(result.traceparent.as_deref()) else { return };
    let (batch, index) = (&result.job.batch, result.job.index);
    let (attempt, worker) = (result.attempt.0, &result.worker);
    trace::link(&tracing::info_span!("commit", %batch, index, attempt, %worker), Some(cause));
}

/// What the leader says about batches and workers: a line for each change.
#[derive(Debug, Default)]
pub(super) struct Diary {
    states: BTreeMap<BatchId, BatchState>,
}

impl Diary {
    pub(super) fn note(&mut self, kind: &EventKind, core: &Core) {
        match kind {
            EventKind::BatchChanged { batch, state, .. } => {
                let known = core.find(batch).and_then(|slot| core.batch(slot));
                if let Some(known) = known.filter(|known| !known.record.single)
                    && self.states.insert(batch.clone(), *state) != Some(*state)
                {
                    log_batch(known);
                }
                if state.is_terminal() {
                    self.states.remove(batch);
                }
            }
            EventKind::WorkerSeen { worker, pod, pod_class, price_usd_micro_per_hour } => {
                let usd_per_hour = price_usd_micro_per_hour.dollars();
                tracing::info!(target: TARGET, %worker, pod, pod_class, usd_per_hour, "worker joined");
            }
            EventKind::WorkerLost { worker, pod, reason } => {
                tracing::info!(target: TARGET, %worker, pod, reason, "worker lost; its jobs move to other \
                                                                      workers");
            }
            EventKind::CanaryDiverged { worker, host, said, expected } => {
                tracing::error!(target: TARGET, %worker, host, said, expected, "the canary digest of a \
                                                                                host differs from others \
                                                                                of its kind; the minority \
                                                                                gets no work");
            }
            EventKind::HostQuarantined { host, given_back } => {
                let given_back = given_back.len();
                tracing::error!(target: TARGET, host, given_back, "many different jobs failed on this host; it \
                                                                   gets no work, and its jobs get an attempt \
                                                                   back");
            }
            EventKind::ClockStepped { by_ms } => {
                tracing::warn!(target: TARGET, by_ms, "the wall clock was stepped; this affects only dates \
                                                       and deadlines");
            }
            other => tracing::debug!(?other, "audit"),
        }
    }
}

fn log_batch(batch: &Batch) {
    let (record, totals) = (&batch.record, &batch.totals);
    let (id, tenant, name) = (&record.id, &record.tenant, record.name.as_deref().unwrap_or_default());
    let trace_id = TraceContext::of(record.traceparent.as_deref()).map(TraceContext::trace_id);
    let state = record.state;
    if !record.state.is_terminal() {
        tracing::info!(target: TARGET, batch = %id, %tenant, name, ?state, lines = record.lines, trace_id, "batch");
        return;
    }
    let ms = record.ended_at.map(|end| end.since(record.created_at).as_millis() as u64);
    let cost_usd_micro = totals.cost_usd_micro.0;
    let (completed, failed) = (totals.completed, totals.failed);
    let (prompt_tokens, completion_tokens) = (totals.prompt_tokens, totals.completion_tokens);
    tracing::info!(
        target: TARGET, batch = %id, %tenant, name, ?state, completed, failed, prompt_tokens, completion_tokens,
        cost_usd_micro, ms, trace_id, "batch"
    );
}
