//! The end of a step: canonical scores, the few tokens among them from which a draw chooses, and what comes back to the host.
//!
//! Rows of scores are computed [`SCORED`] at a time, so that their memory does not grow with the batch. What no search finds,
//! such as a `top_k` above 128, is copied as it is.

use super::{GpuOps, download_words};
use crate::gpu::device::{Arg, Device, Fault, Pointer};
use crate::gpu::upload_words;
use crate::head::{Found, MOST_NAMED, Search};
use crate::kernel::SUMMED;
use crate::sampler::Candidate;
use std::ops::Range;

/// Rows of scores that are computed together.
const SCORED: usize = 128;
/// The most tokens that are found for one head; where more reach the threshold, all scores are copied.
const ROOM: usize = 512;
/// Ids that a block of `score` takes together, of so many tokens.
const IDS_A_BLOCK: usize = 16;
const TOKENS_A_BLOCK: usize = 4;
/// Of a search: `Choice` of kernels.cu.
const CHOICE_WORDS: usize = 9;
/// All tokens are allowed.
const NO_MASK: u32 = u32::MAX;
/// In place of a score that was taken.
const TAKEN: u32 = 0xffc0_5eed;

/// Where scores are, what is asked of them and what is told.
#[derive(Debug)]
pub(in crate::gpu) struct HeadBuffers {
    /// (SCORED, vocab)
    scores: Pointer,
    /// Choices, pairs of rows and tokens, masks, and rows whose sums are wanted.
    asked: Pointer,
    /// Counts, sums, and scores of the pairs.
    told: Pointer,
    /// (ROOM, rows): tokens and their scores.
    found: Pointer,
}

/// The words of each buffer, for so many heads.
fn words(vocab: usize, n_heads: usize) -> [usize; 4] {
    let n = n_heads.min(SCORED);
    let asked = CHOICE_WORDS + 2 * MOST_NAMED + vocab.div_ceil(32) + 1;
    let told = 2 + 1 + vocab.div_ceil(SUMMED) + MOST_NAMED;
    [vocab, asked, told, 2 * ROOM].map(|words| n * words)
}

impl HeadBuffers {
    pub(in crate::gpu) fn new(
        device: &mut dyn Device,
        vocab: usize,
        n_heads: usize,
    ) -> Result<HeadBuffers, Fault> {
        let [scores, asked, told, found] = words(vocab, n_heads).map(|words| device.allocate(4 * words));
        Ok(HeadBuffers { scores: scores?, asked: asked?, told: told?, found: found? })
    }

    pub(in crate::gpu) fn bytes(vocab: usize, n_heads: usize) -> usize {
        words(vocab, n_heads).iter().sum::<usize>() * 4
    }
}

/// What is asked of some rows.
#[derive(Debug, Default)]
struct Asked {
    choices: Vec<u32>,
    /// A row and a token.
    pairs: Vec<u32>,
    masks: Vec<u32>,
    /// Rows whose sums are wanted.
    summed: Vec<u32>,
}

impl Asked {
    fn new(searches: &[Search<'_>], vocab: usize) -> Asked {
        let mut asked = Asked::default();
        for (row, search) in (0u32..).zip(searches) {
            let draw = search.draw;
            asked.pairs.extend(search.named().into_iter().flat_map(|id| [row, id]));
            asked.summed.extend(search.wants_sums().then_some(row));
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
        asked
    }
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
            for (search, found) in of_rows.iter().zip(self.search(of_rows)?) {
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

    /// Searches the first rows of the scores.
    fn search(&mut self, searches: &[Search<'_>]) -> Result<Vec<Found>, Fault> {
        let (n, vocab) = (searches.len(), self.hyper().vocab);
        if n == 0 {
            return Ok(Vec::new());
        }
        let HeadBuffers { scores, asked: at, told, found } = self.buffers.heads;
        let asked = Asked::new(searches, vocab);
        let parts = [&asked.choices, &asked.pairs, &asked.masks, &asked.summed];
        upload_words(self.device, at, parts.into_iter().flatten().copied())?;
        let [_, pairs, masks, summed] = starts(at, parts.map(Vec::len));
        let (n_pairs, n_summed, n_pieces) =
            (asked.pairs.len() / 2, asked.summed.len(), vocab.div_ceil(SUMMED));
        let lens = [2 * n, n_summed * (1 + n_pieces), n_pairs];
        let [counts, sums, taken] = starts(told, lens);
        if n_summed > 0 {
            let args = [scores.into(), summed.into(), sums.into(), vocab.into()];
            self.launch("exp_sums", [n_summed, 1, 1], 256, &args);
        }
        if n_pairs > 0 {
            let args = [scores.into(), pairs.into(), taken.into(), vocab.into(), n_pairs.into()];
            self.launch("take", [n_pairs.div_ceil(256), 1, 1], 256, &args);
        }
        let arrays = [scores, at, masks, counts, found].map(Arg::from);
        let sizes = [vocab, n, ROOM].map(Arg::from);
        self.launch("choose", [n, 1, 1], 256, &[&arrays[..], &sizes].concat());
        self.check()?;
        let words = download_words(self.device, told, lens.iter().sum())?;
        let (counts, words) = words.split_at(lens[0]);
        let (sums, taken) = words.split_at(lens[1]);
        let fits = |&&[count, _]: &&[u32; 2]| count as usize <= ROOM;
        let most = counts.as_chunks::<2>().0.iter().filter(fits).map(|&[count, _]| count).max().unwrap_or(0);
        let tokens = download_words(self.device, found, 2 * n * most as usize)?;
        let (mut sums, mut taken) = (sums.chunks_exact(1 + n_pieces), taken.iter());
        let mut all = Vec::with_capacity(n);
        for (row, (search, &[count, is_broken])) in searches.iter().zip(counts.as_chunks::<2>().0).enumerate()
        {
            let named = search.named();
            let named = named.iter().zip(taken.by_ref()).map(|(&id, &bits)| (id, bits));
            let mut candidates: Vec<Candidate> = named.map(candidate).collect();
            let is_finite = is_broken == 0 && candidates.iter().all(|named| named.score.is_finite());
            candidates.retain(|named| search.counts(named.id));
            if search.has_few() {
                // Beside them nothing may be drawn.
            } else if count as usize <= ROOM {
                let of_row = tokens.as_chunks::<2>().0.iter().skip(row).step_by(n).take(count as usize);
                candidates.extend(of_row.map(|&[id, bits]| candidate((id, bits))));
            } else {
                let row = download_words(self.device, scores.plus(4 * row * vocab), vocab)?;
                let rest = (0..).zip(row).filter(|&(id, bits)| bits != TAKEN && search.counts(id));
                candidates.extend(rest.map(candidate));
            }
            let sums = if search.wants_sums() { sums.next().and_then(<[u32]>::split_first) } else { None };
            let floats = |words: &[u32]| words.iter().map(|&bits| f32::from_bits(bits)).collect();
            let sums = sums.map(|(&largest, pieces)| (f32::from_bits(largest), floats(pieces)));
            all.push(Found { is_finite, candidates, sums });
        }
        Ok(all)
    }
}

fn candidate((id, bits): (u32, u32)) -> Candidate {
    Candidate { id, score: f32::from_bits(bits) }
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

fn download_floats(device: &mut dyn Device, from: Pointer, to: &mut [f32]) -> Result<(), Fault> {
    let words = download_words(device, from, to.len())?;
    to.iter_mut().zip(words).for_each(|(value, bits)| *value = f32::from_bits(bits));
    Ok(())
}
