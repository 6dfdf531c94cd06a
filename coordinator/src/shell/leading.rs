//! What a leader has that a standby has not: tasks that perform actions, write records and events, and rent pods.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::message::StartFailed;
use ternfleet_proto::{BusError, LeaderRevision, Now, table};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::lease::Held;
use super::{Service, account, books, cache, departure, perform, records, retention, savepoints, scaler};
use crate::core::{Action, Event, Lead, Situation};

/// The leader's tasks, and how they are reached.
pub(super) struct Hands {
    pub(super) actions: mpsc::UnboundedSender<Action>,
    books: Arc<books::Pile>,
    cache: mpsc::UnboundedSender<cache::Ask>,
    savepoints: savepoints::Savepoints,
    pub(super) scaler: Option<ScalerHand>,
    leader: LeaderRevision,
    working: JoinSet<()>,
}

/// How the loop speaks to the scaler.
pub(super) struct ScalerHand {
    situations: watch::Sender<Arc<Situation>>,
    pub(super) calls: mpsc::UnboundedSender<scaler::ScaleCall>,
    pub(super) failed_starts: mpsc::UnboundedSender<(String, StartFailed)>,
}

impl Hands {
    /// Lets the tasks end what they have begun, for a moment.
    pub(super) async fn close(self) {
        let Hands { actions, books, cache, savepoints, scaler, leader, mut working } = self;
        drop((actions, cache, savepoints, scaler));
        books.close();
        let all = async { while working.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(2), all).await.is_err() {
            tracing::warn!(leader = leader.0, "an operation was not finished");
            working.shutdown().await;
        }
    }

    /// Waits until one of the tasks has ended. May be dropped and called again.
    pub(super) async fn next_end(&mut self) -> Option<Result<(), JoinError>> {
        self.working.join_next().await
    }
}

impl Service {
    pub(super) async fn lead(&mut self, now: Now, lead: Lead, held: Held, actions: &mut Vec<Action>) {
        tracing::info!(revision = lead.revision.0, term = lead.term, "leading");
        // What the last leader stored in its last moments may not have been heard.
        if let Err(error) = records::load(&self.bus, now, &mut self.core, &mut self.stored, actions).await {
            tracing::error!(error = format!("{error:#}"), "leading with the batches known so far");
        }
        let (account, account_at) = account::read(&self.bus).await;
        self.core.on(now, Event::AccountKnown(Box::new(account)), actions);
        self.clear_work().await;
        let (action_sender, action_queue) = mpsc::unbounded_channel();
        let pile = Arc::new(books::Pile::default());
        let (cache_sender, cache_queue) = mpsc::unbounded_channel();
        let bus = &self.bus;
        let mut working = JoinSet::new();
        working.spawn(perform::side_by_side(
            Arc::clone(bus),
            perform::Under {
                leader: lead.revision,
                syncs_always: self.bus_facts.syncs_always,
                synced_after: self.bus_facts.synced_after,
                key: self.bus_facts.key.clone(),
                clock: self.clock.clone(),
                shards: Default::default(),
            },
            action_queue,
            self.inbox.clone(),
        ));
        working.spawn(books::keep(
            Arc::clone(bus),
            lead.revision,
            account_at,
            Arc::clone(&pile),
            self.inbox.clone(),
        ));
        working.spawn(cache::serve(
            Arc::clone(bus),
            lead.revision,
            self.options.cache.clone(),
            self.recent.clone(),
            cache_queue,
            action_sender.clone(),
            self.inbox.clone(),
        ));
        let (save_sender, save_queue) = mpsc::channel(1);
        let every = Duration::from_millis(self.options.savepoint_ms);
        self.tasks.spawn(savepoints::write(Arc::clone(bus), self.recent.clone(), save_queue));
        let scaler = self.rental.clone().map(|rental| {
            let (situations, watched) = watch::channel(Arc::new(self.core.situation(now)));
            let (calls, asked) = mpsc::unbounded_channel();
            let (failed_starts, heard) = mpsc::unbounded_channel();
            let ties = scaler::Ties {
                bus: Arc::clone(bus),
                leader: lead.revision,
                held,
                situations: watched,
                calls: asked,
                failed_starts: heard,
                inbox: self.inbox.clone(),
                metrics: Arc::clone(&self.metrics),
                clock: self.clock.clone(),
            };
            working.spawn(scaler::serve(rental, ties));
            ScalerHand { situations, calls, failed_starts }
        });
        self.hands = Some(Hands {
            actions: action_sender,
            books: pile,
            cache: cache_sender,
            savepoints: savepoints::Savepoints::new(now.mono, every, save_sender),
            scaler,
            leader: lead.revision,
            working,
        });
        self.tasks.spawn(departure::finish(
            Arc::clone(&self.bus),
            self.bus_facts.synced_after,
            self.clock.clone(),
        ));
        let retention = self.options.retention.clone();
        self.tasks.spawn(retention::keep_sweeping(
            Arc::clone(&self.bus),
            lead.revision,
            retention,
            self.clock.clone(),
            self.inbox.clone(),
        ));
        self.metrics.set_role(true, true);
        self.core.on(now, Event::Lead(lead), actions);
    }

    /// What earlier leaders left in the work streams is void: their epochs are older than all of ours.
    async fn clear_work(&self) {
        for shard in 0..u16::MAX {
            let stream = table::work_stream(shard);
            match self.bus.purge(&stream, &table::work_all(shard)).await {
                Ok(count) => tracing::debug!(stream, count, "cleared"),
                Err(BusError::NotFound(_)) => return,
                Err(error) => {
                    tracing::warn!(stream, %error, "the work stream was not cleared; workers drop stale \
                                                    messages");
                    return;
                }
            }
        }
    }

    /// The scaler looks at this whenever it is its turn.
    pub(super) fn show_situation(&self, now: Now) {
        if let Some(scaler) = self.hands.as_ref().and_then(|hands| hands.scaler.as_ref()) {
            scaler.situations.send_replace(Arc::new(self.core.situation(now)));
        }
    }

    pub(super) fn ask_cache(&self, ask: cache::Ask) {
        if let Some(hands) = &self.hands {
            let _ = hands.cache.send(ask);
        }
    }

    /// What the ledger knows is saved from time to time.
    pub(super) fn save(&mut self, now: Now) {
        if let Some(hands) = &mut self.hands {
            hands.savepoints.tick(now, &self.core);
        }
    }

    pub(super) fn book(&self, entry: books::Entry) {
        if let Some(hands) = &self.hands {
            hands.books.put(entry);
        }
    }
}
