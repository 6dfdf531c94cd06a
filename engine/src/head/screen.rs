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
//!
//! A second form of six bits a weight (`--head q6`) is three quarters as large again: q is a multiple of 4 within ±124, whose
//! lower two bits are not kept. Few tokens unpack it as it passes by, more of them into the first-level cache piece by
//! piece. Its scores are taken as they are: no bounds, another numerics id.
#![allow(unsafe_code)] // The pool's members write disjoint rows at load; only reads follow.

use crate::LoadError;
use crate::kernel::{Bounds, Kernels, LINE, ROWS, WideActs};
use crate::memory::Region;
use crate::model::Model;
use crate::pool::{Member, Pool, Shared};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Norms are multiplied by this: far above all roundings of computing them and of summing the bound.
const OUTWARD: f32 = 1.0001;
/// Rows whose exponentials are summed together where log-probabilities are wanted: members have whole pieces of them.
pub(crate) const PIECE_ROWS: usize = 64 * ROWS;
/// Inputs of six-bit rows that are unpacked at a time: 16 KiB for two groups.
const PIECE: usize = 512;
/// Tokens for which six-bit rows are unpacked into registers, once for each.
const FEW: usize = 2;
/// Shares of a row's largest weight that six bits may be spread over: outliers are cut off where that loses less.
const CUTS: [f32; 4] = [1.0, 0.85, 0.7, 0.5];

/// Bits a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    Eight,
    Six,
}

impl Bits {
    /// The largest quantised weight, in units of [`Bits::unit`].
    fn most(self) -> i16 {
        match self {
            Bits::Eight => 127,
            Bits::Six => 31,
        }
    }

    /// What quantised weights are multiples of: six bits are the upper ones of a byte.
    fn unit(self) -> i16 {
        match self {
            Bits::Eight => 1,
            Bits::Six => 4,
        }
    }

    /// Bytes of so many weights.
    fn bytes(self, n_weights: usize) -> usize {
        match self {
            Bits::Eight => n_weights,
            Bits::Six => n_weights / 4 * 3,
        }
    }
}

/// What a member needs for sums.
#[derive(Debug)]
pub(crate) struct Sums {
    /// (n_tokens, 32)
    whole: Vec<i32>,
    piece: Vec<i32>,
    /// Unpacked weights of a piece.
    lines: Vec<u8>,
}

impl Sums {
    pub(crate) fn new(n_tokens: usize) -> Sums {
        let sums = || vec![0; n_tokens * 2 * ROWS];
        Sums { whole: sums(), piece: sums(), lines: vec![0; PIECE * 2 * ROWS] }
    }
}

/// The screening copy of a head.
#[derive(Debug)]
pub(crate) struct Screen {
    bits: Bits,
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
    /// 1 if y is narrow, else 0.
    pub(crate) narrow: u32,
}

/// ‖e‖ / ‖x‖ up to which narrow activations are used. Their bound is then about two deviations of the scores wide: a few
/// hundred candidates instead of tens, still far below the cost of a second pass.
const NARROW_LIMIT: f32 = 0.03;

impl Screen {
    /// Bytes of anonymous memory.
    pub(crate) fn bytes(&self) -> u64 {
        let rows = self.n_groups * ROWS;
        (self.bits.bytes(rows * self.width) + rows * (4 * size_of::<f32>() + size_of::<i32>())) as u64
    }

    /// Quantises a model's head, each member the rows that it will read.
    pub(crate) fn build(
        model: &Model,
        bits: Bits,
        kernels: Kernels,
        pool: &mut Pool,
        huge_pages: bool,
    ) -> Result<Screen, LoadError> {
        let (width, vocab) = (model.hyper.hidden, model.hyper.vocab);
        let n_groups = vocab.div_ceil(ROWS);
        let rows = n_groups * ROWS;
        const WHAT: &str = "the screening head";
        let screen =
            Screen {
                bits,
                width,
                n_groups,
                lines: Region::new(bits.bytes(rows * width), huge_pages).map_err(|source| {
                    LoadError::Memory { what: WHAT, bytes: bits.bytes(rows * width) as u64, source }
                })?,
                scales: Shared::new(rows, WHAT)?,
                residuals: Shared::new(rows, WHAT)?,
                quants: Shared::new(rows, WHAT)?,
                weights: Shared::new(rows, WHAT)?,
                row_sums: Shared::new(rows, WHAT)?,
            };
        let head = model.head();
        let bad_row = AtomicUsize::new(usize::MAX);
        pool.run(&|member| {
            let mut buffers = Buffers::new(width);
            for group in screen.share(member) {
                // SAFETY: groups are shared out among members.
                let lines = unsafe { screen.lines.write::<u8>(screen.group_bytes(group)) };
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

    /// Where a group's lines stand.
    fn group_bytes(&self, group: usize) -> Range<usize> {
        let bytes = self.bits.bytes(ROWS * self.width);
        group * bytes..(group + 1) * bytes
    }

    /// False if the row is not finite.
    ///
    /// # Safety
    /// No other thread touches this row.
    unsafe fn set_row(&self, kernels: Kernels, row: usize, buffers: &mut Buffers, lines: &mut [u8]) -> bool {
        assert!(row < self.n_groups * ROWS);
        // A power of two, so that no product of scale and quant changes.
        let unit = self.bits.unit();
        let scale = self.quantise(kernels, buffers) / f32::from(unit);
        buffers.quants.iter_mut().for_each(|quant| *quant *= unit);
        let r = row % ROWS;
        let row_sum: i32 = buffers.quants.iter().map(|&quant| i32::from(quant)).sum();
        // SAFETY: in bounds, and the caller's promise for this row.
        unsafe { self.row_sums.pointer().add(row).write(row_sum) };
        match self.bits {
            Bits::Eight => {
                let fours = buffers.quants.as_chunks::<4>().0;
                for (four, line) in fours.iter().zip(lines.chunks_exact_mut(LINE)) {
                    for (place, &quant) in line[4 * r..4 * r + 4].iter_mut().zip(four) {
                        *place = quant as i8 as u8;
                    }
                }
            }
            Bits::Six => {
                let blocks = buffers.quants.as_chunks::<16>().0;
                for (block, lines) in blocks.iter().zip(lines.chunks_exact_mut(3 * LINE)) {
                    pack_six(block, lines, 4 * r);
                }
            }
        }
        let squares: i64 = buffers.quants.iter().map(|&quant| i64::from(quant) * i64::from(quant)).sum();
        let norm = |x: &[f32]| outward_norm(kernels, x);
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
        weight.is_finite()
    }

    /// Rounds the row in `buffers` to quants, with the error that this leaves; its scale.
    fn quantise(&self, kernels: Kernels, buffers: &mut Buffers) -> f32 {
        let most = self.bits.most();
        let largest = kernels.largest_magnitude(&buffers.row);
        // A row of zeros, or of numbers so small that the quotient is no normal number, keeps its residual as a whole.
        let scale_of = |cut: f32| if largest > 1e-30 { cut * largest / f32::from(most) } else { 1.0 };
        let mut round = |scale: f32| {
            kernels.round_i16(&buffers.row, scale, &mut buffers.quants, &mut buffers.error);
            for (quant, error) in buffers.quants.iter_mut().zip(&mut buffers.error) {
                let kept = (*quant).clamp(-most, most);
                *error += scale * f32::from(*quant - kept);
                *quant = kept;
            }
            kernels.dot_f32(&buffers.error, &buffers.error)
        };
        if self.bits == Bits::Eight {
            let scale = scale_of(1.0);
            round(scale);
            return scale;
        }
        let least = |best: (f32, f32), cut: f32| {
            let scale = scale_of(cut);
            let error = round(scale);
            if error < best.1 { (scale, error) } else { best }
        };
        let (scale, _) = CUTS.into_iter().fold((scale_of(1.0), f32::INFINITY), least);
        round(scale);
        scale
    }

    /// The largest int16 activation for which no dot product leaves int32.
    pub(crate) fn largest_activation(width: usize) -> f32 {
        (((1u64 << 31) - 1) / (127 * width as u64)).min(32767) as f32
    }

    /// Rounds one token's activations: to at most `narrow`, which the kernels multiply as bytes, if that is near enough, else to
    /// int16.
    pub(crate) fn round(
        kernels: Kernels,
        x: &[f32],
        narrow: Option<i16>,
        values: &mut [i16],
        high: &mut [u8],
        low: &mut [u8],
        error: &mut [f32],
    ) -> Rounded {
        let largest = kernels.largest_magnitude(x);
        let norm = outward_norm(kernels, x);
        if let Some(bound) = narrow {
            let step = if largest > 1e-30 { largest / f32::from(bound) } else { 1.0 };
            kernels.round_i16(x, step, values, error);
            let error_norm = outward_norm(kernels, error);
            if error_norm <= NARROW_LIMIT * norm {
                let offset = kernels.narrow_bound().unwrap_or(bound) + 1;
                for (value, low) in values.iter_mut().zip(low) {
                    *value = (*value).clamp(-bound, bound);
                    *low = (*value + offset) as u8;
                }
                return Rounded { step, norm, error_norm, narrow: 1 };
            }
        }
        let step = if largest > 1e-30 { largest / Screen::largest_activation(x.len()) } else { 1.0 };
        kernels.round_i16(x, step, values, error);
        let bound = Screen::largest_activation(x.len()) as i16;
        for ((value, high), low) in values.iter_mut().zip(high).zip(low) {
            // The quotient of the largest element may round up by one unit.
            *value = (*value).clamp(-bound, bound);
            let shifted = (i32::from(*value) + 32768) as u16;
            (*high, *low) = ((shifted >> 8) as u8, shifted as u8);
        }
        Rounded { step, norm, error_norm: outward_norm(kernels, error), narrow: 0 }
    }

    /// The packed rows of eight bits and their scales, for one who computes with them elsewhere.
    pub(crate) fn parts(&self) -> (&[u8], &[f32]) {
        // SAFETY: nothing writes after `build`.
        unsafe {
            (
                self.lines.read(0..self.bits.bytes(self.n_groups * ROWS * self.width)),
                self.scales.read(0..self.n_groups * ROWS),
            )
        }
    }

    /// The groups of 16 rows of one member: whole pieces of the sums that log-probabilities are measured against.
    pub(crate) fn share(&self, member: &Member<'_>) -> Range<usize> {
        const GROUPS: usize = PIECE_ROWS / ROWS;
        let pieces = member.share(self.n_groups.div_ceil(GROUPS));
        (pieces.start * GROUPS).min(self.n_groups)..(pieces.end * GROUPS).min(self.n_groups)
    }

    /// Approximate scores of one or two groups for several tokens: `place(token, group)` is where those of its 16 rows go.
    pub(crate) fn approximate<'o>(
        &self,
        kernels: Kernels,
        groups: Range<usize>,
        acts: &WideActs<'_>,
        rounded: &[Rounded],
        sums: &mut Sums,
        place: impl Fn(usize, usize) -> &'o mut [f32],
    ) {
        let rows = groups.start * ROWS..groups.end * ROWS;
        // SAFETY: nothing writes after `build`.
        let (scales, row_sums) = unsafe { (self.scales.read(rows.clone()), self.row_sums.read(rows)) };
        let bytes = self.group_bytes(groups.start).start..self.group_bytes(groups.end - 1).end;
        // SAFETY: as above.
        let lines = unsafe { self.lines.read::<u8>(bytes) };
        let Sums { whole, piece: of_piece, lines: unpacked } = sums;
        match self.bits {
            Bits::Eight => kernels.screen(lines, acts, rounded.len(), row_sums, whole),
            Bits::Six if rounded.len() <= FEW && !acts.narrow => {
                kernels.screen_six(lines, acts, rounded.len(), row_sums, whole);
            }
            Bits::Six => {
                let whole = &mut whole[..rounded.len() * 2 * ROWS];
                whole.fill(0);
                let none = [0; 2 * ROWS];
                for start in (0..self.width).step_by(PIECE) {
                    let width = PIECE.min(self.width - start);
                    let unpacked = &mut unpacked[..groups.len() * width * ROWS];
                    let from = self.bits.bytes(start * ROWS)..self.bits.bytes((start + width) * ROWS);
                    let groups_lines = lines.chunks_exact(self.bits.bytes(ROWS * self.width));
                    for (lines, unpacked) in groups_lines.zip(unpacked.chunks_exact_mut(width * ROWS)) {
                        kernels.unpack_six(&lines[from.clone()], unpacked);
                    }
                    let acts = WideActs {
                        width,
                        stride: acts.stride,
                        values: &acts.values[start..],
                        high: &acts.high[start..],
                        low: &acts.low[start..],
                        narrow: acts.narrow,
                    };
                    // What kernels take off for a row's sum is taken off once, with the first piece.
                    let row_sums = if start == 0 { row_sums } else { &none[..row_sums.len()] };
                    kernels.screen(unpacked, &acts, rounded.len(), row_sums, of_piece);
                    let pairs = whole.iter_mut().zip(&*of_piece);
                    pairs.for_each(|(whole, piece)| *whole = whole.wrapping_add(*piece));
                }
            }
        }
        let sums = whole;
        for (token, rounded) in rounded.iter().enumerate() {
            for (i, scales) in scales.as_chunks::<ROWS>().0.iter().enumerate() {
                let sums = &sums[(token * 2 + i) * ROWS..(token * 2 + i + 1) * ROWS];
                kernels.scale_sums(sums, scales, rounded.step, place(token, groups.start + i));
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

/// One row's 16 weights, multiples of 4, into three lines, its bytes from `at` on: see `unpack_six` of the kernels.
fn pack_six(weights: &[i16; 16], lines: &mut [u8], at: usize) {
    for j in 0..4 {
        let byte = |plane: usize| weights[4 * plane + j] as u8;
        for third in 0..3 {
            lines[third * LINE + at + j] = byte(third) | byte(3) >> (6 - 2 * third) & 3;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn what_is_packed_into_six_bits_comes_out_as_int8_lines() {
        let weight = |row: usize, k: usize| 4 * (((row * 31 + k * 17) % 63) as i16 - 31);
        let n_blocks = 8;
        let (mut packed, mut expected) = (vec![0; n_blocks * 3 * LINE], vec![0u8; n_blocks * 4 * LINE]);
        for row in 0..ROWS {
            for (block, lines) in packed.chunks_exact_mut(3 * LINE).enumerate() {
                pack_six(&std::array::from_fn(|k| weight(row, 16 * block + k)), lines, 4 * row);
            }
            for (four, line) in expected.chunks_exact_mut(LINE).enumerate() {
                for j in 0..4 {
                    line[4 * row + j] = weight(row, 4 * four + j) as i8 as u8;
                }
            }
        }
        for kernels in Isa::available().into_iter().filter_map(Kernels::new) {
            let mut unpacked = vec![0; expected.len()];
            kernels.unpack_six(&packed, &mut unpacked);
            assert_eq!(unpacked, expected, "{kernels:?}");
        }
    }
}
