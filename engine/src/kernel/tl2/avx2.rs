//! The table kernel in 256-bit vectors: a shuffle looks up sixteen rows of two threes at once.
//!
//! Low and high bytes are looked up apart, the sign's exclusive or is applied to both, and interleaving makes int16 of
//! them. −v is (v xor −1) + 1: the ones are counted at packing and added at the end. An int16 takes 80 steps of at most 385
//! in magnitude, 30,800, before it is widened.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

use super::super::ahead::ask_ahead;
use super::{
    BLOCK, BLOCK_BYTES, INDEX_BYTES, LookupJob, PAIR_TABLE_BYTES, PAIRS, ROWS, group_bytes, n_blocks,
    table_bytes, weights_of,
};
use std::arch::x86_64::*;

/// Blocks whose sums fit into int16: each adds eight times.
const NARROW_BLOCKS: usize = 10;

const WEIGHTS: [[i16; 16]; 3] = [weights_of(0), weights_of(1), weights_of(2)];
/// Which sign byte belongs to each row, and which bit of it.
const SPREAD: [u8; 32] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3];
const BITS: u64 = 0x8040_2010_0804_0201;

/// One token's tables.
///
/// # Safety
/// AVX2; as [`super::tabulate`].
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn tabulate(acts: *const i8, width: usize, out: *mut u8) {
    for block in 0..n_blocks(width) {
        let mut padded = [0i8; BLOCK];
        let from = if (block + 1) * BLOCK <= width {
            acts.add(block * BLOCK)
        } else {
            let left = width - block * BLOCK;
            padded.as_mut_ptr().copy_from_nonoverlapping(acts.add(block * BLOCK), left);
            padded.as_ptr()
        };
        for pair in 0..PAIRS {
            let a = entries(from.add(pair * 6));
            let b = entries(from.add(pair * 6 + 3));
            let byte = _mm256_set1_epi16(0xff);
            let low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
            let high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            // Packing works on 128-bit halves: put the quarters in order.
            let to = out.add((block * PAIRS + pair) * PAIR_TABLE_BYTES);
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(low));
            _mm256_storeu_si256(to.add(32).cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(high));
        }
    }
}

/// The sixteen sums of three activations.
#[inline(always)]
unsafe fn entries(acts: *const i8) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for (place, weights) in WEIGHTS.iter().enumerate() {
        let act = _mm256_set1_epi16(i16::from(*acts.add(place)));
        sum = _mm256_add_epi16(sum, _mm256_sign_epi16(act, _mm256_loadu_si256(weights.as_ptr().cast())));
    }
    sum
}

/// Sums of weight · activation.
///
/// # Safety
/// AVX2; as [`LookupJob`] says.
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn look_up(job: &LookupJob) {
    for group in 0..job.n_groups {
        let mut token = 0;
        while token < job.n_tokens {
            match job.n_tokens - token {
                1 => tile::<1>(job, group, token),
                2 => tile::<2>(job, group, token),
                3 => tile::<3>(job, group, token),
                _ => tile::<4>(job, group, token),
            }
            token += 4;
        }
    }
}

#[inline(always)]
unsafe fn tile<const T: usize>(job: &LookupJob, group: usize, token: usize) {
    let blocks = job.groups.add(group * group_bytes(job.width));
    let n_blocks = n_blocks(job.width);
    let stride = table_bytes(job.width);
    let tables = job.tables.add(token * stride);
    let spread = _mm256_loadu_si256(SPREAD.as_ptr().cast());
    let bits = _mm256_set1_epi64x(BITS as i64);
    let nibble = _mm256_set1_epi8(15);
    let negatives = blocks.add(n_blocks * BLOCK_BYTES).cast::<__m256i>();
    let mut wide = [[_mm256_loadu_si256(negatives), _mm256_loadu_si256(negatives.add(1))]; T];
    let mut block = 0;
    while block < n_blocks {
        let end = n_blocks.min(block + NARROW_BLOCKS);
        let mut narrow = [[_mm256_setzero_si256(); 2]; T];
        while block < end {
            let at = blocks.add(block * BLOCK_BYTES);
            for line in 0..3 {
                ask_ahead(at.wrapping_add(line * 64));
            }
            for run in 0..PAIRS / 2 {
                let both = _mm256_loadu_si256(at.add(run * 32).cast());
                for half in 0..2 {
                    let pair = 2 * run + half;
                    let index = if half == 0 { both } else { _mm256_srli_epi16::<4>(both) };
                    let index = _mm256_and_si256(index, nibble);
                    let signs = at.add(INDEX_BYTES + pair * 4).cast::<i32>().read_unaligned();
                    let signs = _mm256_shuffle_epi8(_mm256_set1_epi32(signs), spread);
                    let minus = _mm256_cmpeq_epi8(_mm256_and_si256(signs, bits), bits);
                    for (t, sum) in narrow.iter_mut().enumerate() {
                        let table = tables.add(t * stride + (block * PAIRS + pair) * PAIR_TABLE_BYTES);
                        let low = _mm256_shuffle_epi8(_mm256_loadu_si256(table.cast()), index);
                        let high = _mm256_shuffle_epi8(_mm256_loadu_si256(table.add(32).cast()), index);
                        let (low, high) = (_mm256_xor_si256(low, minus), _mm256_xor_si256(high, minus));
                        sum[0] = _mm256_add_epi16(sum[0], _mm256_unpacklo_epi8(low, high));
                        sum[1] = _mm256_add_epi16(sum[1], _mm256_unpackhi_epi8(low, high));
                    }
                }
            }
            block += 1;
        }
        // Either half of a register holds the same eight rows, of A and of B.
        for (sum, part) in wide.iter_mut().zip(&narrow) {
            for (sum, &part) in sum.iter_mut().zip(part) {
                let a = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(part));
                let b = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(part));
                *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(a, b));
            }
        }
    }
    for (t, sum) in wide.iter().enumerate() {
        let place = job.sums.add((token + t) * 2 * ROWS + group * ROWS).cast::<__m256i>();
        _mm256_storeu_si256(place, sum[0]);
        _mm256_storeu_si256(place.add(1), sum[1]);
    }
}
