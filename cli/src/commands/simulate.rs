//! `ternfleet simulate`: policies compared on a virtual fleet, before any dollar is spent.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use ternfleet_coordinator::simulate::{Fleet, Options, Policy, Run, Trace, plot_svg, simulate_runs};
use ternfleet_proto::UsdMicro;

use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// File with the pods that can be rented and the batches to run (TOML; example: deploy/fleets/report.toml)
    #[arg(long, value_name = "FILE")]
    fleet: PathBuf,
    /// File with pod losses and changes of price and speed at set times (TOML)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Seed of all random values: speeds, losses, prices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Policies to compare: ours, round-robin, least-loaded, cheapest, fastest
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values_t = Policy::ALL)]
    policy: Vec<Policy>,
    /// Print a JSON array of reports; money is in micro-dollars
    #[arg(long)]
    json: bool,
    /// Write a plot of cost and progress of every policy to an SVG file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl Simulate {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let fleet = Fleet::parse(&read(&self.fleet)?).with_context(|| self.fleet.display().to_string())?;
        let trace = match &self.trace {
            Some(path) => Trace::parse(&read(path)?).with_context(|| path.display().to_string())?,
            None => Trace::default(),
        };
        let options = Options { policies: self.policy, seed: self.seed, trace, ..Options::default() };
        let runs = simulate_runs(&fleet, &options);
        if let Some(path) = &self.plot {
            let title =
                if fleet.name.is_empty() { self.fleet.display().to_string() } else { fleet.name.clone() };
            std::fs::write(path, plot_svg(&title, &runs))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.json {
            say_json(&runs.iter().map(|run| &run.report).collect::<Vec<_>>())?;
        } else {
            say(table(&runs).trim_end())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(runs: &[Run]) -> String {
    let mut text = format!(
        "{:<14}{:>12}{:>12}{:>10}{:>8}{:>12}{:>10}{:>8}{:>8}{:>10}\n",
        "policy", "cost", "bound", "ratio", "missed", "over budget", "wasted", "boots", "lost", "finish"
    );
    for run in runs {
        let report = &run.report;
        let ratio = report.cost_usd_micro as f64 / report.bound_usd_micro.max(1) as f64;
        text += &format!(
            "{:<14}{:>12}{:>12}{ratio:>10.3}{:>8}{:>12}{:>9.2}%{:>8}{:>8}{:>9.2}h\n",
            report.policy.as_str(),
            UsdMicro(report.cost_usd_micro).to_string(),
            UsdMicro(report.bound_usd_micro).to_string(),
            report.missed_deadlines,
            report.budget_violations,
            100.0 * report.wasted_tokens_ratio,
            run.boots,
            run.losses,
            report.finish_s / 3600.0,
        );
    }
    text
}
