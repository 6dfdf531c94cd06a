//! The end of a step: canonical scores, the few tokens among them from which a draw chooses, and what comes back to the host.
//!
//! Rows of scores are computed [`SCORED`] at a time, so that their memory does not grow with the batch. What no search finds,
//! such as a `top_k` above 128, is copied as it is. For log-probabilities the scores of the int8 copy are computed, too.

use super::{GpuOps, download_words};
use crate::gpu::device::{Arg, Device, Fault, Pointer};
use crate::gpu::upload_words;
use crate::head::{CopySums, Found, MOST_NAMED, MOST_NEAR, Near, PIECE_ROWS, Screen, Search};
use crate::kernel::{ROWS, SUMMED};
use crate::sampler::Candidate;
use std::ops::Range;

/// Rows of scores that are computed together.
const SCORED: usize = 128;
/// The most tokens that are found for one choice; where more reach the threshold, all scores are copied.
const ROOM: usize = 512;
/// Ids that a block of `score` takes together, of so many tokens.
const IDS_A_BLOCK: usize = 16;
const TOKENS_A_BLOCK: usize = 4;
/// Groups of ids that a block of `screen` takes together, of so many tokens.
const GROUPS_A_BLOCK: usize = 8;
const SCREENED_A_BLOCK: usize = 32;
/// Words of a token that is near the best one.
const NEAR_WORDS: usize = 3;
/// Of a search: `Choice` of kernels/heads.cuh.
const CHOICE_WORDS: usize = 10;
/// All tokens are allowed.
const NO_MASK: u32 = u32::MAX;
/// In place of a score that was taken.
const TAKEN: u32 = 0xffc0_5eed;

/// Where scores are, what is asked of them and what is told.
#[derive(Debug)]
pub(in crate::gpu) struct HeadBuffers {
    /// (SCORED, vocab)
    scores: Pointer,
    /// The same by the copy.
    about: Pointer,
    /// Activations for the copy, (SCORED, hidden), and their steps.
    high: Pointer,
    low: Pointer,
    steps: Pointer,
    /// Choices, pairs of rows and tokens, masks, and rows whose sums are wanted.
    asked: Pointer,
    /// Counts, sums, and scores of the pairs.
    told: Pointer,
    /// (ROOM, choices): tokens and their scores.
    found: Pointer,
    /// (MOST_NEAR · pieces, rows): tokens and both scores.
    near: Pointer,
}

/// The bytes of each buffer, for so many heads.
fn bytes(vocab: usize, hidden: usize, n_heads: usize) -> [usize; 9] {
    let n = n_heads.min(SCORED);
    let (pieces, sums) = (vocab.div_ceil(PIECE_ROWS), vocab.div_ceil(SUMMED));
    let asked = 2 * CHOICE_WORDS + 2 * MOST_NAMED + vocab.div_ceil(32) + 2;
    let told = 4 + 1 + sums + MOST_NAMED + 2 * pieces + 1;
    let (scores, near) = (4 * n * vocab, 4 * n * NEAR_WORDS * MOST_NEAR * pieces);
    let acts = n.next_multiple_of(SCREENED_A_BLOCK) * hidden;
    [scores, scores, acts, acts, 4 * n, 4 * n * asked, 4 * n * told, 4 * n * 2 * 2 * ROOM, near]
}

impl HeadBuffers {
    pub(in crate::gpu) fn new(
        device: &mut dyn Device,
        vocab: usize,
        hidden: usize,
        n_heads: usize,
    ) -> Result<HeadBuffers, Fault> {
        let [scores, about, high, low, steps, asked, told, found, near] =
            bytes(vocab, hidden, n_heads).map(|bytes| device.allocate(bytes));
        Ok(HeadBuffers {
            scores: scores?,
            about: about?,
            high: high?,
            low: low?,
            steps: steps?,
            asked: asked?,
            told: told?,
            found: found?,
            near: near?,
        })
    }

    pub(in crate::gpu) fn bytes(vocab: usize, hidden: usize, n_heads: usize) -> usize {
        bytes(vocab, hidden, n_heads).iter().sum()
    }
}

/// What is asked of some rows.
#[derive(Debug, Default)]
struct Asked {
    choices: Vec<u32>,
    /// A row and a token.
    pairs: Vec<u32>,
    masks: Vec<u32>,
    /// Rows whose sums are wanted, and those whose sums by the copy are.
    summed: Vec<u32>,
    copied: Vec<u32>,
}

impl Asked {
    fn new(searches: &[Search<'_>], vocab: usize) -> Asked {
        let mut asked = Asked::default();
        for (row, search) in (0u32..).zip(searches) {
            let draw = search.draw;
            asked.pairs.extend(search.named().into_iter().flat_map(|id| [row, id]));
            asked.summed.extend(search.wants_sums().then_some(row));
            asked.copied.extend(search.wants_copy_sums().then_some(row));
            let mut mask = NO_MASK;
            if let Some(rule) = search.mask() {
                mask = asked.masks.len() as u32;
                let allowed = |id: usize| id < vocab && rule.allows(id as u32);
                let word =
                    |first: usize| (0..32).fold(0, |word, i| word | u32::from(allowed(first + i)) << i);
                asked.masks.extend((0..vocab).step_by(32).map(word));
            }
            let temperature = draw.sampling.temperature;
            asked.choices.extend([
                row,
                search.most() as u32,
                u32::from(search.is_noisy()),
                temperature.to_bits(),
                (1.0 / temperature).to_bits(),
                draw.seed as u32,
                (draw.seed >> 32) as u32,
                draw.choice,
                draw.position,
                mask,
            ]);
        }
        // What is reported is the best of all, whatever may be drawn.
        for (row, search) in (0u32..).zip(searches) {
            if let Some(most) = search.most_reported().filter(|_| search.wants_copy_sums()) {
                asked.choices.extend([row, most as u32, 0, 0, 0, 0, 0, 0, 0, NO_MASK]);
            }
        }
        asked
    }
}

/// What the device told of some choices.
struct Told {
    /// How many were found for each, and whether its row has scores that are no numbers.
    counts: Vec<[u32; 2]>,
    /// (found, choices): tokens and scores.
    found: Vec<u32>,
}

impl GpuOps<'_> {
    /// Rows of x that the CPU scores from, what is found in the scores of other heads, and all scores of the rest.
    pub(super) fn fetch_heads(&mut self) -> Result<(), Fault> {
        let (hidden, vocab, eps) = {
            let hyper = self.hyper();
            (hyper.hidden, hyper.vocab, hyper.rms_eps)
        };
        let (plan, buffers, rows_of_x) = (self.plan, self.buffers, self.rows_of_x());
        let n_heads = plan.heads.len();
        let slots = self.cpu.work.head.slots(plan);
        let searches = self.cpu.work.head.searches(plan, &slots);
        let whole = slots.heads_with_all_scores();
        let wanted: Vec<u32> =
            searches.iter().map(|search| search.head).chain(whole).map(|head| head as u32).collect();
        if !wanted.is_empty() {
            upload_words(self.device, self.words.wanted, wanted.iter().copied())?;
            let [normed, input] = buffers.input;
            let norm = self.weights.output_norm;
            let args = [rows_of_x.into(), norm.into(), eps.into(), hidden.into(), normed.into()];
            self.launch("norm_rows", [n_heads, 1, 1], 256, &args);
            self.keep_rows(normed, input, self.words.wanted, wanted.len());
        }
        for first in (0..wanted.len()).step_by(SCORED) {
            let rows = first..wanted.len().min(first + SCORED);
            self.score(rows.clone());
            let sought = searches.len().clamp(rows.start, rows.end);
            let of_rows = &searches[rows.start.min(searches.len())..sought.min(searches.len())];
            for (search, found) in of_rows.iter().zip(self.search(of_rows, first)?) {
                self.cpu.work.head.set_found(search, found);
            }
            self.check()?;
            for row in sought..rows.end {
                let scores = self.cpu.work.head.exact_scores_mut(&slots, row - searches.len());
                download_floats(self.device, buffers.heads.scores.plus(4 * (row - first) * vocab), scores)?;
            }
        }
        self.check()?;
        if slots.needs_activations() {
            download_floats(self.device, rows_of_x, self.cpu.work.rows_of_x(n_heads))?;
        }
        Ok(())
    }

    /// What went wrong so far.
    fn check(&mut self) -> Result<(), Fault> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// The scores of some rows of the input.
    fn score(&mut self, rows: Range<usize>) {
        let (hidden, vocab) = (self.hyper().hidden, self.hyper().vocab);
        let input = self.buffers.input[1].plus(4 * rows.start * hidden);
        let blocks = [rows.len().div_ceil(TOKENS_A_BLOCK), vocab.div_ceil(IDS_A_BLOCK), 1];
        let arrays = [self.weights.head, input, self.buffers.heads.scores].map(Arg::from);
        let sizes = [hidden, vocab, rows.len()].map(Arg::from);
        self.launch("score", blocks, 256, &[&arrays[..], &sizes].concat());
    }

    /// The scores of some rows, counted from `first` of the input, by the copy, and what log-probabilities need of them.
    fn score_by_copy(&mut self, first: usize, rows: Pointer, n: usize, sums: Pointer, counts: Pointer) {
        let (hidden, vocab, buffers) = (self.hyper().hidden, self.hyper().vocab, self.buffers);
        let HeadBuffers { scores, about, high, low, steps, near, .. } = buffers.heads;
        let input = buffers.input[1].plus(4 * first * hidden);
        let most = Screen::largest_activation(hidden);
        let args =
            [input.into(), rows.into(), hidden.into(), most.into(), high.into(), low.into(), steps.into()];
        self.launch("round_wide", [n, 1, 1], 256, &args);
        let [lines, scales] = self.weights.copy;
        let arrays = [lines, scales, high, low, steps, about].map(Arg::from);
        let sizes = [hidden, vocab, n].map(Arg::from);
        let blocks = [n.div_ceil(SCREENED_A_BLOCK), vocab.div_ceil(ROWS).div_ceil(GROUPS_A_BLOCK), 1];
        self.launch("screen", blocks, 256, &[&arrays[..], &sizes].concat());
        self.launch("piece_sums", [n, 1, 1], 256, &[about.into(), sums.into(), vocab.into()]);
        let arrays = [about, scores, rows, sums, counts, near].map(Arg::from);
        self.launch("near", [n, 1, 1], 256, &[&arrays[..], &[vocab, n].map(Arg::from)].concat());
    }

    /// Searches the first rows of the scores, which are those of the input from `first` on.
    fn search(&mut self, searches: &[Search<'_>], first: usize) -> Result<Vec<Found>, Fault> {
        if searches.is_empty() {
            return Ok(Vec::new());
        }
        let (vocab, pieces) = (self.hyper().vocab, self.hyper().vocab.div_ceil(SUMMED));
        let HeadBuffers { scores, asked: at, told, found, near, .. } = self.buffers.heads;
        let asked = Asked::new(searches, vocab);
        let parts = [&asked.choices, &asked.pairs, &asked.masks, &asked.summed, &asked.copied];
        upload_words(self.device, at, parts.into_iter().flatten().copied())?;
        let [choices, pairs, masks, summed, copied] = starts(at, parts.map(Vec::len));
        let n_choices = asked.choices.len() / CHOICE_WORDS;
        let [n_pairs, n_summed, n_copied] = [asked.pairs.len() / 2, asked.summed.len(), asked.copied.len()];
        let lens = [2 * n_choices, n_summed * (1 + pieces), n_pairs, 2 * n_copied * pieces, n_copied];
        let [counts, sums, taken, copy_sums, near_counts] = starts(told, lens);
        // What is taken is no score any more.
        if n_summed > 0 {
            let args = [scores.into(), summed.into(), sums.into(), vocab.into()];
            self.launch("exp_sums", [n_summed, 1, 1], 256, &args);
        }
        if n_copied > 0 {
            self.score_by_copy(first, copied, n_copied, copy_sums, near_counts);
        }
        if n_pairs > 0 {
            let args = [scores.into(), pairs.into(), taken.into(), vocab.into(), n_pairs.into()];
            self.launch("take", [n_pairs.div_ceil(256), 1, 1], 256, &args);
        }
        let arrays = [scores, choices, masks, counts, found].map(Arg::from);
        let sizes = [vocab, n_choices, ROOM].map(Arg::from);
        self.launch("choose", [n_choices, 1, 1], 256, &[&arrays[..], &sizes].concat());
        self.check()?;

        let words = download_words(self.device, told, lens.iter().sum())?;
        let [counts, sums, taken, copy_sums, near_counts] = split(&words, lens);
        let counts: Vec<[u32; 2]> = counts.as_chunks::<2>().0.to_vec();
        let fits = counts.iter().map(|&[count, _]| count as usize).filter(|&count| count <= ROOM);
        let most = fits.max().unwrap_or(0);
        let told = Told { found: download_words(self.device, found, 2 * n_choices * most)?, counts };
        let most_near = near_counts.iter().copied().max().unwrap_or(0) as usize;
        let near = download_words(self.device, near, NEAR_WORDS * n_copied * most_near)?;

        let (mut sums, mut taken) = (sums.chunks_exact(1 + pieces), taken.iter());
        let (mut copy_sums, mut copies) = (copy_sums.chunks_exact(2 * pieces), 0..n_copied);
        let mut next_top = searches.len();
        let mut all = Vec::with_capacity(searches.len());
        for (row, search) in searches.iter().enumerate() {
            let named = search.named();
            let named = named.iter().zip(taken.by_ref()).map(|(&id, &bits)| candidate((id, bits)));
            let named: Vec<Candidate> = named.collect();
            let is_finite = told.counts[row][1] == 0 && named.iter().all(|named| named.score.is_finite());
            let mut found = Found { is_finite, ..Found::default() };
            // Beside a few that are allowed nothing may be drawn.
            if !search.has_few() {
                found.candidates = self.tokens_of(&told, row, row, |id| search.allows(id))?;
            }
            found.candidates.extend(named.iter().filter(|named| search.allows(named.id)));
            if search.wants_sums() {
                let split = sums.next().and_then(<[u32]>::split_first);
                found.sums = split.map(|(&largest, pieces)| (f32::from_bits(largest), floats(pieces)));
            }
            if let Some((copy, sums)) =
                search.wants_copy_sums().then(|| copies.next().zip(copy_sums.next())).flatten()
            {
                let n = near_counts[copy] as usize;
                let of_copy = near.as_chunks::<NEAR_WORDS>().0.iter().skip(copy).step_by(n_copied).take(n);
                let mut near: Vec<[u32; NEAR_WORDS]> = of_copy.copied().collect();
                near.sort_unstable_by_key(|&[id, ..]| id);
                let both = |[_, about, exact]: [u32; NEAR_WORDS]| Near {
                    about: f32::from_bits(about),
                    exact: f32::from_bits(exact),
                };
                let pieces = floats(sums).as_chunks::<2>().0.to_vec();
                found.copy_sums = Some(CopySums { pieces, near: near.into_iter().map(both).collect() });
                if search.most_reported().is_some() {
                    found.top = self.tokens_of(&told, next_top, row, |_| true)?;
                    found.top.extend(&named);
                    next_top += 1;
                }
            }
            all.push(found);
        }
        Ok(all)
    }

    /// The tokens that were found for a choice; where they are too many, all of its row that are allowed.
    fn tokens_of(
        &mut self,
        told: &Told,
        choice: usize,
        row: usize,
        allows: impl Fn(u32) -> bool,
    ) -> Result<Vec<Candidate>, Fault> {
        let n = told.counts[choice][0] as usize;
        if n <= ROOM {
            let pairs = told.found.as_chunks::<2>().0.iter();
            let of_choice = pairs.skip(choice).step_by(told.counts.len()).take(n);
            return Ok(of_choice.map(|&[id, bits]| candidate((id, bits))).collect());
        }
        let vocab = self.hyper().vocab;
        let row = download_words(self.device, self.buffers.heads.scores.plus(4 * row * vocab), vocab)?;
        Ok((0..).zip(row).filter(|&(id, bits)| bits != TAKEN && allows(id)).map(candidate).collect())
    }
}

fn candidate((id, bits): (u32, u32)) -> Candidate {
    Candidate { id, score: f32::from_bits(bits) }
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&bits| f32::from_bits(bits)).collect()
}

/// Where parts of so many words begin that follow one another.
fn starts<const N: usize>(first: Pointer, lens: [usize; N]) -> [Pointer; N] {
    let mut next = first;
    lens.map(|len| {
        let start = next;
        next = start.plus(4 * len);
        start
    })
}

/// These parts.
fn split<const N: usize>(mut words: &[u32], lens: [usize; N]) -> [&[u32]; N] {
    lens.map(|len| {
        let (part, rest) = words.split_at(len);
        words = rest;
        part
    })
}

fn download_floats(device: &mut dyn Device, from: Pointer, to: &mut [f32]) -> Result<(), Fault> {
    let words = download_words(device, from, to.len())?;
    to.iter_mut().zip(words).for_each(|(value, bits)| *value = f32::from_bits(bits));
    Ok(())
}
