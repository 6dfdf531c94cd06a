//! What the page shows at all times: one overview as JSON, and the same as server-sent events each second. It is made
//! once a second for each tenant, however many look.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};
use ternfleet_proto::message::{
    BatchFind, BatchPage, BatchState, BatchView, FleetView, PodView, ScaleDials, ScaleView,
};
use ternfleet_proto::openai::batch_object;
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TenantId, TimeMs};
use tokio::time::Instant;

use super::Gateway;
use super::auth::Caller;
use super::bounds::Readers;
use super::error::ApiResult;
use super::history::{History, PodHistory};

const PERIOD: Duration = Duration::from_secs(1);
/// A little less, so that each tick of a reader finds something new.
const FRESH_FOR: Duration = Duration::from_millis(900);
/// The scaler asks the provider each time that it is asked.
const SCALE_FRESH_FOR: Duration = Duration::from_secs(4);
/// The first page of the list: what is open, and the newest of what has ended.
pub(super) const BATCHES_SHOWN: u32 = 25;

/// What the page needs besides the coordinator: the last hour, and what was last asked for, so that the leader is asked
/// once a second however many look.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) history: History,
    fleet: Shared<FleetView>,
    scale: Shared<ScaleView>,
    views: Mutex<BTreeMap<TenantId, Arc<Shared<Seen>>>>,
    readers: Readers,
}

/// An overview, and as it is sent.
#[derive(Debug)]
struct Seen {
    value: Value,
    text: String,
}

/// A value that many want and one fetches. A refusal is shared by those who waited for it: whoever asks later, asks.
#[derive(Debug)]
struct Shared<T> {
    last: tokio::sync::Mutex<Option<(Instant, ApiResult<Arc<T>>)>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { last: tokio::sync::Mutex::default() }
    }
}

impl<T> Shared<T> {
    async fn get(&self, fresh_for: Duration, fetch: impl Future<Output = ApiResult<T>>) -> ApiResult<Arc<T>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((at, value)) = &*last
            && (*at >= asked || value.is_ok() && at.elapsed() < fresh_for)
        {
            return value.clone();
        }
        let value = fetch.await.map(Arc::new);
        *last = Some((Instant::now(), value.clone()));
        value
    }
}

/// The fleet, at most a second old.
pub(super) async fn fleet(gateway: &Gateway) -> ApiResult<Arc<FleetView>> {
    gateway.shared.live.fleet.get(FRESH_FOR, gateway.ask(ApiVerb::Fleet, &())).await
}

/// What is rented has been changed.
pub(super) async fn forget_scale(gateway: &Gateway) {
    *gateway.shared.live.scale.last.lock().await = None;
}

/// What is rented, at most some seconds old.
pub(super) async fn scale(gateway: &Gateway) -> ApiResult<Arc<ScaleView>> {
    let nothing = ScaleDials::default();
    gateway.shared.live.scale.get(SCALE_FRESH_FOR, gateway.ask(ApiVerb::ScaleShow, &nothing)).await
}

/// The overview of a tenant, at most a second old.
async fn seen(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Arc<Seen>> {
    let shared = {
        let mut views = gateway.shared.live.views.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(views.entry(tenant.clone()).or_default())
    };
    shared.get(FRESH_FOR, look(gateway, tenant)).await
}

/// What a person should look at, in sentences.
fn warnings(fleet: &FleetView, batches: &[BatchView], history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let dead = history.dead_lately();
    if dead > 0 {
        let jobs = if dead == 1 { "One job was" } else { &format!("{dead} jobs were") };
        found.push(format!(
            "{jobs} failed on several workers in the last hour and became dead letters: see `ternfleet \
             dead list`."
        ));
    }
    let scaler = history.scaler();
    let work = batches.iter().any(|b| matches!(b.state, BatchState::InProgress | BatchState::Validating));
    let total = fleet.total();
    if work && scaler.is_none() && total.workers_live == 0 {
        found.push("Work is waiting and no worker is live: start one with `ternfleet worker`.".to_owned());
    }
    if fleet.next.is_some() && total.workers_quiet > 0 {
        found.push(format!(
            "{} workers are quiet: their heartbeats are late, and they get no new jobs.",
            total.workers_quiet
        ));
    }
    // Of a large fleet not every pod is here, and a sentence for each would be too many.
    for pod in fleet.pods.iter().filter(|_| fleet.next.is_none()) {
        let name = &pod.heartbeat.pod;
        if !pod.live {
            found.push(format!("Pod {name} is quiet: its heartbeats are late. It gets no new jobs."));
        } else if work && pod.busy_ratio < 0.05 && pod.queued_jobs == 0 && pod.heartbeat.slots_in_use == 0 {
            found.push(format!("Pod {name} costs money and is idle."));
        }
    }
    for batch in batches {
        let name = batch.name.as_deref().unwrap_or(batch.id.as_str());
        if batch.state == BatchState::PausedBudget {
            found.push(format!(
                "Batch {name} has spent its budget and is paused: raise the budget to \
                                continue."
            ));
        }
        let deadline = batch.options.deadline.unwrap_or(batch.expires_at);
        if !batch.state.is_terminal() && batch.finish_estimate.is_some_and(|estimate| estimate > deadline) {
            found.push(format!("Batch {name} will miss its deadline at the current speed."));
        }
    }
    found.extend(scaler.into_iter().flatten());
    found
}

async fn look(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Seen> {
    let history = &gateway.shared.live.history;
    let ask = BatchFind {
        tenant: tenant.clone(),
        states: Vec::new(),
        text: None,
        after: None,
        limit: BATCHES_SHOWN,
    };
    let fleet = fleet(gateway).await?;
    let page: BatchPage = gateway.ask(ApiVerb::BatchFind, &ask).await?;
    let now = gateway.clock().wall();
    let total = fleet.total();
    let value = json!({
        "at": now,
        "pods": fleet.pods.iter().map(pod).collect::<Vec<_>>(),
        "workers": fleet.workers(),
        "classes": fleet.classes,
        "lost": fleet.lost,
        "batches": page.batches.iter().map(batch_object).collect::<Vec<_>>(),
        "next": page.next,
        "counts": page.counts,
        "totals": {
            "pods_live": total.workers_live,
            "tok_s": total.rate_tok_s,
            "usd_micro_per_hour": total.usd_micro_per_hour,
            "spent": fleet.spent,
            "slots": total.slots,
            "running_jobs": total.slots_in_use,
            "queued_jobs": total.queued_jobs,
            "open_jobs": page.open_lines,
            "oldest_open_ms": page.oldest_open.map(|at| now.since(at).as_millis() as u64),
        },
        "scaling": history.scaler().is_some(),
        "warnings": warnings(&fleet, &page.batches, history),
    });
    Ok(Seen { text: value.to_string(), value })
}

fn pod(pod: &PodView) -> Value {
    let worker = &pod.heartbeat;
    json!({
        "worker": worker.worker, "pod": worker.pod, "class": worker.pod_class, "host": worker.host,
        "state": if pod.live { json!(worker.state) } else { json!("quiet") },
        "model": worker.model, "threads": worker.threads, "isa": worker.isa,
        "slots": worker.slots, "slots_in_use": worker.slots_in_use, "queued_jobs": pod.queued_jobs,
        "tok_s": pod.rate_tok_s, "busy_ratio": pod.busy_ratio, "tokens": pod.tokens,
        "price_usd_micro_per_hour": worker.price_usd_micro_per_hour, "cost_usd_micro": pod.cost_usd_micro,
        "usd_micro_per_million_tokens": pod.usd_micro_per_million_tokens,
        "version": worker.version, "started_at_ms": worker.started_at,
        "jobs_done": worker.counters.jobs_done, "jobs_failed": worker.counters.jobs_failed,
        "calibration": worker.calibration, "context_tokens": worker.context_tokens,
    })
}

/// `GET /api/overview`.
pub(super) async fn overview(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> ApiResult<Json<Value>> {
    let mut value = seen(&gateway, &tenant).await?.value.clone();
    value["history"] = json!(gateway.shared.live.history.points(None));
    Ok(Json(value))
}

/// `GET /api/pods/history`.
pub(super) async fn pod_history(State(gateway): State<Gateway>, _caller: Caller) -> Json<PodHistory> {
    Json(gateway.shared.live.history.pods())
}

/// `GET /api/live`: the overview each second as server-sent events, until the reader goes away; `history` has the points
/// of the charts that this reader has not been sent yet.
pub(super) async fn stream(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let reading = gateway.shared.live.readers.admit(&tenant, gateway.limits().live_readers_max)?;
    let ticks = tokio::time::interval(PERIOD);
    let begin = (gateway, tenant, ticks, None::<TimeMs>, reading);
    let events = stream::unfold(begin, |(gateway, tenant, mut ticks, mut told, reading)| async move {
        ticks.tick().await;
        let mut events = Vec::new();
        match seen(&gateway, &tenant).await {
            Ok(seen) => events.push(Event::default().event("overview").data(&seen.text)),
            Err(error) => events.push(Event::default().event("fault").data(error.body().to_string())),
        }
        let points = gateway.shared.live.history.points(told);
        if let Some(newest) = points.last() {
            told = Some(newest.at);
            events.push(Event::default().event("history").data(json!(points).to_string()));
        }
        Some((stream::iter(events.into_iter().map(Ok)), (gateway, tenant, ticks, told, reading)))
    });
    Ok(Sse::new(events.flatten()).keep_alive(KeepAlive::default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_thousand_readers_cost_one_question() {
        let (shared, asked) = (Shared::default(), AtomicU32::new(0));
        let fetch = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(7)
        };
        let all = futures::future::join_all((0..1000).map(|_| shared.get(FRESH_FOR, fetch()))).await;
        assert!(all.into_iter().all(|value| *value.unwrap() == 7));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::sleep(PERIOD).await;
        shared.get(FRESH_FOR, fetch()).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
