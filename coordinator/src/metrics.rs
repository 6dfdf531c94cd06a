//! Every metric of the coordinator: name, unit, help and labels in one place. Labels come from closed sets; every
//! series is there from the start, at zero.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts, Registry,
    TextEncoder,
};

mod answers;
mod fleet;
mod nats;
mod scale;

use ternfleet_cloud::CloudError;
use ternfleet_proto::message::{Durability, JobResult, ScaleView};
use ternfleet_proto::{Lane, Now, TimeMs, UsdMicro};

use crate::core::{Core, Counts, Gauges, QuoteCheck};
use crate::scale::Act;
use answers::AnswerSeries;
use fleet::{FleetSeries, Shown};
use nats::NatsSeries;
use scale::ScaleSeries;

pub(crate) use nats::watch as watch_nats;

/// Numbers of the invariants, as [`Counts::violations`] orders them.
const INVARIANTS: [&str; 4] = ["J1", "J3", "M1", "M2"];
/// What a pod's money buys: work, work beyond a batch's budget, loading and calibrating, nothing, handing back.
const USES: [&str; 5] = ["busy", "over_budget", "boot", "idle", "drain"];
/// Bill over quoted bill.
const QUOTE_ERRORS: [f64; 12] = [0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 2.0, 4.0, 8.0];
const TURN_SECONDS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25];
/// Metrics are brought up to date at most this often.
const REFRESH_MS: u64 = 500;
/// The series of each pod are brought up to date in longer steps, the more of them there are.
const SERIES_GAP_A_WORKER: std::time::Duration = std::time::Duration::from_millis(1);

/// The registry and handles to everything in it.
pub struct Metrics {
    registry: Registry,
    warm: AtomicBool,
    refreshed: std::sync::Mutex<Refreshed>,
    /// What the series of pods and batches are to show, since the last reader.
    shown: std::sync::Mutex<Option<Shown>>,
    rendering: std::sync::Mutex<()>,
    committed: CounterVec,
    cached: Counter,
    duplicates: Counter,
    divergences: Counter,
    forged: Counter,
    handed: Counter,
    moved: Counter,
    failed_handovers: Counter,
    failed_attempts: Counter,
    worker_faults: Counter,
    regret: Counter,
    dead: Counter,
    lost_workers: Counter,
    quarantines: Counter,
    audits: CounterVec,
    canaries: Counter,
    checkpoints_rejected: Counter,
    clock_steps: Counter,
    dead_man_failures: Counter,
    last_host_suspect: Counter,
    adopted: Counter,
    tokens: CounterVec,
    wasted: CounterVec,
    undecodable: Counter,
    questions: Counter,
    violations: CounterVec,
    leader: Gauge,
    batches: Gauge,
    jobs: GaugeVec,
    queue_jobs: GaugeVec,
    queue_tokens: GaugeVec,
    queue_age: GaugeVec,
    text_bytes: Gauge,
    tokens_in_flight: Gauge,
    workers: GaugeVec,
    slots: GaugeVec,
    rate: Gauge,
    price: Gauge,
    price_per_million: Gauge,
    least_per_million: Gauge,
    cost: CounterVec,
    hosts_quarantined: Gauge,
    results_read_to: Gauge,
    turn: Histogram,
    hand_over: Histogram,
    durability: Gauge,
    quote_error: Histogram,
    quotes_checked: CounterVec,
    nats: NatsSeries,
    fleet: FleetSeries,
    answers: AnswerSeries,
    scale: ScaleSeries,
    table: Vec<Described>,
}

#[derive(Default)]
struct Refreshed {
    at: Option<tokio::time::Instant>,
    fleet_at: Option<tokio::time::Instant>,
    counts: Counts,
    /// By use, as [`USES`] orders them.
    cost: [UsdMicro; 5],
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A metric as the documentation lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    pub name: String,
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// Registers metrics and keeps the list of them; names are checked by tests, so failing is a mistake of this crate.
#[derive(Default)]
struct Maker {
    registry: Registry,
    made: RefCell<Vec<Described>>,
}

impl Maker {
    fn register<M: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        (name, help, labels): (&str, &str, &[&str]),
        make: impl FnOnce(Opts) -> prometheus::Result<M>,
    ) -> M {
        self.register_as(kind, (format!("ternfleet_{name}"), help, labels), make)
    }

    fn register_as<M: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        (name, help, labels): (String, &str, &[&str]),
        make: impl FnOnce(Opts) -> prometheus::Result<M>,
    ) -> M {
        let made = make(Opts::new(name.clone(), help)).expect("because names and labels are plain");
        self.registry.register(Box::new(made.clone())).expect("because the name is used once");
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.made.borrow_mut().push(Described { name, kind, labels, help: help.to_owned() });
        made
    }

    fn counter(&self, name: &str, help: &str) -> Counter {
        self.register("counter", (name, help, &[]), Counter::with_opts)
    }

    fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> CounterVec {
        let made = self.counter_family(name, help, &[label]);
        for value in values {
            made.with_label_values(&[value]);
        }
        made
    }

    /// Counters whose series come and go.
    fn counter_family(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.register("counter", (name, help, labels), |opts| CounterVec::new(opts, labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register("gauge", (name, help, &[]), Gauge::with_opts)
    }

    fn gauges(&self, name: &str, help: &str, label: &str, values: &[&str]) -> GaugeVec {
        let made = self.gauge_family(name, help, &[label]);
        for value in values {
            made.with_label_values(&[value]);
        }
        made
    }

    /// Gauges whose series come and go.
    fn gauge_family(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register("gauge", (name, help, labels), |opts| GaugeVec::new(opts, labels))
    }

    /// Gauges by lane.
    fn lanes(&self, name: &str, help: &str) -> GaugeVec {
        self.gauges(name, help, "lane", &Lane::ALL.map(Lane::as_str))
    }

    /// Histograms under a name that others have set.
    fn standard_histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.register_as("histogram", (name.to_owned(), help, labels), |opts| {
            HistogramVec::new(HistogramOpts { common_opts: opts, buckets: buckets.to_vec() }, labels)
        })
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register("histogram", (name, help, &[]), |opts| {
            Histogram::with_opts(HistogramOpts { common_opts: opts, buckets: buckets.to_vec() })
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let m = Maker::default();
        let build = m.gauges("build_info", "Always 1; the version is the label.", "version", &[]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Self {
            warm: AtomicBool::new(false),
            refreshed: Default::default(),
            shown: Default::default(),
            rendering: Default::default(),
            committed: m.counters(
                "jobs_committed_total",
                "Jobs with an answer.",
                "outcome",
                &["good", "error"],
            ),
            cached: m.counter("answers_cached_total", "Lines that were answered with the answer of another line that asks for the same."),
            duplicates: m.counter("answers_duplicate_total", "Answers to jobs that already had one."),
            divergences: m.counter(
                "answers_divergent_total",
                "Duplicate answers whose tokens differ from the committed ones. Should stay 0.",
            ),
            forged: m.counter("answers_forged_total", "Answers without a valid assignment tag."),
            handed: m.counter("jobs_handed_total", "Jobs assigned to a worker."),
            moved: m.counter("jobs_moved_total", "Jobs taken back from a worker."),
            failed_handovers: m.counter("handovers_failed_total", "Assignments that could not be stored."),
            failed_attempts: m
                .counter("attempts_failed_total", "Attempts that ended with a fault of the worker or host."),
            worker_faults: m
                .counter("worker_faults_total", "Jobs that a worker reported as impossible to continue there."),
            regret: m.counter(
                "router_regret_usd_total",
                "Estimated cost of jobs above the cheapest worker of their kind, at assignment, in dollars.",
            ),
            dead: m.counter("jobs_dead_total", "Jobs that became dead letters."),
            lost_workers: m
                .counter("workers_lost_total", "Workers that stopped sending heartbeats without announcing it."),
            quarantines: m.counter("hosts_quarantined_total", "Times that a host was put in quarantine."),
            dead_man_failures: m.counter(
                "dead_man_failures_total",
                "Reported failures of orphaned pods to terminate themselves. Should stay 0.",
            ),
            clock_steps: m.counter(
                "clock_steps_total",
                "Steps of this coordinator's wall clock; they affect only dates and deadlines.",
            ),
            canaries: m.counter(
                "canaries_divergent_total",
                "Hosts whose canary digest differs from most hosts of their kind. Should stay 0.",
            ),
            checkpoints_rejected: m.counter(
                "checkpoints_rejected_total",
                "Checkpoints whose output a worker computed otherwise when it continued the job. Should stay 0.",
            ),
            audits: m.counters(
                "audits_total",
                "Answers that were run a second time on another pod, by outcome.",
                "outcome",
                &["agreed", "diverged", "skipped"],
            ),
            last_host_suspect: m.counter(
                "last_host_suspect_total",
                "Times that the last healthy host would have been quarantined. Should stay 0.",
            ),
            adopted: m.counter("jobs_adopted_total", "Running jobs adopted from an earlier leader."),
            tokens: m.counters(
                "tokens_total",
                "Tokens of committed answers.",
                "phase",
                &["prompt", "completion"],
            ),
            wasted: m.counters(
                "tokens_wasted_total",
                "Wasted tokens: in duplicates, generated again, prefilled again.",
                "reason",
                &["duplicate", "repeated", "reprefilled"],
            ),
            undecodable: m
                .counter("messages_undecodable_total", "Messages dropped because they cannot be decoded."),
            questions: m.counter(
                "questions_total",
                "Questions about batches, jobs and files that were answered here, over NATS or HTTP.",
            ),
            violations: m.counters(
                "invariant_violations_total",
                "Broken invariants, by number. Each is a bug.",
                "id",
                &INVARIANTS,
            ),
            leader: m.gauge("leader", "1 on the leading coordinator, 0 on a standby."),
            batches: m.gauge("batches_active", "Batches that have not ended."),
            jobs: m.gauges("jobs", "Jobs in memory by state.", "state", &["waiting", "in_flight"]),
            queue_jobs: m.lanes("queue_jobs", "Accepted jobs that are not assigned to a worker, by lane."),
            queue_tokens: m.lanes(
                "queue_tokens",
                "Estimated tokens of accepted jobs that are not assigned to a worker, by the mean of the answered ones.",
            ),
            queue_age: m.lanes(
                "queue_oldest_age_seconds",
                "Waiting time of the oldest accepted job that is not assigned to a worker; 0 when none waits.",
            ),
            text_bytes: m.gauge("text_bytes", "Bytes of request text in memory between reading and answer."),
            tokens_in_flight: m.gauge("tokens_in_flight", "Estimated tokens of the jobs that are assigned to workers."),
            workers: m.gauges("workers", "Workers by liveness.", "state", &["live", "quiet", "lost"]),
            slots: m.gauges("slots", "Slots of live workers.", "use", &["all", "busy"]),
            rate: m.gauge("fleet_rate_tok_s", "Measured speed of the fleet in tokens per second."),
            price: m.gauge("fleet_price_usd_per_hour", "Price of all live pods in dollars per hour."),
            price_per_million: m.gauge(
                "fleet_usd_per_million_tokens",
                "Cost per 1M tokens at the fleet's speed and price, in dollars; 0 while unmeasured.",
            ),
            least_per_million: m.gauge(
                "fleet_usd_per_million_tokens_bound",
                "Lower bound of the cost per 1M tokens: the cheapest live \
                 pod at its measured speed; 0 while unmeasured.",
            ),
            cost: m.counters(
                "cost_usd_total",
                "Cost of pods since this coordinator started, in dollars, by use. The sum is the \
                 bill, except for the last seconds, whose use is not known yet.",
                "use",
                &USES,
            ),
            hosts_quarantined: m.gauge("hosts_quarantined", "Hosts in quarantine now."),
            results_read_to: m
                .gauge("results_read_to", "Sequence of RESULTS up to which the ledger has been updated."),
            turn: m.histogram(
                "loop_turn_seconds",
                "Time of one turn of the coordinator's loop: what came in meanwhile has waited for so long.",
                &TURN_SECONDS,
            ),
            hand_over: m.histogram(
                "hand_over_seconds",
                "Time from the turn of the coordinator's loop in which a job could be assigned until it was sent.",
                &TURN_SECONDS,
            ),
            durability: m.gauge(
                "durability_level",
                "Durability of an accepted batch: 0 memory, 1 stored, 2 replicated, 3 synced to disk.",
            ),
            quote_error: m.histogram(
                "quote_error_ratio",
                "Bill over quoted bill (p50) of batches that ended completed: 1 is a quote that was met exactly.",
                &QUOTE_ERRORS,
            ),
            quotes_checked: m.counters(
                "quotes_checked_total",
                "Batches that ended completed, by whether the bill was within the quoted p95.",
                "bill",
                &["within_p95", "above_p95"],
            ),
            nats: NatsSeries::new(&m),
            fleet: FleetSeries::new(&m),
            answers: AnswerSeries::new(&m),
            scale: ScaleSeries::new(&m),
            table: m.made.take(),
            registry: m.registry,
        }
    }
}

impl Metrics {
    /// Warm: the ledger has read everything stored. Only the leader acts.
    pub(crate) fn set_role(&self, warm: bool, leading: bool) {
        self.warm.store(warm, Ordering::Relaxed);
        self.leader.set(f64::from(u8::from(leading)));
    }

    pub(crate) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Relaxed)
    }

    pub(crate) fn set_durability(&self, durability: Durability) {
        self.durability.set(match durability {
            Durability::Memory => 0.0,
            Durability::Stored => 1.0,
            Durability::Replicated => 2.0,
            Durability::Fsynced => 3.0,
        });
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.nats.connected.set(f64::from(u8::from(connected)));
    }

    /// Every metric there is, by name, for the documentation and for checks of dashboards and rules.
    pub fn described(&self) -> Vec<Described> {
        let mut table = self.table.clone();
        table.sort();
        table
    }

    pub(crate) fn question(&self) {
        self.questions.inc();
    }

    pub(crate) fn undecodable(&self) {
        self.undecodable.inc();
    }

    /// A batch has ended whose bill can be compared with its quote.
    pub(crate) fn quote_checked(&self, check: &QuoteCheck) {
        self.quote_error.observe(check.ratio);
        let bill = if check.within_p95 { "within_p95" } else { "above_p95" };
        self.quotes_checked.with_label_values(&[bill]).inc();
    }

    /// Takes over what the core has counted.
    pub(crate) fn observe(&self, now: Now, core: &Core) {
        let mut last = self.refreshed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.at.is_some_and(|at| at.elapsed().as_millis() < u128::from(REFRESH_MS)) {
            return;
        }
        last.at = Some(tokio::time::Instant::now());
        let (counted, before) = (core.counts, std::mem::replace(&mut last.counts, core.counts));
        // A core that started again counts from zero.
        let add = |counter: &Counter, now: u64, before: u64| {
            counter.inc_by(now.checked_sub(before).unwrap_or(now) as f64)
        };
        for (place, outcome) in ["good", "error"].into_iter().enumerate() {
            add(
                &self.committed.with_label_values(&[outcome]),
                counted.committed[place],
                before.committed[place],
            );
        }
        add(&self.cached, counted.cached_answers, before.cached_answers);
        add(&self.duplicates, counted.duplicate_answers, before.duplicate_answers);
        add(&self.divergences, counted.divergent_answers, before.divergent_answers);
        add(&self.forged, counted.forged_answers, before.forged_answers);
        add(&self.handed, counted.handed_jobs, before.handed_jobs);
        add(&self.moved, counted.moved_jobs, before.moved_jobs);
        add(&self.failed_handovers, counted.failed_handovers, before.failed_handovers);
        add(&self.failed_attempts, counted.failed_attempts, before.failed_attempts);
        add(&self.worker_faults, counted.worker_faults, before.worker_faults);
        let regret =
            counted.regret_usd_micro.checked_sub(before.regret_usd_micro).unwrap_or(counted.regret_usd_micro);
        self.regret.inc_by(regret as f64 / 1e6);
        add(&self.dead, counted.dead_jobs, before.dead_jobs);
        add(&self.lost_workers, counted.lost_workers, before.lost_workers);
        add(self.scale.slowdowns(), counted.slowdowns, before.slowdowns);
        add(&self.quarantines, counted.quarantined_hosts, before.quarantined_hosts);
        add(&self.dead_man_failures, counted.dead_man_failures, before.dead_man_failures);
        add(&self.canaries, counted.canaries_diverged, before.canaries_diverged);
        add(&self.checkpoints_rejected, counted.checkpoints_rejected, before.checkpoints_rejected);
        add(&self.clock_steps, counted.clock_steps, before.clock_steps);
        let audits = |outcome: &str| self.audits.with_label_values(&[outcome]);
        add(&audits("agreed"), counted.audits_agreed, before.audits_agreed);
        add(&audits("diverged"), counted.audits_diverged, before.audits_diverged);
        add(&audits("skipped"), counted.audits_skipped, before.audits_skipped);
        add(&self.last_host_suspect, counted.last_host_suspect, before.last_host_suspect);
        add(&self.adopted, counted.adopted_jobs, before.adopted_jobs);
        let tokens = |phase: &str| self.tokens.with_label_values(&[phase]);
        add(&tokens("prompt"), counted.prompt_tokens, before.prompt_tokens);
        add(&tokens("completion"), counted.completion_tokens, before.completion_tokens);
        let wasted = |reason: &str| self.wasted.with_label_values(&[reason]);
        add(&wasted("duplicate"), counted.wasted_duplicate_tokens, before.wasted_duplicate_tokens);
        add(&wasted("repeated"), counted.wasted_repeated_tokens, before.wasted_repeated_tokens);
        add(&wasted("reprefilled"), counted.reprefilled_tokens, before.reprefilled_tokens);
        for (place, id) in INVARIANTS.into_iter().enumerate() {
            add(
                &self.violations.with_label_values(&[id]),
                counted.violations[place],
                before.violations[place],
            );
        }
        let levels = core.gauges();
        self.set_levels(now.wall, &levels);
        let idle = levels.idle - levels.boot - levels.drain;
        let cost = [levels.attributed, levels.over_budget, levels.boot, idle, levels.drain];
        for ((name, now), before) in USES.into_iter().zip(cost).zip(std::mem::replace(&mut last.cost, cost)) {
            let more = if now < before { now } else { now - before };
            self.cost.with_label_values(&[name]).inc_by(more.dollars());
        }
        // Only the leader's view is complete; a standby would show the same pods twice. A view of ten thousand pods takes
        // a while: then not at every look.
        let gap = SERIES_GAP_A_WORKER * core.fleet().workers.len() as u32;
        if levels.leading && last.fleet_at.is_some_and(|at| at.elapsed() < gap) {
            return;
        }
        last.fleet_at = Some(tokio::time::Instant::now());
        let (pods, batches) = match levels.leading {
            true => (core.pod_views(None), fleet::soonest(now, core)),
            false => Default::default(),
        };
        self.fleet.add_up_classes(&pods);
        let shown = Shown { at: now.wall, pods, batches };
        *self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(shown);
    }

    /// What the scaler has and does.
    pub(crate) fn scaler(&self, view: &ScaleView, wanted: &BTreeMap<(String, String), u32>) {
        self.scale.show(view, wanted);
    }

    pub(crate) fn scale_act(&self, act: &Act) {
        self.scale.act(act);
    }

    pub(crate) fn provider_fault(&self, fault: &CloudError) {
        self.scale.fault(fault);
    }

    pub(crate) fn billing_drift(&self, ratio: f64) {
        self.scale.drift(ratio);
    }

    /// The loop has taken in what there was, and asked for what follows from it.
    pub(crate) fn turned(&self, took: std::time::Duration) {
        self.turn.observe(took.as_secs_f64());
    }

    /// So many jobs were assigned in a turn, and this long after they could have been.
    pub(crate) fn handed_over(&self, jobs: u64, waited: std::time::Duration) {
        (0..jobs).for_each(|_| self.hand_over.observe(waited.as_secs_f64()));
    }

    /// An answer was read as it came, not in a replay.
    pub(crate) fn answered(&self, result: &JobResult) {
        self.answers.observe(result);
    }

    fn set_levels(&self, now: TimeMs, levels: &Gauges) {
        self.batches.set(levels.batches_active as f64);
        self.jobs.with_label_values(&["waiting"]).set(levels.jobs_waiting as f64);
        self.jobs.with_label_values(&["in_flight"]).set(levels.jobs_in_flight as f64);
        for (lane, queue) in Lane::ALL.into_iter().zip(&levels.queues) {
            let lane = [lane.as_str()];
            self.queue_jobs.with_label_values(&lane).set(queue.jobs as f64);
            self.queue_tokens.with_label_values(&lane).set(queue.tokens as f64);
            let age = queue.oldest.map_or(0.0, |since| now.since(since).as_secs_f64());
            self.queue_age.with_label_values(&lane).set(age);
        }
        self.text_bytes.set(levels.text_bytes as f64);
        self.tokens_in_flight.set(levels.tokens_in_flight as f64);
        for (place, state) in ["live", "quiet", "lost"].into_iter().enumerate() {
            self.workers.with_label_values(&[state]).set(levels.workers[place] as f64);
        }
        self.slots.with_label_values(&["all"]).set(levels.slots as f64);
        self.slots.with_label_values(&["busy"]).set(levels.slots_in_use as f64);
        self.rate.set(levels.fleet_rate_tok_s);
        self.price.set(levels.fleet_usd_micro_per_hour.dollars());
        self.price_per_million.set(levels.fleet_usd_micro_per_million.map_or(0.0, |price| price.dollars()));
        self.least_per_million.set(levels.least_usd_micro_per_million.map_or(0.0, |price| price.dollars()));
        self.scale.levels(levels);
        self.hosts_quarantined.set(levels.hosts_quarantined as f64);
        self.results_read_to.set(levels.results_read_to as f64);
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        // Held so that no reader sees the fleet's series half written.
        let _whole = self.rendering.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(shown) = shown {
            self.fleet.refresh(&shown);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_at_zero_from_the_start() {
        let text = Metrics::default().render();
        for series in [
            "ternfleet_jobs_committed_total{outcome=\"good\"} 0",
            "ternfleet_invariant_violations_total{id=\"M2\"} 0",
            "ternfleet_tokens_wasted_total{reason=\"repeated\"} 0",
            "ternfleet_workers{state=\"live\"} 0",
            "ternfleet_answers_divergent_total 0",
            "ternfleet_answers_failed_total{code=\"poison\"} 0",
            "ternfleet_queue_oldest_age_seconds{lane=\"batch\"} 0",
            "ternfleet_nats_stream_bytes{stream=\"results\"} 0",
        ] {
            assert!(text.contains(series), "{series} is missing in\n{text}");
        }
    }
}
