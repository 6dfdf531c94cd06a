//! The kernels for GPUs, one by one, on the interpreter, against the scalar kernels: equal to the last bit, with races watched.

mod choosing;
mod rounding;

use super::PTX;
use super::device::{Arg, Device, Fault, Grid, Pointer};
use super::interpreter::Interpreter;
use super::rates::{self, Effort};
use super::self_test;
use crate::Isa;
use crate::gguf::architecture::Activation;
use crate::kernel::{
    Acts, Epilogue, Kernels, LINE, PAGE, Quantised, Query, ROWS, Scratch, State, Stored, Then,
};
use crate::math;

/// A generator of small numbers that needs no crate.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn floats(&mut self, n: usize, magnitude: f32) -> Vec<f32> {
        (0..n).map(|_| (self.next() as f32 / (1u32 << 30) as f32 - 1.0) * magnitude).collect()
    }

    /// Finite halves of all sizes.
    fn halves(&mut self, n: usize) -> Vec<u16> {
        let half = |bits: u32| (bits & 0x8000 | ((bits >> 1 & 0x7fff) % 0x7c00)) as u16;
        (0..n).map(|_| half(self.next())).collect()
    }
}

/// Values of one kind each: usual, tiny, subnormal, huge, zeros, an outlier, ties of rounding.
fn rows_of_every_kind(bytes: &mut Bytes, width: usize) -> Vec<Vec<f32>> {
    let mut outlier = bytes.floats(width, 0.01);
    outlier[width / 3] = 5000.0;
    let ties = (0..width).map(|i| (i % 255) as f32 - 127.0 + 0.5 * (i % 2) as f32).collect();
    let sized = [3.0, 1e-20, 1e-40, 1e18].map(|magnitude| bytes.floats(width, magnitude));
    sized.into_iter().chain([vec![0.0; width], outlier, ties]).collect()
}

fn scalar() -> Kernels {
    Kernels::new(Isa::Scalar).unwrap()
}

/// A watched interpreter, and values on their way in and out.
struct Bench(Interpreter);

impl Bench {
    fn new() -> Bench {
        Bench(Interpreter::new(PTX, true).unwrap())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Pointer {
        let to = self.0.allocate(bytes.len()).unwrap();
        self.0.upload(to, bytes).unwrap();
        to
    }

    fn words(&mut self, words: impl IntoIterator<Item = u32>) -> Pointer {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        self.bytes(&bytes)
    }

    fn floats(&mut self, values: &[f32]) -> Pointer {
        self.words(values.iter().map(|value| value.to_bits()))
    }

    fn halves(&mut self, values: &[u16]) -> Pointer {
        let bytes: Vec<u8> = values.iter().flat_map(|half| half.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn read(&mut self, from: Pointer, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.download(from, &mut bytes).unwrap();
        bytes
    }

    /// Words as bits of floats or as they are.
    fn read_words(&mut self, from: Pointer, n: usize) -> Vec<u32> {
        self.read(from, 4 * n).as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
    }

    fn launch(&mut self, kernel: &'static str, blocks: [u32; 3], threads: u32, args: &[Arg]) {
        self.0.launch(kernel, Grid { blocks, threads }, args).unwrap();
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn rows_are_normed_and_rounded_as_the_scalar_kernels_do_it() {
    let mut bytes = Bytes(3);
    for width in [128, 640, 2560, 6912] {
        let rows = rows_of_every_kind(&mut bytes, width);
        let weight = bytes.floats(width, 2.0);
        for normed in [true, false] {
            let mut bench = Bench::new();
            let from = bench.floats(&rows.concat());
            let norm = if normed { bench.floats(&weight) } else { Pointer::NULL };
            let acts = bench.bytes(&vec![0; rows.len() * width]);
            let quantised = bench.words(vec![0; rows.len() * 3]);
            let args =
                [from.into(), norm.into(), Arg::Float(1e-5), width.into(), acts.into(), quantised.into()];
            bench.launch("round_rows", [rows.len() as u32, 1, 1], 256, &args);
            let (found, found_sums) =
                (bench.read(acts, rows.len() * width), bench.read_words(quantised, rows.len() * 3));
            let (mut expected, mut sums) =
                (vec![0i8; rows.len() * width], vec![Quantised::default(); rows.len()]);
            let norm = normed.then_some((&weight[..], 1e-5));
            scalar().norm_quantise(&rows.concat(), norm, &mut vec![0.0; width], &mut expected, &mut sums);
            assert!(found.iter().zip(&expected).all(|(&a, &b)| a as i8 == b), "{width} {normed}");
            let sums: Vec<u32> =
                sums.iter().flat_map(|q| [q.scale.to_bits(), q.step.to_bits(), q.sum as u32]).collect();
            assert_eq!(found_sums, sums, "{width} {normed}");
        }
        let mut bench = Bench::new();
        let (from, norm) = (bench.floats(&rows.concat()), bench.floats(&weight));
        let out = bench.floats(&vec![0.0; rows.len() * width]);
        let args = [from.into(), norm.into(), Arg::Float(1e-5), width.into(), out.into()];
        bench.launch("norm_rows", [rows.len() as u32, 1, 1], 256, &args);
        let mut expected = vec![0.0; width];
        for (row, found) in rows.iter().zip(bench.read_words(out, rows.len() * width).chunks(width)) {
            scalar().norm(row, &weight, 1e-5, &mut expected);
            assert_eq!(found, bits(&expected), "{width}");
        }
    }
}

/// Products of `n_groups` groups with tokens, as both compute them. Extreme: all codes 2, all activations -128.
fn one_product(seed: u64, width: usize, n_groups: usize, n_tokens: usize, then: Then, extreme: bool) {
    let mut bytes = Bytes(seed);
    let code = |bytes: &mut Bytes| if extreme { 2 } else { (bytes.next() % 3) as u8 };
    let mut line_byte =
        || code(&mut bytes) | code(&mut bytes) << 2 | code(&mut bytes) << 4 | code(&mut bytes) << 6;
    let lines: Vec<u8> = (0..n_groups * width / 16 * LINE).map(|_| line_byte()).collect();
    let padded = n_tokens.next_multiple_of(32);
    let acts: Vec<i8> =
        (0..padded * width).map(|_| if extreme { -128 } else { bytes.next() as i8 }).collect();
    let scales = bytes.floats(n_groups * ROWS, 1.5);
    let quantised: Vec<Quantised> = acts
        .chunks(width)
        .enumerate()
        .map(|(t, row)| Quantised {
            scale: 0.37 + 3.1 * t as f32,
            step: 0.0,
            sum: row.iter().map(|&q| i32::from(q)).sum(),
        })
        .collect();
    let units = if matches!(then, Then::Gate(_)) { n_groups / 2 } else { n_groups };
    let stride = units * ROWS;
    let mut out = bytes.floats(n_tokens * stride, 100.0);

    let mut bench = Bench::new();
    let from = [
        bench.bytes(&lines),
        bench.floats(&scales),
        bench.bytes(&acts.iter().map(|&q| q as u8).collect::<Vec<u8>>()),
        bench.words(quantised.iter().flat_map(|q| [q.scale.to_bits(), q.step.to_bits(), q.sum as u32])),
        bench.floats(&out),
    ];
    let (mode, is_gate) = match then {
        Then::Store => (0usize, false),
        Then::Add => (1, false),
        Then::Gate(Activation::SquaredRelu) => (0, true),
        Then::Gate(Activation::Silu) => (1, true),
    };
    let sizes = [width, n_tokens, stride, mode].map(Arg::from);
    let args = [&from.map(Arg::from)[..], &sizes].concat();
    let names = if is_gate { ["gate_few", "gate_many"] } else { ["product_few", "product_many"] };
    let mut found = Vec::new();
    for (name, tile) in names.into_iter().zip([8, 32]) {
        bench.0.upload(from[4], &out.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        bench.launch(name, [units as u32, n_tokens.div_ceil(tile) as u32, 1], 256, &args);
        found.push(bench.read_words(from[4], n_tokens * stride));
    }
    let together = if is_gate { 2 } else { 1 };
    for (unit, groups) in lines.chunks(together * width / 16 * LINE).enumerate() {
        let epilogue = Epilogue {
            activations: &quantised[..n_tokens],
            n_tokens,
            weight_scales: &scales[unit * together * ROWS..(unit + 1) * together * ROWS],
            n_groups: together,
            out: out[unit * ROWS..].as_mut_ptr(),
            stride,
            then,
        };
        let acts = Acts { width, rows: &acts, tables: &[] };
        // SAFETY: `out` holds `stride` floats a token, of which these sixteen are the unit's, and belongs to this thread.
        unsafe { scalar().product(groups, &acts, &epilogue, &mut Scratch::new()) };
    }
    for found in found {
        assert_eq!(found, bits(&out), "{width} {n_groups} {n_tokens} {then:?}");
    }
}

#[test]
fn products_are_those_of_the_scalar_kernels_for_every_shape_and_end() {
    let ends = [Then::Store, Then::Add, Then::Gate(Activation::SquaredRelu), Then::Gate(Activation::Silu)];
    for (i, (width, n_groups, n_tokens)) in
        [(128, 2, 1), (256, 4, 7), (384, 2, 8), (640, 6, 9), (2560, 2, 33), (6912, 2, 64)]
            .into_iter()
            .enumerate()
    {
        for then in ends {
            one_product(i as u64, width, n_groups, n_tokens, then, false);
        }
    }
    one_product(9, 6912, 2, 3, Then::Store, true);
    one_product(9, 6912, 2, 3, Then::Gate(Activation::SquaredRelu), true);
}

/// One column's attention over `seen` positions, all of them stored by the kernel that rotates.
fn one_context(seed: u64, seen: usize, head_dim: usize, group: usize, magnitude: f32) {
    let (n_kv_heads, n_layers, layer) = (2, 2, 1);
    let n_heads = n_kv_heads * group;
    let heads = n_heads + 2 * n_kv_heads;
    let mut bytes = Bytes(seed);
    let mut qkv = bytes.floats(seen * heads * head_dim, magnitude);
    qkv[head_dim * heads * seen - 1] = 1e6;
    let turns: Vec<f32> = (0..seen)
        .flat_map(|position| {
            let angle = move |i: usize| math::sin_cos(position as f64 * 0.9f64.powi(i as i32));
            let cosines = (0..head_dim / 2).map(move |i| angle(i).1 as f32);
            cosines.chain((0..head_dim / 2).map(move |i| angle(i).0 as f32))
        })
        .collect();
    // Pages are not in order, and some belong to nobody.
    let n_pages = seen.div_ceil(PAGE);
    let pages: Vec<u32> = (0..n_pages as u32).rev().map(|page| 2 * page + 1).collect();
    let head_halves = 2 * PAGE * head_dim;
    let page_halves = n_layers * n_kv_heads * head_halves;

    let mut bench = Bench::new();
    let on_device = bench.floats(&qkv);
    let cache = bench.bytes(&vec![0; 2 * page_halves * (2 * n_pages)]);
    let place = |position: usize| [pages[position / PAGE], (position % PAGE) as u32];
    let places = bench.words((0..seen).flat_map(place));
    let turned = bench.floats(&turns);
    let sizes = [n_heads, n_kv_heads, head_dim, n_layers, layer].map(Arg::from);
    let arrays = [on_device, turned, places, cache].map(Arg::from);
    bench.launch("rotate_store", [seen as u32, heads as u32, 1], 128, &[&arrays[..], &sizes].concat());
    // The last column and, as a prompt has it, one before it.
    let columns = [seen - 1, seen / 2];
    let rows = bench.words(columns.map(|column| column as u32));
    let contexts = bench.words((0..seen).flat_map(|position| [position as u32 + 1, 0]));
    let table = bench.words(pages.iter().copied());
    let attended = bench.floats(&vec![0.0; 2 * n_heads * head_dim]);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let arrays = [on_device, cache, rows, contexts, table, attended].map(Arg::from);
    let blocks = [2, n_kv_heads as u32, group.div_ceil(4) as u32];
    bench.launch("attend", blocks, 128, &[&arrays[..], &sizes, &[scale.into()]].concat());
    let found = bench.read_words(attended, 2 * n_heads * head_dim);

    let kernels = scalar();
    for (i, column) in qkv.chunks_mut(heads * head_dim).enumerate() {
        let (cos, sin) = turns[i * head_dim..(i + 1) * head_dim].split_at(head_dim / 2);
        for head in column.chunks_mut(head_dim).take(n_heads + n_kv_heads) {
            kernels.rotate(head, cos, sin);
        }
    }
    for kv_head in 0..n_kv_heads {
        let mut halves = vec![0u16; n_pages * head_halves];
        for (position, column) in qkv.chunks(heads * head_dim).enumerate() {
            let page = &mut halves[position / PAGE * head_halves..][..head_halves];
            let (mut key, mut value) = (vec![0; head_dim], vec![0; head_dim]);
            let of = |head: usize| &column[head * head_dim..(head + 1) * head_dim];
            kernels.narrow(of(n_heads + kv_head), &mut key);
            kernels.narrow(of(n_heads + n_kv_heads + kv_head), &mut value);
            let slot = position % PAGE;
            for (d, key) in key.into_iter().enumerate() {
                page[slot / 32 * 32 * head_dim + d * 32 + slot % 32] = key;
            }
            page[(PAGE + slot) * head_dim..][..head_dim].copy_from_slice(&value);
        }
        for (row, column) in columns.into_iter().enumerate() {
            for head in kv_head * group..(kv_head + 1) * group {
                let mut state = State::EMPTY;
                let q = &qkv[(column * heads + head) * head_dim..][..head_dim];
                for (index, page) in halves.chunks(head_halves).enumerate().take(column / PAGE + 1) {
                    let (keys, values) = page.split_at(PAGE * head_dim);
                    let visible = (column + 1 - index * PAGE).min(PAGE);
                    let mut queries = [Query { q, visible, state: &mut state }];
                    let next = keys.as_ptr().cast();
                    kernels.attend(&mut queries, Stored::Half { keys, values }, next, head_dim, scale);
                }
                let mut expected = vec![0.0; head_dim];
                kernels.attended(&state, &mut expected);
                let found = &found[(row * n_heads + head) * head_dim..][..head_dim];
                assert_eq!(found, bits(&expected), "{seen} {head_dim} {group} {magnitude} {row} {head}");
            }
        }
    }
}

#[test]
fn attention_is_that_of_the_scalar_kernels_for_every_length_and_size() {
    for (i, seen) in [1, 31, 32, 33, 127, 128, 129, 300].into_iter().enumerate() {
        let (head_dim, group) = [(128, 4), (64, 2), (256, 1), (80, 5), (16, 8)][i % 5];
        for magnitude in [1.0, 30.0, 1e-20, 3000.0] {
            one_context(i as u64, seen, head_dim, group, magnitude);
        }
    }
}

#[test]
fn scores_and_embeddings_are_those_of_the_scalar_kernels() {
    let mut bytes = Bytes(5);
    for (hidden, vocab, n_tokens) in [(128, 33, 1), (2560, 19, 5), (640, 64, 4)] {
        let table = bytes.halves(vocab * hidden);
        let input = bytes.floats(n_tokens * hidden, 3.0);
        let mut bench = Bench::new();
        let arrays = [bench.halves(&table), bench.floats(&input), bench.floats(&vec![0.0; n_tokens * vocab])];
        let sizes = [hidden, vocab, n_tokens].map(Arg::from);
        let blocks = [n_tokens.div_ceil(4) as u32, vocab.div_ceil(16) as u32, 1];
        bench.launch("score", blocks, 256, &[&arrays.map(Arg::from)[..], &sizes].concat());
        let found = bench.read_words(arrays[2], n_tokens * vocab);
        let rows = || table.chunks(hidden);
        let dots = input.chunks(hidden).flat_map(|x| rows().map(|row| scalar().dot_f16(row, x)));
        assert_eq!(found, bits(&dots.collect::<Vec<f32>>()));

        let ids = [vocab - 1, 0, 7];
        let tokens = bench.words(ids.map(|id| id as u32));
        let (x, kept) = (bench.floats(&vec![0.0; 3 * hidden]), bench.floats(&vec![0.0; 2 * hidden]));
        bench.launch("embed", [3, 1, 1], 256, &[x.into(), arrays[0].into(), tokens.into(), hidden.into()]);
        let columns = bench.words([0, 2]);
        bench.launch("keep_rows", [2, 1, 1], 256, &[x.into(), kept.into(), columns.into(), hidden.into()]);
        let mut expected = vec![0.0; hidden];
        for (id, found) in [ids[0], ids[2]].into_iter().zip(bench.read_words(kept, 2 * hidden).chunks(hidden))
        {
            scalar().widen(&table[id * hidden..(id + 1) * hidden], &mut expected);
            assert_eq!(found, bits(&expected));
        }
    }
}

/// What is wrong with a module of PTX, by its text: the flags of a compiler prove nothing.
fn lint(ptx: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(ptx.lines()) {
        let line = line.split("//").next().unwrap_or_default().trim();
        let name = line.trim_start_matches(['@', '!']).split_whitespace();
        let name = name.clone().find(|word| !word.starts_with("%p")).unwrap_or_default();
        let parts: Vec<&str> = name.trim_end_matches(';').split('.').collect();
        let is_float = parts.iter().any(|part| matches!(*part, "f16" | "f32" | "f64"));
        let is_rounded = matches!(parts[0], "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt" | "rcp");
        let banned = parts.iter().any(|part| matches!(*part, "approx" | "ftz" | "full" | "sat"));
        let has_none = is_float && is_rounded && parts.get(1) != Some(&"rn");
        // A float of eight bytes, or an array that spilled, is slow and was not meant.
        let wide = parts.last() == Some(&"f64") || line.starts_with(".local");
        let fast = matches!(parts[0], "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh");
        if banned || has_none || wide || fast {
            faults.push(format!("line {number}: {line}"));
        }
    }
    faults
}

#[test]
fn every_float_operation_of_the_ptx_is_rounded_to_the_nearest() {
    assert_eq!(lint(PTX), Vec::<String>::new());
    for wrong in [
        "	mul.f32 	%f1, %f2, %f3;",
        "	add.rn.ftz.f32 	%f1, %f2, %f3;",
        "	@%p1 div.approx.f32 	%f1, %f2, %f3;",
        "	div.full.f32 %f1, %f2, %f3;",
        "	fma.rz.f32 %f1, %f2, %f3, %f4;",
        "	.local .align 16 .b8 __local_depot0[80];",
        "	ex2.approx.f32 %f1, %f2;",
        "	add.rn.f64 %fd1, %fd2, %fd3;",
    ] {
        assert_eq!(lint(wrong).len(), 1, "{wrong}");
    }
}

#[test]
fn the_self_test_knows_the_digests_and_names_a_kernel_that_differs() {
    let found = self_test::digests(&mut Bench::new().0).unwrap();
    let written = found.iter().map(|(kernel, digest)| format!("    (\"{kernel}\", {digest:#x}),\n"));
    assert_eq!(found, self_test::DIGESTS, "{}", written.collect::<String>());
    let fused = PTX.replacen("sub.rn.f32", "add.rn.f32", 1);
    let fault = self_test::check(&mut Interpreter::new(&fused, false).unwrap()).unwrap_err();
    assert!(fault.0.contains("with other bits") && fault.0.contains("computes "), "{fault}");
}

fn fault_of(device: &mut Interpreter, kernel: &'static str, threads: u32, args: &[Arg]) -> String {
    let Fault(fault) = device.launch(kernel, Grid { blocks: [1, 1, 1], threads }, args).unwrap_err();
    fault
}

/// A checker that finds nothing proves nothing: without any one of the barriers it finds a race.
#[test]
fn no_barrier_of_a_kernel_can_be_left_out() {
    let barriers: Vec<usize> = PTX.match_indices("bar.sync").map(|(at, _)| at).collect();
    assert!(barriers.len() >= 19);
    for at in barriers {
        // In its place, what does nothing.
        let end = at + PTX[at..].find(';').unwrap();
        let without = [&PTX[..at], "mov.u32 %r0, 0", &PTX[end..]].concat();
        let line = PTX[..at].lines().count();
        let Fault(race) = self_test::digests(&mut Interpreter::new(&without, true).unwrap()).unwrap_err();
        assert!(race.contains("reads what") || race.contains("touches"), "line {line}: {race}");
    }
}

#[test]
fn the_interpreter_finds_addresses_and_launches_that_are_wrong() {
    let mut bench = Bench::new();
    let (from, norm) = (bench.floats(&[1.0; 128]), bench.floats(&[1.0; 128]));
    let out = bench.floats(&[0.0; 128]);
    let args =
        |width: usize, from: Pointer| [from.into(), norm.into(), Arg::Float(1e-5), width.into(), out.into()];
    bench.launch("norm_rows", [1, 1, 1], 256, &args(128, from));
    let cases = [
        (256, args(256, from).to_vec(), "are outside of 512 bytes"),
        (256, args(128, Pointer::NULL).to_vec(), "is in no buffer"),
        (256, args(128, from.plus(2)).to_vec(), "are not aligned"),
        (128, args(128, from).to_vec(), "it cannot run as"),
        (256, args(128, from)[1..].to_vec(), "4 arguments for 5 parameters"),
        (256, args(128, from).into_iter().rev().collect(), "is not of type"),
    ];
    for (threads, args, expected) in cases {
        let fault = fault_of(&mut bench.0, "norm_rows", threads, &args);
        assert!(fault.contains(expected), "{fault}");
    }
    assert!(fault_of(&mut bench.0, "no_such", 32, &[]).contains("there is no kernel no_such"));
    let unknown = Interpreter::new(&PTX.replace("sqrt.rn.f32", "sqrt.approx.f32"), false).unwrap_err();
    assert!(unknown.0.starts_with("line ") && unknown.0.contains("sqrt.approx"), "{unknown}");
}

#[test]
fn the_rates_count_what_was_done() {
    let mut bench = Bench::new();
    let effort = Effort { bytes: 1 << 14, blocks: 2, rounds: 3, launches: 2 };
    let rates = rates::measure(&mut bench.0, effort).unwrap();
    assert!(rates.read_gb_s > 0.0 && rates.mac_per_s > 0.0 && rates.launch_us > 0.0, "{rates:?}");
}

/// A driver that answers as it is told to, so that its errors can be seen without a card.
mod fake {
    use super::super::driver::{Driver, Functions};
    use super::PTX;
    use std::ffi::{c_char, c_int, c_uint, c_void};

    const OUT_OF_MEMORY: c_int = 2;

    extern "C" fn init(_: c_uint) -> c_int {
        0
    }
    extern "C" fn no_card(count: *mut c_int) -> c_int {
        // SAFETY: the driver's caller gives a place to write to; so it is below.
        unsafe { count.write(0) };
        0
    }
    extern "C" fn one_card(count: *mut c_int) -> c_int {
        // SAFETY: as above.
        unsafe { count.write(1) };
        0
    }
    extern "C" fn get(_: *mut c_int, _: c_int) -> c_int {
        0
    }
    extern "C" fn name(to: *mut c_char, _: c_int, _: c_int) -> c_int {
        // SAFETY: there is room for 127 bytes and a zero.
        unsafe { to.cast::<[u8; 9]>().write(*b"Some card") };
        0
    }
    extern "C" fn turing(to: *mut c_int, attribute: c_int, _: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { to.write(if attribute == 75 { 7 } else { 5 }) };
        0
    }
    extern "C" fn ada(to: *mut c_int, attribute: c_int, _: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { to.write(if attribute == 75 { 8 } else { 9 }) };
        0
    }
    extern "C" fn new(to: *mut c_int) -> c_int {
        // SAFETY: as above.
        unsafe { to.write(12_040) };
        0
    }
    extern "C" fn retain(_: *mut *mut c_void, _: c_int) -> c_int {
        OUT_OF_MEMORY
    }
    extern "C" fn error_name(_: c_int, to: *mut *const c_char) -> c_int {
        // SAFETY: as above.
        unsafe { to.write(c"CUDA_ERROR_OUT_OF_MEMORY".as_ptr()) };
        0
    }

    macro_rules! unused {
        ($($argument:ty),*) => {{
            extern "C" fn unused($(_: $argument),*) -> c_int {
                0
            }
            unused
        }};
    }

    fn functions() -> Functions {
        Functions {
            init,
            version: new,
            device_count: one_card,
            device_get: get,
            device_name: name,
            device_attribute: ada,
            context_retain: retain,
            context_release: unused!(c_int),
            context_set: unused!(*mut c_void),
            memory_info: unused!(*mut usize, *mut usize),
            allocate: unused!(*mut u64, usize),
            free: unused!(u64),
            fill: unused!(u64, u8, usize),
            upload: unused!(u64, *const c_void, usize),
            download: unused!(*mut c_void, u64, usize),
            copy: unused!(u64, u64, usize),
            module_load: unused!(*mut *mut c_void, *const c_void, c_uint, *mut c_int, *mut *mut c_void),
            module_unload: unused!(*mut c_void),
            function: unused!(*mut *mut c_void, *mut c_void, *const c_char),
            launch: unused!(
                *mut c_void,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                *mut c_void,
                *mut *mut c_void,
                *mut *mut c_void
            ),
            error_name,
        }
    }

    #[test]
    fn a_driver_that_cannot_serve_is_told_with_what_to_do() {
        let fault = |functions| Driver::new(functions, PTX).unwrap_err().0;
        let none = fault(Functions { device_count: no_card, ..functions() });
        assert!(none.contains("sees no card: check nvidia-smi"), "{none}");
        let old = fault(Functions { device_attribute: turing, ..functions() });
        assert!(old.starts_with("Some card has compute capability 7.5, and 8.0"), "{old}");
        let old = fault(Functions { version: unused!(*mut c_int), ..functions() });
        assert!(old.starts_with("Some card with CUDA 0.0: the kernels need CUDA 11.0"), "{old}");
        let full = fault(functions());
        assert!(full.starts_with("opening the card: the driver says CUDA_ERROR_OUT_OF_MEMORY (2)"), "{full}");
        if let Err(missing) = Functions::open() {
            assert!(missing.0.starts_with("libcuda.so.1 is not here: install NVIDIA's driver"), "{missing}");
        }
        #[cfg(not(feature = "cuda"))]
        {
            let refused = crate::inspect_card().unwrap_err();
            assert!(
                refused.contains("use the program ternfleet-gpu") && refused.contains("or the device cpu")
            );
        }
    }
}
