//! Quotes beside their bills: every batch that ends completed shows how well it was quoted, and corrects the next ones.

use ternfleet_proto::message::{BatchState, Promise};

use super::Core;
use super::record::BatchRecord;
use crate::average::Average;
use crate::quote::Skill;

/// Newest bills weigh this much.
const SHARE: f64 = 0.1;
/// Before any bill, forecasts are taken to be right on average, which counts as so many bills. It is few: on a given fleet
/// all forecasts are off by about the same factor, and single bills vary less than that factor does between fleets.
const PRIOR_BIAS_BILLS: f64 = 1.0;
/// Before any bill, forecasts are taken to be off by this much; that counts as so many bills.
const PRIOR_SD: f64 = 0.07;
const PRIOR_SD_BILLS: f64 = 4.0;
/// A bill further away from its quote than by this factor is no measurement: the fleet changed in between.
const FACTOR_MAX: f64 = 4.0;
/// Smaller bills are mostly rounding.
const BILL_MIN_USD_MICRO: i64 = 20;

/// One quote and what came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuoteCheck {
    /// Bill over quoted bill (p50).
    pub ratio: f64,
    /// The bill is at most the quoted p95.
    pub within_p95: bool,
}

/// What bills have taught.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Checks {
    /// Logarithms of bill over uncorrected forecast.
    factors: Average,
    untold: Vec<QuoteCheck>,
}

impl Checks {
    pub(super) fn skill(&self) -> Skill {
        let Average { count, mean, variance } = self.factors;
        let trust = |prior: f64| count / (count + prior);
        let seen = trust(PRIOR_SD_BILLS);
        let variance = seen * variance + (1.0 - seen) * PRIOR_SD * PRIOR_SD;
        Skill { bias: trust(PRIOR_BIAS_BILLS) * mean, sd: variance.sqrt().max(0.02) }
    }

    /// A completed batch. `tell` is false for one that ended before this process began.
    pub(super) fn learn(&mut self, record: &BatchRecord, tell: bool) {
        let Some(check) = check(record) else { return };
        let factor = record.quote.as_ref().map_or(1.0, |quote| quote.bill_factor);
        if tell {
            self.untold.push(check);
        }
        let uncorrected = (check.ratio * factor).ln();
        if !uncorrected.is_finite() || uncorrected.abs() > FACTOR_MAX.ln() {
            return;
        }
        self.factors.learn(uncorrected, SHARE);
    }
}

/// Compares the bill of a completed batch with its quote.
fn check(record: &BatchRecord) -> Option<QuoteCheck> {
    let quote: &Promise = record.quote.as_ref()?;
    let bill = record.totals.cost_usd_micro;
    let quoted = quote.bill_p50_usd_micro?;
    if record.state != BatchState::Completed || bill.0.min(quoted.0) < BILL_MIN_USD_MICRO {
        return None;
    }
    let within_p95 = quote.bill_p95_usd_micro.is_some_and(|most| bill <= most);
    Some(QuoteCheck { ratio: bill.0 as f64 / quoted.0 as f64, within_p95 })
}

impl Core {
    /// What has been compared since the last time that this was asked.
    pub fn take_quote_checks(&mut self) -> Vec<QuoteCheck> {
        std::mem::take(&mut self.checks.untold)
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::openai::Endpoint;
    use ternfleet_proto::{TenantId, TimeMs, UsdMicro};

    use super::*;

    fn ended(bill: i64, quoted: i64, factor: f64) -> BatchRecord {
        let id = "batch_a".parse().unwrap();
        let tenant = TenantId::default_tenant();
        let mut record = BatchRecord::single(TimeMs(0), id, tenant, Endpoint::Completions, TimeMs(1));
        record.state = BatchState::Completed;
        record.totals.cost_usd_micro = UsdMicro(bill);
        record.quote = Some(Promise {
            bill_p50_usd_micro: Some(UsdMicro(quoted)),
            bill_p95_usd_micro: Some(UsdMicro(quoted * 3 / 2)),
            bill_factor: factor,
            ..Promise::default()
        });
        record
    }

    #[test]
    fn six_bills_correct_forecasts_that_are_nearly_twice_too_high() {
        let mut checks = Checks::default();
        for _ in 0..7 {
            let factor = checks.skill().bias.exp();
            checks.learn(&ended(10_000, (18_000.0 * factor) as i64, factor), true);
        }
        assert!((0.9..=1.1).contains(&checks.untold[6].ratio), "{:?}", checks.untold);
    }

    #[test]
    fn bills_correct_the_quotes_that_follow_and_the_correction_is_not_corrected_again() {
        let mut checks = Checks::default();
        assert_eq!(checks.skill().bias, 0.0);
        for _ in 0..40 {
            // Uncorrected forecasts are a quarter too low; each quote carries what was corrected.
            let factor = checks.skill().bias.exp();
            checks.learn(&ended(12_500, (10_000.0 * factor) as i64, factor), true);
        }
        let skill = checks.skill();
        assert!((skill.bias.exp() - 1.25).abs() < 0.1 && skill.sd < PRIOR_SD, "{skill:?}");
        let told = std::mem::take(&mut checks.untold);
        assert_eq!(told.len(), 40);
        assert!((told[0].ratio - 1.25).abs() < 1e-9 && told[0].within_p95);
        assert!((told[39].ratio - 1.0).abs() < 0.1, "{:?}", told[39]);
    }

    #[test]
    fn what_was_not_completed_or_not_quoted_or_costs_nothing_teaches_nothing() {
        let mut checks = Checks::default();
        checks.learn(&BatchRecord { state: BatchState::Cancelled, ..ended(100, 100, 1.0) }, true);
        checks.learn(&BatchRecord { quote: None, ..ended(100, 100, 1.0) }, true);
        checks.learn(&ended(0, 100, 1.0), true);
        assert_eq!(checks, Checks::default());
        checks.learn(&ended(200, 100, 1.0), true);
        assert!(!checks.untold[0].within_p95);
    }
}
