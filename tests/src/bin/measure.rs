//! Measures what the promises cost. One command a run, so that each can be repeated alone:
//!
//! `measure throughput [JOBS] [always]` · `claims [JOBS]` · `latency [JOBS_A_SECOND]` · `restart [LINES]` · `takeover` ·
//! `fair [LINES]` · `lines [LINES]` · `bytes [MIB]` · `worker [MIB]` · `core [JOBS]` · `day [JOBS]` ·
//! `fleet [WORKERS] [JOBS_A_SECOND…]` · `upstream [MS_A_TOKEN]` · `table [ROWS]` · `twice [LINES]` · `shared [LINES]` ·
//! `cache [JOBS]` · `again [LINES]`
//!
//! Needs nats-server as the tests do, and for `restart`, `takeover` and what follows `fair` the binary beside it (or the
//! one that `TERNFLEET_TEST_BINARY` names).

use std::process::ExitCode;

use ternfleet_tests::measure::{
    Answered, again, cache, core_alone, fleet, large_input, latency, overhead, restart, shared,
    short_behind_long, table, takeover, throughput, twice,
};

const USAGE: &str = "usage: measure throughput|claims|latency|restart|takeover|fair|lines|bytes|worker|core|day|fleet|upstream|table|twice|shared|cache|again [NUMBER] [always]";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = words.get(1).and_then(|word| word.parse::<u64>().ok());
    let jetstream = if words.iter().any(|word| word == "always") { "sync_interval: always" } else { "" };
    let or = |otherwise: u64| number.unwrap_or(otherwise);
    match words.first().map(String::as_str) {
        Some("throughput") => throughput(or(100_000) as usize, jetstream, false).await?,
        Some("claims") => throughput(or(50_000) as usize, jetstream, true).await?,
        Some("latency") => latency(or(1_000), 20).await?,
        Some("restart") => restart(or(1_000_000) as u32).await?,
        Some("takeover") => takeover().await?,
        Some("core") => core_alone(or(1_000_000) as u32, 10_000)?,
        Some("fleet") => {
            let rates: Vec<u64> = words.iter().skip(2).filter_map(|word| word.parse().ok()).collect();
            fleet(or(10_000) as usize, 30, if rates.is_empty() { &[1_500] } else { &rates }).await?;
        }
        Some("day") => core_alone(or(100_000_000) as u32, 10_000)?,
        Some("upstream") => overhead(3_000, 64, std::time::Duration::from_millis(or(5))).await?,
        Some("fair") => short_behind_long(or(1_000_000) as usize).await?,
        Some("table") => table(or(1_000_000) as usize).await?,
        Some("twice") => twice(or(10_000) as usize).await?,
        Some("shared") => shared(or(1_000) as usize).await?,
        Some("cache") => cache(or(100_000) as usize).await?,
        Some("again") => again(or(100) as usize).await?,
        Some("lines") => large_input(or(1_000_000) as usize, 8, Answered::AtOnce).await?,
        Some("bytes") => large_input(or(1024) as usize * 16, 64 << 10, Answered::AtOnce).await?,
        Some("worker") => large_input(or(1024) as usize * 16, 64 << 10, Answered::ByTheProgram).await?,
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(64));
        }
    }
    Ok(ExitCode::SUCCESS)
}
