//! GGUF to a checkpoint as transformers loads it: four rows in a byte with scales that multiply, where all matrices are I2_S;
//! floats on the ternary lattice, where rows or groups have scales.

use std::io::Write;
use std::path::Path;

use super::config;
use super::names::{EMBEDDING, OUTPUT, OUTPUT_NORM, in_checkpoint, scale_of};
use super::safetensors::{Dtype, Planned, write_table};
use super::to_gguf::row_order;
use super::{Checkpoint, Error, Summary, weights, write_whole};
use crate::gguf::{self, File, Kind, Tensor, i2s, rows, ternary};
use crate::pack::Rows;

/// A tensor of the checkpoint, and how its bytes are made when their turn comes.
struct Output<'a> {
    planned: Planned,
    bytes: Bytes<'a>,
}

enum Bytes<'a> {
    Ready(Vec<u8>),
    /// The bytes of the file as they are.
    Same(&'a [u8]),
    /// Codes to four rows in a byte, the rows brought into the checkpoint's order.
    Packed(Tensor<'a>, Option<Rows>),
    /// A quantised matrix, widened to the planned type, likewise.
    Widened(Tensor<'a>, Option<Rows>),
}

/// Converts the GGUF at `path` to `config.json` and `model.safetensors` in `folder`, which is made if it is
/// not there; each file appears whole or not at all. The tokenizer's files are not made: a GGUF does not hold
/// all that they say.
pub fn to_safetensors(path: &Path, folder: &Path) -> Result<Summary, Error> {
    let file = File::open(path)?;
    let layout = gguf::check_model(&file)?;
    let hyper = &layout.hyper;
    if let Some(factors) = &layout.rope_factors {
        let reason = "config.json cannot store rope factors, only the parameters from which they are \
                      computed";
        return Err(Error::unsupported(path, format!("tensor '{}'", factors.name), reason));
    }
    for tensor in layout.ternary() {
        if let Err(fault) = ternary::check(&tensor) {
            return Err(Error::damaged(path, format!("tensor '{}'", tensor.name), fault.to_string()));
        }
    }
    let packed = layout.blocks.iter().flat_map(gguf::Block::ternary).all(|tensor| tensor.kind == Kind::I2S);
    let mut outputs = vec![float_matrix(EMBEDDING.1, &layout.token_embd)];
    for (layer, block) in layout.blocks.iter().enumerate() {
        for part in hyper.graph.parts() {
            let name = in_checkpoint(hyper.graph, part, layer);
            match part.columns() {
                None => outputs.push(norm(name, &block.get(part))),
                Some(_) if packed => {
                    let order = row_order(hyper, part);
                    outputs.extend(matrix(path, name, block.get(part), block.factor(part), order)?);
                }
                Some(_) if block.factor(part) != 1.0 => {
                    let field = format!("tensor '{}'", block.get(part).name);
                    let reason = "a scale in a separate tensor together with scales of rows is not supported";
                    return Err(Error::unsupported(path, field, reason));
                }
                Some(_) => {
                    outputs.push(float_matrix(&name, &block.get(part)).in_order(row_order(hyper, part)));
                }
            }
        }
    }
    outputs.push(norm(OUTPUT_NORM.1.to_owned(), &layout.output_norm));
    if let Some(output) = &layout.output {
        outputs.push(float_matrix(OUTPUT.1, output));
    }

    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let out = folder.join("model.safetensors");
    let bytes = write_whole(&out, |writer| {
        let planned: Vec<Planned> = outputs.iter().map(|output| output.planned.clone()).collect();
        write_table(writer, &planned).map_err(Error::io(&out))?;
        for output in &outputs {
            output.write(writer).map_err(Error::io(&out))?;
        }
        writer.flush().map_err(Error::io(&out))?;
        writer.get_ref().metadata().map(|facts| facts.len()).map_err(Error::io(&out))
    })?;
    let config_path = folder.join("config.json");
    let json = config::render(hyper, layout.output.is_none(), packed);
    write_whole(&config_path, |writer| writeln!(writer, "{json:#}").map_err(Error::io(&config_path)))?;
    Ok(Summary {
        checkpoint: if packed { Checkpoint::Multiplying } else { Checkpoint::Lattice },
        n_tensors: outputs.len(),
        bytes,
        notes: vec!["the tokenizer's files were not written; copy them from the model's source".to_owned()],
    })
}

/// A ternary matrix becomes two tensors: its codes, and its scale, multiplied by `factor`.
fn matrix<'a>(
    path: &Path,
    name: String,
    tensor: Tensor<'a>,
    factor: f32,
    order: Option<Rows>,
) -> Result<[Output<'a>; 2], Error> {
    let (n_rows, n_columns) = (tensor.n_rows(), tensor.n_columns());
    let n_weights = n_rows * n_columns;
    if !n_rows.is_multiple_of(4) {
        let tensor = format!("tensor '{}'", tensor.name);
        return Err(Error::unsupported(path, tensor, weights::rows_of_four(n_rows)));
    }
    let scale = factor * i2s::scale(tensor.data, n_weights).expect("because check_model read the scale");
    // bf16 where nothing is lost by it, as in Microsoft's checkpoint.
    let (dtype, scale) = match weights::to_bf16_exactly(scale) {
        Some(bytes) => (Dtype::BF16, bytes.to_vec()),
        None => (Dtype::F32, scale.to_le_bytes().to_vec()),
    };
    let scale_name = scale_of(&name);
    let codes = Planned { name, dtype: Dtype::U8, shape: vec![n_rows / 4, n_columns] };
    Ok([
        Output { planned: codes, bytes: Bytes::Packed(tensor, order) },
        Output { planned: Planned { name: scale_name, dtype, shape: vec![1] }, bytes: Bytes::Ready(scale) },
    ])
}

fn norm<'a>(name: String, tensor: &Tensor<'a>) -> Output<'a> {
    let planned = Planned { name, dtype: Dtype::F32, shape: vec![tensor.n_columns()] };
    Output { planned, bytes: Bytes::Same(tensor.data) }
}

fn float_matrix<'a>(name: &str, tensor: &Tensor<'a>) -> Output<'a> {
    let (dtype, bytes) = match tensor.kind {
        Kind::F16 => (Dtype::F16, Bytes::Same(tensor.data)),
        Kind::F32 => (Dtype::F32, Bytes::Same(tensor.data)),
        Kind::BF16 => (Dtype::BF16, Bytes::Same(tensor.data)),
        // Scales of these are f32; all other ternary types have f16 ones.
        kind if kind.is_ternary() && ![Kind::I2S, Kind::IQ2BN].contains(&kind) => {
            (Dtype::F16, Bytes::Widened(*tensor, None))
        }
        _ => (Dtype::F32, Bytes::Widened(*tensor, None)),
    };
    let shape = vec![tensor.n_rows(), tensor.n_columns()];
    Output { planned: Planned { name: name.to_owned(), dtype, shape }, bytes }
}

impl Output<'_> {
    /// The same with the rows of the checkpoint found by `order`.
    fn in_order(mut self, order: Option<Rows>) -> Self {
        if let Bytes::Widened(_, of) = &mut self.bytes {
            *of = order;
        }
        self
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let place = |order: &Option<Rows>, row: usize| match order {
            None => row,
            Some(order) => order.of(row).expect("because heads are not padded here"),
        };
        match &self.bytes {
            Bytes::Ready(bytes) => out.write_all(bytes),
            Bytes::Same(bytes) => out.write_all(bytes),
            Bytes::Packed(tensor, order) => out.write_all(&weights::pack(tensor, |row| place(order, row))),
            Bytes::Widened(tensor, order) => {
                let mut row = vec![0.0; tensor.n_columns()];
                (0..tensor.n_rows()).try_for_each(|index| {
                    rows::read(tensor, place(order, index), &mut row);
                    row.iter().try_for_each(|value| match self.planned.dtype {
                        Dtype::F16 => out.write_all(&rows::f32_to_f16(*value).to_le_bytes()),
                        _ => out.write_all(&value.to_le_bytes()),
                    })
                })
            }
        }
    }
}
