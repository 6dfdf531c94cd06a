//! Why a model was not loaded and why a request was not taken.

use crate::isa::IsaError;
use std::path::PathBuf;

/// Why a model cannot be loaded; every variant says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the model {path} cannot be used: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("tensor '{name}': {reason}")]
    Tensor { name: String, reason: String },
    #[error("this model's shape is not supported: {0}")]
    Shape(String),
    #[error(transparent)]
    Isa(#[from] IsaError),
    #[error("option {name}: {reason}")]
    Option { name: &'static str, reason: String },
    #[error("cannot allocate {bytes} bytes of memory for {what}: {source}")]
    Memory { what: &'static str, bytes: u64, source: std::io::Error },
    #[error("the GPU cannot be used: {0}")]
    Device(String),
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// Why a request cannot be taken; it would fail again.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    UnknownToken { id: u32, vocab: usize },
    #[error("{tokens} tokens do not fit into a context of {max_context}: shorten the prompt")]
    TooLong { tokens: usize, max_context: usize },
    #[error(
        "{needed} KV cache pages are needed, but there are {total}: raise the KV cache budget or request \
         fewer tokens"
    )]
    TooLarge { needed: usize, total: usize },
    #[error("{needed} KV cache pages are needed, but {free} are free: wait for running sequences")]
    Busy { needed: usize, free: usize },
    #[error("{name} is {value}: {rule}")]
    Parameter { name: &'static str, value: String, rule: &'static str },
    #[error("its constraint cannot be applied: {reason}")]
    Constraint { reason: String },
    #[error("nothing is to be generated: max_new_tokens is 0")]
    NothingToDo,
}
