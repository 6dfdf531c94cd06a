//! Inputs of a million lines and of a gigabyte, by the program itself: how much memory CLI and coordinator take.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::peak_mib;
use crate::instant::{InstantWorker, Manner};
use crate::program;
use crate::server::NatsServer;

/// Submits a file of so many lines with so many bytes in each prompt, waits for its end, checks the count of its lines.
///
/// # Errors
/// When the fleet does not work.
pub async fn large_input(lines: usize, prompt_bytes: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input)?);
    let filling = "x".repeat(prompt_bytes);
    for line in 0..lines {
        writeln!(
            file,
            "{{\"custom_id\": \"c{line}\", \"prompt\": \"{line} {filling}\", \"max_tokens\": 16}}"
        )?;
    }
    file.flush()?;
    let input_mib = std::fs::metadata(&input)?.len() >> 20;

    let server = NatsServer::start()?;
    let url = server.url();
    let mut coordinator = program::command(&["coordinator", "--nats", &url])?
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let manner = Manner { slots: 256, rate_tok_s: 400_000.0, brief: true, ..Manner::default() };
    let _one = InstantWorker::start(server.bus().await?, "one", manner.clone()).await;
    let _two = InstantWorker::start(server.bus().await?, "two", manner).await;
    let out = folder.path().join("out.jsonl");
    let began = Instant::now();
    let (input, target) = (input.display().to_string(), out.display().to_string());
    let mut submit = program::command(&["submit", &input, "--out", &target, "--nats", &url])?
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let mut cli_mib = 0;
    let status = loop {
        cli_mib = cli_mib.max(peak_mib(submit.id()));
        if let Some(status) = submit.try_wait()? {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let took = began.elapsed();
    let coordinator_mib = peak_mib(coordinator.id());
    let server_mib = server.pid().map_or(0, peak_mib);
    let _ = coordinator.kill();
    let _ = coordinator.wait();
    ensure!(status.success(), "submit ended with {status}");
    let written =
        std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::open(&out).context("no results")?));
    let mut count = 0;
    for line in written {
        let line = line?;
        ensure!(line.contains(&format!("\"custom_id\":\"c{count}\"")), "line {count} is out of place");
        count += 1;
    }
    ensure!(count == lines, "{count} of {lines} lines");
    println!(
        "{lines} lines, {input_mib} MiB: {:.1} s from submit to the results in order; most memory: CLI {cli_mib} MiB, \
         coordinator {coordinator_mib} MiB, nats-server {server_mib} MiB",
        took.as_secs_f64()
    );
    Ok(())
}
