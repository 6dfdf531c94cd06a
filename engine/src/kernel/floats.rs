//! Float work around the ternary products, once for all instruction sets: norms, activation quantiser, epilogues, dots.
//!
//! Every function is generic over [`Lanes`] and stamped for each instruction set by `stamp!` in `kernel.rs`; the safe
//! functions that check lengths are there too. Lengths are multiples of 16 throughout: model widths are multiples of 128.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `kernel.rs` checks the lengths.

use super::ahead::ask_to_write;
use super::lanes::{Lanes, exp};
use super::{Quantised, ROWS};
use crate::gguf::architecture::Activation;

/// Floats ahead of the sums of squares that are asked for: 4 KiB.
const SQUARES_AHEAD: usize = 1024;

/// x · (1 / √(mean(x²) + eps)) · weight, into `out`.
///
/// # Safety
/// CPU features of `L`; all slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn norm<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    let mut squares = L::splat(0.0);
    let mut i = 0;
    while i < n {
        let v = L::load(x.as_ptr().add(i));
        squares = v.fma(v, squares);
        i += 16;
    }
    let mean = squares.sum() / n as f32;
    let scale = L::splat(1.0 / (mean + eps).sqrt());
    let mut i = 0;
    while i < n {
        let v = L::load(x.as_ptr().add(i)).mul(scale).mul(L::load(weight.as_ptr().add(i)));
        v.store(out.as_mut_ptr().add(i));
        i += 16;
    }
}

/// Norms rows, where there is a norm, and rounds each to int8, `group` inputs by one scale: s = 127 / max(|x|, 1e-5), q = round
/// half to even of x·s.
///
/// A row's sum of squares is one chain of fused multiply-adds, by its definition; four rows at a time hide its latency.
///
/// # Safety
/// CPU features of `L`; the norm's weights and `row` of one length n, a multiple of 16 and at most 2¹⁷; `x` and `acts` hold
/// whole rows, `quantised` (n_rows, n / group).
#[inline(always)]
pub(super) unsafe fn norm_quantise<L: Lanes>(
    x: &[f32],
    norm: Option<(&[f32], f32)>,
    group: usize,
    row: &mut [f32],
    acts: &mut [i8],
    quantised: &mut [Quantised],
) {
    let n = row.len();
    let n_rows = x.len() / n;
    let mut first = 0;
    while first < n_rows {
        let from = x.as_ptr().add(first * n);
        let together = if n_rows - first >= 4 { 4 } else { 1 };
        let mut scales = [None; 4];
        if let Some((weight, eps)) = norm {
            let mut sums = [0f32; 4];
            if together == 4 {
                sums = squares::<L, 4>(from, n);
            } else {
                sums[0] = squares::<L, 1>(from, n)[0];
            }
            for (scale, sum) in scales.iter_mut().zip(sums) {
                *scale = Some((1.0 / (sum / n as f32 + eps).sqrt(), weight));
            }
        }
        for (i, scale) in scales.into_iter().enumerate().take(together) {
            let to = acts.as_mut_ptr().add((first + i) * n);
            let groups = (first + i) * (n / group)..(first + i + 1) * (n / group);
            scale_and_round::<L>(from.add(i * n), scale, group, row, to, &mut quantised[groups]);
        }
        first += together;
    }
}

/// Sums of squares of `R` rows that follow one another. Half of what they hold was written by other threads and comes from
/// their caches: it is asked for ahead.
#[inline(always)]
unsafe fn squares<L: Lanes, const R: usize>(x: *const f32, n: usize) -> [f32; R] {
    let mut sums = [L::splat(0.0); R];
    let mut i = 0;
    while i < n {
        for (r, sum) in sums.iter_mut().enumerate() {
            L::prefetch(x.wrapping_add(r * n + i + SQUARES_AHEAD));
            let v = L::load(x.add(r * n + i));
            *sum = v.fma(v, *sum);
        }
        i += 16;
    }
    sums.map(|sum| sum.sum())
}

/// One row times its norm's scale and weights, into `row`, and from there to int8.
#[inline(always)]
unsafe fn scale_and_round<L: Lanes>(
    x: *const f32,
    norm: Option<(f32, &[f32])>,
    group: usize,
    row: &mut [f32],
    acts: *mut i8,
    quantised: &mut [Quantised],
) {
    for (index, quantised) in quantised.iter_mut().enumerate() {
        let (start, end) = (index * group, (index + 1) * group);
        // The largest of all is the same in any order: two chains.
        let mut largest = [L::splat(0.0); 2];
        let mut i = start;
        while i < end {
            let mut v = L::load(x.add(i));
            if let Some((scale, weight)) = norm {
                v = v.mul(L::splat(scale)).mul(L::load(weight.as_ptr().add(i)));
            }
            v.store(row.as_mut_ptr().add(i));
            largest[i / 16 % 2] = v.abs().max(largest[i / 16 % 2]);
            i += 16;
        }
        let largest = largest[0].max(largest[1]).largest().max(1e-5);
        let scale = 127.0 / largest;
        let (low, high, factor) = (L::splat(-128.0), L::splat(127.0), L::splat(scale));
        // Whole numbers, 2¹⁷ of at most 2⁷ together: exact in f32, in any order.
        let mut sum = L::splat(0.0);
        let mut i = start;
        while i < end {
            let q = L::load(row.as_ptr().add(i)).mul(factor).round().max(low).min(high);
            q.store_i8(acts.add(i));
            sum = sum.add(q);
            i += 16;
        }
        *quantised = Quantised { scale, step: largest / 127.0, sum: sum.sum() as i32 };
    }
}

/// max |x|; 0 for an empty slice.
///
/// # Safety
/// CPU features of `L`; a length that is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn largest_magnitude<L: Lanes>(x: &[f32]) -> f32 {
    let mut largest = L::splat(0.0);
    let mut i = 0;
    while i < x.len() {
        largest = L::load(x.as_ptr().add(i)).abs().max(largest);
        i += 16;
    }
    largest.largest()
}

/// What happens to the sums of groups of rows.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    /// Per token, or per token and group of inputs.
    pub(crate) activations: &'a [Quantised],
    pub(crate) n_tokens: usize,
    /// The rows' scales; unused where groups of inputs have them.
    pub(crate) weight_scales: &'a [f32],
    pub(crate) n_groups: usize,
    /// Where token 0's first row goes; further tokens follow at `stride`.
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
    pub(crate) then: Then,
}

impl Epilogue<'_> {
    fn rows_a_pair(&self) -> usize {
        if matches!(self.then, Then::Gate(_)) { ROWS } else { 2 * ROWS }
    }

    /// Asks for all lines that will be written. What reads these rows is done by tokens, so half of them are in other cores' caches,
    /// and the stores of the next product's codes would wait behind them.
    pub(super) fn ask_to_write(&self) {
        for token in 0..self.n_tokens {
            for row in (0..self.n_groups.div_ceil(2) * self.rows_a_pair()).step_by(ROWS) {
                ask_to_write(self.out.wrapping_add(token * self.stride + row));
            }
        }
    }

    /// The same for each pair of groups, of which the last may be one group.
    pub(super) fn pairs(&self) -> impl Iterator<Item = Epilogue<'_>> {
        (0..self.n_groups).step_by(2).map(move |group| Epilogue {
            weight_scales: self.weight_scales.get(group * ROWS..).unwrap_or_default(),
            n_groups: (self.n_groups - group).min(2),
            out: self.out.wrapping_add(group / 2 * self.rows_a_pair()),
            ..*self
        })
    }
}

/// What becomes of y = (dot − sum) / s_act · s_w.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// out = y
    Store,
    /// out += y
    Add,
    /// out = activation(y of group 0) · (y of group 1): sixteen rows from two groups.
    Gate(Activation),
}

/// Division by one number many times, rounded as the division instruction rounds, in five operations that overlap instead
/// of one that takes as long as sixteen.
///
/// With y = 1/b to the nearest, a·y is within two units of a/b; one correction by the remainder makes it faithful (one of the
/// two neighbours), and then a second one makes it the nearest (Markstein's theorem; Muller et al., Handbook of
/// Floating-Point Arithmetic, section 4.7). Numerators are whole numbers below 2³¹, so that no remainder underflows.
#[derive(Clone, Copy)]
struct Divisor<L> {
    minus_b: L,
    reciprocal: L,
}

impl<L: Lanes> Divisor<L> {
    #[inline(always)]
    unsafe fn new(b: f32) -> Self {
        Divisor { minus_b: L::splat(-b), reciprocal: L::splat(1.0 / b) }
    }

    #[inline(always)]
    unsafe fn divide(self, a: L) -> L {
        let near = a.mul(self.reciprocal);
        let faithful = near.fma(self.minus_b, a).fma(self.reciprocal, near);
        faithful.fma(self.minus_b, a).fma(self.reciprocal, faithful)
    }
}

/// Whether [`Divisor`] gives what `/` gives, for the tests.
#[cfg(test)]
pub(super) fn divides_exactly(a: i32, b: f32) -> bool {
    // SAFETY: plain Rust.
    let found = unsafe { Divisor::<[f32; 16]>::new(b).divide([a as f32; 16])[0] };
    found.to_bits() == (a as f32 / b).to_bits()
}

/// Turns integer sums into floats, in the order of bitnet.cpp: subtract in integers, convert, divide, multiply.
///
/// # Safety
/// CPU features of `L`; `sums` holds (n_tokens, 32); `out` has room for `n_groups` · 16 floats (16 for `Gate`) a token.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(sums: *const i32, job: &Epilogue<'_>) {
    let mut scales = [L::splat(0.0); 2];
    for group in 0..job.n_groups {
        scales[group] = L::load(job.weight_scales.as_ptr().add(group * ROWS));
    }
    for (token, activation) in job.activations.iter().enumerate() {
        let divisor = Divisor::<L>::new(activation.scale);
        let from = sums.add(token * 2 * ROWS);
        // No closures here: intrinsics are not inlined into them.
        let mut ys = [L::splat(0.0); 2];
        for group in 0..job.n_groups {
            let dot = L::load_i32_minus(from.add(group * ROWS), activation.sum);
            ys[group] = divisor.divide(dot).mul(scales[group]);
        }
        hand_on::<L>(ys, job, token);
    }
}

/// Hands on sums that are floats already.
///
/// # Safety
/// As [`finish`].
#[inline(always)]
pub(super) unsafe fn finish_floats<L: Lanes>(sums: *const f32, job: &Epilogue<'_>) {
    for token in 0..job.n_tokens {
        let mut ys = [L::splat(0.0); 2];
        for group in 0..job.n_groups {
            ys[group] = L::load(sums.add((token * 2 + group) * ROWS));
        }
        hand_on::<L>(ys, job, token);
    }
}

/// One token's results of one or two groups, to where they belong.
#[inline(always)]
unsafe fn hand_on<L: Lanes>(ys: [L; 2], job: &Epilogue<'_>, token: usize) {
    let out = job.out.add(token * job.stride);
    match job.then {
        Then::Gate(Activation::SquaredRelu) => {
            let gate = ys[0].max(L::splat(0.0));
            gate.mul(gate).mul(ys[1]).store(out);
        }
        Then::Gate(Activation::Silu) => {
            let below = exp(L::splat(0.0).sub(ys[0])).add(L::splat(1.0));
            ys[0].div(below).mul(ys[1]).store(out);
        }
        Then::Store => {
            for group in 0..job.n_groups {
                ys[group].store(out.add(group * ROWS));
            }
        }
        Then::Add => {
            for group in 0..job.n_groups {
                let place = out.add(group * ROWS);
                L::load(place).add(ys[group]).store(place);
            }
        }
    }
}

/// Rotates pairs (i, i + half) of one head in place by the angles of its position.
///
/// # Safety
/// CPU features of `L`; `head` has 2 · `cos.len()` elements, `sin` as many as `cos`.
#[inline(always)]
pub(super) unsafe fn rotate<L: Lanes>(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let whole = half / 16 * 16;
    for i in (0..whole).step_by(16) {
        let (near, far) = (head.as_mut_ptr().add(i), head.as_mut_ptr().add(i + half));
        let (a, b) = (L::load(near), L::load(far));
        let (cos, sin) = (L::load(cos.as_ptr().add(i)), L::load(sin.as_ptr().add(i)));
        // Each product is rounded by itself, as in the lines below: no fused multiply-add.
        a.mul(cos).sub(b.mul(sin)).store(near);
        b.mul(cos).add(a.mul(sin)).store(far);
    }
    for i in whole..half {
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i] + a * sin[i];
    }
}

/// The canonical dot product of a row of f16 and one of f32.
///
/// # Safety
/// CPU features of `L`; `n` a multiple of 16, readable elements behind both pointers.
#[inline(always)]
pub(super) unsafe fn dot_f16<L: Lanes>(row: *const u16, x: *const f32, n: usize) -> f32 {
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i < n {
        sum = L::load_f16(row.add(i)).fma(L::load(x.add(i)), sum);
        i += 16;
    }
    sum.sum()
}

/// The canonical dot product of two rows of f32.
///
/// # Safety
/// As [`dot_f16`].
#[inline(always)]
pub(super) unsafe fn dot_f32<L: Lanes>(row: *const f32, x: *const f32, n: usize) -> f32 {
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i < n {
        sum = L::load(row.add(i)).fma(L::load(x.add(i)), sum);
        i += 16;
    }
    sum.sum()
}

/// out = round half to even of x / step, error = x − step · out, rounded once.
///
/// # Safety
/// CPU features of `L`; all slices of one length, a multiple of 16; the quotients fit into int16.
#[inline(always)]
pub(super) unsafe fn round_i16<L: Lanes>(x: &[f32], step: f32, out: &mut [i16], error: &mut [f32]) {
    let (low, high, minus) = (L::splat(-32767.0), L::splat(32767.0), L::splat(-step));
    for i in (0..x.len()).step_by(16) {
        let v = L::load(x.as_ptr().add(i));
        let y = v.div(L::splat(step)).round().max(low).min(high);
        y.store_i16(out.as_mut_ptr().add(i));
        y.fma(minus, v).store(error.as_mut_ptr().add(i));
    }
}

/// Rounds to half precision.
///
/// # Safety
/// CPU features of `L`; both slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn narrow<L: Lanes>(from: &[f32], to: &mut [u16]) {
    for i in (0..from.len()).step_by(16) {
        L::load(from.as_ptr().add(i)).store_f16(to.as_mut_ptr().add(i));
    }
}

/// Rounds to int8: the scale of what it is then, 1/127 of the largest magnitude.
///
/// # Safety
/// CPU features of `L`; both slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn narrow_bytes<L: Lanes>(from: &[f32], to: &mut [i8]) -> f32 {
    let largest = largest_magnitude::<L>(from).clamp(1e-30, f32::MAX);
    let (low, high, factor) = (L::splat(-127.0), L::splat(127.0), L::splat(127.0 / largest));
    for i in (0..from.len()).step_by(16) {
        let q = L::load(from.as_ptr().add(i)).mul(factor).round().max(low).min(high);
        q.store_i8(to.as_mut_ptr().add(i));
    }
    largest / 127.0
}

/// Widens half precision.
///
/// # Safety
/// CPU features of `L`; both slices of one length, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes>(from: &[u16], to: &mut [f32]) {
    for i in (0..from.len()).step_by(16) {
        L::load_f16(from.as_ptr().add(i)).store(to.as_mut_ptr().add(i));
    }
}
