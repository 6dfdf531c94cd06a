//! Attention of a few queries over one page of 128 positions, once for all instruction sets.
//!
//! Keys are stored transposed, (4, head_dim, 32): a lane is a position, no dot product sums across lanes, and what is read
//! of a page that is not full yet is one piece. Values are (128, head_dim), so that a lane is a dimension. Each page yields its own maximum, sum and weighted values, and
//! pages are folded in order: the result depends on the positions alone, not on who computed which page.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `kernel.rs` checks the lengths.

use super::lanes::{Lanes, exp};
use super::{KEY_BLOCK, MAX_HEAD_DIM, PAGE};

/// Keys or values ahead of those being read that are asked for: 4 KiB.
const AHEAD: usize = 2048;

/// One query and what it has gathered so far.
pub(crate) struct Query<'a> {
    /// (head_dim)
    pub(crate) q: &'a [f32],
    /// Positions of this page that it may see; 0 leaves the state alone.
    pub(crate) visible: usize,
    pub(crate) state: &'a mut State,
}

/// Softmax over the pages so far: maximum, sum of exponentials, weighted values.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct State {
    pub(crate) values: [f32; MAX_HEAD_DIM],
    pub(crate) maximum: f32,
    pub(crate) sum: f32,
}

impl State {
    pub(crate) const EMPTY: State =
        State { values: [0.0; MAX_HEAD_DIM], maximum: f32::NEG_INFINITY, sum: 0.0 };
}

/// Scores, softmax and weighted values of `queries` over one page, folded into their states.
///
/// # Safety
/// CPU features of `L`; `keys` and `values` hold one page of one head; `visible` at most 128; `head_dim` a multiple of
/// 16 and at most 256; queries of that length.
#[inline(always)]
pub(super) unsafe fn attend<L: Lanes, const WIDE: usize>(
    queries: &mut [Query<'_>],
    keys: *const u16,
    values: *const u16,
    head_dim: usize,
    scale: f32,
) {
    let mut rest = queries;
    if WIDE == 8 {
        while rest.len() >= 8 {
            let (now, later) = rest.split_at_mut(8);
            page::<L, 8>(now, keys, values, head_dim, scale);
            rest = later;
        }
    }
    while rest.len() >= 4 {
        let (now, later) = rest.split_at_mut(4);
        page::<L, 4>(now, keys, values, head_dim, scale);
        rest = later;
    }
    for query in rest {
        page::<L, 1>(std::slice::from_mut(query), keys, values, head_dim, scale);
    }
}

#[inline(always)]
unsafe fn page<L: Lanes, const Q: usize>(
    queries: &mut [Query<'_>],
    keys: *const u16,
    values: *const u16,
    head_dim: usize,
    scale: f32,
) {
    let seen = queries.iter().map(|query| query.visible).max().unwrap_or(0);
    if seen == 0 {
        return;
    }
    let mut weights = [[0f32; PAGE]; Q];
    // Whole blocks are computed; what lies beyond the visible positions is cut off below.
    let blocks = seen.div_ceil(KEY_BLOCK);
    for block in 0..blocks {
        let mut sums = [[L::splat(0.0); 2]; Q];
        let rows = keys.add(block * KEY_BLOCK * head_dim);
        for d in 0..head_dim {
            let from = rows.add(d * KEY_BLOCK);
            L::prefetch(from.wrapping_add(AHEAD));
            let (near, far) = (L::load_f16(from), L::load_f16(from.add(16)));
            for (query, sum) in queries.iter().zip(&mut sums) {
                let q = L::splat(*query.q.get_unchecked(d));
                sum[0] = q.fma(near, sum[0]);
                sum[1] = q.fma(far, sum[1]);
            }
        }
        for (sum, weight) in sums.iter().zip(&mut weights) {
            sum[0].mul(L::splat(scale)).store(weight.as_mut_ptr().add(block * KEY_BLOCK));
            sum[1].mul(L::splat(scale)).store(weight.as_mut_ptr().add(block * KEY_BLOCK + 16));
        }
    }
    let blocks = blocks * (KEY_BLOCK / 16);
    let mut maxima = [0f32; Q];
    let mut totals = [0f32; Q];
    for (index, query) in queries.iter().enumerate() {
        let row = &mut weights[index];
        row[query.visible..blocks * 16].fill(f32::NEG_INFINITY);
        let mut maximum = L::splat(f32::NEG_INFINITY);
        for block in 0..blocks {
            maximum = L::load(row.as_ptr().add(block * 16)).max(maximum);
        }
        maxima[index] = maximum.largest();
        let shift = L::splat(if query.visible == 0 { 0.0 } else { maxima[index] });
        let mut total = L::splat(0.0);
        for block in 0..blocks {
            let place = row.as_mut_ptr().add(block * 16);
            let weight = exp(L::load(place).sub(shift));
            weight.store(place);
            total = total.add(weight);
        }
        totals[index] = total.sum();
    }
    let mut gathered = [[0f32; MAX_HEAD_DIM]; Q];
    let mut d = 0;
    while d + 32 <= head_dim {
        let mut sums = [[L::splat(0.0); 2]; Q];
        for position in 0..seen {
            let from = values.add(position * head_dim + d);
            if d == 0 {
                // The first pass brings whole rows, in the order in which they lie; the others find them in the cache.
                for line in (0..head_dim).step_by(KEY_BLOCK) {
                    L::prefetch(from.wrapping_add(AHEAD + line));
                }
            }
            let (near, far) = (L::load_f16(from), L::load_f16(from.add(16)));
            for (weight, sum) in weights.iter().zip(&mut sums) {
                let p = L::splat(*weight.get_unchecked(position));
                sum[0] = p.fma(near, sum[0]);
                sum[1] = p.fma(far, sum[1]);
            }
        }
        for (sum, out) in sums.iter().zip(&mut gathered) {
            sum[0].store(out.as_mut_ptr().add(d));
            sum[1].store(out.as_mut_ptr().add(d + 16));
        }
        d += 32;
    }
    if d < head_dim {
        let mut sums = [L::splat(0.0); Q];
        for position in 0..seen {
            let value = L::load_f16(values.add(position * head_dim + d));
            for (weight, sum) in weights.iter().zip(&mut sums) {
                *sum = L::splat(*weight.get_unchecked(position)).fma(value, *sum);
            }
        }
        for (sum, out) in sums.iter().zip(&mut gathered) {
            sum.store(out.as_mut_ptr().add(d));
        }
    }
    for (index, query) in queries.iter_mut().enumerate() {
        if query.visible > 0 {
            let page = (maxima[index], totals[index], &gathered[index]);
            if query.state.maximum == f32::NEG_INFINITY {
                // The first page is taken as it is, so that a page computed apart can be folded in later.
                (query.state.maximum, query.state.sum) = (page.0, page.1);
                query.state.values[..head_dim].copy_from_slice(&page.2[..head_dim]);
            } else {
                fold::<L>(query.state, page.0, page.1, page.2, head_dim);
            }
        }
    }
}

/// Adds one page's result to what came before it.
///
/// # Safety
/// CPU features of `L`; `head_dim` a multiple of 16 and at most 256.
#[inline(always)]
pub(super) unsafe fn fold<L: Lanes>(
    state: &mut State,
    maximum: f32,
    sum: f32,
    values: &[f32; MAX_HEAD_DIM],
    head_dim: usize,
) {
    let highest = if state.maximum > maximum { state.maximum } else { maximum };
    let before = exp(L::splat(state.maximum - highest));
    let now = exp(L::splat(maximum - highest));
    let factors = (before.to_array()[0], now.to_array()[0]);
    state.maximum = highest;
    state.sum = state.sum * factors.0 + sum * factors.1;
    for d in (0..head_dim).step_by(16) {
        let place = state.values.as_mut_ptr().add(d);
        let new = L::load(values.as_ptr().add(d)).mul(now);
        L::load(place).fma(before, new).store(place);
    }
}

/// Divides by the sum: the attention's output.
///
/// # Safety
/// CPU features of `L`; `out` is as long as the head.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(state: &State, out: &mut [f32]) {
    let sum = L::splat(state.sum);
    for d in (0..out.len()).step_by(16) {
        L::load(state.values.as_ptr().add(d)).div(sum).store(out.as_mut_ptr().add(d));
    }
}
