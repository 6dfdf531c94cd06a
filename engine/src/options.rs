//! What a caller chooses when loading a model, with defaults that are exact.
//!
//! Parsing of flags and files belongs to the callers (cli, worker).

use crate::Isa;
use crate::gguf::Hyper;
use crate::gguf::architecture::Rounding;
use std::fmt;
use std::str::FromStr;

/// How a model is loaded and run. None of these, except [`Head`] and [`Kv`] when they are declared lossy, changes a single bit of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Threads of the pool; `None` takes [`crate::host::Topology::default_threads`]. A number is taken as it is.
    pub threads: Option<usize>,
    /// `None` takes [`Isa::detect`].
    pub isa: Option<Isa>,
    /// Sequences that are active at once, 1 to [`Device::max_sequences`]; others wait.
    pub max_sequences: usize,
    /// Positions a sequence may have; `None` takes the model's context. Never more than that.
    pub max_context: Option<usize>,
    /// Memory for keys and values; `None` takes what `max_sequences` full contexts need, at most a quarter of
    /// the memory that this process may use.
    pub kv_budget_bytes: Option<u64>,
    /// Prompt tokens computed in one step, over all sequences.
    pub prefill_chunk: usize,
    /// What computes: results are the same.
    pub device: Device,
    pub head: Head,
    pub kernel: KernelChoice,
    pub kv: Kv,
    pub speculation: Speculation,
    /// Keep the pages of finished prompts, so that a later request with the same beginning skips that work.
    pub prefix_cache: bool,
    /// Ask the kernel for huge pages for the weights.
    pub huge_pages: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threads: None,
            isa: None,
            max_sequences: 8,
            max_context: None,
            kv_budget_bytes: None,
            prefill_chunk: 128,
            device: Device::Cpu,
            head: Head::Screened,
            kernel: KernelChoice::Auto,
            kv: Kv::F16,
            speculation: Speculation::OFF,
            prefix_cache: false,
            huge_pages: true,
        }
    }
}

/// Guessing the next tokens from what a sequence said before, and checking the guesses in one step as extra columns.
///
/// Tokens are the same with and without. It pays while few sequences run, when a step costs its memory traffic and columns
/// are nearly free: at the tail of a batch. What a wider step costs is measured as steps run, so where it does not pay,
/// nothing is guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens guessed for a sequence in one step, at most [`Speculation::MAX_DRAFT_TOKENS`]; 0 turns it off.
    pub draft_tokens: usize,
    /// No guesses while more sequences than this are active, at most [`Speculation::MAX_SEQUENCES`].
    pub sequences: usize,
    /// Only guesses that are expected to save more time than their columns take, by what the last steps took. Without it,
    /// which steps have guesses does not depend on time, which tests need.
    pub weighed: bool,
}

impl Speculation {
    pub const MAX_DRAFT_TOKENS: usize = 15;
    pub const MAX_SEQUENCES: usize = 4;
    pub const OFF: Speculation = Speculation { draft_tokens: 0, sequences: 2, weighed: true };
    /// What the worker and `generate` do unless told otherwise: up to eight columns a sequence, four sequences.
    pub const TAIL: Speculation = Speculation { draft_tokens: 7, sequences: 4, weighed: true };
    /// Guesses for two sequences in every step that can have them.
    pub const ALWAYS: Speculation = Speculation { draft_tokens: 7, sequences: 2, weighed: false };
}

/// What computes the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The threads of this machine.
    #[default]
    Cpu,
    /// The first NVIDIA card, by its driver. Experimental: no card has run it yet.
    Cuda,
    /// The kernels for GPUs, run by an interpreter: for tests, since it is thousands of times slower than either.
    Interpreter,
}

/// How the next token's scores are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// Screen all rows in int8, rescore the few candidates exactly: the tokens of [`Head::Full`] at half the bytes.
    #[default]
    Screened,
    /// Every row as the file stores it.
    Full,
    /// The int8 rows alone: a declared approximation.
    Q8,
    /// Rows of six bits alone: three quarters of [`Head::Q8`]'s bytes, a coarser declared approximation.
    Q6,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kv {
    /// Half precision.
    #[default]
    F16,
    /// A byte, with a scale for each position of a head: half the memory, a declared approximation.
    Int8,
}

impl Device {
    /// The most sequences that may be active in one step. Above 64 a CPU gains nothing, and each waits longer.
    pub fn max_sequences(self) -> usize {
        match self {
            Device::Cpu => 64,
            Device::Cuda | Device::Interpreter => 1024,
        }
    }

    /// As options and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::Interpreter => "interpreter",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Device, UnknownChoice> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda),
            "interpreter" => Ok(Device::Interpreter),
            _ => Err(UnknownChoice { what: "device", name: name.to_owned(), choices: "cpu or cuda" }),
        }
    }
}

impl fmt::Display for Kv {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Kv::F16 => "f16",
            Kv::Int8 => "int8",
        })
    }
}

impl FromStr for Kv {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Kv, UnknownChoice> {
        match name {
            "f16" => Ok(Kv::F16),
            "int8" => Ok(Kv::Int8),
            _ => Err(UnknownChoice {
                what: "type of keys and values",
                name: name.to_owned(),
                choices: "f16 or int8",
            }),
        }
    }
}

/// Which ternary kernel runs. They all compute the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// The one that is fastest here: measured once a machine and shape, and remembered.
    #[default]
    Auto,
    /// Multiply-add on two-bit codes.
    I2s,
    /// Three weights as index and sign, looked up in tables.
    Tl2,
}

impl KernelChoice {
    /// Those that are one kernel.
    pub const ALL: [KernelChoice; 2] = [KernelChoice::I2s, KernelChoice::Tl2];

    /// Whether it computes models of this shape: looking up knows no scales for groups of inputs.
    pub fn runs(self, hyper: &Hyper) -> bool {
        self != KernelChoice::Tl2 || hyper.graph.rounding == Rounding::Token
    }
}

/// A name that is none of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{name}`: use {choices}")]
pub struct UnknownChoice {
    what: &'static str,
    name: String,
    choices: &'static str,
}

impl fmt::Display for Head {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Head::Screened => "screened",
            Head::Full => "full",
            Head::Q8 => "q8",
            Head::Q6 => "q6",
        })
    }
}

impl FromStr for Head {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Head, UnknownChoice> {
        match name {
            "screened" => Ok(Head::Screened),
            "full" => Ok(Head::Full),
            "q8" => Ok(Head::Q8),
            "q6" => Ok(Head::Q6),
            _ => Err(UnknownChoice {
                what: "output head",
                name: name.to_owned(),
                choices: "screened, full, q8 or q6",
            }),
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            KernelChoice::Auto => "auto",
            KernelChoice::I2s => "i2s",
            KernelChoice::Tl2 => "tl2",
        })
    }
}

impl FromStr for KernelChoice {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<KernelChoice, UnknownChoice> {
        match name {
            "auto" => Ok(KernelChoice::Auto),
            "i2s" => Ok(KernelChoice::I2s),
            "tl2" => Ok(KernelChoice::Tl2),
            _ => Err(UnknownChoice { what: "kernel", name: name.to_owned(), choices: "auto, i2s or tl2" }),
        }
    }
}
