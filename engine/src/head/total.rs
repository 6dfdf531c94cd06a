//! Log-probabilities without all exact scores: the sum of exponentials that they are measured against.
//!
//! Exact scores of all tokens take nearly as long as the rest of the model. So the sum is *defined* by the scores of the int8
//! copy, as a nucleus is, with activations of [`BOUND`](super::nucleus::BOUND): their error is about 2 % of the deviation of the scores,
//! and errors of many tokens cancel. Tokens that are likely by themselves are summed by their exact scores: see [`NEAR`]. What is
//! reported is the exact score of a token minus the logarithm of this sum, and the best tokens are those of the exact scores.
//!
//! A piece is [`PIECE_ROWS`] rows. Each is summed by itself and relative to its own best score, and the pieces are added in order;
//! members have whole pieces. So no order of summation depends on the threads. Bias, penalties and rules do not enter.
#![allow(unsafe_code)] // Members write disjoint parts of shared buffers; each block says which.

use super::candidates::{self, Part};
use super::screen::PIECE_ROWS;
use super::{HeadWork, lock, part};
use crate::LoadError;
use crate::constraint::Rule;
use crate::kernel::{Bounds, Cut};
use crate::math;
use crate::model::FloatRows;
use crate::ops::Ops;
use crate::pool::Shared;
use crate::request::TokenLogprob;
use crate::sampler::{self, Candidate};
use std::ops::Range;
use std::sync::Mutex;

/// How far below the best approximate score tokens are summed by their exact scores: the first distance within which a piece
/// has at most [`MOST_NEAR`] of them. Where even the last one has more, each has a small probability.
const NEAR: [f32; 3] = [4.0, 2.0, 1.0];
pub(crate) const MOST_NEAR: usize = 64;

/// What members tell each other about the sums of a step.
#[derive(Debug)]
pub(super) struct Totals {
    n_pieces: usize,
    /// (heads, pieces, 2): the largest approximate score, and the sum of exponentials relative to it.
    pieces: Shared<f32>,
    /// One a head and member.
    found: Vec<Mutex<Found>>,
}

/// What a member found in its rows for one head.
#[derive(Debug, Default)]
struct Found {
    /// Exact scores of the rows with the best lower bounds.
    lower: Vec<f64>,
    /// Exact scores of tokens that may be among the best.
    best: Vec<Candidate>,
    /// Tokens that are summed by their exact scores, by ascending id.
    near: Vec<Near>,
}

/// One of them, by both scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Near {
    pub(crate) about: f32,
    pub(crate) exact: f32,
}

impl Totals {
    pub(super) fn new(n_heads: usize, n_threads: usize, vocab: usize) -> Result<Totals, LoadError> {
        let n_pieces = vocab.div_ceil(PIECE_ROWS);
        Ok(Totals {
            n_pieces,
            pieces: Shared::new(n_heads * n_pieces * 2, "scores")?,
            found: (0..n_heads * n_threads).map(|_| Mutex::new(Found::default())).collect(),
        })
    }

    fn pieces_of(&self, slot: usize) -> Range<usize> {
        slot * self.n_pieces * 2..(slot + 1) * self.n_pieces * 2
    }

    /// Each piece's largest score and sum of one slot.
    fn sums(&self, slot: usize) -> &[[f32; 2]] {
        // SAFETY: written before the last barrier, only read since.
        unsafe { self.pieces.read(self.pieces_of(slot)) }.as_chunks::<2>().0
    }

    fn best(&self, slot: usize) -> f32 {
        self.sums(slot).iter().fold(f32::NEG_INFINITY, |best, &[largest, _]| best.max(largest))
    }
}

/// Sums the exponentials of all slots that want log-probabilities, and finds their best tokens: each member in its rows.
/// Before anything is added to the scores; with a barrier where there is such a slot.
pub(super) fn find(ops: &mut Ops<'_, '_>, rows: &Range<usize>) {
    let wanted: Vec<(usize, usize)> =
        (0..ops.slots.n_screened).filter_map(|slot| Some((slot, ops.slots.order[slot].top?))).collect();
    if wanted.is_empty() {
        return;
    }
    let mut hits = std::mem::take(&mut ops.private.head.hits);
    let mut scratch = std::mem::take(&mut ops.private.head.row);
    let (work, count, index) = (&ops.work.head, ops.member.count(), ops.member.index);
    let head = ops.model().head();
    for &(slot, n_top) in &wanted {
        sum_pieces(ops, slot, rows);
        let mut found = lock(&work.totals.found[slot * count + index]);
        found.lower.clear();
        let Some(part) = plain_part(ops, slot, rows).filter(|_| n_top > 0) else { continue };
        let ids = part.best_lower(n_top.min(2 * n_top.div_ceil(count) + 4), &mut hits);
        let exact = ids.iter().map(|&id| exact_score(ops, work, &head, slot, id, &mut scratch));
        found.lower.extend(exact.map(|candidate| f64::from(candidate.score)));
    }
    ops.member.wait();
    for &(slot, n_top) in &wanted {
        let all: Vec<f64> = (0..count)
            .flat_map(|member| lock(&work.totals.found[slot * count + member]).lower.clone())
            .collect();
        let Some(part) = plain_part(ops, slot, rows) else { continue };
        hits.clear();
        if n_top > 0 {
            part.reaching(candidates::threshold(all.into_iter(), n_top), &mut hits);
        }
        let best = super::scored(ops, slot, &hits, &mut scratch);
        let near = near_tokens(&part, work.totals.best(slot), &mut hits);
        let near = near
            .into_iter()
            .map(|id| Near {
                about: part.scores[id as usize - part.first_row],
                exact: match best.binary_search_by_key(&id, |candidate| candidate.id) {
                    Ok(at) => best[at].score,
                    Err(_) => exact_score(ops, work, &head, slot, id, &mut scratch).score,
                },
            })
            .collect();
        let mut found = lock(&work.totals.found[slot * count + index]);
        (found.best, found.near) = (best, near);
    }
    ops.private.head.hits = hits;
    ops.private.head.row = scratch;
}

/// A slot's part for this member as if there were neither bias nor rules.
fn plain_part<'a>(ops: &'a Ops<'_, '_>, slot: usize, rows: &Range<usize>) -> Option<Part<'a>> {
    part(ops, slot, rows).map(|(part, _)| Part { rule: Rule::Any, adjusted: &[], cut: Cut::NONE, ..part })
}

fn exact_score(
    ops: &Ops<'_, '_>,
    work: &HeadWork,
    head: &FloatRows<'_>,
    slot: usize,
    id: u32,
    scratch: &mut [f32],
) -> Candidate {
    // SAFETY: inputs were written before the last barrier.
    let x = unsafe { work.input.read(slot * work.hidden..(slot + 1) * work.hidden) };
    Candidate { id, score: super::exact_score(ops.kernels, head, id as usize, x, scratch) }
}

/// The sums of this member's pieces of one slot. Rows that are no tokens get the lowest score.
fn sum_pieces(ops: &Ops<'_, '_>, slot: usize, rows: &Range<usize>) {
    let (work, kernels) = (&ops.work.head, ops.kernels);
    let range = slot * work.stride() + rows.start..slot * work.stride() + rows.end;
    // SAFETY: these rows of the slot are this member's until the barrier.
    let scores = unsafe { work.scores.write::<f32>(range) };
    let n_tokens = work.vocab.saturating_sub(rows.start).min(scores.len());
    scores[n_tokens..].fill(f32::NEG_INFINITY);
    for (i, piece) in scores.chunks(PIECE_ROWS).enumerate() {
        let largest = kernels.largest(piece);
        let start = work.totals.pieces_of(slot).start + (rows.start / PIECE_ROWS + i) * 2;
        // SAFETY: members have whole pieces.
        let place = unsafe { work.totals.pieces.write(start..start + 2) };
        place.copy_from_slice(&[largest, kernels.exp_sum(piece, largest) as f32]);
    }
}

/// Tokens that are summed by their exact scores, if this is the best approximate one.
fn near_tokens(part: &Part<'_>, best: f32, hits: &mut Vec<u32>) -> Vec<u32> {
    let mut near = Vec::new();
    for (i, scores) in part.scores.chunks(PIECE_ROWS).enumerate() {
        // No error reaches a score that is taken as it is, whatever its norms are.
        let bounds = Bounds { scores, residuals: scores, quants: scores, weights: scores, factors: [0.0; 4] };
        let fits = NEAR.into_iter().any(|distance| {
            hits.clear();
            part.kernels.reach(&bounds, 1.0, best - distance, hits);
            hits.len() <= MOST_NEAR
        });
        if fits {
            near.extend(hits.iter().map(|hit| (part.first_row + i * PIECE_ROWS) as u32 + hit));
        }
    }
    near
}

/// The log-probabilities of a slot: of a token with this exact score, and of the `n_top` best. `None` where scores are no
/// numbers.
pub(super) fn logprobs(ops: &Ops<'_, '_>, slot: usize, score: f32, n_top: usize) -> Option<TokenLogprob> {
    let (totals, count) = (&ops.work.head.totals, ops.member.count());
    let (mut near, mut top): (Vec<Near>, Vec<Candidate>) = (Vec::new(), Vec::new());
    for found in &totals.found[slot * count..(slot + 1) * count] {
        let found = lock(found);
        near.extend_from_slice(&found.near);
        top.extend_from_slice(&found.best);
    }
    told(totals.sums(slot), &near, score, top, n_top)
}

/// The same from each piece's largest score and sum, the tokens that are summed by their exact scores, by ascending id, and
/// tokens among which the `n_top` best are.
pub(super) fn told(
    sums: &[[f32; 2]],
    near: &[Near],
    score: f32,
    mut top: Vec<Candidate>,
    n_top: usize,
) -> Option<TokenLogprob> {
    let best = sums.iter().fold(f32::NEG_INFINITY, |best, &[largest, _]| best.max(largest));
    let weight = |score: f32| math::exp(f64::from(score) - f64::from(best));
    let pieces = sums.iter().fold(0.0, |total, &[largest, sum]| total + f64::from(sum) * weight(largest));
    let total = near.iter().fold(pieces, |total, near| total + (weight(near.exact) - weight(near.about)));
    let log_sum = f64::from(best) + math::ln(total);
    if !log_sum.is_finite() || !score.is_finite() || top.iter().any(|candidate| !candidate.score.is_finite())
    {
        return None;
    }
    sampler::keep_ranked(&mut top, n_top);
    // The sum holds a likely token as it is; roundings alone could lift it above one.
    let logprob = |score: f32| (f64::from(score) - log_sum).min(0.0) as f32;
    Some(TokenLogprob {
        logprob: logprob(score),
        top: top.into_iter().map(|candidate| (candidate.id, logprob(candidate.score))).collect(),
    })
}
