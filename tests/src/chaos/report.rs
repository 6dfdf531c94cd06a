//! The report of a run, as a page of the documentation.

use std::fmt::Write as _;

use super::{Outcome, Plan};

/// One section a run, in Markdown.
pub fn page(runs: &[(Plan, Outcome)], machine: &str) -> String {
    let mut page = String::from(
        "# Chaos runs on real processes\n\nWritten by `make chaos`. Every process is real: nats-server, coordinators, workers with \
         the storyteller, and clients\n(`ternfleet submit --out`). The servers have keys and permissions, and somebody with a \
         stolen worker's key forges\nheartbeats, checkpoints and answers all the while. The seed determines the faults. The \
         checker compares every line of every file\nwith a run without faults, and reads RESULTS for answers that differ and \
         batches for costs that are too high.\n\n",
    );
    let _ = writeln!(page, "Machine: {machine}.\n");
    for (plan, outcome) in runs {
        let servers = if plan.servers == 1 {
            "one nats-server".to_owned()
        } else {
            format!("a cluster of {}", plan.servers)
        };
        let _ = writeln!(page, "## {servers}, seed {}\n", plan.seed);
        let _ = writeln!(
            page,
            "{} workers and {} coordinators. Faults for {} s{}{}. Every batch had ended {:.1} s after the last fault was repaired \
             ({:.0} s in all).\n",
            plan.workers,
            plan.coordinators,
            plan.lasting.as_secs(),
            if outcome.small_disks { ", each server with a tmpfs of its own" } else { "" },
            if outcome.clocks { ", each coordinator and worker with a wall clock of its own" } else { "" },
            outcome.settled_s,
            outcome.run_s
        );
        let rows = [
            ("batches accepted and ended", outcome.batches),
            ("creations without a reply, not accepted", outcome.refused),
            ("lines accepted", outcome.lines),
            ("… committed", outcome.good),
            ("… error lines, as expected", outcome.bad),
            ("jobs that took more than one attempt", outcome.moved),
            ("answers stored after the committed one", outcome.duplicates),
            ("… of these, divergent", outcome.divergent),
            ("tokens generated", outcome.completion_tokens),
            ("tokens prefilled again", outcome.reprefilled_tokens),
            ("messages forged with the stolen key", outcome.forged),
            ("guarantees broken", outcome.broken.len() as u64),
        ];
        page.push_str("| what | count |\n|---|---|\n");
        for (what, count) in rows {
            let _ = writeln!(page, "| {what} | {count} |");
        }
        page.push_str("\n| fault | times |\n|---|---|\n");
        for (fault, times) in &outcome.faults {
            let _ = writeln!(page, "| {fault} | {times} |");
        }
        page.push('\n');
        for broken in &outcome.broken {
            let _ = writeln!(page, "- BROKEN: {broken}");
        }
    }
    page
}
