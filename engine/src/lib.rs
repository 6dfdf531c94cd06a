//! The engine: one ternary model on one machine, from a GGUF file to sampled token ids.
//!
//! It holds the file reader, the kernels, the pinned thread pool, the forward pass, the paged key/value cache, the
//! sampler and continuous batching. It knows no text, no network, no async runtime and no wire types. The worker, the
//! command line and the tests drive it by [`Engine::submit`] and [`Engine::step`].
//!
//! All results are equal to the last bit whatever the thread count, batch, chunking and instruction set; README.md
//! says by which rules, and does the sums.

mod choose;
mod constraint;
pub mod convert;
mod cpu;
mod draft;
mod engine;
mod error;
pub mod eval;
mod forward;
pub mod gguf;
mod gpu;
mod head;
pub mod host;
mod isa;
mod kernel;
mod kv;
mod machine;
mod math;
mod memory;
mod model;
pub mod model_file;
mod ops;
mod options;
mod pack;
mod philox;
mod pool;
mod prefix;
pub mod probe;
mod profile;
mod request;
mod rotary;
mod sampler;
mod schedule;
pub mod synth;

pub use choose::CACHE_VARIABLE;
pub use engine::{Engine, Info};
pub use error::{LoadError, Refused};
pub use gpu::{Card, Rates, inspect_card};
pub use head::HeadCounters;
pub use isa::{ISA_VARIABLE, Isa, IsaError};
pub use options::{Device, Head, KernelChoice, Kv, Options, Speculation, UnknownChoice};
pub use profile::Profile;
pub use request::{
    Event, Request, Sampling, SequenceId, SpeculationCounters, StepStats, StopReason, TokenLogprob, Usage,
};
