//! Doing what the decision says. Each act may be repeated without harm, and each is written down before anything is
//! ordered or ended.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use ternfleet_cloud::{CloudError, PodId, Rented};
use ternfleet_proto::bus::Publish;
use ternfleet_proto::message::{Control, Event as Audit, EventKind, Order as Word};
use ternfleet_proto::{TimeMs, UsdMicro, codec, table};

use super::order::in_our_words;
use super::{Input, Scaler};
use crate::core::{Event, Lease, Situation};
use crate::scale::{Act, Decision, Intent, Why};

/// Pods whose bill is remembered for the reconciliation after their return.
const RETURNED_MAX: usize = 1_000;
/// The core tells what a lease has cost within its next ticks.
const LAST_BILL_WITHIN: Duration = Duration::from_secs(3);

impl Scaler {
    pub(super) async fn perform(&mut self, now: TimeMs, decision: &Decision) {
        self.tell_leases(now).await;
        let mut orders = Vec::new();
        for act in &decision.acts {
            // Somebody else has written or may lead: what was decided no longer holds. The next turn reads first.
            if self.store.stale || !self.ties.held.lasts() {
                return;
            }
            self.ties.metrics.scale_act(act);
            match act {
                // A pod of its class may have failed a moment ago, after this was decided.
                Act::Write(intent) if self.store.health(&intent.class).rests(now) => {}
                Act::Write(intent) => {
                    if self.write(now, intent).await {
                        orders.push(intent.name.clone());
                    }
                }
                Act::Order(name) => orders.push(name.clone()),
                Act::Adopt { name, id, price } => {
                    tracing::info!(pod = name, id, "adopted: an intent with its name exists");
                    let (id, price) = (id.clone(), *price);
                    self.note(name, move |intent| {
                        intent.provider_id = Some(id);
                        if let Some(price) = price {
                            intent.price_usd_micro_per_hour = price;
                        }
                    })
                    .await;
                    self.tell_leases(now).await;
                }
                Act::End { name, id, why } => self.end(now, name, id, *why).await,
                Act::Close { name, why } => self.close(now, name, *why).await,
            }
        }
        self.order(now, orders).await;
    }

    async fn write(&mut self, now: TimeMs, intent: &Intent) -> bool {
        if let Err(error) = self.store.write(&self.ties, intent).await {
            tracing::warn!(pod = intent.name, %error, "the intent could not be written; nothing is ordered");
            return false;
        }
        self.audit(
            now,
            EventKind::PodIntent {
                pod: intent.name.clone(),
                pod_class: intent.class.clone(),
                price_usd_micro_per_hour: intent.price_usd_micro_per_hour,
            },
        )
        .await;
        self.memories.entry(intent.name.clone()).or_default().sole_order = true;
        true
    }

    pub(super) async fn note(&mut self, name: &str, change: impl FnOnce(&mut Intent)) -> bool {
        let noted = self.store.change(&self.ties, name, change).await;
        if let Err(error) = &noted {
            tracing::warn!(pod = name, %error, "the intent could not be changed");
        }
        noted.is_ok()
    }

    /// Orders pods side by side: a provider may take seconds for each.
    async fn order(&mut self, now: TimeMs, names: Vec<String>) {
        let mut ordered = Vec::new();
        for name in names {
            let Some(intent) = self.store.intents.get(&name).map(|kept| kept.value.clone()) else { continue };
            if !self.is_sole_order(&name)
                && let Err(error) = self.store.take_over(&self.ties, &name).await
            {
                tracing::warn!(pod = name, %error, "the intent could not be written again; nothing is ordered");
                continue;
            }
            match self.rental.order(now, &intent) {
                Ok(order) => {
                    let (provider, held) = (Arc::clone(&self.rental.provider), self.ties.held.clone());
                    // Writing may have taken long, and an order cannot be taken back.
                    ordered.push(async move {
                        if !held.lasts() {
                            tracing::warn!(
                                pod = intent.name,
                                "the lease has ended meanwhile; nothing is ordered"
                            );
                            return None;
                        }
                        Some((intent, provider.create(&order).await))
                    });
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::error!(pod = name, why, "this pod cannot be ordered");
                    self.give_up(&intent, true, why).await;
                }
            }
        }
        for (intent, answer) in join_all(ordered).await.into_iter().flatten() {
            match answer {
                Ok(rented) => self.rented(now, &intent, rented).await,
                Err(fault) => self.not_rented(&intent, fault).await,
            }
        }
    }

    async fn rented(&mut self, now: TimeMs, intent: &Intent, rented: Rented) {
        let id = rented.id.0.clone();
        tracing::info!(pod = intent.name, id, place = rented.data_center, class = intent.class, "rented");
        let (place, price) = (rented.data_center.clone(), rented.price_usd_micro_per_hour);
        let noted = id.clone();
        self.note(&intent.name, move |intent| {
            intent.provider_id = Some(noted);
            intent.data_center = place.or(intent.data_center.take());
            if let Some(price) = price.filter(|price| *price > 0) {
                intent.price_usd_micro_per_hour = UsdMicro(price);
            }
        })
        .await;
        if let Some(listed) = &mut self.listed
            && !listed.iter().any(|pod| pod.id == rented.id)
        {
            listed.push(rented);
        }
        self.audit(now, EventKind::PodRented { pod: intent.name.clone(), provider_id: id }).await;
        self.tell_leases(now).await;
    }

    /// What a refused or lost order means, by the table of the provider's answers.
    async fn not_rented(&mut self, intent: &Intent, fault: CloudError) {
        self.heed("create", &fault);
        let why = in_our_words(&fault.to_string());
        match fault {
            CloudError::NoCapacity(_) => self.give_up(intent, false, why).await,
            CloudError::Forbidden(_) | CloudError::Invalid(_) => self.give_up(intent, true, why).await,
            CloudError::NoBalance(_) | CloudError::Unauthorized(_) => self.strike_refused(&intent.name).await,
            // It may have been rented: the intent stays, and the next turn looks for its name before anything else.
            CloudError::RateLimited { .. }
            | CloudError::Uncertain(_)
            | CloudError::Unreachable(_)
            | CloudError::Protocol(_)
            | CloudError::NotFound(_)
            | CloudError::Conflict(_) => {
                self.memories.entry(intent.name.clone()).or_default().sole_order = false;
            }
        }
    }

    /// Nothing was rented by this order: the intent goes, and its place (or its whole class) rests for a while.
    async fn give_up(&mut self, intent: &Intent, whole_class: bool, why: String) {
        let span = Duration::from_secs_f64(self.rental.options.refusal_s);
        if whole_class {
            self.refuse_class(&intent.class, span, &why);
        } else {
            self.refuse(&intent.class, intent.data_center.clone(), span, why);
        }
        self.strike_refused(&intent.name).await;
    }

    fn is_sole_order(&self, name: &str) -> bool {
        self.memories.get(name).is_some_and(|memory| memory.sole_order)
    }

    /// Strikes an intent out whose order was refused. It stays if another order of it may be open: then its pod comes, or
    /// never does.
    async fn strike_refused(&mut self, name: &str) {
        if !self.is_sole_order(name) {
            return;
        }
        if let Err(error) = self.store.strike(&self.ties, name).await {
            tracing::warn!(pod = name, %error, "an intent could not be deleted");
        }
    }

    /// Marks, drains, ends. Over several turns: a worker hands its jobs back first.
    async fn end(&mut self, now: TimeMs, name: &str, id: &str, why: Why) {
        if why == Why::Orphan {
            tracing::warn!(
                pod = name,
                id,
                "terminated: it has this fleet's name, and no intent exists for \
                                            it"
            );
            return self.terminate(name, id).await;
        }
        let marked = self.note(name, |intent| _ = intent.ending.get_or_insert(why));
        if !marked.await {
            return;
        }
        let memory = self.memories.entry(name.to_owned()).or_default();
        if !std::mem::replace(&mut memory.ending_told, true) {
            tracing::info!(pod = name, ?why, "returned");
            self.tell(Event::LeaseEnding { pod: name.to_owned() }).await;
        }
        if id.is_empty() {
            return;
        }
        let mono = self.ties.clock.mono();
        let polite = matches!(why, Why::NotNeeded | Why::Limit);
        let since = *self.memories.entry(name.to_owned()).or_default().draining_since.get_or_insert(mono);
        let patient = mono.since(since).as_secs_f64() < self.rental.options.drain_limit_s;
        if polite && patient && self.drain(name).await {
            return;
        }
        self.look_at_log(now, name, id, why).await;
        self.terminate(name, id).await;
    }

    /// True while a worker of the pod is there to be drained.
    async fn drain(&mut self, pod: &str) -> bool {
        let situation = Arc::clone(&self.ties.situations.borrow());
        let Some(seen) = situation.workers.iter().find(|worker| worker.pod == pod && worker.live) else {
            return false;
        };
        for worker in &seen.workers {
            let word = codec::encode(&Control { leader: self.ties.leader, order: Word::Drain });
            if let Err(error) = self.ties.bus.send(&table::control(worker), word).await {
                tracing::debug!(%worker, %error, "could not send the order to drain");
            }
        }
        true
    }

    async fn terminate(&mut self, name: &str, id: &str) {
        match self.rental.provider.terminate(&PodId(id.to_owned())).await {
            Ok(()) | Err(CloudError::NotFound(_)) => {
                if let Some(listed) = &mut self.listed {
                    listed.retain(|pod| pod.id.0 != id);
                }
                // From now on a list without it says that it is gone.
                if let Some(memory) = self.memories.get_mut(name) {
                    memory.shown = true;
                }
                self.tell(Event::LeaseEnded { pod: name.to_owned() }).await;
            }
            Err(fault) => self.heed("terminate", &fault),
        }
    }

    /// The provider lists it no more.
    async fn close(&mut self, now: TimeMs, name: &str, why: Why) {
        let Some(intent) = self.store.intents.get(name).map(|kept| kept.value.clone()) else { return };
        let id = intent.provider_id.as_deref().unwrap_or("");
        // The bill is found by the intent, so it is taken before the intent goes.
        self.close_bill(name, id).await;
        let billed = self.billed(name);
        if let Err(error) = self.store.strike(&self.ties, name).await {
            tracing::warn!(pod = name, %error, "an intent could not be deleted");
            return;
        }
        self.account_for(now, &intent, why).await;
        if why == Why::Vanished {
            tracing::warn!(pod = name, %billed, "the pod has disappeared without a report");
        } else {
            tracing::info!(pod = name, ?why, %billed, "returned");
        }
        self.audit(now, EventKind::PodReturned { pod: name.to_owned(), billed_usd_micro: billed }).await;
        self.memories.remove(name);
    }

    /// What a pod has cost: so far, or in all once its lease has ended.
    pub(super) fn billed(&self, name: &str) -> UsdMicro {
        let situation = self.ties.situations.borrow();
        let mut bills = situation.leases.iter().chain(&situation.ended_leases);
        bills.find(|(pod, _)| pod == name).map_or(UsdMicro::ZERO, |(_, billed)| *billed)
    }

    /// Ends the lease, and waits until the core has closed its bill.
    async fn close_bill(&mut self, name: &str, id: &str) {
        let leased = self.memories.get(name).is_some_and(|memory| memory.told);
        self.tell(Event::LeaseEnded { pod: name.to_owned() }).await;
        if !leased {
            return;
        }
        let has_ended =
            |situation: &Arc<Situation>| situation.ended_leases.iter().any(|(pod, _)| pod == name);
        let closed = tokio::time::timeout(LAST_BILL_WITHIN, self.ties.situations.wait_for(has_ended));
        if !matches!(closed.await, Ok(Ok(_))) {
            tracing::warn!(pod = name, "the final bill of this pod is not known yet");
        }
        let billed = self.billed(name);
        if !id.is_empty() && billed > UsdMicro::ZERO {
            if self.returned.len() >= RETURNED_MAX {
                self.returned.pop_first();
            }
            self.returned.insert(id.to_owned(), billed);
        }
    }

    /// What the provider says that a pod costs, in an answer or in its list, replaces what was expected.
    pub(super) async fn take_prices(&mut self) {
        let told: Vec<(String, UsdMicro)> = self
            .listed
            .iter()
            .flatten()
            .filter_map(|pod| Some((pod, pod.price_usd_micro_per_hour.filter(|price| *price > 0)?)))
            .filter_map(|(pod, price)| {
                let intent = &self.store.intents.get(&pod.name)?.value;
                let own = intent.provider_id.as_deref() == Some(pod.id.0.as_str());
                let price = UsdMicro(price);
                (own && intent.price_usd_micro_per_hour != price).then(|| (pod.name.clone(), price))
            })
            .collect();
        for (name, price) in told {
            tracing::info!(pod = name, %price, "price of this pod from the provider");
            if self.note(&name, move |intent| intent.price_usd_micro_per_hour = price).await {
                self.memories.entry(name).or_default().told = false;
            }
        }
    }

    /// Every pod that is rented is billed. After a change of leader the bill continues from where the last one stopped.
    async fn tell_leases(&mut self, now: TimeMs) {
        let mut leases = Vec::new();
        let mono = self.ties.clock.mono();
        for (name, kept) in &self.store.intents {
            let intent = &kept.value;
            let Some(id) = &intent.provider_id else { continue };
            let memory = self.memories.entry(name.clone()).or_default();
            if std::mem::replace(&mut memory.told, true) {
                continue;
            }
            let listed = self.listed.iter().flatten().find(|pod| pod.id.0 == *id);
            let created = listed.and_then(|pod| pod.created_at_ms).map_or(intent.written_at, TimeMs);
            // Whatever the dates say after a step of the clock: no pod is older than its intent.
            let age = self.ages.get(name).map(|(seen, age)| mono.since(*seen) + *age);
            let oldest = age.map_or(0, |age| now.0.saturating_sub(age.as_millis() as u64));
            leases.push(Lease {
                pod: name.clone(),
                class: intent.class.clone(),
                price_usd_micro_per_hour: intent.price_usd_micro_per_hour,
                since: created.max(intent.written_at).max(self.store.billed_to).max(TimeMs(oldest)).min(now),
            });
        }
        for lease in leases {
            self.tell(Event::Leased(Box::new(lease))).await;
        }
    }

    async fn tell(&self, event: Event) {
        let _ = self.ties.inbox.send(Input::Event(event)).await;
    }

    pub(super) async fn audit(&self, at: TimeMs, what: EventKind) {
        let event = Audit { at, leader: self.ties.leader, what };
        let stored =
            self.ties.bus.publish(&table::event("pod"), codec::encode(&event), Publish::default()).await;
        if let Err(error) = stored {
            tracing::warn!(%error, "an event of a pod could not be written to the audit log");
        }
    }
}
