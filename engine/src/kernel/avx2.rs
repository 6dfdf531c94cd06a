//! 256-bit kernels: `vpmaddubsw` into int16, widened by `vpmaddwd` before it could overflow.
//!
//! A step adds two products of a code (0 to 2) and an int8 activation to each int16, at most 512 in magnitude on the
//! negative and 508 on the positive side, so 64 steps stay within [-32768, 32512].
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

mod grouped;

use super::ahead::ask_ahead;
use super::lanes::Lanes;
use super::tl2::avx2::{look_up, tabulate};
use super::{LINE, ROWS, ScreenJob, TernaryJob};
use grouped::Narrow;
pub(super) use grouped::{Halves, Multiply};
use std::arch::x86_64::*;

/// Lines whose sums fit into int16: 16 lines of 4 planes are 64 steps.
const BLOCK_LINES: usize = 16;
/// Lines of int8 rows at a time: 4 KiB.
const NARROW_LINES: usize = 64;

/// Sixteen f32 in two registers.
#[derive(Clone, Copy)]
pub(super) struct Pair(__m256, __m256);

impl Lanes for Pair {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let v = _mm256_set1_ps(value);
        Pair(v, v)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Pair(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Pair(
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
        )
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let v = self.max(Self::splat(-65504.0)).min(Self::splat(65504.0));
        _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
        _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
        let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
        Pair(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
    #[inline(always)]
    unsafe fn load_i32_minus(from: *const i32, subtrahend: i32) -> Self {
        let s = _mm256_set1_epi32(subtrahend);
        let low = _mm256_sub_epi32(_mm256_loadu_si256(from.cast()), s);
        let high = _mm256_sub_epi32(_mm256_loadu_si256(from.add(8).cast()), s);
        Pair(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let words = self.to_i16();
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(to.cast(), bytes);
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        _mm256_storeu_si256(to.cast(), self.to_i16());
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32) {
        _mm256_storeu_si256(to.cast(), _mm256_cvtps_epi32(self.0));
        _mm256_storeu_si256(to.add(8).cast(), _mm256_cvtps_epi32(self.1));
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Pair(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Pair(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Pair(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Pair(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Pair(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Pair(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Pair(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        let sign = _mm256_set1_ps(-0.0);
        Pair(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Pair(_mm256_round_ps::<MODE>(self.0), _mm256_round_ps::<MODE>(self.1))
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
        let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
        Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
    }
    #[inline(always)]
    unsafe fn select_below(x: Self, bound: Self, below: Self, otherwise: Self) -> Self {
        let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x.0, bound.0);
        let high = _mm256_cmp_ps::<_CMP_LT_OQ>(x.1, bound.1);
        Pair(_mm256_blendv_ps(otherwise.0, below.0, low), _mm256_blendv_ps(otherwise.1, below.1, high))
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> u16 {
        let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(self.0, bound.0)) as u16;
        let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(self.1, bound.1)) as u16;
        low | high << 8
    }
    #[inline(always)]
    unsafe fn prefetch<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}

impl Pair {
    /// Integral values within int16, in order.
    #[inline(always)]
    unsafe fn to_i16(self) -> __m256i {
        let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
        // `packs` works on 128-bit halves: put the four quarters back in order.
        _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
    }
}

/// Sums of code · activation for one or two groups of 16 rows.
///
/// # Safety
/// AVX2; as [`TernaryJob`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn ternary(job: &TernaryJob) {
    for group in 0..job.n_groups {
        let lines = job.lines.add(group * job.n_lines * LINE);
        let sums = job.sums.add(group * ROWS);
        match job.n_tokens {
            1 => stream::<1>(lines, job, sums),
            2 => stream::<2>(lines, job, sums),
            3 => stream::<3>(lines, job, sums),
            _ => panel(lines, job, sums),
        }
    }
}

/// The four planes of half a line.
#[inline(always)]
pub(super) unsafe fn decode(half: __m256i) -> [__m256i; 4] {
    let three = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(half, three),
        _mm256_and_si256(_mm256_srli_epi16::<2>(half), three),
        _mm256_and_si256(_mm256_srli_epi16::<4>(half), three),
        _mm256_and_si256(_mm256_srli_epi16::<6>(half), three),
    ]
}

/// Few tokens: decode as the lines pass by.
#[inline(always)]
unsafe fn stream<const T: usize>(lines: *const u8, job: &TernaryJob, sums: *mut i32) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; T];
    let mut line = 0;
    while line < job.n_lines {
        let end = job.n_lines.min(line + BLOCK_LINES);
        let mut narrow = [[_mm256_setzero_si256(); 2]; T];
        while line < end {
            let at = lines.add(line * LINE);
            ask_ahead(at);
            let upper = decode(_mm256_loadu_si256(at.cast()));
            let lower = decode(_mm256_loadu_si256(at.add(32).cast()));
            for plane in 0..4 {
                for (t, sum) in narrow.iter_mut().enumerate() {
                    let act = broadcast(job.acts.add(t * job.act_stride + line * 16 + plane * 4));
                    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(upper[plane], act));
                    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(lower[plane], act));
                }
            }
            line += 1;
        }
        for (sum, part) in wide.iter_mut().zip(&narrow) {
            sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(part[0], ones));
            sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(part[1], ones));
        }
    }
    for (t, sum) in wide.iter().enumerate() {
        _mm256_storeu_si256(sums.add(t * 2 * ROWS).cast(), sum[0]);
        _mm256_storeu_si256(sums.add(t * 2 * ROWS + 8).cast(), sum[1]);
    }
}

/// Four activations in every lane.
#[inline(always)]
pub(super) unsafe fn broadcast(acts: *const i8) -> __m256i {
    _mm256_set1_epi32(acts.cast::<i32>().read_unaligned())
}

/// Many tokens: decode a block of lines once, then pass tiles of six tokens over it.
#[inline(always)]
unsafe fn panel(lines: *const u8, job: &TernaryJob, sums: *mut i32) {
    let mut line = 0;
    while line < job.n_lines {
        let n = BLOCK_LINES.min(job.n_lines - line);
        for i in 0..n {
            let at = lines.add((line + i) * LINE);
            ask_ahead(at);
            let upper = decode(_mm256_loadu_si256(at.cast()));
            let lower = decode(_mm256_loadu_si256(at.add(32).cast()));
            for plane in 0..4 {
                let to = job.panel.add((i * 4 + plane) * LINE);
                _mm256_storeu_si256(to.cast(), upper[plane]);
                _mm256_storeu_si256(to.add(32).cast(), lower[plane]);
            }
        }
        let mut token = 0;
        while token < job.n_tokens {
            let left = job.n_tokens - token;
            let tile_tokens = if left <= 6 { left } else { left.div_ceil(left.div_ceil(6)) };
            let acts = job.acts.add(token * job.act_stride + line * 16);
            let to = sums.add(token * 2 * ROWS);
            let first = line == 0;
            match tile_tokens {
                1 => tile::<1>(job.panel, n, acts, job.act_stride, to, first),
                2 => tile::<2>(job.panel, n, acts, job.act_stride, to, first),
                3 => tile::<3>(job.panel, n, acts, job.act_stride, to, first),
                4 => tile::<4>(job.panel, n, acts, job.act_stride, to, first),
                5 => tile::<5>(job.panel, n, acts, job.act_stride, to, first),
                _ => tile::<6>(job.panel, n, acts, job.act_stride, to, first),
            }
            token += tile_tokens;
        }
        line += n;
    }
}

#[inline(always)]
unsafe fn tile<const T: usize>(
    panel: *const u8,
    n_lines: usize,
    acts: *const i8,
    act_stride: usize,
    sums: *mut i32,
    first: bool,
) {
    let mut narrow = [[_mm256_setzero_si256(); 2]; T];
    for step in 0..n_lines * 4 {
        let upper = _mm256_loadu_si256(panel.add(step * LINE).cast());
        let lower = _mm256_loadu_si256(panel.add(step * LINE + 32).cast());
        for t in 0..T {
            let act = broadcast(acts.add(t * act_stride + step * 4));
            narrow[t][0] = _mm256_add_epi16(narrow[t][0], _mm256_maddubs_epi16(upper, act));
            narrow[t][1] = _mm256_add_epi16(narrow[t][1], _mm256_maddubs_epi16(lower, act));
        }
    }
    let ones = _mm256_set1_epi16(1);
    for (t, part) in narrow.iter().enumerate() {
        for half in 0..2 {
            let place = sums.add(t * 2 * ROWS + half * 8).cast::<__m256i>();
            let mut sum = _mm256_madd_epi16(part[half], ones);
            if !first {
                sum = _mm256_add_epi32(sum, _mm256_loadu_si256(place));
            }
            _mm256_storeu_si256(place, sum);
        }
    }
}

/// Dot products of int8 rows with activations within [-63, 63], these as y + 64 in `low`: two products of at most 127 · 127
/// fit into the int16 of `vpmaddubsw`. 64 times the row's sum is taken off again.
///
/// # Safety
/// AVX2; as [`ScreenJob`] says, with values within [-63, 63].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn screen_narrow(job: &ScreenJob) {
    for group in 0..job.n_groups {
        let mut line = 0;
        while line < job.n_lines {
            let end = job.n_lines.min(line + NARROW_LINES);
            let mut token = 0;
            while token < job.n_tokens {
                let left = job.n_tokens - token;
                let tile_tokens = if left <= 5 { left } else { left.div_ceil(left.div_ceil(5)) };
                match tile_tokens {
                    1 => narrow_tile::<1>(job, group, token, line, end),
                    2 => narrow_tile::<2>(job, group, token, line, end),
                    3 => narrow_tile::<3>(job, group, token, line, end),
                    4 => narrow_tile::<4>(job, group, token, line, end),
                    _ => narrow_tile::<5>(job, group, token, line, end),
                }
                token += tile_tokens;
            }
            line = end;
        }
    }
}

#[inline(always)]
unsafe fn narrow_tile<const T: usize>(job: &ScreenJob, group: usize, token: usize, start: usize, end: usize) {
    let ones = _mm256_set1_epi16(1);
    let sums = job.sums.add((token * 2 + group) * ROWS);
    let mut parts = [[_mm256_setzero_si256(); 2]; T];
    for (t, part) in parts.iter_mut().enumerate() {
        for (half, sum) in part.iter_mut().enumerate() {
            *sum = if start > 0 {
                _mm256_loadu_si256(sums.add(t * 2 * ROWS + half * 8).cast())
            } else {
                let row_sums = _mm256_loadu_si256(job.row_sums.add(group * ROWS + half * 8).cast());
                _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32::<6>(row_sums))
            };
        }
    }
    let acts = job.low.add(token * job.stride);
    for line in start..end {
        let at = job.lines.add((group * job.n_lines + line) * LINE);
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NARROW_LINES * LINE).cast());
        let upper = _mm256_loadu_si256(at.cast());
        let lower = _mm256_loadu_si256(at.add(32).cast());
        for t in 0..T {
            let act = broadcast(acts.add(t * job.stride + line * 4).cast());
            let (near, far) = (_mm256_maddubs_epi16(act, upper), _mm256_maddubs_epi16(act, lower));
            parts[t][0] = _mm256_add_epi32(parts[t][0], _mm256_madd_epi16(near, ones));
            parts[t][1] = _mm256_add_epi32(parts[t][1], _mm256_madd_epi16(far, ones));
        }
    }
    for (t, part) in parts.iter().enumerate() {
        _mm256_storeu_si256(sums.add(t * 2 * ROWS).cast(), part[0]);
        _mm256_storeu_si256(sums.add(t * 2 * ROWS + 8).cast(), part[1]);
    }
}

/// Dot products of one or two groups of 16 int8 rows with int16 activations.
///
/// # Safety
/// AVX2; as [`ScreenJob`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn screen(job: &ScreenJob) {
    for group in 0..job.n_groups {
        let mut token = 0;
        while token < job.n_tokens {
            match job.n_tokens - token {
                1 => screen_tile::<1>(job, group, token),
                2 => screen_tile::<2>(job, group, token),
                _ => screen_tile::<3>(job, group, token),
            }
            token += 3;
        }
    }
}

#[inline(always)]
unsafe fn screen_tile<const T: usize>(job: &ScreenJob, group: usize, token: usize) {
    let mut sums = [[_mm256_setzero_si256(); 4]; T];
    for line in 0..job.n_lines {
        let at = job.lines.add((group * job.n_lines + line) * LINE);
        ask_ahead(at);
        for quarter in 0..4 {
            // Four rows of four weights; each 64 bits of the broadcast meet one row.
            let quants = _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(quarter * 16).cast()));
            for t in 0..T {
                let four = job.values.add((token + t) * job.stride + line * 4).cast::<i64>().read_unaligned();
                let products = _mm256_madd_epi16(quants, _mm256_set1_epi64x(four));
                sums[t][quarter] = _mm256_add_epi32(sums[t][quarter], products);
            }
        }
    }
    for (t, sum) in sums.iter().enumerate() {
        store_pairs(sum, job.sums.add(((token + t) * 2 + group) * ROWS));
    }
}

/// [`screen`] on packed lines of six bits: four lines at a time are unpacked into registers and multiplied there.
///
/// # Safety
/// AVX2; as [`ScreenJob`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn screen_six(job: &ScreenJob) {
    for group in 0..job.n_groups {
        for token in 0..job.n_tokens {
            six_tile(job, group, token);
        }
    }
}

#[inline(always)]
unsafe fn six_tile(job: &ScreenJob, group: usize, token: usize) {
    let mut sums = [_mm256_setzero_si256(); 4];
    for block in 0..job.n_lines / 4 {
        let at = job.lines.add((group * job.n_lines / 4 + block) * 3 * LINE);
        (0..3).for_each(|i| ask_ahead(at.add(i * LINE)));
        let acts = job.values.add(token * job.stride + block * 16).cast::<i64>();
        let fours = [0, 1, 2, 3].map(|plane| _mm256_set1_epi64x(acts.add(plane).read_unaligned()));
        for half in 0..2 {
            let load = |i: usize| _mm256_loadu_si256(at.add(i * LINE + half * 32).cast());
            for (plane, line) in unpack_six(load(0), load(1), load(2)).into_iter().enumerate() {
                let four = fours[plane];
                let near = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(line));
                let far = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(line));
                sums[half * 2] = _mm256_add_epi32(sums[half * 2], _mm256_madd_epi16(near, four));
                sums[half * 2 + 1] = _mm256_add_epi32(sums[half * 2 + 1], _mm256_madd_epi16(far, four));
            }
        }
    }
    store_pairs(&sums, job.sums.add((token * 2 + group) * ROWS));
}

/// The halves of four int8 lines from those of three packed ones: see `scores::unpack_six`.
#[inline(always)]
unsafe fn unpack_six(a: __m256i, b: __m256i, c: __m256i) -> [__m256i; 4] {
    let upper = _mm256_set1_epi8(0xfcu8 as i8);
    let bits = |line: __m256i, mask: u8| _mm256_and_si256(line, _mm256_set1_epi8(mask as i8));
    let of_a = bits(_mm256_slli_epi16::<6>(a), 0xc0);
    let of_b = bits(_mm256_slli_epi16::<4>(b), 0x30);
    let of_c = bits(_mm256_slli_epi16::<2>(c), 0x0c);
    [
        _mm256_and_si256(a, upper),
        _mm256_and_si256(b, upper),
        _mm256_and_si256(c, upper),
        _mm256_or_si256(of_a, _mm256_or_si256(of_b, of_c)),
    ]
}

/// Sixteen sums from sixteen pairs of halves.
#[inline(always)]
unsafe fn store_pairs(sums: &[__m256i; 4], to: *mut i32) {
    for (quarter, &part) in sums.iter().enumerate() {
        let mut pairs = [0i32; 8];
        _mm256_storeu_si256(pairs.as_mut_ptr().cast(), part);
        for row in 0..4 {
            *to.add(quarter * 4 + row) = pairs[2 * row].wrapping_add(pairs[2 * row + 1]);
        }
    }
}

/// Reads all of `bytes` by the widest loads and does nothing with them: the memory's ceiling. `ask` asks ahead, as kernels do.
///
/// # Safety
/// AVX2; a length that is a multiple of 4096.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn read_all(bytes: &[u8], ask: bool) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 8];
    for chunk in bytes.chunks_exact(256) {
        if ask {
            chunk.chunks_exact(LINE).for_each(|line| ask_ahead(line.as_ptr()));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_or_si256(*sum, _mm256_loadu_si256(chunk.as_ptr().add(i * 32).cast()));
        }
    }
    let all = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_or_si256(all, sum));
    let mut words = [0u64; 4];
    _mm256_storeu_si256(words.as_mut_ptr().cast(), all);
    words.into_iter().fold(0, |all, word| all | word)
}

/// `rounds` rounds of multiply-adds on registers alone; how many were done.
///
/// # Safety
/// AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_all(rounds: u64) -> u64 {
    let (codes, mut acts) = std::hint::black_box((_mm256_set1_epi8(1), _mm256_set1_epi8(3)));
    let mut sums = [_mm256_setzero_si256(); 10];
    for _ in 0..rounds {
        for sum in &mut sums {
            // No instruction, but the optimiser must take `acts` for a new value, and multiply again.
            std::arch::asm!("/* {0} */", inout(ymm_reg) acts, options(nomem, nostack, preserves_flags));
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, acts));
        }
    }
    std::hint::black_box(sums);
    rounds * 10 * 32
}

super::stamp!(Pair, Halves<Narrow>, 6, 1, 1, 3, 2, "avx2,fma,f16c");
