//! Quotes over the bus: the core's situation and the scaler's market become a problem, a task of its own solves it.

use ternfleet_proto::Now;
use ternfleet_proto::message::{BatchCreate, Promise, Quote, QuoteAsk, Refusal, RefusalCode};

use crate::core::Core;
use crate::plan::{ClassSet, PodClass, Problem};
use crate::quote::{Lengths, Request, estimate, quote};
use crate::scale::{Intents, Seen, Settings, market};

/// What can be rented, as the scaler last saw it. Without a scaler, nothing.
#[derive(Debug, Clone)]
pub(crate) struct Footing {
    pub(crate) settings: Settings,
    pub(crate) intents: Intents,
    /// The provider's list and today's spending; workers and batches come from the core.
    pub(crate) seen: Seen,
}

impl Default for Footing {
    fn default() -> Self {
        let seen = Seen { pods: Some(Vec::new()), ..Seen::default() };
        Self { settings: Settings::default(), intents: Intents::new(), seen }
    }
}

/// A quote that is ready to be worked out.
pub(crate) struct Question {
    problem: Problem,
    class_names: Vec<String>,
    lengths: Lengths,
    ask: QuoteAsk,
}

impl Question {
    /// Takes a picture of the fleet.
    pub(crate) fn new(now: Now, core: &Core, footing: &Footing, ask: QuoteAsk) -> Question {
        let situation = core.situation(now);
        let seen = Seen {
            now: now.wall,
            workers: situation.workers,
            batches: situation.batches,
            ..footing.seen.clone()
        };
        let (problem, class_names) = market(&footing.settings, &footing.intents, &seen);
        Question { problem, class_names, lengths: situation.lengths, ask }
    }

    /// Works it out, away from the coordinator's loop: a large market takes some milliseconds for each alternative.
    pub(crate) async fn answer(self) -> Result<(Quote, Promise), Refusal> {
        let worked = ternfleet_proto::aside::run(move || self.work_out()).await;
        worked.unwrap_or_else(|_| {
            Err(refuse(RefusalCode::Unavailable, "the quote could not be computed".into()))
        })
    }

    fn work_out(self) -> Result<(Quote, Promise), Refusal> {
        let classes = self.classes()?;
        let (ask, problem) = (&self.ask, &self.problem);
        if ask.work.sample.is_empty() || ask.work.lines == 0 {
            let message = "there is nothing to quote: no line of the file is a request";
            return Err(refuse(RefusalCode::Invalid, message.into()));
        }
        if ask.budget_usd_micro.is_some_and(|budget| budget.0 <= 0) {
            return Err(refuse(RefusalCode::Invalid, "budget_usd_micro must be positive".into()));
        }
        let tokens = estimate(&ask.work.sample, ask.work.lines, &self.lengths);
        let request = Request { tokens, deadline: ask.deadline, budget: ask.budget_usd_micro, classes };
        let quote = quote(problem, &self.class_names, &request);
        let promise = Promise {
            quoted_at: problem.now,
            work_tokens: tokens.tokens,
            work_tokens_sd: tokens.sd,
            cost_p50_usd_micro: quote.cost_p50_usd_micro,
            cost_p95_usd_micro: quote.cost_p95_usd_micro,
            finish_p50_ms: quote.finish_p50_ms,
            finish_p95_ms: quote.finish_p95_ms,
            binds: quote.binds,
        };
        Ok((quote, promise))
    }

    fn classes(&self) -> Result<ClassSet, Refusal> {
        if self.ask.classes.is_empty() {
            return Ok(ClassSet::ALL);
        }
        let mut chosen = Vec::new();
        for name in &self.ask.classes {
            match self.class_names.iter().position(|known| known == name) {
                Some(place) => chosen.push(PodClass(place.min(63) as u8)),
                None => {
                    let known = self.class_names.join(", ");
                    let message = format!("there are no pods of class {name:?}; there are: {known}");
                    return Err(refuse(RefusalCode::Invalid, message));
                }
            }
        }
        Ok(ClassSet::of(&chosen))
    }
}

/// The quote that a creation asks for, if it says how much work it is.
pub(crate) fn asked(create: &BatchCreate) -> Option<QuoteAsk> {
    create.work.clone().map(|work| QuoteAsk {
        tenant: create.tenant.clone(),
        work,
        deadline: create.options.deadline,
        budget_usd_micro: create.options.budget_usd_micro,
        classes: Vec::new(),
    })
}

/// Works out a creation's quote: to be kept with the batch, or a refusal of it.
pub(crate) async fn quoted(
    question: Option<Question>,
    create: &BatchCreate,
) -> Result<Option<Promise>, Refusal> {
    let Some(question) = question else { return Ok(None) };
    match question.answer().await {
        Ok((quote, promise)) => match objection(create, &quote) {
            Some(refused) => Err(refused),
            None => Ok(Some(promise)),
        },
        // A file without a single good line is a batch all the same: every line gets its error.
        Err(none) => {
            tracing::debug!(%none, "a new batch has no quote");
            Ok(None)
        }
    }
}

/// Why a batch with this quote is not accepted, if so. Only what the caller asked for can be broken: a batch without
/// deadline or budget waits for better times.
fn objection(create: &BatchCreate, quote: &Quote) -> Option<Refusal> {
    let options = &create.options;
    let asked = options.deadline.is_some() || options.budget_usd_micro.is_some();
    if quote.kept || !asked || options.accept_at_risk {
        return None;
    }
    let mut message = quote.explanation.clone();
    if let Some(other) = &quote.cheaper {
        message += &format!(" With a later deadline it would cost {}.", other.cost_usd_micro);
    }
    message += " Ask for it all the same with accept_at_risk (`submit --anyway`).";
    Some(refuse(RefusalCode::Unaffordable, message))
}

fn refuse(code: RefusalCode, message: String) -> Refusal {
    Refusal { code, message, retry_after_ms: None }
}
