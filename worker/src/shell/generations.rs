//! Generations between the core and the engine's thread: their text as it comes, and who is being cancelled.
//!
//! A job has one choice or several. They share the pages of their prompt: where it has whole pages, its first choice
//! computes it, and the others follow when it is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ternfleet_engine::{Request, StopReason, TokenLogprob, Usage};
use ternfleet_proto::message::{Failure, FailureCode, Finish, TokenLogprobs};

use crate::asked::Asked;
use crate::core::{Completion, End, Event, Output, SlotId, StartFailure, Tokens};
use crate::engine_thread::{Command, EngineThread, Place, Report};
use crate::language::Language;
use crate::request::{Prepared, PreparedChoice, failure_of};
use crate::transcript::{Transcript, Whole, logprobs_of, prompt_logprobs_of};

/// A request that was fetched and tokenized, or why it was not.
pub(super) type Preparation = (SlotId, Result<Box<Prepared>, StartFailure>);

/// Where a generation stands on its way through the engine.
enum State {
    /// Its prompt is being fetched and tokenized; cancelled before it came so far?
    Preparing {
        cancelled: bool,
    },
    Running(Box<Running>),
}

struct Running {
    choices: Vec<Choice>,
    stream: bool,
    token_ids: bool,
    prompt_tokens: u32,
    kept: u32,
    /// The core knows that it runs.
    started: bool,
    cached_tokens: u32,
    asked: Asked,
}

/// One of a job's answers.
struct Choice {
    stage: Stage,
    /// The prompt, where it is to be scored.
    prompt: Vec<u32>,
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Nothing was told of it yet, not even its echo.
    untold: bool,
    scores_only: bool,
    /// Where the caller wants ids: those of the prompt, and those whose text is not complete yet.
    prompt_ids: Vec<u32>,
    unshown: Vec<u32>,
}

enum Stage {
    /// Until that choice has computed the prompt.
    Waiting {
        first: usize,
        request: Box<Request>,
        transcript: Box<Transcript>,
    },
    Running(Box<Transcript>),
    Done(Output),
}

/// What a report means for one job.
#[derive(Default)]
struct Found {
    tokens: Vec<(u16, Tokens)>,
    stopped: Vec<u16>,
}

pub(super) struct Generations {
    states: HashMap<SlotId, State>,
    language: Arc<Language>,
    /// Prompts that are no longer than a page share none.
    page_tokens: usize,
}

impl Generations {
    pub(super) fn new(language: Arc<Language>, page_tokens: usize) -> Generations {
        Generations { states: HashMap::new(), language, page_tokens }
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
            State::Running(_) => {
                self.states.remove(&slot);
                engine.send(Command::Cancel { slot, choice: None });
                Some(Event::Ended { slot, end: End::Cancelled })
            }
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
        let Prepared { choices, prompt_tokens, kept, stream, token_ids, asked } = prepared;
        let mut requests = Vec::new();
        let choices: Vec<Choice> = choices
            .into_iter()
            .enumerate()
            .map(|(number, choice)| Choice::new(number, choice, self.page_tokens, token_ids, &mut requests))
            .collect();
        let (started, cached_tokens) = (false, 0);
        let mut running =
            Running { choices, stream, token_ids, prompt_tokens, kept, started, cached_tokens, asked };
        // The first of several choices of a prompt may be whole already, from an earlier attempt: nobody waits for it.
        for number in 0..running.choices.len() {
            if matches!(running.choices[number].stage, Stage::Done(_)) {
                requests.extend(running.followers(number));
            }
        }
        if requests.is_empty() {
            let mut events = vec![Event::Started { slot, prompt_tokens, kept }];
            running.started = true;
            self.states.insert(slot, State::Running(Box::new(running)));
            events.extend(self.end_if_whole(slot));
            return events;
        }
        self.states.insert(slot, State::Running(Box::new(running)));
        // A thread that is gone shows as the end of its reports.
        engine.send(Command::Submit { slot, requests });
        Vec::new()
    }

    /// What a step means for the core, in order: starts, refusals, the step's time, output, ends.
    pub(super) fn on_report(&mut self, report: Report, engine: &EngineThread) -> Vec<Event> {
        let mut events = Vec::new();
        for slot in report.admitted {
            if let Some(State::Running(running)) = self.states.get_mut(&slot)
                && !std::mem::replace(&mut running.started, true)
            {
                let Running { prompt_tokens, kept, .. } = **running;
                events.push(Event::Started { slot, prompt_tokens, kept });
            }
        }
        for (slot, refused) in report.refused {
            let Some(State::Running(running)) = self.states.remove(&slot) else { continue };
            engine.send(Command::Cancel { slot, choice: None });
            if running.started {
                // A later choice of a prompt whose first was taken.
                events.push(Event::Ended { slot, end: End::Fault(refused.to_string()) });
                continue;
            }
            let why = failure_of(&refused)
                .map_or_else(|| StartFailure::Transient(refused.to_string()), StartFailure::Permanent);
            events.push(Event::StartFailed { slot, why });
        }
        let mut made: BTreeMap<SlotId, u32> = BTreeMap::new();
        for ((slot, _), _, _) in &report.tokens {
            *made.entry(*slot).or_default() += 1;
        }
        events.push(Event::Steps { steps: report.steps, made: made.into_iter().collect() });
        let mut found: BTreeMap<SlotId, Found> = BTreeMap::new();
        for (place, logprobs) in report.prompts {
            self.on_prompt(place, &logprobs, engine, &mut found);
        }
        for (place, id, logprob) in report.tokens {
            self.on_token(place, id, logprob, &mut found);
        }
        for (slot, Found { tokens, stopped }) in found {
            for (choice, tokens) in tokens {
                events.push(Event::Tokens { slot, tokens });
                self.follow_up(slot, choice, engine);
            }
            for choice in stopped {
                engine.send(Command::Cancel { slot, choice: Some(choice) });
                events.extend(self.end_choice((slot, choice), Finish::Stop, engine));
            }
        }
        for (place, reason, usage) in report.ended {
            events.extend(self.on_ended(place, reason, usage, report.unsound, engine));
        }
        events
    }

    fn running(&mut self, slot: SlotId) -> Option<&mut Running> {
        match self.states.get_mut(&slot)? {
            State::Running(running) => Some(running),
            State::Preparing { .. } => None,
        }
    }

    /// Gives the engine the choices that waited for the prompt of this one.
    fn follow_up(&mut self, slot: SlotId, first: u16, engine: &EngineThread) {
        let requests = self.running(slot).map_or_else(Vec::new, |running| running.followers(first.into()));
        if !requests.is_empty() {
            engine.send(Command::Submit { slot, requests });
        }
    }

    fn on_prompt(
        &mut self,
        (slot, number): Place,
        logprobs: &[TokenLogprob],
        engine: &EngineThread,
        found: &mut BTreeMap<SlotId, Found>,
    ) {
        let Some(State::Running(running)) = self.states.get_mut(&slot) else { return };
        let Some(choice) = running.choices.get_mut(usize::from(number)) else { return };
        choice.prompt_logprobs = prompt_logprobs_of(&self.language, &choice.prompt, logprobs);
        if choice.scores_only {
            engine.send(Command::Cancel { slot, choice: Some(number) });
            found.entry(slot).or_default().stopped.push(number);
        }
    }

    fn on_token(
        &mut self,
        (slot, number): Place,
        id: u32,
        logprob: Option<TokenLogprob>,
        found: &mut BTreeMap<SlotId, Found>,
    ) {
        let Some(State::Running(running)) = self.states.get_mut(&slot) else { return };
        let (several, stream, token_ids) = (running.choices.len() > 1, running.stream, running.token_ids);
        let Some(choice) = running.choices.get_mut(usize::from(number)) else { return };
        let Stage::Running(transcript) = &mut choice.stage else { return };
        if transcript.stopped() || choice.scores_only {
            return;
        }
        let said = transcript.push(&self.language, id);
        let found = found.entry(slot).or_default();
        // A step may bring several tokens of a choice: they make one entry.
        let at = found.tokens.iter().rposition(|(other, _)| *other == number).unwrap_or_else(|| {
            let choice = several.then_some(number);
            found.tokens.push((number, Tokens { stream, choice, ..Tokens::default() }));
            found.tokens.len() - 1
        });
        let tokens = &mut found.tokens[at].1;
        if std::mem::take(&mut choice.untold) && stream {
            tokens.text.push_str(transcript.echo());
            tokens.prompt_logprobs.clone_from(&choice.prompt_logprobs);
            tokens.prompt_ids.clone_from(&choice.prompt_ids);
        }
        tokens.ids.push(id);
        if token_ids && stream {
            choice.unshown.push(id);
            if transcript.is_whole() {
                tokens.shown_ids.append(&mut choice.unshown);
            }
        }
        tokens.text.push_str(&said.text);
        tokens.calls.extend(said.calls);
        tokens.logprobs.extend(logprob.map(|logprob| logprobs_of(&self.language, id, &logprob)));
        if transcript.stopped() {
            found.stopped.push(number);
        }
    }

    fn on_ended(
        &mut self,
        (slot, number): Place,
        reason: StopReason,
        usage: Usage,
        unsound: bool,
        engine: &EngineThread,
    ) -> Vec<Event> {
        let Some(running) = self.running(slot) else { return Vec::new() };
        let Some(Choice { stage: Stage::Running(_), .. }) = running.choices.get(usize::from(number)) else {
            return Vec::new();
        };
        if number == 0 {
            running.cached_tokens = usage.cached_tokens as u32;
        }
        let finish = match reason {
            StopReason::Length | StopReason::Context => Finish::Length,
            StopReason::StopToken => Finish::Stop,
            StopReason::DeadEnd(end) => {
                let message = format!("the constraint cannot be met: {end}");
                let failure = Failure { code: FailureCode::ConstraintDeadEnd, message };
                return vec![self.give_up(slot, End::Failed(failure), engine)];
            }
            StopReason::NotFinite if unsound => {
                let what = "this machine computes invalid numbers, and its canary output has changed";
                return vec![self.give_up(slot, End::HostFault(what.to_owned()), engine)];
            }
            StopReason::NotFinite => {
                let message =
                    "the model's logits are not finite: its weights overflow on this input".to_owned();
                let failure = Failure { code: FailureCode::NotFinite, message };
                return vec![self.give_up(slot, End::Failed(failure), engine)];
            }
            StopReason::KeptDiffers => return vec![self.give_up(slot, End::KeptDiffers, engine)],
            StopReason::Cancelled => {
                let end = End::Fault("the engine ended it unexpectedly".to_owned());
                return vec![self.give_up(slot, end, engine)];
            }
        };
        self.end_choice((slot, number), finish, engine)
    }

    /// One choice cannot continue, and so the job cannot.
    fn give_up(&mut self, slot: SlotId, end: End, engine: &EngineThread) -> Event {
        self.states.remove(&slot);
        engine.send(Command::Cancel { slot, choice: None });
        Event::Ended { slot, end }
    }

    /// One choice is whole; with the last one the job is.
    fn end_choice(&mut self, (slot, number): Place, finish: Finish, engine: &EngineThread) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(running) = self.running(slot) else { return events };
        let (several, stream, with_ids) = (running.choices.len() > 1, running.stream, running.token_ids);
        let Some(choice) = running.choices.get_mut(usize::from(number)) else { return events };
        let prompt_ids = std::mem::take(&mut choice.prompt_ids);
        let prompt_logprobs = std::mem::take(&mut choice.prompt_logprobs);
        let finish = if choice.scores_only { Finish::Length } else { finish };
        let stage = std::mem::replace(&mut choice.stage, Stage::Done(Output::default()));
        let Stage::Running(transcript) = stage else {
            choice.stage = stage;
            return events;
        };
        let Whole { text, calls, finish, tail } = transcript.finish(finish);
        choice.stage = Stage::Done(Output { text, calls, finish, prompt_logprobs, prompt_ids, with_ids });
        if stream && !tail.is_empty() && !choice.untold {
            let choice = several.then_some(number);
            let tokens = Tokens { text: tail.text, calls: tail.calls, stream, choice, ..Tokens::default() };
            events.push(Event::Tokens { slot, tokens });
        }
        self.follow_up(slot, number, engine);
        events.extend(self.end_if_whole(slot));
        events
    }

    fn end_if_whole(&mut self, slot: SlotId) -> Option<Event> {
        let running = self.running(slot)?;
        if !running.choices.iter().all(|choice| matches!(choice.stage, Stage::Done(_))) {
            return None;
        }
        let (cached_tokens, asked) = (running.cached_tokens, Some(running.asked));
        let outputs = running.choices.drain(..).filter_map(|choice| match choice.stage {
            Stage::Done(output) => Some(output),
            Stage::Waiting { .. } | Stage::Running(_) => None,
        });
        let completion = Completion { outputs: outputs.collect(), cached_tokens, prompt_tokens: None, asked };
        self.states.remove(&slot);
        Some(Event::Ended { slot, end: End::Complete(Box::new(completion)) })
    }
}

impl Running {
    /// The choices that waited for the prompt of this one, for the engine.
    fn followers(&mut self, first: usize) -> Vec<(u16, Request)> {
        let mut requests = Vec::new();
        for (choice, number) in self.choices.iter_mut().zip(0u16..) {
            let waits = matches!(&choice.stage, Stage::Waiting { first: other, .. } if *other == first);
            if !waits {
                continue;
            }
            let stage = std::mem::replace(&mut choice.stage, Stage::Done(Output::default()));
            if let Stage::Waiting { request, transcript, .. } = stage {
                choice.stage = Stage::Running(transcript);
                requests.push((number, *request));
            }
        }
        requests
    }
}

impl Choice {
    /// Its request is added to `requests`, if the engine is to have it now.
    fn new(
        number: usize,
        prepared: PreparedChoice,
        page_tokens: usize,
        with_ids: bool,
        requests: &mut Vec<(u16, Request)>,
    ) -> Choice {
        let PreparedChoice { request, transcript, done, scores_only, first } = prepared;
        // What an earlier attempt has sent is not sent again; what it has not sent is in the answer's text.
        let untold = request.generated.is_empty();
        let prompt_ids = if with_ids { request.prompt.clone() } else { Vec::new() };
        let prompt = if request.prompt_logprobs.is_some() { request.prompt.clone() } else { Vec::new() };
        // Prompts that are scored are computed as a whole each.
        let shares = request.prompt_logprobs.is_none() && request.prompt.len() > page_tokens;
        let transcript = Box::new(transcript);
        let stage = match done {
            Some(finish) => {
                let Whole { text, calls, finish, .. } = transcript.finish(finish);
                let prompt_ids = prompt_ids.clone();
                Stage::Done(Output { text, calls, finish, prompt_ids, with_ids, ..Output::default() })
            }
            None if shares && first != number => {
                Stage::Waiting { first, request: Box::new(request), transcript }
            }
            None => {
                requests.push((number as u16, request));
                Stage::Running(transcript)
            }
        };
        let (prompt_logprobs, unshown) = (Vec::new(), Vec::new());
        Choice { stage, prompt, prompt_logprobs, untold, scores_only, prompt_ids, unshown }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ternfleet_engine::{Engine, Options};
    use ternfleet_proto::message::{Generation, Prompt, Several};

    use super::*;
    use crate::core::Kept;
    use crate::generator::Generator;
    use crate::request::prepare;

    #[tokio::test]
    async fn the_choices_of_a_prompt_compute_it_once() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller/storyteller.gguf");
        let options = Options { threads: Some(1), prefix_cache: true, ..Options::default() };
        let load = move || {
            let engine = Engine::load(&path, &options)?;
            let (pages, context) = (engine.info().page_tokens, engine.info().max_context);
            Ok((Box::new(engine) as Box<dyn Generator>, (pages, context)))
        };
        let (mut engine, loaded) = EngineThread::start(load).unwrap();
        let (page_tokens, context) = loaded.await.unwrap().unwrap();
        let language = Arc::new(Language::Bytes);
        let (n, n_prompt) = (8, 2 * page_tokens + 44);
        let ids: Vec<u32> = (0..n_prompt as u32).map(|place| place * 37 % 4000 + 50).collect();
        let prompt = Prompt::Several(Several { prompts: vec![Prompt::Tokens(ids)], n });
        let asked = Generation { prompt, max_tokens: Some(3), ..Generation::default() };
        let prepared = prepare(&asked, Kept::default(), &language, &Default::default(), context).unwrap();

        let mut generations = Generations::new(language, page_tokens);
        let slot = SlotId(1);
        generations.prepare(slot);
        let mut events = generations.on_prepared((slot, Ok(Box::new(prepared))), &engine);
        let mut prefilled = 0;
        let ended = loop {
            let found = events.into_iter().find_map(|event| match event {
                Event::Ended { end, .. } => Some(end),
                _ => None,
            });
            if let Some(end) = found {
                break end;
            }
            let report = engine.reports.recv().await.unwrap();
            prefilled += report.steps.prefill_tokens as usize;
            events = generations.on_report(report, &engine);
        };
        let End::Complete(whole) = ended else { panic!("{ended:?}") };
        assert_eq!(whole.outputs.len(), n as usize);
        // What is no whole page is computed by each of them.
        let most = n_prompt + (n as usize - 1) * (n_prompt % page_tokens);
        assert!(prefilled <= most, "{prefilled} of at most {most} tokens of prompts");
        assert_eq!(whole.cached_tokens, 0, "an earlier request had nothing of it");
        engine.stop();
    }
}
