//! A ternary output matrix: its scores are a product like any other, of activations rounded by groups. There is nothing to
//! screen: the packed matrix is smaller than an int8 copy would be.
#![allow(unsafe_code)] // Members write disjoint rows of shared buffers; each block says which.

use crate::LoadError;
use crate::gguf::ternary::GROUP;
use crate::kernel::{Acts, Epilogue, MAX_TOKENS, Quantised, ROWS, Then};
use crate::model::Matrix;
use crate::ops::Ops;
use crate::pool::Shared;

/// The normed activations of all slots.
#[derive(Debug)]
pub(super) struct Input {
    /// (n_heads, hidden)
    acts: Shared<i8>,
    /// (n_heads, hidden / 128)
    quantised: Shared<Quantised>,
}

impl Input {
    pub(super) fn new(n_heads: usize, hidden: usize) -> Result<Input, LoadError> {
        const WHAT: &str = "scores";
        let (acts, scales) = (n_heads * hidden, n_heads * hidden / GROUP);
        Ok(Input { acts: Shared::new(acts, WHAT)?, quantised: Shared::new(scales, WHAT)? })
    }
}

/// Norms and rounds the x of one slot's column.
pub(super) fn set_input(ops: &mut Ops<'_, '_>, slot: usize, x: &[f32]) {
    let (input, model, width) = (&ops.work.head.ternary, ops.model(), x.len());
    let scales = width / GROUP;
    // SAFETY: slots are shared out among members.
    let (acts, quantised) = unsafe {
        (
            input.acts.write(slot * width..(slot + 1) * width),
            input.quantised.write(slot * scales..(slot + 1) * scales),
        )
    };
    let norm = Some((&*model.output_norm, model.hyper.rms_eps));
    ops.kernels.norm_quantise(x, norm, &mut ops.private.head.row, acts, quantised);
}

/// All scores of all slots, each member a part of the vocabulary.
pub(super) fn scores(ops: &mut Ops<'_, '_>, matrix: &Matrix) {
    let (work, width) = (&ops.work.head, matrix.width);
    let (n_slots, stride, scales) = (ops.slots.order.len(), work.stride(), width / GROUP);
    assert!(matrix.n_groups * ROWS <= stride);
    // SAFETY: inputs were written before the last barrier.
    let (rows, quantised) = unsafe {
        (work.ternary.acts.read(0..n_slots * width), work.ternary.quantised.read(0..n_slots * scales))
    };
    for pair in matrix.pairs(ops.member.index, ops.member.count()) {
        let group = 2 * pair;
        let n_groups = (matrix.n_groups - group).min(2);
        let packed = ops.model().groups(matrix, group..group + n_groups);
        for first in (0..n_slots).step_by(MAX_TOKENS) {
            let last = n_slots.min(first + MAX_TOKENS);
            let epilogue = Epilogue {
                activations: &quantised[first * scales..last * scales],
                n_tokens: last - first,
                weight_scales: &[],
                n_groups,
                out: work.scores.element(first * stride + group * ROWS),
                stride,
                then: Then::Store,
            };
            let acts = Acts { width, rows: &rows[first * width..last * width], tables: &[] };
            // SAFETY: `scores` holds (n_heads, stride), and these rows are this member's.
            unsafe { ops.kernels.product(packed, &acts, &epilogue, ops.private.scratch()) };
        }
    }
}
