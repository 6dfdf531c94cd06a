//! Runs simulated fleets: `sim --seeds N [--from K] [--faults 1,2|none]`.
//!
//! Prints one line for each failing seed with the command that shows it again, and a summary. Exits with 1 when any
//! seed failed. With `RUST_LOG=debug` and one seed, the programs' log shows what happened, at virtual times.

use std::fmt;
use std::process::ExitCode;
use std::sync::OnceLock;

use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use ternfleet_tests::sim::{Scenario, run_scenario, run_seed};

struct Arguments {
    seeds: u64,
    from: u64,
    faults: Option<Vec<usize>>,
}

/// Time since the first line of the log, as the simulated programs see it.
struct Virtual(OnceLock<Instant>);

impl FormatTime for Virtual {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        let now = Instant::now();
        write!(to, "{:9.3}", now.saturating_duration_since(*self.0.get_or_init(|| now)).as_secs_f64())
    }
}

fn main() -> ExitCode {
    if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some() {
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        log.with_timer(Virtual(OnceLock::new())).with_writer(std::io::stderr).init();
    }
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("{reason}\nusage: sim --seeds N [--from K] [--faults 1,2|none]");
            return ExitCode::from(2);
        }
    };
    let began = std::time::Instant::now();
    let (mut failed, mut steps, mut jobs, mut virtual_s) = (0u64, 0u64, 0u64, 0.0);
    let (mut duplicates, mut leaders, mut moved) = (0u64, 0u64, 0u64);
    for seed in arguments.from..arguments.from + arguments.seeds {
        let outcome = match &arguments.faults {
            None => run_seed(seed).map_err(|failure| failure.to_string()),
            Some(numbers) => run_scenario(Scenario::of(seed).keeping(numbers))
                .map_err(|broken| format!("seed {seed}: {broken}")),
        };
        match outcome {
            Ok(tally) => {
                steps += tally.steps;
                jobs += tally.jobs;
                virtual_s += tally.virtual_s;
                duplicates += tally.duplicates;
                leaders += tally.leaders;
                moved += tally.moved;
            }
            Err(shown) => {
                failed += 1;
                println!("{shown}");
            }
        }
    }
    println!(
        "{} seeds, {failed} failed: {jobs} jobs, {steps} steps, {virtual_s:.0} s of virtual time, {moved} moves, \
         {duplicates} duplicate answers, {leaders} leaderships, in {:.1} s",
        arguments.seeds,
        began.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { seeds: 100, from: 1, faults: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} needs a number, not {value:?}"));
        match word.as_str() {
            "--seeds" => found.seeds = number()?,
            "--from" => found.from = number()?,
            "--faults" if value == "none" => found.faults = Some(Vec::new()),
            "--faults" => {
                let numbers: Result<_, _> = value.split(',').map(str::parse::<usize>).collect();
                found.faults = Some(numbers.map_err(|_| format!("--faults needs numbers, not {value:?}"))?);
            }
            other => return Err(format!("{other} is not an option")),
        }
    }
    Ok(found)
}
