//! The int8 copy of the output head: half the bytes of f16, with proven bounds on how far each score may be off.
//!
//! Per row v of width K: scale s = max|w| / 127, q = round(w / s), residual r = w − s q. Per token: step t = max|x| / y_max,
//! y = round(x / t) as int16, error e = x − t y; y_max keeps the dot product ⟨q, y⟩ within int32. With A = s t ⟨q, y⟩ and L
//! the canonical f32 score,
//!
//! |L − A| ≤ ‖r‖ ‖x‖ + s ‖q‖ ‖e‖ + g ‖w‖ ‖x‖ + 3·2⁻²⁴ |A|,  g = 1.01 (K/16 + 5) 2⁻²⁴:
//!
//! the first term for the row's rounding, the second for the token's, the third for the canonical dot's own rounding (K/16
//! fused steps a lane and the tree), the last for the three roundings in A. All norms are kept a little too large, so that
//! evaluating the sum in f32 keeps it a bound.
#![allow(unsafe_code)] // The pool's members write disjoint rows at load; only reads follow.

use crate::LoadError;
use crate::kernel::{Bounds, Kernels, LINE, ROWS, WideActs};
use crate::memory::Region;
use crate::model::Model;
use crate::pool::{Pool, Shared};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Norms are multiplied by this: far above all roundings of computing them and of summing the bound.
const OUTWARD: f32 = 1.0001;

/// The screening copy of a head.
#[derive(Debug)]
pub(crate) struct Screen {
    width: usize,
    n_groups: usize,
    lines: Region,
    scales: Shared<f32>,
    residuals: Shared<f32>,
    quants: Shared<f32>,
    weights: Shared<f32>,
    row_sums: Shared<i32>,
}

/// One token's int16 activations and the numbers its bounds need.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Rounded {
    /// t of the module's text.
    pub(crate) step: f32,
    /// ‖x‖ and ‖e‖, a little too large.
    pub(crate) norm: f32,
    pub(crate) error_norm: f32,
}

impl Screen {
    /// Bytes of anonymous memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.n_groups * ROWS * (self.width + 5 * size_of::<f32>())) as u64
    }

    /// Quantises a model's head, each member the rows that it will read.
    pub(crate) fn build(
        model: &Model,
        kernels: Kernels,
        pool: &mut Pool,
        huge_pages: bool,
    ) -> Result<Screen, LoadError> {
        let (width, vocab) = (model.hyper.hidden, model.hyper.vocab);
        let n_groups = vocab.div_ceil(ROWS);
        let rows = n_groups * ROWS;
        let screen = Screen {
            width,
            n_groups,
            lines: Region::new(rows * width, huge_pages).map_err(|source| LoadError::Memory {
                what: "the screening head",
                bytes: (rows * width) as u64,
                source,
            })?,
            scales: Shared::new(rows),
            residuals: Shared::new(rows),
            quants: Shared::new(rows),
            weights: Shared::new(rows),
            row_sums: Shared::new(rows),
        };
        let head = model.head();
        let bad_row = AtomicUsize::new(usize::MAX);
        pool.run(&|member| {
            let mut buffers = Buffers::new(width);
            for group in member.share(n_groups) {
                // SAFETY: groups are shared out among members.
                let lines =
                    unsafe { screen.lines.write::<u8>(group * ROWS * width..(group + 1) * ROWS * width) };
                for r in 0..ROWS.min(vocab - group * ROWS) {
                    let row = group * ROWS + r;
                    match head.halves(row..row + 1) {
                        Some(halves) => kernels.widen(halves, &mut buffers.row),
                        None => head.read(row, &mut buffers.row),
                    }
                    // SAFETY: as above: this row is this member's.
                    if !unsafe { screen.set_row(kernels, row, &mut buffers, lines) } {
                        bad_row.fetch_min(row, Ordering::Relaxed);
                    }
                }
            }
        });
        match bad_row.into_inner() {
            usize::MAX => Ok(screen),
            row => Err(LoadError::Tensor {
                name: model.head_name().to_owned(),
                reason: format!("row {row} holds a number that is not finite"),
            }),
        }
    }

    /// False if the row is not finite.
    ///
    /// # Safety
    /// No other thread touches this row.
    unsafe fn set_row(&self, kernels: Kernels, row: usize, buffers: &mut Buffers, lines: &mut [u8]) -> bool {
        let norm = |x: &[f32]| outward_norm(kernels, x);
        let largest = kernels.largest_magnitude(&buffers.row);
        // A row of zeros, or of numbers so small that the quotient is no normal number, keeps its residual as a whole.
        let scale = if largest > 1e-30 { largest / 127.0 } else { 1.0 };
        kernels.round_i16(&buffers.row, scale, &mut buffers.quants, &mut buffers.error);
        assert!(row < self.n_groups * ROWS);
        let r = row % ROWS;
        let (mut sum, mut squares) = (0i32, 0i64);
        for (four, line) in buffers.quants.as_chunks::<4>().0.iter().zip(lines.chunks_exact_mut(LINE)) {
            for (place, &quant) in line[4 * r..4 * r + 4].iter_mut().zip(four) {
                let quant = quant.clamp(-127, 127);
                *place = quant as i8 as u8;
                sum += i32::from(quant);
                squares += i64::from(quant) * i64::from(quant);
            }
        }
        let weight = norm(&buffers.row);
        for (place, value) in [
            (&self.scales, scale),
            (&self.residuals, norm(&buffers.error)),
            (&self.quants, (squares as f32).sqrt() * scale * OUTWARD),
            (&self.weights, weight),
        ] {
            // SAFETY: the caller's promise.
            unsafe { place.pointer().add(row).write(value) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.row_sums.pointer().add(row).write(sum) };
        weight.is_finite()
    }

    /// The largest int16 activation for which no dot product leaves int32.
    pub(crate) fn largest_activation(width: usize) -> f32 {
        (((1u64 << 31) - 1) / (127 * width as u64)).min(32767) as f32
    }

    /// Rounds one token's activations.
    pub(crate) fn round(
        kernels: Kernels,
        x: &[f32],
        values: &mut [i16],
        high: &mut [u8],
        low: &mut [u8],
        error: &mut [f32],
    ) -> Rounded {
        let largest = kernels.largest_magnitude(x);
        let step = if largest > 1e-30 { largest / Screen::largest_activation(x.len()) } else { 1.0 };
        kernels.round_i16(x, step, values, error);
        let bound = Screen::largest_activation(x.len()) as i16;
        for ((value, high), low) in values.iter_mut().zip(high).zip(low) {
            // The quotient of the largest element may round up by one unit.
            *value = (*value).clamp(-bound, bound);
            let shifted = (i32::from(*value) + 32768) as u16;
            (*high, *low) = ((shifted >> 8) as u8, shifted as u8);
        }
        Rounded { step, norm: outward_norm(kernels, x), error_norm: outward_norm(kernels, error) }
    }

    /// Groups of 16 rows.
    pub(crate) fn n_groups(&self) -> usize {
        self.n_groups
    }

    /// Approximate scores of one or two groups for several tokens: `set(token, group, scores of its 16 rows)`.
    pub(crate) fn approximate(
        &self,
        kernels: Kernels,
        groups: Range<usize>,
        acts: &WideActs<'_>,
        rounded: &[Rounded],
        sums: &mut [i32],
        mut set: impl FnMut(usize, usize, [f32; ROWS]),
    ) {
        let rows = groups.start * ROWS..groups.end * ROWS;
        // SAFETY: nothing writes after `build`.
        let (lines, scales, row_sums) = unsafe {
            (
                self.lines.read::<u8>(rows.start * self.width..rows.end * self.width),
                self.scales.read(rows.clone()),
                self.row_sums.read(rows),
            )
        };
        kernels.screen(lines, acts, rounded.len(), row_sums, sums);
        for (token, rounded) in rounded.iter().enumerate() {
            for (i, scales) in scales.as_chunks::<ROWS>().0.iter().enumerate() {
                let sums = &sums[(token * 2 + i) * ROWS..(token * 2 + i + 1) * ROWS];
                let scores = std::array::from_fn(|r| sums[r] as f32 * (scales[r] * rounded.step));
                set(token, groups.start + i, scores);
            }
        }
    }

    /// The bounds of some rows for one token.
    pub(crate) fn bounds<'a>(
        &'a self,
        rows: Range<usize>,
        scores: &'a [f32],
        rounded: &Rounded,
    ) -> Bounds<'a> {
        let unit = 1.0 / (1 << 24) as f32;
        let canonical = 1.01 * (self.width as f32 / 16.0 + 5.0) * unit;
        // SAFETY: nothing writes after `build`.
        unsafe {
            Bounds {
                scores,
                residuals: self.residuals.read(rows.clone()),
                quants: self.quants.read(rows.clone()),
                weights: self.weights.read(rows),
                factors: [
                    rounded.norm * OUTWARD,
                    rounded.error_norm * OUTWARD,
                    canonical * rounded.norm * OUTWARD,
                    // Three roundings in the score, and those of adding the error to it.
                    16.0 * unit,
                ],
            }
        }
    }
}

/// ‖x‖, a little too large, also where squares underflow.
fn outward_norm(kernels: Kernels, x: &[f32]) -> f32 {
    kernels.dot_f32(x, x).sqrt() * OUTWARD + 1e-16
}

/// A member's buffers while building.
struct Buffers {
    row: Vec<f32>,
    error: Vec<f32>,
    quants: Vec<i16>,
}

impl Buffers {
    fn new(width: usize) -> Buffers {
        Buffers { row: vec![0.0; width], error: vec![0.0; width], quants: vec![0; width] }
    }
}
