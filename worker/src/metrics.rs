//! Every metric of the worker: name, unit and help in one place, all series present from the start at zero.
//!
//! Counts that the core keeps are copied at each tick; durations are observed as jobs end. Rented pods sit behind NAT,
//! so the same counters travel in heartbeats and the coordinator shows them too.

use std::time::Duration;

use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder,
};
use ternfleet_proto::message::{JobResult, Outcome, WorkerCounters, WorkerState};

use crate::core::{Core, DropReason, Note, Steps};
use crate::model::LoadedModel;

const LATENCY_S: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
const STEP_S: [f64; 11] = [0.0005, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 1.0, 3.0];
const BATCH: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0];
const STATES: [(WorkerState, &str); 4] = [
    (WorkerState::Calibrating, "calibrating"),
    (WorkerState::Ready, "ready"),
    (WorkerState::Draining, "draining"),
    (WorkerState::Gone, "gone"),
];

/// The worker's metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    build: GaugeVec,
    state: GaugeVec,
    slots: IntGauge,
    slots_in_use: IntGauge,
    kv_pages: IntGauge,
    kv_pages_free: IntGauge,
    answering: IntGauge,
    connected: IntGauge,
    price: Gauge,
    load: Gauge,
    checkpoint_age: Gauge,
    rates: GaugeVec,
    calibrated: GaugeVec,
    tokens: IntCounterVec,
    wasted: IntCounterVec,
    jobs: IntCounterVec,
    dropped: IntCounterVec,
    stale_leader: IntCounterVec,
    clock_steps: IntCounter,
    seconds: CounterVec,
    checkpoints: IntCounter,
    checkpoints_skipped: IntCounter,
    fenced: IntCounter,
    duplicates: IntCounter,
    divergences: IntCounter,
    dead_man_failures: IntCounter,
    undecodable: IntCounter,
    results_full: IntCounter,
    faults: IntCounter,
    misrouted: IntCounter,
    checkpoints_rejected: IntCounter,
    head_fallbacks: IntCounter,
    head_screened: IntCounter,
    head_candidates: IntCounter,
    speculation: IntCounterVec,
    prefix_cache_hits: IntCounter,
    first_token: Histogram,
    job_duration: Histogram,
    queue_wait: Histogram,
    between_tokens: Histogram,
    step: Histogram,
    batch: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Registers a metric; names are literals of this file, so that a clash shows in every test.
macro_rules! register {
    ($registry:expr, $made:expr) => {{
        let made = $made.expect("because name, help and labels are literals that the tests read");
        $registry.register(Box::new(made.clone())).expect("because no name stands here twice");
        made
    }};
}

impl Metrics {
    pub fn new() -> Metrics {
        let r = Registry::new();
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let counters =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let gauges = |name: &str, help: &str, label: &str| GaugeVec::new(Opts::new(name, help), &[label]);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let metrics = Metrics {
            build: register!(
                r,
                GaugeVec::new(
                    Opts::new(
                        "ternfleet_worker_build_info",
                        "Version, device (cpu, cuda, which is experimental, or server), instruction set and model; \
                         always 1."
                    ),
                    &["version", "device", "isa", "model"],
                )
            ),
            state: register!(
                r,
                gauges("ternfleet_worker_state", "1 for the current state of the worker.", "state")
            ),
            slots: register!(r, gauge("ternfleet_worker_slots", "Jobs that can run at the same time.")),
            slots_in_use: register!(r, gauge("ternfleet_worker_slots_in_use", "Jobs that hold a slot.")),
            kv_pages: register!(r, gauge("ternfleet_worker_kv_pages", "Key/value pages of the engine.")),
            kv_pages_free: register!(
                r,
                gauge("ternfleet_worker_kv_pages_free", "Key/value pages that are not reserved.")
            ),
            answering: register!(
                r,
                gauge("ternfleet_worker_answering_jobs", "Answers that are not yet stored and acknowledged.")
            ),
            connected: register!(
                r,
                gauge("ternfleet_worker_nats_connected", "1 while the connection to NATS is up.")
            ),
            price: register!(
                r,
                Gauge::new(
                    "ternfleet_worker_price_usd_per_hour",
                    "Price of this worker's pod per hour, in US dollars."
                )
            ),
            load: register!(r, Gauge::new("ternfleet_worker_load_seconds", "Time to load the model.")),
            checkpoint_age: register!(
                r,
                Gauge::new(
                    "ternfleet_worker_checkpoint_age_seconds",
                    "Age of the oldest output that is not in a checkpoint."
                )
            ),
            rates: register!(
                r,
                gauges(
                    "ternfleet_worker_tokens_per_second",
                    "Speed measured over real work, all sequences together.",
                    "measure"
                )
            ),
            calibrated: register!(
                r,
                gauges("ternfleet_worker_calibrated_tokens_per_second", "Speed measured at start.", "phase")
            ),
            tokens: register!(
                r,
                counters("ternfleet_worker_tokens_total", "Tokens computed by the engine.", "phase")
            ),
            wasted: register!(
                r,
                counters(
                    "ternfleet_worker_wasted_tokens_total",
                    "Tokens computed although an earlier attempt had computed them.",
                    "reason"
                )
            ),
            jobs: register!(
                r,
                counters("ternfleet_worker_jobs_total", "Jobs that ended on this worker.", "outcome")
            ),
            dropped: register!(
                r,
                counters(
                    "ternfleet_worker_dropped_jobs_total",
                    "Jobs that left this worker without an answer.",
                    "reason"
                )
            ),
            clock_steps: register!(
                r,
                counter("ternfleet_worker_clock_steps_total", "Steps of this machine's wall clock.")
            ),
            stale_leader: register!(
                r,
                counters(
                    "ternfleet_worker_stale_leader_total",
                    "Messages ignored because an earlier leader sent them.",
                    "kind"
                )
            ),
            seconds: register!(
                r,
                CounterVec::new(
                    Opts::new(
                        "ternfleet_worker_seconds_total",
                        "Time during which the engine was busy, and time during which the cgroup throttled \
                         it."
                    ),
                    &["kind"],
                )
            ),
            checkpoints: register!(
                r,
                counter("ternfleet_worker_checkpoints_total", "Checkpoints stored, without claims.")
            ),
            checkpoints_skipped: register!(
                r,
                counter(
                    "ternfleet_worker_checkpoints_skipped_total",
                    "Checkpoints that were not stored, because the stream was full or they were too large."
                )
            ),
            fenced: register!(
                r,
                counter(
                    "ternfleet_worker_fenced_total",
                    "Jobs stopped because another worker had claimed them."
                )
            ),
            duplicates: register!(
                r,
                counter(
                    "ternfleet_worker_duplicates_total",
                    "Answers that were already stored under this worker's name."
                )
            ),
            divergences: register!(
                r,
                counter(
                    "ternfleet_worker_divergences_total",
                    "Duplicate answers that differed from the stored one."
                )
            ),
            dead_man_failures: register!(
                r,
                counter(
                    "ternfleet_worker_dead_man_failures_total",
                    "Failed attempts to terminate a pod without a coordinator. Should stay 0."
                )
            ),
            undecodable: register!(
                r,
                counter("ternfleet_worker_undecodable_messages_total", "Messages that could not be decoded.")
            ),
            results_full: register!(
                r,
                counter(
                    "ternfleet_worker_results_full_total",
                    "Results rejected because their stream was full."
                )
            ),
            faults: register!(
                r,
                counter("ternfleet_worker_faults_total", "Generations that could not start or continue.")
            ),
            misrouted: register!(
                r,
                counter("ternfleet_worker_misrouted_total", "Jobs for another model or numerics id.")
            ),
            checkpoints_rejected: register!(
                r,
                counter(
                    "ternfleet_worker_checkpoints_rejected_total",
                    "Checkpoints whose output this worker computes otherwise; their jobs started over."
                )
            ),
            head_fallbacks: register!(
                r,
                counter(
                    "ternfleet_worker_head_fallbacks_total",
                    "Tokens for which the full output head had to run."
                )
            ),
            head_screened: register!(
                r,
                counter(
                    "ternfleet_worker_head_screened_total",
                    "Tokens sampled from the screened output head."
                )
            ),
            head_candidates: register!(
                r,
                counter(
                    "ternfleet_worker_head_candidates_total",
                    "Rows that the screened output head computed exactly."
                )
            ),
            speculation: register!(
                r,
                counters(
                    "ternfleet_worker_speculation_tokens_total",
                    "Tokens drafted by speculative decoding, and how many of them were accepted.",
                    "outcome"
                )
            ),
            prefix_cache_hits: register!(
                r,
                counter(
                    "ternfleet_worker_prefix_cache_hits_total",
                    "Jobs whose prompt started with cached pages."
                )
            ),
            first_token: register!(
                r,
                histogram(
                    "ternfleet_worker_time_to_first_token_seconds",
                    "Time from the pull of a job to its first token.",
                    &LATENCY_S
                )
            ),
            job_duration: register!(
                r,
                histogram(
                    "ternfleet_worker_job_duration_seconds",
                    "Time from the pull of a job to its answer.",
                    &LATENCY_S
                )
            ),
            queue_wait: register!(
                r,
                histogram(
                    "ternfleet_worker_queue_wait_seconds",
                    "Time from the pull of a job to its start.",
                    &LATENCY_S
                )
            ),
            between_tokens: register!(
                r,
                histogram(
                    "ternfleet_worker_time_between_tokens_seconds",
                    "Mean time between the tokens of a job.",
                    &STEP_S
                )
            ),
            step: register!(
                r,
                histogram("ternfleet_worker_step_seconds", "Duration of a forward step.", &STEP_S)
            ),
            batch: register!(
                r,
                histogram("ternfleet_worker_batch_size", "Sequences that took part in a step.", &BATCH)
            ),
            registry: r,
        };
        metrics.show_all_at_zero();
        metrics
    }

    fn show_all_at_zero(&self) {
        for phase in ["prefill", "decode"] {
            self.tokens.with_label_values(&[phase]);
            self.calibrated.with_label_values(&[phase]);
        }
        for measure in ["decode", "decode_lower_bound", "prefill"] {
            self.rates.with_label_values(&[measure]);
        }
        for reason in ["repeated", "reprefilled"] {
            self.wasted.with_label_values(&[reason]);
        }
        for outcome in ["done", "failed", "released"] {
            self.jobs.with_label_values(&[outcome]);
        }
        for reason in DropReason::ALL {
            self.dropped.with_label_values(&[reason.as_str()]);
        }
        for kind in ["work", "control"] {
            self.stale_leader.with_label_values(&[kind]);
        }
        for kind in ["busy", "throttled"] {
            self.seconds.with_label_values(&[kind]);
        }
        for fate in ["drafted", "accepted"] {
            self.speculation.with_label_values(&[fate]);
        }
        for (_, state) in STATES {
            self.state.with_label_values(&[state]);
        }
    }

    /// What does not change while the process lives.
    pub(crate) fn set_model(&self, model: &LoadedModel, price_usd_per_hour: f64) {
        let labels = [env!("CARGO_PKG_VERSION"), model.device, &model.isa, &model.name];
        self.build.with_label_values(&labels).set(1.0);
        self.slots.set(model.slots as i64);
        self.kv_pages.set(model.kv_pages as i64);
        self.price.set(price_usd_per_hour);
        self.load.set(model.load.as_secs_f64());
        self.calibrated.with_label_values(&["prefill"]).set(model.calibration.prefill_tok_s);
        self.calibrated.with_label_values(&["decode"]).set(model.calibration.decode_tok_s());
    }

    /// The pod could not be ended.
    pub(crate) fn dead_man_failed(&self) {
        self.dead_man_failures.inc();
    }

    /// Copies what the core knows; at each tick.
    pub(crate) fn copy(&self, core: &Core, checkpoint_age: Duration, throttled: Duration, connected: bool) {
        let WorkerCounters {
            prefill_tokens,
            decode_tokens,
            repeated_tokens,
            reprefilled_tokens,
            jobs_done,
            jobs_failed,
            jobs_released,
            checkpoints,
            fenced,
            duplicates,
            divergences,
            undecodable_messages,
            prefix_cache_hits,
            head_fallbacks,
            busy_ms,
            throttled_ms: _,
            // Counted when there is no core any more.
            dead_man_failures: _,
            // Observed step by step.
            steps: _,
            step_sequences: _,
            head_screened: _,
            guessed_tokens: _,
            right_guesses: _,
        } = core.counters();
        raise(&self.tokens.with_label_values(&["prefill"]), prefill_tokens);
        raise(&self.tokens.with_label_values(&["decode"]), decode_tokens);
        raise(&self.wasted.with_label_values(&["repeated"]), repeated_tokens);
        raise(&self.wasted.with_label_values(&["reprefilled"]), reprefilled_tokens);
        raise(&self.jobs.with_label_values(&["done"]), jobs_done);
        raise(&self.jobs.with_label_values(&["failed"]), jobs_failed);
        raise(&self.jobs.with_label_values(&["released"]), jobs_released);
        raise(&self.checkpoints, checkpoints);
        raise(&self.fenced, fenced);
        raise(&self.duplicates, duplicates);
        raise(&self.divergences, divergences);
        raise(&self.undecodable, undecodable_messages);
        raise(&self.prefix_cache_hits, prefix_cache_hits);
        raise(&self.head_fallbacks, head_fallbacks);
        for (kind, seconds) in [("busy", busy_ms as f64 / 1e3), ("throttled", throttled.as_secs_f64())] {
            let counter = self.seconds.with_label_values(&[kind]);
            counter.inc_by((seconds - counter.get()).max(0.0));
        }
        let (decode, prefill) = core.rates();
        self.rates.with_label_values(&["decode"]).set(decode.mean());
        self.rates.with_label_values(&["decode_lower_bound"]).set(decode.lower_bound());
        self.rates.with_label_values(&["prefill"]).set(prefill.mean());
        self.slots_in_use.set(core.slots_in_use() as i64);
        self.kv_pages_free.set(core.pages_free() as i64);
        self.answering.set(core.answering() as i64);
        self.checkpoint_age.set(checkpoint_age.as_secs_f64());
        self.connected.set(i64::from(connected));
        for (state, name) in STATES {
            self.state.with_label_values(&[name]).set(f64::from(u8::from(state == core.state())));
        }
    }

    pub(crate) fn observe_steps(&self, steps: &Steps) {
        if steps.steps > 0 && steps.sequences > 0 {
            self.step.observe(steps.busy.as_secs_f64() / f64::from(steps.steps));
            self.batch.observe(steps.sequences as f64 / f64::from(steps.steps));
        }
        self.head_screened.inc_by(steps.head.screened);
        self.head_candidates.inc_by(steps.head.candidates);
        self.speculation.with_label_values(&["drafted"]).inc_by(steps.speculation.drafted);
        self.speculation.with_label_values(&["accepted"]).inc_by(steps.speculation.accepted);
    }

    pub(crate) fn observe(&self, note: &Note) {
        match note {
            Note::Answered(result) => self.observe_answer(result),
            Note::Dropped { why, .. } => self.dropped.with_label_values(&[why.as_str()]).inc(),
            Note::StaleLeader { what } => self.stale_leader.with_label_values(&[*what]).inc(),
            Note::ClockStepped { .. } => self.clock_steps.inc(),
            Note::ResultsFull { .. } => self.results_full.inc(),
            Note::CheckpointSkipped { .. } => self.checkpoints_skipped.inc(),
            Note::Fault { .. } => self.faults.inc(),
            Note::Misrouted { .. } => self.misrouted.inc(),
            Note::CheckpointRejected { .. } => self.checkpoints_rejected.inc(),
            Note::Duplicate { .. }
            | Note::Fenced { .. }
            | Note::Released { .. }
            | Note::Undecodable { .. } => {}
        }
    }

    fn observe_answer(&self, result: &JobResult) {
        let seconds = |ms: u32| f64::from(ms) / 1e3;
        let timing = result.timing;
        self.job_duration.observe(seconds(timing.total_ms));
        self.queue_wait.observe(seconds(timing.queued_ms));
        if matches!(result.outcome, Outcome::Text(_)) {
            self.first_token.observe(seconds(timing.first_token_ms));
            let gaps = result.usage.completion_tokens.saturating_sub(1);
            if gaps > 0 {
                let span = timing.total_ms.saturating_sub(timing.first_token_ms);
                self.between_tokens.observe(seconds(span) / f64::from(gaps));
            }
        }
    }

    /// The exposition text.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(fault) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%fault, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Name, kind and help of each metric, in order of name: the documentation's table, and what dashboards may use.
    pub fn table(&self) -> Vec<(String, String, String)> {
        let families = self.registry.gather();
        let row = |family: &prometheus::proto::MetricFamily| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            (family.name().to_owned(), kind, family.help().to_owned())
        };
        families.iter().map(row).collect()
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_at_zero() {
        let text = Metrics::new().render();
        for series in [
            "ternfleet_worker_tokens_total{phase=\"decode\"} 0",
            "ternfleet_worker_jobs_total{outcome=\"failed\"} 0",
            "ternfleet_worker_dropped_jobs_total{reason=\"revoked\"} 0",
            "ternfleet_worker_seconds_total{kind=\"busy\"} 0",
            "ternfleet_worker_divergences_total 0",
            "ternfleet_worker_time_to_first_token_seconds_count 0",
        ] {
            assert!(text.contains(series), "{series} is missing in:\n{text}");
        }
    }

    #[test]
    fn names_carry_the_prefix_and_counters_end_in_total() {
        for (name, kind, help) in Metrics::new().table() {
            assert!(name.starts_with("ternfleet_worker_") && help.ends_with('.'), "{name}: {help}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        }
    }
}
