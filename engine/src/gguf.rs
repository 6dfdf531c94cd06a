//! GGUF version 3, read from a memory map: metadata, tensors, and what a model of each architecture must hold.
//!
//! Nothing in a file is believed before it is checked: every offset, length and count goes through checked
//! arithmetic, nothing is allocated by a number that the file's size does not bound, and an error names the
//! field at fault. It neither repacks nor computes: `weights` asks [`check_model`] for the tensors of a
//! model, `model_file` prints what is found here, `synth` and `convert` write the same format by [`mod@write`].

pub mod architecture;
mod container;
mod cursor;
mod error;
mod hyper;
pub mod i2s;
mod kind;
mod layout;
mod map;
pub mod rows;
mod spans;
pub mod ternary;
mod value;
mod vocabulary;
pub mod write;

pub use architecture::{Architecture, Part};
pub use container::{File, Tensor};
pub use error::Error;
pub use hyper::{Hyper, Scaling};
pub use kind::Kind;
pub use layout::{Block, Layout, check_model};
pub(crate) use map::Bytes;
pub use value::{Array, Element, Value};
pub use vocabulary::vocabulary;
