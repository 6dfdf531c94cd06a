//! The nucleus of `top_p` and `min_p` among all tokens: which of them a draw is between.
//!
//! Each token's probability is taken from scores that a step computes in any case: those of the int8 copy, where the head is
//! screened, with activations of [`BOUND`], which every instruction set multiplies alike; else the canonical ones. Weights
//! exp((score - best) / temperature) are whole numbers in units of 2⁻³⁰, summed in bins of 1/64 in ln p. So no order of
//! summation enters, threads add up what is theirs, and nothing is sorted. The nucleus ends with a bin: it also has the
//! tokens whose probability is within 1.6 % of that of the last one it needs.
#![allow(unsafe_code)] // Members write disjoint parts of shared buffers; each block says which.

use super::{Demand, lock};
use crate::LoadError;
use crate::constraint::Rule;
use crate::kernel::{BINS, BINS_A_UNIT, Cut};
use crate::ops::Ops;
use crate::pool::Shared;
use crate::request::Sampling;
use crate::sampler::Draw;
use std::ops::Range;
use std::sync::Mutex;

/// The largest rounded activation, for all instruction sets: what the narrowest of them can multiply by a byte.
pub(super) const BOUND: i16 = 63;

/// What members tell each other about the nuclei of a step.
#[derive(Debug)]
pub(super) struct Nuclei {
    /// One a head and member: the best score.
    best: Vec<Mutex<f32>>,
    /// (heads · members, bins)
    bins: Shared<u64>,
    /// One a head.
    cuts: Vec<Mutex<Cut>>,
}

impl Nuclei {
    pub(super) fn new(n_heads: usize, n_threads: usize) -> Result<Nuclei, LoadError> {
        let parts = n_heads * n_threads;
        Ok(Nuclei {
            best: (0..parts).map(|_| Mutex::new(f32::NEG_INFINITY)).collect(),
            bins: Shared::new(parts * BINS, "scores")?,
            cuts: (0..n_heads).map(|_| Mutex::new(Cut::NONE)).collect(),
        })
    }

    pub(super) fn cut(&self, slot: usize) -> Cut {
        *lock(&self.cuts[slot])
    }
}

/// Whether a draw is from a nucleus of all tokens.
pub(super) fn is_wanted(sampling: &Sampling) -> bool {
    sampling.top_k == 0 && (sampling.top_p < 1.0 || sampling.min_p > 0.0)
}

/// Where bins begin and how wide they are.
pub(super) fn scale(best: f32, sampling: &Sampling) -> Cut {
    Cut { best, scale: BINS_A_UNIT / sampling.temperature, last: BINS as f32 }
}

/// The last bin of the nucleus, from the weights of all tokens.
pub(super) fn last_bin(bins: &[u64], sampling: &Sampling) -> f32 {
    let enough = bins.iter().sum::<u64>() as f64 * f64::from(sampling.top_p);
    let mut sum = 0u64;
    let reached = bins.iter().position(|weight| {
        sum += weight;
        sum as f64 >= enough
    });
    // Nobody is asked for a nucleus of nothing, but weights may all be zero where scores are no numbers.
    let by_sum = reached.map_or(0.0, |bin| bin as f32);
    if sampling.min_p <= 0.0 {
        return by_sum;
    }
    by_sum
        .min((-crate::math::ln(f64::from(sampling.min_p)) * f64::from(BINS_A_UNIT)).round_ties_even() as f32)
}

/// Adds bias and penalties to scores from `first` on, and takes out what may not be drawn and what is no token.
pub(super) fn adjust(draw: &Draw<'_>, rule: Rule<'_>, vocab: usize, first: usize, scores: &mut [f32]) {
    for &(id, adjustment) in &draw.adjustments {
        if let Some(score) = (id as usize).checked_sub(first).and_then(|row| scores.get_mut(row)) {
            *score += adjustment;
        }
    }
    let n_tokens = vocab.saturating_sub(first).min(scores.len());
    scores[n_tokens..].fill(f32::NEG_INFINITY);
    if !matches!(rule, Rule::Any) {
        for (id, score) in (first as u32..).zip(&mut scores[..n_tokens]) {
            if !rule.allows(id) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Finds the nuclei of all slots that want one: each member weighs its rows. Ends with a barrier.
pub(super) fn find(ops: &Ops<'_, '_>, rows: &Range<usize>) {
    let wanted: Vec<usize> =
        (0..ops.slots.n_screened).filter(|&slot| ops.slots.order[slot].demand == Demand::Nucleus).collect();
    if wanted.is_empty() {
        return;
    }
    let (work, count, index) = (&ops.work.head, ops.member.count(), ops.member.index);
    let scores = |slot: usize| slot * work.stride() + rows.start..slot * work.stride() + rows.end;
    let draw_of = |slot: usize| {
        let head = &ops.plan.heads[ops.slots.order[slot].head];
        (head.draw.as_ref().expect("because only draws have nuclei"), head.rule())
    };
    for &slot in &wanted {
        let (draw, rule) = draw_of(slot);
        // SAFETY: these rows of the slot are this member's until the barrier.
        let scores = unsafe { work.scores.write::<f32>(scores(slot)) };
        adjust(draw, rule, work.vocab, rows.start, scores);
        *lock(&work.nuclei.best[slot * count + index]) = ops.kernels.largest(scores);
    }
    ops.member.wait();
    for &slot in &wanted {
        let best = (0..count).map(|member| *lock(&work.nuclei.best[slot * count + member]));
        let cut = scale(best.fold(f32::NEG_INFINITY, f32::max), draw_of(slot).0.sampling);
        // SAFETY: nobody writes scores any more; these bins are this member's until the barrier.
        let (scores, bins) =
            unsafe { (work.scores.read(scores(slot)), work.nuclei.part(slot * count + index)) };
        bins.fill(0);
        ops.kernels.weigh(scores, cut, bins);
        if index == 0 {
            *lock(&work.nuclei.cuts[slot]) = cut;
        }
    }
    ops.member.wait();
    for &slot in wanted.iter().skip(index).step_by(count) {
        let mut sums = [0u64; BINS];
        for part in slot * count..(slot + 1) * count {
            // SAFETY: written before the last barrier, only read since.
            let bins = unsafe { work.nuclei.bins.read(part * BINS..(part + 1) * BINS) };
            sums.iter_mut().zip(bins).for_each(|(sum, weight)| *sum += weight);
        }
        lock(&work.nuclei.cuts[slot]).last = last_bin(&sums, draw_of(slot).0.sampling);
    }
    ops.member.wait();
}

impl Nuclei {
    /// The bins of one head and member.
    ///
    /// # Safety
    /// Nobody else touches them meanwhile.
    #[allow(clippy::mut_from_ref)] // Members share the buffer, each a part.
    unsafe fn part(&self, part: usize) -> &mut [u64; BINS] {
        // SAFETY: the caller's promise.
        let bins = unsafe { self.bins.write(part * BINS..(part + 1) * BINS) };
        bins.try_into().expect("because the range has this length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p, min_p, ..Sampling::default() }
    }

    #[test]
    fn a_nucleus_ends_with_the_bin_in_which_the_sum_is_reached() {
        let mut bins = vec![0u64; BINS];
        (bins[0], bins[10], bins[70], bins[1400]) = (50, 30, 15, 5);
        for (top_p, last) in
            [(0.001, 0.0), (0.5, 0.0), (0.51, 10.0), (0.79, 10.0), (0.94, 70.0), (1.0, 1400.0)]
        {
            assert_eq!(last_bin(&bins, &sampling(top_p, 0.0)), last, "top_p {top_p}");
        }
        // e to the power of -1 is 0.368: one unit, 64 bins.
        assert_eq!(last_bin(&bins, &sampling(1.0, 0.368)), 64.0);
        assert_eq!(last_bin(&bins, &sampling(0.5, 0.368)), 0.0, "the tighter of the two counts");
        assert_eq!(last_bin(&vec![0; BINS], &sampling(0.9, 0.0)), 0.0);
    }
}
