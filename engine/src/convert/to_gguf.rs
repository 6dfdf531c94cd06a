//! A checkpoint to GGUF.

use std::collections::BTreeSet;
use std::path::Path;

use super::config::Config;
use super::names::{EMBEDDING, OUTPUT, OUTPUT_NORM, in_checkpoint, scale_of};
use super::safetensors::Reader;
use super::{Checkpoint, Error, Summary, lattice, tokenizer, weights, write_whole};
use crate::gguf::architecture::{Part, Rounding, RowOrder};
use crate::gguf::write::{Item, Plan};
use crate::gguf::{Hyper, Kind, Scaling, i2s};
use crate::pack::Rows;

/// Where a planned tensor comes from.
#[derive(Debug, Clone)]
enum Origin {
    /// A float matrix of (vocab, hidden), narrowed to f16.
    Half(&'static str),
    /// A norm's weights of this width, as f32.
    Norm(String, usize),
    /// A matrix of (vocab, hidden) on the ternary lattice.
    Lattice(&'static str),
    /// A ternary matrix of a layer.
    Ternary(Part, usize),
    /// What rotary frequencies are divided by.
    RopeFactors,
}

/// Converts the checkpoint in `folder` (config.json, one or more safetensors files, tokenizer.json if there is
/// one) to a GGUF at `out`, which appears whole or not at all.
pub fn to_gguf(folder: &Path, out: &Path) -> Result<Summary, Error> {
    let config = Config::read(folder)?;
    let reader = Reader::open(folder)?;
    let mut notes = Vec::new();
    if config.silent {
        notes.push(
            "config.json does not mention quantisation; the weights were treated as master weights"
                .to_owned(),
        );
    }
    let (tensors, origins) = plan_tensors(&config, &reader)?;
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
            let planned = writer.advance().map_err(Error::io(out))?;
            let kind = planned.expect("because each planned tensor has an origin").kind;
            let sink = |bytes: &[u8]| writer.write(bytes).map_err(Error::io(out));
            n_rounded += convert(&config, &reader, origin, kind, sink)?;
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
fn plan_tensors(
    config: &Config,
    reader: &Reader,
) -> Result<(Vec<crate::gguf::write::Planned>, Vec<Origin>), Error> {
    let hyper = &config.hyper;
    let (mut plan, mut origins) = (Plan::default(), Vec::new());
    // Where activations are rounded by groups, embedding and output matrix are ternary like the rest, or floats.
    let outer = |name: &'static str| -> Result<(Kind, Origin), Error> {
        let tensor = reader.get(name, &[hyper.vocab, hyper.hidden])?;
        if config.checkpoint == Checkpoint::Lattice
            && hyper.graph.rounding == Rounding::Groups
            && let Ok(kind) = lattice::kind(&tensor, hyper.hidden, Rounding::Groups)
        {
            return Ok((kind, Origin::Lattice(name)));
        }
        Ok((Kind::F16, Origin::Half(name)))
    };
    let (kind, origin) = outer(EMBEDDING.1)?;
    plan.tensor(EMBEDDING.0, &[hyper.hidden, hyper.vocab], kind);
    origins.push(origin);
    if config.rope_factors.is_some() {
        plan.tensor("rope_freqs.weight", &[hyper.head_dim / 2], Kind::F32);
        origins.push(Origin::RopeFactors);
    }
    for layer in 0..hyper.n_layers {
        for part in hyper.graph.parts() {
            let dims = hyper.dims(part);
            match part.columns() {
                None => {
                    plan.tensor(part.tensor(layer), &dims, Kind::F32);
                    origins.push(Origin::Norm(in_checkpoint(hyper.graph, part, layer), dims[0]));
                }
                Some(_) => {
                    let kind = match config.checkpoint {
                        Checkpoint::Lattice => {
                            let name = in_checkpoint(hyper.graph, part, layer);
                            lattice::kind(
                                &reader.get(&name, &[dims[1], dims[0]])?,
                                dims[0],
                                hyper.graph.rounding,
                            )?
                        }
                        _ => Kind::I2S,
                    };
                    plan.tensor(part.tensor(layer), &dims, kind);
                    origins.push(Origin::Ternary(part, layer));
                }
            }
        }
    }
    plan.tensor(OUTPUT_NORM.0, &[hyper.hidden], Kind::F32);
    origins.push(Origin::Norm(OUTPUT_NORM.1.to_owned(), hyper.hidden));
    if !config.tied {
        let (kind, origin) = outer(OUTPUT.1)?;
        plan.tensor(OUTPUT.0, &[hyper.hidden, hyper.vocab], kind);
        origins.push(origin);
    }
    Ok((plan.tensors, origins))
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
            Origin::RopeFactors => false,
            Origin::Half(name) | Origin::Lattice(name) => known.insert((*name).to_owned()),
            Origin::Norm(name, _) => known.insert(name.clone()),
            Origin::Ternary(part, layer) => {
                let name = in_checkpoint(config.hyper.graph, *part, *layer);
                if matches!(config.checkpoint, Checkpoint::Multiplying | Checkpoint::Dividing) {
                    known.insert(scale_of(&name));
                }
                known.insert(name)
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
        let reason = "the architecture has no such tensor, and the model would differ without it";
        return Err(Error::unsupported(folder, format!("tensor '{}'", name.escape_debug()), reason));
    }
    Ok(note)
}

/// Hands on the bytes of one tensor; returns how many weights were rounded.
fn convert(
    config: &Config,
    reader: &Reader,
    origin: &Origin,
    kind: Kind,
    mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let hyper = &config.hyper;
    match origin {
        Origin::Half(name) => weights::to_f16(&reader.get(name, &[hyper.vocab, hyper.hidden])?, sink),
        Origin::Norm(name, width) => {
            let weights = weights::floats(&reader.get(name, &[*width])?)?;
            sink(&weights.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).map(|()| 0)
        }
        Origin::RopeFactors => {
            let factors = config.rope_factors.iter().flatten();
            sink(&factors.flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>()).map(|()| 0)
        }
        Origin::Lattice(name) => {
            let tensor = reader.get(name, &[hyper.vocab, hyper.hidden])?;
            sink(&lattice::encode(&tensor, hyper.hidden, kind)?.0).map(|()| 0)
        }
        Origin::Ternary(part, layer) => sink(&ternary(config, reader, *part, *layer, kind)?).map(|()| 0),
    }
}

fn ternary(config: &Config, reader: &Reader, part: Part, layer: usize, kind: Kind) -> Result<Vec<u8>, Error> {
    let name = in_checkpoint(config.hyper.graph, part, layer);
    let dims = config.hyper.dims(part);
    let (n_columns, n_rows) = (dims[0], dims[1]);
    let (mut codes, scale) = match config.checkpoint {
        Checkpoint::Lattice => lattice::encode(&reader.get(&name, &[n_rows, n_columns])?, n_columns, kind)?,
        Checkpoint::Master => weights::ternarise(&reader.get(&name, &[n_rows, n_columns])?, n_columns)?,
        Checkpoint::Multiplying | Checkpoint::Dividing => {
            if !n_rows.is_multiple_of(4) {
                let tensor = format!("tensor '{name}'");
                return Err(Error::unsupported(reader.path(), tensor, weights::rows_of_four(n_rows)));
            }
            let packed = reader.get(&name, &[n_rows / 4, n_columns])?;
            let scale = reader.get(&scale_of(&name), &[1])?;
            let divides = config.checkpoint == Checkpoint::Dividing;
            (weights::unpack(&packed, n_columns)?, weights::factor(&scale, divides)?)
        }
    };
    if let Some(order) = row_order(&config.hyper, part) {
        let row_bytes = codes.len() / n_rows;
        let mut moved = vec![0; codes.len()];
        for (row, bytes) in codes.chunks_exact(row_bytes).enumerate() {
            let to = order.of(row).expect("because heads are not padded here");
            moved[to * row_bytes..][..row_bytes].copy_from_slice(bytes);
        }
        codes = moved;
    }
    if kind == Kind::I2S {
        codes.extend_from_slice(&i2s::trailer(scale));
    }
    Ok(codes)
}

/// Where a GGUF has a checkpoint's rows, if not at the same place.
pub(super) fn row_order(hyper: &Hyper, part: Part) -> Option<Rows> {
    let (head_dim, order) = (hyper.head_dim, hyper.graph.row_order);
    let moved = part.is_rotated() && order == RowOrder::Pairs;
    moved.then_some(Rows::Heads { head_dim, stride: head_dim, order })
}

/// The keys of the official file that tell the shape.
fn metadata(hyper: &Hyper) -> Plan {
    let mut plan = Plan::default();
    plan.entry("general.architecture", Item::Text(hyper.architecture.clone()));
    plan.entry("general.name", Item::Text(hyper.name.clone()));
    plan.entry("general.file_type", Item::U32(hyper.graph.rounding.file_type()));
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
    if hyper.head_dim * hyper.n_heads != hyper.hidden {
        for key in ["key_length", "value_length"] {
            plan.entry(format!("{}.attention.{key}", hyper.architecture), Item::U32(hyper.head_dim as u32));
        }
    }
    if let Scaling::Yarn { factor, original_context } = hyper.rope_scaling {
        let own = |key: &str| format!("{}.rope.scaling.{key}", hyper.architecture);
        plan.entry(own("type"), Item::Text("yarn".into()));
        plan.entry(own("factor"), Item::F32(factor));
        plan.entry(own("original_context_length"), Item::U32(original_context as u32));
    }
    plan
}
