//! The last hour of the fleet, sampled once for everybody who looks: speed and price in all, the speed of each pod, and
//! what the scaler has to say.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use ternfleet_proto::message::{PodView, ScaleDials, ScaleView};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{MonoMs, TimeMs, UsdMicro, WorkerId};

use super::Gateway;
use super::error::ApiResult;
use super::live;

/// One point of the fleet's charts in this time.
const EVERY: Duration = Duration::from_secs(10);
/// An hour of them.
const POINTS_MAX: usize = 360;
/// Of each pod, every third one is kept.
const POD_EVERY: u64 = 3;
const POD_POINTS_MAX: usize = POINTS_MAX / POD_EVERY as usize;
/// The scaler is asked once a minute: it asks the provider.
const SCALER_EVERY: u64 = 6;

/// A point of the charts.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Point {
    pub(super) at: TimeMs,
    tok_s: f64,
    usd_micro_per_hour: UsdMicro,
}

#[derive(Debug, Default)]
struct Samples {
    points: VecDeque<Point>,
    /// Messages ever stored in DEAD, at each point.
    dead: VecDeque<u64>,
    /// Tokens a second by worker.
    pods: BTreeMap<WorkerId, VecDeque<f32>>,
    /// Of the scaler, what a person should look at; `None` when nothing is rented here.
    scaler: Option<Vec<String>>,
}

/// What the sampler remembers.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: Mutex<Samples>,
}

/// The speed of each pod over the last hour, oldest first.
#[derive(Debug, Serialize)]
pub(super) struct PodHistory {
    every_ms: u64,
    tok_s: BTreeMap<WorkerId, VecDeque<f32>>,
}

fn keep<T>(points: &mut VecDeque<T>, point: T, most: usize) {
    if points.len() == most {
        points.pop_front();
    }
    points.push_back(point);
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All points, or those after `after`.
    pub(super) fn points(&self, after: Option<TimeMs>) -> Vec<Point> {
        let samples = self.lock();
        let known = after.map_or(0, |after| samples.points.partition_point(|point| point.at <= after));
        samples.points.range(known..).copied().collect()
    }

    pub(super) fn pods(&self) -> PodHistory {
        let tok_s = self.lock().pods.clone();
        PodHistory { every_ms: (EVERY * POD_EVERY as u32).as_millis() as u64, tok_s }
    }

    /// Jobs given up since the oldest sample.
    pub(super) fn dead_lately(&self) -> u64 {
        let samples = self.lock();
        match (samples.dead.front(), samples.dead.back()) {
            (Some(first), Some(last)) => last.saturating_sub(*first),
            _ => 0,
        }
    }

    /// What the scaler has to say; `None` when nothing is rented here.
    pub(super) fn scaler(&self) -> Option<Vec<String>> {
        self.lock().scaler.clone()
    }

    fn push(&self, point: Option<Point>, dead: Option<u64>, pods: Option<&[PodView]>) {
        let mut samples = self.lock();
        if let Some(point) = point {
            keep(&mut samples.points, point, POINTS_MAX);
        }
        if let Some(dead) = dead {
            keep(&mut samples.dead, dead, POINTS_MAX);
        }
        let Some(pods) = pods else { return };
        samples.pods.retain(|worker, _| pods.iter().any(|pod| pod.heartbeat.worker == *worker));
        for pod in pods {
            let rates = samples.pods.entry(pod.heartbeat.worker.clone()).or_default();
            // What is measured lasts; what a pod does now shows in its slots.
            let now = if pod.live && pod.heartbeat.slots_in_use > 0 { pod.rate_tok_s } else { 0.0 };
            keep(rates, now as f32, POD_POINTS_MAX);
        }
    }
}

/// Samples for as long as it is polled: tokens per second by difference of the leader's count, dollars per hour by the
/// pods' prices.
pub(super) async fn sample(gateway: Gateway) {
    let history = &gateway.shared.live.history;
    let mut ticks = tokio::time::interval(EVERY);
    let mut before: Option<(MonoMs, u64)> = None;
    for turn in 0u64.. {
        ticks.tick().await;
        if turn.is_multiple_of(SCALER_EVERY) {
            match scaler(&gateway).await {
                Ok(said) => history.lock().scaler = Some(said),
                Err(error) if error.is_refusal() => history.lock().scaler = None,
                // Nobody has answered: what was said last still stands.
                Err(_) => {}
            }
        }
        let Ok(fleet) = live::fleet(&gateway).await else { continue };
        let now = gateway.clock().now();
        let point = before.map(|(at, earlier)| {
            // A new leader counts from nothing.
            let made = fleet.tokens.saturating_sub(earlier);
            let tok_s = made as f64 / now.since(at).as_secs_f64().max(0.001);
            Point { at: now.wall, tok_s, usd_micro_per_hour: fleet.total().usd_micro_per_hour }
        });
        before = Some((now.mono, fleet.tokens));
        let dead = gateway.bus().stream_facts(table::DEAD).await.ok().map(|facts| facts.last_sequence);
        history.push(point, dead, turn.is_multiple_of(POD_EVERY).then_some(&fleet.pods));
    }
}

/// Classes whose pods fail, and why nothing is ordered. Refused where nothing is rented.
async fn scaler(gateway: &Gateway) -> ApiResult<Vec<String>> {
    let view: ScaleView = gateway.ask(ApiVerb::ScaleShow, &ScaleDials::default()).await?;
    let mut found: Vec<String> = view.halted.iter().map(|why| format!("No pod is ordered: {why}.")).collect();
    for class in view.classes {
        if let (Some(failed), Some(why)) = (&class.failed, &class.refused) {
            let last = failed.log.last().map(|line| format!(" Its last line: {line}")).unwrap_or_default();
            found.push(format!(
                "No pod of class {} is ordered: {why}. {} failed: {}.{last}",
                class.name, failed.pod, failed.why
            ));
        }
    }
    Ok(found)
}
