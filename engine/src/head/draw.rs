//! From the scores of a step to drawn tokens: one member a slot.

use super::nucleus::{self, adjust};
use super::{Demand, Drawn, Slot, lock, searched, total};
use crate::constraint::Rule;
use crate::kernel::{BINS, Bounds, Cut, Kernels, NoisyJob};
use crate::math;
use crate::ops::Ops;
use crate::sampler::{self, Candidate, Draw};
use std::sync::atomic::Ordering;

/// Scores that are looked through at a time; what must be reached rises in between.
const CHUNK: usize = 2048;

/// A member's copy of one slot's scores, to be changed and weighed.
#[derive(Debug)]
pub(super) struct Scratch {
    /// (vocab, rounded up to 16)
    scores: Vec<f32>,
    bins: Box<[u64; BINS]>,
    hits: Vec<u32>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch { scores: Vec::new(), bins: Box::new([0; BINS]), hits: Vec::new() }
    }
}

/// Draws the token of one slot: which head it is, and what was drawn. `None` where the scores are no numbers.
pub(crate) fn draw(ops: &mut Ops<'_, '_>, slot: usize) -> Option<(usize, Drawn)> {
    let work = &ops.work.head;
    let Slot { head, demand, top } = ops.slots.order[slot];
    let draw = ops.plan.heads[head].draw.as_ref()?;
    if demand == Demand::Searched {
        return Some((head, searched::draw(work, slot, draw)?));
    }
    let rule = ops.plan.heads[head].rule();
    if matches!(demand, Demand::Approximate | Demand::All) {
        let (kernels, scores) = (ops.kernels, &work.slot_scores(slot)[..work.vocab]);
        let scratch = &mut ops.private.head.draw;
        if draw.given.is_none() {
            work.full.fetch_add(1, Ordering::Relaxed);
        }
        return Some((head, from_all(kernels, draw, rule, scores, scratch)?));
    }
    let count = ops.member.count();
    let chosen = &work.chosen[slot * count..(slot + 1) * count];
    let mut found: Vec<Candidate> = chosen.iter().flat_map(|chosen| lock(chosen).clone()).collect();
    if demand == Demand::Few {
        work.few.fetch_add(1, Ordering::Relaxed);
    } else {
        work.screened.fetch_add(1, Ordering::Relaxed);
        work.candidates.fetch_add(found.len() as u64, Ordering::Relaxed);
    }
    // Scores that overflowed win every comparison, or none: no draw can be trusted then.
    if found.is_empty() || found.iter().any(|candidate| !candidate.score.is_finite()) {
        return None;
    }
    let scores = if top.is_some() { found.clone() } else { Vec::new() };
    draw.adjust(&mut found);
    let token = match demand {
        // What is outside of the nucleus was left out before.
        Demand::Nucleus => draw.loudest(&found),
        _ => draw.pick(&mut found),
    };
    let logprob = match top {
        Some(n_top) => {
            let drawn = scores.iter().find(|candidate| candidate.id == token)?;
            Some(total::logprobs(ops, slot, drawn.score, n_top)?)
        }
        None => None,
    };
    Some((head, Drawn { token, logprob }))
}

/// Draws from all scores, which are in order of id.
fn from_all(
    kernels: Kernels,
    draw: &Draw<'_>,
    rule: Rule<'_>,
    scores: &[f32],
    scratch: &mut Scratch,
) -> Option<Drawn> {
    // Scores that overflowed win every comparison, or none: no draw can be trusted then.
    if !scores.iter().fold(true, |finite, score| finite & score.is_finite()) {
        return None;
    }
    let Scratch { scores: row, bins, hits } = scratch;
    row.clear();
    row.extend_from_slice(scores);
    row.resize(scores.len().next_multiple_of(16), f32::NEG_INFINITY);
    let log_sum = draw.top_logprobs.map(|_| {
        let highest = kernels.largest(row);
        f64::from(highest) + math::ln(kernels.exp_sum(row, highest))
    });
    let token = match (draw.given, rule) {
        (Some(token), _) => token,
        (None, Rule::Few(tokens)) => {
            let found = tokens.iter().map(|&id| Candidate { id, score: scores[id as usize] });
            let mut found: Vec<Candidate> = found.collect();
            if found.is_empty() {
                return None;
            }
            draw.adjust(&mut found);
            draw.pick(&mut found)
        }
        (None, Rule::Any | Rule::Many(_)) => {
            adjust(draw, rule, scores.len(), 0, row);
            if draw.is_greedy() {
                sampler::best_of(row).id
            } else if draw.sampling.top_k > 0 {
                draw.pick(&mut sampler::candidates_of(row))
            } else {
                loudest(kernels, draw, row, bins, hits)
            }
        }
    };
    let logprob = draw.top_logprobs.zip(log_sum);
    let logprob =
        logprob.map(|(n_top, log_sum)| sampler::logprobs(scores, log_sum, token, usize::from(n_top)));
    Some(Drawn { token, logprob })
}

/// The token that wins with noise among all adjusted scores, or among those of the nucleus.
fn loudest(
    kernels: Kernels,
    draw: &Draw<'_>,
    scores: &[f32],
    bins: &mut [u64; BINS],
    hits: &mut Vec<u32>,
) -> u32 {
    let highest = kernels.largest(scores);
    let mut cut = Cut::NONE;
    if nucleus::is_wanted(draw.sampling) {
        cut = nucleus::scale(highest, draw.sampling);
        bins.fill(0);
        kernels.weigh(scores, cut, bins);
        cut.last = nucleus::last_bin(bins, draw.sampling);
    }
    let temperature = f64::from(draw.sampling.temperature);
    let first = scores.iter().position(|&score| score == highest).unwrap_or_default();
    let mut best = f64::from(highest) / temperature + draw.gumbel(first as u32);
    let mut found = vec![Candidate { id: first as u32, score: highest }];
    for (i, scores) in scores.chunks(CHUNK).enumerate() {
        let job = NoisyJob {
            // The scores are exact: no error reaches them, whatever its norms are.
            bounds: Bounds { scores, residuals: scores, quants: scores, weights: scores, factors: [0.0; 4] },
            first_id: (i * CHUNK) as u32,
            noise: draw.noise(),
            temperature: draw.sampling.temperature,
            threshold: ((best * temperature) as f32).next_down(),
            cut,
        };
        hits.clear();
        kernels.noisy(&job, hits);
        for &hit in &*hits {
            let candidate = Candidate { id: (i * CHUNK) as u32 + hit, score: scores[hit as usize] };
            best = best.max(f64::from(candidate.score) / temperature + draw.gumbel(candidate.id));
            found.push(candidate);
        }
    }
    draw.loudest(&found)
}
