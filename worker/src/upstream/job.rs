//! One job at the server: what is asked, what is resumed, what is tried again, and what its answer comes to.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ternfleet_proto::message::{Call, ChatMessage, Failure, FailureCode, Finish, Generation, Prompt};
use tokio::time::Instant;

use super::ask::{self, Asked};
use super::client::{Client, Trouble};
use super::piece::{self, Counts, Piece};
use super::probe::Facts;
use super::watch::Asker;
use crate::core::{Completion, End, Kept, Output, StartFailure, Tokens};

/// Times that a request may break off while the server is there.
const BREAKS_MAX: u32 = 3;
/// Waits between tries: doubled with each.
const WAIT_FIRST: Duration = Duration::from_millis(250);
const WAIT_LONGEST: Duration = Duration::from_secs(15);
/// A server that is busy for longer gives the job back.
const BUSY_MAX: Duration = Duration::from_secs(300);

/// What a job says on its way.
#[derive(Debug)]
pub(crate) enum Said {
    Started {
        prompt_tokens: u32,
        kept: u32,
    },
    /// So many tokens of prompts were computed.
    Prefilled(u32),
    Tokens(Tokens),
    /// The server was heard of, and has no room.
    Busy,
    StartFailed(StartFailure),
    Ended(End),
}

/// What every job needs.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) client: Arc<Client>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) asker: Asker,
}

/// Runs a job to its end; what happens is said meanwhile.
pub(crate) async fn run(job: &Job, generation: Generation, kept: Kept, say: &(dyn Fn(Said) + Sync)) {
    let outcome = match prepared(job, &generation, kept).await {
        Ok(plan) => Run::new(job, &generation, plan, say).finish().await,
        Err(trouble) => Err(trouble),
    };
    say(Said::Ended(match outcome {
        Ok(completion) => End::Complete(Box::new(completion)),
        Err(Trouble::Refused(failure)) => End::Failed(failure),
        Err(trouble) => End::Fault(trouble.to_string()),
    }));
}

/// How the job is continued or begun.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    asked: Vec<Asked>,
    prompt_tokens: u32,
    /// Output that stands already: its ids, and its text.
    kept_ids: usize,
    kept_text: String,
    /// Nothing is left to generate.
    done: bool,
}

/// Whether an output can be continued, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ids,
    Text,
    Over,
}

/// By ids where the server takes and tells them, and its answer depends on what stands before the next token alone. A
/// deterministic server draws by position, so that only greedy answers would be the same. By text for greedy answers of
/// other servers. Otherwise the job starts over.
fn way(generation: &Generation, kept: &Kept, facts: &Facts) -> Way {
    let sampling = &generation.sampling;
    let has_some = !kept.ids.is_empty() && !kept.text.is_empty();
    let plain = generation.prompt.choices() == 1
        && !generation.is_constrained()
        && !matches!(generation.prompt, Prompt::Conversation(_))
        && generation.logprobs.is_none()
        && !generation.token_ids
        && !generation.echo
        && generation.stop.is_empty();
    let open_penalty = facts.own && sampling.open.frequency_penalty;
    let unpunished = sampling.presence_penalty == 0.0 && sampling.frequency_penalty == 0.0 && !open_penalty;
    if !has_some || !plain || !unpunished {
        return Way::Over;
    }
    let greedy = sampling.temperature == 0.0 && !sampling.open.temperature;
    let abilities = &facts.abilities;
    if abilities.token_ids && abilities.id_prompts {
        return if greedy || !abilities.deterministic { Way::Ids } else { Way::Over };
    }
    let by_text = match generation.prompt {
        Prompt::Text(_) => true,
        Prompt::Chat(_) => facts.continues_chat,
        _ => false,
    };
    if greedy && by_text && !abilities.deterministic { Way::Text } else { Way::Over }
}

async fn prepared(job: &Job, generation: &Generation, kept: Kept) -> Result<Plan, Trouble> {
    let facts = &*job.facts;
    if let Some(words) = facts.abilities.lacks(&ternfleet_proto::message::Abilities::needed_by(generation)) {
        let message = format!("the model's server cannot {words}");
        return Err(Trouble::Refused(Failure { code: FailureCode::InvalidRequest, message }));
    }
    let fresh = |prompt: &Prompt| ask::asked(generation, prompt, facts.abilities.token_ids);
    let known = match &generation.prompt {
        Prompt::Tokens(ids) => ids.len() as u32,
        _ => 0,
    };
    let over = || Plan {
        asked: generation.prompt.each().iter().map(fresh).collect(),
        prompt_tokens: known,
        kept_ids: 0,
        kept_text: String::new(),
        done: false,
    };
    let left = |prompt_tokens: usize| {
        let room = facts.context.saturating_sub(prompt_tokens);
        let most = generation.max_tokens.map_or(room, |most| most as usize);
        most.saturating_sub(kept.ids.len())
    };
    let continued = |mut asked: Asked, prompt_tokens: usize| {
        let left = left(prompt_tokens);
        asked.body["max_tokens"] = left.into();
        let (kept_ids, kept_text) = (kept.ids.len(), kept.text.clone());
        Plan { asked: vec![asked], prompt_tokens: prompt_tokens as u32, kept_ids, kept_text, done: left == 0 }
    };
    match way(generation, &kept, facts) {
        Way::Over => Ok(over()),
        Way::Ids => {
            let mut ids = match &generation.prompt {
                Prompt::Tokens(ids) => ids.clone(),
                prompt => prompt_ids(job, fresh(prompt)).await?,
            };
            let prompt_tokens = ids.len();
            ids.extend(&kept.ids);
            Ok(continued(fresh(&Prompt::Tokens(ids)), prompt_tokens))
        }
        Way::Text => Ok(match &generation.prompt {
            Prompt::Chat(messages) => {
                let begun = ChatMessage {
                    role: "assistant".to_owned(),
                    content: kept.text.clone(),
                    ..ChatMessage::default()
                };
                let messages = messages.iter().cloned().chain([begun]).collect();
                let mut asked = fresh(&Prompt::Chat(messages));
                asked.body["continue_final_message"] = true.into();
                asked.body["add_generation_prompt"] = false.into();
                continued(asked, 0)
            }
            Prompt::Text(text) => continued(fresh(&Prompt::Text(format!("{text}{}", kept.text))), 0),
            _ => over(),
        }),
    }
}

/// The ids of a prompt as the server writes it: told with a single token.
async fn prompt_ids(job: &Job, mut asked: Asked) -> Result<Vec<u32>, Trouble> {
    asked.body["max_tokens"] = 1.into();
    let told = patiently(job, &|_| {}, || async {
        let said = job.client.ask(asked.path, &asked.body).await?;
        let found = piece::pieces(&said).map_err(Trouble::Broken)?;
        Ok(found.into_iter().next().map(|piece| piece.prompt_ids).unwrap_or_default())
    });
    match told.await? {
        ids if ids.is_empty() => {
            Err(Trouble::Broken("the server tells no ids of the prompt, as it did at the start".to_owned()))
        }
        ids => Ok(ids),
    }
}

/// Tries until it succeeds or cannot, with growing waits. Where the server is away nothing more comes of it: the job is
/// taken back from outside.
async fn patiently<T, F>(
    job: &Job,
    say: &(dyn Fn(Said) + Sync),
    attempt: impl Fn() -> F,
) -> Result<T, Trouble>
where
    F: Future<Output = Result<T, Trouble>>,
{
    let begun = Instant::now();
    let (mut breaks, mut wait) = (0, WAIT_FIRST);
    loop {
        let trouble = match attempt().await {
            Ok(made) => return Ok(made),
            Err(refused @ Trouble::Refused(_)) => return Err(refused),
            Err(trouble) => trouble,
        };
        let after = match &trouble {
            Trouble::Busy(after) => {
                say(Said::Busy);
                *after
            }
            _ => {
                if !job.asker.is_there().await {
                    std::future::pending::<()>().await;
                }
                breaks += 1;
                None
            }
        };
        if breaks >= BREAKS_MAX || begun.elapsed() >= BUSY_MAX {
            return Err(trouble);
        }
        tokio::time::sleep(after.unwrap_or(wait).min(WAIT_LONGEST)).await;
        wait = (2 * wait).min(WAIT_LONGEST);
    }
}

/// One of the answers so far.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    calls: Vec<Call>,
    finish: Option<Finish>,
    ids: usize,
    prompt_ids: Vec<u32>,
}

struct Run<'a> {
    job: &'a Job,
    generation: &'a Generation,
    plan: Plan,
    say: &'a (dyn Fn(Said) + Sync),
    /// Requests of several prompts are under way at once.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    choices: Vec<Choice>,
    counts: Vec<Counts>,
    /// Something has come, so that the request cannot simply be sent again.
    begun: bool,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job, generation: &'a Generation, plan: Plan, say: &'a (dyn Fn(Said) + Sync)) -> Run<'a> {
        let mut choices: Vec<Choice> = Vec::new();
        choices.resize_with(generation.prompt.choices() as usize, Choice::default);
        if let Some(first) = choices.first_mut() {
            (first.ids, first.text) = (plan.kept_ids, plan.kept_text.clone());
        }
        let counts = vec![Counts::default(); plan.asked.len()];
        let state = Mutex::new(State { choices, counts, begun: false });
        Run { job, generation, plan, say, state }
    }

    async fn finish(self) -> Result<Completion, Trouble> {
        let Plan { prompt_tokens, kept_ids, done, .. } = self.plan;
        (self.say)(Said::Started { prompt_tokens, kept: kept_ids as u32 });
        if done {
            self.locked(|state| state.choices[0].finish = Some(Finish::Length));
        } else {
            let requests = self.plan.asked.iter().enumerate();
            futures::future::try_join_all(requests.map(|(number, asked)| self.request(number, asked)))
                .await?;
        }
        Ok(self.whole())
    }

    async fn request(&self, number: usize, asked: &Asked) -> Result<(), Trouble> {
        let broken = patiently(self.job, self.say, || async {
            match self.read(number, asked).await {
                // What has come is kept; the core decides how to go on with it.
                Err(trouble @ Trouble::Broken(_)) if self.locked(|state| state.begun) => Ok(Some(trouble)),
                other => other.map(|()| None),
            }
        });
        match broken.await? {
            None => Ok(()),
            Some(trouble) => {
                if !self.job.asker.is_there().await {
                    std::future::pending::<()>().await;
                }
                Err(trouble)
            }
        }
    }

    async fn read(&self, number: usize, asked: &Asked) -> Result<(), Trouble> {
        let mut events = self.job.client.stream(asked.path, &asked.body).await?;
        while let Some(event) = events.next().await? {
            if let Some(counts) = piece::counts(&event) {
                self.locked(|state| state.counts[number] = counts);
            }
            for piece in piece::pieces(&event).map_err(Trouble::Broken)? {
                self.take(number, piece)?;
            }
        }
        let n = self.generation.prompt.n() as usize;
        let open = |state: &mut State| {
            state.choices.iter().skip(number * n).take(n).any(|choice| choice.finish.is_none())
        };
        match self.locked(open) {
            true => Err(Trouble::Broken("the server's answer has no end".to_owned())),
            false => Ok(()),
        }
    }

    fn take(&self, number: usize, piece: Piece) -> Result<(), Trouble> {
        let (facts, several) = (&self.job.facts, self.generation.prompt.choices() > 1);
        let n = self.generation.prompt.n() as usize;
        let place = number * n + piece.choice;
        let nothing = piece.text.is_empty() && piece.calls.is_empty();
        let ids = match facts.abilities.token_ids {
            true => piece.ids,
            false if nothing && piece.logprobs.is_empty() => Vec::new(),
            // Where the server tells no ids, each piece counts as a token until the server has told how many there were.
            false => vec![0; piece.logprobs.len().max(1)],
        };
        let single = facts.own || ids.len() == 1 || !facts.abilities.token_ids;
        let is_whole = single && !ids.is_empty() && !piece.text.is_empty() && piece.finish.is_none();
        let mut prefilled = None;
        let stream = self.generation.stream;
        let tokens = self.locked(|state| {
            let choice = state.choices.get_mut(place).filter(|_| piece.choice < n)?;
            choice.text.push_str(&piece.text);
            for said in &piece.calls {
                add_call(&mut choice.calls, said.call as usize, said.name.as_deref(), &said.arguments);
            }
            choice.ids += ids.len();
            choice.finish = piece.finish.or(choice.finish);
            let mut tokens = Tokens {
                is_whole: is_whole && !several,
                choice: several.then_some(place as u16),
                stream,
                ..Tokens::default()
            };
            if !piece.prompt_ids.is_empty() && choice.prompt_ids.is_empty() {
                prefilled = (piece.choice == 0).then_some(piece.prompt_ids.len() as u32);
                if stream && self.generation.token_ids {
                    tokens.prompt_ids.clone_from(&piece.prompt_ids);
                }
                choice.prompt_ids = piece.prompt_ids;
            }
            state.begun |= !ids.is_empty() || !nothing;
            if stream && self.generation.token_ids {
                tokens.shown_ids.clone_from(&ids);
            }
            (tokens.ids, tokens.text, tokens.calls, tokens.logprobs) =
                (ids, piece.text, piece.calls, piece.logprobs);
            Some(tokens)
        });
        let Some(tokens) = tokens else {
            return Err(Trouble::Broken(
                "the server's answer has more choices than were asked for".to_owned(),
            ));
        };
        if let Some(count) = prefilled {
            (self.say)(Said::Prefilled(count));
        }
        if !tokens.ids.is_empty() || !nothing_in(&tokens) {
            (self.say)(Said::Tokens(tokens));
        }
        Ok(())
    }

    /// The whole answer, with the counts that the server told last.
    fn whole(&self) -> Completion {
        let (facts, wanted) = (&self.job.facts, self.generation.token_ids);
        let (choices, counts) =
            self.locked(|state| (std::mem::take(&mut state.choices), std::mem::take(&mut state.counts)));
        let sum = |count: fn(&Counts) -> u32| counts.iter().map(count).sum::<u32>();
        let n = self.generation.prompt.n() as usize;
        let told: usize = choices.iter().step_by(n.max(1)).map(|choice| choice.prompt_ids.len()).sum();
        let prompt_tokens = match (self.plan.prompt_tokens, told) {
            (0, 0) => sum(|counts| counts.prompt_tokens),
            (0, told) => told as u32,
            (known, _) => known,
        };
        if told == 0 {
            (self.say)(Said::Prefilled(sum(|counts| counts.prompt_tokens)));
        }
        let made: usize = choices.iter().map(|choice| choice.ids).sum();
        let counted = sum(|counts| counts.completion_tokens) as usize + self.plan.kept_ids;
        if !facts.abilities.token_ids && counted > made {
            let choice = (choices.len() > 1).then_some(0);
            let tokens = Tokens { ids: vec![0; counted - made], choice, ..Tokens::default() };
            (self.say)(Said::Tokens(tokens));
        }
        let output = |choice: Choice| Output {
            text: choice.text,
            calls: choice.calls,
            finish: choice.finish.unwrap_or_default(),
            prompt_logprobs: Vec::new(),
            prompt_ids: if wanted { choice.prompt_ids } else { Vec::new() },
            with_ids: wanted,
        };
        Completion {
            asked: None,
            outputs: choices.into_iter().map(output).collect(),
            cached_tokens: sum(|counts| counts.cached_tokens),
            prompt_tokens: Some(prompt_tokens),
        }
    }

    fn locked<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn nothing_in(tokens: &Tokens) -> bool {
    tokens.text.is_empty() && tokens.calls.is_empty() && tokens.prompt_ids.is_empty()
}

fn add_call(calls: &mut Vec<Call>, number: usize, name: Option<&str>, arguments: &str) {
    if number >= calls.len() {
        calls.push(Call::default());
    }
    let Some(call) = calls.get_mut(number) else { return };
    if let Some(name) = name {
        call.name.push_str(name);
    }
    call.arguments.push_str(arguments);
}
