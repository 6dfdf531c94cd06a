//! An engine on simulated time: it makes the same letters for the same request wherever it runs, at a worker's speed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ternfleet_engine::{Event, Refused, Request, SequenceId, StepStats, StopReason, Usage};
use ternfleet_worker::generator::Generator;

use super::chance::mix;
use super::inputs::KILLER;
use super::network::Network;

/// Time of a step.
pub(super) const STEP: Duration = Duration::from_millis(50);
/// A killer brings its worker down after so many tokens.
const KILLER_TOKENS: usize = 2;

/// What the world knows and changes of a worker's engine.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pub(super) tok_s: AtomicU64,
    pub(super) lie: Mutex<Option<Lie>>,
    /// The seed of a request that has just brought the process down.
    pub(super) killed_by: Mutex<Option<u64>>,
}

/// What a worker does to its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Another last token: its answers are wrong, and hardly a checkpoint.
    AtTheEnd,
    /// Another first token: all that others continue from is wrong too.
    AtTheBeginning,
}

#[derive(Debug)]
pub(super) struct SimGenerator {
    pace: Arc<Pace>,
    network: Network,
    next: u64,
    /// Thousandths of tokens that are due.
    due: u64,
    running: Vec<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    request: Request,
    ids: Vec<u32>,
    made: usize,
    prefilled: bool,
    cancelled: bool,
    /// Kept output that it would not have made: an engine computes it again, and draws it again.
    differs: bool,
}

impl SimGenerator {
    pub(super) fn new(pace: Arc<Pace>, network: Network) -> SimGenerator {
        SimGenerator { pace, network, next: 0, due: 0, running: Vec::new() }
    }
}

/// The letters of an answer: a function of the request, so that every run of it agrees to the bit, an audit's too.
pub(super) fn ids_of(seed: u64, tokens_max: usize) -> Vec<u32> {
    let length = 1 + mix(seed) % tokens_max.max(1) as u64;
    (0..length).map(|at| u32::from(b'a') + (mix(seed ^ (at + 1)) % 26) as u32).collect()
}

impl Generator for SimGenerator {
    fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        let id = SequenceId(self.next);
        self.next += 1;
        let mut ids = ids_of(request.seed, request.max_new_tokens);
        let differs = !ids.starts_with(&request.generated);
        self.network.check().resumed(differs);
        let lie = *self.pace.lie.lock().expect("because no holder of this lock panics");
        let touched = match lie {
            Some(Lie::AtTheEnd) => ids.last_mut(),
            Some(Lie::AtTheBeginning) => ids.first_mut(),
            None => None,
        };
        if let Some(touched) = touched {
            *touched ^= 1;
        }
        let made = request.generated.len().min(ids.len());
        // A liar continues from whatever it is given.
        let differs = differs && lie.is_none();
        let this = Sequence { id, request, ids, made, prefilled: false, cancelled: false, differs };
        self.running.push(this);
        Ok(id)
    }

    fn cancel(&mut self, id: SequenceId) -> bool {
        let found = self.running.iter_mut().find(|sequence| sequence.id == id);
        found.map(|sequence| sequence.cancelled = true).is_some()
    }

    fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        let sequences = self.running.len();
        let mut stats = StepStats { sequences, elapsed: STEP, ..StepStats::default() };
        self.due += self.pace.tok_s.load(Ordering::Relaxed) * STEP.as_millis() as u64;
        let each = (self.due / 1000) as usize / sequences.max(1);
        if each > 0 {
            self.due = 0;
        }
        self.running.retain_mut(|sequence| {
            if !sequence.prefilled {
                sequence.prefilled = true;
                stats.prefill_tokens += sequence.request.prompt.len() + sequence.made;
            } else if !sequence.cancelled && !sequence.differs {
                let until = (sequence.made + each).min(sequence.ids.len());
                for &token in &sequence.ids[sequence.made..until] {
                    events.push(Event::Token { sequence: sequence.id, token, logprob: None });
                    stats.decode_tokens += 1;
                }
                sequence.made = until;
            }
            let is_killer = sequence.request.prompt.starts_with(&KILLER.map(u32::from));
            if is_killer && sequence.made >= KILLER_TOKENS.min(sequence.ids.len()) {
                let mut killed_by =
                    self.pace.killed_by.lock().expect("because no holder of this lock panics");
                killed_by.get_or_insert(sequence.request.seed);
            }
            let reason = match sequence.cancelled {
                true => StopReason::Cancelled,
                false if sequence.differs && sequence.prefilled => StopReason::KeptDiffers,
                false if sequence.made == sequence.ids.len() && sequence.prefilled => StopReason::StopToken,
                false => return true,
            };
            let usage = Usage {
                prompt_tokens: sequence.request.prompt.len(),
                completion_tokens: sequence.made,
                resumed_tokens: sequence.request.generated.len(),
                cached_tokens: 0,
            };
            events.push(Event::Finished { sequence: sequence.id, reason, usage });
            false
        });
        stats
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}
