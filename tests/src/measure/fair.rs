//! A short batch behind a long one.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Fleet;
use crate::caller::prompts;
use crate::instant::Manner;

/// Ten lines submitted while a batch of `lines` runs, at workers that take 50 ms a job.
///
/// # Errors
/// When the fleet does not work.
pub async fn short_behind_long(lines: usize) -> anyhow::Result<()> {
    // 8 slots and 50 ms a job: 160 jobs/s of about 26 tokens at each worker.
    let manner =
        Manner { slots: 8, takes: Duration::from_millis(50), rate_tok_s: 4_000.0, ..Manner::default() };
    let fleet = Fleet::start("", &manner).await?;
    let long = fleet.client.submit("long", prompts(lines)).await;
    fleet.client.wait(&long.id, "the long batch's first answers", |view| view.completed > 200).await;
    let short = fleet.client.submit("short", prompts(10)).await;
    let accepted = Instant::now();
    let mut first = None;
    let all = loop {
        let view = fleet.client.get(&short.id).await;
        if view.completed > 0 {
            first.get_or_insert(accepted.elapsed());
        }
        if view.completed == 10 {
            break accepted.elapsed();
        }
        ensure!(accepted.elapsed() < Duration::from_secs(120), "{view:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let view = fleet.client.get(&long.id).await;
    println!(
        "10 lines behind {lines}: first answer after {:?}, last after {all:?}; the long batch then had {} answers",
        first.unwrap_or_default(),
        view.completed
    );
    fleet.stop().await
}
