//! How fast the coordinator and the bus hand jobs over, with workers that answer at once. Run by hand:
//! `cargo test --release -p ternfleet-tests --test coordinator_speed -- --ignored --nocapture`.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[allow(dead_code)] // Two tests share it, and neither uses all of it.
#[path = "coordinator/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "coordinator/instant.rs"]
mod instant;

use std::time::{Duration, Instant};

use client::{Client, prompts};
use instant::{InstantWorker, Manner};
use ternfleet_coordinator::Options;
use ternfleet_tests::server::NatsServer;
use tokio_util::sync::CancellationToken;

async fn hand_over(jobs: usize, settings: &str, claims: bool) {
    let server = NatsServer::start_with(settings).unwrap();
    let stop = CancellationToken::new();
    let bus = server.bus().await.unwrap();
    let coordinator = tokio::spawn(ternfleet_coordinator::run(bus, Options::default(), stop.clone()));
    let mut workers = Vec::new();
    for name in ["one", "two"] {
        let manner = Manner { slots: 256, rate_tok_s: 200_000.0, claims, ..Manner::default() };
        workers.push(InstantWorker::start(server.bus().await.unwrap(), name, manner).await);
    }
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("input", prompts(jobs)).await;
    let began = Instant::now();
    let done = loop {
        let view = client.get(&view.id).await;
        if view.completed as usize == jobs {
            break began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(300), "{view:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    println!(
        "{jobs} jobs, {settings:?}, claims {claims}: {:.0} jobs/s to the last commit ({done:?})",
        jobs as f64 / done.as_secs_f64()
    );
    let view = client.wait_end(&view.id).await;
    println!("  output files after {:?}: {:?}", began.elapsed(), view.state);
    stop.cancel();
    coordinator.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn jobs_are_handed_over_with_default_sync() {
    hand_over(100_000, "", false).await;
    hand_over(50_000, "", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn jobs_are_handed_over_with_sync_always() {
    hand_over(20_000, "sync_interval: always", false).await;
}
