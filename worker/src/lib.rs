//! The worker: registers, measures itself, pulls jobs, drives the engine, checkpoints, returns results.
//!
//! [`core`] decides, as a pure state machine that the simulation drives too; [`run`] is the shell around it, which
//! talks to the bus and to the engine's thread. Price and class of the pod are passed on unread.
//!
//! Architecture Invariant: `core` does no I/O, reads no clock and draws no randomness; the engine never runs on a
//! thread of the async runtime.

pub mod asked;
pub mod calibrate;
pub mod canary;
pub mod core;
pub mod engine_thread;
pub mod engines;
pub mod generator;
mod heap;
mod http;
mod identity;
pub mod language;
pub mod metrics;
mod model;
mod options;
pub mod request;
mod shell;
pub mod transcript;
pub mod upstream;

pub use heap::Heap;
pub use identity::Identity;
pub use model::{LoadedModel, digest_of_file};
pub use options::{EngineKind, Options, OptionsError};
pub use shell::{Computer, Parts, run, run_then, run_with};
