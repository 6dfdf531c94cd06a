//! What a worker in front of somebody else's server costs, beside asking that server directly.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::quantile;
use crate::caller::Client;
use crate::server::NatsServer;
use crate::upstream::{Manner, TestServer};

const TOKENS: usize = 64;

fn line(number: usize) -> Value {
    json!({ "prompt": "once", "max_tokens": TOKENS, "temperature": 0, "seed": number, "model": "letters" })
}

/// So many requests at this concurrency, to a server that takes `step` for a token: first directly, then as a batch.
///
/// # Errors
/// When the fleet does not work.
pub async fn overhead(jobs: usize, concurrency: usize, step: Duration) -> anyhow::Result<()> {
    let server = TestServer::start(Manner { step, ..Manner::default() }).await?;
    let address = server.address.to_string();
    let began = Instant::now();
    let asked = futures::stream::iter(0..jobs).map(|number| {
        let (address, mut body) = (address.clone(), line(number));
        body["stream"] = true.into();
        body["return_token_ids"] = true.into();
        async move {
            let begun = Instant::now();
            let (status, _) =
                crate::http::request(&address, "POST", "/v1/completions", &body.to_string()).await?;
            ensure!(status == 200, "status {status}");
            Ok(begun.elapsed())
        }
    });
    let took: Vec<anyhow::Result<Duration>> = asked.buffer_unordered(concurrency).collect().await;
    let direct = began.elapsed();
    let mut direct_each = took.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    direct_each.sort();

    let nats = NatsServer::start()?;
    let stop = CancellationToken::new();
    let options = ternfleet_coordinator::Options { audit_share: 0.0, ..Default::default() };
    let coordinator = tokio::spawn(ternfleet_coordinator::run(nats.bus().await?, options, stop.clone()));
    let options = ternfleet_worker::Options {
        engine: "openai".to_owned(),
        upstream: server.url(),
        slots: Some(concurrency),
        calibrate_ms: 400,
        ..Default::default()
    };
    let worker = tokio::spawn(ternfleet_worker::run(nats.bus().await?, options, stop.clone()));
    let client = Client::new(nats.bus().await?);
    let file = |count: usize| (0..count).map(|n| format!("{}\n", line(n))).collect::<String>().into_bytes();
    // The worker is known once a batch has gone through.
    let warm = client.submit("warm", file(concurrency)).await;
    client.wait_end(&warm.id).await;
    let view = client.submit("input", file(jobs)).await;
    let results = client.follow(&view.id).await;
    ensure!(results.len() == jobs, "{} of {jobs} answers", results.len());
    let ended = client.wait_end(&view.id).await;
    let begun = results.iter().map(|one| one.finished_at.0 - u64::from(one.timing.total_ms)).min();
    let last = results.iter().map(|one| one.finished_at.0).max();
    let fleet = Duration::from_millis(last.unwrap_or(0) - begun.unwrap_or(0));
    let mut each: Vec<Duration> =
        results.iter().map(|one| Duration::from_millis(u64::from(one.timing.total_ms))).collect();
    each.sort();
    ensure!(ended.completed as usize == jobs, "{ended:?}");
    println!(
        "{jobs} requests of {TOKENS} tokens, {concurrency} at once, {step:?} a token: directly {:.0} requests/s, p50 {:?}; \
         through a worker {:.0} requests/s, p50 {:?}",
        jobs as f64 / direct.as_secs_f64(),
        quantile(&direct_each, 0.5),
        jobs as f64 / fleet.as_secs_f64(),
        quantile(&each, 0.5),
    );
    stop.cancel();
    worker.await??;
    coordinator.await??;
    Ok(())
}
