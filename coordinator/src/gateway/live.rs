//! What the page shows: one overview as JSON, and the same as server-sent events each second.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream};
use serde::Serialize;
use serde_json::{Value, json};
use ternfleet_proto::message::{BatchState, BatchView, PodView};
use ternfleet_proto::openai::batch_object;
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TenantId, TimeMs, UsdMicro};

use super::Gateway;
use super::auth::Caller;
use super::batches::batches;
use super::error::ApiResult;

const PERIOD: Duration = Duration::from_secs(1);
/// One point in ten seconds, for an hour.
const POINTS_MAX: usize = 360;
const SAMPLES_A_POINT: u32 = 10;
const BATCHES_SHOWN: u32 = 50;

/// A point of the charts.
#[derive(Debug, Clone, Copy, Serialize)]
struct Point {
    at: TimeMs,
    tok_s: f64,
    usd_micro_per_hour: UsdMicro,
}

/// The last hour of the fleet.
#[derive(Debug, Default)]
pub(super) struct History {
    points: Mutex<VecDeque<Point>>,
}

impl History {
    fn push(&self, point: Point) {
        let mut points = self.points.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if points.len() == POINTS_MAX {
            points.pop_front();
        }
        points.push_back(point);
    }

    fn all(&self) -> Vec<Point> {
        self.points.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().copied().collect()
    }
}

async fn pods(gateway: &Gateway) -> ApiResult<Vec<PodView>> {
    gateway.ask(ApiVerb::Pods, &()).await
}

/// Tokens per second by difference of the pods' counters, dollars per hour by their prices.
pub(super) async fn sample(gateway: Gateway) {
    let mut ticks = tokio::time::interval(PERIOD * SAMPLES_A_POINT);
    let mut before: Option<(TimeMs, u64)> = None;
    loop {
        ticks.tick().await;
        let Ok(pods) = pods(&gateway).await else { continue };
        let now = TimeMs::now();
        let tokens: u64 = pods.iter().map(|pod| pod.tokens).sum();
        if let Some((at, earlier)) = before {
            let seconds = now.since(at).as_secs_f64().max(0.001);
            gateway.shared.history.push(Point {
                at: now,
                tok_s: tokens.saturating_sub(earlier) as f64 / seconds,
                usd_micro_per_hour: hourly(&pods),
            });
        }
        before = Some((now, tokens));
    }
}

fn hourly(pods: &[PodView]) -> UsdMicro {
    pods.iter().filter(|pod| pod.live).map(|pod| pod.heartbeat.price_usd_micro_per_hour).sum()
}

/// What deserves a person's eye, in sentences.
fn warnings(pods: &[PodView], batches: &[BatchView]) -> Vec<String> {
    let mut found = Vec::new();
    let work = batches.iter().any(|b| matches!(b.state, BatchState::InProgress | BatchState::Validating));
    if work && !pods.iter().any(|pod| pod.live) {
        found.push("Work is waiting and no worker is live: start one with `ternfleet worker`.".to_owned());
    }
    for pod in pods {
        let name = &pod.heartbeat.pod;
        if !pod.live {
            found.push(format!("Pod {name} has gone quiet; its jobs move to others."));
        } else if work && pod.busy_ratio < 0.05 && pod.queued_jobs == 0 && pod.heartbeat.slots_in_use == 0 {
            found.push(format!("Pod {name} is paid and idle."));
        }
    }
    for batch in batches {
        let id = &batch.id;
        if batch.state == BatchState::PausedBudget {
            found.push(format!(
                "Batch {id} has spent its budget: `ternfleet batch set {id} --budget …` lets it go on."
            ));
        }
        let deadline = batch.options.deadline.unwrap_or(batch.expires_at);
        if !batch.state.is_terminal() && batch.finish_estimate.is_some_and(|estimate| estimate > deadline) {
            found.push(format!("Batch {id} will miss its deadline at the present speed."));
        }
    }
    found
}

async fn view(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Value> {
    let pods = pods(gateway).await?;
    let batches = batches(gateway, tenant, None, BATCHES_SHOWN).await?;
    let waiting: u32 = pods.iter().map(|pod| pod.queued_jobs).sum();
    let tok_s: f64 = pods.iter().filter(|pod| pod.live).map(|pod| pod.rate_tok_s).sum();
    Ok(json!({
        "at": TimeMs::now(),
        "pods": pods.iter().map(pod).collect::<Vec<_>>(),
        "batches": batches.iter().map(batch_object).collect::<Vec<_>>(),
        "totals": {
            "tok_s": tok_s,
            "usd_micro_per_hour": hourly(&pods),
            "queued_jobs": waiting,
            "open_jobs": batches.iter().filter(|b| !b.state.is_terminal())
                .map(|b| u64::from(b.total.saturating_sub(b.completed + b.failed))).sum::<u64>(),
        },
        "history": gateway.shared.history.all(),
        "warnings": warnings(&pods, &batches),
    }))
}

fn pod(pod: &PodView) -> Value {
    let worker = &pod.heartbeat;
    json!({
        "worker": worker.worker, "pod": worker.pod, "class": worker.pod_class, "host": worker.host,
        "state": if pod.live { json!(worker.state) } else { json!("lost") },
        "model": worker.model, "threads": worker.threads, "isa": worker.isa,
        "slots": worker.slots, "slots_in_use": worker.slots_in_use, "queued_jobs": pod.queued_jobs,
        "tok_s": pod.rate_tok_s, "busy_ratio": pod.busy_ratio, "tokens": pod.tokens,
        "price_usd_micro_per_hour": worker.price_usd_micro_per_hour, "cost_usd_micro": pod.cost_usd_micro,
        "usd_micro_per_million_tokens": pod.usd_micro_per_million_tokens,
        "version": worker.version,
    })
}

/// `GET /api/overview`.
pub(super) async fn overview(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> ApiResult<Json<Value>> {
    Ok(Json(view(&gateway, &tenant).await?))
}

/// `GET /api/live`: the overview each second as server-sent events, until the reader goes away.
pub(super) async fn stream(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = tokio::time::interval(PERIOD);
    let events = stream::unfold((gateway, tenant, ticks), |(gateway, tenant, mut ticks)| async move {
        ticks.tick().await;
        let event = match view(&gateway, &tenant).await {
            Ok(value) => Event::default().event("overview").data(value.to_string()),
            Err(error) => Event::default().event("fault").data(error.body().to_string()),
        };
        Some((Ok(event), (gateway, tenant, ticks)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}
