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
    /// Super-blocks of 256 four-bit weights: 144 bytes.
    Q4K,
    /// Super-blocks of 256 six-bit weights: 210 bytes.
    Q6K,
    /// Brain floats: the upper half of an f32.
    BF16,
    /// Ternary weights at two bits in blocks of 128, one f32 scale a tensor (see [`super::i2s`]).
    I2S,
    /// Ternary weights, base 3, one f16 scale for 256 (see [`super::ternary`] for this and the following).
    TQ1_0,
    /// Two bits, one f16 scale for 256.
    TQ2_0,
    /// Two bits, one f16 scale for 64.
    Q2_0,
    /// Two bits, one f16 scale for 128: what files of PrismML had under the number of [`Kind::Q2_0`] before it was taken.
    Q2_0Old,
    /// The same under a number of its own.
    PQ2_0,
    /// Base 3, one f16 scale for 128.
    PTQ1_0,
    /// Base 3, one f16 scale in front of each row.
    IQ1BN,
    /// Two bits, one f32 scale in front of each row.
    IQ2BN,
    /// bitnet.cpp's int8 activations; never in a file that is right.
    I8S,
    /// bitnet.cpp's table layout for ARM: its size depends on a build, so it is never read.
    TL1,
    /// bitnet.cpp's table layout for x86: its size depends on a build, so it is never read.
    TL2,
    /// Any other number.
    Other(u32),
}

/// How the bytes of a type are laid out.
#[derive(Debug, Clone, Copy)]
struct Facts {
    kind: Kind,
    id: u32,
    name: &'static str,
    /// Weights in a block: a row's length is a multiple of it.
    block: u64,
    block_bytes: u64,
    /// Bytes that each row has in front, and a tensor at its end.
    row_bytes: u64,
    tensor_bytes: u64,
}

const fn facts(kind: Kind, id: u32, name: &'static str, block: u64, block_bytes: u64) -> Facts {
    Facts { kind, id, name, block, block_bytes, row_bytes: 0, tensor_bytes: 0 }
}

const FACTS: [Facts; 15] = [
    facts(Kind::F32, 0, "F32", 1, 4),
    facts(Kind::F16, 1, "F16", 1, 2),
    facts(Kind::Q8_0, 8, "Q8_0", 32, 34),
    facts(Kind::Q4K, 12, "Q4_K", 256, 144),
    facts(Kind::Q6K, 14, "Q6_K", 256, 210),
    facts(Kind::BF16, 30, "BF16", 1, 2),
    facts(Kind::TQ1_0, 34, "TQ1_0", 256, 54),
    facts(Kind::TQ2_0, 35, "TQ2_0", 256, 66),
    Facts { tensor_bytes: super::i2s::TRAILER_BYTES, ..facts(Kind::I2S, 36, "I2_S", 128, 32) },
    // The next two share a number and are told apart by the places of their tensors, in `spans`.
    facts(Kind::Q2_0, 42, "Q2_0", 64, 18),
    facts(Kind::Q2_0Old, 42, "Q2_0 of 128", 128, 34),
    Facts { row_bytes: 2, ..facts(Kind::IQ1BN, 134, "IQ1_BN", 64, 13) },
    Facts { row_bytes: 4, ..facts(Kind::IQ2BN, 135, "IQ2_BN", 64, 16) },
    facts(Kind::PQ2_0, 142, "PQ2_0", 128, 34),
    facts(Kind::PTQ1_0, 143, "PTQ1_0", 128, 28),
];

/// Types whose size is not known: it depends on a build, or they do not belong into files.
const UNSIZED: [(Kind, u32, &str); 3] =
    [(Kind::I8S, 37, "I8_S"), (Kind::TL1, 38, "TL1"), (Kind::TL2, 39, "TL2")];

impl Kind {
    /// The type with ggml's number `id`; of two under one number the first.
    pub fn from_id(id: u32) -> Self {
        let sized = FACTS.iter().find(|facts| facts.id == id).map(|facts| facts.kind);
        let unsized_kind = || UNSIZED.iter().find(|facts| facts.1 == id).map(|facts| facts.0);
        sized.or_else(unsized_kind).unwrap_or(Self::Other(id))
    }

    /// Types under this number whose owners differ: the bytes that a tensor takes must tell.
    pub(super) fn candidates(id: u32) -> &'static [Kind] {
        match id {
            42 => &[Self::Q2_0, Self::Q2_0Old],
            142 => &[Self::PQ2_0],
            143 => &[Self::PTQ1_0],
            _ => &[],
        }
    }

    fn facts(self) -> Option<&'static Facts> {
        FACTS.iter().find(|facts| facts.kind == self)
    }

    /// ggml's number of this type.
    pub fn id(self) -> u32 {
        let unsized_id = || UNSIZED.iter().find(|facts| facts.0 == self).map(|facts| facts.1);
        match self {
            Self::Other(id) => id,
            _ => self
                .facts()
                .map(|facts| facts.id)
                .or_else(unsized_id)
                .expect("because the tables hold all types but this one"),
        }
    }

    /// Whether its weights are −1, 0 and +1 times scales.
    pub fn is_ternary(self) -> bool {
        matches!(
            self,
            Self::I2S
                | Self::TQ1_0
                | Self::TQ2_0
                | Self::Q2_0
                | Self::Q2_0Old
                | Self::PQ2_0
                | Self::PTQ1_0
                | Self::IQ1BN
                | Self::IQ2BN
        )
    }

    /// Weights in a block: a row's length is a multiple of it. `None` where the layout is not known here.
    pub fn block(self) -> Option<u64> {
        self.facts().map(|facts| facts.block)
    }

    /// Bytes of a row of `n_columns` weights, without what a whole tensor adds (I2_S: its scale): `None` if the layout is
    /// not known, the row is no whole number of blocks, or the product does not fit.
    pub fn row_bytes(self, n_columns: u64) -> Option<u64> {
        let facts = self.facts()?;
        if !n_columns.is_multiple_of(facts.block) {
            return None;
        }
        (n_columns / facts.block).checked_mul(facts.block_bytes)?.checked_add(facts.row_bytes)
    }

    /// Bytes of a tensor of `n_rows` rows of `n_columns` weights; `None` as in [`Kind::row_bytes`].
    pub fn tensor_bytes(self, n_columns: u64, n_rows: u64) -> Option<u64> {
        let trailer = self.facts()?.tensor_bytes;
        self.row_bytes(n_columns)?.checked_mul(n_rows)?.checked_add(trailer)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsized_name = || UNSIZED.iter().find(|facts| facts.0 == *self).map(|facts| facts.2);
        match self.facts().map(|facts| facts.name).or_else(unsized_name) {
            Some(name) => out.pad(name),
            None => out.pad(&format!("type {}", self.id())),
        }
    }
}
