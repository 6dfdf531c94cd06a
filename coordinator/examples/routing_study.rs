//! Writes the figures and plots of `docs/routing`: `cargo run --release -p ternfleet-coordinator --example
//! routing_study -- docs/routing [FLEETS [BUDGET_FLEETS]]`. The same command gives the same files, to the byte, on any machine.

use std::path::Path;

use ternfleet_coordinator::simulate::{
    Fleet, Generator, Options, Policy, StudyOptions, Trace, plot_svg, random_fleet, render_markdown,
    simulate_runs, study,
};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "docs/routing".to_owned());
    let fleets: u32 = arguments.next().map_or(Ok(1000), |count| count.parse())?;
    let budget_fleets: u32 = arguments.next().map_or(Ok(8_000), |count| count.parse())?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;

    let report = Fleet::parse(&std::fs::read_to_string("deploy/fleets/report.toml")?)?;
    let runs = simulate_runs(&report, &Options::default());
    std::fs::write(folder.join("report-fleet.svg"), plot_svg("deploy/fleets/report.toml", &runs))?;
    let trace = Trace::parse(&std::fs::read_to_string("deploy/fleets/report-losses.toml")?)?;
    let runs = simulate_runs(&report, &Options { trace, ..Options::default() });
    std::fs::write(folder.join("report-fleet-losses.svg"), plot_svg("both RTX 4090 lost at 20 min", &runs))?;
    let mixed = random_fleet(&Generator::default(), 7);
    let runs = simulate_runs(&mixed, &Options { seed: 7, ..Options::default() });
    std::fs::write(folder.join("random-fleet-7.svg"), plot_svg("random fleet 7, slack 2", &runs))?;

    let mut text = String::from(
        "# Figures of the simulator\n\nWritten by `coordinator/examples/routing_study.rs`; do not edit. The generator of the fleets is \
         stated in `coordinator/src/simulate/generate.rs`. The bound is the relaxed problem with true speeds and one boot for \
         each pod that it uses.\n",
    );
    for (title, fleets, generator, policies) in [
        ("Slack 2", fleets, Generator::default(), Policy::ALL.to_vec()),
        ("Slack 1.2", fleets, Generator { slack: 1.2, ..Generator::default() }, Policy::ALL.to_vec()),
        (
            "Slack 2, up to one loss per pod and hour",
            fleets,
            Generator { loss_per_hour_max: 1.0, ..Generator::default() },
            vec![Policy::Ours],
        ),
        (
            "Slack 1.5, up to 20 batches with budgets from half to four times the least cost, losses",
            budget_fleets,
            Generator {
                slack: 1.5,
                batches_max: 20,
                loss_per_hour_max: 1.0,
                budgets: true,
                ..Generator::default()
            },
            vec![Policy::Ours],
        ),
        (
            "Slack 2, two classes in five compute on graphics cards",
            fleets,
            Generator { gpus: true, ..Generator::default() },
            vec![Policy::Ours],
        ),
    ] {
        let studies = study(&StudyOptions { fleets, first_seed: 1, generator, policies });
        text += &format!("\n## {title}, {fleets} random fleets\n\n{}", render_markdown(&studies));
        std::fs::write(folder.join("figures.md"), &text)?;
    }
    Ok(())
}
