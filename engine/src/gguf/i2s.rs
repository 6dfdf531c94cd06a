//! I2_S: ternary weights at two bits each, in the layout of the official file (blocks of 128 weights).
//!
//! A tensor of n weights is n/4 bytes of codes, one little-endian f32 scale, and 28 bytes that mean nothing.
//! In the block of 128 weights that starts at e0, byte j of 32 holds, from the most significant pair down,
//! the weights e0+j, e0+32+j, e0+64+j and e0+96+j. Codes 0, 1, 2 stand for −1, 0, +1; code 3 is unused.
//! bitnet.cpp also has an ARM layout and a four-row one under the same type number, with nothing in the file
//! to tell them apart: files made for those are read scrambled by everyone, this engine included.

/// Weights in a block.
pub const BLOCK: usize = 128;
/// Bytes of a block's codes.
pub const BLOCK_BYTES: usize = 32;
/// Bytes after the codes: the scale, and 28 undefined ones.
pub const TRAILER_BYTES: u64 = 32;

/// A code that stands for no weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Code 3 was found.
    #[error("weight {index} has the code 3, which is invalid (0, 1 and 2 are -1, 0 and +1)")]
    CodeThree {
        /// Flat index of the first such weight.
        index: usize,
    },
    /// The slice does not hold what was asked for.
    #[error("{bytes} bytes cannot contain {n} weights in whole blocks of 128")]
    Length {
        /// Bytes in the slice.
        bytes: usize,
        /// Weights asked for.
        n: usize,
    },
}

/// Checks that the first `n` weights in `bytes` hold no code 3. `n` is a multiple of 128.
///
/// Runs over half a gigabyte at load, so the inner loop is a plain fold that the compiler turns into vectors:
/// a pair of set bits is found by `b & b >> 1` on its lower bit.
pub fn check(bytes: &[u8], n: usize) -> Result<(), Fault> {
    const CHUNK: usize = 4096;
    const LOW_BITS: u64 = 0x5555_5555_5555_5555;
    let Some(codes) = bytes.get(..n / 4).filter(|_| n.is_multiple_of(BLOCK)) else {
        return Err(Fault::Length { bytes: bytes.len(), n });
    };
    for (index, chunk) in codes.chunks(CHUNK).enumerate() {
        let (words, rest) = chunk.as_chunks::<8>();
        debug_assert!(rest.is_empty(), "a block is 32 bytes");
        let mut threes = 0u64;
        for word in words {
            let word = u64::from_le_bytes(*word);
            threes |= word & (word >> 1) & LOW_BITS;
        }
        if threes != 0 {
            let first = index * CHUNK * 4;
            let weights = first..first + chunk.len() * 4;
            let found = weights.into_iter().find(|&weight| code(codes, weight) == 3);
            return Err(Fault::CodeThree {
                index: found.expect("because the fold saw a code 3 in this chunk"),
            });
        }
    }
    Ok(())
}

/// The code (0 to 3) of the weight with flat index `index`; `bytes` starts at the tensor's first byte.
#[inline]
pub fn code(bytes: &[u8], index: usize) -> u8 {
    let (block, place) = (index / BLOCK, index % BLOCK);
    let byte = bytes[block * BLOCK_BYTES + place % 32];
    (byte >> (6 - 2 * (place / 32))) & 3
}

/// The scale of a tensor of `n` weights: w = scale · t. `None` if the slice ends before it.
pub fn scale(bytes: &[u8], n: usize) -> Option<f32> {
    let at = n / 4;
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(f32::from_le_bytes(four.try_into().expect("because the range is four bytes long")))
}

/// Packs ternary weights (−1, 0, +1; a multiple of 128 of them) and their scale into a tensor's bytes.
/// The undefined bytes are written as zero.
///
/// # Panics
/// If the number of weights is no multiple of 128 or a weight is not ternary: the caller made them.
pub fn encode(weights: &[i8], scale: f32) -> Vec<u8> {
    assert!(weights.len().is_multiple_of(BLOCK), "I2_S holds whole blocks of 128 weights");
    let mut bytes = Vec::with_capacity(weights.len() / 4 + TRAILER_BYTES as usize);
    for block in weights.as_chunks::<BLOCK>().0 {
        bytes.extend_from_slice(&encode_block(block));
    }
    bytes.extend_from_slice(&trailer(scale));
    bytes
}

/// Packs one block of 128 ternary weights.
///
/// # Panics
/// If a weight is not −1, 0 or +1.
pub fn encode_block(weights: &[i8; BLOCK]) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0u8; BLOCK_BYTES];
    for (place, &weight) in weights.iter().enumerate() {
        assert!((-1..=1).contains(&weight), "{weight} is not a ternary weight");
        bytes[place % 32] |= ((weight + 1) as u8) << (6 - 2 * (place / 32));
    }
    bytes
}

/// The 32 bytes that follow the codes.
pub fn trailer(scale: f32) -> [u8; TRAILER_BYTES as usize] {
    let mut bytes = [0u8; TRAILER_BYTES as usize];
    bytes[..4].copy_from_slice(&scale.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
