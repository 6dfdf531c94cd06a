//! Ternary products where each 128 inputs have scales of their own, of weights and of activations.
//!
//! y = Σ over groups, ascending, of acc · (step · d), by fused multiply-add: acc is the exact integer sum of a group, step the
//! activations' step in it, d the row's scale. Packed rows have the f16 scales of all groups, 16 rows side by side, before
//! their lines. The sum over groups is written once; an instruction set adds how it multiplies the eight lines of one group.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `kernel.rs` checks the lengths.

use super::lanes::Lanes;
use super::{LINE, Quantised, ROWS};
use crate::gguf::ternary::GROUP;

/// Lines of a group of inputs.
pub(super) const GROUP_LINES: usize = GROUP / 16;
/// Tokens of a tile at most.
const TILE: usize = 12;
/// Up to this many tokens lines are decoded as they pass by.
const FEW: usize = 3;

/// Bytes of the scales of 16 rows of so many inputs.
pub(crate) fn group_scale_bytes(width: usize) -> usize {
    (width / GROUP * ROWS * size_of::<u16>()).next_multiple_of(LINE)
}

/// A product of one or two packed groups of 16 rows.
///
/// `groups` holds `n_groups` packed groups of `n_blocks` · 128 inputs; `acts` (n_tokens, act_stride); `activations` (n_tokens,
/// n_blocks); `sums` takes (n_tokens, 32); `panel` is 16 KiB of scratch.
pub(crate) struct GroupedJob {
    pub(super) groups: *const u8,
    pub(super) n_blocks: usize,
    pub(super) n_groups: usize,
    pub(super) acts: *const i8,
    pub(super) act_stride: usize,
    pub(super) activations: *const Quantised,
    pub(super) n_tokens: usize,
    pub(super) sums: *mut f32,
    pub(super) panel: *mut u8,
}

/// How an instruction set multiplies the lines of one group of inputs: sums of code · activation of `T` tokens, `less` taken
/// off in integers, as floats.
///
/// # Safety
/// CPU features of the implementation; eight lines, or the `G` · 2 KiB of a panel, and 128 activations a token, `stride` apart.
pub(super) trait Blocks {
    type Lane: Lanes;
    /// Tokens whose sums fit into the registers.
    const TILE: usize;
    /// Whether the sums of two groups of rows fit, which then share each load of activations.
    const TWO: bool;
    /// Straight from packed lines.
    unsafe fn stream<const T: usize>(
        lines: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [Self::Lane; T];
    /// The planes of eight lines, every `G`-th of the panel's.
    unsafe fn decode<const G: usize>(lines: *const u8, panel: *mut u8);
    /// From what [`Blocks::decode`] wrote, `G` groups of rows side by side.
    unsafe fn tile<const T: usize, const G: usize>(
        panel: *const u8,
        acts: *const i8,
        stride: usize,
        less: [i32; T],
    ) -> [[Self::Lane; G]; T];
}

/// The sums of all tokens.
///
/// # Safety
/// CPU features of `B`; as [`GroupedJob`] says.
#[inline(always)]
pub(super) unsafe fn product<B: Blocks>(job: &GroupedJob) {
    if job.n_tokens > FEW && job.n_groups == 2 && B::TWO {
        return many::<B, 2>(job, 0);
    }
    for group in 0..job.n_groups {
        match job.n_tokens {
            1 => few::<B, 1>(job, group),
            2 => few::<B, 2>(job, group),
            FEW => few::<B, FEW>(job, group),
            _ => many::<B, 1>(job, group),
        }
    }
}

/// Where the scales of a group of rows start, and its lines.
#[inline(always)]
unsafe fn parts_of(job: &GroupedJob, group: usize) -> (*const u16, *const u8) {
    let scale_bytes = group_scale_bytes(job.n_blocks * GROUP);
    let scales = job.groups.add(group * (scale_bytes + job.n_blocks * GROUP_LINES * LINE));
    (scales.cast(), scales.add(scale_bytes))
}

/// What is taken off the code sums of `T` tokens from `token` on, and their steps.
#[inline(always)]
unsafe fn of_tokens<const T: usize>(job: &GroupedJob, token: usize, block: usize) -> ([i32; T], [f32; T]) {
    let (mut less, mut steps) = ([0; T], [0.0; T]);
    for t in 0..T {
        let activation = &*job.activations.add((token + t) * job.n_blocks + block);
        (less[t], steps[t]) = (activation.sum, activation.step);
    }
    (less, steps)
}

#[inline(always)]
unsafe fn few<B: Blocks, const T: usize>(job: &GroupedJob, group: usize) {
    let (scales, lines) = parts_of(job, group);
    let mut parts = [B::Lane::splat(0.0); T];
    for block in 0..job.n_blocks {
        let (less, steps) = of_tokens::<T>(job, 0, block);
        let lines = lines.add(block * GROUP_LINES * LINE);
        let dots = B::stream::<T>(lines, job.acts.add(block * GROUP), job.act_stride, less);
        let scale = B::Lane::load_f16(scales.add(block * ROWS));
        for t in 0..T {
            parts[t] = dots[t].fma(scale.mul(B::Lane::splat(steps[t])), parts[t]);
        }
    }
    for (t, part) in parts.iter().enumerate() {
        part.store(job.sums.add(t * 2 * ROWS + group * ROWS));
    }
}

/// `G` groups of rows from the `first` on.
#[inline(always)]
unsafe fn many<B: Blocks, const G: usize>(job: &GroupedJob, first: usize) {
    let most = if B::TILE < TILE { B::TILE } else { TILE };
    for block in 0..job.n_blocks {
        let mut scale = [B::Lane::splat(0.0); G];
        for group in 0..G {
            let (scales, lines) = parts_of(job, first + group);
            B::decode::<G>(lines.add(block * GROUP_LINES * LINE), job.panel.add(group * LINE));
            scale[group] = B::Lane::load_f16(scales.add(block * ROWS));
        }
        let mut token = 0;
        while token < job.n_tokens {
            let left = job.n_tokens - token;
            let tile_tokens = if left <= most { left } else { left.div_ceil(left.div_ceil(most)) };
            macro_rules! tiles {
                ($($tokens:literal)*) => {
                    match tile_tokens {
                        $($tokens if $tokens <= B::TILE => tile::<B, $tokens, G>(job, first, token, block, scale),)*
                        _ => unreachable!("because a tile has at most twelve tokens"),
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
            token += tile_tokens;
        }
    }
}

#[inline(always)]
unsafe fn tile<B: Blocks, const T: usize, const G: usize>(
    job: &GroupedJob,
    first: usize,
    token: usize,
    block: usize,
    scale: [B::Lane; G],
) {
    let (less, steps) = of_tokens::<T>(job, token, block);
    let acts = job.acts.add(token * job.act_stride + block * GROUP);
    let dots = B::tile::<T, G>(job.panel, acts, job.act_stride, less);
    for t in 0..T {
        let step = B::Lane::splat(steps[t]);
        for group in 0..G {
            let place = job.sums.add((token + t) * 2 * ROWS + (first + group) * ROWS);
            let before = if block == 0 { B::Lane::splat(0.0) } else { B::Lane::load(place) };
            dots[t][group].fma(scale[group].mul(step), before).store(place);
        }
    }
}
