//! The tables of a benchmark. The best row is marked; a rate stands with its least and greatest run and with the ceiling
//! that binds it.

use ternfleet_proto::UsdMicro;

use crate::report::table;

use super::report::{Batch, BatchRow, Figure, Report, Run, Stream, ThreadRow};
use super::spread::Spread;

pub(super) fn tables(report: &Report) -> String {
    let mut parts = Vec::new();
    if !report.quotable {
        parts.push(not_quotable(report));
    }
    parts.push(machine(report));
    if let Some(run) = &report.workload {
        parts.push(format!("workload\n{}", workload(run)));
        return parts.join("\n\n");
    }
    for (title, figure) in [
        ("prompt", (|row| &row.prompt) as fn(&Stream) -> &Figure),
        ("generation, one sequence", |row| &row.decode),
    ] {
        parts.push(format!("{title}\n{}", thread_table(&report.threads, figure)));
    }
    parts.push(format!("machine by threads\n{}", roofline(&report.threads)));
    parts.push(format!("batch\n{}", batch_table(&report.batch)));
    parts.push(format!("time of a batch step by part, percent\n{}", shares_table(&report.batch)));
    if !report.kernels.is_empty() {
        let rows = report.kernels.iter().map(|row| {
            vec![
                row.isa.clone(),
                row.kernel.clone(),
                row.threads.to_string(),
                spread(&row.prompt_tok_s),
                spread(&row.decode_tok_s),
            ]
        });
        let head = ["isa", "kernel", "threads", "prompt tok/s", "generation tok/s"];
        parts.push(format!("kernels\n{}", table(&head, rows.collect())));
    }
    if let Some(over) = &report.oversubscribed {
        parts.push(format!(
            "{} threads on half as many usable cores: {} tok/s, {:.0} % less",
            over.threads,
            spread(&over.decode_tok_s),
            over.cost_percent
        ));
    }
    parts.push(summary(report));
    parts.join("\n\n")
}

/// A workload's figures, one a line.
fn workload(run: &Run) -> String {
    let cost = |usd: Option<UsdMicro>| usd.map_or(String::new(), |usd| format!(", {usd} per 1M"));
    let shares = run.shares;
    let lines = [
        format!(
            "  {}: {} requests, at most {} at once, {} thread{}",
            run.workload,
            run.requests,
            run.slots,
            run.threads,
            if run.threads == 1 { "" } else { "s" }
        ),
        format!("  all tokens: {:.1} tok/s{}", run.tok_s, cost(run.usd_micro_per_million_tokens)),
        format!("  prompts: {} tokens, {:.1} tok/s of all the time", run.prompt_tokens, run.prompt_tok_s),
        format!(
            "  outputs: {} tokens, {:.1} tok/s of all the time{}",
            run.output_tokens,
            run.output_tok_s,
            cost(run.usd_micro_per_million_output_tokens)
        ),
        format!(
            "  {} steps in {:.1} s, {:.1} sequences each; ms {}, p99 {:.1}",
            run.steps,
            run.seconds,
            run.sequences_a_step,
            spread(&run.step_ms),
            run.step_ms_p99
        ),
        format!(
            "  of a step, percent: ternary products {:.1}, attention {:.1}, head {:.1}, norms {:.1}, waiting {:.1}, other {:.1}",
            shares.product, shares.attention, shares.head, shares.norm, shares.waiting, shares.other
        ),
        format!(
            "  {:.0} % of {:.0} G multiply-adds/s, attention and head counted",
            run.percent_of_mac_rate,
            run.mac_per_s / 1e9
        ),
    ];
    lines.join("\n")
}

/// A few lines that can be quoted as they stand: what was measured, where, and how fast it is.
fn summary(report: &Report) -> String {
    let (machine, model) = (&report.machine, &report.model);
    let name = std::path::Path::new(&model.path)
        .file_stem()
        .map_or(model.path.clone(), |stem| stem.to_string_lossy().into_owned());
    let mut lines = vec![
        if report.quotable { "summary" } else { "summary (do not quote, see above)" }.to_owned(),
        format!(
            "  {name} on {}, {} cores, {}, ternfleet {}",
            machine.cpu, machine.cores, machine.isa, report.version
        ),
    ];
    let cost = |usd: Option<UsdMicro>| usd.map_or(String::new(), |usd| format!(", {usd} per 1M tokens"));
    let measured = report.threads.iter().filter_map(|row| match row {
        ThreadRow::Measured(row) => Some(&**row),
        ThreadRow::Refused { .. } => None,
    });
    if let Some(best) = measured.max_by(|a, b| a.decode_tok_s.total_cmp(&b.decode_tok_s)) {
        lines.push(format!(
            "  one sequence: {:.1} tok/s with {} thread{}{}; prompts {:.0} tok/s",
            best.decode_tok_s,
            best.threads,
            if best.threads == 1 { "" } else { "s" },
            cost(best.usd_micro_per_million_tokens),
            best.prompt_tok_s
        ));
    }
    let batches = report.batch.iter().filter_map(|row| match row {
        BatchRow::Measured(row) if row.batch > 1 => Some(&**row),
        BatchRow::Measured(_) | BatchRow::Refused { .. } => None,
    });
    if let Some(best) = batches.max_by(|a, b| a.tok_s.total_cmp(&b.tok_s)) {
        lines.push(format!(
            "  batch of {}: {:.1} tok/s in total{}",
            best.batch,
            best.tok_s,
            cost(best.usd_micro_per_million_tokens)
        ));
    }
    lines.join("\n")
}

pub(super) fn not_quotable(report: &Report) -> String {
    format!(
        "DO NOT QUOTE: the CPU quota throttled this process {} times, {:.1} ms in total. Use fewer \
         threads, or a machine without other load in this quota.",
        report.throttling.periods,
        report.throttling.throttled_us as f64 / 1e3
    )
}

fn machine(report: &Report) -> String {
    let (machine, memory, model) = (&report.machine, &report.memory, &report.model);
    let quota = machine.quota.map_or(String::new(), |cpus| format!(", quota {cpus:.2}"));
    let mb = |bytes: u64| bytes / 1_000_000;
    [
        format!(
            "{}: {} cores{quota}, {}, kernel {}, device {}, huge pages {}",
            machine.cpu, machine.cores, machine.isa, machine.kernel, machine.device, machine.huge_pages
        ),
        format!(
            "{}: head {}, {}; {} MB and {} M multiply-adds per token",
            model.path,
            model.head,
            model.numerics,
            mb(model.bytes_per_token),
            mb(model.macs_per_token)
        ),
        format!(
            "loaded in {:.2} s (first touch of memory: {:.1} GB/s); {} MB anonymous (weights and head {}), \
             {} MB file-backed, {} MB resident in total; KV cache up to {} MB",
            memory.load_s,
            memory.first_touch_gb_s,
            mb(memory.anonymous_bytes),
            mb(memory.weights_bytes),
            mb(memory.file_bytes),
            mb(memory.resident_bytes),
            mb(memory.kv_bytes_max)
        ),
    ]
    .join("\n")
}

fn spread(spread: &Spread) -> String {
    format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
}

fn ceiling(figure: &Figure) -> String {
    format!("{:.0} % of {:.1} by {}", figure.ceiling.percent, figure.ceiling.tok_s, figure.ceiling.binds)
}

fn thread_table(rows: &[ThreadRow], figure: impl Fn(&Stream) -> &Figure) -> String {
    let measured = rows.iter().filter_map(|row| match row {
        ThreadRow::Measured(row) => Some(figure(row).tok_s.median),
        ThreadRow::Refused { .. } => None,
    });
    let best = measured.fold(0.0, f64::max);
    let rows = rows.iter().map(|row| match row {
        ThreadRow::Refused { threads, refused } => {
            vec![threads.to_string(), "-".to_owned(), "-".to_owned(), refused.clone(), String::new()]
        }
        ThreadRow::Measured(row) => {
            let figure = figure(row);
            let mark = if figure.tok_s.median == best { "best" } else { "" };
            vec![
                row.threads.to_string(),
                format!("{:.2}", 1000.0 / figure.tok_s.median),
                spread(&figure.tok_s),
                ceiling(figure),
                mark.to_owned(),
            ]
        }
    });
    table(&["threads", "ms/token", "tok/s", "ceiling", ""], rows.collect())
}

fn roofline(rows: &[ThreadRow]) -> String {
    let rows = rows.iter().filter_map(|row| match row {
        ThreadRow::Measured(row) => Some(vec![
            row.threads.to_string(),
            spread(&row.read_gb_s),
            format!("{:.0}", row.mac_per_s.median / 1e9),
            spread(&row.barrier_us),
            format!("{:.2}", row.load_s),
            row.usd_micro_per_million_tokens.map_or("-".to_owned(), |usd| usd.to_string()),
        ]),
        ThreadRow::Refused { .. } => None,
    });
    let head = ["threads", "read GB/s", "G multiply-adds/s", "barrier us", "load s", "$ per 1M tokens"];
    table(&head, rows.collect())
}

fn batch_table(rows: &[BatchRow]) -> String {
    let rows = rows.iter().map(|row| match row {
        BatchRow::Refused { batch, prompt, generated, refused } => {
            let mut cells =
                vec![batch.to_string(), prompt.to_string(), generated.to_string(), refused.clone()];
            cells.resize(11, "-".to_owned());
            cells
        }
        BatchRow::Measured(row) => vec![
            row.batch.to_string(),
            row.prompt.to_string(),
            row.generated.to_string(),
            spread(&row.decode.tok_s),
            format!("{:.2}", row.tok_s_a_stream),
            ceiling(&row.decode),
            sampled(row),
            format!("{:.0} / {:.0}", row.first_token_ms_p50, row.first_token_ms_max),
            format!("{:.1} / {:.1}", row.between_tokens_ms_p50, row.between_tokens_ms_p99),
            format!("{:.2}", row.attention_ms),
            row.usd_micro_per_million_tokens.map_or("-".to_owned(), |usd| usd.to_string()),
        ],
    });
    let head = [
        "sequences",
        "prompt",
        "gen",
        "tok/s",
        "each",
        "ceiling",
        "sampled, % of greedy",
        "first token ms, p50 / max",
        "between tokens ms, p50 / p99",
        "attention ms",
        "$ per 1M tokens",
    ];
    table(&head, rows.collect())
}

fn sampled(row: &Batch) -> String {
    let cells = row.sampled.iter();
    let cells: Vec<String> =
        cells.map(|sampled| format!("{} {:.0}", sampled.draws, sampled.percent_of_greedy.median)).collect();
    if cells.is_empty() { "-".to_owned() } else { cells.join(", ") }
}

fn shares_table(rows: &[BatchRow]) -> String {
    let rows = rows.iter().filter_map(|row| match row {
        BatchRow::Measured(row) => Some(&**row),
        BatchRow::Refused { .. } => None,
    });
    let rows = rows.map(|row: &Batch| {
        let shares = row.shares;
        let mut cells = vec![row.batch.to_string(), row.prompt.to_string()];
        let all = [shares.product, shares.attention, shares.head, shares.norm, shares.waiting, shares.other];
        cells.extend(all.map(|share| format!("{share:.1}")));
        cells
    });
    let head = ["sequences", "prompt", "ternary products", "attention", "head", "norms", "waiting", "other"];
    table(&head, rows.collect())
}
