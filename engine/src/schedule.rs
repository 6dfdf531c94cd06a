//! Which sequences take part in a step, with how many tokens: admission, chunked prefill, ends. No computation, no threads.
//!
//! A sequence is admitted when the pages for its prompt and all its output are free, so that an active one never runs out.
//! Each step decodes one token of every sequence that can, and shares `prefill_chunk` prompt tokens among the others in
//! order of arrival, the first place going round, so that neither kind starves the other. When few sequences decode and
//! none prefills, each may add guesses of its next tokens to its turn; those that the step's draws do not confirm are
//! forgotten, and what they left in the sequence's own pages is written over.
//!
//! Output that a request keeps from an earlier run is not trusted: while it is computed again, each of its tokens is drawn
//! again too, and one that differs ends the sequence.

mod sequence;

use crate::Refused;
use crate::constraint::{Threads, Tracker};
use crate::draft::{Costs, Drafter};
use crate::head::Drawn;
use crate::kernel::PAGE;
use crate::kv::{PageId, Pages};
use crate::options::Speculation;
use crate::prefix::{Known, Prefix};
use crate::request::{Event, Request, SequenceId, SpeculationCounters, StopReason};
pub(crate) use sequence::Sequence;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The most log-probabilities a request may ask for.
const MAX_LOGPROBS: u8 = 20;

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
    /// Those of its positions after which the next token is known, and is scored or drawn again.
    pub(crate) looks: Range<usize>,
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
    /// Known tokens that a step may score or draw again.
    look_chunk: usize,
    max_context: usize,
    vocab: usize,
    speculation: Speculation,
    costs: Costs,
    counters: SpeculationCounters,
    waiting: VecDeque<Sequence>,
    active: Vec<Sequence>,
    next_id: u64,
    /// Steps so far: whose prefill comes first.
    round: usize,
    prefix: Option<Prefix>,
    copies: Vec<(PageId, PageId)>,
    threads: Threads,
}

impl Schedule {
    pub(crate) fn new(
        max_sequences: usize,
        prefill_chunk: usize,
        look_chunk: usize,
        max_context: usize,
        vocab: usize,
        speculation: Speculation,
        prefix_cache: bool,
        n_threads: usize,
    ) -> Schedule {
        Schedule {
            max_sequences,
            prefill_chunk,
            look_chunk,
            max_context,
            vocab,
            speculation,
            costs: Costs::new(),
            counters: SpeculationCounters::default(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            next_id: 1,
            round: 0,
            prefix: prefix_cache.then(Prefix::default),
            copies: Vec::new(),
            threads: Threads::new(n_threads),
        }
    }

    /// Refuses what could never run; queues the rest.
    pub(crate) fn submit(&mut self, request: Request, total_pages: usize) -> Result<SequenceId, Refused> {
        let mut tokens = request.prompt.clone();
        if tokens.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        self.check_ids(&tokens)?;
        self.check_request(&request)?;
        tokens.extend_from_slice(&request.generated);
        let (kept, max_new_tokens) = (request.generated.len(), request.max_new_tokens);
        if max_new_tokens == 0 {
            return Err(Refused::NothingToDo);
        }
        if request.prompt.len() >= self.max_context {
            return Err(Refused::TooLong { tokens: request.prompt.len() + 1, max_context: self.max_context });
        }
        // Output that is whole is only proved; what no engine with this model can have generated is not even computed.
        let is_output = kept <= max_new_tokens
            && tokens.len() <= self.max_context
            && request.generated.iter().all(|&id| (id as usize) < self.vocab);
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
            end: (!is_output).then_some(StopReason::KeptDiffers),
        };
        let needed = sequence.pages_needed(self.max_context);
        if needed > total_pages {
            return Err(Refused::TooLarge { needed, total: total_pages });
        }
        if let Some(constraint) = sequence.request.constraint.as_ref().filter(|_| is_output) {
            if constraint.n_vocab() > self.vocab {
                let (n, vocab) = (constraint.n_vocab(), self.vocab);
                let reason = format!("it was compiled for {n} tokens, but this model has {vocab}");
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
    pub(crate) fn drop_cancelled(&mut self, cache: &mut Pages, events: &mut Vec<Event>) {
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
    pub(crate) fn drop_finished(&mut self, cache: &mut Pages, events: &mut Vec<Event>) {
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
    pub(crate) fn admit(&mut self, cache: &mut Pages) {
        let mut place = 0;
        while self.active.len() < self.max_sequences && place < self.waiting.len() {
            if self.is_being_computed(&self.waiting[place]) {
                place += 1;
                continue;
            }
            let next = &mut self.waiting[place];
            let mut known = match &mut self.prefix {
                // Kept output is computed here, or it would not be proved.
                Some(prefix) if next.request.prompt_logprobs.is_none() => {
                    prefix.find(&next.request.prompt, cache)
                }
                _ => Known::default(),
            };
            let needed = next.pages_needed(self.max_context) - known.pages.len();
            let mut fits = room(&mut self.prefix, needed, cache);
            // The page that would be copied may be one of those that are needed.
            if !fits && let Some((page, _)) = known.begun.take() {
                cache.release(page);
                fits = room(&mut self.prefix, needed, cache);
            }
            if !fits {
                known.pages.into_iter().for_each(|page| cache.release(page));
                return;
            }
            next.computed = known.pages.len() * PAGE;
            next.pages = known.pages;
            next.pages.extend((0..needed).filter_map(|_| cache.take()));
            if let Some((page, positions)) = known.begun {
                self.copies.push((page, next.pages[next.computed / PAGE]));
                next.computed += positions;
            }
            next.cached = next.computed.min(next.prompt_len());
            self.active.extend(self.waiting.remove(place));
        }
    }

    /// Pages whose bytes begin those of a new sequence: to be copied before the next step, and then released.
    pub(crate) fn take_copies(&mut self) -> Vec<(PageId, PageId)> {
        std::mem::take(&mut self.copies)
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
    pub(crate) fn n_available(&self, cache: &Pages) -> usize {
        cache.n_free() + self.prefix.as_ref().map_or(0, |prefix| prefix.n_reclaimable(cache))
    }

    /// Gives up kept prompts until `n_pages` are free; false if there are not enough.
    pub(crate) fn make_room(&mut self, n_pages: usize, cache: &mut Pages) -> bool {
        room(&mut self.prefix, n_pages, cache)
    }

    /// Appends what constraints leave no choice about. Returns how many tokens.
    pub(crate) fn follow_constraints(&mut self, cache: &mut Pages, events: &mut Vec<Event>) -> usize {
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
        let (mut budget, mut look_budget) = (self.prefill_chunk, self.look_chunk);
        let n = self.active.len();
        let mut turns = Vec::with_capacity(n);
        for i in 0..n {
            let place = (i + self.round) % n;
            let sequence = &self.active[place];
            let left = sequence.tokens.len() - sequence.computed;
            let generates = sequence.computed >= sequence.prompt_len() + sequence.request.generated.len();
            // What generates continues in any case; tokens that its constraint appended count as prefill.
            let mut ready = left.saturating_sub(sequence.is_held().into());
            if sequence.is_held() && sequence.is_unproved() {
                // What may stand in place of the kept tokens is not known yet.
                ready = ready.min((sequence.prompt_len() - 1).saturating_sub(sequence.computed));
            }
            let looks = sequence.looks();
            let most = match looks.len() > look_budget {
                true => looks.start - sequence.computed + look_budget,
                false => ready,
            };
            let take = ready.min(budget + usize::from(generates)).min(most);
            if take == 0 {
                continue;
            }
            budget -= take.saturating_sub(generates.into());
            let decodes = generates && left == 1;
            let positions = sequence.computed..sequence.computed + take;
            let looks = looks.start..looks.end.min(positions.end).max(looks.start);
            look_budget -= looks.len();
            let reaches_end = take == left;
            turns.push(Turn { place, positions, reaches_end, decodes, draft: Vec::new(), looks });
        }
        if n <= self.speculation.sequences && turns.iter().all(|turn| turn.decodes) {
            let (mut columns, mut tokens) = (n, n as f64);
            for turn in &mut turns {
                turn.draft = self.draft(turn.place, columns, tokens);
                columns += turn.draft.len();
                let right = self.active[turn.place].drafter.right();
                tokens += (1..=turn.draft.len() as i32).map(|guess| right.powi(guess)).sum::<f64>();
            }
        }
        turns
    }

    /// Takes note of how long a step of these turns took.
    pub(crate) fn took(&mut self, turns: &[Turn], seconds: f64) {
        if turns.iter().all(|turn| turn.decodes) {
            self.costs.learn(turns.iter().map(Turn::draws).sum(), seconds);
        }
    }

    /// Guesses for one sequence: no more than it may still need after the token that the step draws anyway, and than are
    /// worth it in a step that has so many columns and expected tokens without them.
    fn draft(&mut self, place: usize, columns: usize, tokens: f64) -> Vec<u32> {
        let sequence = &mut self.active[place];
        let left = sequence.most_tokens(self.max_context) - sequence.tokens.len();
        // A constraint says by itself what must come; what it leaves open is seldom guessed.
        let speculates = sequence.request.speculate && sequence.tracker.is_none();
        let allowed = if speculates { self.speculation.draft_tokens } else { 0 };
        let most = allowed.min(left.saturating_sub(1));
        let (costs, weighed) = (&self.costs, self.speculation.weighed);
        sequence.drafter.draft(&sequence.tokens, most, |right, most| match weighed {
            true => costs.worth(columns, tokens, right, most),
            false => most,
        })
    }

    pub(crate) fn sequence(&self, turn: &Turn) -> &Sequence {
        &self.active[turn.place]
    }

    /// Takes note of what the known tokens after `turn.looks` were found to be: a prompt's are scored; kept output that
    /// differs from what is drawn here ends the sequence.
    pub(crate) fn looked(&mut self, turn: &Turn, drawn: impl Iterator<Item = Option<Drawn>>) {
        let sequence = &mut self.active[turn.place];
        let prompt_len = sequence.prompt_len();
        for (position, drawn) in turn.looks.clone().map(|position| position + 1).zip(drawn) {
            if position < prompt_len {
                let logprobs = sequence.prompt_logprobs.as_mut();
                if let Some((all, logprob)) = logprobs.zip(drawn.and_then(|drawn| drawn.logprob)) {
                    all.push(logprob);
                }
                continue;
            }
            let kept = sequence.tokens[position];
            let continues = position + 1 < sequence.tokens.len() && sequence.stops_at(kept);
            if drawn.is_none_or(|drawn| drawn.token != kept) || continues {
                sequence.end = Some(StopReason::KeptDiffers);
                return;
            }
        }
        let proved = turn.looks.end + 1 == sequence.tokens.len() && turn.looks.end >= prompt_len;
        if proved && !turn.looks.is_empty() {
            sequence.end = sequence.natural_end(self.max_context);
            if let Some(tracker) = &sequence.tracker {
                tracker.forget_kept();
            }
        }
    }

    /// Takes note of what a step computed for one sequence: `drawn` has what was drawn at its end and after each guess.
    /// Places stay as they are until `drop_finished`. Returns the number of new tokens.
    pub(crate) fn advance(
        &mut self,
        turn: &Turn,
        drawn: impl Iterator<Item = Option<Drawn>>,
        cache: &mut Pages,
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
        if sequence.end.is_some() {
            return 0;
        }
        let (mut new_tokens, mut next) = (0, None);
        for Drawn { token, logprob } in drawn.map_while(|drawn| drawn) {
            next.get_or_insert(token);
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
        if let Some(next) = next {
            sequence.drafter.learn(next, turn.draft.len(), accepted);
        }
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

/// Whether so many pages are free, after kept prompts were given up for them.
fn room(prefix: &mut Option<Prefix>, n_pages: usize, cache: &mut Pages) -> bool {
    match prefix {
        Some(prefix) => prefix.reclaim(n_pages, cache),
        None => n_pages <= cache.n_free(),
    }
}
