//! One forward step, on one page: [`pass`] is the graph, over the operations of whatever computes it.
//!
//! What a step computes is said by [`Plan`]; how, by an implementation of [`Operations`]. On the CPU that is `ops`, which
//! also holds the barriers between operations: every member of the pool runs the pass over the same plan.

use crate::constraint::{Allowed, Rule};
use crate::kv::PageId;
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

/// The products of a layer, each with the input that is rounded for it and the place that it goes to: from x to qkv, from the
/// attended values to x, from x to the gated activations, from those to x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    Qkv,
    Output,
    GateUp,
    Down,
}

/// What a forward pass is made of. An implementation reads the weights that a layer's number and a [`Product`] name, and keeps
/// the activations to itself.
pub(crate) trait Operations {
    fn n_layers(&self) -> usize;
    /// x = embedding of each column's token.
    fn embed(&mut self);
    /// A product that comes soon: its weights may be asked for.
    fn expect(&mut self, _layer: usize, _product: Product) {}
    /// The input of a product, normed where the layer has a norm for it, rounded to int8.
    fn round(&mut self, layer: usize, product: Product);
    /// The ternary product of what was rounded.
    fn product(&mut self, layer: usize, product: Product);
    /// Causal attention of each column, whose keys and values go into the cache on the way.
    fn attention(&mut self, layer: usize);
    /// The last layer's attention: from here on columns without a head are left out. False if none is left.
    fn attention_of_heads(&mut self, layer: usize) -> bool;
    /// The final norm, scores and draws of the columns that have heads.
    fn heads(&mut self);
}

/// The graph of every architecture; where one lacks a norm, its layers have none. Of the last layer, columns without a head have
/// keys and values only. Shapes: x (n_columns, hidden); qkv
/// (n_columns, q + k + v rows).
pub(crate) fn pass(ops: &mut impl Operations) {
    let n_layers = ops.n_layers();
    ops.embed();
    for layer in 0..n_layers {
        ops.expect(layer, Product::Qkv);
        ops.round(layer, Product::Qkv);
        ops.product(layer, Product::Qkv);
        ops.expect(layer, Product::Output);
        if layer + 1 < n_layers {
            ops.attention(layer);
        } else if !ops.attention_of_heads(layer) {
            return;
        }
        ops.round(layer, Product::Output);
        ops.product(layer, Product::Output);

        ops.expect(layer, Product::GateUp);
        ops.round(layer, Product::GateUp);
        ops.product(layer, Product::GateUp);
        ops.expect(layer, Product::Down);
        ops.round(layer, Product::Down);
        ops.product(layer, Product::Down);
    }
    ops.heads();
}
