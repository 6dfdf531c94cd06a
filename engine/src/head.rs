//! The output head: from final activations to scores, and from scores to a drawn token.
//!
//! The canonical score of a token is the f32 dot product of its row, as the file holds it, with the normed activations,
//! in the order that `kernel/lanes.rs` fixes.
#![allow(unsafe_code)] // Members write disjoint rows of shared buffers; each block says which.

use crate::gguf::Hyper;
use crate::kernel::Kernels;
use crate::memory::Region;
use crate::model::Rows;
use crate::ops::Ops;
use crate::pool::Shared;
use crate::request::TokenLogprob;
use crate::sampler::{self, Draw};

/// Rows that are computed together.
const TOGETHER: usize = 4;

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// The head's buffers of a step.
#[derive(Debug)]
pub(crate) struct HeadWork {
    hidden: usize,
    vocab: usize,
    /// (n_heads, hidden): the normed activations.
    input: Shared<f32>,
    /// (n_heads, vocab)
    scores: Region,
}

/// What a member needs for the head.
#[derive(Debug)]
pub(crate) struct Private {
    row: Vec<f32>,
}

impl Private {
    pub(crate) fn new(hyper: &Hyper) -> Private {
        Private { row: vec![0.0; hyper.hidden] }
    }
}

impl HeadWork {
    pub(crate) fn new(hyper: &Hyper, n_heads: usize) -> std::io::Result<HeadWork> {
        Ok(HeadWork {
            hidden: hyper.hidden,
            vocab: hyper.vocab,
            input: Shared::new(n_heads * hyper.hidden),
            scores: Region::new(n_heads * hyper.vocab * size_of::<f32>(), false)?,
        })
    }

    /// Norms one column's x.
    pub(crate) fn set_input(&self, ops: &Ops<'_, '_>, head: usize, x: &[f32]) {
        let model = ops.model();
        // SAFETY: heads are shared out among members.
        let input = unsafe { self.input.write(head * self.hidden..(head + 1) * self.hidden) };
        ops.kernels.norm(x, &model.output_norm, model.hyper.rms_eps, input);
    }

    /// The scores of one head, after the step's barrier.
    pub(crate) fn scores(&self, head: usize) -> &[f32] {
        // SAFETY: written before the last barrier, read-only since.
        unsafe { self.scores.read(head * self.vocab..(head + 1) * self.vocab) }
    }
}

/// Scores of all tokens for all heads of the plan, each member a part of the vocabulary.
pub(crate) fn scores(ops: &mut Ops<'_, '_>) {
    let work = &ops.work.head;
    let rows = ops.model().head();
    let n_heads = ops.plan.heads.len();
    // SAFETY: inputs were written before the last barrier.
    let input = unsafe { work.input.read(0..n_heads * work.hidden) };
    let blocks = ops.member.share(work.vocab.div_ceil(TOGETHER));
    let kernels = ops.kernels;
    let private = &mut ops.private.head;
    for block in blocks {
        let first = block * TOGETHER;
        let last = work.vocab.min(first + TOGETHER);
        if last - first == TOGETHER
            && let Some(halves) = rows.halves(first..last)
        {
            // SAFETY: `scores` holds (n_heads, vocab), and these rows are this member's.
            unsafe { kernels.dots_f16(halves, input, work.hidden, work.scores.element(first), work.vocab) };
            continue;
        }
        for id in first..last {
            for (head, x) in input.chunks_exact(work.hidden).enumerate() {
                let score = exact_score(kernels, &rows, id, x, &mut private.row);
                // SAFETY: in bounds, and this row is this member's.
                unsafe { work.scores.element::<f32>(head * work.vocab + id).write(score) };
            }
        }
    }
}

/// The canonical score of one token.
fn exact_score(kernels: Kernels, rows: &Rows<'_>, id: usize, x: &[f32], scratch: &mut [f32]) -> f32 {
    match rows.halves(id..id + 1) {
        Some(halves) => kernels.dot_f16(halves, x),
        None => {
            rows.read(id, scratch);
            kernels.dot_f32(scratch, x)
        }
    }
}

/// Draws one head's token.
pub(crate) fn draw(ops: &mut Ops<'_, '_>, head: usize, draw: &Draw<'_>) -> Drawn {
    let scores = ops.work.head.scores(head);
    let mut candidates = sampler::candidates_of(scores);
    draw.adjust(&mut candidates);
    let token = draw.pick(&mut candidates);
    let logprob = draw.top_logprobs.map(|n_top| sampler::logprobs(scores, token, usize::from(n_top)));
    Drawn { token, logprob }
}
