use super::*;
use crate::gguf::{self, File};

fn tiny(seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&Shape::TINY, seed, &mut bytes).unwrap();
    bytes
}

#[test]
fn the_official_shape_has_the_official_files_keys_tensors_and_sizes() {
    let (plan, fills) = plan(&Shape::OFFICIAL, 0);
    assert_eq!((plan.entries.len(), plan.tensors.len(), fills.len()), (24, 332, 332));
    let of = |kind| plan.tensors.iter().filter(move |tensor| tensor.kind == kind);
    assert_eq!((of(Kind::F32).count(), of(Kind::F16).count(), of(Kind::I2S).count()), (121, 1, 210));
    let n_weights = |kind| of(kind).map(|tensor| tensor.dims.iter().product::<u64>()).sum::<u64>();
    assert_eq!((n_weights(Kind::I2S), n_weights(Kind::F16)), (2_084_044_800, 328_335_360));
    let length = |key: &str| match &plan.entries.iter().find(|(name, _)| name == key).unwrap().1 {
        Item::Texts(texts) => texts.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!((length("tokenizer.ggml.tokens"), length("tokenizer.ggml.merges")), (128_256, 280_147));
}

#[test]
fn a_model_is_a_function_of_shape_and_seed() {
    assert_eq!(tiny(7), tiny(7));
    assert_ne!(tiny(7), tiny(8));
}

#[test]
fn what_is_written_is_a_whole_model_with_a_usable_tokenizer() {
    let shape: Shape = "3x128x384x4x1x2000".parse().unwrap();
    let mut bytes = Vec::new();
    write(&shape, 1, &mut bytes).unwrap();
    let file = File::from_bytes(bytes).unwrap();
    let layout = gguf::check_model(&file).unwrap();
    assert_eq!((layout.hyper.n_layers, layout.hyper.head_dim, layout.hyper.vocab), (3, 32, 2000));
    layout.ternary().for_each(|tensor| gguf::ternary::check(&tensor).unwrap());
    let vocabulary = gguf::vocabulary(&file).unwrap();
    let tokenizer = ternfleet_text::Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer;
    let ids = tokenizer.encode("Hello, world", true).unwrap();
    assert_eq!(tokenizer.decode(&ids), "Hello, world");
}

#[test]
fn weights_have_the_proportions_and_deviations_that_were_meant() {
    let file = File::from_bytes(tiny(3)).unwrap();
    let layout = gguf::check_model(&file).unwrap();
    let gate = layout.blocks[1].get(Part::FfnGate);
    let n = gate.n_weights() as usize;
    let mut counts = [0usize; 4];
    (0..n).for_each(|index| counts[usize::from(i2s::code(gate.data, index))] += 1);
    for (count, share) in counts.into_iter().zip([0.25, 0.5, 0.25, 0.0]) {
        assert!((count as f64 / n as f64 - share).abs() < 0.01, "{counts:?}");
    }
    let mut row = vec![0.0f32; layout.hyper.hidden];
    let mut squares = 0.0;
    for id in 0..layout.hyper.vocab {
        rows::read(&layout.token_embd, id, &mut row);
        squares += row.iter().map(|weight| weight * weight).sum::<f32>();
    }
    let deviation = (squares / layout.hyper.vocab as f32).sqrt(); // of a logit for a normed input
    assert!((deviation - LOGIT_DEVIATION).abs() < 0.05, "{deviation}");
}

#[test]
fn a_text_that_is_no_shape_is_told_what_is_wrong() {
    for (text, part) in [
        ("3b", "is not a number"),
        ("1x128x128", "six or seven are needed"),
        ("1x100x128x4x2x512", "multiples of 128"),
        ("1x128x128x3x1x512", "not a multiple of the heads"),
        ("1x128x128x4x3x512", "KV heads"),
        ("1x128x128x4x2x258", "at least 259"),
        ("0x128x128x4x2x512", "between 1 and"),
        ("1048576x1048576x1048576x2x1x1048576", "weights are more than"),
        ("1x99999999999999999999x128x4x2x512", "is not a number"),
    ] {
        let fault = text.parse::<Shape>().unwrap_err().to_string();
        assert!(fault.contains(part), "'{part}' is not in: {fault}");
    }
    assert_eq!(Shape::OFFICIAL.to_string().parse(), Ok(Shape::OFFICIAL));
}
