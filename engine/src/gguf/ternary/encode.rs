//! The way back: codes and scales to the bytes of a row.

use super::super::Kind;
use super::super::rows::f32_to_f16;
use super::Row;

/// The bytes of `row` as `kind` has them; scales that the type holds as f16 are rounded. I2_S keeps its scale at the tensor's
/// end, so it is not here: see [`super::i2s::encode`].
///
/// # Panics
/// If the type is not ternary, or the row has other blocks than the type.
pub fn encode(kind: Kind, row: &Row) -> Vec<u8> {
    let n = row.codes.len();
    let row_bytes =
        kind.row_bytes(n as u64).expect("because the row holds whole blocks of a known type") as usize;
    let mut out = Vec::with_capacity(row_bytes);
    let half = |scale: f32| f32_to_f16(scale).to_le_bytes();
    let width = n / row.scales.len();
    let blocks = row.codes.chunks_exact(width).zip(&row.scales);
    match kind {
        Kind::Q2_0 | Kind::Q2_0Old | Kind::PQ2_0 => {
            for (codes, &scale) in blocks {
                out.extend(half(scale));
                out.extend(codes.as_chunks::<4>().0.iter().map(|[a, b, c, d]| a | b << 2 | c << 4 | d << 6));
            }
        }
        Kind::TQ2_0 => {
            for (codes, &scale) in blocks {
                codes.as_chunks::<128>().0.iter().for_each(|codes| planes::<32>(codes, &mut out));
                out.extend(half(scale));
            }
        }
        Kind::TQ1_0 | Kind::PTQ1_0 => {
            let runs =
                if kind == Kind::TQ1_0 { [(32, 5), (16, 5), (4, 4)] } else { [(16, 5), (8, 5), (2, 4)] };
            for (mut codes, &scale) in blocks {
                for (n_bytes, n_digits) in runs {
                    let (run, rest) = codes.split_at(n_bytes * n_digits);
                    let digit =
                        |byte: usize, n: usize| if n < n_digits { run[n * n_bytes + byte] } else { 0 };
                    out.extend((0..n_bytes).map(|byte| base_three((0..5).map(|n| digit(byte, n)))));
                    codes = rest;
                }
                out.extend(half(scale));
            }
        }
        Kind::IQ2BN => {
            out.extend(row.scales[0].to_le_bytes());
            row.codes.as_chunks::<64>().0.iter().for_each(|codes| planes::<16>(codes, &mut out));
        }
        Kind::IQ1BN => {
            out.extend(half(row.scales[0]));
            for codes in row.codes.as_chunks::<64>().0 {
                let fives = (0..12).map(|i| &codes[16 * (i / 3) + 5 * (i % 3)..][..5]);
                out.extend(fives.map(|five| base_three(five.iter().rev().copied())));
                out.push(base_three([0, codes[63], codes[47], codes[31], codes[15]].into_iter()));
            }
        }
        kind => panic!("{kind} rows cannot be written separately"),
    }
    assert_eq!(out.len(), row_bytes, "{kind}: the row has other blocks than its type");
    out
}

/// Four runs of `N` codes into `N` bytes, the first in the lowest bits.
fn planes<const N: usize>(codes: &[u8], out: &mut Vec<u8>) {
    out.extend((0..N).map(|i| (0..4).fold(0, |byte, plane| byte | codes[plane * N + i] << (2 * plane))));
}

/// Five digits, the most significant first.
fn base_three(digits: impl Iterator<Item = u8>) -> u8 {
    let value = digits.fold(0u16, |value, digit| 3 * value + u16::from(digit));
    (256 * value).div_ceil(243) as u8
}
