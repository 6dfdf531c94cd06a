//! What may be accepted: settings that make sense, durability that is there, a tenant's quota of queued work.

use std::collections::BTreeMap;

use ternfleet_proto::message::{BatchCreate, JobCreate, Refusal, RefusalCode};
use ternfleet_proto::{MonoMs, Now, TenantId, UsdMicro};

use super::batch::{Batch, Origin};
use super::event::BatchSlot;
use super::record::BatchFacts;
use super::{Core, estimate};
use crate::options::Quotas;

/// What a tenant has that is not answered yet.
#[derive(Debug, Default)]
struct Queued {
    batches: u32,
    singles: u32,
    /// What singles in flight are estimated to cost.
    promised: UsdMicro,
    bytes: u64,
    tokens: u64,
}

/// What tenants may still spend on completions: each has an hour's money, which grows back evenly over an hour. It begins
/// full under each coordinator. No limit when that is nothing.
#[derive(Debug)]
pub(super) struct Allowances {
    an_hour: UsdMicro,
    spent: BTreeMap<TenantId, (UsdMicro, MonoMs)>,
}

impl Allowances {
    pub(super) fn new(quotas: &Quotas) -> Self {
        Self { an_hour: UsdMicro::from_dollars(quotas.completions_usd_per_hour_max), spent: BTreeMap::new() }
    }

    pub(super) fn left(&self, now: Now, tenant: &TenantId) -> UsdMicro {
        if self.an_hour <= UsdMicro::ZERO {
            return UsdMicro(i64::MAX);
        }
        let (spent, at) = self.spent.get(tenant).copied().unwrap_or_default();
        self.an_hour - (spent - self.an_hour.over(now.since(at))).max(UsdMicro::ZERO)
    }

    pub(super) fn spend(&mut self, now: Now, tenant: &TenantId, cost: UsdMicro) {
        if self.an_hour > UsdMicro::ZERO && cost > UsdMicro::ZERO {
            let left = self.left(now, tenant);
            self.spent.insert(tenant.clone(), (self.an_hour - left + cost, now.mono));
        }
    }
}

impl Core {
    /// May this batch be accepted now? Called before it is stored.
    pub fn admit(&self, create: &BatchCreate, facts: &BatchFacts) -> Result<(), Refusal> {
        let durability = facts.durability;
        let refuse = |code, message: String| Err(Refusal { code, message, retry_after_ms: None });
        if !(-10..=10).contains(&create.options.priority) {
            return refuse(RefusalCode::Invalid, "priority must be from -10 (last) to 10 (first)".to_owned());
        }
        if create.options.budget_usd_micro.is_some_and(|budget| budget.0 <= 0) {
            return refuse(RefusalCode::Invalid, "budget_usd_micro must be positive".to_owned());
        }
        if let Some(wanted) = create.options.durability
            && durability < wanted
        {
            let message = format!(
                "the batch requires durability {wanted:?}, but this fleet's streams are {durability:?}: \
                 see the replicas and sync_interval settings of NATS"
            );
            return refuse(RefusalCode::NotDurable, message);
        }
        self.admit_quota(&create.tenant, facts)
    }

    /// May this single job be accepted now? It counts towards its tenant's quota like the lines of a batch.
    pub fn admit_single(&self, now: Now, job: &JobCreate) -> Result<(), Refusal> {
        let max = self.limits.quotas.completions_max;
        let queued = self.queued(&job.tenant);
        if queued.singles >= max {
            let message = format!("{max} completions of tenant {} are waiting, the limit", job.tenant);
            return Err(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(1_000) });
        }
        let an_hour = self.allowances.an_hour;
        let left = self.allowances.left(now, &job.tenant) - queued.promised;
        if left <= UsdMicro::ZERO {
            let message = format!(
                "the completions of tenant {} have reached their limit of {an_hour} per hour",
                job.tenant
            );
            let wait_ms = 3_600_000.0 * (1 - left.0) as f64 / an_hour.0 as f64;
            return Err(Refusal {
                code: RefusalCode::Busy,
                message,
                retry_after_ms: Some(wait_ms.ceil() as u64),
            });
        }
        let bytes = u64::from(estimate::bytes(&job.generation));
        self.fits(&job.tenant, &queued, bytes, u64::from(estimate::tokens(&job.generation)))
    }

    fn admit_quota(&self, tenant: &TenantId, facts: &BatchFacts) -> Result<(), Refusal> {
        let quotas = &self.limits.quotas;
        let BatchFacts { input_bytes, stored_bytes, .. } = *facts;
        if stored_bytes > quotas.stored_bytes_max {
            let message = format!(
                "the files of tenant {tenant} take {stored_bytes} bytes, this one included; the limit is \
                 {}: delete files, or wait until old batches are deleted",
                quotas.stored_bytes_max
            );
            return Err(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(3_600_000) });
        }
        let queued = self.queued(tenant);
        if queued.batches >= quotas.batches_max {
            let what = format!("{} batches are open; the limit is {}", queued.batches, quotas.batches_max);
            return Err(self.used_up(tenant, &what, 0));
        }
        self.fits(tenant, &queued, input_bytes, estimate::tokens_of_bytes(input_bytes))
    }

    fn queued(&self, tenant: &TenantId) -> Queued {
        let mut queued = Queued::default();
        let theirs = |(_, batch): &(BatchSlot, &Batch)| batch.record.tenant == *tenant;
        for (slot, batch) in self.ledger.active().filter(theirs) {
            match batch.origin {
                Origin::File => {
                    let left = batch.bytes_left();
                    queued.batches += 1;
                    queued.bytes += left;
                    queued.tokens += estimate::tokens_of_bytes(left);
                }
                Origin::Caller => {
                    queued.singles += 1;
                    queued.promised += self.flights.committed(slot).cost;
                    queued.bytes += batch.bytes_left();
                    let tasks = batch.live.values().filter_map(|live| live.task.as_ref());
                    queued.tokens += tasks.map(|task| u64::from(task.tokens_estimate)).sum::<u64>();
                }
                // The fleet's own.
                Origin::Audit => {}
            }
        }
        queued
    }

    fn fits(&self, tenant: &TenantId, queued: &Queued, bytes: u64, tokens: u64) -> Result<(), Refusal> {
        let quotas = &self.limits.quotas;
        if queued.bytes + bytes > quotas.queued_bytes_max {
            let excess = estimate::tokens_of_bytes(queued.bytes + bytes - quotas.queued_bytes_max);
            let what = format!(
                "at most {} bytes of input may be queued, {} are queued",
                quotas.queued_bytes_max, queued.bytes
            );
            return Err(self.used_up(tenant, &what, excess));
        }
        if queued.tokens + tokens > quotas.queued_tokens_max {
            let excess = queued.tokens + tokens - quotas.queued_tokens_max;
            let what = format!(
                "at most about {} tokens may be queued, {} are queued",
                quotas.queued_tokens_max, queued.tokens
            );
            return Err(self.used_up(tenant, &what, excess));
        }
        Ok(())
    }

    fn used_up(&self, tenant: &TenantId, what: &str, excess_tokens: u64) -> Refusal {
        let rate: f64 = self.fleet.workers.values().map(|worker| worker.rate.mean_tok_s()).sum();
        let wait_s = if rate > 0.0 { (excess_tokens as f64 / rate).clamp(1.0, 600.0) } else { 60.0 };
        let message = format!("the quota of tenant {tenant} is exceeded: {what}; retry in {wait_s:.0} s");
        Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some((wait_s * 1000.0) as u64) }
    }
}
