//! Chaos on real processes, for as long as you like: `chaos [--minutes M] [--seed S] [--servers 1|3|both] [--report FILE]`.
//!
//! Needs the binary beside it (`cargo build -p ternfleet`), nats-server as the tests do, root for full disks, and
//! the Debian package `faketime` for steps of wall clocks. Exits
//! with 1 when a promise was broken; what the processes said is kept in the folder that is named then.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ternfleet_tests::chaos::{Plan, page, run};

struct Arguments {
    minutes: f64,
    seed: u64,
    servers: Vec<usize>,
    report: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("{reason}\nusage: chaos [--minutes M] [--seed S] [--servers 1|3|both] [--report FILE]");
            return Ok(ExitCode::from(64));
        }
    };
    let each = Duration::from_secs_f64(arguments.minutes * 60.0 / arguments.servers.len() as f64);
    let mut runs = Vec::new();
    let mut whole = true;
    for servers in arguments.servers {
        let plan = Plan {
            seed: arguments.seed,
            servers,
            workers: 3,
            coordinators: 2,
            lasting: each,
            lines_a_batch: 120,
            pause_ms: (1_500, 6_000),
            small_disks: true,
            long_stops: true,
            step_clocks: true,
            upstream: true,
        };
        let mut folder = tempfile::tempdir()?;
        let outcome = run(&plan, folder.path())?;
        println!("{servers} server(s), seed {}: {outcome:#?}", plan.seed);
        if !outcome.broken.is_empty() {
            whole = false;
            folder.disable_cleanup(true);
            println!("logs: {}", folder.path().display());
        }
        runs.push((plan, outcome));
    }
    if let Some(file) = arguments.report {
        std::fs::write(&file, page(&runs, &machine()))?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cores and memory, as Linux tells them.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or_default().trim().to_owned()
    };
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} CPUs ({}), {} of memory", field(&cpus, "model name"), field(&memory, "MemTotal"))
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { minutes: 15.0, seed: 1, servers: vec![1, 3], report: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let wrong = || format!("{word} cannot be {value:?}");
        match word.as_str() {
            "--minutes" => found.minutes = value.parse().map_err(|_| wrong())?,
            "--seed" => found.seed = value.parse().map_err(|_| wrong())?,
            "--servers" if value == "both" => found.servers = vec![1, 3],
            "--servers" => found.servers = vec![value.parse().map_err(|_| wrong())?],
            "--report" => found.report = Some(value.into()),
            other => return Err(format!("{other} is not an option")),
        }
    }
    Ok(found)
}
