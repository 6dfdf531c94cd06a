//! 256-bit kernels with `vpdpbusd` for CPUs that have it without AVX-512: sums stay in int32 throughout.
//!
//! Floats, codes of a line and the screening product of two bytes are those of AVX2.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

use super::ahead::ask_ahead;
use super::avx2::{Halves, Multiply, Pair, broadcast, decode, read_all, screen, screen_six};
use super::tl2::avx2::{look_up, tabulate};
use super::{LINE, ROWS, ScreenJob, TernaryJob};
use std::arch::x86_64::*;

/// Lines decoded at a time: 32 lines of 4 planes are 8 KiB of codes, a sixth of the first-level cache.
const BLOCK_LINES: usize = 32;
/// Lines of int8 rows at a time: 4 KiB.
const NARROW_LINES: usize = 64;

/// Sums of code · activation for one or two groups of 16 rows.
///
/// # Safety
/// AVX2 and AVX-VNNI; as [`TernaryJob`] says.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
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

/// Sums of products in int32.
pub(super) struct Wide;

impl Multiply for Wide {
    #[inline(always)]
    unsafe fn add(sum: __m256i, codes: __m256i, acts: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sum, codes, acts)
    }

    #[inline(always)]
    unsafe fn whole(sum: __m256i) -> __m256i {
        sum
    }
}

/// Few tokens: decode as the lines pass by.
#[inline(always)]
unsafe fn stream<const T: usize>(lines: *const u8, job: &TernaryJob, sums: *mut i32) {
    // Even and odd planes apart, so that no sum waits for the one before.
    let mut parts = [[[_mm256_setzero_si256(); 2]; 2]; T];
    for line in 0..job.n_lines {
        let at = lines.add(line * LINE);
        ask_ahead(at);
        let upper = decode(_mm256_loadu_si256(at.cast()));
        let lower = decode(_mm256_loadu_si256(at.add(32).cast()));
        for plane in 0..4 {
            for (t, part) in parts.iter_mut().enumerate() {
                let act = broadcast(job.acts.add(t * job.act_stride + line * 16 + plane * 4));
                let sum = &mut part[plane % 2];
                sum[0] = _mm256_dpbusd_avx_epi32(sum[0], upper[plane], act);
                sum[1] = _mm256_dpbusd_avx_epi32(sum[1], lower[plane], act);
            }
        }
    }
    for (t, [even, odd]) in parts.iter().enumerate() {
        for half in 0..2 {
            let place = sums.add(t * 2 * ROWS + half * 8).cast();
            _mm256_storeu_si256(place, _mm256_add_epi32(even[half], odd[half]));
        }
    }
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
    let mut parts = [[_mm256_setzero_si256(); 2]; T];
    if !first {
        for (t, part) in parts.iter_mut().enumerate() {
            part[0] = _mm256_loadu_si256(sums.add(t * 2 * ROWS).cast());
            part[1] = _mm256_loadu_si256(sums.add(t * 2 * ROWS + 8).cast());
        }
    }
    for step in 0..n_lines * 4 {
        let upper = _mm256_loadu_si256(panel.add(step * LINE).cast());
        let lower = _mm256_loadu_si256(panel.add(step * LINE + 32).cast());
        for t in 0..T {
            let act = broadcast(acts.add(t * act_stride + step * 4));
            parts[t][0] = _mm256_dpbusd_avx_epi32(parts[t][0], upper, act);
            parts[t][1] = _mm256_dpbusd_avx_epi32(parts[t][1], lower, act);
        }
    }
    for (t, part) in parts.iter().enumerate() {
        _mm256_storeu_si256(sums.add(t * 2 * ROWS).cast(), part[0]);
        _mm256_storeu_si256(sums.add(t * 2 * ROWS + 8).cast(), part[1]);
    }
}

/// Dot products of int8 rows with int8 activations, these as y + 128 in `low`; 128 times the row's sum is taken off again.
///
/// # Safety
/// AVX2 and AVX-VNNI; as [`ScreenJob`] says, with values within [-127, 127].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn screen_narrow(job: &ScreenJob) {
    for group in 0..job.n_groups {
        let mut line = 0;
        while line < job.n_lines {
            let end = job.n_lines.min(line + NARROW_LINES);
            let mut token = 0;
            while token < job.n_tokens {
                let left = job.n_tokens - token;
                let tile_tokens = if left <= 6 { left } else { left.div_ceil(left.div_ceil(6)) };
                match tile_tokens {
                    1 => narrow_tile::<1>(job, group, token, line, end),
                    2 => narrow_tile::<2>(job, group, token, line, end),
                    3 => narrow_tile::<3>(job, group, token, line, end),
                    4 => narrow_tile::<4>(job, group, token, line, end),
                    5 => narrow_tile::<5>(job, group, token, line, end),
                    _ => narrow_tile::<6>(job, group, token, line, end),
                }
                token += tile_tokens;
            }
            line = end;
        }
    }
}

#[inline(always)]
unsafe fn narrow_tile<const T: usize>(job: &ScreenJob, group: usize, token: usize, start: usize, end: usize) {
    let sums = job.sums.add((token * 2 + group) * ROWS);
    let mut parts = [[_mm256_setzero_si256(); 2]; T];
    for (t, part) in parts.iter_mut().enumerate() {
        for (half, sum) in part.iter_mut().enumerate() {
            *sum = if start > 0 {
                _mm256_loadu_si256(sums.add(t * 2 * ROWS + half * 8).cast())
            } else {
                let row_sums = _mm256_loadu_si256(job.row_sums.add(group * ROWS + half * 8).cast());
                _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32::<7>(row_sums))
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
            parts[t][0] = _mm256_dpbusd_avx_epi32(parts[t][0], act, upper);
            parts[t][1] = _mm256_dpbusd_avx_epi32(parts[t][1], act, lower);
        }
    }
    for (t, part) in parts.iter().enumerate() {
        _mm256_storeu_si256(sums.add(t * 2 * ROWS).cast(), part[0]);
        _mm256_storeu_si256(sums.add(t * 2 * ROWS + 8).cast(), part[1]);
    }
}

/// `rounds` rounds of multiply-adds on registers alone; how many were done.
///
/// # Safety
/// AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn multiply_all(rounds: u64) -> u64 {
    let (codes, acts) = std::hint::black_box((_mm256_set1_epi8(1), _mm256_set1_epi8(3)));
    let mut sums = [_mm256_setzero_si256(); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, codes, acts);
        }
    }
    std::hint::black_box(sums);
    rounds * 12 * 32
}

super::stamp!(Pair, Halves<Wide>, 6, 1, 1, 3, 2, "avx2,fma,f16c,avxvnni");
