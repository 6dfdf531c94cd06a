//! Floats that are ternary weights times scales: found out, checked value by value, and brought into the type that keeps them.

use rayon::prelude::*;

use super::Error;
use super::safetensors::Tensor;
use super::weights;
use crate::gguf::architecture::Rounding;
use crate::gguf::rows::{f16_to_f32, f32_to_f16};
use crate::gguf::ternary::{self, GROUP, Row};
use crate::gguf::{Kind, i2s};

/// The type that keeps a matrix of (rows, `n_columns`) without loss; why there is none, otherwise.
pub(super) fn kind(tensor: &Tensor<'_>, n_columns: usize, rounding: Rounding) -> Result<Kind, Error> {
    let rows = rows(tensor, n_columns, if rounding == Rounding::Groups { GROUP } else { n_columns })?;
    let scales = || rows.iter().flat_map(|row| row.scales.iter().copied()).filter(|scale| *scale != 0.0);
    let halves = scales().all(|scale| f16_to_f32(f32_to_f16(scale)) == scale);
    let first = scales().next().unwrap_or(0.0);
    match rounding {
        Rounding::Groups if halves => Ok(Kind::Q2_0),
        Rounding::Groups => {
            Err(fault(tensor, "a group's scale is not an f16, and no GGUF type can store it".into()))
        }
        Rounding::Token if scales().all(|scale| scale == first) => Ok(Kind::I2S),
        Rounding::Token if halves && n_columns.is_multiple_of(256) => Ok(Kind::TQ2_0),
        Rounding::Token => Ok(Kind::IQ2BN),
    }
}

/// The rows of a matrix as `kind` has them, without what follows the last one, and the scale of the tensor.
pub(super) fn encode(tensor: &Tensor<'_>, n_columns: usize, kind: Kind) -> Result<(Vec<u8>, f32), Error> {
    let block = kind.block().expect("because the type is one that `kind` gave") as usize;
    let group = if kind == Kind::Q2_0 { GROUP } else { n_columns };
    let rows = rows(tensor, n_columns, group)?;
    let scale = rows.iter().map(|row| row.scales[0]).find(|scale| *scale != 0.0).unwrap_or(0.0);
    let bytes: Vec<Vec<u8>> = rows
        .par_iter()
        .map(|row| match kind {
            Kind::I2S => {
                let blocks = row.codes.as_chunks::<{ i2s::BLOCK }>().0.iter();
                blocks.flat_map(|codes| i2s::encode_block(&codes.map(|code| code as i8 - 1))).collect()
            }
            Kind::IQ2BN => ternary::encode(kind, row),
            _ => {
                let scales = row.scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, group / block));
                ternary::encode(kind, &Row { codes: row.codes.clone(), scales: scales.collect() })
            }
        })
        .collect();
    Ok((bytes.concat(), scale))
}

/// Codes and scales of all rows, a scale for each `group` inputs.
fn rows(tensor: &Tensor<'_>, n_columns: usize, group: usize) -> Result<Vec<Row>, Error> {
    let values = weights::floats(tensor)?;
    let rows = values.par_chunks(n_columns).enumerate().map(|(index, values)| {
        let mut row = Row::default();
        for (at, values) in values.chunks(group).enumerate() {
            let scale = values.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
            for (place, &value) in values.iter().enumerate() {
                if value != 0.0 && value.abs() != scale {
                    let column = at * group + place;
                    return Err(fault(
                        tensor,
                        format!(
                            "({index}, {column}) is {value}, neither 0 nor ±{scale}: these weights are \
                                 not ternary"
                        ),
                    ));
                }
                row.codes.push(1 + u8::from(value > 0.0) - u8::from(value < 0.0));
            }
            row.scales.push(scale);
        }
        Ok(row)
    });
    rows.collect()
}

fn fault(tensor: &Tensor<'_>, reason: String) -> Error {
    Error::unsupported(tensor.path, format!("tensor '{}'", tensor.name), reason)
}
