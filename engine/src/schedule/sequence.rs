//! One sequence on its way: its tokens, what of them is still to be looked at, and how it ends. No other sequence is known
//! here.

use crate::constraint::{Allowed, Tracker};
use crate::draft::Drafter;
use crate::kernel::PAGE;
use crate::kv::PageId;
use crate::request::{Event, Request, SequenceId, StopReason, TokenLogprob, Usage};
use crate::sampler::{self, Draw};
use std::ops::Range;
use ternfleet_text::constraint::DeadEnd;

/// A sequence on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) request: Request,
    /// Prompt, kept output, new output.
    pub(crate) tokens: Vec<u32>,
    pub(crate) pages: Vec<PageId>,
    /// Positions whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) cached: usize,
    /// Of the prompt's tokens from the second on, where they are asked for.
    pub(super) prompt_logprobs: Option<Vec<TokenLogprob>>,
    pub(super) drafter: Drafter,
    pub(super) tracker: Option<Tracker>,
    pub(super) end: Option<StopReason>,
}

impl Sequence {
    pub(super) fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub(super) fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len()..]
    }

    /// The positions still to be computed after which the next token is known, and is scored or drawn again.
    pub(super) fn looks(&self) -> Range<usize> {
        let first = if self.prompt_logprobs.is_some() { 0 } else { self.prompt_len() - 1 };
        let last = self.prompt_len() + self.request.generated.len() - 1;
        first.max(self.computed)..last.max(self.computed)
    }

    /// Some of the kept output has not been drawn again yet.
    pub(super) fn is_unproved(&self) -> bool {
        !self.request.generated.is_empty() && !self.looks().is_empty()
    }

    /// Tokens of the prompt that are still to be scored, from the next one to compute on.
    pub(super) fn unscored(&self) -> usize {
        match self.prompt_logprobs {
            Some(_) => (self.prompt_len() - 1).saturating_sub(self.computed),
            None => 0,
        }
    }

    /// Positions that it may become.
    pub(super) fn most_tokens(&self, max_context: usize) -> usize {
        self.prompt_len().saturating_add(self.request.max_new_tokens).min(max_context)
    }

    /// Pages for everything it may become.
    pub(super) fn pages_needed(&self, max_context: usize) -> usize {
        self.most_tokens(max_context).div_ceil(PAGE)
    }

    /// The draw of the token that comes after all so far and after `guesses`.
    pub(crate) fn draw(&self, guesses: &[u32]) -> Draw<'_> {
        let position = self.tokens.len() + guesses.len();
        let draw = if guesses.is_empty() {
            self.draw_after(self.generated(), position)
        } else {
            self.draw_after(&[self.generated(), guesses].concat(), position)
        };
        Draw { top_logprobs: self.request.top_logprobs, ..draw }
    }

    /// The draw of the token at `position`, which comes after `output`.
    pub(super) fn draw_after(&self, output: &[u32], position: usize) -> Draw<'_> {
        Draw {
            sampling: &self.request.sampling,
            seed: self.request.seed,
            choice: self.request.choice,
            position: position as u32,
            adjustments: sampler::adjustments(&self.request.sampling, output),
            top_logprobs: None,
            given: None,
        }
    }

    /// What the known token at `position` is asked for: that of a prompt its log-probability, kept output to be drawn again.
    pub(crate) fn look(&self, position: usize) -> (Draw<'_>, Option<Allowed>) {
        let Some(n_before) = position.checked_sub(self.prompt_len()) else {
            let score = Draw {
                sampling: &self.request.sampling,
                seed: self.request.seed,
                choice: self.request.choice,
                position: position as u32,
                adjustments: Vec::new(),
                top_logprobs: self.request.prompt_logprobs,
                given: Some(self.tokens[position]),
            };
            return (score, None);
        };
        let draw = self.draw_after(&self.generated()[..n_before], position);
        (draw, self.tracker.as_ref().and_then(|tracker| tracker.allowed_before(n_before)))
    }

    /// What the next token may be; `None` allows everything.
    pub(crate) fn allowed(&self) -> Option<Allowed> {
        self.tracker.as_ref().map(Tracker::allowed)
    }

    /// The last token waits until it is known what may follow it.
    pub(super) fn is_held(&self) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| !tracker.is_ready())
    }

    /// Appends a token and sees whether it is the last.
    pub(super) fn push(&mut self, token: u32, max_context: usize) {
        self.tokens.push(token);
        self.end = self.natural_end(max_context);
    }

    pub(super) fn stops_at(&self, token: u32) -> bool {
        let constraint = self.request.constraint.as_ref();
        self.request.stop_ids.contains(&token)
            || constraint.is_some_and(|constraint| constraint.ends_with(token))
    }

    /// Why nothing more comes after its tokens.
    pub(super) fn natural_end(&self, max_context: usize) -> Option<StopReason> {
        let last = self.generated().last();
        if last.is_some_and(|&last| self.stops_at(last)) {
            Some(StopReason::StopToken)
        } else if self.generated().len() >= self.request.max_new_tokens {
            Some(StopReason::Length)
        } else if self.tokens.len() >= max_context {
            Some(StopReason::Context)
        } else {
            None
        }
    }

    /// Appends the tokens that must come next, which need no draw; where each is to be scored, it does. Returns how many.
    pub(super) fn follow(&mut self, max_context: usize, events: &mut Vec<Event>) -> usize {
        let scored = self.request.top_logprobs.is_some();
        let mut n_tokens = 0;
        if self.is_unproved() {
            // What follows kept output waits until that is known to be right.
            let failed = self.tracker.as_mut().and_then(Tracker::failed_start);
            self.end = self.end.or(failed.map(|dead| match dead {
                DeadEnd::Uncompiled => StopReason::DeadEnd(dead),
                _ => StopReason::KeptDiffers,
            }));
            return 0;
        }
        while self.end.is_none()
            && !scored
            && let Some(token) = self.tracker.as_mut().and_then(Tracker::next_forced)
        {
            self.push(token, max_context);
            events.push(Event::Token { sequence: self.id, token, logprob: None });
            n_tokens += 1;
        }
        if self.end.is_none() {
            self.end = self.tracker.as_mut().and_then(Tracker::dead_end).map(StopReason::DeadEnd);
        }
        n_tokens
    }

    pub(super) fn finished(&self, reason: StopReason) -> Event {
        let usage = Usage {
            prompt_tokens: self.prompt_len(),
            completion_tokens: self.generated().len(),
            resumed_tokens: self.request.generated.len(),
            cached_tokens: self.cached,
        };
        Event::Finished { sequence: self.id, reason, usage }
    }
}
