//! Products of groups of inputs in 256-bit registers: a line is two of them. How a register of codes is multiplied is the
//! instruction set's: `vpmaddubsw` here, `vpdpbusd` in `avx_vnni.rs`.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

use super::super::ahead::ask_ahead;
use super::super::grouped::{Blocks, GROUP_LINES};
use super::super::lanes::Lanes;
use super::{LINE, Pair, broadcast, decode};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// How an instruction set sums up the products of one group of inputs, four inputs of eight rows at a time.
///
/// # Safety
/// CPU features of the implementation; codes are at most 2.
pub(in crate::kernel) trait Multiply {
    /// `sum` with 32 codes · activations added, 32 times at most.
    unsafe fn add(sum: __m256i, codes: __m256i, acts: __m256i) -> __m256i;
    /// Eight sums in int32.
    unsafe fn whole(sum: __m256i) -> __m256i;
}

/// Groups of inputs, each line in two halves.
pub(in crate::kernel) struct Halves<M>(PhantomData<M>);

impl<M: Multiply> Blocks for Halves<M> {
    type Lane = Pair;
    const TILE: usize = 6;
    const TWO: bool = false;

    #[inline(always)]
    unsafe fn stream<const T: usize>(
        lines: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [Pair; T] {
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for line in 0..GROUP_LINES {
            let at = lines.add(line * LINE);
            ask_ahead(at);
            let upper = decode(_mm256_loadu_si256(at.cast()));
            let lower = decode(_mm256_loadu_si256(at.add(32).cast()));
            for plane in 0..4 {
                for (t, sum) in sums.iter_mut().enumerate() {
                    let act = broadcast(acts.add(t * stride + line * 16 + plane * 4));
                    sum[0] = M::add(sum[0], upper[plane], act);
                    sum[1] = M::add(sum[1], lower[plane], act);
                }
            }
        }
        floats::<M, T>(sums, less)
    }

    #[inline(always)]
    unsafe fn decode<const G: usize>(lines: *const u8, panel: *mut u8) {
        for i in 0..GROUP_LINES {
            let at = lines.add(i * LINE);
            ask_ahead(at);
            let upper = decode(_mm256_loadu_si256(at.cast()));
            let lower = decode(_mm256_loadu_si256(at.add(32).cast()));
            for plane in 0..4 {
                let to = panel.add((i * 4 + plane) * G * LINE);
                _mm256_storeu_si256(to.cast(), upper[plane]);
                _mm256_storeu_si256(to.add(32).cast(), lower[plane]);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const T: usize, const G: usize>(
        panel: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [[Pair; G]; T] {
        let mut out = [[Pair::splat(0.0); G]; T];
        for group in 0..G {
            let mut sums = [[_mm256_setzero_si256(); 2]; T];
            for step in 0..GROUP_LINES * 4 {
                let codes = panel.add((step * G + group) * LINE);
                let upper = _mm256_loadu_si256(codes.cast());
                let lower = _mm256_loadu_si256(codes.add(32).cast());
                for t in 0..T {
                    let act = broadcast(acts.add(t * stride + step * 4));
                    sums[t][0] = M::add(sums[t][0], upper, act);
                    sums[t][1] = M::add(sums[t][1], lower, act);
                }
            }
            for (out, sum) in out.iter_mut().zip(floats::<M, T>(sums, less)) {
                out[group] = sum;
            }
        }
        out
    }
}

/// Sixteen sums a token to floats, `less` taken off.
#[inline(always)]
unsafe fn floats<M: Multiply, const T: usize>(sums: [[__m256i; 2]; T], less: [i32; T]) -> [Pair; T] {
    let mut out = [Pair::splat(0.0); T];
    for t in 0..T {
        let less = _mm256_set1_epi32(less[t]);
        out[t] = Pair(
            _mm256_cvtepi32_ps(_mm256_sub_epi32(M::whole(sums[t][0]), less)),
            _mm256_cvtepi32_ps(_mm256_sub_epi32(M::whole(sums[t][1]), less)),
        );
    }
    out
}

/// Sums of pairs in int16: the 32 steps of a group fit.
pub(super) struct Narrow;

impl Multiply for Narrow {
    #[inline(always)]
    unsafe fn add(sum: __m256i, codes: __m256i, acts: __m256i) -> __m256i {
        _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, acts))
    }

    #[inline(always)]
    unsafe fn whole(sum: __m256i) -> __m256i {
        _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
    }
}
