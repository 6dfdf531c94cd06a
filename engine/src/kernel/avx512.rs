//! 512-bit kernels: one line is one register, `vpdpbusd` multiplies four codes of sixteen rows at once.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Intrinsics; `kernel.rs` checks the CPU and the lengths.

mod grouped;

use super::ahead::ask_ahead;
use super::lanes::Lanes;
use super::tl2::avx2::{look_up, tabulate};
use super::{LINE, MAX_TOKENS, ROWS, ScreenJob, TernaryJob};
use grouped::Lines;
use std::arch::x86_64::*;

/// Bytes of codes that are decoded at a time: a third of the first-level cache.
const PANEL: usize = 16 << 10;
/// Tokens of a tile of the int8 head, and of a tile of one or two groups: with two groups they take 24 registers for sums, two
/// for codes and one for activations.
const TILE: usize = 12;
/// Tokens of a tile of four groups: as many sums, from six instead of twelve loads of activations.
const TALL_TILE: usize = 6;
/// Lines of int8 rows at a time: two groups of 64 are 8 KiB.
const NARROW_LINES: usize = 64;

/// Sixteen f32 in one register.
#[derive(Clone, Copy)]
pub(super) struct Whole(__m512);

impl Lanes for Whole {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Whole(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Whole(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0);
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // Without a rounding mode of its own the instruction takes its operand from memory.
        Whole(_mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Whole(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let v = self.max(Self::splat(-65504.0)).min(Self::splat(65504.0));
        _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
    }
    #[inline(always)]
    unsafe fn load_i32_minus(from: *const i32, subtrahend: i32) -> Self {
        let sums = _mm512_loadu_si512(from.cast());
        Whole(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(subtrahend))))
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0)));
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(self.0)));
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32) {
        _mm512_storeu_si512(to.cast(), _mm512_cvtps_epi32(self.0));
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Whole(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Whole(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Whole(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Whole(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Whole(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Whole(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Whole(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Whole(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Whole(_mm512_roundscale_ps::<0>(self.0))
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
        Whole(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
    }
    #[inline(always)]
    unsafe fn select_below(x: Self, bound: Self, below: Self, otherwise: Self) -> Self {
        let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x.0, bound.0);
        Whole(_mm512_mask_blend_ps(mask, otherwise.0, below.0))
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> u16 {
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, bound.0)
    }
    #[inline(always)]
    unsafe fn sums(vectors: [Self; 16]) -> Self {
        // Each step adds the halves of what is left of two vectors, and puts them side by side.
        let mut eights = [_mm512_setzero_ps(); 8];
        for (i, eight) in eights.iter_mut().enumerate() {
            let (a, b) = (vectors[2 * i].0, vectors[2 * i + 1].0);
            *eight = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
        let mut fours = [_mm512_setzero_ps(); 4];
        for (i, four) in fours.iter_mut().enumerate() {
            let (a, b) = (eights[2 * i], eights[2 * i + 1]);
            *four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        }
        let mut twos = [_mm512_setzero_ps(); 2];
        for (i, two) in twos.iter_mut().enumerate() {
            let (a, b) = (fours[2 * i], fours[2 * i + 1]);
            *two = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b));
        }
        let [a, b] = twos;
        let ones = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
        // A quarter now has every fourth vector's sum.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        Whole(_mm512_permutexvar_ps(order, ones))
    }
    #[inline(always)]
    unsafe fn prefetch<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}

/// Sums of code · activation for one or two groups of 16 rows.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`]; as [`TernaryJob`] says.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn ternary(job: &TernaryJob) {
    if job.n_tokens > 4 {
        return match job.n_groups {
            1 => panel::<1, TILE>(job, 0),
            2 => panel::<2, TILE>(job, 0),
            3 => {
                panel::<2, TILE>(job, 0);
                panel::<1, TILE>(job, 2);
            }
            _ => panel::<4, TALL_TILE>(job, 0),
        };
    }
    for group in 0..job.n_groups {
        let lines = job.lines.add(group * job.n_lines * LINE);
        let sums = job.sums.add(place(0, group));
        match job.n_tokens {
            1 => stream::<1, 4>(lines, job, sums),
            2 => stream::<2, 4>(lines, job, sums),
            3 => stream::<3, 2>(lines, job, sums),
            _ => stream::<4, 2>(lines, job, sums),
        }
    }
}

/// The four planes of a line.
#[inline(always)]
unsafe fn decode(line: __m512i) -> [__m512i; 4] {
    let three = _mm512_set1_epi8(3);
    [
        _mm512_and_si512(line, three),
        _mm512_and_si512(_mm512_srli_epi16::<2>(line), three),
        _mm512_and_si512(_mm512_srli_epi16::<4>(line), three),
        _mm512_and_si512(_mm512_srli_epi16::<6>(line), three),
    ]
}

/// Four activations in every lane.
#[inline(always)]
unsafe fn broadcast<V>(four: *const V) -> __m512i {
    _mm512_set1_epi32(four.cast::<i32>().read_unaligned())
}

/// Few tokens: decode as the lines pass by; `P` sums a token keep the multipliers busy.
#[inline(always)]
unsafe fn stream<const T: usize, const P: usize>(lines: *const u8, job: &TernaryJob, sums: *mut i32) {
    let mut parts = [[_mm512_setzero_si512(); P]; T];
    for line in 0..job.n_lines {
        let at = lines.add(line * LINE);
        ask_ahead(at);
        let codes = decode(_mm512_loadu_si512(at.cast()));
        for (plane, &code) in codes.iter().enumerate() {
            for (t, part) in parts.iter_mut().enumerate() {
                let act = broadcast(job.acts.add(t * job.act_stride + line * 16 + plane * 4));
                part[plane % P] = _mm512_dpbusd_epi32(part[plane % P], code, act);
            }
        }
    }
    for (t, part) in parts.iter().enumerate() {
        let mut sum = part[0];
        for &other in &part[1..] {
            sum = _mm512_add_epi32(sum, other);
        }
        _mm512_storeu_si512(sums.add(t * 2 * ROWS).cast(), sum);
    }
}

/// Where a token's sums of a group begin: groups stand in pairs, each pair as if it were a job of its own.
#[inline(always)]
fn place(token: usize, group: usize) -> usize {
    ((group / 2 * MAX_TOKENS + token) * 2 + group % 2) * ROWS
}

/// Many tokens: decode a block of lines once, then pass tiles of up to `MOST` tokens over it. Meanwhile the next block's lines
/// are asked for: of these groups, or of those that follow. `from` is the first group.
#[inline(always)]
unsafe fn panel<const G: usize, const MOST: usize>(job: &TernaryJob, from: usize) {
    let all = job.lines.add(from * job.n_lines * LINE);
    // Four planes of each line.
    let block = PANEL / (4 * LINE * G);
    let n_tiles = job.n_tokens.div_ceil(MOST);
    let mut line = 0;
    while line < job.n_lines {
        let n = block.min(job.n_lines - line);
        let mut ahead = [all; G];
        for group in 0..G {
            let lines = all.add((group * job.n_lines + line) * LINE);
            for i in 0..n {
                let codes = decode(_mm512_loadu_si512(lines.add(i * LINE).cast()));
                for (plane, &code) in codes.iter().enumerate() {
                    _mm512_store_si512(job.panel.add(((i * 4 + plane) * G + group) * LINE).cast(), code);
                }
            }
            let next = if line + n < job.n_lines { line + n } else { G * job.n_lines };
            ahead[group] = all.wrapping_add((group * job.n_lines + next) * LINE);
        }
        let mut token = 0;
        for index in 0..n_tiles {
            let tokens = (job.n_tokens - token).div_ceil(n_tiles - index);
            let tile = Tile {
                panel: job.panel,
                n_lines: n,
                acts: job.acts.add(token * job.act_stride + line * 16),
                act_stride: job.act_stride,
                sums: job.sums.add(place(token, from)),
                first: line == 0,
                // Each tile asks for some groups, so that the requests to memory are spread evenly.
                ahead,
                asked: (index, n_tiles),
            };
            macro_rules! tiles {
                ($($tokens:literal)*) => {
                    match tokens {
                        $($tokens if $tokens < MOST => tile.run::<$tokens>(),)*
                        _ => tile.run::<MOST>(),
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11);
            token += tokens;
        }
        line += n;
    }
}

/// A few tokens' sums over the lines of a panel.
struct Tile<const G: usize> {
    panel: *const u8,
    n_lines: usize,
    acts: *const i8,
    act_stride: usize,
    sums: *mut i32,
    /// Whether the sums begin here.
    first: bool,
    /// The next block of each group, of which this tile asks for every so many from the first on.
    ahead: [*const u8; G],
    asked: (usize, usize),
}

impl<const G: usize> Tile<G> {
    /// A core whose other hardware thread is busy has no more than three operations a cycle. So a line's four planes
    /// are taken without a loop, and of four groups 24 multiplications take 10 loads.
    #[inline(always)]
    unsafe fn run<const T: usize>(&self) {
        let mut parts = [[_mm512_setzero_si512(); G]; T];
        if !self.first {
            for (t, part) in parts.iter_mut().enumerate() {
                for (group, sum) in part.iter_mut().enumerate() {
                    *sum = _mm512_loadu_si512(self.sums.add(place(t, group)).cast());
                }
            }
        }
        for line in 0..self.n_lines {
            let mut group = self.asked.0;
            while group < G {
                _mm_prefetch::<_MM_HINT_T0>(self.ahead[group].wrapping_add(line * LINE).cast());
                group += self.asked.1;
            }
            for step in 4 * line..4 * line + 4 {
                let mut codes = [_mm512_setzero_si512(); G];
                for (group, code) in codes.iter_mut().enumerate() {
                    *code = _mm512_load_si512(self.panel.add((step * G + group) * LINE).cast());
                }
                for t in 0..T {
                    let act = broadcast(self.acts.add(t * self.act_stride + step * 4));
                    for group in 0..G {
                        parts[t][group] = _mm512_dpbusd_epi32(parts[t][group], codes[group], act);
                    }
                }
            }
        }
        for (t, part) in parts.iter().enumerate() {
            for (group, &sum) in part.iter().enumerate() {
                _mm512_storeu_si512(self.sums.add(place(t, group)).cast(), sum);
            }
        }
    }
}

/// Dot products of one or two groups of 16 int8 rows with int16 activations, these as two bytes each: `vpdpbusd` takes an
/// unsigned operand, so y + 32768 = 256 · high + low is multiplied, and 32768 times the row's sum taken off again. All of
/// it in wrapping int32, which is exact because the result fits.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`]; as [`ScreenJob`] says.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn screen(job: &ScreenJob) {
    if job.n_tokens == 1 || job.n_groups == 1 {
        for group in 0..job.n_groups {
            for token in 0..job.n_tokens {
                screen_tile::<1, 1, 2>(job, group, token);
            }
        }
        return;
    }
    let mut token = 0;
    while token < job.n_tokens {
        let left = job.n_tokens - token;
        // Six tokens, two groups and two bytes take 24 registers for sums.
        let tile_tokens = if left <= 6 { left } else { left.div_ceil(left.div_ceil(6)) };
        match tile_tokens {
            1 => screen_tile::<1, 2, 1>(job, 0, token),
            2 => screen_tile::<2, 2, 1>(job, 0, token),
            3 => screen_tile::<3, 2, 1>(job, 0, token),
            4 => screen_tile::<4, 2, 1>(job, 0, token),
            5 => screen_tile::<5, 2, 1>(job, 0, token),
            _ => screen_tile::<6, 2, 1>(job, 0, token),
        }
        token += tile_tokens;
    }
}

/// `T` tokens and `G` groups; `P` sums for each keep the multipliers busy where there are few.
#[inline(always)]
unsafe fn screen_tile<const T: usize, const G: usize, const P: usize>(
    job: &ScreenJob,
    first_group: usize,
    token: usize,
) {
    let mut high = [[[_mm512_setzero_si512(); P]; G]; T];
    let mut low = [[[_mm512_setzero_si512(); P]; G]; T];
    let mut line = 0;
    // The number of lines is even: widths are multiples of 128.
    while line < job.n_lines {
        for part in 0..P {
            let mut quants = [_mm512_setzero_si512(); G];
            for (group, quant) in quants.iter_mut().enumerate() {
                let at = job.lines.add(((first_group + group) * job.n_lines + line + part) * LINE);
                ask_ahead(at);
                *quant = _mm512_loadu_si512(at.cast());
            }
            for t in 0..T {
                let place = (token + t) * job.stride + (line + part) * 4;
                let (upper, lower) = (broadcast(job.high.add(place)), broadcast(job.low.add(place)));
                for group in 0..G {
                    high[t][group][part] = _mm512_dpbusd_epi32(high[t][group][part], upper, quants[group]);
                    low[t][group][part] = _mm512_dpbusd_epi32(low[t][group][part], lower, quants[group]);
                }
            }
        }
        line += P;
    }
    for t in 0..T {
        for group in 0..G {
            let (mut upper, mut lower) = (high[t][group][0], low[t][group][0]);
            for part in 1..P {
                upper = _mm512_add_epi32(upper, high[t][group][part]);
                lower = _mm512_add_epi32(lower, low[t][group][part]);
            }
            store_wide(job, first_group + group, token + t, upper, lower);
        }
    }
}

/// [`screen`] on packed lines of six bits: four lines at a time are unpacked into registers and multiplied there.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`]; as [`ScreenJob`] says.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn screen_six(job: &ScreenJob) {
    for group in 0..job.n_groups {
        for token in 0..job.n_tokens {
            six_tile(job, group, token);
        }
    }
}

/// A sum for each plane and byte keeps the multipliers busy.
#[inline(always)]
unsafe fn six_tile(job: &ScreenJob, group: usize, token: usize) {
    let mut high = [_mm512_setzero_si512(); 4];
    let mut low = [_mm512_setzero_si512(); 4];
    for block in 0..job.n_lines / 4 {
        let at = job.lines.add((group * job.n_lines / 4 + block) * 3 * LINE);
        (0..3).for_each(|i| ask_ahead(at.add(i * LINE)));
        let load = |i: usize| _mm512_loadu_si512(at.add(i * LINE).cast());
        for (plane, line) in unpack_six(load(0), load(1), load(2)).into_iter().enumerate() {
            let place = token * job.stride + block * 16 + plane * 4;
            high[plane] = _mm512_dpbusd_epi32(high[plane], broadcast(job.high.add(place)), line);
            low[plane] = _mm512_dpbusd_epi32(low[plane], broadcast(job.low.add(place)), line);
        }
    }
    let all = |parts: [__m512i; 4]| {
        let (even, odd) = (_mm512_add_epi32(parts[0], parts[2]), _mm512_add_epi32(parts[1], parts[3]));
        _mm512_add_epi32(even, odd)
    };
    store_wide(job, group, token, all(high), all(low));
}

/// Four int8 lines from three packed ones: see `scores::unpack_six`.
#[inline(always)]
unsafe fn unpack_six(a: __m512i, b: __m512i, c: __m512i) -> [__m512i; 4] {
    /// Bits of the first operand where the third has ones, of the second elsewhere.
    const SELECT: i32 = 0xe4;
    let upper = _mm512_set1_epi8(0xfcu8 as i8);
    let mask = |mask: u8| _mm512_set1_epi8(mask as i8);
    let (of_a, of_b, of_c) =
        (_mm512_slli_epi16::<6>(a), _mm512_slli_epi16::<4>(b), _mm512_slli_epi16::<2>(c));
    let two = _mm512_ternarylogic_epi32::<SELECT>(of_a, of_b, mask(0xc0));
    let three = _mm512_ternarylogic_epi32::<SELECT>(two, of_c, mask(0xf0));
    [
        _mm512_and_si512(a, upper),
        _mm512_and_si512(b, upper),
        _mm512_and_si512(c, upper),
        _mm512_and_si512(three, upper),
    ]
}

/// Puts the bytes' sums together and takes off again what making them unsigned has added.
#[inline(always)]
unsafe fn store_wide(job: &ScreenJob, group: usize, token: usize, high: __m512i, low: __m512i) {
    let row_sums = _mm512_loadu_si512(job.row_sums.add(group * ROWS).cast());
    let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
    let place = job.sums.add((token * 2 + group) * ROWS);
    _mm512_storeu_si512(place.cast(), _mm512_sub_epi32(sum, _mm512_slli_epi32::<15>(row_sums)));
}

/// Dot products of int8 rows with int8 activations, these as y + 128 in `low`; 128 times the row's sum is taken off again.
/// Blocks of lines stay in the first-level cache while tiles of up to twelve tokens pass over them.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`]; as [`ScreenJob`] says, with values within [-127, 127].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn screen_narrow(job: &ScreenJob) {
    match job.n_groups {
        1 => narrow_blocks::<1>(job),
        _ => narrow_blocks::<2>(job),
    }
}

#[inline(always)]
unsafe fn narrow_blocks<const G: usize>(job: &ScreenJob) {
    let mut line = 0;
    while line < job.n_lines {
        let end = job.n_lines.min(line + NARROW_LINES);
        // As in `panel`: the block after this one, of these groups or of those that follow.
        let n_tiles = job.n_tokens.div_ceil(TILE);
        let next = if end < job.n_lines { end } else { G * job.n_lines };
        let mut ahead = job.lines.wrapping_add(next * LINE);
        let pace = LINE.div_ceil(n_tiles);
        let mut token = 0;
        while token < job.n_tokens {
            let left = job.n_tokens - token;
            let tile_tokens = if left <= TILE { left } else { left.div_ceil(left.div_ceil(TILE)) };
            macro_rules! tiles {
                ($($tokens:literal)*) => {
                    match tile_tokens {
                        $($tokens => narrow_tile::<$tokens, G>(job, token, line, end, ahead, pace),)*
                        _ => narrow_tile::<TILE, G>(job, token, line, end, ahead, pace),
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11);
            token += tile_tokens;
            ahead = ahead.wrapping_add((end - line) * LINE / n_tiles);
        }
        line = end;
    }
}

#[inline(always)]
unsafe fn narrow_tile<const T: usize, const G: usize>(
    job: &ScreenJob,
    token: usize,
    start: usize,
    end: usize,
    ahead: *const u8,
    pace: usize,
) {
    let sums = job.sums.add(token * 2 * ROWS);
    let mut parts = [[_mm512_setzero_si512(); G]; T];
    for (t, part) in parts.iter_mut().enumerate() {
        for (group, sum) in part.iter_mut().enumerate() {
            *sum = if start > 0 {
                _mm512_loadu_si512(sums.add((t * 2 + group) * ROWS).cast())
            } else {
                let row_sums = _mm512_loadu_si512(job.row_sums.add(group * ROWS).cast());
                _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(row_sums))
            };
        }
    }
    let acts = job.low.add(token * job.stride);
    for line in start..end {
        let mut quants = [_mm512_setzero_si512(); G];
        for (group, quant) in quants.iter_mut().enumerate() {
            let at = job.lines.add((group * job.n_lines + line) * LINE);
            let next = (line - start) * pace + group * job.n_lines * LINE;
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(next).cast());
            *quant = _mm512_loadu_si512(at.cast());
        }
        for t in 0..T {
            let act = broadcast(acts.add(t * job.stride + line * 4));
            for group in 0..G {
                parts[t][group] = _mm512_dpbusd_epi32(parts[t][group], act, quants[group]);
            }
        }
    }
    for (t, part) in parts.iter().enumerate() {
        for (group, &sum) in part.iter().enumerate() {
            _mm512_storeu_si512(sums.add((t * 2 + group) * ROWS).cast(), sum);
        }
    }
}

/// Reads all of `bytes` by the widest loads and does nothing with them: the memory's ceiling. `ask` asks ahead, as kernels do.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`]; a length that is a multiple of 4096.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn read_all(bytes: &[u8], ask: bool) -> u64 {
    let mut sums = [_mm512_setzero_si512(); 8];
    for chunk in bytes.chunks_exact(512) {
        if ask {
            chunk.chunks_exact(LINE).for_each(|line| ask_ahead(line.as_ptr()));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_or_si512(*sum, _mm512_loadu_si512(chunk.as_ptr().add(i * LINE).cast()));
        }
    }
    let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_or_si512(all, sum));
    _mm512_reduce_or_epi64(all) as u64
}

/// `rounds` rounds of multiply-adds on registers alone; how many were done.
///
/// # Safety
/// The features of [`crate::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn multiply_all(rounds: u64) -> u64 {
    let (codes, acts) = std::hint::black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(3)));
    let mut sums = [_mm512_setzero_si512(); 20];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, codes, acts);
        }
    }
    std::hint::black_box(sums);
    rounds * 20 * 64
}

super::stamp!(Whole, Lines, 8, 2, 4, 6, 4, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");
