//! The scaler as a task of the leader: it looks at the provider's list and at the core's situation, asks
//! [`crate::scale::decide`], and does what that says, intents first.
//!
//! What it must not forget is in the bucket `scale` ([`store`]): intents, settings, the number of the next name, the
//! ledger of the day. A leader that dies at any point is followed by one that reads them and adopts what runs. The
//! core is told of every lease, so that its bill runs from a pod's creation to its return.

mod failures;
mod order;
mod perform;
mod provider;
mod store;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ternfleet_cloud::{CloudError, Rented, Status};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{PodFailure, Refusal, RefusalCode, Reply, ScaleDials, ScaleView, StartFailed};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{Clock, LeaderRevision, MonoMs, Now, TimeMs, UsdMicro, codec};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Input;
use super::account::RentedBefore;
use super::lease::Held;
use super::quotes::Footing;
use super::reply::ReplyTo;
use crate::core::{Situation, day_of};
use crate::metrics::Metrics;
use crate::options::ProviderKind;
use crate::plan::Plan;
use crate::scale::{Decision, Refused, Seen, SeenPod, Settings, decide};

pub(crate) use provider::{Rental, rental};
use store::Store;

/// After the bus came back, silence is no fault of the workers' for so long.
const HEARING_AGAIN: Duration = Duration::from_secs(10);
/// Prices and room are asked for this often.
const OFFERS_EVERY: Duration = Duration::from_secs(60);
/// After an empty account or a refused key nothing is ordered for so long.
const HALT: Duration = Duration::from_secs(300);

/// A caller's question.
#[derive(Debug)]
pub(crate) struct ScaleCall {
    pub(crate) verb: ApiVerb,
    pub(crate) payload: bytes::Bytes,
    pub(crate) reply: ReplyTo,
}

/// What the scaler is given.
pub(crate) struct Ties {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) leader: LeaderRevision,
    pub(crate) held: Held,
    pub(crate) situations: watch::Receiver<Arc<Situation>>,
    pub(crate) calls: mpsc::UnboundedReceiver<ScaleCall>,
    /// Pods' reports that their start failed, with the name that each published under.
    pub(crate) failed_starts: mpsc::UnboundedReceiver<(String, StartFailed)>,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}

/// What is remembered of a pod between two looks.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// The core has been told of the lease.
    told: bool,
    /// It has been told that the lease is ending.
    ending_told: bool,
    /// Some list has held it.
    shown: bool,
    /// Its worker was heard of.
    heard: bool,
    /// Why it failed has been told.
    failure_known: bool,
    /// Measured: from the order to the first heartbeat.
    boot_s: Option<f64>,
    /// Since when it is being drained.
    draining_since: Option<MonoMs>,
    /// This leader has written its intent, and knows what became of each order but the last. Otherwise an order of it may
    /// still be on its way, and a refusal of another proves nothing.
    sole_order: bool,
}

struct Scaler {
    ties: Ties,
    rental: Rental,
    store: Store,
    /// What the ledger said when this leader began.
    base_total: UsdMicro,
    base_today: UsdMicro,
    day: u64,
    listed: Option<Vec<Rented>>,
    list_fault: Option<String>,
    /// What is refused, until when, and why.
    refused: Vec<(Refused, MonoMs, String)>,
    halted: Option<(String, MonoMs)>,
    plan: Option<Plan>,
    memories: BTreeMap<String, Memory>,
    /// Measured speeds by class: mean and error.
    rates: BTreeMap<String, (f64, f64)>,
    boots: BTreeMap<String, f64>,
    /// What the latest pod of a class served.
    models: BTreeMap<String, Vec<String>>,
    /// By class, the latest.
    failures: BTreeMap<String, PodFailure>,
    offered_at: Option<Instant>,
    reconciled_at: Instant,
    heard_since: Instant,
    /// Provider's id and our bill of pods that have been returned, for the reconciliation.
    returned: BTreeMap<String, UsdMicro>,
    faults: BTreeSet<String>,
    /// When each intent was first seen here, and how old it was by its date then.
    ages: BTreeMap<String, (MonoMs, Duration)>,
}

/// Runs until the situations end, which is when the leader does.
pub(crate) async fn serve(rental: Rental, ties: Ties) {
    let Some(store) = Store::read_patiently(&ties).await else { return };
    let now = ties.clock.wall();
    let mut scaler = Scaler {
        base_total: store.ledger.value.spent_usd_micro,
        base_today: store.ledger.value.today(now),
        day: day_of(now),
        store,
        rental,
        ties,
        listed: None,
        list_fault: None,
        refused: Vec::new(),
        halted: None,
        plan: None,
        memories: BTreeMap::new(),
        rates: BTreeMap::new(),
        boots: BTreeMap::new(),
        models: BTreeMap::new(),
        failures: BTreeMap::new(),
        offered_at: None,
        reconciled_at: Instant::now(),
        heard_since: Instant::now(),
        returned: BTreeMap::new(),
        faults: BTreeSet::new(),
        ages: BTreeMap::new(),
    };
    tracing::info!(
        provider = scaler.rental.provider.name(),
        intents = scaler.store.intents.len(),
        "the scaler has started"
    );
    let mut ticks = tokio::time::interval(Duration::from_millis(scaler.rental.options.tick_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // In this order, so that a simulation can be repeated; what comes rarely comes first.
            biased;
            call = scaler.ties.calls.recv() => match call {
                Some(call) => scaler.answer(call).await,
                None => return,
            },
            said = scaler.ties.failed_starts.recv() => match said {
                Some((name, said)) => scaler.start_failed(scaler.ties.clock.wall(), &name, said).await,
                None => return,
            },
            _ = ticks.tick() => {
                if scaler.ties.situations.has_changed().is_err() {
                    return;
                }
                scaler.turn().await;
            }
        }
    }
}

impl Scaler {
    /// Look, decide, do.
    async fn turn(&mut self) {
        let now = self.ties.clock.wall();
        self.look().await;
        self.ask_offers().await;
        if self.store.stale {
            self.store.reload(&self.ties).await;
        }
        self.date_intents();
        self.learn();
        self.take_prices().await;
        self.learn_health().await;
        let settings = self.settings();
        let seen = self.seen(now);
        let intents = self.store.intents();
        let previous = self.plan.take();
        let decision = decide(&settings, &intents, &seen, previous.as_ref());
        self.perform(now, &decision).await;
        self.keep_ledger(now).await;
        self.reconcile(now).await;
        let view = self.view(now, &settings, &seen, &decision);
        self.ties.metrics.scaler(&view, &decision.wanted);
        let _ = self.ties.inbox.send(Input::Supplied(Box::new(view::supply(&view)))).await;
        self.plan = Some(decision.plan);
        let before = RentedBefore { total: self.base_total, today: self.before_today(now) };
        let _ = self.ties.inbox.send(Input::RentedBefore(before)).await;
        let intents = self.store.intents();
        let footing = Footing { settings, intents, seen: self.seen(now), known: true };
        let _ = self.ties.inbox.send(Input::Footing(Arc::new(footing))).await;
    }

    /// An intent bears a date; from its first sight on it ages by the clock that nobody steps.
    fn date_intents(&mut self) {
        let Now { mono, wall } = self.ties.clock.now();
        self.ages.retain(|name, _| self.store.intents.contains_key(name));
        for (name, kept) in &self.store.intents {
            self.ages.entry(name.clone()).or_insert_with(|| (mono, wall.since(kept.value.written_at)));
        }
    }

    async fn look(&mut self) {
        if !self.ties.bus.connected() {
            self.heard_since = Instant::now();
        }
        match self.rental.provider.list().await {
            Ok(pods) => {
                let names: BTreeSet<&str> =
                    pods.iter().flat_map(|pod| [pod.name.as_str(), pod.id.0.as_str()]).collect();
                for (name, kept) in &self.store.intents {
                    let id = kept.value.provider_id.as_deref();
                    if names.contains(name.as_str()) || id.is_some_and(|id| names.contains(id)) {
                        self.memories.entry(name.clone()).or_default().shown = true;
                    }
                }
                self.listed = Some(pods);
                self.list_fault = None;
            }
            Err(fault) => {
                self.heed("list", &fault);
                self.listed = None;
                self.list_fault = Some(fault.to_string());
            }
        }
    }

    /// Prices are data: what the provider says replaces what is configured. A class without room anywhere is left out
    /// until the next look.
    async fn ask_offers(&mut self) {
        if self.offered_at.is_some_and(|at| at.elapsed() < OFFERS_EVERY) {
            return;
        }
        match self.rental.provider.offers().await {
            Ok(offers) => {
                self.offered_at = Some(Instant::now());
                for (class, why) in self.rental.take_offers(&offers) {
                    self.refuse_class(&class, OFFERS_EVERY, &why);
                }
            }
            Err(fault) => self.heed("offers", &fault),
        }
    }

    /// What the heartbeats say about classes: speed and boot.
    fn learn(&mut self) {
        let (situation, mono) = (Arc::clone(&self.ties.situations.borrow()), self.ties.clock.mono());
        let mut sums: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
        for worker in situation.workers.iter().filter(|worker| worker.live && worker.rate_mean_tok_s > 0.0) {
            let sum = sums.entry(&worker.class).or_default();
            *sum = (sum.0 + 1.0, sum.1 + worker.rate_mean_tok_s, sum.2 + worker.rate_sd_tok_s);
            let intent = self.store.intents.get(&worker.pod).map(|kept| &kept.value);
            if let Some(intent) = intent {
                self.models.insert(intent.class.clone(), worker.models.clone());
            }
            let memory = self.memories.entry(worker.pod.clone()).or_default();
            if let (None, Some(intent)) = (memory.boot_s, intent) {
                let boot_s = self
                    .ages
                    .get(&worker.pod)
                    .map_or(0.0, |(since, age)| (mono.since(*since) + *age).as_secs_f64());
                memory.boot_s = Some(boot_s);
                let known = self.boots.entry(intent.class.clone()).or_insert(boot_s);
                *known += 0.3 * (boot_s - *known);
            }
        }
        for (class, (count, mean, error)) in sums {
            self.rates.insert(class.to_owned(), (mean / count, error / count));
        }
    }

    fn settings(&self) -> Settings {
        self.settings_with(&self.store.dials.value)
    }

    fn settings_with(&self, dials: &ScaleDials) -> Settings {
        let now = self.ties.clock.mono();
        let refused = self.refused.iter().filter(|(_, until, _)| *until > now);
        let mut settings = self.rental.settings(dials);
        settings.refused = refused.map(|(refused, _, _)| refused.clone()).collect();
        for class in &mut settings.classes {
            if self.rental.options.provider == ProviderKind::Runpod {
                class.starting_max = self.store.health(&class.name).starting_max(self.ties.clock.wall());
            }
            if let Some((mean, error)) = self.rates.get(&class.name) {
                (class.rate_tok_s, class.rate_sd_tok_s) = (*mean, *error);
            }
            if let Some(boot_s) = self.boots.get(&class.name) {
                class.boot_s = *boot_s;
            }
            // What a pod was seen to serve counts more than what its class promises.
            if let Some(models) = self.models.get(&class.name) {
                class.models.clone_from(models);
            }
        }
        settings
    }

    fn seen(&self, now: TimeMs) -> Seen {
        let (situation, mono) = (Arc::clone(&self.ties.situations.borrow()), self.ties.clock.mono());
        let pods = self.listed.as_ref().map(|listed| {
            let alive = listed.iter().filter(|pod| pod.status.is_alive());
            alive
                .map(|pod| SeenPod {
                    id: pod.id.0.clone(),
                    name: pod.name.clone(),
                    computes: !matches!(pod.status, Status::Exited | Status::Error),
                    price_usd_micro_per_hour: pod.price_usd_micro_per_hour.map(UsdMicro),
                    data_center: pod.data_center.clone(),
                })
                .collect()
        });
        Seen {
            now,
            pods,
            workers: situation.workers.clone(),
            needs: situation.needs.clone(),
            spent_today: self.spent_today(now),
            halted: self.halted.as_ref().is_some_and(|(_, until)| *until > mono),
            deaf: !self.ties.bus.connected() || self.heard_since.elapsed() < HEARING_AGAIN,
            next_number: self.store.number.value.max(self.rental.options.first_number),
            shown: self
                .memories
                .iter()
                .filter(|(_, memory)| memory.shown)
                .map(|(name, _)| name.clone())
                .collect(),
            ages: self
                .ages
                .iter()
                .map(|(name, (since, age))| (name.clone(), mono.since(*since) + *age))
                .collect(),
        }
    }

    fn spent(&self) -> UsdMicro {
        self.base_total + self.ties.situations.borrow().leased_total
    }

    /// Of what has been spent today, all that is not in the core's bills.
    fn before_today(&self, now: TimeMs) -> UsdMicro {
        if day_of(now) == self.day { self.base_today } else { UsdMicro::ZERO }
    }

    fn spent_today(&self, now: TimeMs) -> UsdMicro {
        self.before_today(now) + self.ties.situations.borrow().leased_total
    }

    /// Writes down what has been spent. A new day begins at nothing.
    async fn keep_ledger(&mut self, now: TimeMs) {
        if day_of(now) != self.day {
            let so_far = self.ties.situations.borrow().leased_total;
            self.day = day_of(now);
            // What this process has billed up to now belongs to the days before.
            self.base_today = UsdMicro::ZERO - so_far;
        }
        let ledger = store::Ledger {
            day: self.day,
            spent_today_usd_micro: self.spent_today(now),
            spent_usd_micro: self.spent(),
            billed_to: now,
        };
        self.store.keep_ledger(&self.ties, ledger).await;
    }

    /// A provider's fault, by what it means for all.
    fn heed(&mut self, what: &str, fault: &CloudError) {
        self.ties.metrics.provider_fault(fault);
        let now = self.ties.clock.mono();
        match fault {
            CloudError::NoBalance(_) | CloudError::Unauthorized(_) => {
                tracing::error!(what, %fault, "no pods are ordered until the provider's account is fixed");
                let halt = HALT.min(Duration::from_secs_f64(self.rental.options.refusal_s));
                self.halted = Some((fault.to_string(), now.plus(halt)));
            }
            CloudError::RateLimited { retry_after } => {
                self.halted = Some((fault.to_string(), now.plus(*retry_after)));
            }
            _ => {
                // Told once, and again when it comes back after it was gone.
                if self.faults.insert(format!("{what}: {fault}")) {
                    tracing::warn!(what, %fault, "the provider rejects requests");
                }
                if self.faults.len() > 100 {
                    self.faults.clear();
                }
            }
        }
    }

    fn refuse(&mut self, class: &str, place: Option<String>, span: Duration, why: String) {
        let now = self.ties.clock.mono();
        let refused = Refused { class: class.to_owned(), data_center: place };
        self.refused.retain(|(known, until, _)| *until > now && *known != refused);
        self.refused.push((refused, now.plus(span), why));
    }

    /// A class of its own choice of places is refused in each of them.
    fn refuse_class(&mut self, class: &str, span: Duration, why: &str) {
        let places = self.rental.class(class).map(|class| class.data_centers.clone()).unwrap_or_default();
        for place in places.into_iter().map(Some).chain([None]) {
            self.refuse(class, place, span, why.to_owned());
        }
    }

    /// Compares our bill with the provider's, pod by pod as far as it tells them apart.
    async fn reconcile(&mut self, now: TimeMs) {
        let every = self.rental.options.reconcile_s;
        if every == 0 || self.reconciled_at.elapsed() < Duration::from_secs(every) {
            return;
        }
        self.reconciled_at = Instant::now();
        let mut ours = self.returned.clone();
        for (name, billed) in &self.ties.situations.borrow().leases {
            let id = self.store.intents.get(name).and_then(|kept| kept.value.provider_id.clone());
            if let Some(id) = id {
                ours.insert(id, *billed);
            }
        }
        let from = self.store.began_at.0.saturating_sub(3_600_000);
        match self.rental.provider.billing(from, now.0).await {
            Ok(bills) => {
                let mut theirs: BTreeMap<&str, i64> = BTreeMap::new();
                for bill in &bills {
                    *theirs.entry(&bill.pod.0).or_default() += bill.amount_usd_micro;
                }
                let (mut sum_ours, mut sum_theirs) = (0, 0);
                for (id, billed) in &ours {
                    if let Some(amount) = theirs.get(id.as_str()) {
                        sum_ours += billed.0;
                        sum_theirs += amount;
                    }
                }
                if sum_ours > 0 {
                    let drift = sum_theirs as f64 / sum_ours as f64 - 1.0;
                    self.ties.metrics.billing_drift(drift);
                    tracing::info!(
                        ours = sum_ours,
                        theirs = sum_theirs,
                        drift,
                        "compared own bill with the provider's"
                    );
                }
            }
            Err(fault) => self.heed("billing", &fault),
        }
    }

    async fn answer(&mut self, call: ScaleCall) {
        let now = self.ties.clock.wall();
        let answer: Reply<ScaleView> = match self.dials_of(&call) {
            Err(refused) => Err(refused),
            Ok(asked) => self.told(now, call.verb, asked).await,
        };
        call.reply.send(&*self.ties.bus, &answer).await;
        if call.verb == ApiVerb::ScaleSet && answer.is_ok() {
            self.turn().await;
        }
    }

    async fn told(&mut self, now: TimeMs, verb: ApiVerb, asked: ScaleDials) -> Reply<ScaleView> {
        let dials = self.store.dials.value.clone().with(asked);
        if verb == ApiVerb::ScaleSet {
            self.store.keep_dials(&self.ties, dials.clone()).await?;
            tracing::info!(?dials, "the scaler's settings were changed");
        }
        self.look().await;
        let settings = self.settings_with(&dials);
        let seen = self.seen(now);
        let decision: Decision = decide(&settings, &self.store.intents(), &seen, self.plan.as_ref());
        Ok(self.view(now, &settings, &seen, &decision))
    }

    fn dials_of(&self, call: &ScaleCall) -> Result<ScaleDials, Refusal> {
        let invalid = |message: String| Refusal { code: RefusalCode::Invalid, message, retry_after_ms: None };
        if call.verb == ApiVerb::ScaleShow {
            return Ok(ScaleDials::default());
        }
        let asked: ScaleDials = codec::decode(&call.payload).map_err(|error| invalid(error.to_string()))?;
        let known: Vec<&str> = self.rental.options.classes.iter().map(|class| class.name.as_str()).collect();
        for name in asked.classes.iter().flatten() {
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                return Err(invalid(format!("no class {name:?}; configured are {known}")));
            }
        }
        let whole = self.rental.settings(&self.store.dials.value.clone().with(asked.clone()));
        if whole.pods_min > whole.pods_max {
            let (min, max) = (whole.pods_min, whole.pods_max);
            return Err(invalid(format!(
                "the minimum of {min} pods is above the maximum of {max}: set --min and --max"
            )));
        }
        let negative = |limit: Option<UsdMicro>| limit.is_some_and(|usd| usd < UsdMicro::ZERO);
        if negative(asked.usd_micro_per_hour_max) || negative(asked.usd_micro_per_day_max) {
            return Err(invalid("a limit must not be negative; 0 removes it".to_owned()));
        }
        Ok(asked)
    }
}
