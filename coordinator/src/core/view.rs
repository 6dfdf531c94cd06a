//! What callers and metrics see of the core.

use std::time::Duration;

use ternfleet_proto::message::{BatchOptions, BatchState, BatchView, PodView, Stall};
use ternfleet_proto::money::usd_micro_per_million_tokens;
use ternfleet_proto::{BatchId, Lane, Now, TenantId, TimeMs, UsdMicro, WorkerId};

use super::batch::{Batch, Origin};
use super::event::{BatchSlot, WorkerSlot};
use super::fleet::{Liveness, Worker};
use super::{BatchRecord, Core};
use crate::models::Models;

/// A batch that would take longer than this at its present speed has no estimate.
const ESTIMATE_MAX: Duration = Duration::from_secs(100 * 86_400);

/// Levels, as against [`super::Counts`], for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges {
    pub leading: bool,
    pub batches_active: u64,
    pub jobs_waiting: u64,
    pub jobs_in_flight: u64,
    /// Lines without a worker, unread ones included, by lane.
    pub queues: [QueueLevel; 2],
    pub text_bytes: u64,
    pub tokens_in_flight: u64,
    /// Live, quiet, lost.
    pub workers: [u64; 3],
    pub slots: u64,
    pub slots_in_use: u64,
    pub fleet_rate_tok_s: f64,
    pub fleet_usd_micro_per_hour: UsdMicro,
    pub fleet_usd_micro_per_million: Option<UsdMicro>,
    /// The least that a million tokens costs on any pod here, at its measured speed.
    pub least_usd_micro_per_million: Option<UsdMicro>,
    pub billed: UsdMicro,
    pub attributed: UsdMicro,
    /// Used by batches beyond their budgets.
    pub over_budget: UsdMicro,
    /// Whose it is will show when workers are next heard of.
    pub pending: UsdMicro,
    pub idle: UsdMicro,
    /// Of `idle`: before a rented pod's first worker was heard of, and after the pod was told to end.
    pub boot: UsdMicro,
    pub drain: UsdMicro,
    /// Workers that are much slower than they used to be.
    pub workers_slow: u64,
    pub hosts_quarantined: u64,
    pub results_read_to: u64,
}

/// What waits in one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QueueLevel {
    pub jobs: u64,
    /// Reckoned by the mean of the answered jobs.
    pub tokens: u64,
    /// When the batch of the oldest one was accepted.
    pub oldest: Option<TimeMs>,
}

impl QueueLevel {
    fn add(&mut self, batch: &Batch, in_flight: u32, mean_job_tokens: f64) {
        let waiting = batch.jobs_total().saturating_sub(batch.answered() + in_flight);
        if waiting == 0 {
            return;
        }
        self.jobs += u64::from(waiting);
        self.tokens += (f64::from(waiting) * mean_job_tokens) as u64;
        let since = batch.record.created_at;
        self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
    }
}

impl Batch {
    fn view(&self, now: Now, stall: Option<Stall>, mean_job_tokens: f64) -> BatchView {
        let known = view_of(&self.record, self.totals);
        let advances = self.record.state == BatchState::InProgress && stall.is_none();
        BatchView {
            finish_estimate: self
                .time_left(mean_job_tokens)
                .filter(|_| advances)
                .map(|left| now.wall.plus(left)),
            rate_tok_s: if self.is_ended() { 0.0 } else { self.rate_tok_s },
            total: self.jobs_total(),
            total_is_final: self.record.lines.is_some(),
            reason: stall.as_ref().map(|stall| stall.reason.clone()).or(known.reason),
            stall,
            ..known
        }
    }

    /// At the present speed. A rate that fades after the last token says nothing, so there is no time left beyond
    /// [`ESTIMATE_MAX`].
    fn time_left(&self, mean_job_tokens: f64) -> Option<Duration> {
        let tokens = f64::from(self.jobs_total().saturating_sub(self.answered())) * mean_job_tokens;
        let left_s = tokens / self.rate_tok_s;
        (0.0..=ESTIMATE_MAX.as_secs_f64()).contains(&left_s).then(|| Duration::from_secs_f64(left_s))
    }
}

/// A batch that is no longer in memory, from its record.
pub fn view_of(record: &BatchRecord, totals: super::Totals) -> BatchView {
    let aged = record.aged_out_at.map(|_| {
        "its files and answers were deleted after their retention \
                                           time"
            .to_owned()
    });
    BatchView {
        id: record.id.clone(),
        tenant: record.tenant.clone(),
        name: record.name.clone(),
        state: record.state,
        input_object: record.input_object.clone(),
        endpoint: record.endpoint,
        output_object: record.output_object.clone(),
        error_object: record.error_object.clone(),
        proof_object: record.proof_object.clone(),
        total: record.lines.unwrap_or(0).saturating_sub(totals.blank),
        completed: totals.completed,
        failed: totals.failed,
        total_is_final: record.lines.is_some(),
        created_at: record.created_at,
        started_at: record.started_at,
        cancelling_at: record.cancelling_at,
        finalizing_at: record.finalizing_at,
        ended_at: record.ended_at,
        expires_at: record.expires_at,
        // Whoever may see the batch need not be who may sign for it.
        options: BatchOptions { webhook_secret: None, ..record.options.clone() },
        metadata: record.metadata.clone(),
        prompt_tokens: totals.prompt_tokens,
        completion_tokens: totals.completion_tokens,
        wasted_tokens: totals.wasted_tokens,
        cost_usd_micro: totals.cost_usd_micro,
        over_budget_usd_micro: totals.over_budget_usd_micro,
        rate_tok_s: 0.0,
        finish_estimate: None,
        durability: record.durability,
        replicas: record.replicas,
        reason: record.reason.clone().or(aged),
        stall: None,
        webhook: record.webhook.clone(),
        quote: record.quote.clone(),
        model: record.model.clone(),
        cached_tokens: totals.cached_tokens,
        nondeterministic: totals.nondeterministic > 0,
        outputs_expire_at: record
            .ended_at
            .zip(record.options.output_expires_after_s)
            .map(|(ended, seconds)| ended.plus(std::time::Duration::from_secs(seconds))),
    }
}

impl Core {
    pub fn batch_view(&self, now: Now, slot: BatchSlot) -> Option<BatchView> {
        self.ledger.get(slot).map(|batch| self.view_of(now, slot, batch))
    }

    /// Batches of every tenant that have not ended, single jobs apart.
    pub fn open_batches(&self) -> impl Iterator<Item = (BatchSlot, &Batch)> {
        self.ledger.active().filter(|(_, batch)| !batch.record.single && !batch.is_ended())
    }

    /// Finding out why a batch does not advance may look at all others: this is not for every turn.
    pub fn view_of(&self, now: Now, slot: BatchSlot, batch: &Batch) -> BatchView {
        batch.view(now, self.stall(slot, batch), self.lengths.mean_job_tokens)
    }

    /// Lines of the tenant's batches without an answer, and when the oldest such batch was accepted.
    pub fn open_lines(&self, tenant: &TenantId) -> (u64, Option<TimeMs>) {
        let batches = self.ledger.active().map(|(_, batch)| batch);
        let of_tenant = batches.filter(|batch| batch.record.tenant == *tenant && !batch.record.single);
        let open = of_tenant.filter(|batch| !batch.is_ended());
        open.map(|batch| (batch.jobs_total().saturating_sub(batch.answered()), batch.record.created_at))
            .filter(|(lines, _)| *lines > 0)
            .fold((0, None), |(sum, oldest), (lines, at)| {
                (sum + u64::from(lines), Some(oldest.map_or(at, |oldest: TimeMs| oldest.min(at))))
            })
    }

    /// A batch that has not ended and reads this object.
    pub fn reader_of(&self, tenant: &TenantId, object: &str) -> Option<&BatchId> {
        let mut records = self.ledger.active().map(|(_, batch)| &batch.record);
        let reads = |record: &&BatchRecord| record.tenant == *tenant && record.input_object == object;
        records.find(|record| reads(record) && !record.state.is_terminal()).map(|record| &record.id)
    }

    /// One that takes work and serves this model, for a question that any of those can answer.
    pub fn some_worker(&self, model: Option<&str>) -> Option<WorkerId> {
        // Who asks somebody else's server has no tokenizer.
        let able = |worker: &&Worker| worker.takes_work() && worker.beat.abilities.is_all();
        let mut up = self.fleet.workers.values().filter(able);
        let worker = up.find(|worker| model.is_none_or(|model| worker.serves(model)))?;
        Some(worker.beat.worker.clone())
    }

    /// The models of all workers that are known, those included that were lost a moment ago and may come back. A leader
    /// that has just begun has not heard of all of them: then the answer is open.
    pub fn models(&self, now: Now) -> Models {
        let settled = Duration::from_millis(self.limits.settle_ms);
        let mut models = Models { open: now.since(self.leads_since) < settled, ..Models::default() };
        for (name, digest) in self.fleet.models() {
            models.served.insert(name.to_owned());
            models.digests.insert(digest.to_owned());
        }
        models
    }

    /// What `viewer`, or who runs the fleet, may see of a worker: of the jobs that it runs those of batches that the
    /// viewer can name, and nobody's tags.
    pub(super) fn pod_view(&self, viewer: Option<&TenantId>, slot: WorkerSlot, worker: &Worker) -> PodView {
        let may_see = |id: &BatchId| {
            let batch = self.ledger.find(id).and_then(|slot| self.ledger.get(slot));
            batch.is_some_and(|batch| {
                batch.origin != Origin::Audit && viewer.is_none_or(|viewer| *viewer == batch.record.tenant)
            })
        };
        let mut heartbeat = worker.beat.clone();
        heartbeat.running.retain(|running| may_see(&running.job.batch));
        heartbeat.running.iter_mut().for_each(|running| running.tag = None);
        let pod = self.money.pods().get(worker.pod_name());
        let engines = pod.map_or(1, |pod| pod.workers.len().max(1)) as i64;
        let price = UsdMicro(worker.price().0 / engines);
        PodView {
            live: worker.liveness == Liveness::Live,
            rate_tok_s: worker.rate.mean_tok_s(),
            usd_micro_per_million_tokens: usd_micro_per_million_tokens(price, worker.rate.mean_tok_s()),
            tokens: worker.tokens_made,
            cost_usd_micro: pod.map_or(UsdMicro::ZERO, |pod| UsdMicro(pod.bill.billed.0 / engines)),
            busy_ratio: worker.busy_ratio(),
            queued_jobs: self.flights.held(slot).0.saturating_sub(worker.beat.slots_in_use),
            heartbeat,
        }
    }

    /// All workers that are not lost. For metrics and tests: a message holds [`Core::pod_page`].
    pub fn pod_views(&self, viewer: Option<&TenantId>) -> Vec<PodView> {
        let known = self.fleet.workers.iter().filter(|(_, worker)| worker.liveness != Liveness::Lost);
        known.map(|(slot, worker)| self.pod_view(viewer, *slot, worker)).collect()
    }

    pub fn gauges(&self) -> Gauges {
        let closed = self.money.closed();
        let mut gauges = Gauges {
            leading: self.lead.is_some(),
            batches_active: self.ledger.n_active() as u64,
            text_bytes: self.ledger.text_bytes(),
            results_read_to: self.results_read_to,
            billed: closed.attributed + closed.over + closed.idle,
            attributed: closed.attributed,
            over_budget: closed.over,
            idle: closed.idle,
            boot: closed.boot,
            drain: closed.drain,
            ..Gauges::default()
        };
        for (slot, batch) in self.ledger.active() {
            let committed = self.flights.committed(slot);
            gauges.jobs_waiting += batch.waiting() as u64;
            gauges.jobs_in_flight += u64::from(committed.jobs);
            gauges.tokens_in_flight += committed.tokens;
            let lane = if batch.record.single { Lane::Interactive } else { Lane::Batch };
            gauges.queues[lane as usize].add(batch, committed.jobs, self.lengths.mean_job_tokens);
        }
        for worker in self.fleet.workers.values() {
            let place = match worker.liveness {
                Liveness::Live => 0,
                Liveness::Quiet => 1,
                Liveness::Lost => 2,
            };
            gauges.workers[place] += 1;
            if worker.liveness != Liveness::Lost {
                gauges.slots += u64::from(worker.beat.slots);
                gauges.slots_in_use += u64::from(worker.beat.slots_in_use);
                gauges.fleet_rate_tok_s += worker.rate.mean_tok_s();
                gauges.workers_slow += u64::from(worker.rate.is_slow());
            }
        }
        for pod in self.money.pods().values() {
            let workers = pod.workers.iter().filter_map(|slot| self.fleet.get(*slot));
            let rate = workers.map(|worker| worker.rate.mean_tok_s()).sum();
            let price = usd_micro_per_million_tokens(pod.bill.price(), rate);
            let least = gauges.least_usd_micro_per_million;
            gauges.least_usd_micro_per_million = least.into_iter().chain(price).min();
            gauges.fleet_usd_micro_per_hour += pod.bill.price();
            gauges.billed += pod.bill.billed;
            gauges.attributed += pod.bill.attributed;
            gauges.over_budget += pod.bill.over;
            gauges.pending += pod.bill.pending;
            gauges.idle += pod.bill.idle;
            gauges.boot += pod.bill.boot;
            gauges.drain += pod.bill.drain;
        }
        gauges.fleet_usd_micro_per_million =
            usd_micro_per_million_tokens(gauges.fleet_usd_micro_per_hour, gauges.fleet_rate_tok_s);
        gauges.hosts_quarantined = self.fleet.hosts_shut_out() as u64;
        gauges
    }
}
