//! Sixteen virtual f32 lanes: the unit in which every float reduction of the engine is defined.
//!
//! Lane i of a sum takes the elements i mod 16 in order, by fused multiply-add, and a fixed tree adds the lanes. A
//! register of AVX-512 is one such vector, AVX2 uses two, plain Rust an array; the bits are the same. No operation
//! here differs between machines: no reciprocal estimates, no flush to zero, no contraction that is not written.
//!
//! The implementations are in `scalar.rs`, `avx2.rs` and `avx512.rs`; `floats.rs`, `halves.rs`, `scores.rs` and `attention.rs` are written over them.
#![allow(unsafe_op_in_unsafe_fn)] // Each function's contract is that of its one intrinsic; see the trait.

/// Sixteen f32.
///
/// # Safety
/// Every method needs the CPU features of its implementation, and pointers to sixteen readable (or writable) elements of
/// any alignment. They are all inlined into functions that carry the features.
pub(crate) trait Lanes: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Half precision, widened exactly.
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    /// Half precision, ties to even; magnitudes above 65504 become 65504, so that stored values are always finite.
    unsafe fn store_f16(self, to: *mut u16);
    /// `from[i] - subtrahend` in wrapping integers, then rounded to f32.
    unsafe fn load_i32_minus(from: *const i32, subtrahend: i32) -> Self;
    /// Integral values within [-128, 127].
    unsafe fn store_i8(self, to: *mut i8);
    /// Integral values within [-32768, 32767].
    unsafe fn store_i16(self, to: *mut i16);
    /// Integral values within [-2³¹, 2³¹ - 128].
    unsafe fn store_i32(self, to: *mut i32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`.
    unsafe fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of integral values within [-126, 127].
    unsafe fn exp2_integral(self) -> Self;
    /// `x < bound ? below : otherwise`.
    unsafe fn select_below(x: Self, bound: Self, below: Self, otherwise: Self) -> Self;
    /// One bit a lane: `self >= bound`.
    unsafe fn at_least(self, bound: Self) -> u16;
    /// Asks for a cache line, or does nothing; any address will do.
    #[inline(always)]
    unsafe fn prefetch<T>(_address: *const T) {}
    /// The same, into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch_far<T>(_address: *const T) {}

    /// The lanes in order.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; 16] {
        let mut lanes = [0f32; 16];
        self.store(lanes.as_mut_ptr());
        lanes
    }

    /// The fixed tree: lane i with i + 8, then i + 4, i + 2, i + 1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        let mut width = 8;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The sums of sixteen vectors, each by the fixed tree.
    #[inline(always)]
    unsafe fn sums(vectors: [Self; 16]) -> Self {
        let mut sums = [0f32; 16];
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = vector.sum();
        }
        Self::load(sums.as_ptr())
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = self.to_array();
        let mut width = 8;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// e to the power of x, within 2 units in the last place; 0 below -87.3. `exp(0) == 1` exactly.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
#[allow(clippy::excessive_precision)] // The coefficients as Cephes prints them.
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    let lowest = L::splat(-87.3);
    let clamped = x.max(lowest).min(L::splat(88.0));
    let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    let r = n.fma(L::splat(-0.693_359_375), clamped);
    let r = n.fma(L::splat(2.121_944_40e-4), r);
    let mut p = L::splat(1.987_569_15e-4);
    for coefficient in [1.398_199_95e-3, 8.333_451_91e-3, 4.166_579_59e-2, 1.666_666_55e-1, 5.000_000_12e-1] {
        p = p.fma(r, L::splat(coefficient));
    }
    let y = p.fma(r.mul(r), r).add(L::splat(1.0));
    L::select_below(x, lowest, L::splat(0.0), y.mul(n.exp2_integral()))
}
