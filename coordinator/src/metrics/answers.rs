//! Answers as they come in: how long they took, as histograms, from what workers measured; how many attempts; why they failed.

use prometheus::{CounterVec, Histogram};
use ternfleet_proto::message::{FailureCode, JobResult, Outcome};

use super::Maker;

/// From 5 ms to 20 minutes, about three a decade.
const SECONDS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0];
/// A token takes a millisecond in a wide batch and half a second on a slow pod.
const TOKEN_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// A job is poison after five.
const ATTEMPTS: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];

fn code(failure: FailureCode) -> &'static str {
    match failure {
        FailureCode::InvalidRequest => "invalid_request",
        FailureCode::PromptTooLong => "prompt_too_long",
        FailureCode::ModelNotFound => "model_not_found",
        FailureCode::BatchExpired => "batch_expired",
        FailureCode::BatchCancelled => "batch_cancelled",
        FailureCode::ConstraintDeadEnd => "constraint_dead_end",
        FailureCode::Poison => "poison",
        FailureCode::NotFinite => "not_finite",
        FailureCode::WorkerFault => "worker_fault",
        FailureCode::HostFault => "host_fault",
    }
}

const FAILURES: [FailureCode; 10] = [
    FailureCode::InvalidRequest,
    FailureCode::PromptTooLong,
    FailureCode::ModelNotFound,
    FailureCode::BatchExpired,
    FailureCode::BatchCancelled,
    FailureCode::ConstraintDeadEnd,
    FailureCode::Poison,
    FailureCode::NotFinite,
    FailureCode::WorkerFault,
    FailureCode::HostFault,
];

pub(super) struct AnswerSeries {
    failed: CounterVec,
    attempts: Histogram,
    queue_wait: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    duration: Histogram,
}

impl AnswerSeries {
    pub(super) fn new(maker: &Maker) -> Self {
        let histogram = |name: &str, help: &str, buckets: &[f64]| maker.histogram(name, help, buckets);
        Self {
            failed: maker.counters(
                "answers_failed_total",
                "Stored error answers by reason. A worker's fault ends an attempt, not the job.",
                "code",
                &FAILURES.map(code),
            ),
            attempts: histogram("job_attempts", "Attempts that an answered job took.", &ATTEMPTS),
            queue_wait: histogram(
                "job_queue_wait_seconds",
                "Time from a worker's pull until the engine admits the job.",
                &SECONDS,
            ),
            first_token: histogram(
                "job_time_to_first_token_seconds",
                "Time from a worker's pull to the first token.",
                &SECONDS,
            ),
            between_tokens: histogram(
                "job_time_between_tokens_seconds",
                "Mean time between a job's tokens after the first.",
                &TOKEN_SECONDS,
            ),
            duration: histogram(
                "job_duration_seconds",
                "Time from a worker's pull to the end of the output.",
                &SECONDS,
            ),
        }
    }

    pub(super) fn observe(&self, result: &JobResult) {
        if let Outcome::Failed(failure) = &result.outcome {
            self.failed.with_label_values(&[code(failure.code)]).inc();
            return;
        }
        self.attempts.observe(f64::from(result.attempt.0.max(1)));
        let seconds = |ms: u32| f64::from(ms) / 1000.0;
        let timing = &result.timing;
        self.queue_wait.observe(seconds(timing.queued_ms));
        self.first_token.observe(seconds(timing.first_token_ms));
        self.duration.observe(seconds(timing.total_ms));
        if result.usage.completion_tokens > 1 {
            let after_first = seconds(timing.total_ms.saturating_sub(timing.first_token_ms));
            self.between_tokens.observe(after_first / f64::from(result.usage.completion_tokens - 1));
        }
    }
}
