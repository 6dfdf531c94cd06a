//! The table kernel: three ternary weights as an index of four bits and a sign, products looked up instead of multiplied.
//!
//! Three weights w are the balanced ternary number n = 9w₀ + 3w₁ + w₂ in [-13, 13]: |n| is the index, n < 0 the sign. Per
//! token and three activations a table holds Σwa for the fourteen indices as int16 (at most 3 · 128), its low and high bytes
//! apart, for a byte shuffle. So a weight takes 1⅔ bits instead of two: a sixth less to read for one stream, where memory
//! decides; more instructions a weight, where arithmetic does. The sums are the same integers.
//!
//! A *block* is 16 rows × 48 inputs in 160 bytes. Pair p of it is the threes A = 2p and B = 2p + 1; first four runs of 32
//! bytes, of which run j holds pair 2j in its low nibbles and pair 2j + 1 in its high ones, byte r being row r of A and
//! byte 16 + r row r of B; then eight words of signs, row r of A in bit r, of B in bit 16 + r. Blocks of a group follow one
//! another, and after them stands how often each of the 16 rows has a sign, as int32. Inputs beyond the width are zeros.
//!
//! The idea is bitnet.cpp's TL2; layout and code are not. Here: layout, packing, and plain Rust. `tl2/avx2.rs` has the vectors.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Same signatures as the vector kernels; `kernel.rs` checks the lengths.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;

use super::{LINE, ROWS};

/// Inputs of a block.
const BLOCK: usize = 48;
/// Pairs of threes in a block.
const PAIRS: usize = 8;
/// Bytes of a block's indices, of its signs, and of both.
const INDEX_BYTES: usize = 128;
const BLOCK_BYTES: usize = INDEX_BYTES + PAIRS * 4;
/// Bytes of a pair's tables: sixteen low bytes for A, for B, then the high bytes.
const PAIR_TABLE_BYTES: usize = 64;

/// Products looked up: one or two groups of 16 rows, some tokens.
pub(crate) struct LookupJob {
    /// `n_groups` times [`group_bytes`].
    pub(super) groups: *const u8,
    pub(super) width: usize,
    pub(super) n_groups: usize,
    /// (n_tokens, [`table_bytes`])
    pub(super) tables: *const u8,
    pub(super) n_tokens: usize,
    /// (n_tokens, 32)
    pub(super) sums: *mut i32,
}

fn n_blocks(width: usize) -> usize {
    width.div_ceil(BLOCK)
}

/// Bytes of 16 rows.
pub(crate) fn group_bytes(width: usize) -> usize {
    n_blocks(width) * BLOCK_BYTES + ROWS * size_of::<i32>()
}

/// Bytes of one token's tables.
pub(crate) fn table_bytes(width: usize) -> usize {
    n_blocks(width) * PAIRS * PAIR_TABLE_BYTES
}

/// The three weights of a number in [0, 13].
const fn weights(number: i32) -> [i32; 3] {
    let last = (number + 1) % 3 - 1;
    let rest = (number - last) / 3;
    let middle = (rest + 1) % 3 - 1;
    [(rest - middle) / 3, middle, last]
}

/// Each number's weight of one of the three activations, for the vectors; 14 and 15 stand for nothing.
const fn weights_of(place: usize) -> [i16; 16] {
    let mut all = [0i16; 16];
    let mut number = 0;
    while number < 14 {
        all[number] = weights(number as i32)[place] as i16;
        number += 1;
    }
    all
}

/// Turns the two-bit lines of 16 rows into blocks.
pub(crate) fn pack_group(lines: &[u8], width: usize, out: &mut [u8]) {
    assert!(lines.len() == width / 16 * LINE && out.len() == group_bytes(width));
    let (blocks, counts) = out.split_at_mut(n_blocks(width) * BLOCK_BYTES);
    blocks.fill(0);
    let mut negatives = [0i32; ROWS];
    for (b, block) in blocks.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        let (indices, signs) = block.split_at_mut(INDEX_BYTES);
        let lines = &lines[b * 3 * LINE..lines.len().min((b + 1) * 3 * LINE)];
        for (row, negatives) in negatives.iter_mut().enumerate() {
            let mut weights = [0i8; BLOCK];
            for (line, sixteen) in lines.chunks_exact(LINE).zip(weights.chunks_exact_mut(16)) {
                for (k, weight) in sixteen.iter_mut().enumerate() {
                    *weight = (line[4 * row + k % 4] >> (2 * (k / 4)) & 3) as i8 - 1;
                }
            }
            for (three, weights) in weights.as_chunks::<3>().0.iter().enumerate() {
                let number = 9 * weights[0] + 3 * weights[1] + weights[2];
                let (pair, side) = (three / 2, three % 2);
                indices[pair / 2 * 32 + side * ROWS + row] |= number.unsigned_abs() << (4 * (pair % 2));
                if number < 0 {
                    *negatives += 1;
                    signs[pair * 4 + side * 2 + row / 8] |= 1 << (row % 8);
                }
            }
        }
    }
    for (place, count) in counts.as_chunks_mut::<4>().0.iter_mut().zip(negatives) {
        *place = count.to_le_bytes();
    }
}

/// One token's tables.
///
/// # Safety
/// `acts` holds `width` activations and `out` [`table_bytes`].
pub(super) unsafe fn tabulate(acts: *const i8, width: usize, out: *mut u8) {
    for three in 0..n_blocks(width) * 2 * PAIRS {
        let table = out.add(three / 2 * PAIR_TABLE_BYTES + three % 2 * 16);
        let act = |i: usize| if 3 * three + i < width { i32::from(*acts.add(3 * three + i)) } else { 0 };
        let acts = [act(0), act(1), act(2)];
        for number in 0..16 {
            let w = if number < 14 { weights(number) } else { [0; 3] };
            let [low, high] = ((w[0] * acts[0] + w[1] * acts[1] + w[2] * acts[2]) as i16).to_le_bytes();
            *table.add(number as usize) = low;
            *table.add(32 + number as usize) = high;
        }
    }
}

/// Sums of weight · activation.
///
/// # Safety
/// As [`LookupJob`] says.
pub(super) unsafe fn look_up(job: &LookupJob) {
    let n_blocks = n_blocks(job.width);
    for group in 0..job.n_groups {
        let blocks = job.groups.add(group * group_bytes(job.width));
        for token in 0..job.n_tokens {
            let tables = job.tables.add(token * table_bytes(job.width));
            let mut sums = [0i32; ROWS];
            for pair in 0..n_blocks * PAIRS {
                let block = blocks.add(pair / PAIRS * BLOCK_BYTES);
                let run = block.add(pair % PAIRS / 2 * 32);
                let signs = block.add(INDEX_BYTES + pair % PAIRS * 4).cast::<[u8; 4]>().read_unaligned();
                let signs = u32::from_le_bytes(signs);
                for side in 0..2 {
                    let table = tables.add(pair * PAIR_TABLE_BYTES + side * 16);
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let index = usize::from(*run.add(side * ROWS + row) >> (4 * (pair % 2)) & 15);
                        let value = i16::from_le_bytes([*table.add(index), *table.add(32 + index)]);
                        let negative = signs >> (16 * side + row) & 1 == 1;
                        *sum += if negative { -i32::from(value) } else { i32::from(value) };
                    }
                }
            }
            job.sums.add(token * 2 * ROWS + group * ROWS).cast::<[i32; ROWS]>().write_unaligned(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_three_weights() {
        for number in 0..14 {
            let [a, b, c] = weights(number);
            assert!([a, b, c].iter().all(|w| (-1..=1).contains(w)));
            assert_eq!(9 * a + 3 * b + c, number);
        }
    }
}
