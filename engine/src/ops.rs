//! The operations of a forward step as the CPU does them: who computes which part, and the barriers between.
//!
//! The forward pass knows these few operations and nothing of threads or kernels. Protocol: all members call the same operations in the same order; an operation reads what earlier ones wrote, writes
//! a part of its own, and ends with a barrier.
#![allow(unsafe_code)] // Members share buffers and write disjoint parts between barriers; each block says which.

mod attention;

use crate::LoadError;
use crate::forward::{Operations, Plan, Product};
use crate::head::{self, Drawn, HeadWork, Slots};
use crate::kernel::{
    Acts, Epilogue, Kernels, MAX_TOKENS, PAGE, Quantised, ROWS, Scratch, State, Then, prefetch,
};
use crate::kv::Storage;
use crate::model::{Matrix, Model};
use crate::pool::{Member, Shared};
use crate::profile::{Clocks, Operation};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes of weights that are asked for before the operation that needs them.
const HEAD_START: usize = 16 << 10;

/// Pairs of a member's share that are taken one by one.
const LAST_PAIRS: usize = 4;

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

    /// The next pairs for a member, at most so many: of its own share, whose memory is near, and then of those who are behind, its
    /// cache group's members first. The last ones are taken one by one, so that all members end at about the same time.
    fn take(&self, member: &Member<'_>, matrix: &Matrix, most: usize) -> Option<Range<usize>> {
        member.nearest().find_map(|owner| {
            let share = matrix.pairs(owner, member.count());
            let taken = &self.taken[owner].0;
            // Looking first spares the owner its cache line where nothing is left.
            let left = share.len().saturating_sub(taken.load(Ordering::Relaxed));
            if left == 0 {
                return None;
            }
            let n_pairs = if left > LAST_PAIRS { most } else { 1 };
            let pair = share.start + taken.fetch_add(n_pairs, Ordering::Relaxed);
            (pair < share.end).then(|| pair..share.end.min(pair + n_pairs))
        })
    }
}

/// What a member needs for itself.
pub(crate) struct Private {
    scratch: Box<Scratch>,
    row: Vec<f32>,
    states: Vec<State>,
    /// One head after its norm.
    normed: Vec<f32>,
    pub(crate) head: head::Private,
}

impl Private {
    pub(crate) fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
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
    ) -> Result<Work, LoadError> {
        let hyper = &model.hyper;
        let widest = hyper.hidden.max(hyper.ffn).max(hyper.q_width());
        let scales = |width: usize| width / model.layout.scale_width(width);
        let most_scales = scales(hyper.hidden).max(scales(hyper.ffn)).max(scales(hyper.q_width()));
        let private = || Private {
            scratch: Scratch::new(),
            row: vec![0.0; widest],
            states: vec![State::EMPTY; attention::most_queries(hyper)],
            normed: vec![0.0; hyper.head_stride()],
            head: head::Private::new(hyper, n_heads),
        };
        let partial_pages = model.rotary.context().div_ceil(PAGE);
        let n_split = attention::most_split(n_heads, hyper, n_threads, model.rotary.context());
        const WHAT: &str = "activations";
        Ok(Work {
            partials: Shared::new(n_split * hyper.n_heads * partial_pages, WHAT)?,
            partial_pages,
            x: Shared::new(n_columns * hyper.hidden, WHAT)?,
            acts: Shared::new(n_columns.max(n_threads) * widest, WHAT)?,
            quantised: Shared::new(n_columns.max(n_threads) * most_scales, WHAT)?,
            tables: Shared::new(n_columns.max(n_threads) * model.layout.table_bytes(widest), WHAT)?,
            qkv: Shared::new(n_columns * hyper.qkv_rows(), WHAT)?,
            attended: Shared::new(n_columns * hyper.q_width(), WHAT)?,
            gated: Shared::new(n_columns * hyper.ffn, WHAT)?,
            head,
            clocks: Clocks::default(),
            stocks: [Stock::new(n_threads), Stock::new(n_threads)],
            private: (0..n_threads).map(|_| Mutex::new(private())).collect(),
        })
    }
}

impl Work {
    /// The first rows of x, for one who computed them elsewhere.
    pub(crate) fn rows_of_x(&mut self, n_rows: usize) -> &mut [f32] {
        let hidden = self.head.hidden();
        // SAFETY: nobody else has this borrow.
        unsafe { self.x.write(0..n_rows * hidden) }
    }
}

/// One member's hands on a step.
pub(crate) struct Ops<'a, 'm> {
    pub(crate) member: &'a Member<'m>,
    pub(crate) kernels: Kernels,
    model: &'a Model,
    pub(crate) work: &'a Work,
    cache: &'a Storage,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) slots: Slots,
    pub(crate) private: MutexGuard<'a, Private>,
    results: &'a [Mutex<Option<Drawn>>],
    /// Whether attention's pages of single columns are shared out among members.
    split: bool,
    /// This member's tiles of attention, the same in each layer.
    tasks: Vec<attention::Task>,
    /// Columns that are computed: all of them, and after the last layer's keys and values those that have heads.
    n_columns: usize,
    /// By column: its row in what is computed, if it has one.
    rows: Vec<Option<usize>>,
    /// Products so far in this step.
    products: usize,
    /// Scores that a head wants all of are there already.
    pub(crate) has_scores: bool,
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
        cache: &'a Storage,
        plan: &'a Plan<'a>,
        results: &'a [Mutex<Option<Drawn>>],
    ) -> Ops<'a, 'm> {
        assert!(results.len() == plan.heads.len() && plan.columns.len() * model.hyper.hidden <= work.x.len());
        let private = work.private[member.index].lock().unwrap_or_else(PoisonError::into_inner);
        let split = work.partials.len() > 0 && attention::splits(plan, &model.hyper, member.count());
        // The first barrier comes before the first product; a step that panicked may have left them as they were.
        work.stocks.iter().for_each(|stock| stock.fill(member.index));
        let start = Instant::now();
        let tasks = attention::tasks(plan, &model.hyper, split, member, false);
        let (products, n_columns) = (0, plan.columns.len());
        Ops {
            member,
            kernels,
            model,
            work,
            cache,
            plan,
            slots: Slots::default(),
            private,
            results,
            split,
            tasks,
            n_columns,
            rows: (0..n_columns).map(Some).collect(),
            products,
            has_scores: false,
            start,
        }
    }

    pub(crate) fn model(&self) -> &'a Model {
        self.model
    }

    /// Draws for the heads, whose rows of x and whose scores, as far as all are wanted, were put in their places before.
    pub(crate) fn draw(&mut self) {
        self.has_scores = true;
        self.heads();
    }

    fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// Ends an operation: takes the time, and waits for all members.
    pub(crate) fn end(&mut self, operation: Operation) {
        self.lap(operation);
        self.member.wait();
        self.lap(Operation::Wait);
    }

    fn lap(&mut self, operation: Operation) {
        if self.member.index == 0 {
            self.work.clocks.lap(operation, &mut self.start);
        }
    }

    /// The columns' first row of `acts`: a single column is normed by every member for itself, which is sooner done than
    /// one member's norm and a barrier.
    fn first_row(&self) -> usize {
        if self.n_columns() == 1 { self.member.index } else { 0 }
    }

    /// acts = rows, normed where there is a norm, rounded to int8.
    fn round_rows(&mut self, from: &'a Shared<f32>, width: usize, norm: Option<&[f32]>) {
        let alone = self.n_columns() == 1;
        let columns = if alone { 0..1 } else { self.member.share(self.n_columns()) };
        let rows = self.first_row() + columns.start..self.first_row() + columns.end;
        let table_bytes = self.kernels.layout().table_bytes(width);
        let scales = width / self.kernels.layout().scale_width(width);
        // SAFETY: nobody writes `from` in this operation; the rows of activations are this member's.
        let (x, acts, tables, quantised) = unsafe {
            (
                from.read(columns.start * width..columns.end * width),
                self.work.acts.write(rows.start * width..rows.end * width),
                self.work.tables.write(rows.start * table_bytes..rows.end * table_bytes),
                self.work.quantised.write(rows.start * scales..rows.end * scales),
            )
        };
        let row = &mut self.private.row[..width];
        let norm = norm.map(|weight| (weight, self.model.hyper.rms_eps));
        self.kernels.norm_quantise(x, norm, row, acts, quantised);
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
    fn multiply(&mut self, matrix: &Matrix, then: Then) {
        let hyper = &self.model.hyper;
        let (out, stride, rows_a_pair) = match then {
            Then::Store => (&self.work.qkv, hyper.qkv_rows(), 2 * ROWS),
            Then::Add => (&self.work.x, hyper.hidden, 2 * ROWS),
            Then::Gate(_) => (&self.work.gated, hyper.ffn, ROWS),
        };
        let n_columns = self.n_columns();
        assert!(out.len() >= n_columns * stride && matrix.n_groups * rows_a_pair / 2 <= stride);
        let (first, last) = (self.first_row(), self.first_row() + n_columns);
        let (width, table_bytes) = (matrix.width, self.kernels.layout().table_bytes(matrix.width));
        let scales = width / self.kernels.layout().scale_width(width);
        // SAFETY: nobody writes activations in this operation.
        let (rows, tables, quantised) = unsafe {
            (
                self.work.acts.read(first * width..last * width),
                self.work.tables.read(first * table_bytes..last * table_bytes),
                self.work.quantised.read(first * scales..last * scales),
            )
        };
        if n_columns > 1 {
            // What other members rounded is in their caches; all of it is on its way before the first tile wants it.
            for member in (0..self.member.count()).filter(|&member| member != self.member.index) {
                let theirs = self.member.share_of(member, n_columns);
                prefetch(rows[theirs.start * width..].as_ptr(), theirs.len() * width);
            }
        }
        let stock = &self.work.stocks[self.products % 2];
        self.products += 1;
        // Nobody looks at the other one before the barrier that ends this product.
        self.work.stocks[self.products % 2].fill(self.member.index);
        // A few columns wait for memory, and one stream of weights a thread is the fastest.
        let most_pairs = if n_columns > 4 { self.kernels.most_groups() / 2 } else { 1 };
        while let Some(pairs) = stock.take(self.member, matrix, most_pairs) {
            let group = 2 * pairs.start;
            let n_groups = (matrix.n_groups - group).min(2 * pairs.len());
            let packed = self.model.groups(matrix, group..group + n_groups);
            for first in (0..n_columns).step_by(MAX_TOKENS) {
                let last = n_columns.min(first + MAX_TOKENS);
                let epilogue = Epilogue {
                    activations: &quantised[first * scales..last * scales],
                    n_tokens: last - first,
                    weight_scales: matrix.scales(group..group + n_groups),
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

    /// Waits for what each head may draw, which says how it is scored.
    fn await_rules(&mut self) {
        self.slots = self.work.head.slots(self.plan);
    }

    /// The final norm of the columns whose scores are wanted.
    fn norm_heads(&mut self) {
        let hidden = self.model.hyper.hidden;
        let work = self.work;
        for slot in self.member.share(self.plan.heads.len()) {
            // What is left of x are the rows of the heads, in their order.
            let start = head::head_of(self, slot) * hidden;
            // SAFETY: x is only read now.
            let x = unsafe { work.x.read(start..start + hidden) };
            head::set_input(self, slot, x);
        }
        self.end(Operation::Head);
    }

    /// Scores of the wanted columns.
    fn scores(&mut self) {
        if !self.plan.heads.is_empty() {
            head::scores(self);
            self.end(Operation::Head);
        }
    }

    /// Draws a token for each wanted column that asks for one.
    fn sample(&mut self) {
        for slot in self.member.deal(self.plan.heads.len()) {
            if let Some((head, drawn)) = head::draw(self, slot) {
                *self.results[head].lock().unwrap_or_else(PoisonError::into_inner) = Some(drawn);
            }
        }
        self.end(Operation::Sample);
    }
}

impl Operations for Ops<'_, '_> {
    fn n_layers(&self) -> usize {
        self.model.layers.len()
    }

    fn embed(&mut self) {
        let hidden = self.model.hyper.hidden;
        let embedding = self.model.embedding();
        for column in self.member.share(self.n_columns()) {
            // SAFETY: columns are shared out, so this row is this member's.
            let row = unsafe { self.work.x.write(column * hidden..(column + 1) * hidden) };
            embedding.read(self.plan.columns[column].token as usize, row);
        }
        self.end(Operation::Embed);
    }

    /// Prefetches the first of this thread's weights, so that memory is not idle meanwhile.
    fn expect(&mut self, layer: usize, product: Product) {
        let matrix = self.model.layers[layer].matrix(product);
        let pairs = matrix.pairs(self.member.index, self.member.count());
        let groups = (2 * pairs.start).min(matrix.n_groups)..(2 * pairs.end).min(matrix.n_groups);
        let packed = self.model.groups(matrix, groups);
        prefetch(packed.as_ptr(), packed.len().min(HEAD_START));
    }

    fn round(&mut self, layer: usize, product: Product) {
        let (work, layer) = (self.work, &self.model.layers[layer]);
        let from = match product {
            Product::Qkv | Product::GateUp => &work.x,
            Product::Output => &work.attended,
            Product::Down => &work.gated,
        };
        self.round_rows(from, layer.matrix(product).width, layer.norm(product));
    }

    fn product(&mut self, layer: usize, product: Product) {
        let then = match product {
            Product::Qkv => Then::Store,
            Product::Output | Product::Down => Then::Add,
            Product::GateUp => Then::Gate(self.model.hyper.graph.activation),
        };
        self.multiply(self.model.layers[layer].matrix(product), then);
    }

    fn attention(&mut self, layer: usize) {
        self.attend(layer);
    }

    fn attention_of_heads(&mut self, layer: usize) -> bool {
        self.keep_heads();
        self.attend(layer);
        self.n_columns > 0
    }

    fn heads(&mut self) {
        self.await_rules();
        self.norm_heads();
        self.scores();
        self.sample();
    }
}
