//! The output head's kernels: screening products, bounds, noise and weights of scores.
#![allow(unsafe_code)] // Each safe function proves the lengths that its kernel needs.

use super::scores::BINS;
use super::{Bounds, Cut, Kernels, LINE, NoisyJob, ROWS};
use crate::Isa;

/// A screening product of one or two groups of 16 int8 rows with int16 activations.
///
/// `lines` holds `n_groups · n_lines` lines of 16 rows × 4 weights; the activations stand three times, as int16 `values` and as the
/// bytes `high` and `low` of values + 32768, each (n_tokens, stride); `row_sums` are the sums of the rows, or 0 where a
/// product in pieces has taken them off before; `sums` takes (n_tokens, 32). The dot products fit into int32 (see `head`).
/// For `screen_six` the lines are packed, three for every four of `n_lines`, which four divides.
pub(crate) struct ScreenJob {
    pub(super) lines: *const u8,
    pub(super) n_lines: usize,
    pub(super) n_groups: usize,
    pub(super) values: *const i16,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) high: *const u8,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) low: *const u8,
    pub(super) stride: usize,
    pub(super) n_tokens: usize,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) row_sums: *const i32,
    pub(super) sums: *mut i32,
}

impl Kernels {
    /// Indices at which the bound, upper (`sign` 1) or lower (-1), is at least `threshold`: appended to `hits`.
    pub(crate) fn reach(&self, bounds: &Bounds<'_>, sign: f32, threshold: f32, hits: &mut Vec<u32>) {
        let n = bounds.scores.len();
        assert!(n.is_multiple_of(16) && bounds.residuals.len() == n && bounds.quants.len() == n);
        assert!(bounds.weights.len() == n);
        // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.reach)(bounds, sign, threshold, hits) }
    }

    /// Tokens that may win with noise, as indices of the job's scores, and few others: appended to `hits`.
    pub(crate) fn noisy(&self, job: &NoisyJob<'_>, hits: &mut Vec<u32>) {
        let n = job.bounds.scores.len();
        assert!(n.is_multiple_of(16) && job.bounds.residuals.len() == n && job.bounds.quants.len() == n);
        assert!(job.bounds.weights.len() == n && job.first_id.is_multiple_of(4));
        // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.noisy)(job, hits) }
    }

    /// Adds the tokens' weights to the bins of their scores.
    pub(crate) fn weigh(&self, scores: &[f32], cut: Cut, bins: &mut [u64; BINS]) {
        assert!(scores.len().is_multiple_of(16));
        // SAFETY: as above.
        unsafe { (self.table.weigh)(scores, cut, bins) }
    }

    /// The largest of some numbers; negative infinity for none.
    pub(crate) fn largest(&self, x: &[f32]) -> f32 {
        assert!(x.len().is_multiple_of(16));
        // SAFETY: as above.
        unsafe { (self.table.largest)(x) }
    }

    /// Sum of exp(x - highest).
    pub(crate) fn exp_sum(&self, x: &[f32], highest: f32) -> f64 {
        assert!(x.len().is_multiple_of(16));
        // SAFETY: as above.
        unsafe { (self.table.exp_sum)(x, highest) }
    }

    /// Integer sums of one token to scores: out = sum · (scale · step).
    pub(crate) fn scale_sums(&self, sums: &[i32], scales: &[f32], step: f32, out: &mut [f32]) {
        assert!(sums.len() == out.len() && scales.len() == out.len() && out.len().is_multiple_of(16));
        // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.scale_sums)(sums, scales, step, out) }
    }

    /// Lines of int8 weights from lines of six bits: `from` has three for four of `to`.
    pub(crate) fn unpack_six(&self, from: &[u8], to: &mut [u8]) {
        assert!(from.len().is_multiple_of(3 * LINE) && to.len() == from.len() / 3 * 4);
        // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.unpack_six)(from, to) }
    }

    /// The largest magnitude of narrow activations, which are faster than int16 ones; `None` where they are not.
    pub(crate) fn narrow_bound(&self) -> Option<i16> {
        match self.isa {
            Isa::Scalar => None,
            // Two products are added in int16.
            Isa::Avx2 => Some(63),
            Isa::AvxVnni | Isa::Avx512 => Some(127),
        }
    }

    /// Screening sums of one or two groups, as many as `row_sums` has: (n_tokens, 32), exact as long as they fit into int32.
    pub(crate) fn screen(
        &self,
        lines: &[u8],
        acts: &WideActs<'_>,
        n_tokens: usize,
        row_sums: &[i32],
        sums: &mut [i32],
    ) {
        let job = ScreenJob::new(lines, LINE, acts, n_tokens, row_sums, sums);
        let screen = if acts.narrow { self.table.screen_narrow } else { self.table.screen };
        // SAFETY: `new` checked the lengths and `Kernels::new` the CPU.
        unsafe { screen(&job) }
    }

    /// [`Kernels::screen`] on packed lines of six bits, which are unpacked as they pass by, and acts that are not narrow: for
    /// few tokens.
    pub(crate) fn screen_six(
        &self,
        lines: &[u8],
        acts: &WideActs<'_>,
        n_tokens: usize,
        row_sums: &[i32],
        sums: &mut [i32],
    ) {
        assert!(!acts.narrow);
        let job = ScreenJob::new(lines, LINE / 4 * 3, acts, n_tokens, row_sums, sums);
        // SAFETY: as in `screen`.
        unsafe { (self.table.screen_six)(&job) }
    }
}

impl ScreenJob {
    /// `line_bytes` is what four inputs of a group's rows take.
    fn new(
        lines: &[u8],
        line_bytes: usize,
        acts: &WideActs<'_>,
        n_tokens: usize,
        row_sums: &[i32],
        sums: &mut [i32],
    ) -> ScreenJob {
        let (width, stride) = (acts.width, acts.stride);
        let n_groups = row_sums.len() / ROWS;
        assert!(n_groups == 1 || n_groups == 2);
        assert!(width.is_multiple_of(128) && lines.len() >= n_groups * width / 4 * line_bytes);
        assert!(n_tokens > 0 && stride >= width && sums.len() >= n_tokens * 2 * ROWS);
        assert!(acts.values.len() >= (n_tokens - 1) * stride + width);
        assert!(acts.high.len() == acts.values.len() && acts.low.len() == acts.values.len());
        ScreenJob {
            lines: lines.as_ptr(),
            n_lines: width / 4,
            n_groups,
            values: acts.values.as_ptr(),
            high: acts.high.as_ptr(),
            low: acts.low.as_ptr(),
            stride,
            n_tokens,
            row_sums: row_sums.as_ptr(),
            sums: sums.as_mut_ptr(),
        }
    }
}

/// Rows of int16 activations, `width` of every `stride`, as the screening kernels want them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WideActs<'a> {
    pub(crate) width: usize,
    pub(crate) stride: usize,
    pub(crate) values: &'a [i16],
    /// Upper and lower byte of value + 32768; of narrow values, `low` is value + bound + 1 and `high` is not read.
    pub(crate) high: &'a [u8],
    pub(crate) low: &'a [u8],
    /// All values lie within the [`Kernels::narrow_bound`].
    pub(crate) narrow: bool,
}
