//! The instruction sets that the kernels are written for, and which of them this machine has.
//!
//! Not here: the kernels (`kernel.rs`). Called once at load; everything later goes through the table that was chosen then.

use std::fmt;
use std::str::FromStr;

/// One family of kernels. They all compute the same bits; they differ in speed only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: runs everywhere, and is the reference for the others.
    Scalar,
    /// 256-bit vectors with FMA and F16C: `vpmaddubsw` for the ternary products.
    Avx2,
    /// AVX2 plus the 256-bit `vpdpbusd` of CPUs without AVX-512.
    AvxVnni,
    /// 512-bit vectors with `vpdpbusd`.
    Avx512,
}

/// The environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "TERNFLEET_ISA";

/// Why an instruction set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    #[error("unknown instruction set `{0}`: use scalar, avx2, avxvnni or avx512")]
    Unknown(String),
    #[error("this CPU has no {0}: unset TERNFLEET_ISA, or use one of {1}")]
    Missing(Isa, String),
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];

    /// Whether this CPU can run the kernels of this instruction set.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2,
                Isa::AvxVnni => avx2 && has!("avxvnni"),
                Isa::Avx512 => {
                    avx2 && has!("avx512f")
                        && has!("avx512bw")
                        && has!("avx512vl")
                        && has!("avx512dq")
                        && has!("avx512vnni")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar
        }
    }

    /// Those that this CPU can run, slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The one to use here: `TERNFLEET_ISA` when it is set, else the best that the CPU has.
    pub fn detect() -> Result<Isa, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.trim().is_empty() => name.parse::<Isa>()?.checked(),
            _ => Ok(Isa::available().pop().unwrap_or(Isa::Scalar)),
        }
    }

    /// This one if the CPU can run it.
    pub fn checked(self) -> Result<Isa, IsaError> {
        if self.is_available() {
            return Ok(self);
        }
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        Err(IsaError::Missing(self, names.join(", ")))
    }

    /// The name that `TERNFLEET_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(text: &str) -> Result<Isa, IsaError> {
        let name = text.trim().to_ascii_lowercase();
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| IsaError::Unknown(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
        assert!(matches!("mmx".parse::<Isa>(), Err(IsaError::Unknown(_))));
    }

    #[test]
    fn scalar_is_always_available() {
        assert_eq!(Isa::available().first(), Some(&Isa::Scalar));
    }
}
