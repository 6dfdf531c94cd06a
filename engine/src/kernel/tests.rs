//! One property suite, stamped on every instruction set: equal to the scalar kernels to the last bit.

use super::*;
use crate::gguf::architecture::Activation;
use proptest::prelude::*;

/// A generator of small numbers that needs no crate: the tests want bulk, not quality.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn float(&mut self, magnitude: f32) -> f32 {
        (self.next() as f32 / (1u32 << 30) as f32 - 1.0) * magnitude
    }

    fn floats(&mut self, n: usize, magnitude: f32) -> Vec<f32> {
        (0..n).map(|_| self.float(magnitude)).collect()
    }

    fn lines(&mut self, n: usize) -> Vec<u8> {
        let code = |bytes: &mut Bytes| (bytes.next() % 3) as u8;
        (0..n * LINE).map(|_| code(self) | code(self) << 2 | code(self) << 4 | code(self) << 6).collect()
    }
}

fn product(
    kernels: Kernels,
    lines: &[u8],
    acts: &[i8],
    width: usize,
    n_groups: usize,
    then: Then,
) -> Vec<f32> {
    let n_tokens = acts.len() / width;
    let activations: Vec<Quantised> = acts
        .chunks(width)
        .enumerate()
        .map(|(t, row)| Quantised {
            scale: 3.7 + t as f32,
            step: 0.0,
            sum: row.iter().map(|&q| i32::from(q)).sum(),
        })
        .collect();
    // More rows a token than four groups need.
    const STRIDE: usize = 72;
    let mut out: Vec<f32> = (0..n_tokens * STRIDE).map(|i| i as f32 * 0.37).collect();
    let layout = kernels.layout();
    let mut groups = vec![0u8; n_groups * layout.group_bytes(width)];
    for (to, from) in groups.chunks_mut(layout.group_bytes(width)).zip(lines.chunks(width / 16 * LINE)) {
        layout.pack_group(from, width, to);
    }
    let mut tables = vec![0u8; n_tokens * layout.table_bytes(width)];
    for (tables, row) in tables.chunks_mut(layout.table_bytes(width).max(1)).zip(acts.chunks(width)) {
        kernels.tabulate(row, tables);
    }
    let acts = Acts { width, rows: acts, tables: &tables };
    let scales: [f32; 4 * ROWS] = std::array::from_fn(|row| 0.71 + row as f32 / 17.0);
    let rows_a_group = if matches!(then, Then::Gate(_)) { ROWS / 2 } else { ROWS };
    let together = kernels.most_groups();
    for (index, groups) in groups.chunks(together * layout.group_bytes(width)).enumerate() {
        let first = index * together;
        let epilogue = Epilogue {
            activations: &activations,
            n_tokens,
            weight_scales: &scales[first * ROWS..],
            n_groups: (n_groups - first).min(together),
            out: out[first * rows_a_group..].as_mut_ptr(),
            stride: STRIDE,
            then,
        };
        // SAFETY: `out` has room for all groups of each token, and belongs to this thread.
        unsafe { kernels.product(groups, &acts, &epilogue, &mut Scratch::new()) };
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn products_equal_scalar(
    isa: Isa,
    seed: u64,
    blocks: usize,
    n_tokens: usize,
    extreme: Option<i8>,
    offset: usize,
) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let width = blocks * 128;
    let mut bytes = Bytes(seed);
    // An offset makes every load unaligned.
    let all_lines = bytes.lines(4 * width / 16 + 1);
    let all_acts: Vec<i8> =
        (0..n_tokens * width + offset).map(|_| extreme.unwrap_or(bytes.next() as i8)).collect();
    let (mut lines, acts) = (all_lines[offset..offset + 4 * width / 16 * LINE].to_vec(), &all_acts[offset..]);
    if extreme.is_some() {
        lines.fill(0b10_10_10_10);
    }
    for (n_groups, then) in [
        (1, Then::Store),
        (2, Then::Store),
        (2, Then::Add),
        (2, Then::Gate(Activation::SquaredRelu)),
        (2, Then::Gate(Activation::Silu)),
        (3, Then::Store),
        (4, Then::Add),
        (4, Then::Gate(Activation::SquaredRelu)),
    ] {
        let expected = product(scalar, &lines, acts, width, n_groups, then);
        for layout in [Layout::I2s, Layout::Tl2] {
            let found = product(kernels.with_layout(layout), &lines, acts, width, n_groups, then);
            assert_eq!(bits(&expected), bits(&found), "{isa} {layout:?} {then:?} {n_groups} groups");
        }
    }
}

/// Products of groups of inputs, from rows of floats on.
fn grouped_equal_scalar(isa: Isa, seed: u64, blocks: usize, n_tokens: usize, magnitude: f32, extreme: bool) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let width = blocks * GROUP;
    let mut bytes = Bytes(seed);
    let layout = Layout::Grouped;
    let mut groups = vec![0u8; 2 * layout.group_bytes(width)];
    for group in groups.chunks_mut(layout.group_bytes(width)) {
        let mut lines = bytes.lines(width / 16);
        if extreme {
            lines.fill(0b10_10_10_10);
        }
        layout.pack_group(&lines, width, group);
        let mut halves = vec![0u16; blocks * ROWS];
        scalar.narrow(&bytes.floats(blocks * ROWS, 2.0), &mut halves);
        for (to, half) in group.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *to = half.to_ne_bytes();
        }
    }
    let rows: Vec<f32> = match extreme {
        true => vec![-3.0; n_tokens * width],
        false => bytes.floats(n_tokens * width, magnitude),
    };
    let run = |kernels: Kernels, n_groups: usize, then: Then| {
        let kernels = kernels.with_layout(layout);
        let (mut acts, mut row) = (vec![0i8; n_tokens * width], vec![0f32; width]);
        let mut activations = vec![Quantised::default(); n_tokens * blocks];
        kernels.norm_quantise(&rows, None, &mut row, &mut acts, &mut activations);
        let mut out: Vec<f32> = (0..n_tokens * 40).map(|i| i as f32 * 0.37).collect();
        let epilogue = Epilogue {
            activations: &activations,
            n_tokens,
            weight_scales: &[],
            n_groups,
            out: out.as_mut_ptr(),
            stride: 40,
            then,
        };
        let acts = Acts { width, rows: &acts, tables: &[] };
        // SAFETY: `out` holds 40 floats a token, more than two groups need, and belongs to this thread.
        unsafe { kernels.product(&groups, &acts, &epilogue, &mut Scratch::new()) };
        bits(&out)
    };
    for (n_groups, then) in [(1, Then::Store), (2, Then::Add), (2, Then::Gate(Activation::Silu))] {
        assert_eq!(
            run(scalar, n_groups, then),
            run(kernels, n_groups, then),
            "{isa} {then:?} {n_groups} groups"
        );
    }
}

fn floats_equal_scalar(isa: Isa, seed: u64, blocks: usize, magnitude: f32) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let n = blocks * 16;
    let mut bytes = Bytes(seed);
    let (x, w) = (bytes.floats(n, magnitude), bytes.floats(n, 1.0));
    let run = |kernels: Kernels| {
        let mut normed = vec![0f32; n];
        kernels.norm(&x, &w, 1e-5, &mut normed);
        // Six rows: four together, and two one by one. The norm is the same alone.
        let (rows, mut row) = (x.repeat(6), vec![0f32; n]);
        let (mut quants, mut quantised) = (vec![0i8; 6 * n], [Quantised::default(); 6]);
        kernels.norm_quantise(&rows, Some((&w, 1e-5)), &mut row, &mut quants, &mut quantised);
        assert_eq!(bits(&row), bits(&normed));
        for (quantised, quants) in quantised.iter().zip(quants.chunks(n)) {
            assert_eq!(quantised.sum, quants.iter().map(|&q| i32::from(q)).sum::<i32>());
        }
        let (mut halves, mut head) = (vec![0u16; n], x.clone());
        kernels.narrow(&x, &mut halves);
        kernels.rotate(&mut head, &w[..n / 2], &w[n / 2..]);
        let (mut wide, mut error) = (vec![0i16; n], vec![0f32; n]);
        let step = kernels.largest_magnitude(&x) / 6605.0;
        kernels.round_i16(&x, step.max(1e-30), &mut wide, &mut error);
        let mut widened = vec![0f32; n];
        kernels.widen(&halves, &mut widened);
        let factors = [0.3, 0.2, 0.1, 0.01];
        let bounds = Bounds { scores: &x, residuals: &widened, quants: &w, weights: &normed, factors };
        let mut hits = Vec::new();
        kernels.reach(&bounds, 1.0, x[0], &mut hits);
        kernels.reach(&bounds, -1.0, x[0], &mut hits);
        let dots = [kernels.dot_f16(&halves, &w), kernels.dot_f32(&x, &w)];
        (
            bits(&normed),
            quants,
            quantised.map(|quantised| (quantised.scale.to_bits(), quantised.sum)),
            halves,
            bits(&head),
            wide,
            bits(&error),
            bits(&dots),
        )
    };
    assert_eq!(run(scalar), run(kernels), "{isa}");
}

/// Sixteen rows with some tokens, by pieces and tiles, and each by itself.
fn dots_together_equal_single_ones(isa: Isa, seed: u64, blocks: usize, n_tokens: usize) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let width = blocks * 16;
    let mut bytes = Bytes(seed);
    let mut rows = vec![0u16; ROWS * width];
    scalar.narrow(&bytes.floats(ROWS * width, 1.0), &mut rows);
    let tokens = bytes.floats(n_tokens * width, 3.0);
    let mut found = vec![0f32; n_tokens * ROWS];
    // SAFETY: `found` has sixteen floats a token, and belongs to this thread.
    unsafe { kernels.dots_f16(&rows, &tokens, found.as_mut_ptr(), ROWS, &mut Scratch::new()) };
    let single = |x: &[f32], row: &[u16]| scalar.dot_f16(row, x);
    let tokens = tokens.chunks_exact(width);
    let expected: Vec<f32> =
        tokens.flat_map(|x| rows.chunks_exact(width).map(move |row| single(x, row))).collect();
    assert_eq!(bits(&expected), bits(&found), "{isa}");
}

fn attention_equals_scalar(isa: Isa, seed: u64, blocks: usize, visible: Vec<usize>, magnitude: f32) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let head_dim = blocks * 16;
    let mut bytes = Bytes(seed);
    let (mut keys, mut values) = (vec![0u16; PAGE * head_dim], vec![0u16; PAGE * head_dim]);
    let (of_keys, of_values) =
        (bytes.floats(PAGE * head_dim, magnitude), bytes.floats(PAGE * head_dim, magnitude));
    scalar.narrow(&of_keys, &mut keys);
    scalar.narrow(&of_values, &mut values);
    let (mut key_bytes, mut value_bytes) = (vec![0i8; PAGE * head_dim], vec![0i8; PAGE * head_dim]);
    let mut scales = vec![kernels.narrow_bytes(&of_keys, &mut key_bytes); 2 * PAGE];
    scales[PAGE..].fill(kernels.narrow_bytes(&of_values, &mut value_bytes));
    let mut expected = vec![0i8; PAGE * head_dim];
    assert_eq!(scales[0].to_bits(), scalar.narrow_bytes(&of_keys, &mut expected).to_bits());
    assert_eq!(expected, key_bytes, "{isa}");
    let half = Stored::Half { keys: &keys, values: &values };
    let bytes_of = Stored::Bytes { keys: &key_bytes, values: &value_bytes, scales: &scales };
    let rows: Vec<Vec<f32>> = visible.iter().map(|_| bytes.floats(head_dim, magnitude)).collect();
    let run = |kernels: Kernels, stored: Stored<'_>, together: bool| {
        let mut states = vec![State::EMPTY; visible.len()];
        for pass in 0..2 {
            let mut queries: Vec<Query<'_>> = states
                .iter_mut()
                .zip(&rows)
                .zip(&visible)
                .map(|((state, q), &visible)| Query {
                    q,
                    visible: if pass == 0 { PAGE } else { visible },
                    state,
                })
                .collect();
            let width = if together { queries.len().max(1) } else { 1 };
            for part in queries.chunks_mut(width) {
                kernels.attend(part, stored, values.as_ptr().cast(), head_dim, 0.088);
            }
        }
        let mut out = vec![0f32; head_dim];
        states
            .iter()
            .flat_map(|state| {
                kernels.attended(state, &mut out);
                bits(&out)
            })
            .collect::<Vec<u32>>()
    };
    for stored in [half, bytes_of] {
        let expected = run(scalar, stored, false);
        assert_eq!(expected, run(kernels, stored, true), "{isa}");
        assert_eq!(expected, run(kernels, stored, false), "{isa} one by one");
    }
}

/// Which tokens may win, with and without a nucleus; their weights; sums of exponentials.
fn scores_equal_scalar(isa: Isa, seed: u64, blocks: usize, magnitude: f32, temperature: f32) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let mut bytes = Bytes(seed);
    let mut scores = bytes.floats(blocks * 16, magnitude);
    let widths: Vec<f32> = bytes.floats(blocks * 16, 1.0).into_iter().map(f32::abs).collect();
    scores[blocks] = f32::NEG_INFINITY;
    let noise = Noise { seed, choice: 3, position: seed as u32 % 999 };
    let first_id = seed as u32 % 1000 * 4;
    let best = scalar.largest(&scores);
    let whole = Cut { best, scale: BINS_A_UNIT / temperature, last: BINS as f32 };
    let factors = [0.25 * magnitude, 0.0, 0.0, 1e-6];
    for cut in [Cut::NONE, Cut { last: 70.0, ..whole }] {
        let bounds =
            Bounds { scores: &scores, residuals: &widths, quants: &widths, weights: &widths, factors };
        let threshold = best + 2.0 * temperature;
        let job = NoisyJob { bounds, first_id, noise, temperature, threshold, cut };
        let run = |kernels: Kernels| {
            let mut hits = Vec::new();
            kernels.noisy(&job, &mut hits);
            hits
        };
        let hits = run(scalar);
        assert_eq!(hits, run(kernels), "{isa}");
        for (row, &score) in scores.iter().enumerate() {
            let id = first_id + row as u32;
            let word = crate::philox::philox(seed, [3, noise.position, id / 4, 0])[id as usize % 4];
            let uniform = (f64::from(word) + 0.5) / 4_294_967_296.0;
            let gumbel = -crate::math::ln(-crate::math::ln(uniform));
            let upper =
                (f64::from(score) + f64::from(job.bounds.error(row))) / f64::from(temperature) + gumbel;
            let may_win = upper >= f64::from(threshold) / f64::from(temperature) && cut.holds(score);
            assert!(!may_win || hits.contains(&(row as u32)), "{isa}: row {row} was missed");
        }
    }
    let run = |kernels: Kernels| {
        let mut bins = [1u64; BINS];
        kernels.weigh(&scores, whole, &mut bins);
        let exact: u64 = bins.iter().sum::<u64>() - BINS as u64;
        let sum = kernels.exp_sum(&scores, best);
        if temperature == 1.0 {
            assert!((exact as f64 / f64::from(1u32 << 30) / sum - 1.0).abs() < 1e-4, "{exact} {sum}");
        }
        (bins.to_vec(), sum.to_bits(), kernels.largest(&scores).to_bits())
    };
    assert_eq!(run(scalar), run(kernels), "{isa}");
}

fn screening_equals_scalar(isa: Isa, seed: u64, blocks: usize, n_tokens: usize, extreme: bool) {
    for n_groups in [1, 2] {
        for narrow in [None, Kernels::new(isa).and_then(|kernels| kernels.narrow_bound())] {
            groups_equal_scalar(isa, seed, blocks, n_tokens, extreme, n_groups, narrow);
        }
    }
}

fn groups_equal_scalar(
    isa: Isa,
    seed: u64,
    blocks: usize,
    n_tokens: usize,
    extreme: bool,
    n_groups: usize,
    narrow: Option<i16>,
) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let width = blocks * 128;
    let mut bytes = Bytes(seed);
    let lines: Vec<u8> = (0..width * ROWS * n_groups)
        .map(|_| if extreme { 127 } else { (bytes.next() as i32 % 255 - 127) as i8 as u8 })
        .collect();
    let rounded = RoundedActs::new(&mut bytes, width, n_tokens, extreme, narrow);
    let row_sums = row_sums(&lines, width, n_groups);
    let run = |kernels: Kernels| {
        let mut sums = vec![0i32; n_tokens * 2 * ROWS];
        kernels.screen(&lines, &rounded.acts(width), n_tokens, &row_sums, &mut sums);
        sums
    };
    assert_eq!(run(scalar), run(kernels), "{isa}");
}

/// Activations in the forms that screening wants.
struct RoundedActs {
    values: Vec<i16>,
    high: Vec<u8>,
    low: Vec<u8>,
    narrow: bool,
}

impl RoundedActs {
    fn new(bytes: &mut Bytes, width: usize, n_tokens: usize, extreme: bool, narrow: Option<i16>) -> Self {
        let widest = (((1i64 << 31) - 1) / (127 * width as i64)).min(32767) as i32;
        let bound = narrow.map_or(widest, i32::from);
        let mut value = || if extreme { bound } else { bytes.next() as i32 % (2 * bound) - bound };
        let values: Vec<i16> = (0..n_tokens * width).map(|_| value() as i16).collect();
        let offset = narrow.map_or(32768, |bound| i32::from(bound) + 1);
        let shifted = values.iter().map(|&y| (i32::from(y) + offset) as u16);
        let high = shifted.clone().map(|y| (y >> 8) as u8).collect();
        let low = shifted.map(|y| y as u8).collect();
        Self { values, high, low, narrow: narrow.is_some() }
    }

    fn acts(&self, width: usize) -> WideActs<'_> {
        let Self { values, high, low, narrow } = self;
        WideActs { stride: width, width, values, high, low, narrow: *narrow }
    }
}

fn row_sums(lines: &[u8], width: usize, n_groups: usize) -> Vec<i32> {
    let mut sums = vec![0i32; ROWS * n_groups];
    for (line, bytes) in lines.chunks(LINE).enumerate() {
        for (i, &quant) in bytes.iter().enumerate() {
            sums[line / (width / 4) * ROWS + i / 4] += i32::from(quant as i8);
        }
    }
    sums
}

/// Packed lines give the sums that their unpacked ones give, by plain Rust.
fn six_bits_equal_scalar(isa: Isa, seed: u64, blocks: usize, n_tokens: usize, extreme: bool) {
    let (Some(kernels), Some(scalar)) = (Kernels::new(isa), Kernels::new(Isa::Scalar)) else { return };
    let width = blocks * 128;
    let mut bytes = Bytes(seed);
    for n_groups in [1, 2] {
        let mut packed: Vec<u8> = (0..width * ROWS * n_groups / 4 * 3).map(|_| bytes.next() as u8).collect();
        if extreme {
            // The largest six bits, 31, in all four planes.
            packed.chunks_mut(LINE).enumerate().for_each(|(i, line)| line.fill([0x7d, 0x7f, 0x7f][i % 3]));
        }
        let unpack = |kernels: Kernels| {
            let mut lines = vec![0u8; width * ROWS * n_groups];
            kernels.unpack_six(&packed, &mut lines);
            lines
        };
        let lines = unpack(scalar);
        assert_eq!(lines, unpack(kernels), "{isa}");
        assert!(!extreme || lines.iter().all(|&byte| byte == 124));
        let rounded = RoundedActs::new(&mut bytes, width, n_tokens, extreme, None);
        let acts = rounded.acts(width);
        let row_sums = row_sums(&lines, width, n_groups);
        let (mut expected, mut found) = (vec![0i32; n_tokens * 2 * ROWS], vec![0i32; n_tokens * 2 * ROWS]);
        scalar.screen(&lines, &acts, n_tokens, &row_sums, &mut expected);
        kernels.screen_six(&packed, &acts, n_tokens, &row_sums, &mut found);
        assert_eq!(expected, found, "{isa}");
    }
}

macro_rules! suite {
    ($($name:ident: $isa:expr;)*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(24))]

                #[test]
                fn products_equal_the_scalar_ones(
                    seed: u64, blocks in 1usize..6, n_tokens in 1usize..30, offset in 0usize..4,
                ) {
                    products_equal_scalar($isa, seed, blocks, n_tokens, None, offset);
                }

                #[test]
                fn products_of_groups_equal_the_scalar_ones(
                    seed: u64, blocks in 1usize..6, n_tokens in 1usize..30, magnitude in 0.0f32..1e3,
                ) {
                    grouped_equal_scalar($isa, seed, blocks, n_tokens, magnitude, false);
                }

                #[test]
                fn floats_equal_the_scalar_ones(seed: u64, blocks in 1usize..20, magnitude in 0.0f32..1e4) {
                    floats_equal_scalar($isa, seed, blocks, magnitude);
                }

                #[test]
                fn dots_of_rows_together_equal_single_ones(
                    seed: u64, blocks in 1usize..60, n_tokens in 1usize..45,
                ) {
                    dots_together_equal_single_ones($isa, seed, blocks, n_tokens);
                }

                #[test]
                fn attention_equals_the_scalar_one(
                    seed: u64,
                    blocks in 1usize..9,
                    visible in prop::collection::vec(0usize..129, 1..14),
                    magnitude in 0.01f32..20.0,
                ) {
                    attention_equals_scalar($isa, seed, blocks, visible, magnitude);
                }

                #[test]
                fn scores_with_noise_equal_the_scalar_ones(
                    seed: u64,
                    blocks in 1usize..40,
                    magnitude in 0.0f32..30.0,
                    temperature in prop::sample::select(vec![1e-6f32, 0.3, 1.0, 100.0]),
                ) {
                    scores_equal_scalar($isa, seed, blocks, magnitude, temperature);
                }

                #[test]
                fn screening_equals_the_scalar_one(seed: u64, blocks in 1usize..8, n_tokens in 1usize..14) {
                    screening_equals_scalar($isa, seed, blocks, n_tokens, false);
                }

                #[test]
                fn screening_by_six_bits_equals_the_scalar_one(seed: u64, blocks in 1usize..8, n_tokens in 1usize..4) {
                    six_bits_equal_scalar($isa, seed, blocks, n_tokens, false);
                }
            }

            #[test]
            fn extreme_activations_do_not_overflow() {
                for n_tokens in [1, 2, 3, 4, 5, 13, MAX_TOKENS] {
                    for extreme in [-128, 127] {
                        products_equal_scalar($isa, 1, 9, n_tokens, Some(extreme), 0);
                    }
                    grouped_equal_scalar($isa, 1, 9, n_tokens, 0.0, true);
                }
                screening_equals_scalar($isa, 1, 20, 3, true);
                six_bits_equal_scalar($isa, 1, 20, 2, true);
            }

            #[test]
            fn zeros_stay_zeros() {
                floats_equal_scalar($isa, 1, 4, 0.0);
                attention_equals_scalar($isa, 1, 4, vec![1, 0, 128, 64, 2], 0.0);
            }
        }
    )*};
}

suite! {
    scalar: Isa::Scalar;
    avx2: Isa::Avx2;
    avx_vnni: Isa::AvxVnni;
    avx512: Isa::Avx512;
}

#[test]
fn instruction_sets_that_this_machine_lacks_are_named() {
    for isa in Isa::ALL {
        if Kernels::new(isa).is_none() {
            println!("{isa} is compiled but was not tested: this CPU lacks it");
        }
    }
    assert!(Kernels::new(Isa::Scalar).is_some());
}

#[test]
fn exp_is_exact_at_zero_and_close_elsewhere() {
    // SAFETY: plain Rust.
    unsafe {
        assert_eq!(lanes::exp([0f32; 16]), [1.0; 16]);
        assert_eq!(lanes::exp([f32::NEG_INFINITY; 16]), [0.0; 16]);
        for i in 0..8000 {
            let x = -f32::from(i as u16) * 0.01;
            let (found, expected) = (lanes::exp([x; 16])[0], f64::from(x).exp());
            assert!((f64::from(found) / expected - 1.0).abs() < 3e-7, "exp({x}) = {found}");
        }
    }
}

#[test]
fn dividing_by_the_reciprocal_rounds_as_division_does() {
    let mut bytes = Bytes(11);
    for round in 0..3_000_000u32 {
        // Sums as they occur, and small and large ones; scales as they occur, and hard mantissas.
        let a = (bytes.next() as i32).wrapping_sub(1 << 30) >> (round % 23);
        let b = match round % 4 {
            0 => 127.0 / bytes.float(8.0).abs().max(1e-5),
            1 => f32::from_bits(0x3f80_0000 | bytes.next() & 0x007f_ffff),
            2 => f32::from_bits(0x3fff_ffff - bytes.next() % 64),
            _ => f32::from_bits(0x3f80_0000 + bytes.next() % 64),
        };
        assert!(floats::divides_exactly(a, b), "{a} / {b}");
    }
}
