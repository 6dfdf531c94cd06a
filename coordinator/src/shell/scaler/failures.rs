//! Pods that came to nothing: what they wrote last, and how long their class rests.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_cloud::PodId;
use ternfleet_proto::TimeMs;
use ternfleet_proto::access::Joiner;
use ternfleet_proto::message::{EventKind, PodFailure, StartFailed};

use super::Scaler;
use super::view::words;
use crate::scale::{Intent, Why};

/// Lines of a failed pod that are kept.
const LOG_LINES: usize = 40;
const LINE_CHARS_MAX: usize = 400;
/// A provider that is slow to tell must not keep a pod alive.
const LOG_WITHIN: Duration = Duration::from_secs(10);

impl Scaler {
    /// Pods that are heard of prove their class.
    pub(super) async fn learn_health(&mut self) {
        let situation = Arc::clone(&self.ties.situations.borrow());
        for worker in &situation.workers {
            let Some(class) = self.store.intents.get(&worker.pod).map(|kept| kept.value.class.clone()) else {
                continue;
            };
            let memory = self.memories.entry(worker.pod.clone()).or_default();
            if !std::mem::replace(&mut memory.heard, true) {
                self.store.change_health(&self.ties, &class, |health| health.worked()).await;
            }
        }
    }

    /// A pod says that it cannot start. `name` is what the server lets it publish under.
    pub(super) async fn start_failed(&mut self, now: TimeMs, name: &str, said: StartFailed) {
        let pod = match Joiner::parse(name) {
            Joiner::Order { pod } | Joiner::Rented { pod } => pod.to_owned(),
            // On a NATS without permissions anybody may publish under any name.
            Joiner::Other if self.rental.issuer.is_none() => said.pod.clone(),
            Joiner::Other => return,
        };
        let Some(intent) = self.store.intents.get(&pod).map(|kept| kept.value.clone()) else { return };
        if self.memories.get(&pod).is_some_and(|memory| memory.heard || memory.failure_known) {
            return;
        }
        self.note(&pod, |intent| _ = intent.ending.get_or_insert(Why::StartFailed)).await;
        self.failed(now, &intent, Why::StartFailed, Some(line(&said.why)), said.log).await;
    }

    /// Before a pod is ended that did not do well: what did it write last?
    pub(super) async fn look_at_log(&mut self, now: TimeMs, name: &str, id: &str, why: Why) {
        let tells = matches!(why, Why::NeverReady | Why::Stopped | Why::Silent | Why::StartFailed);
        let known = self.memories.get(name).is_some_and(|memory| memory.failure_known);
        let Some(intent) = self.store.intents.get(name).map(|kept| kept.value.clone()) else { return };
        if !tells || known {
            return;
        }
        let provider = Arc::clone(&self.rental.provider);
        let pod = PodId(id.to_owned());
        let told = tokio::time::timeout(LOG_WITHIN, provider.log_tail(&pod, LOG_LINES)).await;
        let log = match told {
            Ok(Ok(log)) => log,
            Ok(Err(fault)) => vec![format!("(its log cannot be read: {fault})")],
            Err(_) => vec!["(its log did not arrive in time)".to_owned()],
        };
        self.failed(now, &intent, why, None, log).await;
    }

    /// An intent closes. If nobody ever heard of its pod, its class has failed.
    pub(super) async fn account_for(&mut self, now: TimeMs, intent: &Intent, why: Why) {
        let known =
            self.memories.get(&intent.name).is_some_and(|memory| memory.heard || memory.failure_known);
        let died = matches!(why, Why::NeverReady | Why::Stopped | Why::StartFailed | Why::Vanished);
        if known || !died || intent.provider_id.is_none() {
            return;
        }
        self.failed(now, intent, why, None, Vec::new()).await;
    }

    /// One more pod of the class ended before anybody had heard of it.
    async fn died(&mut self, now: TimeMs, intent: &Intent) {
        let rest = Duration::from_secs_f64(self.rental.options.refusal_s);
        self.store.change_health(&self.ties, &intent.class, |health| health.died(now, rest)).await;
        let health = self.store.health(&intent.class);
        if health.rests(now) {
            let rest_s = health.rests_until.since(now).as_secs();
            tracing::error!(
                class = intent.class,
                deaths = health.deaths,
                rest_s,
                "pods of this class do not start; the class is paused"
            );
        }
    }

    /// A pod has failed. Called once a pod, as soon as that is known: its class must not get another one before it counts.
    /// `said` is the pod's own reason.
    async fn failed(
        &mut self,
        now: TimeMs,
        intent: &Intent,
        cause: Why,
        said: Option<String>,
        log: Vec<String>,
    ) {
        let why = match said {
            Some(said) => format!("{}: {said}", words(cause)),
            None => words(cause).to_owned(),
        };
        let from = log.len().saturating_sub(LOG_LINES);
        let log: Vec<String> = log[from..].iter().map(|text| line(text)).collect();
        let last = log.last().cloned().unwrap_or_default();
        tracing::warn!(pod = intent.name, class = intent.class, why, last, "a rented pod failed");
        let memory = self.memories.entry(intent.name.clone()).or_default();
        memory.failure_known = true;
        // Silent is who was heard of, perhaps by an earlier leader.
        if !memory.heard && cause != Why::Silent {
            self.died(now, intent).await;
        }
        let failure = PodFailure { pod: intent.name.clone(), at: now, why: why.clone(), log: log.clone() };
        self.failures.insert(intent.class.clone(), failure);
        let (pod, pod_class) = (intent.name.clone(), intent.class.clone());
        self.audit(now, EventKind::PodFailed { pod, pod_class, why, log }).await;
    }
}

/// A foreign line, cut, without what would steer a terminal.
fn line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LINE_CHARS_MAX).collect()
}
