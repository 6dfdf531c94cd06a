//! Products of groups of inputs by `vpdpbusd`: a line is a register.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

use super::super::ahead::ask_ahead;
use super::super::grouped::{Blocks, GROUP_LINES};
use super::super::lanes::Lanes;
use super::{LINE, TILE, Whole, broadcast, decode};
use std::arch::x86_64::*;

/// Groups of inputs: a line is a register.
pub(in crate::kernel) struct Lines;

impl Blocks for Lines {
    type Lane = Whole;
    const TILE: usize = TILE;
    const TWO: bool = true;

    #[inline(always)]
    unsafe fn stream<const T: usize>(
        lines: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [Whole; T] {
        // One sum a plane, so that none waits for the one before.
        let mut parts = [[_mm512_setzero_si512(); 4]; T];
        for line in 0..GROUP_LINES {
            let at = lines.add(line * LINE);
            ask_ahead(at);
            let codes = decode(_mm512_loadu_si512(at.cast()));
            for (plane, &code) in codes.iter().enumerate() {
                for (t, part) in parts.iter_mut().enumerate() {
                    let act = broadcast(acts.add(t * stride + line * 16 + plane * 4));
                    part[plane] = _mm512_dpbusd_epi32(part[plane], code, act);
                }
            }
        }
        let mut out = [Whole::splat(0.0); T];
        for t in 0..T {
            let [a, b, c, d] = parts[t];
            let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
            out[t] = as_floats(sum, less[t]);
        }
        out
    }

    #[inline(always)]
    unsafe fn decode<const G: usize>(lines: *const u8, panel: *mut u8) {
        for i in 0..GROUP_LINES {
            let at = lines.add(i * LINE);
            ask_ahead(at);
            for (plane, &code) in decode(_mm512_loadu_si512(at.cast())).iter().enumerate() {
                _mm512_storeu_si512(panel.add((i * 4 + plane) * G * LINE).cast(), code);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const T: usize, const G: usize>(
        panel: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [[Whole; G]; T] {
        // What is taken off stands in the sums from the start, which saves a subtraction.
        let mut sums = [[_mm512_setzero_si512(); G]; T];
        for t in 0..T {
            sums[t] = [_mm512_set1_epi32(less[t].wrapping_neg()); G];
        }
        for step in 0..GROUP_LINES * 4 {
            let mut codes = [_mm512_setzero_si512(); G];
            for (group, code) in codes.iter_mut().enumerate() {
                *code = _mm512_loadu_si512(panel.add((step * G + group) * LINE).cast());
            }
            for t in 0..T {
                let act = broadcast(acts.add(t * stride + step * 4));
                for group in 0..G {
                    sums[t][group] = _mm512_dpbusd_epi32(sums[t][group], codes[group], act);
                }
            }
        }
        let mut out = [[Whole::splat(0.0); G]; T];
        for t in 0..T {
            for group in 0..G {
                out[t][group] = Whole(_mm512_cvtepi32_ps(sums[t][group]));
            }
        }
        out
    }
}

/// Sixteen sums to floats, `less` taken off.
#[inline(always)]
unsafe fn as_floats(sums: __m512i, less: i32) -> Whole {
    Whole(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(less))))
}
