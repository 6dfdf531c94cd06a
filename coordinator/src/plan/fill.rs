//! Filling: serves the batches by deadline, each from the pods in a given order, up to its deadline.
//!
//! With pods in order of κ and boots for nothing this is the exact solution of the relaxed problem: the covers are
//! nested (what is done by an early deadline is done by a late one), and the cheapest element of the innermost set
//! first is then optimal.

use super::market::Market;

/// What one filling is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    /// Pods that may be used, in order of preference.
    pub(super) order: &'a [usize],
    /// Tokens to bring for each need.
    pub(super) tokens: &'a [f64],
    /// Every deadline is this much earlier, but never by more than [`RESERVE_RATIO_MAX`] of the time left.
    pub(super) reserve_s: f64,
    pub(super) price_per_s_max: f64,
    pub(super) pods_max: usize,
    pub(super) boots: Boots,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boots {
    /// Of the last, partly used pod, take the one that is cheapest with its boot.
    Weighed,
    /// Follow the order to the letter.
    Ignored,
}

pub(super) const RESERVE_RATIO_MAX: f64 = 0.08;

#[derive(Debug, Clone, Default)]
pub(super) struct Fill {
    /// When each pod is done, in seconds from now; its `ready_s` when unused.
    pub(super) end_s: Vec<f64>,
    pub(super) used: Vec<bool>,
    pub(super) tokens: Vec<f64>,
    /// For each need.
    pub(super) short_tokens: Vec<f64>,
    pub(super) finish_s: Vec<f64>,
    pub(super) cost: Vec<f64>,
    /// A fleet limit kept a pod out.
    pub(super) limited: bool,
}

impl Fill {
    pub(super) fn total_cost(&self) -> f64 {
        self.cost.iter().sum()
    }

    pub(super) fn short(&self) -> f64 {
        self.short_tokens.iter().sum()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.used.len()).filter(|&seat| self.used[seat])
    }
}

pub(super) fn fill(market: &Market, ask: &Ask<'_>) -> Fill {
    let seats = &market.seats;
    let mut filled = Fill {
        end_s: seats.iter().map(|seat| seat.ready_s).collect(),
        used: vec![false; seats.len()],
        tokens: vec![0.0; seats.len()],
        short_tokens: vec![0.0; market.needs.len()],
        finish_s: vec![0.0; market.needs.len()],
        cost: vec![0.0; market.needs.len()],
        limited: false,
    };
    let mut gate = Gate { price_per_s: ask.price_per_s_max, pods: ask.pods_max };
    for need in 0..market.needs.len() {
        let due_s = early(market.needs[need].due_s, ask.reserve_s);
        let classes = market.needs[need].classes;
        let mut left = ask.tokens[need];
        for (place, &next) in ask.order.iter().enumerate() {
            if left <= 0.0 {
                break;
            }
            let open = |seat: usize, filled: &Fill| {
                seats[seat].class_bit & classes != 0 && due_s - filled.end_s[seat] > 0.0
            };
            if !open(next, &filled) {
                continue;
            }
            let mut seat = next;
            if !filled.used[seat] {
                let holds = |seat: usize, filled: &Fill| {
                    seats[seat].rate_tok_s * (due_s - filled.end_s[seat]) >= left
                };
                if ask.boots == Boots::Weighed && holds(seat, &filled) {
                    seat = cheapest_last(market, &ask.order[place..], left, &gate, |seat| {
                        open(seat, &filled) && holds(seat, &filled) && !filled.used[seat]
                    })
                    .unwrap_or(seat);
                }
                if !gate.admits(seats[seat].price_per_s) {
                    filled.limited = true;
                    continue;
                }
                gate.enter(seats[seat].price_per_s);
                filled.used[seat] = true;
                filled.cost[need] += seats[seat].fixed;
            }
            let span_s = (due_s - filled.end_s[seat]).min(left / seats[seat].rate_tok_s);
            let tokens = span_s * seats[seat].rate_tok_s;
            filled.end_s[seat] += span_s;
            filled.tokens[seat] += tokens;
            filled.cost[need] += span_s * seats[seat].price_per_s;
            filled.finish_s[need] = filled.finish_s[need].max(filled.end_s[seat]);
            left -= tokens;
        }
        // A millionth of a token is rounding, not work.
        filled.short_tokens[need] = if left > 1e-6 * ask.tokens[need].max(1.0) { left } else { 0.0 };
    }
    filled
}

/// The deadline less the reserve.
pub(super) fn early(due_s: f64, reserve_s: f64) -> f64 {
    if due_s.is_finite() { due_s - reserve_s.min(RESERVE_RATIO_MAX * due_s) } else { due_s }
}

/// Of the pods not yet used that could do all the rest, the one that does it for the least, boot included.
fn cheapest_last(
    market: &Market,
    order: &[usize],
    left: f64,
    gate: &Gate,
    able: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for &seat in order {
        if !able(seat) || !gate.admits(market.seats[seat].price_per_s) {
            continue;
        }
        let price = market.seats[seat].fixed + market.seats[seat].kappa() * left;
        // A hair's breadth of rounding decides nothing.
        if best.is_none_or(|(least, _)| price < least * (1.0 - 1e-9)) {
            best = Some((price, seat));
        }
    }
    best.map(|(_, seat)| seat)
}

/// What the fleet's limits still admit.
struct Gate {
    price_per_s: f64,
    pods: usize,
}

impl Gate {
    fn admits(&self, price_per_s: f64) -> bool {
        self.pods > 0 && price_per_s <= self.price_per_s
    }

    fn enter(&mut self, price_per_s: f64) {
        self.price_per_s -= price_per_s;
        self.pods -= 1;
    }
}
