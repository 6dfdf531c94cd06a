//! What the page shows: one overview as JSON, and the same as server-sent events each second.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream};
use serde::Serialize;
use serde_json::{Value, json};
use ternfleet_proto::message::{BatchState, BatchView, PodView, ScaleDials, ScaleView};
use ternfleet_proto::openai::batch_object;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{MonoMs, TenantId, TimeMs, UsdMicro};
use tokio::time::Instant;

use super::Gateway;
use super::auth::Caller;
use super::batches::batches;
use super::bounds::Readers;
use super::error::ApiResult;

const PERIOD: Duration = Duration::from_secs(1);
/// A little less, so that each tick of a reader finds something new.
const FRESH_FOR: Duration = Duration::from_millis(900);
/// One point in ten seconds, for an hour.
const POINTS_MAX: usize = 360;
const SAMPLES_A_POINT: u32 = 10;
const BATCHES_SHOWN: u32 = 50;
/// The scaler is asked once a minute: it asks the provider.
const RENTED_EVERY: u64 = 6;

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
    /// Of rented pods, what deserves a person's eye.
    rented: Mutex<Vec<String>>,
}

impl History {
    fn rented(&self) -> Vec<String> {
        self.rented.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

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

/// What the page needs besides the coordinator: the last hour, and what was last asked for, so that the leader is asked
/// once a second however many look.
#[derive(Debug, Default)]
pub(super) struct Live {
    history: History,
    pods: Shared<Vec<PodView>>,
    views: Mutex<BTreeMap<TenantId, Arc<Shared<Seen>>>>,
    readers: Readers,
}

/// An overview as it is sent.
#[derive(Debug)]
struct Seen {
    plain: String,
    with_history: String,
    /// The newest point of the history in it.
    newest: Option<TimeMs>,
}

/// A value that many want and one fetches; a refusal is shared like a value.
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
    async fn get(&self, fetch: impl Future<Output = ApiResult<T>>) -> ApiResult<Arc<T>> {
        let mut last = self.last.lock().await;
        if let Some((at, value)) = &*last
            && at.elapsed() < FRESH_FOR
        {
            return value.clone();
        }
        let value = fetch.await.map(Arc::new);
        *last = Some((Instant::now(), value.clone()));
        value
    }
}

async fn pods(gateway: &Gateway) -> ApiResult<Arc<Vec<PodView>>> {
    gateway.shared.live.pods.get(gateway.ask(ApiVerb::Pods, &())).await
}

/// The overview of a tenant, at most a second old.
async fn seen(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Arc<Seen>> {
    let shared = {
        let mut views = gateway.shared.live.views.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(views.entry(tenant.clone()).or_default())
    };
    shared.get(look(gateway, tenant)).await
}

/// Classes whose pods fail, and why nothing is ordered. A fleet that rents nothing has no such thing.
async fn rented(gateway: &Gateway) -> Vec<String> {
    let Ok(view) = gateway.ask::<_, ScaleView>(ApiVerb::ScaleShow, &ScaleDials::default()).await else {
        return Vec::new();
    };
    let mut found: Vec<String> = view.halted.iter().map(|why| format!("No pod is ordered: {why}.")).collect();
    for class in view.classes {
        if let (Some(failed), Some(why)) = (&class.failed, &class.refused) {
            let last = failed.log.last().map(|line| format!(" Its last line: {line}")).unwrap_or_default();
            found.push(format!(
                "Class {} rests, {why}. {} failed: {}.{last}",
                class.name, failed.pod, failed.why
            ));
        }
    }
    found
}

/// Tokens per second by difference of the pods' counters, dollars per hour by their prices.
pub(super) async fn sample(gateway: Gateway) {
    let mut ticks = tokio::time::interval(PERIOD * SAMPLES_A_POINT);
    let mut before: Option<(MonoMs, u64)> = None;
    let mut looks: u64 = 0;
    loop {
        ticks.tick().await;
        if looks.is_multiple_of(RENTED_EVERY) {
            let rented = rented(&gateway).await;
            *gateway.shared.live.history.rented.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
                rented;
        }
        looks += 1;
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
            gateway.shared.live.history.push(point, dead.map(|facts| facts.last_sequence));
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

async fn look(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Seen> {
    let history = &gateway.shared.live.history;
    let pods = pods(gateway).await?;
    let batches = batches(gateway, tenant, None, BATCHES_SHOWN).await?;
    let now = gateway.clock().wall();
    let live = || pods.iter().filter(|pod| pod.live);
    let open = || batches.iter().filter(|batch| !batch.state.is_terminal());
    let left = |batch: &BatchView| u64::from(batch.total.saturating_sub(batch.completed + batch.failed));
    // The lines of a batch wait from its acceptance on.
    let oldest = open().filter(|batch| left(batch) > 0).map(|batch| batch.created_at).min();
    let mut attention = warnings(&pods, &batches, history.dead_lately());
    attention.extend(history.rented());
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
        "warnings": attention,
    });
    let (plain, points) = (view.to_string(), history.points());
    let newest = points.last().map(|point| point.at);
    view["history"] = json!(points);
    Ok(Seen { plain, with_history: view.to_string(), newest })
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
) -> ApiResult<impl IntoResponse> {
    let seen = seen(&gateway, &tenant).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], seen.with_history.clone()))
}

/// `GET /api/live`: the overview each second as server-sent events, until the reader goes away. `history` comes with
/// the first event and whenever it has a new point.
pub(super) async fn stream(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let reading = gateway.shared.live.readers.admit(&tenant, gateway.limits().live_readers_max)?;
    let ticks = tokio::time::interval(PERIOD);
    let begin = (gateway, tenant, ticks, None::<Option<TimeMs>>, reading);
    let events = stream::unfold(begin, |(gateway, tenant, mut ticks, told, reading)| async move {
        ticks.tick().await;
        let (event, told) = match seen(&gateway, &tenant).await {
            Ok(seen) => {
                let told_before = told == Some(seen.newest);
                let text = if told_before { &seen.plain } else { &seen.with_history };
                (Event::default().event("overview").data(text), Some(seen.newest))
            }
            Err(error) => (Event::default().event("fault").data(error.body().to_string()), told),
        };
        Some((Ok(event), (gateway, tenant, ticks, told, reading)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
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
        let all = futures::future::join_all((0..1000).map(|_| shared.get(fetch()))).await;
        assert!(all.into_iter().all(|value| *value.unwrap() == 7));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::sleep(PERIOD).await;
        shared.get(fetch()).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
