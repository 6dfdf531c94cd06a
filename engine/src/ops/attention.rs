//! Attention of a step: who rotates, stores and attends to what, and what is asked of memory ahead.
#![allow(unsafe_code)] // Members share buffers and write disjoint parts between barriers; each block says which.

use super::{Ops, Work};
use crate::forward::{Plan, Segment};
use crate::gguf::Hyper;
use crate::kernel::{KEY_BLOCK, Kernels, MAX_HEAD_DIM, PAGE, Query, ROWS, State, prefetch};
use crate::pool::Member;
use crate::profile::Operation;
use std::ops::Range;

/// Queries that attend to a page one after the other while it is in the cache, unless one column has more.
const QUERIES: usize = 16;
/// Positions from which on a context is worth sharing out page by page.
const LONG: usize = 4 * PAGE;

/// Whether so few segments are in a step that their key heads do not keep all members busy.
fn split_fits(n_segments: usize, n_kv_heads: usize, n_threads: usize) -> bool {
    n_threads > 1 && n_segments * n_kv_heads < 4 * n_threads
}

/// Queries of a tile at most.
pub(super) fn most_queries(hyper: &Hyper) -> usize {
    QUERIES.max(hyper.n_heads / hyper.n_kv_heads)
}

/// Segments at most whose pages are shared out in a step.
pub(super) fn most_split(n_heads: usize, hyper: &Hyper, n_threads: usize, context: usize) -> usize {
    let most = (1..=n_heads).take_while(|&n| split_fits(n, hyper.n_kv_heads, n_threads)).count();
    if context > LONG { most } else { 0 }
}

/// Whether a step's single columns have their pages shared out.
pub(super) fn splits(plan: &Plan<'_>, hyper: &Hyper, n_threads: usize) -> bool {
    split_fits(plan.segments.len(), hyper.n_kv_heads, n_threads)
        && plan.columns.iter().any(|column| column.position >= LONG)
}

/// The query heads of one key head, for a few columns of one segment.
#[derive(Debug, Clone)]
pub(super) struct Task {
    segment: usize,
    columns: Range<usize>,
    kv_head: usize,
}

/// One member's tasks in a layer, of all columns or of those that have heads. A key head's tiles follow one another, so that its
/// keys stay in the cache; later columns see more, so dealing the tiles out in turn spreads them evenly.
pub(super) fn tasks(
    plan: &Plan<'_>,
    hyper: &Hyper,
    split: bool,
    member: &Member<'_>,
    of_heads: bool,
) -> Vec<Task> {
    let tile = (QUERIES / (hyper.n_heads / hyper.n_kv_heads)).max(1);
    let mut tasks = Vec::new();
    let mut turn = 0;
    for (segment, Segment { columns, .. }) in plan.segments.iter().enumerate() {
        if split && columns.len() == 1 {
            continue;
        }
        // A single column is stored by the task that attends.
        let runs =
            if of_heads && columns.len() > 1 { runs_of_heads(plan, columns) } else { vec![columns.clone()] };
        for kv_head in 0..hyper.n_kv_heads {
            for run in &runs {
                for first in run.clone().step_by(tile) {
                    if turn % member.count() == member.index {
                        let columns = first..run.end.min(first + tile);
                        tasks.push(Task { segment, columns, kv_head });
                    }
                    turn += 1;
                }
            }
            if columns.len() > tile && !of_heads {
                // Whoever had the last tile, which sees the most, begins the next head with the one that sees the least.
                turn += member.count() - 1;
            }
        }
    }
    tasks
}

/// The columns of a segment that have heads, as runs.
fn runs_of_heads(plan: &Plan<'_>, columns: &Range<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for head in plan.heads.iter().filter(|head| columns.contains(&head.column)) {
        match runs.last_mut() {
            Some(run) if run.end == head.column => run.end += 1,
            _ => runs.push(head.column..head.column + 1),
        }
    }
    runs
}

impl Ops<'_, '_> {
    /// attended = causal attention of each column, whose keys and values go into the cache on the way.
    ///
    /// Three ways, for the same bits. A segment of one column: who attends with a key head also rotates and stores it, while
    /// it is in its cache. Several columns: all are stored before any attends. A long context and few tasks: pages are shared
    /// out as well, and folded together afterwards.
    pub(super) fn attend(&mut self, layer: usize) {
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
            }
        }
        for number in 0..self.tasks.len() {
            let task = self.tasks[number].clone();
            let next = self.tasks.get(number + 1).cloned();
            if let Some(next) = &next {
                self.prefetch(layer, next);
            }
            if !self.stored_first(&plan.segments[task.segment]) {
                self.rotate_and_store(layer, task.columns.start, task.kv_head);
            }
            self.attend_tile(layer, &task, next.as_ref());
        }
        self.end(Operation::Attend);
        if self.split {
            self.fold_pages();
            self.end(Operation::Attend);
        }
    }

    /// Before the last layer's attention: from here on only the rows of columns that have heads are computed.
    pub(super) fn keep_heads(&mut self) {
        let (plan, hidden) = (self.plan, self.model.hyper.hidden);
        self.rows.fill(None);
        for (row, head) in plan.heads.iter().enumerate() {
            self.rows[head.column] = Some(row);
        }
        self.n_columns = plan.heads.len();
        if self.n_columns < plan.columns.len() {
            self.tasks = tasks(plan, &self.model.hyper, self.split, self.member, true);
            // Each member moves a part of every row, in ascending order: no row is written before it was read.
            let part = self.member.share(hidden / ROWS);
            let part = part.start * ROWS..part.end * ROWS;
            for (row, head) in plan.heads.iter().enumerate().filter(|(row, head)| *row < head.column) {
                let at = |row: usize| row * hidden + part.start..row * hidden + part.end;
                // SAFETY: this part of all rows is this member's until attention ends, and the two rows differ.
                let (from, to) = unsafe { (self.work.x.read(at(head.column)), self.work.x.write(at(row))) };
                to.copy_from_slice(from);
            }
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
        let (hyper, group) = (&self.model.hyper, self.group());
        let (head_dim, stride) = (hyper.head_dim, hyper.head_stride());
        let column = self.plan.columns[index];
        let (cos, sin) = self.model.rotary.at(column.position);
        let row = index * hyper.qkv_rows();
        let (q, k) = (row + kv_head * group * stride, row + (hyper.n_heads + kv_head) * stride);
        let v = k + hyper.n_kv_heads * stride;
        // SAFETY: this column's part of these heads belongs to the caller's task alone.
        let (queries, key, value) = unsafe {
            (
                self.work.qkv.write(q..q + group * stride),
                self.work.qkv.write(k..k + stride),
                self.work.qkv.read(v..v + stride),
            )
        };
        if let Some([of_queries, of_keys]) = &self.model.layers[layer].qk_norms {
            let normed = &mut self.private.normed;
            let heads = queries.chunks_exact_mut(stride).map(|query| (query, of_queries));
            for (head, weight) in heads.chain([(&mut *key, of_keys)]) {
                self.kernels.norm(head, weight, hyper.rms_eps, normed);
                head.copy_from_slice(normed);
            }
        }
        for query in queries.chunks_exact_mut(stride) {
            self.kernels.rotate(&mut query[..head_dim], cos, sin);
        }
        self.kernels.rotate(&mut key[..head_dim], cos, sin);
        let page = self.plan.segments[column.segment].pages[column.position / PAGE];
        // SAFETY: each position of each head is one task, and nobody else reads this head of this page before a barrier.
        unsafe { self.cache.write(self.kernels, page, layer, kv_head, column.position % PAGE, key, value) };
    }

    /// This member's pages of the only column of a segment, each by itself.
    fn attend_pages(&mut self, layer: usize, index: usize, turn: &mut usize) {
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_stride(), self.group());
        let stride = hyper.qkv_rows();
        let scale = 1.0 / (hyper.head_dim as f32).sqrt();
        let segment = &self.plan.segments[index];
        let seen = self.plan.columns[segment.columns.start].position + 1;
        let pages = &segment.pages[..seen.div_ceil(PAGE)];
        let count = self.member.count();
        let n_tasks = hyper.n_kv_heads * pages.len();
        let place = |task: usize| self.cache.place(pages[task % pages.len()], layer, task / pages.len());
        let first = (self.member.index + *turn) % count;
        for task in (first..n_tasks).step_by(count) {
            let (kv_head, number) = (task / pages.len(), task % pages.len());
            let next = place(if task + count < n_tasks { task + count } else { task });
            // SAFETY: the cache and the queries were written before the last barrier, and are only read now; the states of
            // this page are this task's.
            let stored = unsafe { self.cache.read(pages[number], layer, kv_head) };
            let start = self.partial(index, kv_head * group, number);
            let heads = segment.columns.start * stride + kv_head * group * head_dim;
            let mut queries: Vec<Query<'_>> = Vec::with_capacity(group);
            for head in 0..group {
                let (q, state) = (heads + head * head_dim, start + head * self.work.partial_pages);
                // SAFETY: as above.
                let (q, state) = unsafe {
                    (self.work.qkv.read(q..q + head_dim), &mut self.work.partials.write(state..state + 1)[0])
                };
                *state = State::EMPTY;
                queries.push(Query { q, visible: (seen - number * PAGE).min(PAGE), state });
            }
            self.kernels.attend(&mut queries, stored, next, head_dim, scale);
        }
        // Who would come next begins the next segment.
        *turn += count - n_tasks % count;
    }

    /// Where the state of one page of one head of a segment stands.
    fn partial(&self, segment: usize, head: usize, page: usize) -> usize {
        (segment * self.model.hyper.n_heads + head) * self.work.partial_pages + page
    }

    /// Folds the pages of single columns in order, each member some heads.
    fn fold_pages(&mut self) {
        let hyper = &self.model.hyper;
        for task in self.member.share(self.plan.segments.len() * hyper.n_heads) {
            let (index, head) = (task / hyper.n_heads, task % hyper.n_heads);
            let columns = self.plan.segments[index].columns.clone();
            if columns.len() > 1 {
                continue;
            }
            let n_pages = self.plan.columns[columns.start].position / PAGE + 1;
            let first = self.partial(index, head, 0);
            // SAFETY: the states were written before the last barrier, and are only read now.
            let pages = unsafe { self.work.partials.read(first..first + n_pages) };
            let mut state = pages[0];
            for page in &pages[1..] {
                self.kernels.fold(&mut state, page, hyper.head_stride());
            }
            if let Some(row) = self.rows[columns.start] {
                set_attended(self.kernels, self.work, hyper, row, head, &state);
            }
        }
    }

    /// Prefetches what a task will rotate, which may be in another thread's cache, and where it will store it.
    fn prefetch(&self, layer: usize, task: &Task) {
        let segment = &self.plan.segments[task.segment];
        if self.stored_first(segment) {
            return;
        }
        let (column, hyper) = (task.columns.start, &self.model.hyper);
        let (heads, size) = (hyper.n_heads + 2 * hyper.n_kv_heads, hyper.head_stride());
        let first = [task.kv_head * self.group(), hyper.n_heads + task.kv_head];
        let value = hyper.n_heads + hyper.n_kv_heads + task.kv_head;
        for (head, n_heads) in [(first[0], self.group()), (first[1], 1), (value, 1)] {
            let start = self.work.qkv.pointer().wrapping_add((column * heads + head) * size);
            prefetch(start, n_heads * size * size_of::<f32>());
        }
        let position = self.plan.columns[column].position;
        self.cache.prefetch(segment.pages[position / PAGE], layer, task.kv_head, position % PAGE);
    }

    /// The query heads of one key head, for a few columns of one segment; `next` is what this member does afterwards.
    fn attend_tile(&mut self, layer: usize, task: &Task, next: Option<&Task>) {
        let Task { segment, columns, kv_head } = task.clone();
        let hyper = &self.model.hyper;
        let (head_dim, group) = (hyper.head_stride(), self.group());
        let stride = hyper.qkv_rows();
        let scale = 1.0 / (hyper.head_dim as f32).sqrt();
        let n_queries = columns.len() * group;
        let states = &mut self.private.states[..n_queries];
        for state in states.iter_mut() {
            *state = State::EMPTY;
        }
        let last = self.plan.columns[columns.end - 1].position;
        let pages = &self.plan.segments[segment].pages[..=last / PAGE];
        for (index, &page) in pages.iter().enumerate() {
            // SAFETY: what the cache holds of this head was written by this task or before the last barrier.
            let stored = unsafe { self.cache.read(page, layer, kv_head) };
            let following = match (pages.get(index + 1), next) {
                (Some(&page), _) => self.cache.place(page, layer, kv_head),
                (None, Some(next)) => {
                    self.cache.place(self.plan.segments[next.segment].pages[0], layer, next.kv_head)
                }
                (None, None) => self.cache.place(page, layer, kv_head),
            };
            let mut queries: Vec<Query<'_>> = Vec::with_capacity(n_queries);
            for (i, state) in states.iter_mut().enumerate() {
                let (column, head) = (columns.start + i / group, kv_head * group + i % group);
                let start = column * stride + head * head_dim;
                // SAFETY: queries were written by this task or before the last barrier.
                let q = unsafe { self.work.qkv.read(start..start + head_dim) };
                let seen = self.plan.columns[column].position + 1;
                queries.push(Query { q, visible: seen.saturating_sub(index * PAGE).min(PAGE), state });
            }
            self.kernels.attend(&mut queries, stored, following, head_dim, scale);
        }
        for (i, state) in states.iter().enumerate() {
            let (column, head) = (columns.start + i / group, kv_head * group + i % group);
            if let Some(row) = self.rows[column] {
                set_attended(self.kernels, self.work, hyper, row, head, state);
            }
        }
    }
}

/// Writes the output of one head of a column's row, which is the caller's alone.
fn set_attended(kernels: Kernels, work: &Work, hyper: &Hyper, row: usize, head: usize, state: &State) {
    let (head_dim, stride) = (hyper.head_dim, hyper.head_stride());
    let start = row * hyper.q_width() + head * head_dim;
    // SAFETY: this row's output of this head is the caller's alone.
    let out = unsafe { work.attended.write(start..start + head_dim) };
    if stride == head_dim {
        return kernels.attended(state, out);
    }
    let mut padded = [0.0; MAX_HEAD_DIM];
    kernels.attended(state, &mut padded[..stride]);
    out.copy_from_slice(&padded[..head_dim]);
}
