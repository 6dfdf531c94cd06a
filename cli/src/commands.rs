//! One file a command: its flags, and what it does with them.

pub(crate) mod attached;
pub(crate) mod batch;
pub(crate) mod batches;
pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod coordinator;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod key;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod model;
pub(crate) mod pods;
pub(crate) mod quote;
pub(crate) mod results;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod top;
pub(crate) mod topology;
pub(crate) mod up;
pub(crate) mod worker;
