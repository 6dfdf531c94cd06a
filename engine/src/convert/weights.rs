//! Weights from one form to another, a tensor at a time: floats, absmean ternarisation, four rows in a byte.

use rayon::prelude::*;

use super::Error;
use super::safetensors::{Dtype, Tensor};
use crate::gguf::i2s::{self, BLOCK, BLOCK_BYTES};
use crate::gguf::rows::{f16_to_f32, f32_to_f16};
use crate::gguf::ternary;

/// The least mean that the reference divides by.
const LEAST_MEAN: f32 = 1e-5;
/// Weights whose absolute values are summed in one piece.
const PIECE: usize = 1 << 16;

/// The weights of a float tensor, widened exactly.
pub(super) fn floats(tensor: &Tensor<'_>) -> Result<Vec<f32>, Error> {
    floats_of(tensor, tensor.data)
}

/// The weights in `data`, a part of the tensor's.
fn floats_of(tensor: &Tensor<'_>, data: &[u8]) -> Result<Vec<f32>, Error> {
    let values: Vec<f32> = match tensor.dtype {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => {
            data.as_chunks::<2>().0.iter().map(|bytes| f16_to_f32(u16::from_le_bytes(*bytes))).collect()
        }
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|bytes| bf16_to_f32(*bytes)).collect(),
        Dtype::U8 => {
            let reason = "expected floats, found bytes; config.json may belong to another checkpoint";
            return Err(fault(tensor, reason));
        }
    };
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => Err(fault(tensor, format!("a weight is {value}, not a finite number"))),
    }
}

fn bf16_to_f32([low, high]: [u8; 2]) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

/// The upper half of an f32, if nothing is lost.
pub(super) fn to_bf16_exactly(value: f32) -> Option<[u8; 2]> {
    let [a, b, low, high] = value.to_le_bytes();
    (a == 0 && b == 0).then_some([low, high])
}

fn fault(tensor: &Tensor<'_>, reason: impl Into<String>) -> Error {
    Error::damaged(tensor.path, format!("tensor '{}'", tensor.name), reason)
}

/// Narrows to f16 and hands the bytes on piece by piece, since an embedding has hundreds of millions of weights.
/// Returns how many of them were rounded; one too large for f16 is a fault.
pub(super) fn to_f16(
    tensor: &Tensor<'_>,
    mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut n_rounded = 0;
    for piece in tensor.data.chunks(PIECE * 16 * tensor.dtype.bytes()) {
        let values = floats_of(tensor, piece)?;
        let halves: Vec<u16> = values.par_iter().map(|&value| f32_to_f16(value)).collect();
        for (&value, &half) in values.iter().zip(&halves) {
            let back = f16_to_f32(half);
            if back.is_infinite() {
                return Err(fault(tensor, format!("{value} is too large for f16")));
            }
            n_rounded += u64::from(back != value);
        }
        sink(&halves.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())?;
    }
    Ok(n_rounded)
}

/// Ternarises master weights of shape (rows, `n_columns`) as the reference does, into I2_S codes; and the
/// scale that they are multiplied by.
///
/// The reference computes s = 1/max(mean|w|, 1e-5) in f32, t = clamp(round(w·s), −1, 1), and uses t/s. The
/// mean is summed here in f64; the reference sums in f32 in an order that depends on the machine.
pub(super) fn ternarise(tensor: &Tensor<'_>, n_columns: usize) -> Result<(Vec<u8>, f32), Error> {
    let weights = floats(tensor)?;
    let sums: Vec<f64> = weights
        .par_chunks(PIECE)
        .map(|piece| piece.iter().map(|weight| f64::from(weight.abs())).sum())
        .collect();
    let mean = (sums.iter().sum::<f64>() / weights.len() as f64) as f32;
    let inverse = 1.0 / mean.max(LEAST_MEAN);
    let mut codes = vec![0u8; weights.len() / 4];
    codes.par_chunks_mut(n_columns / 4).zip(weights.par_chunks(n_columns)).for_each(|(codes, row)| {
        for (bytes, weights) in
            codes.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(row.as_chunks::<BLOCK>().0)
        {
            let block = weights.map(|weight| (weight * inverse).round_ties_even().clamp(-1.0, 1.0) as i8);
            *bytes = i2s::encode_block(&block);
        }
    });
    Ok((codes, 1.0 / inverse))
}

/// Why a matrix of so many rows has no packed form.
pub(super) fn rows_of_four(n_rows: usize) -> String {
    format!("{n_rows} rows are not a multiple of four, the rows per byte")
}

/// Turns four rows in a byte, (rows / 4, `n_columns`), into I2_S codes.
pub(super) fn unpack(tensor: &Tensor<'_>, n_columns: usize) -> Result<Vec<u8>, Error> {
    if tensor.dtype != Dtype::U8 {
        return Err(fault(
            tensor,
            "expected packed bytes, found floats; config.json may belong to another checkpoint",
        ));
    }
    if let Err(reason) = i2s::check(tensor.data, tensor.data.len() * 4) {
        return Err(fault(tensor, format!("it has the code 3, which has no meaning ({reason})")));
    }
    let n_packed_rows = tensor.data.len() / n_columns;
    let mut codes = vec![0u8; tensor.data.len()];
    codes.par_chunks_mut(n_columns / 4).enumerate().for_each(|(row, codes)| {
        let shift = 2 * (row / n_packed_rows);
        let packed = &tensor.data[row % n_packed_rows * n_columns..][..n_columns];
        for (bytes, packed) in
            codes.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(packed.as_chunks::<BLOCK>().0)
        {
            *bytes = i2s::encode_block(&packed.map(|byte| (byte >> shift & 3) as i8 - 1));
        }
    });
    Ok(codes)
}

/// The way back: a ternary matrix to four rows in a byte; `place` is where a row of the checkpoint stands.
pub(super) fn pack(tensor: &crate::gguf::Tensor<'_>, place: impl Fn(usize) -> usize + Sync) -> Vec<u8> {
    let (n_packed_rows, n_columns) = (tensor.n_rows() / 4, tensor.n_columns());
    let mut packed = vec![0u8; n_packed_rows * n_columns];
    packed.par_chunks_mut(n_columns).enumerate().for_each(|(packed_row, bytes)| {
        let mut row = ternary::Row::default();
        for quarter in 0..4 {
            let index = place(packed_row + quarter * n_packed_rows);
            ternary::read(tensor, index, &mut row).expect("because every row was checked");
            for (byte, code) in bytes.iter_mut().zip(&row.codes) {
                *byte |= code << (2 * quarter);
            }
        }
    });
    packed
}

/// The scale of a packed matrix, as a factor.
pub(super) fn factor(tensor: &Tensor<'_>, divides: bool) -> Result<f32, Error> {
    let values = floats(tensor)?;
    let scale = if divides { 1.0 / values[0] } else { values[0] };
    if scale.is_finite() && scale > 0.0 {
        Ok(scale)
    } else {
        Err(fault(tensor, format!("{} is not a valid scale", values[0])))
    }
}
