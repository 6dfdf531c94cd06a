//! Inputs of a million lines and of a gigabyte, by the program itself: how much memory CLI and coordinator take.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ternfleet_proto::table;

use super::peak_mib;
use super::process::resident_mib;
use crate::instant::{InstantWorker, Manner};
use crate::program::{self, STORYTELLER};
use crate::server::NatsServer;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// In-process workers that answer at once.
    AtOnce,
    /// One `ternfleet worker` with the storyteller, whose context no large prompt fits.
    ByTheProgram,
}

/// What the server holds once the answers have left RESULTS.
async fn emptied(server: &NatsServer) -> anyhow::Result<String> {
    let bus = server.bus().await?;
    let (ended, mut messages) = (Instant::now(), [0, 0]);
    while ended.elapsed() < Duration::from_secs(240) {
        for (place, stream) in [table::RESULTS, table::CHECKPOINTS].into_iter().enumerate() {
            messages[place] = bus.stream_facts(stream).await?.messages;
        }
        if messages == [0, 0] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(format!(
        "{:.1} s after that RESULTS held {} and CHECKPOINTS {} messages, nats-server {} MiB",
        ended.elapsed().as_secs_f64(),
        messages[0],
        messages[1],
        server.pid().map_or(0, resident_mib)
    ))
}

/// Submits a file of so many lines with so many bytes in each prompt, waits for its end, checks the count of its lines.
///
/// # Errors
/// When the fleet does not work.
pub async fn large_input(lines: usize, prompt_bytes: usize, answered: Answered) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input)?);
    let filling = "once upon a time there was ".repeat(prompt_bytes.div_ceil(27));
    let filling = &filling[..prompt_bytes];
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
    let mut instant = Vec::new();
    let mut worker = None;
    if answered == Answered::ByTheProgram {
        let arguments = ["worker", "--model", STORYTELLER, "--threads", "1", "--slots", "8", "--nats", &url];
        worker = Some(program::command(&arguments)?.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?);
    } else {
        for name in ["one", "two"] {
            instant.push(InstantWorker::start(server.bus().await?, name, manner.clone()).await);
        }
    }
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
    let left = emptied(&server).await?;
    let coordinator_mib = peak_mib(coordinator.id());
    let server_mib = server.pid().map_or(0, peak_mib);
    let worker_mib = worker.as_ref().map(|worker| peak_mib(worker.id()));
    if let Some(mut worker) = worker {
        let _ = worker.kill();
        let _ = worker.wait();
    }
    let _ = coordinator.kill();
    let _ = coordinator.wait();
    // 2 says that some lines are error lines: those whose prompt is too long.
    let wanted = if answered == Answered::ByTheProgram { Some(2) } else { Some(0) };
    ensure!(status.code() == wanted, "submit ended with {status}");
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
         coordinator {coordinator_mib} MiB, nats-server {server_mib} MiB{}; {left}",
        took.as_secs_f64(),
        worker_mib.map_or(String::new(), |mib| format!(", worker {mib} MiB"))
    );
    Ok(())
}
