//! Jobs through coordinator and bus, with workers that answer at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use ternfleet_proto::JobKey;
use ternfleet_proto::message::BatchView;
use ternfleet_proto::table::ApiVerb;

use super::{Fleet, quantile};
use crate::caller::prompts;
use crate::instant::{Manner, Seen};

/// A batch of so many jobs, from the creation to the last commit and to the written files.
///
/// # Errors
/// When the fleet does not work.
pub async fn throughput(jobs: usize, jetstream: &str, claims: bool) -> anyhow::Result<()> {
    let manner = Manner { slots: 256, rate_tok_s: 400_000.0, claims, ..Manner::default() };
    let fleet = Fleet::start(jetstream, &manner).await?;
    let (view, began, done) = last_commit(&fleet, prompts(jobs), jobs).await?;
    let ended = fleet.client.wait_end(&view.id).await;
    ensure!(ended.completed as usize == jobs, "{ended:?}");
    let streams = ["WORK-0", "CHECKPOINTS", "RESULTS"];
    let mut writes = 0;
    for stream in streams {
        writes += fleet.client.bus.stream_facts(stream).await?.last_sequence;
    }
    println!(
        "{jobs} jobs, {}, claims {claims}: {:.0} jobs/s to the last commit ({:.1} s), {:.1} s to the written \
         files; {:.2} stored writes a job",
        if jetstream.is_empty() { "default sync" } else { jetstream },
        jobs as f64 / done.as_secs_f64(),
        done.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        writes as f64 / jobs as f64
    );
    fleet.stop().await
}

/// The batch, when it was created, and how long it then took to the last commit.
async fn last_commit(
    fleet: &Fleet,
    input: Vec<u8>,
    jobs: usize,
) -> anyhow::Result<(BatchView, Instant, Duration)> {
    let view = fleet.client.submit("input", input).await;
    let began = Instant::now();
    loop {
        let view = fleet.client.get(&view.id).await;
        if view.completed as usize == jobs {
            return Ok((view, began, began.elapsed()));
        }
        ensure!(began.elapsed() < Duration::from_secs(900), "not done: {view:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lines that the cache looks for and never finds, in turn with lines that it leaves alone.
///
/// # Errors
/// When the fleet does not work.
pub async fn cache(jobs: usize) -> anyhow::Result<()> {
    let manner = Manner { slots: 256, rate_tok_s: 400_000.0, ..Manner::default() };
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (with, rates) in [true, false].into_iter().zip(&mut rates) {
            let fleet = Fleet::start("", &manner).await?;
            let line = |n: usize| json!({ "prompt": format!("prompt {n}"), "max_tokens": 16, "temperature": 0, "cache": with });
            let input: String = (0..jobs).map(|n| format!("{}\n", line(n))).collect();
            let (_, _, took) = last_commit(&fleet, input.into_bytes(), jobs).await?;
            rates.push(jobs as f64 / took.as_secs_f64());
            fleet.stop().await?;
        }
    }
    rates.iter_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
    let [with, without] = &rates;
    println!(
        "{jobs} jobs that differ: with the cache {with:.0?}, without {without:.0?} jobs/s; medians {:.1} %",
        100.0 * with[1] / without[1]
    );
    Ok(())
}

/// Single jobs at a steady rate: from the question to a worker having it in its hands.
///
/// # Errors
/// When the fleet does not work.
pub async fn latency(rate: u64, seconds: u64) -> anyhow::Result<()> {
    let pulled: Arc<Mutex<HashMap<JobKey, Instant>>> = Arc::default();
    let noting = Arc::clone(&pulled);
    let seen = move |job: &JobKey, _| {
        noting.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), Instant::now());
    };
    let manner =
        Manner { slots: 256, rate_tok_s: 400_000.0, seen: Some(Seen(Arc::new(seen))), ..Manner::default() };
    let fleet = Fleet::start("", &manner).await?;
    // The coordinator leads and knows its workers once a batch has gone through.
    let warm = fleet.client.submit("warm", prompts(500)).await;
    fleet.client.wait_end(&warm.id).await;
    let mut asked: Vec<(JobKey, Instant)> = Vec::new();
    let mut asking = tokio::task::JoinSet::new();
    let mut ticker = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for number in 0..rate * seconds {
        ticker.tick().await;
        let create = fleet.client.completion(number);
        asked.push((JobKey { batch: create.batch.clone(), index: 0 }, Instant::now()));
        let client = fleet.client.clone();
        asking.spawn(async move { client.ask::<()>(ApiVerb::JobCreate, &create).await });
    }
    while let Some(answer) = asking.join_next().await {
        answer??;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pulled = pulled.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let took = |(job, at): &(JobKey, Instant)| Some(pulled.get(job)?.duration_since(*at));
    let mut took: Vec<Duration> = asked.iter().filter_map(took).collect();
    took.sort();
    ensure!(took.len() == asked.len(), "{} of {} jobs arrived", took.len(), asked.len());
    println!(
        "{rate} jobs/s for {seconds} s: hand-over p50 {:?}, p90 {:?}, p99 {:?}, longest {:?}",
        quantile(&took, 0.5),
        quantile(&took, 0.9),
        quantile(&took, 0.99),
        quantile(&took, 1.0)
    );
    fleet.stop().await
}
