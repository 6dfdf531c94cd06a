//! Can this batch run its next job, and if not, why not? One answer for assigning and for pausing, so that no batch
//! lies between the two, neither run nor paused.
//!
//! It does not choose the worker: that is the router's ([`crate::route`]).

use ternfleet_proto::UsdMicro;

use super::batch::{Batch, Live, Queue};
use super::fleet::Fleet;
use super::flights::Size;
use super::record::BatchRecord;
use super::snapshot::Snapshot;
use crate::route::EngineKind;

/// What a batch can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// No job waits, or the batch does not run.
    Nothing,
    /// No worker takes work of this kind now.
    NoWorker,
    /// Every worker would cost more than the budget leaves beside what is in flight.
    TooDear,
    Ready(Ready),
}

impl Next {
    pub(super) fn ready(self) -> Option<Ready> {
        match self {
            Next::Ready(ready) => Some(ready),
            Next::Nothing | Next::NoWorker | Next::TooDear => None,
        }
    }
}

/// The next job of a batch, which at least one worker can be paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    /// Which of the batch's queues it heads.
    pub(super) queue: usize,
    pub(super) kind: EngineKind,
    /// Its cost is that on the cheapest worker that could answer it.
    pub(super) size: Size,
}

/// The first queue whose head can run now, with so much of the budget promised already. Chooses the kind of a queue
/// that has none, or whose kind has died out.
pub(super) fn next_job(batch: &mut Batch, promised: UsdMicro, fleet: &Fleet, snapshot: &Snapshot) -> Next {
    if !batch.runs() {
        return Next::Nothing;
    }
    let (mut next, mut first) = (Next::Nothing, None);
    let chosen: Vec<(Option<String>, EngineKind)> = match batch.queues.len() {
        1 => Vec::new(),
        _ => batch.queues.iter().filter_map(|queue| Some((queue.model.clone(), queue.kind?))).collect(),
    };
    for place in 0..batch.queues.len() {
        let queue = &mut batch.queues[place];
        let Some(&index) = queue.jobs.front() else { continue };
        if !queue.kind.is_some_and(|kind| snapshot.serves(kind)) {
            // Nobody serves the kind chosen before: another numerics is better than no answer at all only when no
            // such worker is left.
            if !queue.kind.is_some_and(|kind| fleet.serves(kind)) {
                let model = queue.model.as_deref();
                queue.kind = match chosen.iter().find(|(other, _)| other.as_deref() == model) {
                    // Another queue of the model has chosen: one batch has one arithmetic, as far as it can.
                    Some((_, kind)) if can_run(fleet, snapshot, *kind, queue) => Some(*kind),
                    _ => {
                        let task = batch.live.get(&index).and_then(|live| live.task.as_ref());
                        let enough = enough_tok_s(&batch.record, task.map_or(0, |task| task.tokens_estimate));
                        best_kind(fleet, snapshot, queue, enough)
                    }
                };
            }
            if !queue.kind.is_some_and(|kind| snapshot.serves(kind)) {
                if next == Next::Nothing {
                    next = Next::NoWorker;
                }
                continue;
            }
        }
        let Some(kind) = queue.kind else { continue };
        let Some(live) = batch.live.get_mut(&index) else { continue };
        // An earlier leader may have been told.
        let reported = batch.fault_reports.get(&index).into_iter().flatten();
        for worker in reported.filter_map(|worker| fleet.slot(worker)) {
            if !live.faulted.contains(&worker) {
                live.faulted.push(worker);
            }
        }
        let Some(task) = &live.task else { continue };
        let tokens = task.tokens_estimate;
        let cost = cost_of(tokens, cheapest(live, kind, snapshot));
        if batch.affords(promised, cost) {
            let ready = Next::Ready(Ready { queue: place, kind, size: Size { tokens, cost } });
            // One whose workers are all busy does not keep back another whose workers are not.
            if batch.queues.len() == 1 || snapshot.has_room(kind) {
                return ready;
            }
            first.get_or_insert(ready);
        } else {
            next = Next::TooDear;
        }
    }
    first.unwrap_or(next)
}

/// What so many tokens cost at this price of a million, rounded up.
pub(super) fn cost_of(tokens: u32, kappa_usd_micro: f64) -> UsdMicro {
    // The cast saturates.
    UsdMicro((f64::from(tokens) * kappa_usd_micro / 1e6).ceil() as i64)
}

/// The lowest price among the workers of the kind that have not reported a fault on the job; among all of them when
/// none is left, and then the assignment counts a failed attempt.
fn cheapest(live: &Live, kind: EngineKind, snapshot: &Snapshot) -> f64 {
    let known = snapshot.kappa_min(kind);
    if live.faulted.is_empty() {
        return known;
    }
    let able = (0..snapshot.fleet.workers.len())
        .filter(|&n| snapshot.fleet.workers[n].kind == kind && !live.faulted.contains(&snapshot.slot(n)));
    able.map(|n| snapshot.kappa(n)).min_by(f64::total_cmp).unwrap_or(known)
}

fn can_run(fleet: &Fleet, snapshot: &Snapshot, kind: EngineKind, queue: &Queue) -> bool {
    let known = &fleet.kinds[usize::from(kind.0)];
    snapshot.serves(kind) && known.is_of(queue.model.as_deref()) && known.can(&queue.needs)
}

/// The cheapest kind that can run the queue's jobs and is fast enough; if none is, the fastest that can run them.
fn best_kind(fleet: &Fleet, snapshot: &Snapshot, queue: &Queue, enough_tok_s: f64) -> Option<EngineKind> {
    let able = || {
        let kinds = (0..fleet.kinds.len()).map(|n| EngineKind(n as u16));
        kinds.filter(|kind| can_run(fleet, snapshot, *kind, queue))
    };
    let faster =
        |a: &EngineKind, b: &EngineKind| snapshot.rate(*b).total_cmp(&snapshot.rate(*a)).then(a.cmp(b));
    let cheaper = |a: &EngineKind, b: &EngineKind| {
        snapshot.kappa_min(*a).total_cmp(&snapshot.kappa_min(*b)).then_with(|| faster(a, b))
    };
    let fast_enough = able().filter(|kind| snapshot.rate(*kind) >= enough_tok_s);
    fast_enough.min_by(cheaper).or_else(|| able().min_by(faster))
}

/// Tokens a second that would make all of the batch, if each job has so many tokens, in half of its time: 0 if it has no
/// deadline, as many as can be if its lines are not counted yet.
fn enough_tok_s(record: &BatchRecord, job_tokens: u32) -> f64 {
    let Some(window_ms) = record.options.completion_window_ms else { return 0.0 };
    let Some(lines) = record.lines else { return f64::INFINITY };
    f64::from(job_tokens) * f64::from(lines) / (window_ms.max(1) as f64 / 2e3)
}
