//! What the engine's thread drives: the real engine, or one that answers at once for measuring everything else.

use std::time::{Duration, Instant as Clock};

use crate::canary::canary;
use ternfleet_engine::{
    Engine, Event, HeadCounters, Refused, Request, SequenceId, StepStats, StopReason, Usage,
};

/// The few operations of an engine that a worker uses. Driven by one thread.
pub trait Generator {
    /// Queues a sequence; it joins the running batch as soon as its pages fit.
    fn submit(&mut self, request: Request) -> Result<SequenceId, Refused>;
    /// Ends a sequence; its `Finished` event comes with the next step.
    fn cancel(&mut self, id: SequenceId) -> bool;
    /// One forward step over all active sequences.
    fn step(&mut self, events: &mut Vec<Event>) -> StepStats;
    fn is_idle(&self) -> bool;
    /// What the output head did so far.
    fn head_counters(&self) -> HeadCounters {
        HeadCounters::default()
    }
    /// Whether this machine still computes as it did at the start. Events of running sequences are appended: they continue
    /// meanwhile.
    fn is_sound(&mut self, _events: &mut Vec<Event>) -> bool {
        true
    }
}

/// An engine that knows what its canary said at the start.
pub struct Checked {
    pub inner: Box<dyn Generator>,
    pub vocab: usize,
    pub canary: String,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("canary", &self.canary).finish_non_exhaustive()
    }
}

impl Generator for Checked {
    fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        self.inner.submit(request)
    }

    fn cancel(&mut self, id: SequenceId) -> bool {
        self.inner.cancel(id)
    }

    fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        self.inner.step(events)
    }

    fn is_idle(&self) -> bool {
        self.inner.is_idle()
    }

    fn head_counters(&self) -> HeadCounters {
        self.inner.head_counters()
    }

    fn is_sound(&mut self, events: &mut Vec<Event>) -> bool {
        canary(&mut *self.inner, self.vocab, events) == self.canary
    }
}

impl Generator for Engine {
    fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        Engine::submit(self, request)
    }

    fn cancel(&mut self, id: SequenceId) -> bool {
        Engine::cancel(self, id)
    }

    fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        Engine::step(self, events)
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }

    fn head_counters(&self) -> HeadCounters {
        Engine::head_counters(self)
    }
}

/// Positions that a sequence of the instant engine may have.
pub const INSTANT_CONTEXT: usize = 4096;

/// Made-up letters that depend on seed and position alone, as a real model's tokens do: a resumed job must come to
/// the same answer. For benchmarks and tests of everything but the engine.
#[derive(Debug)]
pub struct Instant {
    step: Duration,
    next: u64,
    running: Vec<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    request: Request,
    position: usize,
    /// Kept output that this engine would not have made.
    differs: bool,
    cancelled: bool,
}

impl Instant {
    /// One token a sequence and step of this duration; all of them at once when it is zero.
    pub fn new(step: Duration) -> Instant {
        Instant { step, next: 0, running: Vec::new() }
    }
}

/// The letter at a position: mostly a to z, sometimes a space.
fn letter(seed: u64, position: usize) -> u32 {
    let mixed =
        (seed ^ (position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let draw = (mixed >> 33) % 31;
    if draw < 26 { b'a' as u32 + draw as u32 } else { b' ' as u32 }
}

impl Generator for Instant {
    fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        if request.prompt.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        let tokens = request.prompt.len() + request.max_new_tokens;
        if tokens > INSTANT_CONTEXT {
            return Err(Refused::TooLong { tokens, max_context: INSTANT_CONTEXT });
        }
        let id = SequenceId(self.next);
        self.next += 1;
        let position = request.generated.len();
        let wrong = |at: usize| request.generated[at] != letter(request.seed, at);
        let differs = position > request.max_new_tokens || (0..position).any(wrong);
        self.running.push(Sequence { id, request, position, differs, cancelled: false });
        Ok(id)
    }

    fn cancel(&mut self, id: SequenceId) -> bool {
        let found = self.running.iter_mut().find(|sequence| sequence.id == id);
        found.map(|sequence| sequence.cancelled = true).is_some()
    }

    fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        let begun = Clock::now();
        let mut stats = StepStats { sequences: self.running.len(), ..StepStats::default() };
        if !self.step.is_zero() && !self.running.is_empty() {
            std::thread::sleep(self.step);
        }
        let at_once = self.step.is_zero();
        self.running.retain_mut(|sequence| {
            let limit = sequence.request.max_new_tokens;
            if sequence.position == sequence.request.generated.len() {
                stats.prefill_tokens += sequence.request.prompt.len() + sequence.position;
                if sequence.request.prompt_logprobs.is_some() {
                    events.push(Event::Prompt { sequence: sequence.id, logprobs: Vec::new() });
                }
            }
            let ends = sequence.cancelled || sequence.differs;
            while !ends && sequence.position < limit {
                let token = letter(sequence.request.seed, sequence.position);
                events.push(Event::Token { sequence: sequence.id, token, logprob: None });
                sequence.position += 1;
                stats.decode_tokens += 1;
                if !at_once {
                    break;
                }
            }
            let reason = match sequence.cancelled {
                true => StopReason::Cancelled,
                false if sequence.differs => StopReason::KeptDiffers,
                false if sequence.position >= limit => StopReason::Length,
                false => return true,
            };
            let usage = Usage {
                prompt_tokens: sequence.request.prompt.len(),
                completion_tokens: sequence.position,
                resumed_tokens: sequence.request.generated.len(),
                cached_tokens: 0,
            };
            events.push(Event::Finished { sequence: sequence.id, reason, usage });
            false
        });
        stats.elapsed = begun.elapsed();
        stats
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens_of(generator: &mut Instant, request: Request) -> Vec<u32> {
        generator.submit(request).unwrap();
        let (mut events, mut tokens) = (Vec::new(), Vec::new());
        while !generator.is_idle() {
            generator.step(&mut events);
        }
        for event in events {
            if let Event::Token { token, .. } = event {
                tokens.push(token);
            }
        }
        tokens
    }

    #[test]
    fn a_resumed_answer_equals_the_uninterrupted_one() {
        let request = Request { prompt: vec![1], max_new_tokens: 40, seed: 7, ..Request::default() };
        let mut generator = Instant::new(Duration::ZERO);
        let whole = tokens_of(&mut generator, request.clone());
        let rest = tokens_of(&mut generator, Request { generated: whole[..13].to_vec(), ..request });
        assert_eq!(whole.len(), 40);
        assert_eq!(rest, whole[13..]);
    }

    #[test]
    fn a_cancelled_sequence_ends_with_the_next_step() {
        let mut generator = Instant::new(Duration::from_millis(1));
        let request = Request { prompt: vec![1], max_new_tokens: 40, ..Request::default() };
        let id = generator.submit(request).unwrap();
        let mut events = Vec::new();
        generator.step(&mut events);
        assert!(generator.cancel(id));
        generator.step(&mut events);
        assert!(generator.is_idle());
        assert!(matches!(events.last(), Some(Event::Finished { reason: StopReason::Cancelled, .. })));
    }
}
