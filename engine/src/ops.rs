//! The operations of a forward step as the CPU does them: who computes which part, and the barriers between.
//!
//! This is the seam for another backend: the forward pass knows these few operations and nothing of threads or kernels.
//! Protocol: all members call the same operations in the same order; an operation reads what earlier ones wrote, writes
//! a part of its own, and ends with a barrier.
#![allow(unsafe_code)] // Members share buffers and write disjoint parts between barriers; each block says which.

use crate::forward::{Plan, Segment};
use crate::head::{self, Drawn, HeadWork, Slots};
use crate::kernel::{
    Acts, Epilogue, KEY_BLOCK, Kernels, MAX_TOKENS, PAGE, Quantised, Query, ROWS, Scratch, State, Then,
};
use crate::kv::Cache;
use crate::model::{Matrix, Model};
use crate::pool::{Member, Shared};
use crate::profile::{Clocks, Operation};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Queries that attend to a page together, at most: more share the loads, but need more registers.
const QUERIES: usize = 8;
/// Positions from which on a context is worth sharing out page by page.
const LONG: usize = 4 * PAGE;

/// Whether so few segments are in a step that their key heads do not keep all members busy.
fn split_fits(n_segments: usize, n_kv_heads: usize, n_threads: usize) -> bool {
    n_threads > 1 && n_segments * n_kv_heads < 4 * n_threads
}

/// The buffers of a step, for a fixed number of columns at most.
pub(crate) struct Work {
    /// (n_columns, hidden)
    x: Shared<f32>,
    /// (n_columns, widest input of a product); a single column has a row for each member.
    acts: Shared<i8>,
    quantised: Shared<Quantised>,
    /// Each row's tables, where the layout of the weights wants them.
    tables: Shared<u8>,
    /// (n_columns, q + k + v rows)
    qkv: Shared<f32>,
    /// (n_columns, query heads · head_dim)
    attended: Shared<f32>,
    /// (n_columns, ffn)
    gated: Shared<f32>,
    /// (segments that may be split, query heads, pages of a context): attention over one page each.
    partials: Shared<State>,
    partial_pages: usize,
    pub(crate) head: HeadWork,
    pub(crate) clocks: Clocks,
    /// For products in turn: while one is in use, the other is filled up again.
    stocks: [Stock; 2],
    private: Vec<Mutex<Private>>,
}

/// Pairs of groups of a product that nobody has taken yet.
struct Stock {
    /// How many of each member's share are taken.
    taken: Box<[Counter]>,
}

/// A counter with cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

impl Stock {
    fn new(n_threads: usize) -> Stock {
        Stock { taken: (0..n_threads).map(|_| Counter::default()).collect() }
    }

    /// Makes one member's share whole again. Barriers order this and the takings before and after.
    fn fill(&self, index: usize) {
        self.taken[index].0.store(0, Ordering::Relaxed);
    }

    /// The next pair for a member: of its own share, whose memory is near, and then of those who are behind.
    fn take(&self, member: &Member<'_>, matrix: &Matrix) -> Option<usize> {
        (0..member.count()).find_map(|step| {
            let owner = (member.index + step) % member.count();
            let share = matrix.pairs(owner, member.count());
            let taken = &self.taken[owner].0;
            // Looking first spares the owner its cache line where nothing is left.
            if taken.load(Ordering::Relaxed) >= share.len() {
                return None;
            }
            let pair = share.start + taken.fetch_add(1, Ordering::Relaxed);
            (pair < share.end).then_some(pair)
        })
    }
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
        let partial_pages = model.rotary.context().div_ceil(PAGE);
        let n_split = (1..=n_heads).take_while(|&n| split_fits(n, hyper.n_kv_heads, n_threads)).count();
        let n_split = if model.rotary.context() > LONG { n_split } else { 0 };
        Work {
            partials: Shared::new(n_split * hyper.n_heads * partial_pages),
            partial_pages,
            x: Shared::new(n_columns * hyper.hidden),
            acts: Shared::new(n_columns.max(n_threads) * widest),
            quantised: Shared::new(n_columns.max(n_threads)),
            tables: Shared::new(n_columns.max(n_threads) * model.layout.table_bytes(widest)),
            qkv: Shared::new(n_columns * qkv_rows),
            attended: Shared::new(n_columns * hyper.q_width()),
            gated: Shared::new(n_columns * hyper.ffn),
            head,
            clocks: Clocks::default(),
            stocks: [Stock::new(n_threads), Stock::new(n_threads)],
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
    /// Whether attention's pages of single columns are shared out among members.
    split: bool,
    /// Products so far in this step.
    products: usize,
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
        let split = work.partials.len() > 0
            && split_fits(plan.segments.len(), model.hyper.n_kv_heads, member.count())
            && plan.columns.iter().any(|column| column.position >= LONG);
        // The first barrier comes before the first product; a step that panicked may have left them as they were.
        work.stocks.iter().for_each(|stock| stock.fill(member.index));
        let start = Instant::now();
        Ops { member, kernels, model, work, cache, plan, slots, private, results, split, products: 0, start }
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
        self.lap(operation);
    }

    fn lap(&mut self, operation: Operation) {
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

    /// The columns' first row of `acts`: a single column is normed by every member for itself, which is sooner done than
    /// one member's norm and a barrier.
    fn first_row(&self) -> usize {
        if self.n_columns() == 1 { self.member.index } else { 0 }
    }

    fn norm(&mut self, from: &'a Shared<f32>, weight: &[f32]) {
        let width = weight.len();
        let alone = self.n_columns() == 1;
        let columns = if alone { 0..1 } else { self.member.share(self.n_columns()) };
        let rows = self.first_row() + columns.start..self.first_row() + columns.end;
        let table_bytes = self.kernels.layout().table_bytes(width);
        // SAFETY: nobody writes `from` in this operation; the rows of activations are this member's.
        let (x, acts, tables, quantised) = unsafe {
            (
                from.read(columns.start * width..columns.end * width),
                self.work.acts.write(rows.start * width..rows.end * width),
                self.work.tables.write(rows.start * table_bytes..rows.end * table_bytes),
                self.work.quantised.write(rows),
            )
        };
        let row = &mut self.private.row[..width];
        self.kernels.norm_quantise(x, weight, self.model.hyper.rms_eps, row, acts, quantised);
        if table_bytes > 0 {
            for (acts, tables) in acts.chunks_exact(width).zip(tables.chunks_exact_mut(table_bytes)) {
                self.kernels.tabulate(acts, tables);
            }
        }
        if alone {
            self.lap(Operation::Norm);
        } else {
            self.end(Operation::Norm);
        }
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
        let (first, last) = (self.first_row(), self.first_row() + n_columns);
        let (width, table_bytes) = (matrix.width, self.kernels.layout().table_bytes(matrix.width));
        // SAFETY: nobody writes activations in this operation.
        let (rows, tables, quantised) = unsafe {
            (
                self.work.acts.read(first * width..last * width),
                self.work.tables.read(first * table_bytes..last * table_bytes),
                self.work.quantised.read(first..last),
            )
        };
        let stock = &self.work.stocks[self.products % 2];
        self.products += 1;
        // Nobody looks at the other one before the barrier that ends this product.
        self.work.stocks[self.products % 2].fill(self.member.index);
        while let Some(pair) = stock.take(self.member, matrix) {
            let group = 2 * pair;
            let n_groups = (matrix.n_groups - group).min(2);
            let packed = self.model.groups(matrix, group..group + n_groups);
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
                let acts = Acts {
                    width,
                    rows: &rows[first * width..last * width],
                    tables: &tables[first * table_bytes..last * table_bytes],
                };
                // SAFETY: `out` holds these rows of these columns, and each pair of groups is taken once.
                unsafe { self.kernels.product(packed, &acts, &epilogue, &mut self.private.scratch) };
            }
        }
        self.end(Operation::Product);
    }

    /// attended = causal attention of each column, whose keys and values go into the cache on the way.
    ///
    /// Three ways, for the same bits. A segment of one column: who attends with a key head also rotates and stores it, while
    /// it is in its cache. Several columns: all are stored before any attends. A long context and few tasks: pages are shared
    /// out as well, and folded together afterwards.
    pub(crate) fn attention(&mut self, layer: usize) {
        let n_kv_heads = self.model.hyper.n_kv_heads;
        let plan = self.plan;
        if plan.segments.iter().any(|segment| self.stored_first(segment)) {
            let mut turn = 0;
            for segment in &plan.segments {
                if !self.stored_first(segment) {
                    continue;
                }
                for kv_head in 0..n_kv_heads {
                    // Keys of a block share cache lines: one member writes them.
                    let mut first = segment.columns.start;
                    while first < segment.columns.end {
                        let rest = KEY_BLOCK - plan.columns[first].position % KEY_BLOCK;
                        let last = segment.columns.end.min(first + rest);
                        if turn % self.member.count() == self.member.index {
                            (first..last).for_each(|column| self.rotate_and_store(layer, column, kv_head));
                        }
                        turn += 1;
                        first = last;
                    }
                }
            }
            self.end(Operation::Rotate);
        }
        let mut turn = 0;
        for (index, segment) in plan.segments.iter().enumerate() {
            if self.split && segment.columns.len() == 1 {
                self.attend_pages(layer, index, &mut turn);
                continue;
            }
            // Later columns see more: dealing the tasks out in turn spreads them evenly.
            let tile = (QUERIES / self.group()).max(1);
            for first in segment.columns.clone().step_by(tile) {
                for kv_head in 0..n_kv_heads {
                    if turn % self.member.count() == self.member.index {
                        if !self.stored_first(segment) {
                            self.rotate_and_store(layer, first, kv_head);
                        }
                        self.attend_tile(layer, first..segment.columns.end.min(first + tile), kv_head);
                    }
                    turn += 1;
                }
            }
        }
        self.end(Operation::Attend);
        if self.split {
            self.fold_pages();
            self.end(Operation::Attend);
        }
    }

    /// Query heads of a key head.
    fn group(&self) -> usize {
        self.model.hyper.n_heads / self.model.hyper.n_kv_heads
    }

    fn stored_first(&self, segment: &Segment) -> bool {
        segment.columns.len() > 1 || self.split
    }

    /// Rotates one column's queries and key of one key head, and writes its key and value into the cache.
    fn rotate_and_store(&mut self, layer: usize, index: usize, kv_head: usize) {
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_dim, self.group());
        let (q_width, kv_width) = (hyper.q_width(), hyper.kv_width());
        let column = self.plan.columns[index];
        let (cos, sin) = self.model.rotary.at(column.position);
        let row = index * (q_width + 2 * kv_width);
        let (q, k) = (row + kv_head * group * head_dim, row + q_width + kv_head * head_dim);
        let v = k + kv_width;
        // SAFETY: this column's part of these heads belongs to the caller's task alone.
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
        // SAFETY: each position of each head is one task, and nobody else reads this head of this page before a barrier.
        unsafe { self.cache.write(page, layer, kv_head, column.position % PAGE, key_halves, value_halves) };
    }

    /// This member's pages of the only column of a segment, each by itself.
    fn attend_pages(&mut self, layer: usize, index: usize, turn: &mut usize) {
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_dim, self.group());
        let stride = hyper.q_width() + 2 * hyper.kv_width();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let segment = &self.plan.segments[index];
        let seen = self.plan.columns[segment.columns.start].position + 1;
        for kv_head in 0..hyper.n_kv_heads {
            for (number, &page) in segment.pages[..seen.div_ceil(PAGE)].iter().enumerate() {
                *turn += 1;
                if *turn % self.member.count() != self.member.index {
                    continue;
                }
                // SAFETY: the cache and the queries were written before the last barrier, and are only read now; the
                // states of this page are this task's.
                let (keys, values) = unsafe { self.cache.read(page, layer, kv_head) };
                let start = self.partial(index, kv_head * group, number);
                let heads = segment.columns.start * stride + kv_head * group * head_dim;
                let mut queries: Vec<Query<'_>> = Vec::with_capacity(group);
                for head in 0..group {
                    // SAFETY: as above.
                    let (q, state) = unsafe {
                        let q = heads + head * head_dim;
                        let place = start + head * self.work.partial_pages;
                        (
                            self.work.qkv.read(q..q + head_dim),
                            &mut self.work.partials.write(place..place + 1)[0],
                        )
                    };
                    *state = State::EMPTY;
                    queries.push(Query { q, visible: (seen - number * PAGE).min(PAGE), state });
                }
                self.kernels.attend(&mut queries, keys, values, head_dim, scale);
            }
        }
    }

    /// Where the state of one page of one head of a segment stands.
    fn partial(&self, segment: usize, head: usize, page: usize) -> usize {
        (segment * self.model.hyper.n_heads + head) * self.work.partial_pages + page
    }

    /// Folds the pages of single columns in order, each member some heads.
    fn fold_pages(&mut self) {
        let hyper = &self.model.hyper;
        let head_dim = hyper.head_dim;
        for task in self.member.share(self.plan.segments.len() * hyper.n_heads) {
            let (index, head) = (task / hyper.n_heads, task % hyper.n_heads);
            let columns = self.plan.segments[index].columns.clone();
            if columns.len() > 1 {
                continue;
            }
            let n_pages = self.plan.columns[columns.start].position / PAGE + 1;
            let first = self.partial(index, head, 0);
            let start = columns.start * hyper.q_width() + head * head_dim;
            // SAFETY: the states were written before the last barrier, and are only read now; this head's output is this
            // member's.
            let (pages, out) = unsafe {
                (
                    self.work.partials.read(first..first + n_pages),
                    self.work.attended.write(start..start + head_dim),
                )
            };
            let mut state = pages[0];
            for page in &pages[1..] {
                self.kernels.fold(&mut state, page, head_dim);
            }
            self.kernels.attended(&state, out);
        }
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
            // SAFETY: what the cache holds of this head was written by this task or before the last barrier.
            let (keys, values) = unsafe { self.cache.read(page, layer, kv_head) };
            let mut queries: Vec<Query<'_>> = Vec::with_capacity(n_queries);
            for (i, state) in states.iter_mut().enumerate() {
                let (column, head) = (columns.start + i / group, kv_head * group + i % group);
                let start = column * stride + head * head_dim;
                // SAFETY: queries were written by this task or before the last barrier.
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
