//! The tables of a benchmark, as the report that this project grew from printed them: the best row is marked.

use crate::report::table;

use super::{Report, ThreadRow};

pub(super) fn tables(report: &Report, threads_used: usize) -> String {
    let machine = &report.machine;
    let quota = machine.quota.map_or(String::new(), |cpus| format!(", quota {cpus:.2}"));
    let mut parts = vec![format!(
        "{}: {} cores{quota}, {}; with {threads_used} thread(s) {:.1} GB/s read, {:.0} G multiply-adds/s",
        machine.cpu,
        machine.cores,
        machine.isa,
        machine.read_gb_s,
        machine.mac_per_s / 1e9
    )];
    for (title, rate) in [
        ("prompt", prompt_rate as fn(&ThreadRow) -> Option<f64>),
        ("generation", decode_rate as fn(&ThreadRow) -> Option<f64>),
    ] {
        parts.push(format!("{title}\n{}", thread_table(&report.threads, rate)));
    }
    let rows = report.batch.iter().map(|row| {
        vec![
            row.batch.to_string(),
            row.prompt.to_string(),
            row.generated.to_string(),
            format!("{:.2}", row.tok_s),
        ]
    });
    parts.push(format!("batch\n{}", table(&["sequences", "prompt", "generated", "tok/s"], rows.collect())));
    parts.join("\n\n")
}

fn thread_table(rows: &[ThreadRow], rate: impl Fn(&ThreadRow) -> Option<f64>) -> String {
    let best = rows.iter().filter_map(&rate).fold(0.0, f64::max);
    let rows = rows.iter().map(|row| match (row, rate(row)) {
        (ThreadRow::Refused { threads, refused }, _) => {
            vec![threads.to_string(), "-".to_owned(), "-".to_owned(), refused.clone()]
        }
        (ThreadRow::Measured { threads, .. }, value) => {
            let value = value.unwrap_or_default();
            let mark = if value == best { "best" } else { "" };
            vec![
                threads.to_string(),
                format!("{:.2}", 1000.0 / value),
                format!("{value:.2}"),
                mark.to_owned(),
            ]
        }
    });
    table(&["threads", "ms/token", "tok/s", ""], rows.collect())
}

fn prompt_rate(row: &ThreadRow) -> Option<f64> {
    match row {
        ThreadRow::Measured { prompt_tok_s, .. } => Some(*prompt_tok_s),
        ThreadRow::Refused { .. } => None,
    }
}

fn decode_rate(row: &ThreadRow) -> Option<f64> {
    match row {
        ThreadRow::Measured { decode_tok_s, .. } => Some(*decode_tok_s),
        ThreadRow::Refused { .. } => None,
    }
}
