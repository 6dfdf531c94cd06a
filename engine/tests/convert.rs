//! Conversions against checkpoints that Hugging Face's own code made and ran (`tests/convert/` at the root):
//! the same ternary codes to the last one, the same scales, and logits as close as rounding allows.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::path::{Path, PathBuf};

use serde_json::Value;
use ternfleet_engine::convert::{self, Checkpoint};
use ternfleet_engine::gguf::architecture::Rounding;
use ternfleet_engine::gguf::{self, File, Hyper, ternary};
use ternfleet_engine::synth;
use ternfleet_engine::{Engine, Options};

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/convert")).join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The name of a checkpoint's matrix in a GGUF.
fn gguf_name(hugging_face: &str) -> String {
    if hugging_face == "model.embed_tokens.weight" {
        return "token_embd.weight".to_owned();
    }
    let mut parts = hugging_face.split('.').skip(2);
    let layer = parts.next().unwrap();
    let part = match parts.nth(1).unwrap() {
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        "down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{layer}.{part}.weight")
}

const FNV: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, from a digest of what came before.
fn fnv(digest: u64, bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(digest, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, id| if scores[id] > scores[best] { id } else { best })
}

/// Converts the checkpoint `name` and holds the result to its `case.json`.
fn check(name: &str, kind: Checkpoint, scale_tolerance: f64) {
    let folder = checkpoint(name);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let summary = convert::to_gguf(&folder, &path).unwrap();
    assert_eq!(summary.checkpoint, kind);
    assert_eq!(summary.bytes, std::fs::metadata(&path).unwrap().len());

    let case = json(&folder.join("case.json"));
    let file = File::open(&path).unwrap();
    gguf::check_model(&file).unwrap();
    let grouped = Hyper::read(&file).unwrap().graph.rounding == Rounding::Groups;
    for (matrix, expected) in case["matrices"].as_object().unwrap() {
        let tensor = file.tensor(&gguf_name(matrix)).unwrap();
        let (mut row, mut codes, mut scales) = (ternary::Row::default(), FNV, FNV);
        let mut halves = vec![0u16; tensor.n_columns() / ternary::GROUP];
        for index in 0..tensor.n_rows() {
            ternary::read(&tensor, index, &mut row).unwrap();
            codes = fnv(codes, row.codes.iter().copied());
            if grouped {
                row.group_scales(index, &mut halves).unwrap();
                scales = fnv(scales, halves.iter().flat_map(|half| half.to_le_bytes()));
            }
        }
        assert_eq!(format!("{codes:016x}"), expected["codes_fnv"], "{matrix}");
        if grouped {
            assert_eq!(format!("{scales:016x}"), expected["scales_fnv"], "{matrix}");
            continue;
        }
        let (scale, wanted) = (f64::from(row.scale(0).unwrap()), expected["scale"].as_f64().unwrap());
        assert!((scale - wanted).abs() <= scale_tolerance * wanted, "{matrix}: {scale} and not {wanted}");
    }

    let mut engine = Engine::load(&path, &Options::default()).unwrap();
    let (vocab, sd) = (engine.info().hyper.vocab, case["logit_sd"].as_f64().unwrap());
    for prompt in case["prompts"].as_array().unwrap() {
        let ids: Vec<u32> =
            prompt["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let expected = std::fs::read(folder.join(prompt["logits"].as_str().unwrap())).unwrap();
        let expected: Vec<f32> =
            expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let found = engine.logits(&ids).unwrap();
        assert_eq!(found.len(), expected.len());
        let square: f64 = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let rms = (square / found.len() as f64).sqrt() / sd;
        println!("{name}, {} tokens: rms {rms:.5} sd", ids.len());
        // A flip of one int8 rounding moves a row; a single position has no history through which it spreads.
        assert!(rms <= if ids.len() == 1 { 0.01 } else { 0.06 }, "{name}: rms {rms}");
        let same =
            found.chunks(vocab).zip(expected.chunks(vocab)).filter(|(a, b)| best(a) == best(b)).count();
        assert!(
            same * 10 >= ids.len() * 9,
            "{name}: the best token is the same at {same} of {} places",
            ids.len()
        );
    }
}

#[test]
fn master_weights_are_ternarised_as_the_reference_does() {
    // The reference sums |w| in f32, this engine in f64: the last bits of the mean differ.
    check("master", Checkpoint::Master, 1e-6);
}

#[test]
fn packed_weights_with_multiplying_scales_are_read_as_they_are() {
    check("packed", Checkpoint::Multiplying, 0.0);
}

#[test]
fn packed_weights_with_dividing_scales_and_a_separate_output_are_read_as_they_are() {
    check("dividing", Checkpoint::Dividing, 1e-7);
}

#[test]
fn packed_llamas_have_their_rows_where_a_gguf_has_them() {
    check("llama-dividing", Checkpoint::Dividing, 1e-7);
    // With Llama 3's rotary scaling.
    check("llama-multiplying", Checkpoint::Multiplying, 0.0);
}

#[test]
fn floats_on_the_lattice_of_groups_are_read_as_they_are() {
    check("qwen3-lattice", Checkpoint::Lattice, 0.0);
}

#[test]
fn a_checkpoint_comes_back_to_the_byte() {
    let out = tempfile::tempdir().unwrap();
    let (first, second) = (out.path().join("first.gguf"), out.path().join("second.gguf"));
    let back = out.path().join("back");
    for (name, kind) in [
        ("packed", Checkpoint::Multiplying),
        ("master", Checkpoint::Multiplying),
        ("dividing", Checkpoint::Multiplying),
        ("llama-dividing", Checkpoint::Multiplying),
        ("qwen3-lattice", Checkpoint::Lattice),
    ] {
        convert::to_gguf(&checkpoint(name), &first).unwrap();
        let summary = convert::to_safetensors(&first, &back).unwrap();
        assert_eq!(summary.checkpoint, kind);
        convert::to_gguf(&back, &second).unwrap();
        let (first, second) = (File::open(&first).unwrap(), File::open(&second).unwrap());
        assert_eq!(first.tensors().len(), second.tensors().len());
        for tensor in first.tensors() {
            assert_eq!(tensor.data, second.tensor(tensor.name).unwrap().data, "{name}: {}", tensor.name);
        }
    }
    // The weights are those of the checkpoint itself, byte for byte.
    let packed = |folder: PathBuf, matrix: &str| {
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let table_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let table: Value = serde_json::from_slice(&bytes[8..8 + table_bytes]).unwrap();
        let offsets = &table[matrix]["data_offsets"];
        let [start, end] = [0, 1].map(|side| offsets[side].as_u64().unwrap() as usize + 8 + table_bytes);
        bytes[start..end].to_vec()
    };
    for (name, matrix) in [
        ("packed", "model.layers.1.mlp.down_proj.weight"),
        ("llama-dividing", "model.layers.0.self_attn.q_proj.weight"),
    ] {
        convert::to_gguf(&checkpoint(name), &first).unwrap();
        convert::to_safetensors(&first, &back).unwrap();
        assert_eq!(packed(back.clone(), matrix), packed(checkpoint(name), matrix));
    }
}

/// Heads of two, of which one has keys: two rows, and a packed byte holds four.
#[test]
fn rows_that_do_not_fill_bytes_are_refused_both_ways() {
    let folder = changed("packed", |config| {
        config["num_attention_heads"] = 64.into();
        config["num_key_value_heads"] = 1.into();
        config["head_dim"] = 2.into();
    });
    let refused = refusal(folder.path());
    assert!(refused.contains("k_proj") && refused.contains("2 rows are not a multiple of four"), "{refused}");
    let path = folder.path().join("small.gguf");
    let shape = "llama:1x128x128x64x1x259x2".parse().unwrap();
    synth::write(&shape, 1, &mut std::fs::File::create(&path).unwrap()).unwrap();
    let refused = convert::to_safetensors(&path, folder.path()).unwrap_err().to_string();
    assert!(refused.contains("k_proj") || refused.contains("attn_k"), "{refused}");
    assert!(refused.contains("2 rows are not a multiple of four"), "{refused}");
}

/// A copy of a checkpoint, with its config changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut value = json(&config);
    change(&mut value);
    std::fs::write(&config, value.to_string()).unwrap();
    folder
}

fn refusal(folder: &Path) -> String {
    let out = folder.join("out.gguf");
    let refusal = convert::to_gguf(folder, &out).unwrap_err().to_string();
    assert!(!out.exists() && !folder.join("out.gguf.part").exists(), "nothing is left behind");
    refusal
}

#[test]
fn what_the_config_does_not_say_or_says_wrongly_is_refused() {
    let refused = |name: &str, field: &str, value: Value| {
        let folder = changed(name, |config| {
            let place = field.split('.').fold(config, |value, key| &mut value[key]);
            *place = value;
        });
        refusal(folder.path())
    };
    assert!(refused("packed", "hidden_act", "silu".into()).contains("relu2"));
    assert!(refused("packed", "model_type", "llama".into()).contains("bitnet"));
    assert!(
        refused("packed", "architectures", serde_json::json!(["GPT2LMHeadModel"]))
            .contains("Qwen3ForCausalLM")
    );
    assert!(refused("packed", "attention_bias", true.into()).contains("attention_bias"));
    assert!(
        refused("packed", "rope_parameters.rope_type", "yarn".into())
            .contains("original_max_position_embeddings")
    );
    assert!(refused("packed", "vocab_size", 321.into()).contains("model.embed_tokens.weight"));
    assert!(refused("packed", "num_hidden_layers", 1.into()).contains("the architecture has no such tensor"));
    assert!(refused("packed", "num_hidden_layers", 3.into()).contains("it is missing"));
    assert!(refused("packed", "hidden_size", (1u64 << 40).into()).contains("hidden_size"));
    assert!(refused("packed", "quantization_config.quant_method", "gptq".into()).contains("gptq"));
    assert!(
        refused("packed", "quantization_config.quantization_mode", "online".into())
            .contains("no such tensor")
    );
    assert!(refused("packed", "quantization_config", Value::Null).contains("no such tensor"));
    assert!(
        refused("master", "quantization_config.quantization_mode", "offline".into()).contains("its shape is")
    );
    assert!(refused("dividing", "quantization_config.linear_class", "other".into()).contains("'other'"));
}

#[test]
fn a_damaged_checkpoint_is_refused_by_field() {
    let damaged = |change: fn(&mut Vec<u8>)| {
        let folder = changed("packed", |_| ());
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        refusal(folder.path())
    };
    assert!(damaged(|bytes| bytes.truncate(5)).contains("its length field"));
    assert!(damaged(|bytes| bytes[..8].fill(0xff)).contains("its length field"));
    assert!(damaged(|bytes| bytes[9] = b'!').contains("its table"));
    assert!(damaged(|bytes| bytes.truncate(bytes.len() - 1)).contains("shape and offsets"));
    // From the middle on: NaN in floats, code 3 in packed matrices.
    let overwritten = damaged(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xff);
    });
    assert!(overwritten.contains("not a finite number") || overwritten.contains("code 3"), "{overwritten}");
    let folder = changed("packed", |_| ());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("model.safetensors"));
}

/// GGUF to a checkpoint and back: every tensor to the byte, and what the reference's checkpoint had computed.
#[test]
fn other_architectures_come_back_to_the_byte_and_in_the_checkpoints_order() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures");
    for (name, kind) in [
        ("a1-llama-i2s", Checkpoint::Multiplying),
        ("a3-llama-i2s-tied", Checkpoint::Multiplying),
        ("c2-llama-tq2_0-rows", Checkpoint::Lattice),
        ("b1-qwen3-q2_0-g64", Checkpoint::Lattice),
        ("b4-qwen3-yarn-tied", Checkpoint::Lattice),
        ("b4-qwen3-yarn-untied", Checkpoint::Lattice),
    ] {
        let first = golden.join(name).join("model.gguf");
        let out = tempfile::tempdir().unwrap();
        let (back, second) = (out.path().join("back"), out.path().join("second.gguf"));
        assert_eq!(convert::to_safetensors(&first, &back).unwrap().checkpoint, kind, "{name}");
        let summary = convert::to_gguf(&back, &second).unwrap();
        assert_eq!(summary.checkpoint, kind);
        let logits = |path: &Path| {
            let mut engine = Engine::load(path, &Options::default()).unwrap();
            engine.logits(&[3, 141, 59, 26, 5]).unwrap()
        };
        assert_eq!(logits(&first), logits(&second), "{name}");
    }
    let refusal = convert::to_safetensors(&golden.join("a4-llama-i2s-rope-freqs/model.gguf"), Path::new("x"));
    assert!(refusal.unwrap_err().to_string().contains("rope_freqs.weight"));
}

/// Llama-3's scaling in `config.json` gives the factors that converters write, for which the reference was computed.
#[test]
fn scaled_rotary_frequencies_and_moved_rows_are_those_of_other_converters() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures");
    let file = File::open(golden.join("a4-llama-i2s-rope-freqs/model.gguf")).unwrap();
    let factors = file.tensor("rope_freqs.weight").unwrap();
    let factors = factors.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let out = tempfile::tempdir().unwrap();
    let (back, second) = (out.path().join("back"), out.path().join("second.gguf"));
    convert::to_safetensors(&golden.join("a1-llama-i2s/model.gguf"), &back).unwrap();
    let config_path = back.join("config.json");
    let mut config = json(&config_path);
    let theta = file.float("llama.rope.freq_base").unwrap().unwrap();
    config["rope_parameters"] = serde_json::json!({
        "rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    });
    std::fs::write(&config_path, config.to_string()).unwrap();
    convert::to_gguf(&back, &second).unwrap();
    let written = File::open(&second).unwrap();
    let found = written.tensor("rope_freqs.weight").unwrap();
    let found: Vec<f32> =
        found.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    println!("{found:?} {:?}", factors.clone().collect::<Vec<_>>());
    assert_eq!(found.len(), factors.len());
    assert!(found.iter().zip(factors).all(|(a, b)| (a - b).abs() < 1e-4 * b));
}

/// A weight that is not on the lattice is named.
#[test]
fn floats_that_are_not_ternary_are_refused_by_place() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures");
    let out = tempfile::tempdir().unwrap();
    convert::to_safetensors(&golden.join("c2-llama-tq2_0-rows/model.gguf"), out.path()).unwrap();
    let path = out.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let table_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let table: Value = serde_json::from_slice(&bytes[8..8 + table_bytes]).unwrap();
    let offsets = &table["model.layers.1.self_attn.q_proj.weight"]["data_offsets"];
    let at = 8 + table_bytes + offsets[0].as_u64().unwrap() as usize + 2 * 259;
    bytes[at..at + 2].copy_from_slice(&0x1234u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refusal = refusal(out.path());
    assert!(
        refusal.contains("model.layers.1.self_attn.q_proj.weight") && refusal.contains("not ternary"),
        "{refusal}"
    );
}
