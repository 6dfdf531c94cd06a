//! What the reader must refuse: each broken file by the field that is wrong, and with what to do about it.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use ternfleet_engine::gguf::write::{Item, Plan};
use ternfleet_engine::gguf::{self, File, Kind};
use ternfleet_engine::synth::{self, Shape};

fn tiny() -> Vec<u8> {
    let mut bytes = Vec::new();
    synth::write(&Shape::TINY, 1, &mut bytes).unwrap();
    bytes
}

/// A small file with two tensors, changed by `change` before it is written.
fn small(change: impl FnOnce(&mut Plan)) -> Vec<u8> {
    let mut plan = Plan::default();
    plan.entry("general.architecture", Item::Text("bitnet-b1.58".into()));
    plan.entry("some.numbers", Item::I32s(vec![1, -2, 3]));
    plan.entry("some.words", Item::Texts(vec!["a".into(), "bc".into()]));
    plan.tensor("first", &[8], Kind::F32);
    plan.tensor("second", &[128, 2], Kind::I2S);
    change(&mut plan);
    let mut writer = plan.begin(Vec::new()).unwrap();
    while let Some(tensor) = writer.advance().unwrap() {
        writer.write(&vec![0; tensor.n_bytes() as usize]).unwrap();
    }
    writer.finish().unwrap()
}

fn refusal(bytes: Vec<u8>) -> String {
    File::from_bytes(bytes).map(|_| ()).unwrap_err().to_string()
}

/// The place just behind `text` in the file.
fn behind(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap() + text.len()
}

fn with(mut bytes: Vec<u8>, at: usize, put: &[u8]) -> Vec<u8> {
    bytes[at..at + put.len()].copy_from_slice(put);
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let file = File::from_bytes(small(|_| ())).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), Some("bitnet-b1.58"));
    assert_eq!(file.integers("some.numbers").unwrap(), Some(vec![1, -2, 3]));
    assert_eq!(file.strings("some.words").unwrap(), Some(vec!["a", "bc"]));
    assert_eq!(file.unsigned("absent").unwrap(), None);
    assert!(file.unsigned("some.words").unwrap_err().to_string().contains("found an array"));
    assert!(file.strings("some.numbers").is_err() && file.integers("some.words").is_err());
    let second = file.tensor("second").unwrap();
    assert_eq!((second.dims, second.kind, second.data.len()), (&[128, 2][..], Kind::I2S, 96));
    assert_eq!(file.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["first", "second"]);
}

#[test]
fn foreign_files_are_told_apart() {
    let version = |version: u32| with(small(|_| ()), 4, &version.to_le_bytes());
    assert!(refusal(b"{\"a\":1}".to_vec()).contains("not a GGUF model file"));
    assert!(refusal(Vec::new()).contains("not a GGUF model file"));
    assert!(refusal(version(3u32.swap_bytes())).contains("big-endian"));
    assert!(refusal(version(2)).contains("version 2"));
}

#[test]
fn a_file_cut_anywhere_in_its_header_or_data_is_refused() {
    let whole = small(|_| ());
    let data = whole.len() - 32 - 96; // "first" takes 32 bytes, "second" 64 + 32
    for length in (0..=data).chain([whole.len() - 33, whole.len() - 1]) {
        refusal(whole[..length].to_vec());
    }
    assert!(refusal(whole[..whole.len() - 1].to_vec()).contains("tensor 1 ('second'), data"));
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    let bytes = small(|_| ());
    assert!(refusal(with(bytes.clone(), 8, &huge)).contains("the tensor count"));
    assert!(refusal(with(bytes.clone(), 16, &huge)).contains("the metadata count"));
    assert!(refusal(with(bytes.clone(), 24, &huge)).contains("metadata entry 0, key"));
    let numbers = behind(&bytes, "some.numbers") + 8;
    assert!(refusal(with(bytes.clone(), numbers, &huge)).contains("'some.numbers' (array)"));
    assert!(
        refusal(with(bytes.clone(), numbers, &(1u64 << 61).to_le_bytes())).contains("elements cannot fit")
    );
    let words = behind(&bytes, "some.words") + 8;
    assert!(refusal(with(bytes.clone(), words + 8, &huge)).contains("'some.words', element 0"));
    assert!(refusal(with(bytes, words - 4, &9u32.to_le_bytes())).contains("arrays of arrays"));
}

#[test]
fn each_broken_field_of_a_tensor_is_named() {
    let bytes = small(|_| ());
    // After the name: number of dims (4), dims (8 each), type (4), offset (8).
    let second = behind(&bytes, "second");
    let refused = |at: usize, put: &[u8]| refusal(with(bytes.clone(), second + at, put));
    assert!(refused(0, &9u32.to_le_bytes()).contains("('second'), number of dims"));
    assert!(refused(4, &0u64.to_le_bytes()).contains("('second'), dims"));
    assert!(refused(4, &127u64.to_le_bytes()).contains("blocks of 128"));
    assert!(refused(4, &(1u64 << 40).to_le_bytes()).contains("('second'), data"));
    assert!(refused(12, &(u64::MAX / 64).to_le_bytes()).contains("not a valid shape"));
    assert!(refused(24, &33u64.to_le_bytes()).contains("not a multiple of the alignment"));
    assert!(refused(24, &(u64::MAX - 31).to_le_bytes()).contains("('second'), offset"));
    assert!(refused(24, &0u64.to_le_bytes()).contains("overlap those of"));
}

#[test]
fn names_and_keys_stand_once() {
    assert!(refusal(small(|plan| plan.entry("some.words", Item::U32(1)))).contains("occurs twice"));
    assert!(refusal(small(|plan| plan.tensor("first", &[8], Kind::F32))).contains(
        "tensor has the same \
                                                                                   name"
    ));
}

#[test]
fn an_alignment_is_a_power_of_two() {
    for alignment in [0, 1, 7, 48, 1 << 30] {
        let bytes = small(|plan| plan.entry("general.alignment", Item::U32(alignment)));
        assert!(refusal(bytes).contains("general.alignment"), "{alignment}");
    }
}

#[test]
fn a_tensor_of_an_unknown_type_is_listed_without_data() {
    let bytes = small(|_| ());
    let kind = behind(&bytes, "second") + 4 + 16;
    let file = File::from_bytes(with(bytes, kind, &77u32.to_le_bytes())).unwrap();
    let second = file.tensor("second").unwrap();
    assert_eq!((second.kind, second.data.len()), (Kind::Other(77), 0));
}

/// Why the model in `bytes` is refused.
fn model_refusal(bytes: Vec<u8>) -> String {
    gguf::check_model(&File::from_bytes(bytes).unwrap()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_model_whose_keys_and_tensors_disagree_is_refused() {
    let bytes = tiny();
    gguf::check_model(&File::from_bytes(bytes.clone()).unwrap()).unwrap();
    let number = |key: &str, value: u32| with(bytes.clone(), behind(&bytes, key) + 4, &value.to_le_bytes());
    for (key, value, part) in [
        ("bitnet-b1.58.block_count", 3, "'blk.2.attn_norm.weight': it is missing"),
        ("bitnet-b1.58.block_count", 1, "the architecture has no such tensor"),
        ("bitnet-b1.58.block_count", 1_000_000, "1000000 layers"),
        ("bitnet-b1.58.block_count", u32::MAX, "is not a count"),
        ("bitnet-b1.58.embedding_length", 128, "'token_embd.weight': its dims are"),
        ("bitnet-b1.58.feed_forward_length", 256, "'blk.0.ffn_down.weight'"),
        ("bitnet-b1.58.attention.head_count_kv", 3, "do not divide"),
        ("bitnet-b1.58.attention.head_count_kv", 4, "'blk.0.attn_k.weight'"),
        ("bitnet-b1.58.attention.head_count", 0, "is not a count"),
        ("bitnet-b1.58.rope.dimension_count", 63, "is odd"),
        ("bitnet-b1.58.vocab_size", 511, "tokenizer.ggml.tokens lists 512"),
        ("bitnet-b1.58.rope.freq_base", f32::NAN.to_bits(), "is not a positive number"),
        ("tokenizer.ggml.bos_token_id", 512, "outside the vocabulary"),
    ] {
        // "attention.head_count" also begins "attention.head_count_kv"; the shorter key is written first.
        let refusal = model_refusal(number(key, value));
        assert!(refusal.contains(part), "{key} = {value}: '{part}' is not in: {refusal}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let named = |name: &str| {
        let bytes = small(|plan| plan.entries[0].1 = Item::Text(name.into()));
        model_refusal(bytes)
    };
    assert!(named("minicpm").contains("'minicpm' scales its embedding"));
    assert!(named("qwen3moe").contains("mixture of experts"));
    assert!(named("gpt2").contains("'gpt2' is not supported by this engine; supported are 'bitnet-b1.58'"));
    assert!(named("a\u{1b}[31m").contains("\\u{1b}"), "control characters are not printed");
}

#[test]
fn weights_and_scales_that_are_no_numbers_are_refused() {
    let bytes = tiny();
    let file = File::from_bytes(bytes.clone()).unwrap();
    let place = |name: &str, at: usize| {
        // Tensors are in the file in the table's order, each padded to 32 bytes, the last one at its end.
        let from: usize = file
            .tensors()
            .skip_while(|tensor| tensor.name != name)
            .map(|tensor| tensor.data.len().next_multiple_of(32))
            .sum();
        bytes.len() - from + at
    };
    let nan = f32::NAN.to_le_bytes();
    let norm = with(bytes.clone(), place("blk.1.ffn_norm.weight", 8), &nan);
    assert!(model_refusal(norm).contains("'blk.1.ffn_norm.weight': a weight is not a finite number"));
    let n_codes = 256 * 256 / 4;
    let scale = with(bytes.clone(), place("blk.1.attn_q.weight", n_codes), &nan);
    assert!(model_refusal(scale).contains("'blk.1.attn_q.weight': its scale"));
}

#[test]
fn a_missing_file_and_a_folder_are_errors_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("absent.gguf"), folder.path().to_owned()] {
        let refusal = File::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(refusal.contains(&*path.to_string_lossy()), "{refusal}");
    }
}
