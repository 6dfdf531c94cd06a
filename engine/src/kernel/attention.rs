//! Attention of a few queries over one page of 128 positions, once for all instruction sets.
//!
//! Keys are stored transposed, (4, head_dim, 32): a lane is a position, no dot product sums across lanes, and what is read
//! of a page that is not full yet is one piece. Values are (128, head_dim), so that a lane is a dimension. Each page yields its own maximum, sum and weighted values, and
//! pages are folded in order: the result depends on the positions alone, not on who computed which page.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `kernel.rs` checks the lengths.

use super::lanes::{Lanes, exp};
use super::{KEY_BLOCK, MAX_HEAD_DIM, PAGE};
use std::mem::MaybeUninit;

/// Bytes of keys or values ahead of those being read that are asked for into the second-level cache, and into the first.
const FAR: usize = 8192;
const NEAR: usize = 1024;

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

/// How keys and values are stored.
pub(super) trait Cell: Copy {
    /// Sixteen of them, widened exactly.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Cell for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L {
        L::load_f16(from)
    }
}

impl Cell for i8 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const i8) -> L {
        L::load_i8(from)
    }
}

/// What is read of one page of one head.
#[derive(Clone, Copy)]
pub(super) struct Page<C> {
    /// (4, head_dim, 32)
    pub(super) keys: *const C,
    /// (128, head_dim)
    pub(super) values: *const C,
    /// Of keys and of values, (2, 128), where they have any.
    pub(super) scales: Option<*const f32>,
    /// What will be read after this page; only asked for, never followed.
    pub(super) next: *const u8,
    pub(super) head_dim: usize,
}

/// Scores, softmax and weighted values of `queries` over one page, folded into their states. At most `MOST` queries are taken
/// together, in parts of nearly one size; each has `TALL` vectors of positions or dimensions, where more than six are
/// together `V`: as many sums as the registers hold, and enough to keep the multipliers busy.
///
/// # Safety
/// CPU features of `L`; `page` holds one page of one head; `visible` at most 128; `head_dim` a multiple of 16 and at most 256;
/// queries of that length.
#[inline(always)]
pub(super) unsafe fn attend<L: Lanes, C: Cell, const MOST: usize, const V: usize, const TALL: usize>(
    queries: &mut [Query<'_>],
    page: &Page<C>,
    scale: f32,
) {
    let mut rest = queries;
    while !rest.is_empty() {
        let n = rest.len().div_ceil(rest.len().div_ceil(MOST));
        let (now, later) = rest.split_at_mut(n);
        match n {
            1 => attend_together::<L, C, 1, V, TALL>(now, page, scale),
            2 => attend_together::<L, C, 2, V, TALL>(now, page, scale),
            3 => attend_together::<L, C, 3, V, TALL>(now, page, scale),
            4 => attend_together::<L, C, 4, V, TALL>(now, page, scale),
            5 if MOST > 4 => attend_together::<L, C, 5, V, TALL>(now, page, scale),
            6 if MOST > 4 => attend_together::<L, C, 6, V, TALL>(now, page, scale),
            7 if MOST > 6 => attend_together::<L, C, 7, V, V>(now, page, scale),
            _ if MOST > 6 => attend_together::<L, C, 8, V, V>(now, page, scale),
            _ => unreachable!("because parts have at most `MOST` queries"),
        }
        rest = later;
    }
}

/// Asks for what is read soon after the element at `at` of `part`, which may be in what comes after that part: `far` bytes ahead
/// into the second-level cache, and a little ahead into the first.
#[inline(always)]
unsafe fn ask_ahead<L: Lanes, C>(part: (*const C, usize), at: usize, far: usize, then: *const u8) {
    let (start, len) = (part.0.cast::<u8>(), part.1 * size_of::<C>());
    let at = at * size_of::<C>();
    let far = at + far;
    L::prefetch_far(if far < len { start.wrapping_add(far) } else { then.wrapping_add(far - len) });
    L::prefetch(start.wrapping_add(at + NEAR));
}

#[inline(always)]
unsafe fn attend_together<L: Lanes, C: Cell, const Q: usize, const V: usize, const TALL: usize>(
    queries: &mut [Query<'_>],
    page: &Page<C>,
    scale: f32,
) {
    let Page { keys, values, scales, next, head_dim } = *page;
    let seen = queries.iter().map(|query| query.visible).max().unwrap_or(0);
    if seen == 0 {
        return;
    }
    // Whole blocks are computed; what lies beyond the visible positions is cut off below.
    let n_blocks = seen.div_ceil(KEY_BLOCK);
    let (n_keys, n_values) = (n_blocks * KEY_BLOCK * head_dim, seen * head_dim);
    // Written before they are read, as far as they are read at all: filling them with zeros first would cost a fortieth.
    let mut rows = MaybeUninit::<[[f32; MAX_HEAD_DIM]; Q]>::uninit();
    let mut weights = MaybeUninit::<[[f32; PAGE]; Q]>::uninit();
    let mut gathered = MaybeUninit::<[[f32; MAX_HEAD_DIM]; Q]>::uninit();
    let rows = rows.as_mut_ptr().cast::<f32>();
    let weights = weights.as_mut_ptr().cast::<f32>();
    let gathered = gathered.as_mut_ptr().cast::<f32>();
    // Side by side, one register points to all of them.
    for (i, query) in queries.iter().enumerate() {
        for d in (0..head_dim).step_by(16) {
            L::load(query.q.as_ptr().add(d)).store(rows.add(i * MAX_HEAD_DIM + d));
        }
    }
    let scores = Scores { keys: (keys, n_keys), then: values.cast(), scales, rows, weights, head_dim, scale };
    let n_lanes = n_blocks * (KEY_BLOCK / 16);
    let mut lane = 0;
    while lane + TALL <= n_lanes {
        score::<L, C, Q, TALL>(&scores, lane);
        lane += TALL;
    }
    while lane < n_lanes {
        score::<L, C, Q, V>(&scores, lane);
        lane += V;
    }
    let mut maxima = [0f32; Q];
    let mut totals = [0f32; Q];
    for (i, query) in queries.iter().enumerate() {
        let row = weights.add(i * PAGE);
        for position in query.visible..n_lanes * 16 {
            row.add(position).write(f32::NEG_INFINITY);
        }
        let mut maximum = L::splat(f32::NEG_INFINITY);
        for lane in 0..n_lanes {
            maximum = L::load(row.add(lane * 16)).max(maximum);
        }
        maxima[i] = maximum.largest();
        let shift = L::splat(if query.visible == 0 { 0.0 } else { maxima[i] });
        let mut total = L::splat(0.0);
        for lane in 0..n_lanes {
            let weight = exp(L::load(row.add(lane * 16)).sub(shift));
            total = total.add(weight);
            let weight = match scales {
                Some(scales) => weight.mul(L::load(scales.add(PAGE + lane * 16))),
                None => weight,
            };
            weight.store(row.add(lane * 16));
        }
        totals[i] = total.sum();
    }
    let mut d = 0;
    while d + 16 * TALL <= head_dim {
        gather::<L, C, Q, TALL>((values, n_values), next, weights, gathered, d, head_dim);
        d += 16 * TALL;
    }
    while d < head_dim {
        gather::<L, C, Q, 1>((values, n_values), next, weights, gathered, d, head_dim);
        d += 16;
    }
    for (i, query) in queries.iter_mut().enumerate() {
        if query.visible > 0 {
            let found = std::slice::from_raw_parts(gathered.add(i * MAX_HEAD_DIM), head_dim);
            if query.state.maximum == f32::NEG_INFINITY {
                // The first page is taken as it is, so that a page computed apart can be folded in later.
                (query.state.maximum, query.state.sum) = (maxima[i], totals[i]);
                query.state.values[..head_dim].copy_from_slice(found);
            } else {
                fold::<L>(query.state, maxima[i], totals[i], found);
            }
        }
    }
}

/// What the scores of a page are made of.
struct Scores<C> {
    keys: (*const C, usize),
    /// What is read after the keys.
    then: *const u8,
    scales: Option<*const f32>,
    /// Queries, (Q, 256).
    rows: *const f32,
    /// (Q, 128)
    weights: *mut f32,
    head_dim: usize,
    scale: f32,
}

/// Scores of `V` vectors of 16 positions, of which two stand side by side in each block of keys.
#[inline(always)]
unsafe fn score<L: Lanes, C: Cell, const Q: usize, const V: usize>(job: &Scores<C>, first: usize) {
    const A_BLOCK: usize = KEY_BLOCK / 16;
    let start = |vector: usize| vector / A_BLOCK * KEY_BLOCK * job.head_dim + vector % A_BLOCK * 16;
    // Blocks that are read side by side are past before the far prefetch would help them: it is for those that follow.
    let far = FAR.max(V / A_BLOCK * KEY_BLOCK * job.head_dim * size_of::<C>());
    let mut sums = [[L::splat(0.0); V]; Q];
    for d in 0..job.head_dim {
        let mut lanes = [L::splat(0.0); V];
        for (v, lane) in lanes.iter_mut().enumerate() {
            let at = start(first + v) + d * KEY_BLOCK;
            if (first + v).is_multiple_of(A_BLOCK) {
                ask_ahead::<L, C>(job.keys, at, far, job.then);
            }
            *lane = C::load(job.keys.0.add(at));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let q = L::splat(*job.rows.add(i * MAX_HEAD_DIM + d));
            for v in 0..V {
                sum[v] = q.fma(lanes[v], sum[v]);
            }
        }
    }
    for v in 0..V {
        let mut scale = L::splat(job.scale);
        if let Some(scales) = job.scales {
            scale = scale.mul(L::load(scales.add((first + v) * 16)));
        }
        for (i, sum) in sums.iter().enumerate() {
            sum[v].mul(scale).store(job.weights.add(i * PAGE + (first + v) * 16));
        }
    }
}

/// Weighted values of `V` vectors of dimensions from `d` on.
#[inline(always)]
unsafe fn gather<L: Lanes, C: Cell, const Q: usize, const V: usize>(
    values: (*const C, usize),
    next: *const u8,
    weights: *const f32,
    gathered: *mut f32,
    d: usize,
    head_dim: usize,
) {
    let mut sums = [[L::splat(0.0); V]; Q];
    let mut position = 0;
    let mut at = 0;
    while at < values.1 {
        if d == 0 {
            // The first pass brings whole rows, in the order in which they lie; the others find them in the cache.
            for line in (0..head_dim).step_by(64 / size_of::<C>()) {
                ask_ahead::<L, C>(values, at + line, FAR, next);
            }
        }
        let mut lanes = [L::splat(0.0); V];
        for (v, lane) in lanes.iter_mut().enumerate() {
            *lane = C::load(values.0.add(at + d + v * 16));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let weight = L::splat(*weights.add(i * PAGE + position));
            for v in 0..V {
                sum[v] = weight.fma(lanes[v], sum[v]);
            }
        }
        position += 1;
        at += head_dim;
    }
    for (i, sum) in sums.iter().enumerate() {
        for (v, sum) in sum.iter().enumerate() {
            sum.store(gathered.add(i * MAX_HEAD_DIM + d + v * 16));
        }
    }
}

/// Adds one page's result to what came before it.
///
/// # Safety
/// CPU features of `L`; as many values as the head has dimensions, a multiple of 16 and at most 256.
#[inline(always)]
pub(super) unsafe fn fold<L: Lanes>(state: &mut State, maximum: f32, sum: f32, values: &[f32]) {
    let highest = if state.maximum > maximum { state.maximum } else { maximum };
    let before = exp(L::splat(state.maximum - highest));
    let now = exp(L::splat(maximum - highest));
    let factors = (before.to_array()[0], now.to_array()[0]);
    state.maximum = highest;
    state.sum = state.sum * factors.0 + sum * factors.1;
    for d in (0..values.len()).step_by(16) {
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
