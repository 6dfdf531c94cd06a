//! The core as the planner sees it: pods at their measured speeds, what every batch still needs, how long outputs
//! turn out. For quotes and for the scaler; nothing is decided here.

use std::collections::BTreeMap;

use ternfleet_proto::message::WorkerState;
use ternfleet_proto::{Now, UsdMicro};

use super::Core;
use super::batch::Batch;
use super::fleet::{Liveness, Worker};
use crate::plan;
use crate::quote::{Engine, Lengths, Skill};
use crate::scale::{Need, SeenWorker};

/// Decode over prefill speed where no worker has measured it.
const PROMPT_WEIGHT: f64 = 0.3;
/// Context of a fleet that nobody has seen yet.
const CONTEXT_TOKENS: u32 = 2048;
/// A batch's own lines tell its mean once so many are answered.
const LINES_SEEN: u32 = 20;

/// What is known at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Situation {
    /// By pod.
    pub workers: Vec<SeenWorker>,
    pub needs: Vec<Need>,
    /// What each rented pod has cost so far, by name.
    pub leases: Vec<(String, UsdMicro)>,
    /// The whole bills of the latest that have ended, newest first.
    pub ended_leases: Vec<(String, UsdMicro)>,
    /// What rented pods have cost since this process took them over, those that are gone included.
    pub leased_total: UsdMicro,
}

impl Core {
    /// Everything that a plan is made from.
    pub fn situation(&self, now: Now) -> Situation {
        let prompt_weight = self.prompt_weight();
        let batches = self.ledger.active().map(|(_, batch)| batch);
        let batches = batches.filter(|batch| !batch.is_ended() && batch.record.ending.is_none());
        let needs = batches.flat_map(|batch| batch.needs(prompt_weight, self.lengths.mean_job_tokens));
        Situation {
            workers: self.seen_workers(now),
            needs: needs.collect(),
            leases: self.money.lease_bills(),
            ended_leases: self.money.ended_lease_bills(),
            leased_total: self.money.leased_total(),
        }
    }

    /// Whether a worker that has not left serves this model.
    pub fn serves(&self, model: &str) -> bool {
        self.fleet.models().any(|(name, digest)| model == name || model == digest)
    }

    /// How prompts and outputs turn into work, as far as the fleet has seen. Copies the history of all outputs.
    pub fn work_lengths(&self) -> Lengths {
        let contexts = self.live_workers().map(|worker| worker.beat.context_tokens);
        Lengths {
            history: self.lengths.outputs.clone(),
            context_tokens: contexts.max().unwrap_or(CONTEXT_TOKENS),
            prompt_weight: self.prompt_weight(),
        }
    }

    /// How good quotes have been.
    pub fn quote_skill(&self) -> Skill {
        self.checks.skill()
    }

    fn live_workers(&self) -> impl Iterator<Item = &Worker> {
        self.fleet.workers.values().filter(|worker| worker.liveness == Liveness::Live)
    }

    /// [`weight`] over all live workers.
    fn prompt_weight(&self) -> f64 {
        let (decode, prefill) = self
            .live_workers()
            .map(|worker| (worker.beat.decode_tok_s, worker.beat.prefill_tok_s))
            .fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        weight(decode, prefill).unwrap_or(PROMPT_WEIGHT)
    }

    /// Pods with the speeds of their engines added up; their errors are taken to be independent.
    fn seen_workers(&self, now: Now) -> Vec<SeenWorker> {
        let mut pods: BTreeMap<&str, (SeenWorker, f64)> = BTreeMap::new();
        for (slot, worker) in &self.fleet.workers {
            let beat = &worker.beat;
            let pod = self.money.pods().get(worker.pod_name());
            let (seen, variance) = pods.entry(worker.pod_name()).or_insert_with(|| {
                let active_at = pod.map_or(worker.seen_at, |pod| pod.active_at);
                let silent = now.since(worker.seen_at);
                let seen = SeenWorker {
                    pod: worker.pod_name().to_owned(),
                    class: beat.pod_class.clone(),
                    price_usd_micro_per_hour: worker.price(),
                    silent,
                    idle: Some(now.since(active_at)),
                    ..SeenWorker::default()
                };
                (seen, 0.0)
            });
            seen.workers.push(beat.worker.clone());
            seen.engines.push(Engine::new(
                beat.slots,
                &beat.calibration,
                beat.prefill_tok_s,
                worker.rate.mean_tok_s(),
                worker.tempo.ratio(),
            ));
            for model in [&beat.model, &beat.model_digest] {
                if !seen.models.contains(model) {
                    seen.models.push(model.clone());
                }
            }
            seen.silent = seen.silent.min(now.since(worker.seen_at));
            seen.live |= is_ready(worker);
            if worker.beat.state != WorkerState::Gone {
                seen.rate_mean_tok_s += worker.rate.mean_tok_s();
                *variance += worker.rate.error_tok_s().powi(2);
            }
            if worker.liveness != Liveness::Lost && self.flights.held(*slot).0 > 0 {
                seen.idle = None;
            }
        }
        let finish = |(mut seen, variance): (SeenWorker, f64)| {
            seen.rate_sd_tok_s = variance.sqrt();
            seen
        };
        pods.into_values().map(finish).collect()
    }
}

/// Registered or about to be: its speed can be counted on.
fn is_ready(worker: &Worker) -> bool {
    worker.liveness == Liveness::Live && worker.beat.state == WorkerState::Ready
}

/// Generated tokens that take as long as one prompt token.
pub(super) fn weight(decode_tok_s: f64, prefill_tok_s: f64) -> Option<f64> {
    (decode_tok_s > 0.0 && prefill_tok_s > 0.0).then(|| (decode_tok_s / prefill_tok_s).clamp(0.0, 1.0))
}

impl Batch {
    /// What it still needs, of each model that its lines name. Until its lines are read it may be anything.
    fn needs(&self, prompt_weight: f64, mean_job_tokens: f64) -> Vec<Need> {
        let whole = self.need(prompt_weight, mean_job_tokens);
        let named: BTreeMap<&str, u64> = match &self.record.quote {
            Some(quote) if !quote.models.is_empty() => {
                quote.models.iter().map(|(model, lines)| (model.as_str(), *lines)).collect()
            }
            _ => {
                let mut waiting = BTreeMap::new();
                for queue in &self.queues {
                    if let Some(model) = queue.model.as_deref() {
                        *waiting.entry(model).or_default() += (queue.jobs.len() as u64).max(1);
                    }
                }
                waiting
            }
        };
        let of = |batch, model: &str| Need { batch, model: Some(model.to_owned()) };
        let all: u64 = named.values().sum();
        match named.len() {
            0 => vec![whole.into()],
            1 => named.keys().map(|model| of(whole.clone(), model)).collect(),
            // Shares of one batch: what each may spend goes with its lines.
            _ => named
                .iter()
                .map(|(model, lines)| {
                    let share = *lines as f64 / all.max(1) as f64;
                    let name = format!("{} ({model})", whole.name);
                    of(whole.share(name, share), model)
                })
                .collect(),
        }
    }

    /// What it still needs: by its own answered lines once there are some, by its quote before, and by the fleet's
    /// mean without either.
    fn need(&self, prompt_weight: f64, mean_job_tokens: f64) -> plan::Batch {
        let answered = self.answered();
        let quote = self.record.quote.as_ref();
        let jobs = f64::from(self.jobs_total());
        let left = f64::from(self.jobs_total().saturating_sub(answered));
        let seen = self.totals.completion_tokens as f64 + self.totals.prompt_tokens as f64 * prompt_weight;
        let (each, sd) = match quote {
            _ if answered >= LINES_SEEN => (seen / f64::from(answered), 0.1),
            Some(quote) if jobs > 0.0 => {
                (quote.work_tokens / jobs, quote.work_tokens_sd / quote.work_tokens.max(1.0))
            }
            _ => (mean_job_tokens, 0.3),
        };
        // Before its lines are counted, the quote knows best how many there are.
        let unread = quote.filter(|_| self.record.lines.is_none() && answered == 0);
        let tokens_left = unread.map_or(left * each, |quote| quote.work_tokens.max(left * each));
        plan::Batch {
            name: self.record.id.to_string(),
            tokens_left,
            tokens_sd: tokens_left * sd,
            deadline: Some(self.record.expires_at),
            budget_left: self.record.options.budget_usd_micro.map(|_| self.budget_left().max(UsdMicro::ZERO)),
            classes: plan::ClassSet::ALL,
        }
    }
}
