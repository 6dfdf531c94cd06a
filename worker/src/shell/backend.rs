//! What computes for the shell: the engine on its own thread, or somebody else's server. Both are started and cancelled by
//! the core's actions, and what they say comes back as its events.

use std::sync::Arc;

use ternfleet_proto::message::Work;
use tokio::sync::mpsc;

use super::generations::{Generations, Preparation};
use super::perform::{Performer, Preparer};
use super::upstreams::{Happened, Upstreams};
use crate::core::{Event, Kept, SlotId};
use crate::engine_thread::EngineThread;
use crate::language::Language;
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// What a worker is given to compute with.
#[derive(Debug)]
pub enum Computer {
    Engine(EngineThread),
    Server(Upstream),
}

pub(super) enum Backend {
    Engine(Box<Local>),
    Server(Box<Upstreams>),
}

/// The engine of this process.
pub(super) struct Local {
    pub(super) engine: EngineThread,
    pub(super) generations: Generations,
    pub(super) preparer: Preparer,
    pub(super) prepared: mpsc::UnboundedReceiver<Preparation>,
}

impl Backend {
    /// Whose tokens can be counted here.
    pub(super) fn language(&self) -> Option<Arc<Language>> {
        match self {
            Backend::Engine(local) => Some(local.preparer.language.clone()),
            Backend::Server(_) => None,
        }
    }

    pub(super) fn start(&mut self, slot: SlotId, work: Box<Work>, kept: Kept, performer: &Performer) {
        match self {
            Backend::Engine(local) => {
                local.generations.prepare(slot);
                performer.prepare(&local.preparer, slot, work, kept);
            }
            Backend::Server(upstreams) => upstreams.start(slot, work, kept),
        }
    }

    pub(super) fn cancel(&mut self, slot: SlotId) -> Option<Event> {
        match self {
            Backend::Engine(local) => local.generations.cancel(slot, &local.engine),
            Backend::Server(upstreams) => upstreams.cancel(slot),
        }
    }

    /// Waits for what happens next. May be dropped and called again.
    pub(super) async fn next(&mut self, metrics: &Metrics) -> anyhow::Result<Happened> {
        match self {
            Backend::Engine(local) => local.next(metrics).await.map(Happened::Events),
            Backend::Server(upstreams) => Ok(upstreams.next(metrics).await),
        }
    }

    pub(super) async fn stop(self) {
        match self {
            Backend::Engine(local) => local.engine.stop(),
            Backend::Server(upstreams) => upstreams.stop().await,
        }
    }
}

impl Local {
    async fn next(&mut self, metrics: &Metrics) -> anyhow::Result<Vec<Event>> {
        tokio::select! {
            biased;
            Some(prepared) = self.prepared.recv() => Ok(self.generations.on_prepared(prepared, &self.engine)),
            report = self.engine.reports.recv() => match report {
                Some(report) => {
                    metrics.observe_steps(&report.steps);
                    Ok(self.generations.on_report(report, &self.engine))
                }
                None => Err(anyhow::anyhow!("the engine's thread died; restart the worker")),
            },
        }
    }
}
