//! Money as whole micro-dollars, and the one function that computes a price per million tokens.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Millionths of a US dollar. Signed, so that a difference is a value of the same kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UsdMicro(pub i64);

impl UsdMicro {
    pub const ZERO: UsdMicro = UsdMicro(0);

    /// From dollars as a person types them, rounded to the nearest micro-dollar.
    pub fn from_dollars(dollars: f64) -> UsdMicro {
        UsdMicro((dollars * 1e6).round() as i64)
    }

    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// What `self` an hour comes to over `span`, rounded down to a micro-dollar.
    #[must_use]
    pub fn over(self, span: Duration) -> UsdMicro {
        let micro = i128::from(self.0) * span.as_millis() as i128 / 3_600_000;
        UsdMicro(i64::try_from(micro).unwrap_or(i64::MAX))
    }
}

/// κ, the price of a million tokens: hourly price × 10⁶ / (3600 × tokens per second).
///
/// `None` when the rate is not a positive number: nothing was measured, so nothing is claimed.
pub fn usd_micro_per_million_tokens(price_per_hour: UsdMicro, rate_tok_s: f64) -> Option<UsdMicro> {
    if !rate_tok_s.is_finite() || rate_tok_s <= 0.0 {
        return None;
    }
    Some(UsdMicro((price_per_hour.0 as f64 * 1e6 / (3600.0 * rate_tok_s)).round() as i64))
}

impl Add for UsdMicro {
    type Output = UsdMicro;
    fn add(self, other: UsdMicro) -> UsdMicro {
        UsdMicro(self.0.saturating_add(other.0))
    }
}

impl Sub for UsdMicro {
    type Output = UsdMicro;
    fn sub(self, other: UsdMicro) -> UsdMicro {
        UsdMicro(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for UsdMicro {
    fn add_assign(&mut self, other: UsdMicro) {
        *self = *self + other;
    }
}

impl Sum for UsdMicro {
    fn sum<I: Iterator<Item = UsdMicro>>(parts: I) -> UsdMicro {
        parts.fold(UsdMicro::ZERO, Add::add)
    }
}

impl fmt::Display for UsdMicro {
    /// Dollars with as many digits as the size calls for: `$4.54`, `$0.0312`, `$0.000018`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dollars = self.dollars();
        match self.0.unsigned_abs() {
            0 => f.write_str("$0.00"),
            1..=9_999 => write!(f, "${dollars:.6}"),
            10_000..=999_999 => write!(f, "${dollars:.4}"),
            _ => write!(f, "${dollars:.2}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_of_a_million_tokens_equals_the_figures_of_the_report() {
        for (price, rate, shown) in [(0.34, 20.79, "$4.54"), (1.19, 30.0, "$11.02"), (2.50, 52.67, "$13.18")]
        {
            let kappa = usd_micro_per_million_tokens(UsdMicro::from_dollars(price), rate).unwrap();
            assert_eq!(kappa.to_string(), shown);
        }
    }

    #[test]
    fn an_unmeasured_rate_has_no_price() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(usd_micro_per_million_tokens(UsdMicro(340_000), rate), None);
        }
    }

    #[test]
    fn an_hour_costs_the_hourly_price() {
        assert_eq!(UsdMicro(340_000).over(Duration::from_secs(3600)), UsdMicro(340_000));
    }
}
