//! From scores to a token: penalties, truncation, and a draw that depends on seed, choice, position and id alone.
//!
//! The draw is Gumbel-max: each token's score over the temperature, plus noise that a counter-based generator gives for
//! its id, and the highest wins. So a draw from any superset of the tokens that matter is the same draw, and no order of
//! summation enters it. Where the scores come from is `head`'s affair.

use crate::kernel::Noise;
use crate::math;
use crate::philox::philox;
use crate::request::{Sampling, TokenLogprob};

/// All that a draw depends on besides the scores.
#[derive(Debug, Clone)]
pub(crate) struct Draw<'a> {
    pub(crate) sampling: &'a Sampling,
    pub(crate) seed: u64,
    pub(crate) choice: u32,
    /// Of the token to be drawn, counted from the start of the sequence.
    pub(crate) position: u32,
    /// What is added to some tokens' scores: bias and penalties, by ascending id.
    pub(crate) adjustments: Vec<(u32, f32)>,
    pub(crate) top_logprobs: Option<u8>,
    /// The token is known: its log-probability alone is wanted.
    pub(crate) given: Option<u32>,
}

/// A token and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) score: f32,
}

/// Bias and penalties for the tokens that have any, by ascending id; `generated` is all output so far.
pub(crate) fn adjustments(sampling: &Sampling, generated: &[u32]) -> Vec<(u32, f32)> {
    let penalised = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
    let mut result: Vec<(u32, f32)> = sampling.logit_bias.clone();
    if penalised {
        let mut ids = generated.to_vec();
        ids.sort_unstable();
        for run in ids.chunk_by(|a, b| a == b) {
            let penalty = sampling.presence_penalty + sampling.frequency_penalty * run.len() as f32;
            result.push((run[0], -penalty));
        }
    }
    result.sort_by_key(|&(id, _)| id);
    result.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1 += later.1;
        }
        same
    });
    result
}

impl Draw<'_> {
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampling.temperature <= 0.0
    }

    /// Adds bias and penalties to candidates.
    pub(crate) fn adjust(&self, candidates: &mut [Candidate]) {
        if self.adjustments.is_empty() {
            return;
        }
        for candidate in candidates {
            if let Ok(at) = self.adjustments.binary_search_by_key(&candidate.id, |&(id, _)| id) {
                candidate.score += self.adjustments[at].1;
            }
        }
    }

    /// The random words of four tokens: `id` takes the one at `id` modulo 4.
    pub(crate) fn words(&self, id: u32) -> [u32; 4] {
        philox(self.seed, [self.choice, self.position, id / 4, 0])
    }

    /// The noise of one token.
    pub(crate) fn gumbel(&self, id: u32) -> f64 {
        let words = self.words(id);
        let uniform = (f64::from(words[(id % 4) as usize]) + 0.5) / 4_294_967_296.0;
        -math::ln(-math::ln(uniform))
    }

    /// What the noise depends on besides the token.
    pub(crate) fn noise(&self) -> Noise {
        Noise { seed: self.seed, choice: self.choice, position: self.position }
    }

    /// Draws from adjusted candidates, in any order. They must include every token that truncation would keep.
    pub(crate) fn pick(&self, candidates: &mut Vec<Candidate>) -> u32 {
        let sampling = self.sampling;
        if self.is_greedy() {
            return best(candidates);
        }
        if sampling.top_k > 0 {
            keep_best(candidates, sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 || sampling.min_p > 0.0 {
            self.truncate(candidates);
        }
        self.loudest(candidates)
    }

    /// The candidate that wins with noise.
    pub(crate) fn loudest(&self, candidates: &[Candidate]) -> u32 {
        let temperature = f64::from(self.sampling.temperature);
        let mut winner = (f64::NEG_INFINITY, u32::MAX);
        for candidate in candidates {
            let value = f64::from(candidate.score) / temperature + self.gumbel(candidate.id);
            if value > winner.0 || (value == winner.0 && candidate.id < winner.1) || winner.1 == u32::MAX {
                winner = (value, candidate.id);
            }
        }
        winner.1
    }

    /// Top-p, then min-p, on the tokens that are left.
    fn truncate(&self, candidates: &mut Vec<Candidate>) {
        candidates.sort_unstable_by(by_rank);
        let Some(highest) = candidates.first().map(|candidate| f64::from(candidate.score)) else { return };
        let temperature = f64::from(self.sampling.temperature);
        let weights: Vec<f64> =
            candidates.iter().map(|c| math::exp((f64::from(c.score) - highest) / temperature)).collect();
        let mut kept = candidates.len();
        if self.sampling.top_p < 1.0 {
            let enough = weights.iter().sum::<f64>() * f64::from(self.sampling.top_p);
            let mut sum = 0.0;
            kept = weights
                .iter()
                .take_while(|&&weight| {
                    let wanted = sum < enough;
                    sum += weight;
                    wanted
                })
                .count();
        }
        let least = f64::from(self.sampling.min_p);
        kept = kept.min(weights.iter().take_while(|&&weight| weight >= least).count());
        candidates.truncate(kept.max(1));
    }
}

/// Higher scores first, lower ids first among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// Keeps the `k` best.
pub(crate) fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_rank);
        candidates.truncate(k);
    }
}

/// Keeps the `k` best, the best first.
pub(crate) fn keep_ranked(candidates: &mut Vec<Candidate>, k: usize) {
    keep_best(candidates, k);
    candidates.sort_unstable_by(by_rank);
}

/// The best token's id; 0 if there is none.
fn best(candidates: &[Candidate]) -> u32 {
    candidates.iter().min_by(|a, b| by_rank(a, b)).map_or(0, |candidate| candidate.id)
}

/// The best of all scores, which are in order of id; the first among equals.
pub(crate) fn best_of(scores: &[f32]) -> Candidate {
    let first = Candidate { id: 0, score: f32::NEG_INFINITY };
    scores.iter().enumerate().fold(first, |best, (id, &score)| {
        if score.total_cmp(&best.score).is_gt() { Candidate { id: id as u32, score } } else { best }
    })
}

/// Log-probabilities under the softmax of all scores, which are in order of id; `log_sum` is ln of the sum of their exponentials.
pub(crate) fn logprobs(scores: &[f32], log_sum: f64, token: u32, n_top: usize) -> TokenLogprob {
    let logprob = |score: f32| (f64::from(score) - log_sum) as f32;
    TokenLogprob {
        logprob: logprob(scores[token as usize]),
        top: best_few(scores, n_top).into_iter().map(|c| (c.id, logprob(c.score))).collect(),
    }
}

/// The few best of all scores, which are in order of id, the best first.
fn best_few(scores: &[f32], n: usize) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::with_capacity(n + 1);
    for (id, &score) in (0u32..).zip(scores) {
        // An equal score with a higher id ranks below all that were found.
        if n == 0 || found.len() == n && found[n - 1].score.total_cmp(&score).is_ge() {
            continue;
        }
        let at = found.partition_point(|better| better.score.total_cmp(&score).is_ge());
        found.insert(at, Candidate { id, score });
        found.truncate(n);
    }
    found
}

/// All scores as candidates, but for those of tokens that were taken out.
pub(crate) fn candidates_of(scores: &[f32]) -> Vec<Candidate> {
    let all = scores.iter().enumerate().map(|(id, &score)| Candidate { id: id as u32, score });
    all.filter(|candidate| candidate.score > f32::NEG_INFINITY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_all_scores_is_the_best_candidate() {
        for scores in [&[0.5, -1.0, 2.0, 2.0, 1.0][..], &[-0.0, 0.0, -3.0], &[-7.0; 3], &[f32::MIN]] {
            assert_eq!(best_of(scores).id, best(&candidates_of(scores)), "{scores:?}");
            for n in 0..=scores.len() {
                let mut all = candidates_of(scores);
                all.sort_unstable_by(by_rank);
                assert_eq!(best_few(scores, n), all[..n], "{scores:?}");
            }
        }
    }
}
