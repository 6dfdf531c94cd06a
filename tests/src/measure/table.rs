//! A table of a gigabyte in and out, by the program itself, with workers that answer at once: how much memory each process
//! takes, and how fast rows become requests and answers become rows.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::peak_mib;
use crate::instant::{InstantWorker, Manner};
use crate::program::{self, Service};
use crate::server::NatsServer;

const TEXT_BYTES: usize = 1000;
/// Any market will do: the quote is not looked at.
const MARKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/fleets/report.toml");

/// Runs the program to its end: how long it took, and the most memory that it held.
async fn run(arguments: &[&str]) -> anyhow::Result<(Duration, u64)> {
    let began = Instant::now();
    let mut child = program::command(arguments)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut mib = 0;
    loop {
        mib = mib.max(peak_mib(child.id()));
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{arguments:?} ended with {status}");
            return Ok((began.elapsed(), mib));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rows of text that no compression makes smaller.
fn write_rows(path: &str, rows: usize) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut state = 88_172_645_463_325_252_u64;
    let mut text = String::with_capacity(TEXT_BYTES);
    for row in 0..rows {
        text.clear();
        while text.len() < TEXT_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let letter = |at: u32| char::from(b"abcdefghijklmnop"[(state >> (4 * at)) as usize % 16]);
            text.extend((0..16).map(letter));
        }
        text.truncate(TEXT_BYTES);
        writeln!(file, "{{\"key\": {row}, \"text\": \"{text}\", \"score\": {}}}", row as f64 / 4.0)?;
    }
    Ok(file.flush()?)
}

/// A table of so many rows with a kilobyte of text each: JSONL to Parquet, then Parquet to Parquet step by step.
///
/// # Errors
/// When the fleet does not work.
pub async fn table(rows: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (jsonl, table, out) = (path("rows.jsonl"), path("table.parquet"), path("out.parquet"));
    write_rows(&jsonl, rows)?;
    let server = NatsServer::start()?;
    let url = server.url();
    let mut coordinator = program::command(&["coordinator", "--nats", &url])?;
    for (quota, most) in [("LINES", "4000000000"), ("BYTES", "100000000000"), ("TOKENS", "100000000000")] {
        coordinator.env(format!("TERNFLEET_QUOTAS__QUEUED_{quota}_MAX"), most);
    }
    coordinator.env("TERNFLEET_QUOTAS__STORED_BYTES_MAX", "100000000000");
    let coordinator = Service::start_command(coordinator, &folder.path().join("coordinator.log"))?;
    let manner = Manner { slots: 256, rate_tok_s: 400_000.0, brief: true, ..Manner::default() };
    let _one = InstantWorker::start(server.bus().await?, "one", manner.clone()).await;
    let _two = InstantWorker::start(server.bus().await?, "two", manner).await;

    let prompt = ["--prompt", "{{ text }}", "--max-tokens", "16"];
    let (took, mib) =
        run(&[&["submit", &jsonl, "--out", &table, "--nats", &url][..], &prompt].concat()).await?;
    let bytes = |path: &str| anyhow::Ok(std::fs::metadata(path)?.len() as f64);
    let (table_mb, rate) = (bytes(&table)? / 1e6, |mb: f64, took: Duration| mb / took.as_secs_f64());
    println!(
        "{rows} rows: JSONL of {:.0} MB to Parquet of {table_mb:.0} MB, answered: {:.1} s, CLI {mib} MiB",
        bytes(&jsonl)? / 1e6,
        took.as_secs_f64()
    );
    let offline = ["--prefix", "again_", "--offline", "--market", MARKET];
    let (took, mib) = run(&[&["quote", &table][..], &prompt, &offline].concat()).await?;
    println!("rows to requests, read once more by quote: {:.0} MB/s, CLI {mib} MiB", rate(table_mb, took));
    let detached = ["--prefix", "again_", "--detach", "--name", "again", "--nats", &url];
    let (took, mib) = run(&[&["submit", &table][..], &prompt, &detached].concat()).await?;
    println!("rows to requests, uploaded by submit: {:.0} MB/s, CLI {mib} MiB", rate(table_mb, took));
    let began = Instant::now();
    loop {
        let status = program::run(&["status", "again", "--json", "--nats", &url])?.json()?;
        match status["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "expired" | "cancelled") => anyhow::bail!("{status}"),
            _ => ensure!(began.elapsed() < Duration::from_secs(1800), "not done: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (took, mib) = run(&["results", "again", "--table", &table, "--out", &out, "--nats", &url]).await?;
    println!(
        "answers to rows, fetched by results: Parquet of {:.0} MB, {:.0} MB/s, CLI {mib} MiB",
        bytes(&out)? / 1e6,
        rate(bytes(&out)? / 1e6, took)
    );
    let server_mib = server.pid().map_or(0, peak_mib);
    println!("coordinator {} MiB, nats-server {server_mib} MiB at most", peak_mib(coordinator.id()));
    Ok(())
}
