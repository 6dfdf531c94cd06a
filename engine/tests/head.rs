//! The screened head draws the tokens of the full one, also where scores lie as close together as they can.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{load, requests, run, synthetic};
use std::path::Path;
use ternfleet_engine::gguf::File;
use ternfleet_engine::gguf::rows::{f16_to_f32, f32_to_f16};
use ternfleet_engine::synth::Shape;
use ternfleet_engine::{Head, Isa, Options};

/// Rewrites the embedding of a model file by a function of (row, column, value).
fn with_embedding(path: &Path, change: impl Fn(usize, usize, f32) -> f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let base = bytes.as_ptr() as usize;
    let copy = std::mem::take(&mut bytes);
    let file = File::from_bytes(copy).unwrap();
    let tensor = file.tensor("token_embd.weight").unwrap();
    let (start, len, width) = (tensor.data.as_ptr() as usize - base, tensor.data.len(), tensor.n_columns());
    let mut bytes = std::fs::read(path).unwrap();
    for (i, half) in bytes[start..start + len].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let value = f16_to_f32(u16::from_le_bytes(*half));
        *half = f32_to_f16(change(i / width, i % width, value)).to_le_bytes();
    }
    std::fs::write(path, bytes).unwrap();
}

fn heads_agree(change: impl Fn(usize, usize, f32) -> f32) {
    let shape = Shape { vocab: 2000, ..Shape::TINY };
    let (_folder, path) = synthetic(&shape, 3);
    with_embedding(&path, change);
    let outcomes = |head: Head, isa: Isa, threads: usize| {
        let options = Options { head, isa: Some(isa), threads: Some(threads), ..Options::default() };
        let mut engine = load(&path, options);
        let outcomes = run(&mut engine, &requests(2000, 20));
        println!("{head} {isa}: {:?}", engine.head_counters());
        outcomes
    };
    let expected = outcomes(Head::Full, Isa::Scalar, 1);
    for (isa, threads) in Isa::available().into_iter().zip([1, 2, 3, 2]) {
        assert_eq!(outcomes(Head::Screened, isa, threads), expected);
    }
}

#[test]
fn on_random_rows() {
    heads_agree(|_, _, value| value);
}

#[test]
fn on_rows_that_differ_in_their_last_bits() {
    heads_agree(|row, column, _| {
        let wave = ((column * 37 % 101) as f32 - 50.0) / 100.0;
        wave * (1.0 + ((row * 7 + column) % 3) as f32 / 1024.0)
    });
}

#[test]
fn on_equal_rows() {
    heads_agree(|row, column, value| if row > 1000 { ((column % 13) as f32 - 6.0) / 8.0 } else { value });
}

#[test]
fn on_rows_of_zeros_and_rows_with_one_outlier() {
    heads_agree(|row, column, value| match row % 4 {
        0 => 0.0,
        1 if column == row % 256 => 300.0,
        2 => value * 1e-6,
        _ => value,
    });
}
