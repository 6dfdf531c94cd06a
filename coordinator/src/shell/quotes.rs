//! Quotes over the bus: the core's situation and the scaler's market become a problem, a task of its own solves it.

use std::collections::BTreeSet;

use ternfleet_proto::message::{BatchCreate, Promise, Quote, QuoteAsk, Refusal, RefusalCode};
use ternfleet_proto::{Now, TimeMs, UsdMicro};

use crate::core::Core;
use crate::models::Models;
use crate::plan::ClassSet;
use crate::quote::{Lengths, Request, Skill, Work, quote};
use crate::scale::{Intents, PodKind, Prospect, Seen, Settings, class_set, market};

/// What can be rented, as the scaler last saw it. Without a scaler, nothing.
#[derive(Debug, Clone)]
pub(crate) struct Footing {
    pub(crate) settings: Settings,
    pub(crate) intents: Intents,
    /// The provider's list and today's spending; workers and batches come from the core.
    pub(crate) seen: Seen,
    /// False while the scaler has not been heard of yet.
    pub(crate) known: bool,
}

impl Footing {
    /// Before the scaler has said anything, if there is one.
    pub(crate) fn begin(scales: bool) -> Self {
        let seen = Seen { pods: Some(Vec::new()), ..Seen::default() };
        Self { settings: Settings::default(), intents: Intents::new(), seen, known: !scales }
    }

    /// Refuses a request for models that nobody serves and no class of pods can serve.
    pub(crate) fn check<'a>(
        &self,
        now: Now,
        core: &Core,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Refusal> {
        // Most requests name what a worker serves; no list of all models is made for them.
        let mut others = wanted.into_iter().filter(|model| !core.serves(model)).peekable();
        if others.peek().is_none() { Ok(()) } else { self.models(now, core).check(others) }
    }

    /// What requests may name.
    fn models(&self, now: Now, core: &Core) -> Models {
        let mut models = core.models(now);
        let classes = self.settings.classes.iter().filter(|class| class.pods_max > 0);
        for class in classes.filter(|_| self.settings.pods_max > 0) {
            models.open |= class.models.is_empty();
            models.rentable.extend(class.models.iter().cloned());
        }
        models.open |= !self.known;
        models
    }
}

/// A quote that is ready to be worked out.
pub(crate) struct Question {
    prospect: Prospect,
    models: Models,
    lengths: Lengths,
    skill: Skill,
    /// Without the lines that need no work.
    ask: QuoteAsk,
    cached_lines: u64,
}

impl Question {
    /// Takes a picture of the fleet.
    pub(crate) fn new(now: Now, core: &Core, footing: &Footing, mut ask: QuoteAsk) -> Question {
        let cached_lines = core.take_known(&ask.tenant, &mut ask.work);
        let situation = core.situation(now);
        let seen = Seen {
            now: now.wall,
            workers: situation.workers,
            needs: situation.needs,
            ..footing.seen.clone()
        };
        Question {
            prospect: market(&footing.settings, &footing.intents, &seen),
            models: footing.models(now, core),
            lengths: core.work_lengths(),
            skill: core.quote_skill(),
            ask,
            cached_lines,
        }
    }

    /// Works it out, away from the coordinator's loop: a large market takes some milliseconds for each alternative.
    pub(crate) async fn answer(self) -> Result<(Quote, Promise), Refusal> {
        let worked = ternfleet_proto::aside::run(move || self.work_out()).await;
        worked.unwrap_or_else(|_| {
            Err(refuse(RefusalCode::Unavailable, "the quote could not be computed".into()))
        })
    }

    fn work_out(self) -> Result<(Quote, Promise), Refusal> {
        let (ask, problem) = (&self.ask, &self.prospect.problem);
        self.models.check(ask.work.models.keys().map(String::as_str))?;
        let classes = self.classes()?.and(self.able());
        if self.cached_lines == 0 && (ask.work.sample.is_empty() || ask.work.lines == 0) {
            let message = "the file has no valid request to quote";
            return Err(refuse(RefusalCode::Invalid, message.into()));
        }
        if ask.budget_usd_micro.is_some_and(|budget| budget.0 <= 0) {
            return Err(refuse(RefusalCode::Invalid, "budget_usd_micro must be positive".into()));
        }
        let work = Work {
            sample: ask.work.sample.clone(),
            lines: ask.work.lines,
            model: self.model().map(str::to_owned),
            lengths: self.lengths.clone(),
        };
        let tokens = work.estimate();
        let request = Request {
            work,
            tokens,
            deadline: ask.deadline,
            budget: ask.budget_usd_micro,
            classes,
            skill: self.skill,
        };
        let quote = match ask.work.sample.is_empty() {
            true => nothing_to_do(problem.now),
            false => quote(problem, &self.labels(), &self.prospect.engines, &request),
        };
        let quote = Quote { cached_lines: self.cached_lines, ..quote };
        let promise = Promise {
            quoted_at: problem.now,
            work_tokens: tokens.tokens,
            work_tokens_sd: tokens.sd,
            cost_p50_usd_micro: quote.cost_p50_usd_micro,
            cost_p95_usd_micro: quote.cost_p95_usd_micro,
            bill_p50_usd_micro: quote.bill_p50_usd_micro,
            bill_p95_usd_micro: quote.bill_p95_usd_micro,
            bill_factor: self.skill.bias.exp(),
            finish_p50_ms: quote.finish_p50_ms,
            finish_p95_ms: quote.finish_p95_ms,
            binds: quote.binds,
            models: ask.work.models.clone(),
        };
        Ok((quote, promise))
    }

    /// Kinds of pods that serve a model of the file.
    fn able(&self) -> ClassSet {
        let models = &self.ask.work.models;
        let named: u64 = models.values().sum();
        if named < self.ask.work.lines || models.is_empty() {
            return ClassSet::ALL;
        }
        class_set(&self.prospect.kinds, |kind| models.keys().any(|model| kind.serves(model)))
    }

    /// The one model of the file, if it has one.
    fn model(&self) -> Option<&str> {
        let mut models = self.ask.work.models.keys();
        models.next().filter(|_| models.next().is_none()).map(String::as_str)
    }

    /// Names of the kinds: their class, with the model where one class has several.
    fn labels(&self) -> Vec<String> {
        let label = |kind: &PodKind| {
            let several = self.prospect.kinds.iter().filter(|other| other.class == kind.class).count() > 1;
            match kind.models.first().filter(|_| several) {
                Some(model) => format!("{} ({model})", kind.class),
                None => kind.class.clone(),
            }
        };
        self.prospect.kinds.iter().map(label).collect()
    }

    fn classes(&self) -> Result<ClassSet, Refusal> {
        if self.ask.classes.is_empty() {
            return Ok(ClassSet::ALL);
        }
        let names: BTreeSet<&str> = self.prospect.kinds.iter().map(|kind| kind.class.as_str()).collect();
        if let Some(name) = self.ask.classes.iter().find(|name| !names.contains(name.as_str())) {
            let known = names.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("no pods of class {name:?}; known classes are: {known}");
            return Err(refuse(RefusalCode::Invalid, message));
        }
        Ok(class_set(&self.prospect.kinds, |kind| self.ask.classes.contains(&kind.class)))
    }
}

/// Of a batch whose answers are all known.
fn nothing_to_do(now: TimeMs) -> Quote {
    let nothing = Some(UsdMicro::ZERO);
    Quote {
        kept: true,
        explanation: "Every line is answered by the answer of an earlier one.".to_owned(),
        bill_p50_usd_micro: nothing,
        bill_p95_usd_micro: nothing,
        finish_p50_ms: now,
        finish_p95_ms: now,
        ..Quote::default()
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
            tracing::debug!(%none, "a new batch was accepted without a quote");
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
    message += " To submit it nevertheless, set accept_at_risk (`submit --anyway`).";
    Some(refuse(RefusalCode::Unaffordable, message))
}

fn refuse(code: RefusalCode, message: String) -> Refusal {
    Refusal { code, message, retry_after_ms: None }
}
