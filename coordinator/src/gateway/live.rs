//! What the page shows: one overview as JSON, and the same as server-sent events each second.

use std::collections::{BTreeMap, VecDeque};
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
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{MonoMs, TenantId, TimeMs, UsdMicro};

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

/// What the sampler remembers.
#[derive(Debug, Default)]
struct Samples {
    points: VecDeque<Point>,
    /// Messages ever stored in DEAD, at each point.
    dead: VecDeque<u64>,
}

/// The last hour of the fleet.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: Mutex<Samples>,
}

impl History {
    fn push(&self, point: Point, dead: Option<u64>) {
        let mut samples = self.lock();
        if samples.points.len() == POINTS_MAX {
            samples.points.pop_front();
        }
        samples.points.push_back(point);
        if let Some(dead) = dead {
            if samples.dead.len() == POINTS_MAX {
                samples.dead.pop_front();
            }
            samples.dead.push_back(dead);
        }
    }

    fn points(&self) -> Vec<Point> {
        self.lock().points.iter().copied().collect()
    }

    fn newest(&self) -> Option<TimeMs> {
        self.lock().points.back().map(|point| point.at)
    }

    /// Jobs given up since the oldest sample.
    fn dead_lately(&self) -> u64 {
        let samples = self.lock();
        match (samples.dead.front(), samples.dead.back()) {
            (Some(first), Some(last)) => last.saturating_sub(*first),
            _ => 0,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

async fn pods(gateway: &Gateway) -> ApiResult<Vec<PodView>> {
    gateway.ask(ApiVerb::Pods, &()).await
}

/// Tokens per second by difference of the pods' counters, dollars per hour by their prices.
pub(super) async fn sample(gateway: Gateway) {
    let mut ticks = tokio::time::interval(PERIOD * SAMPLES_A_POINT);
    let mut before: Option<(MonoMs, u64)> = None;
    loop {
        ticks.tick().await;
        let Ok(pods) = pods(&gateway).await else { continue };
        let now = gateway.clock().now();
        let tokens: u64 = pods.iter().map(|pod| pod.tokens).sum();
        if let Some((at, earlier)) = before {
            let seconds = now.since(at).as_secs_f64().max(0.001);
            let point = Point {
                at: now.wall,
                tok_s: tokens.saturating_sub(earlier) as f64 / seconds,
                usd_micro_per_hour: hourly(&pods),
            };
            let dead = gateway.bus().stream_facts(table::DEAD).await.ok();
            gateway.shared.history.push(point, dead.map(|facts| facts.last_sequence));
        }
        before = Some((now.mono, tokens));
    }
}

/// Engines of one pod each say the pod's price; it is paid once.
fn hourly(pods: &[PodView]) -> UsdMicro {
    let live = pods.iter().filter(|pod| pod.live);
    let prices: BTreeMap<&str, UsdMicro> =
        live.map(|pod| (pod.heartbeat.pod.as_str(), pod.heartbeat.price_usd_micro_per_hour)).collect();
    prices.into_values().sum()
}

/// What deserves a person's eye, in sentences.
fn warnings(pods: &[PodView], batches: &[BatchView], dead_lately: u64) -> Vec<String> {
    let mut found = Vec::new();
    if dead_lately > 0 {
        let jobs = if dead_lately == 1 { "One job was" } else { &format!("{dead_lately} jobs were") };
        found.push(format!(
            "{jobs} given up in the last hour after failing on several workers: `ternfleet dead` tells why."
        ));
    }
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

async fn view(gateway: &Gateway, tenant: &TenantId, with_history: bool) -> ApiResult<Value> {
    let pods = pods(gateway).await?;
    let batches = batches(gateway, tenant, None, BATCHES_SHOWN).await?;
    let now = gateway.clock().wall();
    let live = || pods.iter().filter(|pod| pod.live);
    let open = || batches.iter().filter(|batch| !batch.state.is_terminal());
    let left = |batch: &BatchView| u64::from(batch.total.saturating_sub(batch.completed + batch.failed));
    // The lines of a batch wait from its acceptance on.
    let oldest = open().filter(|batch| left(batch) > 0).map(|batch| batch.created_at).min();
    let mut view = json!({
        "at": now,
        "pods": pods.iter().map(pod).collect::<Vec<_>>(),
        "batches": batches.iter().map(batch_object).collect::<Vec<_>>(),
        "totals": {
            "pods_live": live().count(),
            "tok_s": live().map(|pod| pod.rate_tok_s).sum::<f64>(),
            "usd_micro_per_hour": hourly(&pods),
            "slots": live().map(|pod| pod.heartbeat.slots).sum::<u32>(),
            "running_jobs": live().map(|pod| pod.heartbeat.slots_in_use).sum::<u32>(),
            "queued_jobs": pods.iter().map(|pod| pod.queued_jobs).sum::<u32>(),
            "open_jobs": open().map(left).sum::<u64>(),
            "oldest_open_ms": oldest.map(|at| now.since(at).as_millis() as u64),
        },
        "warnings": warnings(&pods, &batches, gateway.shared.history.dead_lately()),
    });
    if with_history {
        view["history"] = json!(gateway.shared.history.points());
    }
    Ok(view)
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
    Ok(Json(view(&gateway, &tenant, true).await?))
}

/// `GET /api/live`: the overview each second as server-sent events, until the reader goes away. `history` comes with
/// the first event and whenever it has a new point.
pub(super) async fn stream(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = tokio::time::interval(PERIOD);
    let begin = (gateway, tenant, ticks, None::<Option<TimeMs>>);
    let events = stream::unfold(begin, |(gateway, tenant, mut ticks, told)| async move {
        ticks.tick().await;
        let newest = gateway.shared.history.newest();
        let with_history = told != Some(newest);
        let (event, told) = match view(&gateway, &tenant, with_history).await {
            Ok(value) => (Event::default().event("overview").data(value.to_string()), Some(newest)),
            Err(error) => (Event::default().event("fault").data(error.body().to_string()), told),
        };
        Some((Ok(event), (gateway, tenant, ticks, told)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}
