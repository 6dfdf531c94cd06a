//! The operations of a forward step as the CPU does them: who computes which part, and the barriers between.
//!
//! This is the seam for another backend: the forward pass knows these few operations and nothing of threads or kernels.
//! Protocol: all members call the same operations in the same order; an operation reads what earlier ones wrote, writes
//! a part of its own, and ends with a barrier.
#![allow(unsafe_code)] // Members share buffers and write disjoint parts between barriers; each block says which.

use crate::forward::Plan;
use crate::head::{self, Drawn, HeadWork, Slots};
use crate::kernel::{Epilogue, Kernels, MAX_TOKENS, PAGE, Quantised, Query, ROWS, Scratch, State, Then};
use crate::kv::Cache;
use crate::model::{Matrix, Model};
use crate::pool::{Member, Shared};
use crate::profile::{Clocks, Operation};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Queries that attend to a page together, at most: more share the loads, but need more registers.
const QUERIES: usize = 8;

/// The buffers of a step, for a fixed number of columns at most.
pub(crate) struct Work {
    /// (n_columns, hidden)
    x: Shared<f32>,
    /// (n_columns, widest input of a product)
    acts: Shared<i8>,
    quantised: Shared<Quantised>,
    /// (n_columns, q + k + v rows)
    qkv: Shared<f32>,
    /// (n_columns, query heads · head_dim)
    attended: Shared<f32>,
    /// (n_columns, ffn)
    gated: Shared<f32>,
    pub(crate) head: HeadWork,
    pub(crate) clocks: Clocks,
    private: Vec<Mutex<Private>>,
}

/// What a member needs for itself.
pub(crate) struct Private {
    scratch: Box<Scratch>,
    row: Vec<f32>,
    states: Vec<State>,
    halves: Vec<u16>,
    pub(crate) head: head::Private,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Work({} threads)", self.private.len())
    }
}

impl Work {
    pub(crate) fn new(
        model: &Model,
        n_columns: usize,
        n_heads: usize,
        n_threads: usize,
        head: HeadWork,
    ) -> Work {
        let hyper = &model.hyper;
        let widest = hyper.hidden.max(hyper.ffn).max(hyper.q_width());
        let qkv_rows = hyper.q_width() + 2 * hyper.kv_width();
        let private = || Private {
            scratch: Scratch::new(),
            row: vec![0.0; widest],
            states: vec![State::EMPTY; QUERIES.max(hyper.n_heads / hyper.n_kv_heads)],
            halves: vec![0; 2 * hyper.head_dim],
            head: head::Private::new(hyper, n_heads),
        };
        Work {
            x: Shared::new(n_columns * hyper.hidden),
            acts: Shared::new(n_columns * widest),
            quantised: Shared::new(n_columns),
            qkv: Shared::new(n_columns * qkv_rows),
            attended: Shared::new(n_columns * hyper.q_width()),
            gated: Shared::new(n_columns * hyper.ffn),
            head,
            clocks: Clocks::default(),
            private: (0..n_threads).map(|_| Mutex::new(private())).collect(),
        }
    }
}

/// One member's hands on a step.
pub(crate) struct Ops<'a, 'm> {
    pub(crate) member: &'a Member<'m>,
    pub(crate) kernels: Kernels,
    model: &'a Model,
    pub(crate) work: &'a Work,
    cache: &'a Cache,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) slots: Slots,
    pub(crate) private: MutexGuard<'a, Private>,
    results: &'a [Mutex<Option<Drawn>>],
    /// When the present operation began.
    start: Instant,
}

impl<'a, 'm> Ops<'a, 'm> {
    /// `results` has one place for each head of the plan.
    pub(crate) fn new(
        member: &'a Member<'m>,
        kernels: Kernels,
        model: &'a Model,
        work: &'a Work,
        cache: &'a Cache,
        plan: &'a Plan<'a>,
        results: &'a [Mutex<Option<Drawn>>],
    ) -> Ops<'a, 'm> {
        assert!(results.len() == plan.heads.len() && plan.columns.len() * model.hyper.hidden <= work.x.len());
        let private = work.private[member.index].lock().unwrap_or_else(PoisonError::into_inner);
        let slots = work.head.slots(plan);
        Ops { member, kernels, model, work, cache, plan, slots, private, results, start: Instant::now() }
    }

    pub(crate) fn model(&self) -> &'a Model {
        self.model
    }

    fn n_columns(&self) -> usize {
        self.plan.columns.len()
    }

    /// Ends an operation: waits for all members, and takes the time.
    fn end(&mut self, operation: Operation) {
        self.member.wait();
        if self.member.index == 0 {
            self.work.clocks.lap(operation, &mut self.start);
        }
    }

    /// x = embedding of each column's token.
    pub(crate) fn embed(&mut self) {
        let hidden = self.model.hyper.hidden;
        let embedding = self.model.embedding();
        for column in self.member.share(self.n_columns()) {
            // SAFETY: columns are shared out, so this row is this member's.
            let row = unsafe { self.work.x.write(column * hidden..(column + 1) * hidden) };
            embedding.read(self.plan.columns[column].token as usize, row);
        }
        self.end(Operation::Embed);
    }

    /// acts = quantised norm of x.
    pub(crate) fn norm_x(&mut self, weight: &[f32]) {
        self.norm(&self.work.x, weight);
    }

    /// acts = quantised norm of the attention's output.
    pub(crate) fn norm_attended(&mut self, weight: &[f32]) {
        self.norm(&self.work.attended, weight);
    }

    /// acts = quantised norm of the gated feed-forward activations.
    pub(crate) fn norm_gated(&mut self, weight: &[f32]) {
        self.norm(&self.work.gated, weight);
    }

    fn norm(&mut self, from: &'a Shared<f32>, weight: &[f32]) {
        let width = weight.len();
        for column in self.member.share(self.n_columns()) {
            let range = column * width..(column + 1) * width;
            let normed = &mut self.private.row[..width];
            // SAFETY: nobody writes `from` in this operation; the column's activations are this member's.
            let (x, acts, quantised) = unsafe {
                (
                    from.read(range.clone()),
                    self.work.acts.write(range),
                    self.work.quantised.write(column..column + 1),
                )
            };
            self.kernels.norm(x, weight, self.model.hyper.rms_eps, normed);
            quantised[0] = self.kernels.quantise(normed, acts);
        }
        self.end(Operation::Norm);
    }

    /// A ternary product of acts: stored in qkv, added to x, or gated, as `then` says.
    pub(crate) fn product(&mut self, matrix: &Matrix, then: Then) {
        let hyper = &self.model.hyper;
        let (out, stride, rows_a_pair) = match then {
            Then::Store => (&self.work.qkv, hyper.q_width() + 2 * hyper.kv_width(), 2 * ROWS),
            Then::Add => (&self.work.x, hyper.hidden, 2 * ROWS),
            Then::Gate => (&self.work.gated, hyper.ffn, ROWS),
        };
        let n_columns = self.n_columns();
        assert!(out.len() >= n_columns * stride && matrix.n_groups * rows_a_pair / 2 <= stride);
        // SAFETY: nobody writes activations in this operation.
        let (acts, quantised) = unsafe {
            (self.work.acts.read(0..n_columns * matrix.width), self.work.quantised.read(0..n_columns))
        };
        let groups = matrix.share(self.member);
        let mut group = groups.start;
        while group < groups.end {
            let n_groups = (groups.end - group).min(2);
            let lines = self.model.lines(matrix, group..group + n_groups);
            for first in (0..n_columns).step_by(MAX_TOKENS) {
                let last = n_columns.min(first + MAX_TOKENS);
                let epilogue = Epilogue {
                    activations: &quantised[first..last],
                    weight_scales: [matrix.scales[group], matrix.scales[group + n_groups - 1]],
                    n_groups,
                    // SAFETY: within `out`, as asserted above.
                    out: unsafe { out.pointer().add(first * stride + group * rows_a_pair / 2) },
                    stride,
                    then,
                };
                let acts = &acts[first * matrix.width..last * matrix.width];
                // SAFETY: `out` holds these rows of these columns, and groups belong to one member each.
                unsafe {
                    self.kernels.product(lines, acts, matrix.width, &epilogue, &mut self.private.scratch)
                };
            }
            group += n_groups;
        }
        self.end(Operation::Product);
    }

    /// Rotates queries and keys, and writes keys and values into the cache.
    pub(crate) fn rotate_and_store(&mut self, layer: usize) {
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_dim, hyper.n_heads / hyper.n_kv_heads);
        let (q_width, kv_width) = (hyper.q_width(), hyper.kv_width());
        let stride = q_width + 2 * kv_width;
        for task in self.member.share(self.n_columns() * hyper.n_kv_heads) {
            let (index, kv_head) = (task / hyper.n_kv_heads, task % hyper.n_kv_heads);
            let column = self.plan.columns[index];
            let (cos, sin) = self.model.rotary.at(column.position);
            let row = index * stride;
            let (q, k) = (row + kv_head * group * head_dim, row + q_width + kv_head * head_dim);
            let v = k + kv_width;
            // SAFETY: this column's part of these heads belongs to this task alone.
            let (queries, key, value) = unsafe {
                (
                    self.work.qkv.write(q..q + group * head_dim),
                    self.work.qkv.write(k..k + head_dim),
                    self.work.qkv.read(v..v + head_dim),
                )
            };
            for query in queries.chunks_exact_mut(head_dim) {
                self.kernels.rotate(query, cos, sin);
            }
            self.kernels.rotate(key, cos, sin);
            let (key_halves, value_halves) = self.private.halves.split_at_mut(head_dim);
            self.kernels.narrow(key, key_halves);
            self.kernels.narrow(value, value_halves);
            let page = self.plan.segments[column.segment].pages[column.position / PAGE];
            // SAFETY: each position of each head is one task, and nobody reads the cache in this operation.
            unsafe {
                self.cache.write(page, layer, kv_head, column.position % PAGE, key_halves, value_halves)
            };
        }
        self.end(Operation::Rotate);
    }

    /// attended = causal attention of each column.
    pub(crate) fn attend(&mut self, layer: usize) {
        let hyper = &self.model.hyper;
        let group = hyper.n_heads / hyper.n_kv_heads;
        let tile = (QUERIES / group).max(1);
        // Later columns see more: dealing the tasks out in turn spreads them evenly.
        let mut turn = 0;
        for segment in &self.plan.segments {
            for first in segment.columns.clone().step_by(tile) {
                for kv_head in 0..hyper.n_kv_heads {
                    if turn % self.member.count() == self.member.index {
                        let columns = first..segment.columns.end.min(first + tile);
                        self.attend_tile(layer, columns, kv_head);
                    }
                    turn += 1;
                }
            }
        }
        self.end(Operation::Attend);
    }

    /// The query heads of one key head, for a few columns of one segment.
    fn attend_tile(&mut self, layer: usize, columns: Range<usize>, kv_head: usize) {
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_dim, hyper.n_heads / hyper.n_kv_heads);
        let stride = hyper.q_width() + 2 * hyper.kv_width();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let n_queries = columns.len() * group;
        let states = &mut self.private.states[..n_queries];
        for state in states.iter_mut() {
            *state = State::EMPTY;
        }
        let last = self.plan.columns[columns.end - 1];
        let pages = &self.plan.segments[last.segment].pages;
        for (index, &page) in pages[..=last.position / PAGE].iter().enumerate() {
            // SAFETY: the cache was written before the last barrier, and is only read now.
            let (keys, values) = unsafe { self.cache.read(page, layer, kv_head) };
            let mut queries: Vec<Query<'_>> = Vec::with_capacity(n_queries);
            for (i, state) in states.iter_mut().enumerate() {
                let (column, head) = (columns.start + i / group, kv_head * group + i % group);
                let start = column * stride + head * head_dim;
                // SAFETY: queries were written before the last barrier.
                let q = unsafe { self.work.qkv.read(start..start + head_dim) };
                let seen = self.plan.columns[column].position + 1;
                queries.push(Query { q, visible: seen.saturating_sub(index * PAGE).min(PAGE), state });
            }
            self.kernels.attend(&mut queries, keys, values, head_dim, scale);
        }
        for (i, state) in states.iter().enumerate() {
            let (column, head) = (columns.start + i / group, kv_head * group + i % group);
            let start = column * hyper.q_width() + head * head_dim;
            // SAFETY: this column's output of this head belongs to this task alone.
            self.kernels.attended(state, unsafe { self.work.attended.write(start..start + head_dim) });
        }
    }

    /// The final norm of the columns whose scores are wanted.
    pub(crate) fn norm_heads(&mut self) {
        let hidden = self.model.hyper.hidden;
        let work = self.work;
        for slot in self.member.share(self.plan.heads.len()) {
            let start = head::column_of(self, slot) * hidden;
            // SAFETY: x is only read now.
            let x = unsafe { work.x.read(start..start + hidden) };
            head::set_input(self, slot, x);
        }
        self.end(Operation::Head);
    }

    /// Scores of the wanted columns.
    pub(crate) fn scores(&mut self) {
        if !self.plan.heads.is_empty() {
            head::scores(self);
            self.end(Operation::Head);
        }
    }

    /// Draws a token for each wanted column that asks for one.
    pub(crate) fn sample(&mut self) {
        for slot in self.member.deal(self.plan.heads.len()) {
            if let Some((head, drawn)) = head::draw(self, slot) {
                *self.results[head].lock().unwrap_or_else(PoisonError::into_inner) = Some(drawn);
            }
        }
        self.end(Operation::Sample);
    }
}
