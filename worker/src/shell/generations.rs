//! Generations between the core and the engine's thread: their text as it comes, and who is being cancelled.

use std::collections::HashMap;
use std::sync::Arc;

use ternfleet_engine::{StopReason, Usage};
use ternfleet_proto::message::{Failure, FailureCode, Finish};

use crate::core::{Completion, End, Event, SlotId, StartFailure, Tokens};
use crate::engine_thread::{Command, EngineThread, Report};
use crate::language::Language;
use crate::request::{Prepared, failure_of};
use crate::transcript::{Transcript, logprobs_of};

/// A request that was fetched and tokenized, or why it was not.
pub(super) type Preparation = (SlotId, Result<Box<Prepared>, StartFailure>);

/// Where a generation stands on its way through the engine.
enum State {
    /// Its prompt is being fetched and tokenized; cancelled before it came so far?
    Preparing {
        cancelled: bool,
    },
    Running(Box<Running>),
    /// Its answer is complete or void; the engine has yet to let go of it.
    Leaving,
}

struct Running {
    transcript: Transcript,
    stream: bool,
    prompt_tokens: u32,
    kept: u32,
}

pub(super) struct Generations {
    states: HashMap<SlotId, State>,
    language: Arc<Language>,
}

impl Generations {
    pub(super) fn new(language: Arc<Language>) -> Generations {
        Generations { states: HashMap::new(), language }
    }

    pub(super) fn prepare(&mut self, slot: SlotId) {
        self.states.insert(slot, State::Preparing { cancelled: false });
    }

    /// The core wants the generation to end. The engine may compute one more step of it, of which nobody hears.
    pub(super) fn cancel(&mut self, slot: SlotId, engine: &EngineThread) -> Option<Event> {
        match self.states.get_mut(&slot)? {
            State::Preparing { cancelled } => {
                *cancelled = true;
                None
            }
            state @ State::Running(_) => {
                *state = State::Leaving;
                engine.send(Command::Cancel { slot });
                Some(Event::Ended { slot, end: End::Cancelled })
            }
            State::Leaving => None,
        }
    }

    pub(super) fn on_prepared(&mut self, (slot, prepared): Preparation, engine: &EngineThread) -> Vec<Event> {
        let cancelled = matches!(self.states.get(&slot), Some(State::Preparing { cancelled: true }));
        if cancelled {
            self.states.remove(&slot);
            return vec![Event::Ended { slot, end: End::Cancelled }];
        }
        let prepared = match prepared {
            Ok(prepared) => *prepared,
            Err(why) => {
                self.states.remove(&slot);
                return vec![Event::StartFailed { slot, why }];
            }
        };
        let Prepared { request, transcript, kept, done, stream } = prepared;
        let (prompt_tokens, kept) = (request.prompt.len() as u32, kept as u32);
        if let Some(finish) = done {
            self.states.remove(&slot);
            let end = complete(transcript, finish, stream, 0);
            return vec![Event::Started { slot, prompt_tokens, kept }, Event::Ended { slot, end }];
        }
        let running = Running { transcript, stream, prompt_tokens, kept };
        self.states.insert(slot, State::Running(Box::new(running)));
        // A thread that is gone shows as the end of its reports.
        engine.send(Command::Submit { slot, request: Box::new(request) });
        Vec::new()
    }

    /// What a step means for the core, in order: starts, refusals, the step's time, output, ends.
    pub(super) fn on_report(&mut self, report: Report, engine: &EngineThread) -> Vec<Event> {
        let mut events = Vec::new();
        for slot in report.admitted {
            if let Some(State::Running(running)) = self.states.get(&slot) {
                let Running { prompt_tokens, kept, .. } = **running;
                events.push(Event::Started { slot, prompt_tokens, kept });
            }
        }
        for (slot, refused) in report.refused {
            if let Some(State::Running(_)) = self.states.remove(&slot) {
                let why = failure_of(&refused)
                    .map_or_else(|| StartFailure::Transient(refused.to_string()), StartFailure::Permanent);
                events.push(Event::StartFailed { slot, why });
            }
        }
        let mut made: Vec<(SlotId, u32)> = Vec::new();
        for (slot, _, _) in &report.tokens {
            match made.iter_mut().find(|(known, _)| known == slot) {
                Some((_, count)) => *count += 1,
                None => made.push((*slot, 1)),
            }
        }
        events.push(Event::Steps { steps: report.steps, made });
        let mut output: Vec<(SlotId, Tokens)> = Vec::new();
        let mut stopped = Vec::new();
        for (slot, id, logprob) in report.tokens {
            let Some(State::Running(running)) = self.states.get_mut(&slot) else { continue };
            if running.transcript.stopped() {
                continue;
            }
            let text = running.transcript.push(&self.language, id);
            // Slots take turns within a step, so that the last entry is the slot's own only if it got several tokens.
            let at = output.iter().rposition(|(other, _)| *other == slot).unwrap_or_else(|| {
                output.push((slot, Tokens { stream: running.stream, ..Tokens::default() }));
                output.len() - 1
            });
            let tokens = &mut output[at].1;
            tokens.ids.push(id);
            tokens.text.push_str(&text);
            tokens.logprobs.extend(logprob.map(|found| logprobs_of(&self.language, id, &found)));
            if running.transcript.stopped() {
                stopped.push(slot);
            }
        }
        events.extend(output.into_iter().map(|(slot, tokens)| Event::Tokens { slot, tokens }));
        for slot in stopped {
            if let Some(State::Running(running)) = self.states.insert(slot, State::Leaving) {
                engine.send(Command::Cancel { slot });
                let end = complete(running.transcript, Finish::Stop, running.stream, 0);
                events.push(Event::Ended { slot, end });
            }
        }
        for (slot, reason, usage) in report.ended {
            if let Some(State::Running(running)) = self.states.remove(&slot) {
                events.push(Event::Ended { slot, end: end_of(*running, reason, usage, report.unsound) });
            }
        }
        events
    }
}

fn end_of(running: Running, reason: StopReason, usage: Usage, unsound: bool) -> End {
    let finish = match reason {
        StopReason::Length | StopReason::Context => Finish::Length,
        StopReason::StopToken => Finish::Stop,
        StopReason::DeadEnd(end) => {
            return End::Failed(Failure {
                code: FailureCode::ConstraintDeadEnd,
                message: format!("the constraint cannot be fulfilled: {end}"),
            });
        }
        StopReason::Cancelled => return End::Fault("the engine ended it unasked".to_owned()),
        StopReason::NotFinite if unsound => {
            let what = "this machine computes no numbers any more, and its canary is not what it was";
            return End::HostFault(what.to_owned());
        }
        StopReason::NotFinite => {
            let message = "the model's scores are no numbers: its weights overflow on this input".to_owned();
            return End::Failed(Failure { code: FailureCode::NotFinite, message });
        }
    };
    complete(running.transcript, finish, running.stream, usage.cached_tokens as u32)
}

fn complete(transcript: Transcript, finish: Finish, stream: bool, cached_tokens: u32) -> End {
    let (text, tail, finish) = transcript.finish(finish);
    End::Complete(Box::new(Completion { text, finish, tail, stream, cached_tokens }))
}
