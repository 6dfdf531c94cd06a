//! The tensor types this engine knows, and how many bytes each takes.

use std::fmt;

/// A tensor's element type, by ggml's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32 int8 with one f16 scale: 34 bytes.
    Q8_0,
    /// Super-blocks of 256 six-bit weights: 210 bytes.
    Q6K,
    /// Brain floats: the upper half of an f32.
    BF16,
    /// Ternary weights at two bits in blocks of 128, one f32 scale a tensor (see [`super::i2s`]).
    I2S,
    /// bitnet.cpp's int8 activations; never in a file that is right.
    I8S,
    /// bitnet.cpp's table layout for ARM: its size depends on a build, so it is never read.
    TL1,
    /// bitnet.cpp's table layout for x86: its size depends on a build, so it is never read.
    TL2,
    /// Any other number.
    Other(u32),
}

impl Kind {
    /// The type with ggml's number `id`.
    pub fn from_id(id: u32) -> Self {
        match id {
            0 => Self::F32,
            1 => Self::F16,
            8 => Self::Q8_0,
            14 => Self::Q6K,
            30 => Self::BF16,
            36 => Self::I2S,
            37 => Self::I8S,
            38 => Self::TL1,
            39 => Self::TL2,
            other => Self::Other(other),
        }
    }

    /// ggml's number of this type.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Q6K => 14,
            Self::BF16 => 30,
            Self::I2S => 36,
            Self::I8S => 37,
            Self::TL1 => 38,
            Self::TL2 => 39,
            Self::Other(id) => id,
        }
    }

    /// Weights in a block: a row's length is a multiple of it. `None` where the layout is not known here.
    pub fn block(self) -> Option<u64> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => Some(1),
            Self::Q8_0 => Some(32),
            Self::Q6K => Some(256),
            Self::I2S => Some(128),
            Self::I8S | Self::TL1 | Self::TL2 | Self::Other(_) => None,
        }
    }

    /// Bytes of one block, without what a whole tensor adds (I2_S: its scale).
    pub fn block_bytes(self) -> Option<u64> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::BF16 => Some(2),
            Self::Q8_0 => Some(34),
            Self::Q6K => Some(210),
            Self::I2S => Some(32),
            Self::I8S | Self::TL1 | Self::TL2 | Self::Other(_) => None,
        }
    }

    /// Bytes of a tensor of `n` weights: `None` if the layout is not known, `n` is no whole number of blocks,
    /// or the product does not fit.
    pub fn tensor_bytes(self, n: u64) -> Option<u64> {
        let (block, block_bytes) = (self.block()?, self.block_bytes()?);
        if !n.is_multiple_of(block) {
            return None;
        }
        let bytes = (n / block).checked_mul(block_bytes)?;
        match self {
            Self::I2S => bytes.checked_add(super::i2s::TRAILER_BYTES),
            _ => Some(bytes),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => out.pad("F32"),
            Self::F16 => out.pad("F16"),
            Self::Q8_0 => out.pad("Q8_0"),
            Self::Q6K => out.pad("Q6_K"),
            Self::BF16 => out.pad("BF16"),
            Self::I2S => out.pad("I2_S"),
            Self::I8S => out.pad("I8_S"),
            Self::TL1 => out.pad("TL1"),
            Self::TL2 => out.pad("TL2"),
            Self::Other(id) => out.pad(&format!("type {id}")),
        }
    }
}
