//! Which tokens can win, by the bounds of their approximate scores: the few whose exact scores are worth computing.
//!
//! For the best k: the tokens with the best lower bounds are scored exactly, and then every token whose upper bound reaches
//! the k-th best of those scores: half as far down as the k-th best lower bound would reach. For a draw among all tokens: the same
//! with each token's own noise added. Tokens with a bias or penalty are always taken in and never raise the threshold.

use super::screen::{Rounded, Screen};
use crate::constraint::Rule;
use crate::kernel::{Bounds, Kernels};
use crate::math;
use crate::sampler::Draw;
use std::ops::Range;

/// Rows scanned at a time; the threshold rises in between.
const CHUNK: usize = 2048;
/// Bins of the noise table.
const BINS: usize = 4096;

/// What a member found in its part of the vocabulary for one head.
#[derive(Debug, Default)]
pub(crate) struct Finds {
    /// Exact scores of the tokens with the best lower bounds, or a lower bound with noise.
    pub(crate) lower: Vec<f64>,
    /// Tokens that may win, with their upper bounds; only filled where the scan already knows them.
    possible: Vec<(u32, f64)>,
}

/// One head's approximate scores of a member's rows.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) kernels: Kernels,
    pub(crate) screen: &'a Screen,
    /// The rows that this member looks at, and their scores.
    pub(crate) first_row: usize,
    pub(crate) scores: &'a [f32],
    pub(crate) rounded: &'a Rounded,
    pub(crate) draw: &'a Draw<'a>,
    pub(crate) rule: Rule<'a>,
    pub(crate) vocab: usize,
}

impl Part<'_> {
    fn counts(&self, id: u32) -> bool {
        (id as usize) < self.vocab
            && self.rule.allows(id)
            && self.draw.adjustments.binary_search_by_key(&id, |&(id, _)| id).is_err()
    }

    fn rows(&self) -> Range<usize> {
        self.first_row..self.first_row + self.scores.len()
    }

    fn bounds(&self, rows: Range<usize>) -> Bounds<'_> {
        let scores = &self.scores[rows.start - self.first_row..rows.end - self.first_row];
        self.screen.bounds(rows, scores, self.rounded)
    }

    /// The rows with the `k` best lower bounds.
    pub(crate) fn best_lower(&self, k: usize, hits: &mut Vec<u32>) -> Vec<u32> {
        let mut lower: Vec<(f32, u32)> = Vec::with_capacity(2 * k + CHUNK);
        let mut threshold = f32::NEG_INFINITY;
        let rows = self.rows();
        let mut start = rows.start;
        while start < rows.end {
            // A first small chunk finds a threshold that spares most of the others.
            let end = rows.end.min(start + if start == rows.start { CHUNK / 16 } else { CHUNK });
            let bounds = self.bounds(start..end);
            hits.clear();
            self.kernels.reach(&bounds, -1.0, threshold, hits);
            for &hit in &*hits {
                let id = start as u32 + hit;
                if self.counts(id) {
                    lower.push((bounds.scores[hit as usize] - bounds.error(hit as usize), id));
                }
            }
            if lower.len() >= k {
                lower.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0));
                lower.truncate(k);
                threshold = lower[k - 1].0;
            }
            start = end;
        }
        lower.into_iter().map(|(_, id)| id).collect()
    }

    /// Tokens whose upper bound reaches `threshold`.
    pub(crate) fn reaching(&self, threshold: f64, hits: &mut Vec<u32>) {
        let rows = self.rows();
        let bounds = self.bounds(rows.clone());
        hits.clear();
        self.kernels.reach(&bounds, 1.0, threshold as f32, hits);
        hits.iter_mut().for_each(|hit| *hit += rows.start as u32);
        hits.retain(|&id| self.counts(id));
    }

    /// The best lower bound with noise, and the tokens that may win against it.
    pub(crate) fn best_noisy(&self, noise: &NoiseTable) -> Finds {
        let temperature = f64::from(self.draw.sampling.temperature);
        let rows = self.rows();
        let bounds = self.bounds(rows.clone());
        let mut best = f64::NEG_INFINITY;
        let mut possible = Vec::new();
        for four in rows.clone().step_by(4) {
            let words = self.draw.words(four as u32);
            for id in four..(four + 4).min(rows.end).min(self.vocab) {
                let row = id - rows.start;
                let error = f64::from(bounds.error(row));
                let score = f64::from(bounds.scores[row]);
                let highest = (score + error) / temperature;
                if highest + noise.most(words[id % 4]) < best || !self.counts(id as u32) {
                    continue;
                }
                let gumbel = self.draw.gumbel(id as u32);
                possible.push((id as u32, highest + gumbel));
                best = best.max((score - error) / temperature + gumbel);
            }
        }
        possible.retain(|&(_, upper)| upper >= best);
        Finds { lower: vec![best], possible }
    }
}

impl Finds {
    /// Exact scores of some tokens.
    pub(crate) fn of_scores(scores: impl Iterator<Item = f32>) -> Finds {
        Finds { lower: scores.map(f64::from).collect(), possible: Vec::new() }
    }

    /// The tokens found by [`Part::best_noisy`] that reach `threshold`.
    pub(crate) fn possible(&self, threshold: f64) -> impl Iterator<Item = u32> + '_ {
        self.possible.iter().filter(move |&&(_, upper)| upper >= threshold).map(|&(id, _)| id)
    }
}

/// The k-th best of all members' scores or lower bounds; negative infinity if there are fewer.
pub(crate) fn threshold(lower: impl Iterator<Item = f64>, k: usize) -> f64 {
    let mut all: Vec<f64> = lower.collect();
    if all.len() < k {
        return f64::NEG_INFINITY;
    }
    *all.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Upper bounds of the noise by the leading bits of its random word: cheap, and enough to rule most tokens out.
#[derive(Debug)]
pub(crate) struct NoiseTable(Vec<f64>);

impl NoiseTable {
    pub(crate) fn new() -> NoiseTable {
        let most = |bin: usize| -math::ln(-math::ln((bin + 1) as f64 / BINS as f64)) + 1e-9;
        NoiseTable((0..BINS).map(|bin| if bin + 1 == BINS { f64::INFINITY } else { most(bin) }).collect())
    }

    fn most(&self, word: u32) -> f64 {
        self.0[(word >> 20) as usize]
    }
}
