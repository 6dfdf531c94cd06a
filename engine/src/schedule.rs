//! Which sequences take part in a step, with how many tokens: admission, chunked prefill, ends. No computation, no threads.
//!
//! A sequence is admitted when the pages for its prompt and all its output are free, so that an active one never runs out.
//! Each step decodes one token of every sequence that can, and shares `prefill_chunk` prompt tokens among the others in
//! order of arrival, the first place going round, so that neither kind starves the other. When few sequences decode and
//! none prefills, each may add guesses of its next tokens to its turn; those that the step's draws do not confirm are
//! forgotten, and what they left in the sequence's own pages is written over.

use crate::Refused;
use crate::constraint::{Allowed, Threads, Tracker};
use crate::draft::Drafter;
use crate::head::Drawn;
use crate::kernel::PAGE;
use crate::kv::{Cache, PageId};
use crate::options::Speculation;
use crate::prefix::Prefix;
use crate::request::{Event, Request, SequenceId, SpeculationCounters, StopReason, TokenLogprob, Usage};
use crate::sampler::{self, Draw};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The most log-probabilities a request may ask for.
const MAX_LOGPROBS: u8 = 20;

/// A sequence on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    id: SequenceId,
    request: Request,
    /// Prompt, kept output, new output.
    pub(crate) tokens: Vec<u32>,
    pub(crate) pages: Vec<PageId>,
    /// Positions whose keys and values are in the cache.
    computed: usize,
    cached: usize,
    /// Of the prompt's tokens from the second on, where they are asked for.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    drafter: Drafter,
    tracker: Option<Tracker>,
    end: Option<StopReason>,
}

/// One sequence's part in a step.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    place: usize,
    pub(crate) positions: Range<usize>,
    /// Its last token is among them, so a new one is drawn.
    pub(crate) reaches_end: bool,
    /// It is one token that the last step drew.
    pub(crate) decodes: bool,
    /// Guesses for the positions that follow, each with a draw of its own.
    pub(crate) draft: Vec<u32>,
    /// After so many of its positions, from the first on, the prompt's next token is scored.
    pub(crate) scores: usize,
}

impl Turn {
    /// Tokens to draw: one at the end, and one after each guess.
    pub(crate) fn draws(&self) -> usize {
        if self.reaches_end { 1 + self.draft.len() } else { 0 }
    }
}

/// All sequences.
#[derive(Debug)]
pub(crate) struct Schedule {
    max_sequences: usize,
    prefill_chunk: usize,
    /// Prompt tokens that a step may score.
    score_chunk: usize,
    max_context: usize,
    vocab: usize,
    speculation: Speculation,
    counters: SpeculationCounters,
    waiting: VecDeque<Sequence>,
    active: Vec<Sequence>,
    next_id: u64,
    /// Steps so far: whose prefill comes first.
    round: usize,
    prefix: Option<Prefix>,
    threads: Threads,
}

impl Sequence {
    fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len()..]
    }

    /// Tokens of the prompt that are still to be scored, from the next one to compute on.
    fn unscored(&self) -> usize {
        match self.prompt_logprobs {
            Some(_) => (self.prompt_len() - 1).saturating_sub(self.computed),
            None => 0,
        }
    }

    /// Positions that it may become.
    fn most_tokens(&self, max_context: usize) -> usize {
        self.prompt_len().saturating_add(self.request.max_new_tokens).min(max_context)
    }

    /// Pages for everything it may become.
    fn pages_needed(&self, max_context: usize) -> usize {
        self.most_tokens(max_context).div_ceil(PAGE)
    }

    /// The draw of the token that comes after all so far and after `guesses`.
    pub(crate) fn draw(&self, guesses: &[u32]) -> Draw<'_> {
        let adjustments = if guesses.is_empty() {
            sampler::adjustments(&self.request.sampling, self.generated())
        } else {
            sampler::adjustments(&self.request.sampling, &[self.generated(), guesses].concat())
        };
        Draw {
            sampling: &self.request.sampling,
            seed: self.request.seed,
            choice: self.request.choice,
            position: (self.tokens.len() + guesses.len()) as u32,
            adjustments,
            top_logprobs: self.request.top_logprobs,
            given: None,
        }
    }

    /// What the prompt's token at `position` is asked for: no draw, its log-probability.
    pub(crate) fn score(&self, position: usize) -> Draw<'_> {
        Draw {
            sampling: &self.request.sampling,
            seed: self.request.seed,
            choice: self.request.choice,
            position: position as u32,
            adjustments: Vec::new(),
            top_logprobs: self.request.prompt_logprobs,
            given: Some(self.tokens[position]),
        }
    }

    /// What the next token may be; `None` allows everything.
    pub(crate) fn allowed(&self) -> Option<Allowed> {
        self.tracker.as_ref().map(Tracker::allowed)
    }

    /// The last token waits until it is known what may follow it.
    fn is_held(&self) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| !tracker.is_ready())
    }

    /// Appends a token and sees whether it is the last.
    fn push(&mut self, token: u32, max_context: usize) {
        self.tokens.push(token);
        let constraint = self.request.constraint.as_ref();
        let ends = constraint.is_some_and(|constraint| constraint.ends_with(token));
        self.end = if ends || self.request.stop_ids.contains(&token) {
            Some(StopReason::StopToken)
        } else if self.generated().len() >= self.request.max_new_tokens {
            Some(StopReason::Length)
        } else if self.tokens.len() >= max_context {
            Some(StopReason::Context)
        } else {
            None
        };
    }

    /// Appends the tokens that must come next, which need no draw; where each is to be scored, it does. Returns how many.
    fn follow(&mut self, max_context: usize, events: &mut Vec<Event>) -> usize {
        let scored = self.request.top_logprobs.is_some();
        let mut n_tokens = 0;
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

    fn finished(&self, reason: StopReason) -> Event {
        let usage = Usage {
            prompt_tokens: self.prompt_len(),
            completion_tokens: self.generated().len(),
            resumed_tokens: self.request.generated.len(),
            cached_tokens: self.cached,
        };
        Event::Finished { sequence: self.id, reason, usage }
    }
}

impl Schedule {
    pub(crate) fn new(
        max_sequences: usize,
        prefill_chunk: usize,
        score_chunk: usize,
        max_context: usize,
        vocab: usize,
        speculation: Speculation,
        prefix_cache: bool,
        n_threads: usize,
    ) -> Schedule {
        Schedule {
            max_sequences,
            prefill_chunk,
            score_chunk,
            max_context,
            vocab,
            speculation,
            counters: SpeculationCounters::default(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            next_id: 1,
            round: 0,
            prefix: prefix_cache.then(Prefix::default),
            threads: Threads::new(n_threads),
        }
    }

    /// Refuses what could never run; queues the rest.
    pub(crate) fn submit(&mut self, request: Request, total_pages: usize) -> Result<SequenceId, Refused> {
        let mut tokens = request.prompt.clone();
        if tokens.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        tokens.extend_from_slice(&request.generated);
        self.check_ids(&tokens)?;
        self.check_request(&request)?;
        if request.generated.len() >= request.max_new_tokens {
            let (kept, max_new_tokens) = (request.generated.len(), request.max_new_tokens);
            return Err(Refused::NothingLeft { kept, max_new_tokens });
        }
        if tokens.len() >= self.max_context {
            return Err(Refused::TooLong { tokens: tokens.len() + 1, max_context: self.max_context });
        }
        let prompt_logprobs = request.prompt_logprobs.map(|_| Vec::new());
        let mut sequence = Sequence {
            id: SequenceId(self.next_id),
            request,
            tokens,
            pages: Vec::new(),
            computed: 0,
            cached: 0,
            prompt_logprobs,
            drafter: Drafter::new(),
            tracker: None,
            end: None,
        };
        let needed = sequence.pages_needed(self.max_context);
        if needed > total_pages {
            return Err(Refused::TooLarge { needed, total: total_pages });
        }
        if let Some(constraint) = &sequence.request.constraint {
            if constraint.n_vocab() > self.vocab {
                let (n, vocab) = (constraint.n_vocab(), self.vocab);
                let reason = format!("it was compiled for {n} tokens, and this model has {vocab}");
                return Err(Refused::Constraint { reason });
            }
            let kept = sequence.request.generated.clone();
            sequence.tracker = Some(self.threads.track(Arc::clone(constraint), kept)?);
        }
        let id = sequence.id;
        self.next_id += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Checks token ids and their number.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), Refused> {
        if ids.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        if ids.len() > self.max_context {
            return Err(Refused::TooLong { tokens: ids.len(), max_context: self.max_context });
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(&id) => Err(Refused::UnknownToken { id, vocab: self.vocab }),
            None => Ok(()),
        }
    }

    fn check_request(&self, request: &Request) -> Result<(), Refused> {
        let sampling = &request.sampling;
        let rule = |holds: bool, name: &'static str, value: f32, rule: &'static str| {
            if holds { Ok(()) } else { Err(Refused::Parameter { name, value: value.to_string(), rule }) }
        };
        let temperature = sampling.temperature;
        // Below a millionth the quotients leave the range in which the noise matters.
        rule(
            temperature == 0.0 || (1e-6..=100.0).contains(&temperature),
            "temperature",
            temperature,
            "use 0 to 100",
        )?;
        rule(
            sampling.top_p > 0.0 && sampling.top_p <= 1.0,
            "top_p",
            sampling.top_p,
            "use more than 0, at most 1",
        )?;
        rule((0.0..=1.0).contains(&sampling.min_p), "min_p", sampling.min_p, "use 0 to 1")?;
        for (name, penalty) in [
            ("presence_penalty", sampling.presence_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
        ] {
            rule((-2.0..=2.0).contains(&penalty), name, penalty, "use -2 to 2")?;
        }
        for &(id, bias) in &sampling.logit_bias {
            rule((-100.0..=100.0).contains(&bias), "logit_bias", bias, "use -100 to 100")?;
            if id as usize >= self.vocab {
                return Err(Refused::UnknownToken { id, vocab: self.vocab });
            }
        }
        for (name, count) in
            [("top_logprobs", request.top_logprobs), ("prompt_logprobs", request.prompt_logprobs)]
        {
            let count = count.unwrap_or(0);
            rule(count <= MAX_LOGPROBS, name, f32::from(count), "use at most 20")?;
        }
        Ok(())
    }

    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        let mut all = self.waiting.iter_mut().chain(&mut self.active);
        match all.find(|sequence| sequence.id == id && sequence.end.is_none()) {
            Some(sequence) => {
                sequence.end = Some(StopReason::Cancelled);
                true
            }
            None => false,
        }
    }

    /// Lets go of what was cancelled since the last step.
    pub(crate) fn drop_cancelled(&mut self, cache: &mut Cache, events: &mut Vec<Event>) {
        self.waiting.retain(|sequence| match sequence.end {
            Some(reason) => {
                events.push(sequence.finished(reason));
                false
            }
            None => true,
        });
        self.drop_finished(cache, events);
    }

    /// Lets go of what has ended.
    pub(crate) fn drop_finished(&mut self, cache: &mut Cache, events: &mut Vec<Event>) {
        self.active.retain_mut(|sequence| match sequence.end {
            Some(reason) => {
                events.push(sequence.finished(reason));
                for page in sequence.pages.drain(..) {
                    cache.release(page);
                }
                false
            }
            None => true,
        });
    }

    /// Takes in waiting sequences, in order, while places and pages last. One whose beginning is being computed waits until it
    /// can be shared, and those behind it go first.
    pub(crate) fn admit(&mut self, cache: &mut Cache) {
        let mut place = 0;
        while self.active.len() < self.max_sequences && place < self.waiting.len() {
            if self.is_being_computed(&self.waiting[place]) {
                place += 1;
                continue;
            }
            let next = &mut self.waiting[place];
            let shared = match &mut self.prefix {
                Some(prefix) if next.request.prompt_logprobs.is_none() => prefix.find(&next.tokens, cache),
                _ => Vec::new(),
            };
            let needed = next.pages_needed(self.max_context) - shared.len();
            let fits = match &mut self.prefix {
                Some(prefix) => prefix.reclaim(needed, cache),
                None => needed <= cache.n_free(),
            };
            if !fits {
                shared.into_iter().for_each(|page| cache.release(page));
                return;
            }
            next.computed = shared.len() * PAGE;
            next.cached = next.computed.min(next.prompt_len());
            next.pages = shared;
            next.pages.extend((0..needed).filter_map(|_| cache.take()));
            self.active.extend(self.waiting.remove(place));
        }
    }

    /// Whether an active sequence computes pages of this one's prompt that nobody has computed before. It ends with that
    /// prompt, so nobody waits for long.
    fn is_being_computed(&self, waiting: &Sequence) -> bool {
        let Some(prefix) = self.prefix.as_ref().filter(|_| waiting.request.prompt_logprobs.is_none()) else {
            return false;
        };
        // At least one token is left to compute.
        let tokens = &waiting.tokens[..waiting.tokens.len() - 1];
        let shared = |active: &Sequence| {
            let prompt = &active.request.prompt;
            let pages = tokens.chunks_exact(PAGE).zip(prompt.chunks_exact(PAGE));
            pages.take_while(|(one, other)| one == other).count()
        };
        let prefilling = self.active.iter().filter(|active| {
            active.end.is_none() && active.prompt_logprobs.is_none() && active.computed < active.prompt_len()
        });
        let most = prefilling.map(shared).max().unwrap_or(0);
        most > 0 && most > prefix.n_known(tokens)
    }

    /// Pages that a new sequence could have: free ones, and those kept for prompts that nobody uses now.
    pub(crate) fn n_available(&self, cache: &Cache) -> usize {
        cache.n_free() + self.prefix.as_ref().map_or(0, |prefix| prefix.n_reclaimable(cache))
    }

    /// Gives up kept prompts until `n_pages` are free; false if there are not enough.
    pub(crate) fn make_room(&mut self, n_pages: usize, cache: &mut Cache) -> bool {
        match &mut self.prefix {
            Some(prefix) => prefix.reclaim(n_pages, cache),
            None => n_pages <= cache.n_free(),
        }
    }

    /// Appends what constraints leave no choice about. Returns how many tokens.
    pub(crate) fn follow_constraints(&mut self, cache: &mut Cache, events: &mut Vec<Event>) -> usize {
        let n_tokens = self.active.iter_mut().map(|sequence| sequence.follow(self.max_context, events)).sum();
        self.drop_finished(cache, events);
        n_tokens
    }

    /// Waits until the constraint of a sequence that could run is compiled; false if there is none to wait for.
    pub(crate) fn await_constraint(&self) -> bool {
        let held = self.active.iter().find(|sequence| sequence.is_held());
        held.and_then(|sequence| sequence.tracker.as_ref()).map(Tracker::wait).is_some()
    }

    /// Who takes part in this step.
    pub(crate) fn turns(&mut self) -> Vec<Turn> {
        self.round += 1;
        let (mut budget, mut score_budget) = (self.prefill_chunk, self.score_chunk);
        let n = self.active.len();
        let mut turns = Vec::with_capacity(n);
        for i in 0..n {
            let place = (i + self.round) % n;
            let sequence = &self.active[place];
            let left = sequence.tokens.len() - sequence.computed;
            let generates = sequence.computed >= sequence.prompt_len() + sequence.request.generated.len();
            // What generates continues in any case; tokens that its constraint appended count as prefill.
            let ready = left.saturating_sub(sequence.is_held().into());
            let unscored = sequence.unscored();
            let most = if unscored > 0 { score_budget } else { ready };
            let take = ready.min(budget + usize::from(generates)).min(most);
            if take == 0 {
                continue;
            }
            budget -= take.saturating_sub(generates.into());
            let scores = take.min(unscored);
            score_budget -= scores;
            let decodes = generates && left == 1;
            let positions = sequence.computed..sequence.computed + take;
            let reaches_end = take == left;
            turns.push(Turn { place, positions, reaches_end, decodes, draft: Vec::new(), scores });
        }
        if n <= self.speculation.sequences && turns.iter().all(|turn| turn.decodes) {
            for turn in &mut turns {
                turn.draft = self.draft(turn.place);
            }
        }
        turns
    }

    /// Guesses for one sequence: no more than it may still need after the token that the step draws anyway.
    fn draft(&mut self, place: usize) -> Vec<u32> {
        let sequence = &mut self.active[place];
        let left = sequence.most_tokens(self.max_context) - sequence.tokens.len();
        // A constraint says by itself what must come; what it leaves open is seldom guessed.
        let speculates = sequence.request.speculate && sequence.tracker.is_none();
        let allowed = if speculates { self.speculation.draft_tokens } else { 0 };
        let most = allowed.min(left.saturating_sub(1));
        sequence.drafter.draft(&sequence.tokens, most)
    }

    pub(crate) fn sequence(&self, turn: &Turn) -> &Sequence {
        &self.active[turn.place]
    }

    /// Takes note of scored tokens of a prompt.
    pub(crate) fn scored(&mut self, turn: &Turn, logprobs: Vec<TokenLogprob>) {
        if let Some(all) = &mut self.active[turn.place].prompt_logprobs {
            all.extend(logprobs);
        }
    }

    /// Takes note of what a step computed for one sequence: `drawn` has what was drawn at its end and after each guess.
    /// Places stay as they are until `drop_finished`. Returns the number of new tokens.
    pub(crate) fn advance(
        &mut self,
        turn: &Turn,
        drawn: impl Iterator<Item = Option<Drawn>>,
        cache: &mut Cache,
        events: &mut Vec<Event>,
    ) -> usize {
        let sequence = &mut self.active[turn.place];
        sequence.computed = turn.positions.end;
        if turn.positions.start < sequence.prompt_len()
            && turn.positions.end >= sequence.prompt_len()
            && let Some(prefix) = &mut self.prefix
        {
            prefix.keep(&sequence.request.prompt, &sequence.pages, cache);
        }
        if sequence.unscored() == 0
            && let Some(logprobs) = sequence.prompt_logprobs.take()
        {
            events.push(Event::Prompt { sequence: sequence.id, logprobs });
        }
        let mut new_tokens = 0;
        for Drawn { token, logprob } in drawn.map_while(|drawn| drawn) {
            sequence.push(token, self.max_context);
            events.push(Event::Token { sequence: sequence.id, token, logprob });
            if let Some(tracker) = sequence.tracker.as_mut().filter(|_| sequence.end.is_none()) {
                tracker.take(token, &self.threads);
            }
            // What was computed for the guess holds, and so does the draw after it, if the guess was right.
            let guessed = turn.draft.get(new_tokens) == Some(&token);
            new_tokens += 1;
            if sequence.end.is_some() || !guessed {
                break;
            }
            sequence.computed += 1;
        }
        if turn.reaches_end && new_tokens == 0 {
            // The constraint allows nothing, or no score is a number.
            let dead = sequence.tracker.as_mut().and_then(Tracker::dead_end).map(StopReason::DeadEnd);
            sequence.end = dead.or(Some(StopReason::NotFinite));
        }
        let accepted = new_tokens.saturating_sub(1);
        sequence.drafter.learn(turn.draft.len(), accepted);
        self.counters.drafted += turn.draft.len() as u64;
        self.counters.accepted += accepted as u64;
        new_tokens + sequence.follow(self.max_context, events)
    }

    pub(crate) fn speculation_counters(&self) -> SpeculationCounters {
        self.counters
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}
