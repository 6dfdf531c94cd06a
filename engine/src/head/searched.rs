//! Heads whose scores stay on a device: what it is to find in them, and the draws from what it found.
//!
//! A device computes all canonical scores and hands over the few tokens from which a draw chooses as from all of them. The
//! draw itself, with its noise in f64, is `sampler`'s, as for every head.

pub(crate) use super::total::{MOST_NEAR, Near};
use super::{Demand, Drawn, HeadWork, MOST_SCREENED, Slots, nucleus, total};
use crate::constraint::Rule;
use crate::forward::Plan;
use crate::math;
use crate::request::TokenLogprob;
use crate::sampler::{self, Candidate, Draw};
use std::sync::atomic::Ordering;

/// The most best scores that a device looks for.
const MOST_SOUGHT: usize = 128;
/// The most tokens of one head whose scores are asked for by their ids.
pub(crate) const MOST_NAMED: usize = 2048;

/// What a device is to find for one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search<'a> {
    /// Of the plan.
    pub(crate) head: usize,
    slot: usize,
    pub(crate) draw: &'a Draw<'a>,
    pub(crate) rule: Rule<'a>,
}

/// What a device found for one head.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// No score is infinite, or no number.
    pub(crate) is_finite: bool,
    /// In any order, each once, with the scores as they are: tokens among which are those that matter for the draw.
    pub(crate) candidates: Vec<Candidate>,
    /// And those among which the best of all are.
    pub(crate) top: Vec<Candidate>,
    /// The largest score, and of each 1024 of them the sum of exponentials relative to it.
    pub(crate) sums: Option<(f32, Vec<f32>)>,
    pub(crate) copy_sums: Option<CopySums>,
}

/// What log-probabilities of generated tokens are measured against: see `total`.
#[derive(Debug)]
pub(crate) struct CopySums {
    /// Each piece's largest score by the copy, and the sum relative to it.
    pub(crate) pieces: Vec<[f32; 2]>,
    /// By ascending id.
    pub(crate) near: Vec<Near>,
}

/// Whether a device can find what this draw chooses from.
pub(super) fn suffices(draw: &Draw<'_>, rule: Rule<'_>) -> bool {
    match rule {
        _ if draw.given.is_some() => true,
        Rule::Few(tokens) => tokens.len() <= MOST_NAMED,
        Rule::Any | Rule::Many(_) => {
            let top_k = if draw.is_greedy() { 1 } else { draw.sampling.top_k as usize };
            let has_nucleus = !draw.is_greedy() && nucleus::is_wanted(draw.sampling);
            top_k <= MOST_SOUGHT && draw.adjustments.len() <= MOST_SCREENED && !has_nucleus
        }
    }
}

impl Search<'_> {
    /// How many of the best scores are sought.
    pub(crate) fn most(&self) -> usize {
        match self.draw.given {
            Some(_) => self.most_reported().unwrap_or(1),
            None if self.draw.is_greedy() => 1,
            None => (self.draw.sampling.top_k as usize).max(1),
        }
    }

    /// What may win with noise is sought, not the best scores.
    pub(crate) fn is_noisy(&self) -> bool {
        self.draw.given.is_none() && !self.draw.is_greedy() && self.draw.sampling.top_k == 0
    }

    /// So many best scores are reported, whatever may be drawn.
    pub(crate) fn most_reported(&self) -> Option<usize> {
        self.draw.top_logprobs.map(usize::from).filter(|&n_top| n_top > 0)
    }

    /// The sums of exponentials are wanted.
    pub(crate) fn wants_sums(&self) -> bool {
        self.draw.given.is_some()
    }

    /// Those of the copy are.
    pub(crate) fn wants_copy_sums(&self) -> bool {
        self.draw.given.is_none() && self.draw.top_logprobs.is_some()
    }

    /// Nothing is sought beside the tokens of [`Search::named`].
    pub(crate) fn has_few(&self) -> bool {
        self.draw.given.is_none() && matches!(self.rule, Rule::Few(_))
    }

    /// Tokens that are candidates in any case, and that no search needs to look at.
    pub(crate) fn named(&self) -> Vec<u32> {
        match (self.draw.given, self.rule) {
            (Some(token), _) => vec![token],
            (None, Rule::Few(tokens)) => tokens.to_vec(),
            (None, Rule::Any | Rule::Many(_)) => self.draw.adjustments.iter().map(|&(id, _)| id).collect(),
        }
    }

    /// Whether a token may be drawn.
    pub(crate) fn allows(&self, id: u32) -> bool {
        self.draw.given.is_some() || self.rule.allows(id)
    }

    /// The rule by which tokens are sought, where it is not a list.
    pub(crate) fn mask(&self) -> Option<Rule<'_>> {
        (self.draw.given.is_none() && matches!(self.rule, Rule::Many(_))).then_some(self.rule)
    }
}

impl HeadWork {
    /// What a device is to find for the heads of a plan.
    pub(crate) fn searches<'a>(&self, plan: &'a Plan<'_>, slots: &Slots) -> Vec<Search<'a>> {
        let sought = slots.order.iter().enumerate().filter(|(_, slot)| slot.demand == Demand::Searched);
        let search = |(at, slot): (usize, &super::Slot)| {
            let column = &plan.heads[slot.head];
            Some(Search { head: slot.head, slot: at, draw: column.draw.as_ref()?, rule: column.rule() })
        };
        sought.filter_map(search).collect()
    }

    /// Takes what was found for one head.
    pub(crate) fn set_found(&mut self, search: &Search<'_>, found: Found) {
        self.searched[search.slot] = found;
    }
}

/// Draws the token of one slot from what a device found.
pub(super) fn draw(work: &HeadWork, slot: usize, draw: &Draw<'_>) -> Option<Drawn> {
    let found = &work.searched[slot];
    if !found.is_finite || found.candidates.is_empty() {
        return None;
    }
    if let Some(token) = draw.given {
        let logprob = draw.top_logprobs.and_then(|n_top| logprobs(found, token, usize::from(n_top)));
        return Some(Drawn { token, logprob });
    }
    work.searched_tokens.fetch_add(1, Ordering::Relaxed);
    let mut candidates = found.candidates.clone();
    draw.adjust(&mut candidates);
    let token = draw.pick(&mut candidates);
    let Some((n_top, sums)) = draw.top_logprobs.zip(found.copy_sums.as_ref()) else {
        return Some(Drawn { token, logprob: None });
    };
    let score = found.candidates.iter().find(|candidate| candidate.id == token)?.score;
    let logprob = total::told(&sums.pieces, &sums.near, score, found.top.clone(), usize::from(n_top))?;
    Some(Drawn { token, logprob: Some(logprob) })
}

/// As `sampler::logprobs` has them of all scores.
fn logprobs(found: &Found, token: u32, n_top: usize) -> Option<TokenLogprob> {
    let (highest, sums) = found.sums.as_ref()?;
    let sum = sums.iter().fold(0.0, |sum, &piece| sum + f64::from(piece));
    let log_sum = f64::from(*highest) + math::ln(sum);
    let logprob = |score: f32| (f64::from(score) - log_sum) as f32;
    let own = found.candidates.iter().find(|candidate| candidate.id == token)?;
    let mut top = found.candidates.clone();
    sampler::keep_ranked(&mut top, n_top);
    let top = top.into_iter().map(|candidate| (candidate.id, logprob(candidate.score))).collect();
    Some(TokenLogprob { logprob: logprob(own.score), top })
}
