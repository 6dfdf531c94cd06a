//! One forward step, on one page: every member of the pool runs [`pass`] over the same plan, each computing its share.
//!
//! What a step computes is said by [`Plan`]; how, by `ops`, which also holds the barriers between operations.

use crate::constraint::{Allowed, Rule};
use crate::kernel::Then;
use crate::kv::PageId;
use crate::ops::Ops;
use crate::sampler::Draw;
use std::ops::Range;

/// One token at one position of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) token: u32,
    pub(crate) position: usize,
    pub(crate) segment: usize,
}

/// The columns of one sequence, at consecutive positions, and the pages of its keys and values.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) columns: Range<usize>,
    pub(crate) pages: Vec<PageId>,
}

/// A column whose scores are wanted: to draw a token from them, or as they are.
#[derive(Debug, Clone)]
pub(crate) struct HeadColumn<'a> {
    pub(crate) column: usize,
    pub(crate) draw: Option<Draw<'a>>,
    /// What may be drawn; `None` allows everything.
    pub(crate) allowed: Option<Allowed>,
}

impl HeadColumn<'_> {
    /// What may be drawn, waited for.
    pub(crate) fn rule(&self) -> Rule<'_> {
        self.allowed.as_ref().map_or(Rule::Any, Allowed::rule)
    }
}

/// What a step computes.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    pub(crate) columns: Vec<Column>,
    pub(crate) segments: Vec<Segment>,
    /// In ascending order of their columns, one a column at most.
    pub(crate) heads: Vec<HeadColumn<'a>>,
}

/// The graph of every architecture; where one lacks a norm, its layers have none. Of the last layer, columns without a head have
/// keys and values only. Shapes: x (n_columns, hidden); qkv
/// (n_columns, q + k + v rows).
pub(crate) fn pass(ops: &mut Ops<'_, '_>) {
    let model = ops.model();
    let gate = Then::Gate(model.hyper.graph.activation);
    ops.embed();
    for (index, layer) in model.layers.iter().enumerate() {
        ops.prefetch_weights(&layer.qkv);
        ops.round_x(&layer.attn_norm);
        ops.product(&layer.qkv, Then::Store);
        ops.prefetch_weights(&layer.output);
        if index + 1 == model.layers.len() {
            ops.attention_of_heads(index);
            if ops.is_done() {
                return;
            }
        } else {
            ops.attention(index);
        }
        ops.round_attended(layer.attn_sub_norm.as_deref());
        ops.product(&layer.output, Then::Add);

        ops.prefetch_weights(&layer.gate_up);
        ops.round_x(&layer.ffn_norm);
        ops.product(&layer.gate_up, gate);
        ops.prefetch_weights(&layer.down);
        ops.round_gated(layer.ffn_sub_norm.as_deref());
        ops.product(&layer.down, Then::Add);
    }
    ops.await_rules();
    ops.norm_heads();
    ops.scores();
    ops.sample();
}
