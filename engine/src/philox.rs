//! Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//!
//! A draw is a pure function of key and counter, so token N of a sequence can be drawn again anywhere, from its ids and its
//! seed alone.

/// How often the words are mixed.
pub(crate) const ROUNDS: usize = 10;

/// Four random words for a key and a counter.
pub(crate) fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    schedule(key).into_iter().fold(counter, round)
}

/// The keys of all rounds.
pub(crate) fn schedule(key: u64) -> [[u32; 2]; ROUNDS] {
    let mut key = [key as u32, (key >> 32) as u32];
    [(); ROUNDS].map(|()| {
        let now = key;
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        now
    })
}

/// One round.
#[inline(always)]
pub(crate) fn round(c: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let product0 = u64::from(c[0]) * 0xD251_1F53;
    let product1 = u64::from(c[2]) * 0xCD9E_8D57;
    [
        (product1 >> 32) as u32 ^ c[1] ^ key[0],
        product1 as u32,
        (product0 >> 32) as u32 ^ c[3] ^ key[1],
        product0 as u32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123.
    #[test]
    fn known_answers_come_out() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(0x299f_31d0_a409_3822, pi), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
