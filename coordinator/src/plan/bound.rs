//! The lower bound: the relaxed problem's value (no margins, no limits, boots for nothing), and one boot for each
//! pod that it uses. What a plan or a run costs is compared with this.

use ternfleet_proto::UsdMicro;

use super::fill::{Ask, Boots, fill};
use super::market::Market;
use super::{Plan, Problem};

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bound {
    /// Value of the relaxed problem alone: no plan whatever is cheaper.
    pub relaxed_usd_micro: UsdMicro,
    /// With one boot (and drain) for each pod that the relaxed solution uses.
    pub with_boots_usd_micro: UsdMicro,
    /// False when even the relaxed problem cannot place all tokens; the bound is then that of what it can.
    pub feasible: bool,
}

/// The bound of a problem. Money is rounded down, so that it stays a bound.
pub fn lower_bound(problem: &Problem) -> Bound {
    of_market(&Market::new(problem))
}

pub(super) fn of_market(market: &Market) -> Bound {
    let tokens: Vec<f64> = market.needs.iter().map(|need| need.tokens).collect();
    let relaxed = fill(
        market,
        &Ask {
            order: &market.by_kappa,
            tokens: &tokens,
            reserve_s: 0.0,
            price_per_s_max: f64::INFINITY,
            pods_max: usize::MAX,
            boots: Boots::Ignored,
        },
    );
    let with_boots = relaxed.total_cost();
    let boots: f64 = relaxed.pods().map(|seat| market.seats[seat].fixed).sum();
    Bound {
        relaxed_usd_micro: market.usd_down(with_boots - boots),
        with_boots_usd_micro: market.usd_down(with_boots),
        feasible: relaxed.short() == 0.0,
    }
}

impl Plan {
    pub(super) fn set_bound(&mut self, market: &Market) {
        self.bound_usd_micro = of_market(market).with_boots_usd_micro;
    }
}
