//! A checkpoint to I2_S GGUF.

use std::collections::BTreeSet;
use std::path::Path;

use super::config::Config;
use super::names::{EMBEDDING, OUTPUT, OUTPUT_NORM, PARTS, Part};
use super::safetensors::Reader;
use super::{Checkpoint, Error, Summary, tokenizer, weights, write_whole};
use crate::gguf::write::{Item, Plan};
use crate::gguf::{Hyper, Kind, i2s};

/// Where a planned tensor comes from.
#[derive(Debug, Clone)]
enum Origin {
    /// A float matrix of (vocab, hidden), narrowed to f16.
    Half(&'static str),
    /// A norm's weights of this width, as f32.
    Norm(String, usize),
    /// A ternary matrix of a layer.
    Ternary(Part, usize),
}

/// Converts the checkpoint in `folder` (config.json, one or more safetensors files, tokenizer.json if there is
/// one) to an I2_S GGUF at `out`, which appears whole or not at all.
pub fn to_gguf(folder: &Path, out: &Path) -> Result<Summary, Error> {
    let config = Config::read(folder)?;
    let reader = Reader::open(folder)?;
    let mut notes = Vec::new();
    if config.silent {
        notes.push(
            "config.json says nothing about quantisation; the weights were taken for master weights"
                .to_owned(),
        );
    }
    let (tensors, origins) = plan_tensors(&config);
    notes.extend(check_names(folder, &config, &reader, &origins)?);
    let mut plan = metadata(&config.hyper);
    notes.extend(tokenizer::write(&mut plan, folder, config.hyper.vocab)?);
    for (key, id) in [("bos", config.hyper.bos), ("eos", config.hyper.eos), ("padding", config.pad)] {
        if let Some(id) = id {
            plan.entry(format!("tokenizer.ggml.{key}_token_id"), Item::U32(id));
        }
    }
    plan.tensors = tensors;

    let mut n_rounded = 0;
    let bytes = write_whole(out, |file| {
        let mut writer = plan.begin(file).map_err(Error::io(out))?;
        for origin in &origins {
            writer.advance().map_err(Error::io(out))?;
            let sink = |bytes: &[u8]| writer.write(bytes).map_err(Error::io(out));
            n_rounded += convert(&config, &reader, origin, sink)?;
        }
        let file = writer.finish().map_err(Error::io(out))?;
        file.get_ref().metadata().map(|facts| facts.len()).map_err(Error::io(out))
    })?;
    if n_rounded > 0 {
        notes.push(format!("{n_rounded} weights of the embedding or the output matrix were rounded to f16"));
    }
    Ok(Summary { checkpoint: config.checkpoint, n_tensors: origins.len(), bytes, notes })
}

/// The tensors of the GGUF in the official file's order, and where each comes from.
fn plan_tensors(config: &Config) -> (Vec<crate::gguf::write::Planned>, Vec<Origin>) {
    let hyper = &config.hyper;
    let (mut plan, mut origins) = (Plan::default(), Vec::new());
    plan.tensor(EMBEDDING.0, &[hyper.hidden, hyper.vocab], Kind::F16);
    origins.push(Origin::Half(EMBEDDING.1));
    for layer in 0..hyper.n_layers {
        for part in PARTS {
            let (n_rows, n_columns) = shape(hyper, &part);
            match n_columns {
                None => {
                    plan.tensor(part.gguf_name(layer), &[n_rows], Kind::F32);
                    origins.push(Origin::Norm(part.hugging_face_name(layer), n_rows));
                }
                Some(n_columns) => {
                    plan.tensor(part.gguf_name(layer), &[n_columns, n_rows], Kind::I2S);
                    origins.push(Origin::Ternary(part, layer));
                }
            }
        }
    }
    plan.tensor(OUTPUT_NORM.0, &[hyper.hidden], Kind::F32);
    origins.push(Origin::Norm(OUTPUT_NORM.1.to_owned(), hyper.hidden));
    if !config.tied {
        plan.tensor(OUTPUT.0, &[hyper.hidden, hyper.vocab], Kind::F16);
        origins.push(Origin::Half(OUTPUT.1));
    }
    (plan.tensors, origins)
}

fn shape(hyper: &Hyper, part: &Part) -> (usize, Option<usize>) {
    (Config::width(hyper, part.rows), part.columns.map(|width| Config::width(hyper, width)))
}

/// Refuses a checkpoint with a tensor that would be left out, as a bias would: the result would be another
/// model. The output matrix of a tied model is the one exception, and gives a note.
fn check_names(
    folder: &Path,
    config: &Config,
    reader: &Reader,
    origins: &[Origin],
) -> Result<Option<String>, Error> {
    let mut known = BTreeSet::new();
    for origin in origins {
        match origin {
            Origin::Half(name) => known.insert((*name).to_owned()),
            Origin::Norm(name, _) => known.insert(name.clone()),
            Origin::Ternary(part, layer) => {
                if config.checkpoint != Checkpoint::Master {
                    known.insert(part.scale_name(*layer));
                }
                known.insert(part.hugging_face_name(*layer))
            }
        };
    }
    let mut note = None;
    for name in reader.names().filter(|name| !known.contains(*name)) {
        if config.tied && name == OUTPUT.1 {
            note = Some(format!(
                "{name} was left out: config.json says that the output is tied to the embedding"
            ));
            continue;
        }
        let reason = "the architecture has no such tensor, and leaving it out would make another model";
        return Err(Error::unsupported(folder, format!("tensor '{}'", name.escape_debug()), reason));
    }
    Ok(note)
}

/// Hands on the bytes of one tensor; returns how many weights were rounded.
fn convert(
    config: &Config,
    reader: &Reader,
    origin: &Origin,
    mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let hyper = &config.hyper;
    match origin {
        Origin::Half(name) => weights::to_f16(&reader.get(name, &[hyper.vocab, hyper.hidden])?, sink),
        Origin::Norm(name, width) => {
            let weights = weights::floats(&reader.get(name, &[*width])?)?;
            sink(&weights.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).map(|()| 0)
        }
        Origin::Ternary(part, layer) => sink(&ternary(config, reader, part, *layer)?).map(|()| 0),
    }
}

fn ternary(config: &Config, reader: &Reader, part: &Part, layer: usize) -> Result<Vec<u8>, Error> {
    let name = part.hugging_face_name(layer);
    let (n_rows, n_columns) = shape(&config.hyper, part);
    let n_columns = n_columns.expect("because only matrices are planned as ternary");
    let (mut codes, scale) = match config.checkpoint {
        Checkpoint::Master => weights::ternarise(&reader.get(&name, &[n_rows, n_columns])?, n_columns)?,
        Checkpoint::Multiplying | Checkpoint::Dividing => {
            let packed = reader.get(&name, &[n_rows / 4, n_columns])?;
            let scale = reader.get(&part.scale_name(layer), &[1])?;
            let divides = config.checkpoint == Checkpoint::Dividing;
            (weights::unpack(&packed, n_columns)?, weights::factor(&scale, divides)?)
        }
    };
    codes.extend_from_slice(&i2s::trailer(scale));
    Ok(codes)
}

/// The keys of the official file that tell the shape.
fn metadata(hyper: &Hyper) -> Plan {
    let mut plan = Plan::default();
    plan.entry("general.architecture", Item::Text(hyper.architecture.clone()));
    plan.entry("general.name", Item::Text(hyper.name.clone()));
    plan.entry("general.file_type", Item::U32(40));
    plan.entry("general.quantization_version", Item::U32(2));
    for (key, value) in [
        ("vocab_size", hyper.vocab),
        ("context_length", hyper.context),
        ("embedding_length", hyper.hidden),
        ("block_count", hyper.n_layers),
        ("feed_forward_length", hyper.ffn),
        ("rope.dimension_count", hyper.head_dim),
        ("attention.head_count", hyper.n_heads),
        ("attention.head_count_kv", hyper.n_kv_heads),
    ] {
        plan.entry(format!("{}.{key}", hyper.architecture), Item::U32(value as u32));
    }
    plan.entry(format!("{}.attention.layer_norm_rms_epsilon", hyper.architecture), Item::F32(hyper.rms_eps));
    plan.entry(format!("{}.rope.freq_base", hyper.architecture), Item::F32(hyper.rope_theta));
    plan
}
