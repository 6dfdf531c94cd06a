//! Answers as they come in: how long they took, as histograms, from what workers measured; how many attempts; why they failed.

use prometheus::{CounterVec, Histogram, HistogramVec};
use ternfleet_proto::message::{FailureCode, JobResult, Outcome};

use ternfleet_proto::openai::Endpoint;

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
    standard: StandardSeries,
}

/// The same by OpenTelemetry's conventions for generative AI, with its names, labels and buckets: dashboards of other
/// servers read them.
struct StandardSeries {
    tokens: HistogramVec,
    duration: HistogramVec,
    first_token: HistogramVec,
    per_token: HistogramVec,
}

const STANDARD_LABELS: [&str; 3] = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"];
const STANDARD_TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const STANDARD_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const STANDARD_FIRST: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const STANDARD_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

impl StandardSeries {
    fn new(maker: &Maker) -> Self {
        let seconds = |name: &str, help: &str, buckets: &[f64]| {
            maker.standard_histograms(name, help, &STANDARD_LABELS, buckets)
        };
        let [operation, provider, model] = STANDARD_LABELS;
        Self {
            tokens: maker.standard_histograms(
                "gen_ai_client_token_usage",
                "Tokens of an answer, by OpenTelemetry's conventions.",
                &[operation, provider, model, "gen_ai_token_type"],
                &STANDARD_TOKENS,
            ),
            duration: seconds(
                "gen_ai_server_request_duration_seconds",
                "Time from a worker's pull to the end of the output, by OpenTelemetry's conventions.",
                &STANDARD_SECONDS,
            ),
            first_token: seconds(
                "gen_ai_server_time_to_first_token_seconds",
                "Time from a worker's pull to the first token, by OpenTelemetry's conventions.",
                &STANDARD_FIRST,
            ),
            per_token: seconds(
                "gen_ai_server_time_per_output_token_seconds",
                "Mean time between a job's tokens after the first, by OpenTelemetry's conventions.",
                &STANDARD_TOKEN,
            ),
        }
    }

    fn observe(&self, result: &JobResult) {
        let operation = match result.line.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::ChatCompletions | Endpoint::Responses => "chat",
        };
        let labels = [operation, "ternfleet", result.line.model.as_deref().unwrap_or_default()];
        let [operation, provider, model] = labels;
        let usage = &result.usage;
        for (kind, count) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
            self.tokens.with_label_values(&[operation, provider, model, kind]).observe(f64::from(count));
        }
        let seconds = |ms: u32| f64::from(ms) / 1000.0;
        let timing = &result.timing;
        self.duration.with_label_values(&labels).observe(seconds(timing.total_ms));
        self.first_token.with_label_values(&labels).observe(seconds(timing.first_token_ms));
        if usage.completion_tokens > 1 {
            let after_first = seconds(timing.total_ms.saturating_sub(timing.first_token_ms));
            let each = after_first / f64::from(usage.completion_tokens - 1);
            self.per_token.with_label_values(&labels).observe(each);
        }
    }
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
            standard: StandardSeries::new(maker),
        }
    }

    pub(super) fn observe(&self, result: &JobResult) {
        if let Outcome::Failed(failure) = &result.outcome {
            self.failed.with_label_values(&[code(failure.code)]).inc();
            return;
        }
        // A copy took nobody any time.
        if matches!(&result.outcome, Outcome::Text(generated) if generated.copy_of.is_some()) {
            return;
        }
        self.standard.observe(result);
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
