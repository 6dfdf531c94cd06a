//! From integer sums of the output head to bounds, noise and weights of scores, once for all instruction sets.
//!
//! Stamped like `floats.rs`; the safe functions are in `screening.rs`. Vectors decide here which tokens may matter; what is
//! drawn from them is computed elsewhere, one by one, so a test that lets too many pass changes no result.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `screening.rs` checks the lengths.

use super::lanes::{Lanes, exp};
use crate::philox::{ROUNDS, round, schedule};

/// Ids whose noise is made at a time.
const NOISY: usize = 256;
/// Bins of a unit of ln p: tokens of one bin are equal to a nucleus.
pub(crate) const BINS_A_UNIT: f32 = 64.0;
/// Bins of weights: the last one's tokens weigh less than half a unit of [`WEIGHT_ONE`].
pub(crate) const BINS: usize = 1536;
/// The weight of the best token, in the whole numbers that are summed.
const WEIGHT_ONE: f32 = (1u32 << 30) as f32;
/// Numbers whose exponentials are summed in lanes; such sums are added in order.
pub(crate) const SUMMED: usize = 1024;

/// out = sum · (scale · step): integer sums of one token to scores.
///
/// # Safety
/// CPU features of `L`; all slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn scale_sums<L: Lanes>(sums: &[i32], scales: &[f32], step: f32, out: &mut [f32]) {
    let step = L::splat(step);
    for i in (0..out.len()).step_by(16) {
        let scale = L::load(scales.as_ptr().add(i)).mul(step);
        L::load_i32_minus(sums.as_ptr().add(i), 0).mul(scale).store(out.as_mut_ptr().add(i));
    }
}

/// Approximate scores, and how far the exact ones may lie from them: see `head/screen.rs` for the inequality.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) scores: &'a [f32],
    /// Per row: norms of the residual, of the quantised row, of the row itself.
    pub(crate) residuals: &'a [f32],
    pub(crate) quants: &'a [f32],
    pub(crate) weights: &'a [f32],
    /// What each of them is multiplied by, and the share of the score itself.
    pub(crate) factors: [f32; 4],
}

impl Bounds<'_> {
    /// How far the exact score of one row may lie from its approximation, in the order of `reach`.
    pub(crate) fn error(&self, row: usize) -> f32 {
        let [residual, quant, weight, score] = self.factors;
        let mut error = self.scores[row].abs() * score;
        error = self.residuals[row].mul_add(residual, error);
        error = self.quants[row].mul_add(quant, error);
        self.weights[row].mul_add(weight, error)
    }
}

/// Appends the indices whose score plus `sign` times its error is at least `threshold`.
///
/// # Safety
/// CPU features of `L`; all slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn reach<L: Lanes>(bounds: &Bounds<'_>, sign: f32, threshold: f32, hits: &mut Vec<u32>) {
    let [residual, quant, weight, score] = bounds.factors.map(|factor| L::splat(factor));
    let (sign, threshold) = (L::splat(sign), L::splat(threshold));
    for i in (0..bounds.scores.len()).step_by(16) {
        let value = L::load(bounds.scores.as_ptr().add(i));
        let mut error = value.abs().mul(score);
        error = L::load(bounds.residuals.as_ptr().add(i)).fma(residual, error);
        error = L::load(bounds.quants.as_ptr().add(i)).fma(quant, error);
        error = L::load(bounds.weights.as_ptr().add(i)).fma(weight, error);
        let mut mask = error.fma(sign, value).at_least(threshold);
        while mask != 0 {
            hits.push(i as u32 + mask.trailing_zeros());
            mask &= mask - 1;
        }
    }
}

/// Three lines of packed six-bit weights to four lines of int8, which are multiples of 4. The upper six bits of the three
/// are those of the first three lines; the lower two bits of each are a third of the fourth line's.
#[inline(always)]
pub(super) fn unpack_six(from: &[u8], to: &mut [u8]) {
    const L: usize = super::LINE;
    for (packed, lines) in from.as_chunks::<{ 3 * L }>().0.iter().zip(to.as_chunks_mut::<{ 4 * L }>().0) {
        for i in 0..L {
            let (a, b, c) = (packed[i], packed[L + i], packed[2 * L + i]);
            lines[i] = a & 0xfc;
            lines[L + i] = b & 0xfc;
            lines[2 * L + i] = c & 0xfc;
            lines[3 * L + i] = a << 6 | (b & 3) << 4 | (c & 3) << 2;
        }
    }
}

/// Tokens at a place or better: `(best - score) · scale`, rounded, is at most `last`. All tokens where `scale` is 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) best: f32,
    /// Bins a unit of score.
    pub(crate) scale: f32,
    pub(crate) last: f32,
}

impl Cut {
    /// Cuts nothing off; scores that are no numbers are off in any case.
    pub(crate) const NONE: Cut = Cut { best: 0.0, scale: 0.0, last: 0.0 };

    /// Whether a score is not cut off.
    pub(crate) fn holds(self, score: f32) -> bool {
        ((self.best - score) * self.scale).round_ties_even() <= self.last
    }
}

/// What a token's noise depends on besides its id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) seed: u64,
    pub(crate) choice: u32,
    pub(crate) position: u32,
}

/// Which tokens may win with noise: their score's upper bound over the temperature plus their noise reaches a threshold.
pub(crate) struct NoisyJob<'a> {
    pub(crate) bounds: Bounds<'a>,
    /// Of the first score; a multiple of 4.
    pub(crate) first_id: u32,
    pub(crate) noise: Noise,
    pub(crate) temperature: f32,
    /// Times the temperature, rounded down.
    pub(crate) threshold: f32,
    pub(crate) cut: Cut,
}

/// Appends the indices of tokens that may win, and few others.
///
/// With u the token's uniform number, its noise -ln(-ln u) reaches n only if 1 - u <= 1 - exp(-exp(-n)) <= exp(-n). So one
/// exponential of the score decides what 1 - u must not exceed, and no logarithm is needed. A little slack covers roundings.
/// Where not even the least 1 - u suffices for any of the block, its random words are not made.
///
/// # Safety
/// CPU features of `L`; the slices of the bounds of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn noisy<L: Lanes>(job: &NoisyJob<'_>, hits: &mut Vec<u32>) {
    const SLACK: f32 = 1.001;
    const LEAST: f32 = 1.0 / (1u64 << 33) as f32;
    let Bounds { scores, residuals, quants, weights, factors } = &job.bounds;
    let [residual, quant, weight, score] = factors.map(|factor| L::splat(factor));
    let (best, scale, last) = (L::splat(job.cut.best), L::splat(job.cut.scale), L::splat(job.cut.last + 0.5));
    let (threshold, temperature) = (L::splat(job.threshold), L::splat(1.0 / job.temperature));
    let mut most = [0f32; NOISY];
    let mut words = [0i32; NOISY];
    for start in (0..scores.len()).step_by(NOISY) {
        let n = NOISY.min(scores.len() - start);
        let mut largest = L::splat(0.0);
        for i in (0..n).step_by(16) {
            let at = start + i;
            let value = L::load(scores.as_ptr().add(at));
            let mut error = value.abs().mul(score);
            error = L::load(residuals.as_ptr().add(at)).fma(residual, error);
            error = L::load(quants.as_ptr().add(at)).fma(quant, error);
            error = L::load(weights.as_ptr().add(at)).fma(weight, error);
            let reach = exp(value.add(error).sub(threshold).mul(temperature)).mul(L::splat(SLACK));
            let bin = best.sub(value).mul(scale).round();
            let reach = L::select_below(bin, last, reach, L::splat(-1.0));
            reach.store(most.as_mut_ptr().add(i));
            largest = reach.max(largest);
        }
        if largest.largest() < LEAST {
            continue;
        }
        complements(job.noise, (job.first_id + start as u32) / 4, &mut words);
        for i in (0..n).step_by(16) {
            let complement =
                L::load_i32_minus(words.as_ptr().add(i), 0).mul(L::splat(1.0 / (1u32 << 31) as f32));
            let mut mask = L::load(most.as_ptr().add(i)).at_least(complement);
            while mask != 0 {
                hits.push((start + i) as u32 + mask.trailing_zeros());
                mask &= mask - 1;
            }
        }
    }
}

/// 1 - u of 256 tokens in 31 bits, rounded down: the random words of groups of four ids from `first` on, negated.
#[inline(always)]
fn complements(noise: Noise, first: u32, words: &mut [i32; NOISY]) {
    let keys = schedule(noise.seed);
    // One loop over groups and none within it: so compilers make vectors of groups.
    for (group, words) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut c = [noise.choice, noise.position, first.wrapping_add(group as u32), 0];
        for i in 0..ROUNDS {
            c = round(c, keys[i]);
        }
        for (word, c) in words.iter_mut().zip(c) {
            *word = (!c >> 1) as i32;
        }
    }
}

/// Adds each token's weight exp((score - best) / temperature), in whole numbers, to the bin of its score: exact in any order.
///
/// # Safety
/// CPU features of `L`; a length that is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes>(scores: &[f32], cut: Cut, bins: &mut [u64; BINS]) {
    let (best, scale) = (L::splat(cut.best), L::splat(cut.scale));
    let mut places = [0i32; 16];
    let mut weights = [0i32; 16];
    for i in (0..scores.len()).step_by(16) {
        let distance = best.sub(L::load(scores.as_ptr().add(i))).mul(scale);
        let weight = exp(distance.mul(L::splat(-1.0 / BINS_A_UNIT))).mul(L::splat(WEIGHT_ONE)).round();
        let mut mask = weight.at_least(L::splat(1.0));
        if mask == 0 {
            continue;
        }
        weight.store_i32(weights.as_mut_ptr());
        distance.round().min(L::splat((BINS - 1) as f32)).store_i32(places.as_mut_ptr());
        while mask != 0 {
            let lane = mask.trailing_zeros() as usize;
            // A weight of at least one is within the bins; the remainder spares the check.
            let bin = &mut bins[places[lane] as usize % BINS];
            *bin = bin.wrapping_add(weights[lane] as u64);
            mask &= mask - 1;
        }
    }
}

/// The largest of some numbers; negative infinity for none.
///
/// # Safety
/// CPU features of `L`; a length that is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn largest<L: Lanes>(x: &[f32]) -> f32 {
    let mut largest = L::splat(f32::NEG_INFINITY);
    for i in (0..x.len()).step_by(16) {
        largest = L::load(x.as_ptr().add(i)).max(largest);
    }
    largest.largest()
}

/// Sum of exp(x - highest), [`SUMMED`] numbers in lanes and these sums in order.
///
/// # Safety
/// CPU features of `L`; a length that is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn exp_sum<L: Lanes>(x: &[f32], highest: f32) -> f64 {
    let mut sum = 0.0;
    for piece in x.chunks(SUMMED) {
        let mut lanes = L::splat(0.0);
        for i in (0..piece.len()).step_by(16) {
            lanes = lanes.add(exp(L::load(piece.as_ptr().add(i)).sub(L::splat(highest))));
        }
        sum += f64::from(lanes.sum());
    }
    sum
}
