//! What a card must round as the CPU does, operation by operation: on the interpreter a sample, on a card all inputs of
//! those that have one and a large sample of the others.
//!
//! `TERNFLEET_TEST_DEVICE=cuda` and the feature `cuda` run it on a card.

use super::Bytes;
use crate::gguf::rows::{f16_to_f32, f32_to_f16};
use crate::gpu::device::{Arg, Device, Grid, Pointer};
use crate::gpu::{open, upload_words};
use crate::kernel::lanes;
use crate::options;
use rayon::prelude::*;

/// Words that the kernel computes in one launch.
const LAUNCH: usize = 1 << 24;
/// The operations of the kernel `probe`, in its order, and how many operands each has.
const OPERATIONS: [(&str, usize); 12] = [
    ("exponential", 1),
    ("square root", 1),
    ("from half", 1),
    ("to half", 1),
    ("to the nearest whole number", 1),
    ("from an integer", 1),
    ("to an integer", 1),
    ("quotient", 2),
    ("fused multiply-add", 3),
    ("product", 2),
    ("sum", 2),
    ("difference", 2),
];

/// What one of them makes of three words.
fn expected(operation: usize, [a, b, c]: [u32; 3]) -> u32 {
    let [x, y, z] = [a, b, c].map(f32::from_bits);
    let result = match operation {
        // SAFETY: plain Rust.
        0 => unsafe { lanes::exp([x; 16])[0] },
        1 => x.sqrt(),
        2 => f16_to_f32(a as u16),
        3 => f16_to_f32(f32_to_f16(if x.is_nan() { -65504.0 } else { x.clamp(-65504.0, 65504.0) })),
        4 => x.round_ties_even(),
        5 => a as i32 as f32,
        6 => f32::from_bits(x as i32 as u32),
        7 => x / y,
        8 => x.mul_add(y, z),
        9 => x * y,
        10 => x + y,
        _ => x - y,
    };
    if result.is_nan() { 0x7fc0_0000 } else { result.to_bits() }
}

/// Numbers that are special, and their neighbours.
fn specials() -> Vec<u32> {
    let edges = [0x0000_0001, 0x0080_0000, 0x3380_0000, 0x3880_0000, 0x3f80_0000, 0x477f_e000, 0x4b00_0000];
    let around = edges.into_iter().flat_map(|bits: u32| [bits - 1, bits, bits + 1]);
    let positive: Vec<u32> = around.chain([0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000]).collect();
    positive.iter().flat_map(|&bits| [bits, bits | 1 << 31]).collect()
}

/// All triples of special numbers, then words of all sizes, half of them near one another, so that sums cancel.
fn triples(n: usize, seed: u64) -> Vec<[u32; 3]> {
    let specials = specials();
    let mut all = Vec::new();
    for &a in &specials {
        for &b in &specials {
            all.extend(specials.iter().step_by(if n < LAUNCH { 17 } else { 1 }).map(|&c| [a, b, c]));
        }
    }
    let mut bytes = Bytes(seed);
    let mut word = || bytes.next() << 16 ^ bytes.next();
    while all.len() < n {
        let [a, b, c] = [word(), word(), word()];
        let near = (f32::from_bits(a) * -f32::from_bits(b)).to_bits() ^ c >> 29;
        all.push(if all.len() % 2 == 0 { [a, b, c] } else { [a, a ^ b >> 20, near] });
    }
    all
}

#[test]
fn float_operations_round_as_those_of_the_cpu() {
    let device = std::env::var("TERNFLEET_TEST_DEVICE")
        .map_or(options::Device::Interpreter, |name| name.parse().unwrap());
    let everything = device != options::Device::Interpreter;
    let mut device = open(device).unwrap().unwrap();
    let device = &mut *device;
    let n = if everything { LAUNCH } else { 1 << 14 };
    let arrays = [(); 4].map(|()| device.allocate(4 * n).unwrap());
    let out = arrays[3];
    let launch = |device: &mut dyn Device, arrays: [Pointer; 3], first: usize, n: usize, operation: usize| {
        let mut args: Vec<Arg> = arrays.map(Arg::from).into();
        args.extend([out.into(), Arg::Word(first as u32), n.into(), operation.into()]);
        let grid = Grid { blocks: [n.div_ceil(256) as u32, 1, 1], threads: 256 };
        device.launch("probe", grid, &args).unwrap();
        let mut bytes = vec![0; 4 * n];
        device.download(out, &mut bytes).unwrap();
        bytes
    };
    let compare = |operation: usize, bytes: &[u8], inputs: &(dyn Fn(usize) -> [u32; 3] + Sync)| {
        bytes.as_chunks::<4>().0.par_iter().enumerate().for_each(|(i, &found)| {
            let (found, expected) = (u32::from_le_bytes(found), expected(operation, inputs(i)));
            let name = OPERATIONS[operation].0;
            assert_eq!(found, expected, "{name} of {:x?}: {found:x}, not {expected:x}", inputs(i));
        });
    };
    for (operation, _) in OPERATIONS.into_iter().enumerate().filter(|(_, (_, operands))| *operands == 1) {
        // All words, or some of every exponent.
        let starts = (0..=u32::MAX as usize).step_by(if everything { n } else { 1 << 23 });
        for first in starts {
            let n = if everything { n } else { 64 };
            let found = launch(device, [Pointer::NULL; 3], first, n, operation);
            compare(operation, &found, &|i| [(first + i) as u32, 0, 0]);
        }
    }
    for seed in 0..if everything { 8 } else { 1 } {
        let triples = triples(n, seed);
        let n = triples.len().min(n);
        for (i, &array) in arrays[..3].iter().enumerate() {
            upload_words(device, array, triples[..n].iter().map(|triple| triple[i])).unwrap();
        }
        for (operation, _) in OPERATIONS.into_iter().enumerate().filter(|(_, (_, operands))| *operands > 1) {
            let found = launch(device, [arrays[0], arrays[1], arrays[2]], 0, n, operation);
            compare(operation, &found, &|i| triples[i]);
        }
    }
    println!("{}: {} operations, all equal", device.name(), OPERATIONS.len());
}
