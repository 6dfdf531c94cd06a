//! A second account of who owes what, kept from what workers really did. It knows nothing of heartbeats, intervals or
//! the coordinator's books: each moment of an engine belongs to the jobs that shared it, by their tokens.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::{BatchId, UsdMicro};

/// Micro-dollars by batch.
#[derive(Debug, Clone, Default)]
pub struct Account {
    owed: BTreeMap<BatchId, f64>,
}

impl Account {
    /// One of a pod's engines worked for so long; `tokens` is what each batch got of it.
    pub fn worked(
        &mut self,
        price_usd_micro_per_hour: UsdMicro,
        engines: usize,
        span: Duration,
        tokens: &[(BatchId, f64)],
    ) {
        let all: f64 = tokens.iter().map(|(_, count)| count).sum();
        if all <= 0.0 {
            return;
        }
        let cost = price_usd_micro_per_hour.0 as f64 * span.as_secs_f64() / 3600.0 / engines.max(1) as f64;
        for (batch, count) in tokens {
            *self.owed.entry(batch.clone()).or_default() += cost * count / all;
        }
    }

    pub fn owed(&self, batch: &BatchId) -> f64 {
        self.owed.get(batch).copied().unwrap_or(0.0)
    }

    /// What all batches together owe for which `mine` holds.
    pub fn owed_by(&self, mine: impl Fn(&BatchId) -> bool) -> f64 {
        self.owed.iter().filter(|(batch, _)| mine(batch)).map(|(_, owed)| owed).sum()
    }

    /// How far a bill is off, as a share of what is owed.
    pub fn drift(owed: f64, billed: UsdMicro) -> f64 {
        (billed.0 as f64 - owed).abs() / owed.max(1.0)
    }
}
