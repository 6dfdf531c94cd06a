//! From the rows of a file to the groups of 16 rows that the kernels read.
//!
//! A line is 64 bytes: 16 output rows × 16 inputs, codes w + 1. Byte 4r + j belongs to row r; its bit plane p (bits 2p and
//! 2p + 1) is input 16 · line + 4p + j. The lines of a group of 16 rows follow one another, so a thread reads one stream
//! and no sum crosses lanes. Where groups of inputs have scales, those of all 16 rows are before the lines. Used once, at load.

use crate::gguf::Tensor;
use crate::gguf::architecture::RowOrder;
use crate::gguf::ternary::{self, Fault};
use crate::kernel::{LINE, Layout, ROWS, group_scale_bytes};

/// The code that stands for a weight of zero, for rows that are not there.
const ZEROS: u32 = 0x5555_5555;

/// Which row of a tensor is at which row of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    /// The same.
    Same,
    /// Those of heads, each at the next multiple of `stride`, with halves that are rotated together.
    Heads { head_dim: usize, stride: usize, order: RowOrder },
}

impl Rows {
    /// Rows of a matrix for a tensor's `n_rows`: heads are padded.
    pub(crate) fn padded(self, n_rows: usize) -> usize {
        match self {
            Rows::Same => n_rows,
            Rows::Heads { head_dim, stride, .. } => n_rows / head_dim * stride,
        }
    }

    /// The tensor's row; `None` for one that pads a head.
    pub(crate) fn of(self, row: usize) -> Option<usize> {
        match self {
            Rows::Same => Some(row),
            Rows::Heads { head_dim, stride, order } => {
                let (head, at) = (row / stride, row % stride);
                let (side, pair) = (at / (head_dim / 2), at % (head_dim / 2));
                let moved = match order {
                    RowOrder::Halves => at,
                    RowOrder::Pairs => 2 * pair + side,
                };
                (at < head_dim).then_some(head * head_dim + moved)
            }
        }
    }
}

/// A tensor to be packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) tensor: Tensor<'a>,
    pub(crate) rows: Rows,
    /// What its scales are multiplied by.
    pub(crate) factor: f32,
}

/// Scratch memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    row: ternary::Row,
    lines: Vec<u8>,
    halves: Vec<u16>,
}

/// Packs 16 rows from `first_row` on; rows beyond the last become zeros. `scales` takes a scale a row, where rows have them.
pub(crate) fn pack_group(
    source: &Source<'_>,
    first_row: usize,
    layout: Layout,
    scratch: &mut Scratch,
    scales: &mut [f32],
    to: &mut [u8],
) -> Result<(), Fault> {
    let width = source.tensor.n_columns();
    match layout {
        Layout::I2s => set_rows(source, first_row, scratch, scales, None, to),
        Layout::Grouped => {
            let (scale_bytes, lines) = to.split_at_mut(group_scale_bytes(width));
            set_rows(source, first_row, scratch, scales, Some(scale_bytes), lines)
        }
        Layout::Tl2 => {
            let mut lines = std::mem::take(&mut scratch.lines);
            lines.resize(width / 16 * LINE, 0);
            set_rows(source, first_row, scratch, scales, None, &mut lines)?;
            layout.pack_group(&lines, width, to);
            scratch.lines = lines;
            Ok(())
        }
    }
}

fn set_rows(
    source: &Source<'_>,
    first_row: usize,
    scratch: &mut Scratch,
    scales: &mut [f32],
    mut group_scales: Option<&mut [u8]>,
    lines: &mut [u8],
) -> Result<(), Fault> {
    let n_rows = source.tensor.n_rows();
    for r in 0..ROWS {
        let Some(row) = source.rows.of(first_row + r).filter(|&row| row < n_rows) else {
            for line in lines.chunks_exact_mut(LINE) {
                line[4 * r..4 * r + 4].copy_from_slice(&ZEROS.to_le_bytes());
            }
            continue;
        };
        ternary::read(&source.tensor, row, &mut scratch.row)?;
        match &mut group_scales {
            None => scales[r] = scratch.row.scale(row)? * source.factor,
            Some(bytes) => {
                scratch.halves.resize(source.tensor.n_columns() / ternary::GROUP, 0);
                scratch.row.group_scales(row, &mut scratch.halves)?;
                for (group, half) in scratch.halves.iter().enumerate() {
                    bytes[2 * (group * ROWS + r)..][..2].copy_from_slice(&half.to_ne_bytes());
                }
            }
        }
        for (codes, line) in scratch.row.codes.as_chunks::<16>().0.iter().zip(lines.chunks_exact_mut(LINE)) {
            let planes = codes.as_chunks::<4>().0.iter().enumerate();
            let packed = planes.fold(0, |packed, (p, four)| packed | u32::from_le_bytes(*four) << (2 * p));
            line[4 * r..4 * r + 4].copy_from_slice(&packed.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Kind, i2s};

    fn pack(source: &Source<'_>, first_row: usize) -> (Vec<u8>, [f32; ROWS]) {
        let width = source.tensor.n_columns();
        let (mut lines, mut scales) = (vec![0u8; width / 16 * LINE], [0.0; ROWS]);
        let mut scratch = Scratch::default();
        pack_group(source, first_row, Layout::I2s, &mut scratch, &mut scales, &mut lines).unwrap();
        (lines, scales)
    }

    #[test]
    fn every_code_lands_in_its_row_and_plane() {
        let (width, n_rows) = (256, 20);
        let weights: Vec<i8> = (0..width * n_rows).map(|i| ((i * 7 + i / 13) % 3) as i8 - 1).collect();
        let data = i2s::encode(&weights, 0.75);
        let tensor = Tensor { name: "t", dims: &[256, 20], kind: Kind::I2S, data: &data };
        for first_row in [0, 16] {
            let (lines, scales) = pack(&Source { tensor, rows: Rows::Same, factor: 2.0 }, first_row);
            for r in 0..ROWS {
                let row = first_row + r;
                assert_eq!(scales[r], if row < n_rows { 1.5 } else { 0.0 });
                for k in 0..width {
                    let (line, p, j) = (k / 16, k % 16 / 4, k % 4);
                    let found = lines[line * LINE + 4 * r + j] >> (2 * p) & 3;
                    let expected = if row < n_rows { weights[row * width + k] + 1 } else { 1 };
                    assert_eq!(i32::from(found), i32::from(expected), "row {row}, input {k}");
                }
            }
        }
    }

    #[test]
    fn heads_are_padded_and_their_pairs_brought_apart() {
        let rows = |order| Rows::Heads { head_dim: 20, stride: 32, order };
        let found: Vec<Option<usize>> = (32..64).map(|row| rows(RowOrder::Pairs).of(row)).collect();
        let expected = (0..10).map(|j| 20 + 2 * j).chain((0..10).map(|j| 20 + 2 * j + 1)).map(Some);
        assert_eq!(found, expected.chain([None; 12]).collect::<Vec<_>>());
        assert_eq!((rows(RowOrder::Halves).of(33), rows(RowOrder::Halves).of(52)), (Some(21), None));
    }

    #[test]
    fn code_three_is_noticed() {
        let mut data = i2s::encode(&[0i8; 128 * 16], 1.0);
        data[77] |= 0b11 << 4;
        let tensor = Tensor { name: "t", dims: &[128, 16], kind: Kind::I2S, data: &data };
        let source = Source { tensor, rows: Rows::Same, factor: 1.0 };
        let (mut lines, mut scales) = ([0; 8 * LINE], [0.0; ROWS]);
        let fault = pack_group(&source, 0, Layout::I2s, &mut Scratch::default(), &mut scales, &mut lines)
            .unwrap_err();
        assert_eq!(fault, Fault::CodeThree { row: 2, weight: 45 });
    }
}
