//! Plain Rust: the reference for every other instruction set, and what CPUs without AVX2 run.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Same signatures as the vector kernels; `kernel.rs` checks the lengths.

use super::grouped::{Blocks, GROUP_LINES};
use super::lanes::Lanes;
use super::tl2::{look_up, tabulate};
use super::{LINE, ROWS, ScreenJob, TernaryJob, scores};
use crate::gguf::rows::{f16_to_f32, f32_to_f16};

impl Lanes for [f32; 16] {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        from.cast::<[f32; 16]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; 16]>().write_unaligned(self);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        from.cast::<[u16; 16]>().read_unaligned().map(f16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        from.cast::<[i8; 16]>().read_unaligned().map(f32::from)
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bounded = self.max([-65504.0; 16]).min([65504.0; 16]);
        to.cast::<[u16; 16]>().write_unaligned(bounded.map(f32_to_f16));
    }
    #[inline(always)]
    unsafe fn load_i32_minus(from: *const i32, subtrahend: i32) -> Self {
        from.cast::<[i32; 16]>().read_unaligned().map(|value| value.wrapping_sub(subtrahend) as f32)
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        to.cast::<[i8; 16]>().write_unaligned(self.map(|value| value as i8));
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        to.cast::<[i16; 16]>().write_unaligned(self.map(|value| value as i16));
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32) {
        to.cast::<[i32; 16]>().write_unaligned(self.map(|value| value as i32));
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] / other[i])
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(factor[i], addend[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] < other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        self.map(|value| f32::from_bits(((value as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn select_below(x: Self, bound: Self, below: Self, otherwise: Self) -> Self {
        std::array::from_fn(|i| if x[i] < bound[i] { below[i] } else { otherwise[i] })
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> u16 {
        (0..16).fold(0, |mask, i| mask | u16::from(self[i] >= bound[i]) << i)
    }
}

/// Sums of code · activation for one or two groups of 16 rows.
///
/// # Safety
/// As [`TernaryJob`] says.
pub(super) unsafe fn ternary(job: &TernaryJob) {
    for group in 0..job.n_groups {
        for token in 0..job.n_tokens {
            let acts = job.acts.add(token * job.act_stride);
            let mut sums = [0i32; ROWS];
            for line in 0..job.n_lines {
                let codes =
                    job.lines.add((group * job.n_lines + line) * LINE).cast::<[u8; LINE]>().read_unaligned();
                for plane in 0..4 {
                    let four = acts.add(line * 16 + plane * 4).cast::<[i8; 4]>().read_unaligned();
                    for (row, sum) in sums.iter_mut().enumerate() {
                        for (j, &activation) in four.iter().enumerate() {
                            let code = codes[4 * row + j] >> (2 * plane) & 3;
                            *sum += i32::from(code) * i32::from(activation);
                        }
                    }
                }
            }
            job.sums.add(token * 2 * ROWS + group * ROWS).cast::<[i32; ROWS]>().write_unaligned(sums);
        }
    }
}

/// Groups of inputs, by plain Rust.
pub(super) struct Plain;

impl Blocks for Plain {
    type Lane = [f32; 16];
    const TILE: usize = 1;
    const TWO: bool = false;

    #[inline(always)]
    unsafe fn stream<const T: usize>(
        lines: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [[f32; 16]; T] {
        let mut panel = [0; GROUP_LINES * 4 * LINE];
        Self::decode::<1>(lines, panel.as_mut_ptr());
        Self::tile::<T, 1>(panel.as_ptr(), acts, stride, less).map(|[sums]| sums)
    }

    #[inline(always)]
    unsafe fn decode<const G: usize>(lines: *const u8, panel: *mut u8) {
        for line in 0..GROUP_LINES {
            for plane in 0..4 {
                for i in 0..LINE {
                    let code = *lines.add(line * LINE + i) >> (2 * plane) & 3;
                    panel.add((line * 4 + plane) * G * LINE + i).write(code);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const T: usize, const G: usize>(
        panel: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [[[f32; 16]; G]; T] {
        let sums = |t: usize, group: usize| {
            let mut sums = [0i32; ROWS];
            for step in 0..GROUP_LINES * 4 {
                let codes = panel.add((step * G + group) * LINE).cast::<[u8; LINE]>().read_unaligned();
                let four = acts.add(t * stride + step * 4).cast::<[i8; 4]>().read_unaligned();
                for (row, sum) in sums.iter_mut().enumerate() {
                    for (j, &activation) in four.iter().enumerate() {
                        *sum += i32::from(codes[4 * row + j]) * i32::from(activation);
                    }
                }
            }
            sums.map(|sum| (sum - less[t]) as f32)
        };
        std::array::from_fn(|t| std::array::from_fn(|group| sums(t, group)))
    }
}

/// Int8 activations are int16 ones here.
pub(super) use screen as screen_narrow;

/// Dot products of one or two groups of 16 int8 rows with int16 activations.
///
/// # Safety
/// As [`ScreenJob`] says.
pub(super) unsafe fn screen(job: &ScreenJob) {
    for group in 0..job.n_groups {
        for token in 0..job.n_tokens {
            let y = job.values.add(token * job.stride);
            let mut sums = [0i32; ROWS];
            for line in 0..job.n_lines {
                let at = job.lines.add((group * job.n_lines + line) * LINE);
                let quants = at.cast::<[i8; LINE]>().read_unaligned();
                let four = y.add(line * 4).cast::<[i16; 4]>().read_unaligned();
                add_products(&mut sums, &quants, four);
            }
            job.sums.add((token * 2 + group) * ROWS).cast::<[i32; ROWS]>().write_unaligned(sums);
        }
    }
}

/// [`screen`] on packed lines of six bits.
///
/// # Safety
/// As [`ScreenJob`] says.
pub(super) unsafe fn screen_six(job: &ScreenJob) {
    for group in 0..job.n_groups {
        for token in 0..job.n_tokens {
            let y = job.values.add(token * job.stride);
            let mut sums = [0i32; ROWS];
            for block in 0..job.n_lines / 4 {
                let at = job.lines.add((group * job.n_lines / 4 + block) * 3 * LINE);
                let mut lines = [0u8; 4 * LINE];
                scores::unpack_six(&at.cast::<[u8; 3 * LINE]>().read_unaligned(), &mut lines);
                for (plane, line) in lines.as_chunks::<LINE>().0.iter().enumerate() {
                    let four = y.add(block * 16 + plane * 4).cast::<[i16; 4]>().read_unaligned();
                    add_products(&mut sums, &line.map(|byte| byte as i8), four);
                }
            }
            job.sums.add((token * 2 + group) * ROWS).cast::<[i32; ROWS]>().write_unaligned(sums);
        }
    }
}

/// Sixteen rows of four int8 weights times four activations.
fn add_products(sums: &mut [i32; ROWS], quants: &[i8; LINE], four: [i16; 4]) {
    for (row, sum) in sums.iter_mut().enumerate() {
        for (j, &value) in four.iter().enumerate() {
            *sum = sum.wrapping_add(i32::from(quants[4 * row + j]) * i32::from(value));
        }
    }
}

/// Reads all of `bytes` and does nothing with them: the memory's ceiling.
///
/// # Safety
/// None; unsafe as its siblings are.
pub(super) unsafe fn read_all(bytes: &[u8], _ask: bool) -> u64 {
    bytes.as_chunks::<8>().0.iter().fold(0, |all, word| all | u64::from_le_bytes(*word))
}

/// `rounds` rounds of multiply-adds; how many were done.
///
/// # Safety
/// None; unsafe as its siblings are.
pub(super) unsafe fn multiply_all(rounds: u64) -> u64 {
    let mut sums = [0i32; 16];
    for _ in 0..rounds {
        let (code, act) = std::hint::black_box((1i32, 3i32));
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(code * (act + i as i32));
        }
    }
    std::hint::black_box(sums);
    rounds * 16
}

super::stamp!([f32; 16], Plain, 4, 1, 1, 3, 2);
