//! The output head: from final activations to scores, and from scores to a drawn token.
//!
//! The canonical score of a token is the f32 dot product of its row, as the file holds it, with the normed activations, in
//! the order that `kernel/lanes.rs` fixes. The default head computes only those that can matter: `screen` bounds all
//! scores from an int8 copy, `candidates` picks the few that may win, and those are computed canonically.
#![allow(unsafe_code)] // Members write disjoint rows of shared buffers; each block says which.

mod candidates;
mod draw;
mod nucleus;
mod screen;
mod searched;
mod ternary;
mod total;

use crate::LoadError;
use crate::constraint::Rule;
use crate::forward::{HeadColumn, Plan};
use crate::gguf::Hyper;
use crate::kernel::{Cut, Kernels, ROWS, WideActs, prefetch};
use crate::memory::Region;
use crate::model::{FloatRows, Model};
use crate::ops::Ops;
use crate::options::Head;
use crate::pool::Shared;
use crate::profile::Operation;
use crate::request::TokenLogprob;
use crate::sampler::{Candidate, Draw};
use candidates::{Finds, Part};
pub(crate) use draw::draw;
use nucleus::Nuclei;
pub(crate) use screen::{Bits, PIECE_ROWS, Rounded, Screen};
pub(crate) use searched::{CopySums, Found, MOST_NAMED, MOST_NEAR, Near, Search};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use total::Totals;

/// Tokens of a step from which on their activations are rounded to a byte.
const NARROW_FROM: usize = 5;
/// The largest top-k, and the most tokens with bias or penalty, for which screening is tried.
const MOST_SCREENED: usize = 1024;

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// What one head column needs of the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// The tokens that may be among the `k` best.
    Best(usize),
    /// The token that wins with noise.
    Noisy,
    /// The same among those of the nucleus, which the copy's scores decide.
    Nucleus,
    /// The canonical scores of the few tokens that are allowed, and no others.
    Few,
    /// The copy's scores as they are.
    Approximate,
    /// What a device finds in its canonical scores.
    Searched,
    /// All canonical scores.
    All,
}

impl Demand {
    /// `has_copy`: there are int8 rows; `is_on_device`: a device computes what is canonical, for all tokens.
    fn of(draw: Option<&Draw<'_>>, rule: Rule<'_>, head: Head, has_copy: bool, is_on_device: bool) -> Demand {
        let declared = has_copy && matches!(head, Head::Q8 | Head::Q6);
        if declared {
            return Demand::Approximate;
        }
        // Scores alone, for comparing.
        let Some(draw) = draw else { return Demand::All };
        let sampling = draw.sampling;
        if is_on_device && has_copy && searched::suffices(draw, rule) {
            return Demand::Searched;
        }
        if !has_copy || draw.given.is_some() {
            return Demand::All;
        }
        // What log-probabilities are measured against does not depend on the head either.
        let screened = head == Head::Screened || draw.top_logprobs.is_some();
        if matches!(rule, Rule::Few(_)) {
            return if screened { Demand::Few } else { Demand::All };
        }
        if draw.adjustments.len() > MOST_SCREENED {
            return Demand::All;
        }
        match sampling.top_k as usize {
            // What a nucleus is does not depend on the head.
            0 if !draw.is_greedy() && nucleus::is_wanted(sampling) => Demand::Nucleus,
            _ if !screened => Demand::All,
            _ if draw.is_greedy() => Demand::Best(1),
            0 => Demand::Noisy,
            top_k if top_k <= MOST_SCREENED => Demand::Best(top_k),
            _ => Demand::All,
        }
    }
}

/// What is computed for one head column.
#[derive(Debug, Clone, Copy)]
struct Slot {
    head: usize,
    demand: Demand,
    /// Log-probabilities by the copy's sum, of so many best tokens beside the drawn one.
    top: Option<usize>,
}

impl Slot {
    fn new(head: usize, column: &HeadColumn<'_>, of: Head, has_copy: bool, is_on_device: bool) -> Slot {
        let draw = column.draw.as_ref();
        let demand = Demand::of(draw, column.rule(), of, has_copy, is_on_device);
        let by_copy = !matches!(demand, Demand::Approximate | Demand::Searched | Demand::All);
        let top = draw.and_then(|draw| draw.top_logprobs).filter(|_| by_copy).map(usize::from);
        Slot { head, demand, top }
    }

    /// A device, where there is one, has done all that its activations are needed for.
    fn is_elsewhere(&self) -> bool {
        matches!(self.demand, Demand::Searched | Demand::All)
    }

    /// Approximate scores come first, so that they are multiplied together, and all exact ones last.
    fn place(&self) -> u8 {
        match self.demand {
            Demand::Best(_) | Demand::Noisy | Demand::Nucleus | Demand::Approximate => 0,
            Demand::Few => u8::from(self.top.is_none()),
            Demand::Searched => 2,
            Demand::All => 3,
        }
    }
}

/// How often the head did what since loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadCounters {
    /// Tokens drawn from screened scores.
    pub screened: u64,
    /// Rows rescored for them.
    pub candidates: u64,
    /// Tokens drawn from the exact scores of the few that a constraint allowed.
    pub few: u64,
    /// Tokens drawn from what a device found in all exact scores.
    pub searched: u64,
    /// Tokens drawn from all exact scores.
    pub full: u64,
}

impl HeadCounters {
    /// What came on top of an earlier reading.
    pub fn since(self, earlier: HeadCounters) -> HeadCounters {
        HeadCounters {
            screened: self.screened - earlier.screened,
            candidates: self.candidates - earlier.candidates,
            few: self.few - earlier.few,
            searched: self.searched - earlier.searched,
            full: self.full - earlier.full,
        }
    }
}

/// The head's buffers of a step.
#[derive(Debug)]
pub(crate) struct HeadWork {
    head: Head,
    is_on_device: bool,
    screen: Option<Screen>,
    hidden: usize,
    vocab: usize,
    /// (n_heads, hidden): the normed activations; rows in the order of `slots`.
    input: Shared<f32>,
    /// The same as a ternary output matrix wants it.
    ternary: ternary::Input,
    values: Shared<i16>,
    high: Shared<u8>,
    low: Shared<u8>,
    rounded: Shared<Rounded>,
    /// (n_heads, vocab rounded up to groups)
    scores: Region,
    /// One a head and member.
    finds: Vec<Mutex<Finds>>,
    chosen: Vec<Mutex<Vec<Candidate>>>,
    nuclei: Nuclei,
    totals: Totals,
    /// By slot.
    searched: Vec<Found>,
    screened: AtomicU64,
    candidates: AtomicU64,
    few: AtomicU64,
    searched_tokens: AtomicU64,
    full: AtomicU64,
}

/// What a member needs for the head.
#[derive(Debug)]
pub(crate) struct Private {
    row: Vec<f32>,
    hits: Vec<u32>,
    sums: screen::Sums,
    draw: draw::Scratch,
}

impl Private {
    pub(crate) fn new(hyper: &Hyper, n_heads: usize) -> Private {
        let (row, sums) = (vec![0.0; hyper.hidden], screen::Sums::new(n_heads));
        Private { row, hits: Vec::new(), sums, draw: draw::Scratch::new() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where each head of a plan has its rows: those that are screened first and those that want all scores last, so that they
/// stand together.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    order: Vec<Slot>,
    n_screened: usize,
    /// Of the first that wants all scores.
    first_exact: usize,
}

impl Slots {
    /// The heads that want all scores, in the order of their slots.
    pub(crate) fn heads_with_all_scores(&self) -> Vec<usize> {
        self.order[self.first_exact..].iter().map(|slot| slot.head).collect()
    }

    /// Whether any head's scores are computed from its activations, beside what a device does.
    pub(crate) fn needs_activations(&self) -> bool {
        self.order.iter().any(|slot| !slot.is_elsewhere())
    }
}

impl HeadWork {
    /// `is_on_device`: a device computes the canonical scores.
    pub(crate) fn new(
        model: &Model,
        head: Head,
        is_on_device: bool,
        screen: Option<Screen>,
        n_heads: usize,
        n_threads: usize,
    ) -> Result<HeadWork, LoadError> {
        const WHAT: &str = "scores";
        let hyper = &model.hyper;
        let score_bytes = n_heads * hyper.vocab.next_multiple_of(ROWS) * size_of::<f32>();
        let refused = |source| LoadError::Memory { what: WHAT, bytes: score_bytes as u64, source };
        Ok(HeadWork {
            head,
            is_on_device,
            screen,
            hidden: hyper.hidden,
            vocab: hyper.vocab,
            input: Shared::new(n_heads * hyper.hidden, WHAT)?,
            ternary: ternary::Input::new(
                if model.head_matrix.is_some() { n_heads } else { 0 },
                hyper.hidden,
            )?,
            values: Shared::new(n_heads * hyper.hidden, WHAT)?,
            high: Shared::new(n_heads * hyper.hidden, WHAT)?,
            low: Shared::new(n_heads * hyper.hidden, WHAT)?,
            rounded: Shared::new(n_heads, WHAT)?,
            scores: Region::new(score_bytes, true).map_err(refused)?,
            finds: (0..n_heads * n_threads).map(|_| Mutex::new(Finds::default())).collect(),
            chosen: (0..n_heads * n_threads).map(|_| Mutex::new(Vec::new())).collect(),
            nuclei: Nuclei::new(n_heads, n_threads)?,
            totals: Totals::new(n_heads, n_threads, hyper.vocab)?,
            searched: (0..n_heads).map(|_| Found::default()).collect(),
            screened: AtomicU64::new(0),
            candidates: AtomicU64::new(0),
            few: AtomicU64::new(0),
            searched_tokens: AtomicU64::new(0),
            full: AtomicU64::new(0),
        })
    }

    pub(crate) fn counters(&self) -> HeadCounters {
        HeadCounters {
            screened: self.screened.load(Ordering::Relaxed),
            candidates: self.candidates.load(Ordering::Relaxed),
            few: self.few.load(Ordering::Relaxed),
            searched: self.searched_tokens.load(Ordering::Relaxed),
            full: self.full.load(Ordering::Relaxed),
        }
    }

    /// The screening copy.
    pub(crate) fn screen(&self) -> Option<&Screen> {
        self.screen.as_ref()
    }

    /// Bytes of the screening copy.
    pub(crate) fn screen_bytes(&self) -> u64 {
        self.screen.as_ref().map_or(0, Screen::bytes)
    }

    /// Orders the heads of a plan.
    pub(crate) fn slots(&self, plan: &Plan<'_>) -> Slots {
        let has_copy = self.screen.is_some();
        let columns = plan.heads.iter().enumerate();
        let mut order: Vec<Slot> =
            columns.map(|(i, column)| Slot::new(i, column, self.head, has_copy, self.is_on_device)).collect();
        order.sort_by_key(Slot::place);
        let n_screened = order.partition_point(|slot| slot.place() == 0);
        let first_exact = order.partition_point(|slot| slot.place() < 3);
        Slots { order, n_screened, first_exact }
    }

    fn stride(&self) -> usize {
        self.vocab.next_multiple_of(ROWS)
    }

    /// The scores in one slot, all rows, after the step's barrier.
    fn slot_scores(&self, slot: usize) -> &[f32] {
        // SAFETY: written before the last barrier, read-only since.
        unsafe { self.scores.read(slot * self.stride()..(slot + 1) * self.stride()) }
    }

    /// The scores of the `i`-th of [`Slots::heads_with_all_scores`], for one who computes them elsewhere.
    pub(crate) fn exact_scores_mut(&mut self, slots: &Slots, i: usize) -> &mut [f32] {
        let start = (slots.first_exact + i) * self.stride();
        // SAFETY: nobody else has this borrow.
        unsafe { self.scores.write(start..start + self.vocab) }
    }

    /// Width of the activations.
    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// The canonical scores of a head column without a draw; such plans have no others.
    pub(crate) fn scores(&self, head: usize) -> &[f32] {
        &self.slot_scores(head)[..self.vocab]
    }
}

/// Norms the x of one slot's column, and rounds it for screening.
pub(crate) fn set_input(ops: &mut Ops<'_, '_>, slot: usize, x: &[f32]) {
    let work = &ops.work.head;
    let model = ops.model();
    if ops.has_scores && ops.slots.order[slot].is_elsewhere() {
        return;
    }
    if model.head_matrix.is_some() {
        return ternary::set_input(ops, slot, x);
    }
    let range = slot * work.hidden..(slot + 1) * work.hidden;
    // SAFETY: slots are shared out among members.
    let (input, values, high, low, rounded) = unsafe {
        (
            work.input.write(range.clone()),
            work.values.write(range.clone()),
            work.high.write(range.clone()),
            work.low.write(range),
            work.rounded.write(slot..slot + 1),
        )
    };
    ops.kernels.norm(x, &model.output_norm, model.hyper.rms_eps, input);
    if slot < ops.slots.n_screened {
        let narrow = match ops.slots.order[slot] {
            // Where the approximate scores decide, they must not depend on the company, nor on the instruction set.
            Slot { demand: Demand::Approximate, .. } => None,
            Slot { demand: Demand::Nucleus, .. } | Slot { top: Some(_), .. } => Some(nucleus::BOUND),
            // Narrow ones halve the work of many tokens; for few, memory decides, and int16 leaves fewer candidates.
            _ => ops.kernels.narrow_bound().filter(|_| ops.slots.n_screened >= NARROW_FROM),
        };
        let error = &mut ops.private.head.row;
        rounded[0] = Screen::round(ops.kernels, input, narrow, values, high, low, error);
    }
}

/// Which head is in a slot.
pub(crate) fn head_of(ops: &Ops<'_, '_>, slot: usize) -> usize {
    ops.slots.order[slot].head
}

/// Scores for all heads of the plan, each member a part of the vocabulary; the caller waits afterwards.
pub(crate) fn scores(ops: &mut Ops<'_, '_>) {
    exact_scores(ops);
    few_scores(ops);
    if ops.slots.n_screened > 0 {
        let rows = approximate_scores(ops);
        total::find(ops, &rows);
        nucleus::find(ops, &rows);
        bound_scores(ops, rows.clone());
        ops.end(Operation::Head);
        rescore(ops, rows);
    }
}

/// All canonical scores of the slots that want them.
fn exact_scores(ops: &mut Ops<'_, '_>) {
    let work = &ops.work.head;
    let (first_slot, n_slots) = (ops.slots.first_exact, ops.slots.order.len());
    if first_slot == n_slots || ops.has_scores {
        return;
    }
    if let Some(matrix) = &ops.model().head_matrix {
        return ternary::scores(ops, matrix);
    }
    let head = ops.model().head();
    // SAFETY: inputs were written before the last barrier.
    let input = unsafe { work.input.read(first_slot * work.hidden..n_slots * work.hidden) };
    let (kernels, stride) = (ops.kernels, work.stride());
    for block in ops.member.share(work.vocab.div_ceil(ROWS)) {
        let first = block * ROWS;
        let last = work.vocab.min(first + ROWS);
        if last - first == ROWS
            && let Some(halves) = head.halves(first..last)
        {
            let out = work.scores.element(first_slot * stride + first);
            // SAFETY: `scores` holds (n_heads, stride), and these rows are this member's.
            unsafe { kernels.dots_f16(halves, input, out, stride, ops.private.scratch()) };
            continue;
        }
        for id in first..last {
            for (i, x) in input.chunks_exact(work.hidden).enumerate() {
                let score = exact_score(kernels, &head, id, x, &mut ops.private.head.row);
                // SAFETY: in bounds, and this row is this member's.
                unsafe { work.scores.element::<f32>((first_slot + i) * stride + id).write(score) };
            }
        }
    }
}

/// Canonical scores of allowed tokens, where they are few: each member some of them.
fn few_scores(ops: &mut Ops<'_, '_>) {
    let mut scratch = std::mem::take(&mut ops.private.head.row);
    for slot in 0..ops.slots.first_exact {
        let Slot { head, demand: Demand::Few, .. } = ops.slots.order[slot] else { continue };
        let Rule::Few(tokens) = ops.plan.heads[head].rule() else { continue };
        set_chosen(ops, slot, &tokens[ops.member.share(tokens.len())], &mut scratch);
    }
    ops.private.head.row = scratch;
}

/// Makes these tokens, with their canonical scores, this member's choice for one slot.
fn set_chosen(ops: &Ops<'_, '_>, slot: usize, tokens: &[u32], scratch: &mut [f32]) {
    *lock(&ops.work.head.chosen[slot * ops.member.count() + ops.member.index]) =
        scored(ops, slot, tokens, scratch);
}

/// These tokens with their canonical scores for one slot.
fn scored(ops: &Ops<'_, '_>, slot: usize, tokens: &[u32], scratch: &mut [f32]) -> Vec<Candidate> {
    let work = &ops.work.head;
    // SAFETY: inputs were written before the last barrier.
    let x = unsafe { work.input.read(slot * work.hidden..(slot + 1) * work.hidden) };
    let head = ops.model().head();
    let ask = |at: usize| {
        // Rows far apart come from memory: the next ones are on their way meanwhile.
        if let Some(halves) = tokens.get(at).and_then(|&id| head.halves(id as usize..id as usize + 1)) {
            prefetch(halves.as_ptr(), size_of_val(halves));
        }
    };
    let candidate = |(at, &id): (usize, &u32)| {
        ask(at + 1);
        Candidate { id, score: exact_score(ops.kernels, &head, id as usize, x, scratch) }
    };
    tokens.iter().enumerate().map(candidate).collect()
}

/// The canonical score of one token.
fn exact_score(kernels: Kernels, rows: &FloatRows<'_>, id: usize, x: &[f32], scratch: &mut [f32]) -> f32 {
    match rows.halves(id..id + 1) {
        Some(halves) => kernels.dot_f16(halves, x),
        None => {
            rows.read(id, scratch);
            kernels.dot_f32(scratch, x)
        }
    }
}

/// Approximate scores of the screened slots for this member's rows, which are returned.
fn approximate_scores(ops: &mut Ops<'_, '_>) -> Range<usize> {
    let work = &ops.work.head;
    let screen = work.screen.as_ref().expect("because slots are screened only if there is a screen");
    let (n, stride) = (ops.slots.n_screened, work.stride());
    // SAFETY: inputs were written before the last barrier.
    let rounded = unsafe { work.rounded.read(0..n) };
    // Slots of one width that follow one another are multiplied together.
    let mut runs: Vec<(Range<usize>, WideActs<'_>)> = Vec::new();
    for run in rounded.chunk_by(|a, b| a.narrow == b.narrow) {
        let first = runs.last().map_or(0, |(slots, _)| slots.end);
        let slots = first..first + run.len();
        let range = slots.start * work.hidden..slots.end * work.hidden;
        // SAFETY: as above.
        let acts = unsafe {
            WideActs {
                width: work.hidden,
                stride: work.hidden,
                values: work.values.read(range.clone()),
                high: work.high.read(range.clone()),
                low: work.low.read(range),
                narrow: run[0].narrow == 1,
            }
        };
        runs.push((slots, acts));
    }
    let groups = screen.share(ops.member);
    let sums = &mut ops.private.head.sums;
    for first in groups.clone().step_by(2) {
        let together = first..groups.end.min(first + 2);
        for (slots, acts) in &runs {
            let rounded = &rounded[slots.clone()];
            screen.approximate(ops.kernels, together.clone(), acts, rounded, sums, |i, group| {
                let start = (slots.start + i) * stride + group * ROWS;
                // SAFETY: `scores` holds whole groups, these rows are this member's, and nobody keeps them.
                unsafe { work.scores.write(start..start + ROWS) }
            });
        }
    }
    groups.start * ROWS..groups.end * ROWS
}

/// One slot's part for this member; it reads its own rows only.
fn part<'a>(ops: &'a Ops<'_, '_>, slot: usize, rows: &Range<usize>) -> Option<(Part<'a>, Demand)> {
    let work = &ops.work.head;
    let Slot { head, demand, .. } = ops.slots.order[slot];
    let draw = ops.plan.heads[head].draw.as_ref()?;
    let screen = work.screen.as_ref()?;
    let scores = slot * work.stride() + rows.start..slot * work.stride() + rows.end;
    // SAFETY: inputs were written before the last barrier, and these scores by this member itself.
    let (rounded, scores) = unsafe { (&work.rounded.read(slot..slot + 1)[0], work.scores.read(scores)) };
    let (kernels, vocab, first_row) = (ops.kernels, work.vocab, rows.start);
    let rule = ops.plan.heads[head].rule();
    let cut = if demand == Demand::Nucleus { work.nuclei.cut(slot) } else { Cut::NONE };
    let adjusted = &draw.adjustments;
    Some((Part { kernels, screen, first_row, scores, rounded, draw, adjusted, rule, cut, vocab }, demand))
}

/// What bounds the winners' scores from below: the exact scores of this member's most promising rows.
fn bound_scores(ops: &mut Ops<'_, '_>, rows: Range<usize>) {
    let mut hits = std::mem::take(&mut ops.private.head.hits);
    let mut scratch = std::mem::take(&mut ops.private.head.row);
    let count = ops.member.count();
    for slot in 0..ops.slots.n_screened {
        let Some((part, demand)) = part(ops, slot, &rows) else { continue };
        let work = &ops.work.head;
        // SAFETY: inputs were written before the last barrier.
        let x = unsafe { work.input.read(slot * work.hidden..(slot + 1) * work.hidden) };
        let head = ops.model().head();
        let exact = |id: u32| exact_score(ops.kernels, &head, id as usize, x, &mut scratch);
        let finds = match demand {
            Demand::Best(k) => {
                // The best are spread over the members' rows, more or less evenly: a bound needs `k` in all.
                let share = k.min(2 * k.div_ceil(count) + 4);
                let ids = part.best_lower(share, &mut hits);
                Finds::of_scores(ids.into_iter().map(exact))
            }
            Demand::Noisy | Demand::Nucleus => part.best_noisy(&mut hits, exact),
            Demand::Few | Demand::Approximate | Demand::Searched | Demand::All => Finds::default(),
        };
        *lock(&work.finds[slot * count + ops.member.index]) = finds;
    }
    ops.private.head.hits = hits;
    ops.private.head.row = scratch;
}

/// Canonical scores of this member's rows that may win.
fn rescore(ops: &mut Ops<'_, '_>, rows: Range<usize>) {
    let (count, index) = (ops.member.count(), ops.member.index);
    let mut hits = std::mem::take(&mut ops.private.head.hits);
    let mut scratch = std::mem::take(&mut ops.private.head.row);
    for slot in 0..ops.slots.n_screened {
        let Some((part, demand)) = part(ops, slot, &rows) else { continue };
        let k = match demand {
            Demand::Best(k) => k,
            Demand::Noisy | Demand::Nucleus => 1,
            Demand::Few | Demand::Approximate | Demand::Searched | Demand::All => continue,
        };
        let work = &ops.work.head;
        let finds = &work.finds[slot * count..(slot + 1) * count];
        let all: Vec<f64> = finds.iter().flat_map(|finds| lock(finds).lower.clone()).collect();
        let threshold = candidates::threshold(all.into_iter(), k);
        if matches!(demand, Demand::Noisy | Demand::Nucleus) {
            hits.clear();
            hits.extend(lock(&finds[index]).possible(threshold));
        } else {
            part.reaching(threshold, &mut hits);
        }
        let adjusted = part.draw.adjustments.iter().map(|&(id, _)| id);
        let adjusted = adjusted.filter(|&id| rows.contains(&(id as usize)) && part.rule.allows(id));
        hits.extend(adjusted.filter(|&id| demand != Demand::Nucleus || part.holds(id)));
        set_chosen(ops, slot, &hits, &mut scratch);
    }
    ops.private.head.hits = hits;
    ops.private.head.row = scratch;
}
