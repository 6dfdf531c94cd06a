//! The kernels behind one table: chosen once at load, called through functions that check lengths.
//!
//! Here: the packed layout's constants, the jobs, the table, the choice. Not here: the arithmetic (`kernel/*.rs`), threads
//! (`pool`), and who computes which rows (`ops`). Float routines are written once over [`lanes::Lanes`]; the integer
//! products are written for each instruction set, in files of the same shape.
#![allow(clippy::needless_range_loop)] // Indices name rows, tokens and planes here; iterators would hide them.
#![allow(unsafe_code)] // Kernels: each safe function proves the lengths and the CPU features that its kernel needs.

mod ahead;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod floats;
mod grouped;
mod halves;
pub(crate) mod lanes;
mod scalar;
mod scores;
mod screening;
mod stamp;
#[cfg(test)]
mod tests;
mod tl2;

use crate::Isa;
use crate::gguf::ternary::GROUP;
pub(crate) use ahead::prefetch;
use attention::Page;
pub(crate) use attention::{Query, State};
pub(crate) use floats::{Epilogue, Then};
use grouped::GroupedJob;
pub(crate) use grouped::group_scale_bytes;
use halves::{HalvesJob, Widened};
pub(crate) use scores::{BINS, BINS_A_UNIT, Bounds, Cut, Noise, NoisyJob, SUMMED};
pub(crate) use screening::{ScreenJob, WideActs};
use stamp::stamp;
use tl2::LookupJob;

/// Output rows that are computed together.
pub(crate) const ROWS: usize = 16;
/// Bytes of a line of packed weights: 16 rows of 16 two-bit codes, or 16 rows of 4 int8 weights of the head.
pub(crate) const LINE: usize = 64;
/// Tokens of one product at most; more are taken in turns.
pub(crate) const MAX_TOKENS: usize = 128;
/// Groups of one product at most.
const MOST_GROUPS: usize = 4;
/// Positions of a page of keys and values, which is also the unit of attention's sums.
pub(crate) const PAGE: usize = 128;
/// Positions whose keys stand together within a page.
pub(crate) const KEY_BLOCK: usize = 32;
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// A row of int8 activations, or a group of them: x ≈ q / scale.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Quantised {
    pub(crate) scale: f32,
    /// x ≈ q · step, rounded by itself: what groups of inputs are multiplied by.
    pub(crate) step: f32,
    /// Sum of all q: the codes are the weights plus one, so this is what the code sums have too much.
    pub(crate) sum: i32,
}

/// A ternary product of up to [`Kernels::most_groups`] groups of 16 rows with up to [`MAX_TOKENS`] rows of activations.
///
/// `lines` holds `n_groups · n_lines` lines; `acts` holds (n_tokens, act_stride) of which 16 · n_lines are read; `sums`
/// takes (pairs of groups, [`MAX_TOKENS`], 32), a pair's rows side by side; `panel` is 16 KiB of scratch.
pub(crate) struct TernaryJob {
    lines: *const u8,
    n_lines: usize,
    n_groups: usize,
    acts: *const i8,
    act_stride: usize,
    n_tokens: usize,
    sums: *mut i32,
    panel: *mut u8,
}

/// The functions of one instruction set.
#[allow(clippy::type_complexity)] // Signatures of kernels; names would hide what they take.
struct Table {
    ternary: unsafe fn(&TernaryJob),
    tabulate: unsafe fn(*const i8, usize, *mut u8),
    look_up: unsafe fn(&LookupJob),
    screen: unsafe fn(&ScreenJob),
    screen_narrow: unsafe fn(&ScreenJob),
    screen_six: unsafe fn(&ScreenJob),
    finish: unsafe fn(*const i32, &Epilogue<'_>),
    grouped: unsafe fn(&GroupedJob, &Epilogue<'_>),
    norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    norm_quantise: unsafe fn(&[f32], Option<(&[f32], f32)>, usize, &mut [f32], &mut [i8], &mut [Quantised]),
    rotate: unsafe fn(&mut [f32], &[f32], &[f32]),
    narrow: unsafe fn(&[f32], &mut [u16]),
    attend: unsafe fn(&mut [Query<'_>], &Page<u16>, f32),
    attend_bytes: unsafe fn(&mut [Query<'_>], &Page<i8>, f32),
    narrow_bytes: unsafe fn(&[f32], &mut [i8]) -> f32,
    fold: unsafe fn(&mut State, &State, usize),
    attended: unsafe fn(&State, &mut [f32]),
    dot_f16: unsafe fn(*const u16, *const f32, usize) -> f32,
    dot_f32: unsafe fn(*const f32, *const f32, usize) -> f32,
    dots_f16: unsafe fn(&mut HalvesJob<'_>),
    round_i16: unsafe fn(&[f32], f32, &mut [i16], &mut [f32]),
    largest_magnitude: unsafe fn(&[f32]) -> f32,
    widen: unsafe fn(&[u16], &mut [f32]),
    scale_sums: unsafe fn(&[i32], &[f32], f32, &mut [f32]),
    unpack_six: unsafe fn(&[u8], &mut [u8]),
    reach: unsafe fn(&Bounds<'_>, f32, f32, &mut Vec<u32>),
    noisy: unsafe fn(&NoisyJob<'_>, &mut Vec<u32>),
    weigh: unsafe fn(&[f32], Cut, &mut [u64; BINS]),
    largest: unsafe fn(&[f32]) -> f32,
    exp_sum: unsafe fn(&[f32], f32) -> f64,
    read_all: unsafe fn(&[u8], bool) -> u64,
    multiply_all: unsafe fn(u64) -> u64,
}

/// How packed ternary weights are in memory, and so which product reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Two bits a weight, multiplied.
    I2s,
    /// Three weights as index and sign, looked up: `tl2`.
    Tl2,
    /// Two bits a weight, multiplied, with a scale for each 128 inputs: `grouped`.
    Grouped,
}

impl Layout {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Layout::I2s => "i2s",
            Layout::Tl2 => "tl2",
            Layout::Grouped => "grouped",
        }
    }

    /// Bytes of 16 rows.
    pub(crate) fn group_bytes(self, width: usize) -> usize {
        match self {
            Layout::I2s => width / 16 * LINE,
            Layout::Tl2 => tl2::group_bytes(width),
            Layout::Grouped => group_scale_bytes(width) + width / 16 * LINE,
        }
    }

    /// Bytes of one token's tables.
    pub(crate) fn table_bytes(self, width: usize) -> usize {
        match self {
            Layout::I2s | Layout::Grouped => 0,
            Layout::Tl2 => tl2::table_bytes(width),
        }
    }

    /// Inputs of `width` that share a scale of activations.
    pub(crate) fn scale_width(self, width: usize) -> usize {
        match self {
            Layout::I2s | Layout::Tl2 => width,
            Layout::Grouped => GROUP,
        }
    }

    /// Brings the lines of 16 rows into this layout; scales of groups are before the lines, and are the caller's.
    pub(crate) fn pack_group(self, lines: &[u8], width: usize, out: &mut [u8]) {
        match self {
            Layout::Grouped => out[group_scale_bytes(width)..].copy_from_slice(lines),
            Layout::I2s => out.copy_from_slice(lines),
            Layout::Tl2 => tl2::pack_group(lines, width, out),
        }
    }
}

/// Keys and values of one page of one head: keys (4, head_dim, 32), values (128, head_dim).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stored<'a> {
    Half {
        keys: &'a [u16],
        values: &'a [u16],
    },
    Bytes {
        keys: &'a [i8],
        values: &'a [i8],
        /// Of keys and of values, (2, 128).
        scales: &'a [f32],
    },
}

/// The kernels of an instruction set that this CPU has: holding one is the proof.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    isa: Isa,
    layout: Layout,
    table: &'static Table,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Kernels({}, {:?})", self.isa, self.layout)
    }
}

/// Rows of int8 activations, (n_tokens, width), and for [`Layout::Tl2`] their tables, (n_tokens, table_bytes).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acts<'a> {
    pub(crate) width: usize,
    pub(crate) rows: &'a [i8],
    pub(crate) tables: &'a [u8],
}

/// Scratch memory of one thread for [`Kernels::product`]; the panel, which comes first, is on a cache line.
#[repr(C, align(64))]
pub(crate) struct Scratch {
    panel: [u8; 16384],
    sums: [i32; MAX_TOKENS * MOST_GROUPS * ROWS],
    widened: Widened,
}

impl Scratch {
    pub(crate) fn new() -> Box<Scratch> {
        Box::new(Scratch {
            panel: [0; 16384],
            sums: [0; MAX_TOKENS * MOST_GROUPS * ROWS],
            widened: Widened::EMPTY,
        })
    }
}

impl Kernels {
    /// `None` if this CPU lacks the instruction set.
    pub(crate) fn new(isa: Isa) -> Option<Kernels> {
        if !isa.is_available() {
            return None;
        }
        let table = match isa {
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &avx_vnni::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        };
        Some(Kernels { isa, layout: Layout::I2s, table })
    }

    /// These kernels on weights of another layout.
    pub(crate) fn with_layout(self, layout: Layout) -> Kernels {
        Kernels { layout, ..self }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// How many groups a product takes at most.
    pub(crate) fn most_groups(&self) -> usize {
        if self.isa == Isa::Avx512 && self.layout == Layout::I2s { MOST_GROUPS } else { 2 }
    }

    /// Integer sums of up to [`Kernels::most_groups`] groups, handed to `epilogue`. `acts` has as many rows as the
    /// epilogue has tokens, at most [`MAX_TOKENS`]; `groups` holds the packed groups in this layout.
    ///
    /// # Safety
    /// The epilogue's `out` must have room for its rows and tokens, and no other thread may touch them meanwhile.
    pub(crate) unsafe fn product(
        &self,
        groups: &[u8],
        acts: &Acts<'_>,
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
    ) {
        let (n_tokens, n_groups, width) = (epilogue.n_tokens, epilogue.n_groups, acts.width);
        assert!(width.is_multiple_of(128) && n_tokens <= MAX_TOKENS);
        assert!((1..=self.most_groups()).contains(&n_groups));
        assert!(acts.rows.len() >= n_tokens * width);
        assert!(groups.len() >= n_groups * self.layout.group_bytes(width));
        assert!(acts.tables.len() >= n_tokens * self.layout.table_bytes(width));
        assert!(!matches!(epilogue.then, Then::Gate(_)) || n_groups.is_multiple_of(2));
        assert!(epilogue.activations.len() == n_tokens * (width / self.layout.scale_width(width)));
        assert!(self.layout == Layout::Grouped || epilogue.weight_scales.len() >= n_groups * ROWS);
        if n_tokens == 0 {
            return;
        }
        match self.layout {
            Layout::Grouped => {
                let job = GroupedJob {
                    groups: groups.as_ptr(),
                    n_blocks: width / GROUP,
                    n_groups,
                    acts: acts.rows.as_ptr(),
                    act_stride: width,
                    activations: epilogue.activations.as_ptr(),
                    n_tokens,
                    sums: scratch.sums.as_mut_ptr().cast(),
                    panel: scratch.panel.as_mut_ptr(),
                };
                // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU; an i32 is as long as an f32.
                return unsafe { (self.table.grouped)(&job, epilogue) };
            }
            Layout::I2s => {
                let job = TernaryJob {
                    lines: groups.as_ptr(),
                    n_lines: width / 16,
                    n_groups,
                    acts: acts.rows.as_ptr(),
                    act_stride: width,
                    n_tokens,
                    sums: scratch.sums.as_mut_ptr(),
                    panel: scratch.panel.as_mut_ptr(),
                };
                if n_tokens > 4 {
                    epilogue.ask_to_write();
                }
                // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
                unsafe { (self.table.ternary)(&job) };
            }
            Layout::Tl2 => {
                let job = LookupJob {
                    groups: groups.as_ptr(),
                    width,
                    n_groups,
                    tables: acts.tables.as_ptr(),
                    n_tokens,
                    sums: scratch.sums.as_mut_ptr(),
                };
                // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
                unsafe { (self.table.look_up)(&job) };
                // What is looked up are sums of weights; epilogues expect sums of codes, which are the weights plus one.
                for (sums, activation) in scratch.sums.chunks_exact_mut(2 * ROWS).zip(epilogue.activations) {
                    sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(activation.sum));
                }
            }
        }
        let pairs = scratch.sums.chunks_exact(MAX_TOKENS * 2 * ROWS).zip(epilogue.pairs());
        for (sums, epilogue) in pairs {
            // SAFETY: `sums` holds (n_tokens, 32); the caller answers for `out`.
            unsafe { (self.table.finish)(sums.as_ptr(), &epilogue) }
        }
    }

    /// One row's tables, where this layout has any.
    pub(crate) fn tabulate(&self, acts: &[i8], tables: &mut [u8]) {
        assert!(acts.len().is_multiple_of(16) && tables.len() == self.layout.table_bytes(acts.len()));
        if self.layout == Layout::Tl2 {
            // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
            unsafe { (self.table.tabulate)(acts.as_ptr(), acts.len(), tables.as_mut_ptr()) }
        }
    }

    /// RMS norm of one row. All slices have one length, a multiple of 16.
    pub(crate) fn norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len() && x.len().is_multiple_of(16));
        // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.norm)(x, weight, eps, out) }
    }

    /// Rows, normed where there is a norm (weights and eps), rounded to int8: `x` and `acts` are (n_rows, width), `quantised`
    /// (n_rows, width / the layout's scale width), `row` is scratch of one row.
    pub(crate) fn norm_quantise(
        &self,
        x: &[f32],
        norm: Option<(&[f32], f32)>,
        row: &mut [f32],
        acts: &mut [i8],
        quantised: &mut [Quantised],
    ) {
        let width = row.len();
        let group = self.layout.scale_width(width);
        assert!(width.is_multiple_of(16) && width.is_multiple_of(group) && group.is_multiple_of(16));
        assert!(width <= 1 << 17 && norm.is_none_or(|(weight, _)| weight.len() == width));
        assert!(x.len() == quantised.len() * group && acts.len() == x.len() && x.len().is_multiple_of(width));
        // SAFETY: as in `norm`.
        unsafe { (self.table.norm_quantise)(x, norm, group, row, acts, quantised) }
    }

    /// Rotary positions for one head, in place.
    pub(crate) fn rotate(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(head.len() == 2 * cos.len() && cos.len() == sin.len());
        // SAFETY: as in `norm`.
        unsafe { (self.table.rotate)(head, cos, sin) }
    }

    /// Rounds to half precision. Both slices have one length, a multiple of 16.
    pub(crate) fn narrow(&self, from: &[f32], to: &mut [u16]) {
        assert!(from.len() == to.len() && from.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.narrow)(from, to) }
    }

    /// Widens half precision. Both slices have one length, a multiple of 16.
    pub(crate) fn widen(&self, from: &[u16], to: &mut [f32]) {
        assert!(from.len() == to.len() && from.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.widen)(from, to) }
    }

    /// Rounds to int8; what it must be multiplied by. Both slices have one length, a multiple of 16.
    pub(crate) fn narrow_bytes(&self, from: &[f32], to: &mut [i8]) -> f32 {
        assert!(from.len() == to.len() && from.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.narrow_bytes)(from, to) }
    }

    /// Attention over one page of one head. `next` is where the keys begin that will be read after this page: they are asked for
    /// ahead, and never read here.
    pub(crate) fn attend(
        &self,
        queries: &mut [Query<'_>],
        stored: Stored<'_>,
        next: *const u8,
        head_dim: usize,
        scale: f32,
    ) {
        assert!(head_dim.is_multiple_of(16) && head_dim <= MAX_HEAD_DIM);
        assert!(queries.iter().all(|query| query.visible <= PAGE && query.q.len() == head_dim));
        match stored {
            Stored::Half { keys, values } => {
                assert!(keys.len() >= PAGE * head_dim && values.len() >= PAGE * head_dim);
                let page =
                    Page { keys: keys.as_ptr(), values: values.as_ptr(), scales: None, next, head_dim };
                // SAFETY: the lengths were checked above and `Kernels::new` checked the CPU.
                unsafe { (self.table.attend)(queries, &page, scale) }
            }
            Stored::Bytes { keys, values, scales } => {
                assert!(keys.len() >= PAGE * head_dim && values.len() >= PAGE * head_dim);
                assert!(scales.len() >= 2 * PAGE);
                let scales = Some(scales.as_ptr());
                let page = Page { keys: keys.as_ptr(), values: values.as_ptr(), scales, next, head_dim };
                // SAFETY: as above.
                unsafe { (self.table.attend_bytes)(queries, &page, scale) }
            }
        }
    }

    /// Adds to a state what [`Kernels::attend`] found on a later page alone.
    pub(crate) fn fold(&self, state: &mut State, page: &State, head_dim: usize) {
        assert!(head_dim.is_multiple_of(16) && head_dim <= MAX_HEAD_DIM);
        // SAFETY: the length was checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.fold)(state, page, head_dim) }
    }

    /// The attention output of one head.
    pub(crate) fn attended(&self, state: &State, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(16) && out.len() <= MAX_HEAD_DIM);
        // SAFETY: as in `norm`.
        unsafe { (self.table.attended)(state, out) }
    }

    /// The canonical dot product with a row of f16.
    pub(crate) fn dot_f16(&self, row: &[u16], x: &[f32]) -> f32 {
        assert!(row.len() == x.len() && x.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.dot_f16)(row.as_ptr(), x.as_ptr(), x.len()) }
    }

    /// The canonical dot product with a row of f32.
    pub(crate) fn dot_f32(&self, row: &[f32], x: &[f32]) -> f32 {
        assert!(row.len() == x.len() && x.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.dot_f32)(row.as_ptr(), x.as_ptr(), x.len()) }
    }

    /// [`Kernels::dot_f16`] of sixteen rows, (16, width), with each of `x`, (n_tokens, width): `out[token · out_stride + row]`.
    ///
    /// # Safety
    /// `out` has room for them, and no other thread may touch them meanwhile.
    pub(crate) unsafe fn dots_f16(
        &self,
        rows: &[u16],
        x: &[f32],
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        let width = rows.len() / ROWS;
        assert!(width.is_multiple_of(16) && rows.len() == ROWS * width && x.len().is_multiple_of(width));
        let mut job = HalvesJob {
            rows: rows.as_ptr(),
            tokens: x.as_ptr(),
            n_tokens: x.len() / width,
            width,
            out,
            out_stride,
            scratch: &mut scratch.widened,
        };
        // SAFETY: the lengths were checked above; the caller answers for `out`.
        unsafe { (self.table.dots_f16)(&mut job) }
    }

    /// max |x|.
    pub(crate) fn largest_magnitude(&self, x: &[f32]) -> f32 {
        assert!(x.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.largest_magnitude)(x) }
    }

    /// out = round(x / step), error = x − step · out.
    pub(crate) fn round_i16(&self, x: &[f32], step: f32, out: &mut [i16], error: &mut [f32]) {
        assert!(x.len() == out.len() && x.len() == error.len() && x.len().is_multiple_of(16));
        // SAFETY: as in `norm`.
        unsafe { (self.table.round_i16)(x, step, out, error) }
    }

    /// Reads `bytes` by the widest loads; `ask` asks ahead as kernels do.
    pub(crate) fn read_all(&self, bytes: &[u8], ask: bool) -> u64 {
        assert!(bytes.len().is_multiple_of(4096));
        // SAFETY: the length was checked above and `Kernels::new` checked the CPU.
        unsafe { (self.table.read_all)(bytes, ask) }
    }

    /// Multiplies and adds on registers; how often.
    pub(crate) fn multiply_all(&self, rounds: u64) -> u64 {
        // SAFETY: `Kernels::new` checked the CPU.
        unsafe { (self.table.multiply_all)(rounds) }
    }
}
