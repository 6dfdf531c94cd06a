//! Canonical dot products of sixteen rows of f16 with several tokens, once for all instruction sets.
//!
//! A piece of the rows is widened once, into scratch that stays in the first-level cache, and tiles of a few tokens by a few
//! rows pass over it with their sums in registers. Between pieces the sums wait in scratch as whole vectors: each takes its
//! products in the order of `lanes.rs`, so the bits are those of one dot product by itself. Meanwhile the next piece's rows are
//! asked for.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Vector loads by pointer; `kernel.rs` checks the lengths.

use super::ROWS;
use super::lanes::Lanes;

/// Inputs that are widened at a time: 24 KiB of floats for sixteen rows.
const PIECE: usize = 384;
/// Tokens of one pass over the rows at most.
const TOKENS: usize = 36;

/// Scratch of one thread.
#[repr(C, align(64))]
pub(crate) struct Widened {
    /// A piece of the rows: (rows of a tile, inputs / 16, rows in a tile, 16).
    panel: [f32; ROWS * PIECE],
    /// (tokens, rows, 16)
    sums: [f32; TOKENS * ROWS * 16],
}

impl Widened {
    pub(crate) const EMPTY: Widened = Widened { panel: [0.0; ROWS * PIECE], sums: [0.0; TOKENS * ROWS * 16] };
}

/// Sixteen rows of f16, (16, width), with tokens of f32, (n_tokens, width): `out[token · out_stride + row]`.
pub(crate) struct HalvesJob<'a> {
    pub(super) rows: *const u16,
    pub(super) tokens: *const f32,
    pub(super) n_tokens: usize,
    pub(super) width: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) scratch: &'a mut Widened,
}

/// Tiles have at most `MOST` tokens and `R` rows, as many as the registers hold sums of.
///
/// # Safety
/// CPU features of `L`; `width` a multiple of 16; readable and writable elements behind the pointers as the job says.
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, const MOST: usize, const R: usize>(job: &mut HalvesJob<'_>) {
    let mut first = 0;
    while first < job.n_tokens {
        let n_tokens = (job.n_tokens - first).min(TOKENS);
        let tokens = job.tokens.add(first * job.width);
        let mut start = 0;
        while start < job.width {
            let n = PIECE.min(job.width - start);
            widen::<L, R>(job, start, n);
            tiles::<L, MOST, R>(job, tokens, n_tokens, start, n);
            start += n;
        }
        for token in 0..n_tokens {
            let mut sums = [L::splat(0.0); ROWS];
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(job.scratch.sums.as_ptr().add((token * ROWS + row) * 16));
            }
            L::sums(sums).store(job.out.add((first + token) * job.out_stride));
        }
        first += n_tokens;
    }
}

/// Widens `n` inputs of all rows.
#[inline(always)]
unsafe fn widen<L: Lanes, const R: usize>(job: &mut HalvesJob<'_>, start: usize, n: usize) {
    for row in 0..ROWS {
        let from = job.rows.add(row * job.width + start);
        let to = job.scratch.panel.as_mut_ptr().add((row / R * R * (n / 16) + row % R) * 16);
        for i in 0..n / 16 {
            L::load_f16(from.add(i * 16)).store(to.add(i * R * 16));
        }
    }
}

/// All tiles of one piece.
#[inline(always)]
unsafe fn tiles<L: Lanes, const MOST: usize, const R: usize>(
    job: &mut HalvesJob<'_>,
    tokens: *const f32,
    n_tokens: usize,
    start: usize,
    n: usize,
) {
    let n_tiles = n_tokens.div_ceil(MOST);
    // What follows: the next piece of these rows, or the first one of the rows after them.
    let next = if start + n < job.width { start + n } else { ROWS * job.width };
    let mut token = 0;
    for tile in 0..n_tiles {
        let t = (n_tokens - token).div_ceil(n_tiles - tile);
        for row in (0..ROWS).step_by(R) {
            let mut ahead = [job.rows.cast::<u8>(); R];
            for (r, ahead) in ahead.iter_mut().enumerate() {
                // Each tile asks for its part of it.
                let at = (row + r) * job.width + next;
                *ahead = ahead.wrapping_add(2 * (at + tile * n / n_tiles));
            }
            let part = Tile {
                panel: job.scratch.panel.as_ptr().add(row * n),
                n_vectors: n / 16,
                tokens: tokens.add(token * job.width + start),
                width: job.width,
                sums: job.scratch.sums.as_mut_ptr().add((token * ROWS + row) * 16),
                first: start == 0,
                ahead,
                pace: 32usize.div_ceil(n_tiles),
            };
            match t {
                1 => part.run::<L, 1>(),
                2 => part.run::<L, 2>(),
                3 => part.run::<L, 3>(),
                4 if MOST > 3 => part.run::<L, 4>(),
                5 if MOST > 3 => part.run::<L, 5>(),
                _ if MOST > 3 => part.run::<L, 6>(),
                _ => unreachable!("because tiles have at most `MOST` tokens"),
            }
        }
        token += t;
    }
}

/// Some tokens by `R` rows over one piece.
struct Tile<const R: usize> {
    panel: *const f32,
    n_vectors: usize,
    tokens: *const f32,
    width: usize,
    sums: *mut f32,
    first: bool,
    /// Where each row goes on after this piece, and how fast that is asked for, in bytes a step.
    ahead: [*const u8; R],
    pace: usize,
}

impl<const R: usize> Tile<R> {
    #[inline(always)]
    unsafe fn run<L: Lanes, const T: usize>(&self) {
        let mut sums = [[L::splat(0.0); R]; T];
        if !self.first {
            for (t, sums) in sums.iter_mut().enumerate() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(self.sums.add((t * ROWS + r) * 16));
                }
            }
        }
        for i in 0..self.n_vectors {
            let mut weights = [L::splat(0.0); R];
            for (r, weight) in weights.iter_mut().enumerate() {
                L::prefetch_far(self.ahead[r].wrapping_add(i * self.pace));
                *weight = L::load(self.panel.add((i * R + r) * 16));
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let value = L::load(self.tokens.add(t * self.width + i * 16));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = weights[r].fma(value, *sum);
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                sum.store(self.sums.add((t * ROWS + r) * 16));
            }
        }
    }
}
