//! Ternary weights of every type that files have them in, as codes (0, 1, 2 for −1, 0, +1) and scales.
//!
//! A scale belongs to a block of a row, a row, or the tensor. What is equal may be taken together (a scale a row, or for 128
//! inputs); what is not equal is refused there, never averaged. A block whose scale is 0 is zero whatever its codes.

mod encode;

use super::rows::f16_to_f32;
use super::{Kind, Tensor, i2s};

pub use encode::encode;

/// Inputs that share a scale where activations are rounded by groups.
pub const GROUP: usize = 128;

/// One row of a matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// One a weight.
    pub codes: Vec<u8>,
    /// One a block; blocks are equally wide.
    pub scales: Vec<f32>,
}

/// Why a row is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Code 3.
    #[error("row {row}, weight {weight} has the code 3, which is invalid (0, 1 and 2 are -1, 0 and +1)")]
    CodeThree { row: usize, weight: usize },
    /// A scale that is no number.
    #[error("row {row}: its scale is {scale}, not a finite number")]
    Scale { row: usize, scale: f32 },
    /// Scales that cannot be taken together.
    #[error("row {row} has the scales {scales:?}, but one is needed for {width} inputs")]
    Unequal { row: usize, scales: [f32; 2], width: usize },
    /// A group's scale that f16 would round.
    #[error("row {row}: its scale {scale} is not an f16, which group scales must be")]
    NoHalf { row: usize, scale: f32 },
}

/// Reads row `row` of a ternary matrix: scales must be finite, and no code may be 3.
///
/// # Panics
/// If the type is not ternary, or there is no such row.
pub fn read(tensor: &Tensor<'_>, row: usize, out: &mut Row) -> Result<(), Fault> {
    let n = tensor.n_columns();
    let Row { codes, scales } = out;
    codes.resize(n, 0);
    scales.clear();
    let row_bytes =
        tensor.kind.row_bytes(n as u64).expect("because rows hold whole blocks of a known type") as usize;
    let bytes = &tensor.data[row * row_bytes..][..row_bytes];
    match tensor.kind {
        Kind::I2S => {
            let n_weights = n * tensor.n_rows();
            scales.push(i2s::scale(tensor.data, n_weights).expect("because the tensor's length was checked"));
            let blocks = codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0);
            blocks.for_each(|(codes, bytes)| planes(bytes, codes, |plane| 6 - 2 * plane));
        }
        Kind::TQ2_0 => {
            let blocks = codes.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<66>().0);
            for (codes, block) in blocks {
                for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<32>().0)
                {
                    planes(bytes, codes, |plane| 2 * plane);
                }
                scales.push(half(&block[64..]));
            }
        }
        Kind::Q2_0 => fours::<64, 18>(bytes, codes, scales),
        Kind::Q2_0Old | Kind::PQ2_0 => fours::<128, 34>(bytes, codes, scales),
        Kind::TQ1_0 => base_three::<256, 54>(bytes, codes, scales, [(32, 5), (16, 5), (4, 4)]),
        Kind::PTQ1_0 => base_three::<128, 28>(bytes, codes, scales, [(16, 5), (8, 5), (2, 4)]),
        Kind::IQ2BN => {
            let (scale, bytes) = bytes.split_at(4);
            scales.push(f32::from_le_bytes(scale.try_into().expect("because it has four bytes")));
            let blocks = codes.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<16>().0);
            blocks.for_each(|(codes, bytes)| planes(bytes, codes, |plane| 2 * plane));
        }
        Kind::IQ1BN => {
            let (scale, bytes) = bytes.split_at(2);
            scales.push(half(scale));
            for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<13>().0) {
                for (element, code) in codes.iter_mut().enumerate() {
                    let (run, place) = (element / 16, element % 16);
                    // Fifteen of a run in three bytes of five, the first digit least; the last of each run in byte 12.
                    let (byte, at) = if place == 15 { (12, run) } else { (3 * run + place / 5, place % 5) };
                    *code = digit(bytes[byte], 4 - at);
                }
            }
        }
        kind => panic!("{kind} is not ternary"),
    }
    if let Some(&scale) = scales.iter().find(|scale| !scale.is_finite()) {
        return Err(Fault::Scale { row, scale });
    }
    let width = n / scales.len();
    for (codes, _) in codes.chunks_exact_mut(width).zip(&*scales).filter(|(_, scale)| **scale == 0.0) {
        codes.fill(1);
    }
    let eights = codes.as_chunks::<8>().0.iter().map(|eight| u64::from_le_bytes(*eight));
    if eights.fold(0, |all, codes| all | codes & codes >> 1) & 0x0101_0101_0101_0101 != 0 {
        let weight = codes.iter().position(|&code| code == 3).expect("because the fold saw it");
        return Err(Fault::CodeThree { row, weight });
    }
    Ok(())
}

/// Checks every row.
pub fn check(tensor: &Tensor<'_>) -> Result<(), Fault> {
    let mut row = Row::default();
    (0..tensor.n_rows()).try_for_each(|index| read(tensor, index, &mut row))
}

impl Row {
    /// The scale of the whole row: that of all blocks that are not zero.
    pub fn scale(&self, row: usize) -> Result<f32, Fault> {
        one(&self.scales, row, self.codes.len())
    }

    /// The scales of groups of 128 inputs.
    pub fn group_scales(&self, row: usize, out: &mut [u16]) -> Result<(), Fault> {
        let width = self.codes.len() / self.scales.len();
        for (group, out) in out.iter_mut().enumerate() {
            let first = group * GROUP / width;
            let last = ((group + 1) * GROUP).div_ceil(width);
            let scale = one(&self.scales[first..last], row, GROUP)?;
            *out = super::rows::f32_to_f16(scale);
            if f16_to_f32(*out) != scale {
                return Err(Fault::NoHalf { row, scale });
            }
        }
        Ok(())
    }

    /// The weights as floats.
    pub fn widen(&self, out: &mut [f32]) {
        let width = self.codes.len() / self.scales.len();
        for ((codes, out), scale) in self.codes.chunks(width).zip(out.chunks_mut(width)).zip(&self.scales) {
            for (&code, out) in codes.iter().zip(out) {
                *out = (f32::from(code) - 1.0) * scale;
            }
        }
    }
}

/// The one scale of several blocks; those that are zero have any.
fn one(scales: &[f32], row: usize, width: usize) -> Result<f32, Fault> {
    let mut found = 0.0f32;
    for &scale in scales.iter().filter(|scale| **scale != 0.0) {
        if found != 0.0 && found != scale {
            return Err(Fault::Unequal { row, scales: [found, scale], width });
        }
        found = scale;
    }
    Ok(found)
}

fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Four runs of codes, one in each pair of bits of the same bytes; eight at once, which is ten times as fast as one by one.
fn planes<const N: usize>(bytes: &[u8; N], codes: &mut [u8], shift: impl Fn(usize) -> usize) {
    for (plane, codes) in codes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let shift = shift(plane);
        for (codes, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *codes = (u64::from_le_bytes(*bytes) >> shift & 0x0303_0303_0303_0303).to_le_bytes();
        }
    }
}

/// An f16 scale, then four neighbours in a byte, the first in the lowest bits.
fn fours<const WEIGHTS: usize, const BYTES: usize>(bytes: &[u8], codes: &mut [u8], scales: &mut Vec<f32>) {
    for (codes, block) in codes.as_chunks_mut::<WEIGHTS>().0.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        scales.push(half(block));
        for (codes, &byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(&block[2..]) {
            let spread = u32::from(byte);
            let spread = spread | spread << 6 | spread << 12 | spread << 18;
            *codes = (spread & 0x0303_0303).to_le_bytes();
        }
    }
}

/// Runs of bytes with so many base-3 digits each, then an f16 scale: digit n of all bytes of a run stand together.
fn base_three<const WEIGHTS: usize, const BYTES: usize>(
    bytes: &[u8],
    codes: &mut [u8],
    scales: &mut Vec<f32>,
    runs: [(usize, usize); 3],
) {
    for (codes, block) in codes.as_chunks_mut::<WEIGHTS>().0.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        let (mut codes, mut bytes) = (&mut codes[..], &block[..]);
        for (n_bytes, n_digits) in runs {
            let (run, rest) = std::mem::take(&mut codes).split_at_mut(n_bytes * n_digits);
            for (n, codes) in run.chunks_exact_mut(n_bytes).enumerate() {
                for (code, &byte) in codes.iter_mut().zip(bytes) {
                    *code = digit(byte, n);
                }
            }
            (codes, bytes) = (rest, &bytes[n_bytes..]);
        }
        scales.push(half(bytes));
    }
}

/// Digit `n` of five, the most significant first: a byte is ⌈256 · v / 243⌉ for the five digits' value v.
fn digit(byte: u8, n: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as u8
}

#[cfg(test)]
mod tests;
