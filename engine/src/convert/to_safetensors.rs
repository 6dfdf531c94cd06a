//! I2_S GGUF to a packed checkpoint, as transformers loads it: four rows in a byte, scales that multiply.

use std::io::Write;
use std::path::Path;

use super::config::{self, Config};
use super::names::{EMBEDDING, OUTPUT, OUTPUT_NORM, PARTS, Part};
use super::safetensors::{Dtype, Planned, write_table};
use super::{Checkpoint, Error, Summary, weights, write_whole};
use crate::gguf::{self, File, Hyper, Kind, Tensor, i2s, rows};

/// A tensor of the checkpoint, and how its bytes are made when their turn comes.
struct Output<'a> {
    planned: Planned,
    bytes: Bytes<'a>,
}

enum Bytes<'a> {
    Ready(Vec<u8>),
    /// The bytes of the file as they are.
    Same(&'a [u8]),
    /// I2_S to four rows in a byte.
    Packed(Tensor<'a>),
    /// A quantised matrix, widened to f32.
    Widened(Tensor<'a>),
}

/// Converts the GGUF at `path` to `config.json` and `model.safetensors` in `folder`, which is made if it is
/// not there; each file appears whole or not at all. The tokenizer's files are not made: a GGUF does not hold
/// all that they say.
pub fn to_safetensors(path: &Path, folder: &Path) -> Result<Summary, Error> {
    let file = File::open(path)?;
    let layout = gguf::check_model(&file)?;
    let hyper = &layout.hyper;
    let mut outputs = vec![float_matrix(EMBEDDING.1, &layout.token_embd)];
    for layer in 0..hyper.n_layers {
        for part in PARTS {
            // `check_model` has seen every one of them.
            let name = part.gguf_name(layer);
            let tensor = file.tensor(&name).expect("because check_model found every tensor of every layer");
            match part.columns {
                None => outputs.push(norm(part.hugging_face_name(layer), &tensor)),
                Some(_) => outputs.extend(matrix(path, hyper, &part, layer, tensor)?),
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
    let json = config::render(hyper, layout.output.is_none());
    write_whole(&config_path, |writer| writeln!(writer, "{json:#}").map_err(Error::io(&config_path)))?;
    Ok(Summary {
        checkpoint: Checkpoint::Multiplying,
        n_tensors: outputs.len(),
        bytes,
        notes: vec!["the tokenizer's files were not written; take them from the model's source".to_owned()],
    })
}

/// A ternary matrix becomes two tensors: its codes, and its scale.
fn matrix<'a>(
    path: &Path,
    hyper: &Hyper,
    part: &Part,
    layer: usize,
    tensor: Tensor<'a>,
) -> Result<[Output<'a>; 2], Error> {
    let (n_rows, n_columns) = (Config::width(hyper, part.rows), tensor.n_columns());
    let n_weights = n_rows * n_columns;
    if !n_rows.is_multiple_of(4) {
        let reason = format!("{n_rows} rows do not pack into bytes of four");
        return Err(Error::unsupported(path, format!("tensor '{}'", tensor.name), reason));
    }
    if let Err(fault) = i2s::check(tensor.data, n_weights) {
        return Err(Error::damaged(path, format!("tensor '{}'", tensor.name), fault.to_string()));
    }
    let scale = i2s::scale(tensor.data, n_weights).expect("because check_model read the scale");
    // bf16 where nothing is lost by it, as in Microsoft's checkpoint.
    let (dtype, scale) = match weights::to_bf16_exactly(scale) {
        Some(bytes) => (Dtype::BF16, bytes.to_vec()),
        None => (Dtype::F32, scale.to_le_bytes().to_vec()),
    };
    let codes =
        Planned { name: part.hugging_face_name(layer), dtype: Dtype::U8, shape: vec![n_rows / 4, n_columns] };
    Ok([
        Output { planned: codes, bytes: Bytes::Packed(tensor) },
        Output {
            planned: Planned { name: part.scale_name(layer), dtype, shape: vec![1] },
            bytes: Bytes::Ready(scale),
        },
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
        _ => (Dtype::F32, Bytes::Widened(*tensor)),
    };
    let shape = vec![tensor.n_rows(), tensor.n_columns()];
    Output { planned: Planned { name: name.to_owned(), dtype, shape }, bytes }
}

impl Output<'_> {
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        match &self.bytes {
            Bytes::Ready(bytes) => out.write_all(bytes),
            Bytes::Same(bytes) => out.write_all(bytes),
            Bytes::Packed(tensor) => {
                out.write_all(&weights::pack(tensor.data, tensor.n_rows(), tensor.n_columns()))
            }
            Bytes::Widened(tensor) => {
                let mut row = vec![0.0; tensor.n_columns()];
                (0..tensor.n_rows()).try_for_each(|index| {
                    rows::read(tensor, index, &mut row);
                    row.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
                })
            }
        }
    }
}
