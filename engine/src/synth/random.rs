//! Random words by counter: any piece of any tensor can be made by any thread, and comes out the same.

/// The odd constant nearest 2⁶⁴ / φ, by which SplitMix64 counts.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// The lower bit of each two-bit code.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// The random words of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(seed: u64, tensor: u64) -> Self {
        Self(mix(mix(seed).wrapping_add(tensor.wrapping_add(1).wrapping_mul(GOLDEN))))
    }

    fn word(self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_mul(GOLDEN)))
    }

    /// 32 ternary codes: a quarter −1, half 0, a quarter +1. The unused code 3 becomes 1 (zero).
    pub(super) fn ternary(self, index: u64) -> u64 {
        let word = self.word(index);
        word & !((word & (word >> 1) & LOW_BITS) << 1)
    }

    /// Two sums of four random bytes each: 0 to 1020, near-normal.
    pub(super) fn pair(self, index: u64) -> [usize; 2] {
        let bytes = self.word(index).to_le_bytes();
        let (a, b) = bytes.split_at(4);
        [a, b].map(|four| four.iter().map(|&byte| usize::from(byte)).sum())
    }

    /// A float in [0, 1), of 24 bits.
    pub(super) fn unit(self, index: u64) -> f32 {
        (self.word(index) >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
