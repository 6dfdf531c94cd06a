//! The engine that callers drive: submit, step, cancel. One caller thread; the pool does the work.

use crate::gguf::Hyper;
use crate::options::{Head, KernelChoice, Options};
use crate::request::{Event, Request, SequenceId, StepStats};
use crate::{Isa, LoadError, Refused};
use std::path::Path;

/// What was loaded, and how it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    pub hyper: Hyper,
    pub threads: usize,
    pub isa: Isa,
    pub kernel: KernelChoice,
    pub head: Head,
    /// Seconds from the start of loading to the first step being possible.
    pub load_s: f64,
    /// Anonymous memory of the packed weights and the screening head.
    pub weights_bytes: u64,
    /// Bytes read for one token of a single stream, attention not counted.
    pub bytes_per_token: u64,
    /// Multiply-adds of one token, attention not counted.
    pub macs_per_token: u64,
    /// Memory that keys and values may take in all.
    pub kv_bytes: u64,
    pub kv_pages: usize,
    /// Positions in a page.
    pub page_tokens: usize,
    /// Positions that a sequence may have.
    pub max_context: usize,
    pub max_sequences: usize,
    /// Names the arithmetic: two engines with the same id compute the same bits from the same file.
    pub numerics: &'static str,
    /// What a person should know, such as a thread that could not be pinned.
    pub warnings: Vec<String>,
}

/// One loaded model with its threads, caches and running sequences.
#[derive(Debug)]
pub struct Engine {
    info: Info,
}

impl Engine {
    /// Loads the model at `path`.
    pub fn load(path: &Path, options: &Options) -> Result<Engine, LoadError> {
        let _ = options;
        Err(LoadError::File { path: path.to_owned(), reason: "the forward pass is being written".to_owned() })
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Queues a sequence; it joins the running batch as soon as its pages fit.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        let _ = request;
        Err(Refused::EmptyPrompt)
    }

    /// Ends a sequence; its `Finished` event comes with the next step. False if it is not known or already finished.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let _ = id;
        false
    }

    /// Computes one forward step over all active sequences and appends what happened; does nothing when idle.
    pub fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        let _ = events;
        StepStats::default()
    }

    pub fn is_idle(&self) -> bool {
        true
    }

    pub fn free_pages(&self) -> usize {
        self.info.kv_pages
    }

    pub fn active(&self) -> usize {
        0
    }

    pub fn waiting(&self) -> usize {
        0
    }

    /// Scores of the next token after each of `ids`, by the full head: (n_ids, vocab).
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Refused> {
        let _ = ids;
        Err(Refused::EmptyPrompt)
    }
}
