//! From the file's I2_S blocks to the lines that the kernels read.
//!
//! A line is 64 bytes: 16 output rows × 16 inputs, codes w + 1. Byte 4r + j belongs to row r; its bit plane p (bits 2p and
//! 2p + 1) is input 16 · line + 4p + j. The lines of a group of 16 rows follow one another, so a thread reads one stream
//! and no sum crosses lanes. Used once, at load.

use crate::kernel::{LINE, ROWS};

/// The code that stands for a weight of zero, for rows that are not there.
const ZEROS: u32 = 0x5555_5555;

/// Packs 16 rows from `first_row` of a matrix of (n_rows, width); rows beyond the last become zeros. False if a code 3 was met.
pub(crate) fn pack_group(
    data: &[u8],
    width: usize,
    n_rows: usize,
    first_row: usize,
    lines: &mut [u8],
) -> bool {
    let row_bytes = width / 4;
    let mut threes = 0u32;
    for r in 0..ROWS {
        let row = first_row + r;
        if row >= n_rows {
            for line in lines.chunks_exact_mut(LINE) {
                line[4 * r..4 * r + 4].copy_from_slice(&ZEROS.to_le_bytes());
            }
            continue;
        }
        let codes = &data[row * row_bytes..(row + 1) * row_bytes];
        for (block, eight) in codes.as_chunks::<32>().0.iter().zip(lines.chunks_exact_mut(8 * LINE)) {
            let words: [u32; 8] = std::array::from_fn(|i| {
                u32::from_le_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]])
            });
            // Line k of the eight holds inputs 16k to 16k + 15: pair k / 2 from the top, of bytes 16 (k mod 2) onward.
            for (k, line) in eight.chunks_exact_mut(LINE).enumerate() {
                let shift = 6 - 2 * (k as u32 / 2);
                let mut packed = 0u32;
                for p in 0..4 {
                    packed |= (words[4 * (k % 2) + p] >> shift & 0x0303_0303) << (2 * p);
                }
                threes |= packed & (packed >> 1) & ZEROS;
                line[4 * r..4 * r + 4].copy_from_slice(&packed.to_le_bytes());
            }
        }
    }
    threes == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::i2s;

    #[test]
    fn every_code_lands_in_its_row_and_plane() {
        let (width, n_rows) = (256, 20);
        let weights: Vec<i8> = (0..width * n_rows).map(|i| ((i * 7 + i / 13) % 3) as i8 - 1).collect();
        let data = i2s::encode(&weights, 1.0);
        for first_row in [0, 16] {
            let mut lines = vec![0u8; width / 16 * LINE];
            assert!(pack_group(&data, width, n_rows, first_row, &mut lines));
            for r in 0..ROWS {
                for k in 0..width {
                    let (line, p, j) = (k / 16, k % 16 / 4, k % 4);
                    let found = lines[line * LINE + 4 * r + j] >> (2 * p) & 3;
                    let row = first_row + r;
                    let expected = if row < n_rows { weights[row * width + k] + 1 } else { 1 };
                    assert_eq!(i32::from(found), i32::from(expected), "row {row}, input {k}");
                }
            }
        }
    }

    #[test]
    fn code_three_is_noticed() {
        let mut data = i2s::encode(&[0i8; 128 * 16], 1.0);
        data[77] |= 0b11 << 4;
        assert!(!pack_group(&data, 128, 16, 0, &mut [0u8; 8 * LINE]));
    }
}
