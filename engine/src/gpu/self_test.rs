//! Every kernel once, on numbers that are always the same: a device that computes one bit differently is refused.
//!
//! The digests are those of the interpreter, whose results tests compare with the scalar kernels. So they hold for cards and
//! drivers that no test has seen. Run at loading, on every device; it takes milliseconds on a card.

use super::device::{Arg, Device, Fault, Grid, Pointer};
use super::upload_words;
use crate::kernel::{PAGE, ROWS};

/// By kernel: FNV-1a over the bytes that it leaves.
pub(super) const DIGESTS: [(&str, u64); 18] = [
    ("embed", 0xea08_6f82_470f_ad22),
    ("keep_rows", 0xc8e0_f9a6_cad4_22a2),
    ("norm_rows", 0xbbba_1f28_bb95_594d),
    ("score", 0x42ae_d939_c640_2f79),
    ("round_wide", 0x4a77_cc69_75d5_7f04),
    ("screen", 0x1f83_3519_ed7b_0830),
    ("piece_sums", 0xb873_b54f_2323_3b0f),
    ("near", 0xeefb_f5a9_34c6_7e55),
    ("exp_sums", 0xbe78_c41b_46e1_7cb8),
    ("take", 0xa934_1436_d674_76f7),
    ("choose", 0xfb33_fe67_0f66_19c8),
    ("round_rows", 0x13c6_d672_4ae4_f1db),
    ("product_few", 0xd35e_1845_613d_5d95),
    ("product_many", 0x9a5f_f772_0e39_79ac),
    ("gate_few", 0x3a9e_df22_00ec_8e7d),
    ("gate_many", 0xafac_d185_1e30_7b2d),
    ("rotate_store", 0x5caf_210c_f9bb_7189),
    ("attend", 0xb1eb_46b2_2e92_e8ff),
];

const WIDTH: usize = 256;
const TOKENS: usize = 9;
const VOCAB: usize = 40;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
/// More than a page, so that pages are folded.
const POSITIONS: usize = PAGE + 5;

/// Runs all kernels; an error names the first one that differs.
pub(super) fn check(device: &mut dyn Device) -> Result<(), Fault> {
    let name = device.name();
    for ((kernel, found), (_, expected)) in digests(device)?.into_iter().zip(DIGESTS) {
        if found != expected {
            return Err(Fault(format!(
                "{name} computes {kernel} with other bits ({found:016x} instead of {expected:016x}), so its answers would \
                 not be those of other workers: update the driver, or use the device cpu"
            )));
        }
    }
    Ok(())
}

/// What each kernel makes of the same numbers.
pub(super) fn digests(device: &mut dyn Device) -> Result<Vec<(&'static str, u64)>, Fault> {
    let mut run = Run { device, state: 7, digests: Vec::new() };
    run.rows()?;
    run.products()?;
    run.attention()?;
    Ok(run.digests)
}

struct Run<'a> {
    device: &'a mut dyn Device,
    state: u64,
    digests: Vec<(&'static str, u64)>,
}

impl Run<'_> {
    fn next(&mut self) -> u32 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as u32
    }

    fn words(&mut self, words: Vec<u32>) -> Result<Pointer, Fault> {
        let to = self.device.allocate(4 * words.len())?;
        upload_words(self.device, to, words.into_iter())?;
        Ok(to)
    }

    fn floats(&mut self, n: usize, magnitude: f32) -> Result<Pointer, Fault> {
        let float = |word: u32| (word as f32 / (1u32 << 30) as f32 - 1.0) * magnitude;
        let words = (0..n).map(|_| float(self.next()).to_bits()).collect();
        self.words(words)
    }

    /// Two finite halves a word.
    fn halves(&mut self, n: usize) -> Result<Pointer, Fault> {
        let words = (0..n / 2).map(|_| self.next() & 0x3bff_3bff | (self.next() & 1) << 31).collect();
        self.words(words)
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 3],
        threads: u32,
        args: &[Arg],
        written: &[(Pointer, usize)],
    ) -> Result<(), Fault> {
        let blocks = blocks.map(|n| n as u32);
        self.device.launch(kernel, Grid { blocks, threads }, args)?;
        let mut digest = 0xcbf2_9ce4_8422_2325u64;
        for &(from, len) in written {
            let mut bytes = vec![0; len];
            self.device.download(from, &mut bytes)?;
            digest = bytes
                .iter()
                .fold(digest, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        }
        self.digests.push((kernel, digest));
        Ok(())
    }

    /// Embedding, norms and scores.
    fn rows(&mut self) -> Result<(), Fault> {
        let table = self.halves(VOCAB * WIDTH)?;
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 4 + 3).collect();
        let tokens = self.words(tokens)?;
        let (x, kept) = (self.floats(TOKENS * WIDTH, 1.0)?, self.floats(TOKENS * WIDTH, 1.0)?);
        let bytes = 4 * TOKENS * WIDTH;
        let args = [x.into(), table.into(), tokens.into(), WIDTH.into()];
        self.launch("embed", [TOKENS, 1, 1], 256, &args, &[(x, bytes)])?;
        let columns = self.words((0..TOKENS as u32).rev().collect())?;
        let args = [x.into(), kept.into(), columns.into(), WIDTH.into()];
        self.launch("keep_rows", [TOKENS, 1, 1], 256, &args, &[(kept, bytes)])?;
        let weight = self.floats(WIDTH, 3.0)?;
        let args = [kept.into(), weight.into(), Arg::Float(1e-5), WIDTH.into(), x.into()];
        self.launch("norm_rows", [TOKENS, 1, 1], 256, &args, &[(x, bytes)])?;
        let scores = self.floats(TOKENS * VOCAB, 1.0)?;
        let args = [table, x, scores].map(Arg::from);
        let sizes = [WIDTH, VOCAB, TOKENS].map(Arg::from);
        let blocks = [TOKENS.div_ceil(4), VOCAB.div_ceil(16), 1];
        self.launch("score", blocks, 256, &[&args[..], &sizes].concat(), &[(scores, 4 * TOKENS * VOCAB)])?;
        self.copy(x, scores)?;
        self.searches()
    }

    /// The scores of an int8 copy for some rows of x, and what log-probabilities need of them.
    fn copy(&mut self, x: Pointer, exact: Pointer) -> Result<(), Fault> {
        const N: usize = 3;
        const ROOM: usize = 64;
        let rows = self.words(vec![4, 0, 7])?;
        let [high, low] = [self.words(vec![0; 32 * WIDTH / 4])?, self.words(vec![0; 32 * WIDTH / 4])?];
        let steps = self.words(vec![0; N])?;
        let args = [x.into(), rows.into(), WIDTH.into(), Arg::Float(6605.0)];
        let args = [&args[..], &[high, low, steps].map(Arg::from)].concat();
        let written = [(high, N * WIDTH), (low, N * WIDTH), (steps, 4 * N)];
        self.launch("round_wide", [N, 1, 1], 256, &args, &written)?;
        let n_groups = VOCAB.div_ceil(ROWS);
        let lines = (0..n_groups * WIDTH * ROWS / 4).map(|_| self.next() ^ self.next() << 16).collect();
        let (lines, scales) = (self.words(lines)?, self.floats(n_groups * ROWS, 1e-4)?);
        let about = self.floats(N * VOCAB, 1.0)?;
        let arrays = [lines, scales, high, low, steps, about].map(Arg::from);
        let args = [&arrays[..], &[WIDTH, VOCAB, N].map(Arg::from)].concat();
        self.launch("screen", [1, 1, 1], 256, &args, &[(about, 4 * N * VOCAB)])?;
        let sums = self.words(vec![0; 2 * N])?;
        let args = [about.into(), sums.into(), VOCAB.into()];
        self.launch("piece_sums", [N, 1, 1], 256, &args, &[(sums, 8 * N)])?;
        let (counts, found) = (self.words(vec![0; N])?, self.words(vec![0; 3 * N * ROOM])?);
        let arrays = [about, exact, rows, sums, counts, found].map(Arg::from);
        let args = [&arrays[..], &[VOCAB, N].map(Arg::from)].concat();
        self.launch("near", [N, 1, 1], 256, &args, &[(counts, 4 * N), (found, 12 * N * ROOM)])
    }

    /// Sums, and the tokens that draws choose from: of the best among those that are allowed, and with noise.
    fn searches(&mut self) -> Result<(), Fault> {
        const N: usize = 2;
        const SCORES: usize = 1100;
        const ROOM: usize = 32;
        let scores = self.floats(N * SCORES, 9.0)?;
        let (rows, sums) = (self.words(vec![1, 0])?, self.words(vec![0; N * 3])?);
        let args = [scores.into(), rows.into(), sums.into(), SCORES.into()];
        self.launch("exp_sums", [N, 1, 1], 256, &args, &[(sums, 4 * N * 3)])?;
        let (pairs, taken) = (self.words(vec![1, 7, 0, 1099, 1, 600])?, self.words(vec![0; 3])?);
        let args = [scores.into(), pairs.into(), taken.into(), SCORES.into(), 3usize.into()];
        self.launch("take", [1, 1, 1], 256, &args, &[(taken, 12), (scores, 4 * N * SCORES)])?;
        let mask = (0..SCORES.div_ceil(32)).map(|_| self.next() << 1).collect();
        let mask = self.words(mask)?;
        let best = [1, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        let noisy = [0, 1, 1, 0.5f32.to_bits(), 2f32.to_bits(), self.next(), self.next(), 3, 77, u32::MAX];
        let choices = self.words([best, noisy].concat())?;
        let (counts, found) = (self.words(vec![0; 2 * N])?, self.words(vec![0; 2 * N * ROOM])?);
        let arrays = [scores, choices, mask, counts, found].map(Arg::from);
        let args = [&arrays[..], &[SCORES, N, ROOM].map(Arg::from)].concat();
        self.launch("choose", [N, 1, 1], 256, &args, &[(counts, 8 * N), (found, 8 * N * ROOM)])
    }

    /// Rounding to int8, and ternary products with each end.
    fn products(&mut self) -> Result<(), Fault> {
        let n_groups = 4;
        let rows = self.floats(TOKENS * WIDTH, 40.0)?;
        let weight = self.floats(WIDTH, 2.0)?;
        // Rows that are not there are read, too.
        let (acts, quantised) = (self.words(vec![0; 32 * WIDTH / 4])?, self.words(vec![0; 32 * 3])?);
        let args =
            [rows.into(), weight.into(), Arg::Float(1e-6), WIDTH.into(), acts.into(), quantised.into()];
        let written = [(acts, TOKENS * WIDTH), (quantised, 12 * TOKENS)];
        self.launch("round_rows", [TOKENS, 1, 1], 256, &args, &written)?;
        let codes = |word: u32| word & 0x5555_5555 | (word & 0x2222_2222 & !(word << 1));
        let lines = (0..n_groups * WIDTH * ROWS / 16).map(|_| codes(self.next())).collect();
        let (lines, scales) = (self.words(lines)?, self.floats(n_groups * ROWS, 0.7)?);
        for (kernel, tile, together, mode) in [
            ("product_few", 8, 1, 0usize),
            ("product_many", 32, 1, 1),
            ("gate_few", 8, 2, 1),
            ("gate_many", 32, 2, 0),
        ] {
            let units = n_groups / together;
            let stride = units * ROWS;
            let out = self.floats(TOKENS * stride, 10.0)?;
            let arrays = [lines, scales, acts, quantised, out].map(Arg::from);
            let sizes = [WIDTH, TOKENS, stride, mode].map(Arg::from);
            let blocks = [units, TOKENS.div_ceil(tile), 1];
            self.launch(kernel, blocks, 256, &[&arrays[..], &sizes].concat(), &[(out, 4 * TOKENS * stride)])?;
        }
        Ok(())
    }

    /// Keys and values of a context, and attention of its last positions.
    fn attention(&mut self) -> Result<(), Fault> {
        let heads = HEADS + 2 * KV_HEADS;
        let qkv = self.floats(POSITIONS * heads * HEAD_DIM, 6.0)?;
        let turns = self.floats(POSITIONS * HEAD_DIM, 1.0)?;
        let page_bytes = KV_HEADS * 2 * PAGE * HEAD_DIM * 2;
        let pages = self.words(vec![0; 2 * page_bytes / 4])?;
        let positions = 0..POSITIONS as u32;
        let places =
            positions.clone().flat_map(|position| [1 - position / PAGE as u32, position % PAGE as u32]);
        let places = self.words(places.collect())?;
        let sizes = [HEADS, KV_HEADS, HEAD_DIM, 1, 0].map(Arg::from);
        let arrays = [qkv, turns, places, pages].map(Arg::from);
        let written = [(pages, 2 * page_bytes), (qkv, 4 * POSITIONS * heads * HEAD_DIM)];
        let args = [&arrays[..], &sizes].concat();
        self.launch("rotate_store", [POSITIONS, heads, 1], 128, &args, &written)?;
        let columns = self.words((POSITIONS as u32 - 8..POSITIONS as u32).collect())?;
        let contexts = self.words(positions.flat_map(|position| [position + 1, 0]).collect())?;
        let tables = self.words(vec![1, 0])?;
        let attended = self.floats(8 * HEADS * HEAD_DIM, 1.0)?;
        let arrays = [qkv, pages, columns, contexts, tables, attended].map(Arg::from);
        let args = [&arrays[..], &sizes, &[Arg::Float(0.125)]].concat();
        let written = [(attended, 4 * 8 * HEADS * HEAD_DIM)];
        self.launch("attend", [8, KV_HEADS, 1], 128, &args, &written)
    }
}
