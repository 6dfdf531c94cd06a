//! What no golden case has: a synthetic model with some tensors written in another type, or with another key. Where the weights
//! are the same, the logits are the same to the last bit; where the file cannot be right, the tensor or key is named.

use crate::common::generate;
use ternfleet_engine::gguf::write::{Item, Plan, Planned};
use ternfleet_engine::gguf::{Element, File, Kind, Value, i2s, rows, ternary};
use ternfleet_engine::synth;
use ternfleet_engine::{Engine, LoadError, Options, Request, Sampling};

const LLAMA: &str = "llama:2x256x512x4x2x512";
const BITNET: &str = "bitnet:2x256x512x4x2x512";

/// A model file in pieces that can be exchanged.
#[derive(Clone)]
struct Model {
    entries: Vec<(String, Item)>,
    tensors: Vec<(Planned, Vec<u8>)>,
}

impl Model {
    fn synthetic(shape: &str) -> Model {
        let mut bytes = Vec::new();
        synth::write(&shape.parse().unwrap(), 7, &mut bytes).unwrap();
        let file = File::from_bytes(bytes).unwrap();
        let item = |key: &str, value: &Value| match value {
            Value::Unsigned(value) => Item::U32(*value as u32),
            Value::Signed(value) => Item::I32(*value as i32),
            Value::Float(value) => Item::F32(*value as f32),
            Value::Bool(value) => Item::Bool(*value),
            Value::Text(value) => Item::Text(value.clone()),
            Value::Array(array) => match array.element {
                Element::String => {
                    Item::Texts(file.strings(key).unwrap().unwrap().into_iter().map(str::to_owned).collect())
                }
                Element::F32 => Item::F32s(file.floats(key).unwrap().unwrap()),
                _ => Item::I32s(
                    file.integers(key).unwrap().unwrap().into_iter().map(|value| value as i32).collect(),
                ),
            },
        };
        let tensors = file.tensors().map(|tensor| {
            let planned =
                Planned { name: tensor.name.to_owned(), dims: tensor.dims.to_vec(), kind: tensor.kind };
            (planned, tensor.data.to_vec())
        });
        Model {
            entries: file.entries().map(|(key, value)| (key.to_owned(), item(key, value))).collect(),
            tensors: tensors.collect(),
        }
    }

    fn key(mut self, key: &str, item: Item) -> Model {
        self.entries.push((key.to_owned(), item));
        self
    }

    /// Adds a tensor, or replaces the one of this name.
    fn tensor(mut self, name: &str, dims: &[u64], kind: Kind, data: Vec<u8>) -> Model {
        self.tensors.retain(|(planned, _)| planned.name != name);
        self.tensors.push((Planned { name: name.to_owned(), dims: dims.to_vec(), kind }, data));
        self
    }

    fn load(&self) -> Result<Engine, LoadError> {
        let plan = Plan {
            entries: self.entries.clone(),
            tensors: self.tensors.iter().map(|(planned, _)| planned.clone()).collect(),
        };
        let mut writer = plan.begin(Vec::new()).unwrap();
        for (_, data) in &self.tensors {
            writer.advance().unwrap();
            writer.write(data).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, writer.finish().unwrap()).unwrap();
        Engine::load(&path, &Options { threads: Some(1), max_context: Some(64), ..Options::default() })
    }

    /// The bits of all logits of a prompt, and what is generated after it through the screened output matrix.
    fn bits(&self) -> (Vec<u32>, Vec<u32>) {
        let mut engine = self.load().unwrap();
        let prompt: Vec<u32> = (0..23).map(|at| at * 37 % 512).collect();
        let logits = engine.logits(&prompt).unwrap().into_iter().map(f32::to_bits).collect();
        let request =
            Request { prompt, max_new_tokens: 8, sampling: Sampling::default(), ..Request::default() };
        (logits, generate(&mut engine, request))
    }

    fn refused(&self, parts: &[&str]) {
        let refusal = self.load().map(|_| ()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| refusal.contains(part)), "{parts:?} are not in: {refusal}");
    }

    /// The first scale of a matrix is no number.
    fn nan_in(mut self, name: &str) -> Model {
        let (planned, data) = self.tensors.iter_mut().find(|(planned, _)| planned.name == name).unwrap();
        match planned.kind {
            Kind::IQ2BN => data[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            _ => data[..2].copy_from_slice(&0x7e00u16.to_le_bytes()),
        }
        self
    }

    /// All ternary matrices by `encode`, which gets codes and scale of each and is told which one it is.
    fn ternary(mut self, kind: Kind, encode: impl Fn(usize, &[u8], usize, f32) -> Vec<u8>) -> Model {
        let matrices = self.tensors.iter_mut().filter(|(planned, _)| planned.kind == Kind::I2S);
        for (index, (planned, data)) in matrices.enumerate() {
            let n: u64 = planned.dims.iter().product();
            let codes: Vec<u8> = (0..n as usize).map(|weight| i2s::code(data, weight)).collect();
            let scale = i2s::scale(data, n as usize).unwrap();
            *data = encode(index, &codes, planned.dims[0] as usize, scale);
            planned.kind = kind;
        }
        self
    }
}

/// A matrix of floats that every type here holds exactly: small integers times a power of two for each 32 weights.
fn exact(kind: Kind, seed: usize) -> Vec<u8> {
    let quant = |at: usize| ((at + seed).wrapping_mul(2_654_435_761) >> 13) as u8 as i8;
    let blocks = (0..512 * 256 / 32).map(|block| (block, 2f32.powi(-10 - (block as i32 + seed as i32) % 3)));
    let bytes = blocks.flat_map(|(block, scale)| {
        let quants = (block * 32..block * 32 + 32).map(quant);
        let values = quants.clone().map(|quant| f32::from(quant) * scale);
        match kind {
            Kind::F32 => values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
            Kind::F16 => values.flat_map(|value| rows::f32_to_f16(value).to_le_bytes()).collect(),
            Kind::BF16 => values.flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect(),
            Kind::Q8_0 => {
                let scale = rows::f32_to_f16(scale).to_le_bytes();
                scale.into_iter().chain(quants.map(|quant| quant as u8)).collect()
            }
            kind => panic!("{kind} is not written here"),
        }
    });
    bytes.collect()
}

#[test]
fn embedding_and_output_matrix_give_the_same_bits_in_every_exact_type() {
    let model = |embedding: Kind, output: Option<Kind>| {
        let model = Model::synthetic(LLAMA);
        let model = model.tensor("token_embd.weight", &[256, 512], embedding, exact(embedding, 1));
        match output {
            Some(output) => model.tensor("output.weight", &[256, 512], output, exact(output, 2)),
            None => model,
        }
    };
    let (tied, separate) = (model(Kind::F16, None).bits(), model(Kind::F16, Some(Kind::F16)).bits());
    assert_ne!(tied, separate, "the output matrix is read");
    for kind in [Kind::F32, Kind::BF16, Kind::Q8_0] {
        assert!(model(kind, None).bits() == tied, "{kind}, tied");
        assert!(model(kind, Some(Kind::F16)).bits() == separate, "{kind} embedding");
        assert!(model(Kind::F16, Some(kind)).bits() == separate, "{kind} output matrix");
    }
}

/// An IQ2_BN row: an f32 scale, then 64 weights in 16 bytes, weight e in byte e mod 16 at bit 2 · (e div 16).
fn iq2_bn(codes: &[u8], scale: f32) -> Vec<u8> {
    let mut bytes = scale.to_le_bytes().to_vec();
    for block in codes.chunks(64) {
        let byte = |at: usize| (0..4).fold(0, |byte, pair| byte | block[at + 16 * pair] << (2 * pair));
        bytes.extend((0..16).map(byte));
    }
    bytes
}

/// An IQ1_BN row: an f16 scale, then 64 weights in 13 bytes of base-3 digits, the first one least significant.
fn iq1_bn(codes: &[u8], scale: f32) -> Vec<u8> {
    let byte = |weights: &[u8]| {
        let value: u32 =
            weights.iter().zip([1, 3, 9, 27, 81]).map(|(&code, power)| u32::from(code) * power).sum();
        (256 * value).div_ceil(243) as u8
    };
    let mut bytes = rows::f32_to_f16(scale).to_le_bytes().to_vec();
    for block in codes.chunks(64) {
        for run in block.chunks(16) {
            bytes.extend(run[..15].chunks(5).map(byte));
        }
        bytes.push(byte(&[block[15], block[31], block[47], block[63]]));
    }
    bytes
}

/// The scale of a tensor as f16 has it, and one for each row that differs from its neighbours'.
fn scale_of_row(scale: f32, row: usize) -> f32 {
    rows::f16_to_f32(rows::f32_to_f16(scale * (1.0 + row as f32 % 7.0 / 16.0)))
}

#[test]
fn types_of_ik_llama_give_the_bits_of_i2_s_and_of_tq2_0() {
    let model = Model::synthetic(LLAMA);
    let of_rows = |kind: Kind, n_scales: usize, row: fn(&[u8], f32) -> Vec<u8>| {
        model.clone().ternary(kind, |_, codes, width, scale| {
            let rows = codes.chunks(width).enumerate();
            rows.flat_map(|(at, codes)| row(codes, scale_of_row(scale, at % n_scales))).collect()
        })
    };
    let i2_s = model.clone().ternary(Kind::I2S, |_, codes, _, scale| {
        let weights: Vec<i8> = codes.iter().map(|&code| code as i8 - 1).collect();
        i2s::encode(&weights, scale_of_row(scale, 0))
    });
    let tq2_0 = of_rows(Kind::TQ2_0, 512, |codes, scale| {
        let scales = vec![scale; codes.len() / 256];
        ternary::encode(Kind::TQ2_0, &ternary::Row { codes: codes.to_vec(), scales })
    });
    let (one_scale, scales_of_rows) = (i2_s.bits(), tq2_0.bits());
    assert_ne!(one_scale, scales_of_rows);
    for (kind, row) in [(Kind::IQ2BN, iq2_bn as fn(&[u8], f32) -> Vec<u8>), (Kind::IQ1BN, iq1_bn)] {
        assert!(of_rows(kind, 1, row).bits() == one_scale, "{kind}, one scale");
        assert!(of_rows(kind, 512, row).bits() == scales_of_rows, "{kind}, a scale for each row");
        of_rows(kind, 1, row)
            .nan_in("blk.1.ffn_up.weight")
            .refused(&["'blk.1.ffn_up.weight'", "not a finite"]);
    }
    // Base 3 has no fourth code; two bits have one.
    let three = |codes: &[u8], scale: f32| {
        let mut row = iq2_bn(codes, scale);
        row[4 + 16] |= 3;
        row
    };
    of_rows(Kind::IQ2BN, 1, three).refused(&["tensor 'blk.0.", "row 0, weight 64 has the code 3"]);
}

#[test]
fn scales_in_tensors_of_their_own_multiply_those_of_the_matrices() {
    let model = Model::synthetic(BITNET);
    let factor = |index: usize| [2.0, 0.5, 1.25, 3.0, 0.75][index % 5];
    let twin = model.clone().ternary(Kind::I2S, |index, codes, _, scale| {
        let weights: Vec<i8> = codes.iter().map(|&code| code as i8 - 1).collect();
        i2s::encode(&weights, scale * factor(index))
    });
    let names: Vec<String> = model
        .tensors
        .iter()
        .filter(|(planned, _)| planned.kind == Kind::I2S)
        .map(|(planned, _)| planned.name.clone())
        .collect();
    let scale_of = |name: &str| name.replace(".weight", ".scale");
    let scaled = names.iter().enumerate().fold(model.clone(), |model, (index, name)| {
        model.tensor(&scale_of(name), &[1], Kind::F32, factor(index).to_le_bytes().to_vec())
    });
    assert_eq!(names.len(), 14);
    assert_ne!(model.bits(), twin.bits());
    assert!(scaled.bits() == twin.bits());

    let with = |model: &Model, dims: &[u64], values: &[f32]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        model.clone().tensor("blk.1.attn_q.scale", dims, Kind::F32, data)
    };
    let name = "'blk.1.attn_q.scale'";
    with(&model, &[1], &[f32::NAN]).refused(&[name, "not a finite number"]);
    with(&model, &[2], &[1.0, 1.0]).refused(&[name, "its dims are [2]"]);
    with(&Model::synthetic(LLAMA), &[1], &[1.0]).refused(&[name, "the architecture has no such tensor"]);
}

#[test]
fn linear_rotary_scaling_is_accepted_by_one_alone() {
    let linear = || Model::synthetic(LLAMA).key("llama.rope.scaling.type", Item::Text("linear".into()));
    let plain = Model::synthetic(LLAMA).bits();
    assert!(linear().bits() == plain);
    assert!(linear().key("llama.rope.scaling.factor", Item::F32(1.0)).bits() == plain);
    linear()
        .key("llama.rope.scaling.factor", Item::F32(2.0))
        .refused(&["'llama.rope.scaling.factor'", "2 is not supported"]);
}
