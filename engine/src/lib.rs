//! Placeholder.
pub mod gguf;
