//! Rows of an embedding or output matrix as f32, to the bit as ggml's reference routines make them.
//!
//! F16, BF16 and Q8_0 widen exactly; Q6_K rounds once, at its last product. Ternary rows come from [`super::ternary`].

use std::cell::RefCell;

use super::{Kind, Tensor, ternary};

thread_local! {
    /// A ternary row on its way to floats: an embedding is read row by row, and one row needs two vectors.
    static SCRATCH: RefCell<ternary::Row> = RefCell::default();
}

/// The types that [`dequantise`] reads.
pub const READABLE: [Kind; 6] = [Kind::F32, Kind::F16, Kind::BF16, Kind::Q8_0, Kind::Q4K, Kind::Q6K];

/// The bytes of row `row` of a matrix; `None` if it has no such row or its type is not in [`READABLE`].
pub fn bytes<'a>(tensor: &Tensor<'a>, row: usize) -> Option<&'a [u8]> {
    let row_bytes = bytes_of_row(tensor.kind, tensor.n_columns())?;
    let start = row.checked_mul(row_bytes)?;
    tensor.data.get(start..start.checked_add(row_bytes)?)
}

/// Bytes of a row of `n_columns` weights; `None` if it is no whole number of blocks of a readable type.
pub fn bytes_of_row(kind: Kind, n_columns: usize) -> Option<usize> {
    if !READABLE.contains(&kind) {
        return None;
    }
    usize::try_from(kind.row_bytes(n_columns as u64)?).ok()
}

/// Writes row `row` of `tensor` into `out`, whose length is the row's.
///
/// # Panics
/// If there is no such row, `out` has another length, the type is neither ternary nor in [`READABLE`], or a ternary row is
/// faulty: the checks at load and a token id below the vocabulary rule all of that out.
pub fn read(tensor: &Tensor<'_>, row: usize, out: &mut [f32]) {
    if tensor.kind.is_ternary() {
        return SCRATCH.with_borrow_mut(|scratch| {
            ternary::read(tensor, row, scratch).expect("because every row was checked at load");
            scratch.widen(out);
        });
    }
    let bytes = bytes(tensor, row).expect("because the caller asks for a row of a readable matrix");
    dequantise(tensor.kind, bytes, out);
}

/// Turns the bytes of one row into floats.
///
/// # Panics
/// As [`read`].
pub fn dequantise(kind: Kind, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), bytes_of_row(kind, out.len()), "{kind} row of {} weights", out.len());
    match kind {
        Kind::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Kind::F16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16_to_f32(u16::from_le_bytes(*bytes));
            }
        }
        Kind::BF16 => {
            for (value, &[low, high]) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_le_bytes([0, 0, low, high]);
            }
        }
        Kind::Q4K => {
            for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<144>().0) {
                q4_k(block, values);
            }
        }
        Kind::Q8_0 => {
            for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
                q8_0(block, values);
            }
        }
        Kind::Q6K => {
            for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<210>().0) {
                q6_k(block, values);
            }
        }
        _ => unreachable!("because bytes_of_row knows the readable types only"),
    }
}

/// One f16 scale, then 32 int8.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (value, &quant) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(quant as i8) * scale;
    }
}

/// Two f16 scales, of factors and of minima; six bits of both for each of eight runs of 32 weights; nibbles, the lower ones
/// of 32 bytes before the upper ones.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let half = |at: usize| f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
    let (scale, minimum) = (half(0), half(2));
    let (six, nibbles) = (&block[4..16], &block[16..]);
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (factor, less) = if run < 4 {
            (six[run] & 63, six[run + 4] & 63)
        } else {
            (six[run + 4] & 15 | six[run - 4] >> 6 << 4, six[run + 4] >> 4 | six[run] >> 6 << 4)
        };
        let (factor, less) = (scale * f32::from(factor), minimum * f32::from(less));
        for (value, byte) in out.iter_mut().zip(&nibbles[32 * (run / 2)..]) {
            *value = factor * f32::from(byte >> (4 * (run % 2)) & 15) - less;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high pairs, 16 int8 scales, one f16 scale. Each half of 128 weights takes
/// its four runs of 32 from nibbles `l`, `l + 32` (low, then high halves) and the four pairs of high byte `l`.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = f16_to_f32(u16::from_le_bytes([scale[0], scale[1]]));
    for half in 0..2 {
        let (low, high) = (&low[half * 64..][..64], &high[half * 32..][..32]);
        for run in 0..4 {
            for l in 0..32 {
                let nibble = low[l + 32 * (run % 2)] >> (4 * (run / 2)) & 15;
                let pair = high[l] >> (2 * run) & 3;
                let quant = i32::from(nibble | pair << 4) - 32;
                let sub_scale = f32::from(scales[half * 8 + run * 2 + l / 16] as i8);
                out[half * 128 + run * 32 + l] = scale * sub_scale * quant as f32;
            }
        }
    }
}

/// Widens a half-precision float, exactly; NaN payloads are kept.
#[inline]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10 & 0x1f);
    let fraction = u32::from(half & 0x03ff);
    match (exponent, fraction) {
        (0, 0) => f32::from_bits(sign),
        (0, _) => {
            // A subnormal is fraction · 2⁻²⁴; both factors are exact in f32, and so is their product.
            let magnitude = fraction as f32 * f32::from_bits((127 - 24) << 23);
            f32::from_bits(sign | magnitude.to_bits())
        }
        (31, _) => f32::from_bits(sign | 0xff << 23 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

/// Narrows to half precision, rounding to nearest, ties to even, as hardware does; overflow gives infinity.
#[inline]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | (magnitude >> 13 & 0x03ff) as u16; // NaN, kept quiet
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and above
    }
    if magnitude < 0x3880_0000 {
        // Below 2⁻¹⁴: adding 0.5 (whose last place is 2⁻²⁴) lets the f32 addition itself do the rounding.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = magnitude + 0x0fff + (magnitude >> 13 & 1);
    sign | ((rounded - ((127 - 15) << 23)) >> 13) as u16
}

#[cfg(test)]
mod tests;
