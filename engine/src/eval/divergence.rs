//! How far two engines' predictions differ, from their logits at the same positions.

use super::{best, log_sum_exp};

/// The result over a number of positions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Divergence {
    /// Positions compared.
    pub n: usize,
    /// Sum over positions of Σ p·(ln p − ln q), in nats.
    pub sum_nats: f64,
    /// The largest of them.
    pub largest_nats: f64,
    /// Positions where the best token is the same.
    pub n_same_best: usize,
    /// Sum of squared differences of the logits, and their number.
    sum_squares: f64,
    n_logits: usize,
}

impl Divergence {
    /// Mean divergence of a position, in nats.
    pub fn mean_nats(&self) -> f64 {
        self.sum_nats / self.n as f64
    }

    /// Share of positions with the same best token.
    pub fn same_best(&self) -> f64 {
        self.n_same_best as f64 / self.n as f64
    }

    /// Root mean square difference of the logits.
    pub fn rms(&self) -> f64 {
        (self.sum_squares / self.n_logits as f64).sqrt()
    }

    /// Joins the results over other positions to this one.
    pub fn add(&mut self, other: &Self) {
        self.n += other.n;
        self.sum_nats += other.sum_nats;
        self.largest_nats = self.largest_nats.max(other.largest_nats);
        self.n_same_best += other.n_same_best;
        self.sum_squares += other.sum_squares;
        self.n_logits += other.n_logits;
    }
}

/// Compares logits of shape (positions, vocabulary): the first are the reference (p), the second the
/// approximation (q).
///
/// # Panics
/// If the two differ in length or hold no whole number of rows.
pub fn divergence(reference: &[f32], other: &[f32], vocab: usize) -> Divergence {
    assert_eq!(reference.len(), other.len(), "the same positions and vocabulary are compared");
    assert!(vocab > 0 && reference.len().is_multiple_of(vocab), "rows of {vocab} logits");
    let mut result = Divergence::default();
    for (p, q) in reference.chunks_exact(vocab).zip(other.chunks_exact(vocab)) {
        let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
        let nats: f64 = p
            .iter()
            .zip(q)
            .map(|(&p, &q)| {
                let (ln_p, ln_q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
                ln_p.exp() * (ln_p - ln_q)
            })
            .sum();
        // Rounding can leave a hair below zero, where the divergence is never negative.
        let nats = nats.max(0.0);
        result.n += 1;
        result.sum_nats += nats;
        result.largest_nats = result.largest_nats.max(nats);
        result.n_same_best += usize::from(best(p) == best(q));
        result.sum_squares += p.iter().zip(q).map(|(&p, &q)| f64::from(p - q).powi(2)).sum::<f64>();
        result.n_logits += vocab;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_do_not_diverge_and_a_common_shift_does_not_count() {
        let logits = [1.0, -2.0, 0.5, 3.0, 3.0, 0.0];
        let same = divergence(&logits, &logits, 3);
        assert_eq!((same.mean_nats(), same.same_best(), same.rms()), (0.0, 1.0, 0.0));
        let shifted = logits.map(|logit| logit + 5.0);
        assert!(divergence(&logits, &shifted, 3).largest_nats < 1e-12);
    }

    #[test]
    fn the_divergence_of_two_known_distributions_is_right() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
        let (p, q) = ([3f32.ln(), 0.0], [0.0, 0.0]);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let found = divergence(&p, &q, 2);
        assert!((found.mean_nats() - expected).abs() < 1e-7, "{found:?}");
        let mut twice = found;
        twice.add(&found);
        assert_eq!((twice.n, twice.mean_nats()), (2, found.mean_nats()));
    }

    #[test]
    fn logits_far_apart_stay_finite() {
        let found = divergence(&[1e4, -1e4], &[-1e4, 1e4], 2);
        assert!(found.sum_nats.is_finite() && found.sum_nats > 1e4 && found.same_best() == 0.0);
    }
}
