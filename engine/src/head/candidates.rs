//! Which tokens can win, by the bounds of their approximate scores: the few whose exact scores are worth computing.
//!
//! For the best k: the tokens with the best lower bounds are scored exactly, and then every token whose upper bound reaches
//! the k-th best of those scores: half as far down as the k-th best lower bound would reach. For a draw among all tokens: the
//! same with each token's own noise added, and within a nucleus where one is wanted. Tokens with a bias or penalty are
//! always taken in and never raise the threshold.

use super::screen::{Rounded, Screen};
use crate::constraint::Rule;
use crate::kernel::{Bounds, Cut, Kernels, NoisyJob};
use crate::sampler::Draw;
use std::ops::Range;

/// Rows scanned at a time; the threshold rises in between.
const CHUNK: usize = 2048;

/// What a member found in its part of the vocabulary for one head.
#[derive(Debug, Default)]
pub(crate) struct Finds {
    /// Exact scores of the tokens with the best lower bounds, or one with noise.
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
    /// Tokens with a bias or penalty, which the bounds do not know.
    pub(crate) adjusted: &'a [(u32, f32)],
    pub(crate) rule: Rule<'a>,
    /// The nucleus, if the draw is from one.
    pub(crate) cut: Cut,
    pub(crate) vocab: usize,
}

impl Part<'_> {
    fn counts(&self, id: u32) -> bool {
        (id as usize) < self.vocab
            && self.rule.allows(id)
            && self.adjusted.binary_search_by_key(&id, |&(id, _)| id).is_err()
    }

    /// Whether a token of these rows is in the nucleus.
    pub(crate) fn holds(&self, id: u32) -> bool {
        self.cut.holds(self.scores[id as usize - self.first_row])
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

    /// The best exact score with noise that could be found at little cost, and the tokens that may win against it.
    ///
    /// Bounds lie several units apart where activations are narrow, so a threshold of lower bounds would let thousands pass.
    /// But the middle between them is nearly right: whenever a token has the best middle so far, its exact score is computed.
    pub(crate) fn best_noisy(&self, hits: &mut Vec<u32>, mut exact: impl FnMut(u32) -> f32) -> Finds {
        let temperature = f64::from(self.draw.sampling.temperature);
        let (mut best, mut middle) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        let mut possible = Vec::new();
        let mut score = |id: u32, gumbel: f64, best: &mut f64, possible: &mut Vec<(u32, f64)>| {
            let score = f64::from(exact(id));
            if score.is_finite() {
                *best = best.max(score / temperature + gumbel);
            } else {
                // No draw can be trusted then, and who draws must see it.
                possible.push((id, f64::INFINITY));
            }
        };
        if let Some(id) = self.highest() {
            score(id, self.draw.gumbel(id), &mut best, &mut possible);
        }
        let rows = self.rows();
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + if best == f64::NEG_INFINITY { CHUNK / 8 } else { CHUNK });
            let job = NoisyJob {
                bounds: self.bounds(start..end),
                first_id: start as u32,
                noise: self.draw.noise(),
                temperature: self.draw.sampling.temperature,
                threshold: ((best * temperature) as f32).next_down(),
                cut: self.cut,
            };
            hits.clear();
            self.kernels.noisy(&job, hits);
            for &hit in &*hits {
                let (id, row) = (start as u32 + hit, hit as usize);
                if !self.counts(id) {
                    continue;
                }
                let gumbel = self.draw.gumbel(id);
                let (about, error) = (f64::from(job.bounds.scores[row]), f64::from(job.bounds.error(row)));
                let upper = (about + error) / temperature + gumbel;
                if upper < best {
                    continue;
                }
                possible.push((id, upper));
                if about / temperature + gumbel > middle {
                    middle = about / temperature + gumbel;
                    score(id, gumbel, &mut best, &mut possible);
                }
            }
            start = end;
        }
        possible.retain(|&(_, upper)| upper >= best);
        Finds { lower: vec![best], possible }
    }

    /// The token with the best approximate score, if it may be drawn.
    fn highest(&self) -> Option<u32> {
        let n = self.vocab.saturating_sub(self.first_row).min(self.scores.len());
        let (whole, rest) = self.scores[..n].split_at(n / 16 * 16);
        let pieces = whole.chunks(CHUNK).map(|piece| self.kernels.largest(piece));
        let best = pieces.chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
        let row = self.scores[..n].iter().position(|&score| score == best)?;
        let id = (self.first_row + row) as u32;
        (self.counts(id) && self.cut.holds(best)).then_some(id)
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
