//! `ternfleet bench`: what this machine makes of a model, against what it could at best.
//!
//! Thread table, batch table at several prompt lengths, kernel table, the machine's own rates, memory, the cost of too
//! many threads, and whether the figures may be quoted. Measuring is `measure`'s affair, the sums are `ceiling`'s.

mod ceiling;
mod measure;
mod plot;
mod process;
mod report;
mod show;
mod spread;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use ternfleet_engine::host::{self, Topology};
use ternfleet_engine::{Device, Head, Info, Isa, KernelChoice, Kv};

use crate::model_file::ModelFile;
use crate::output::{Existing, WholeFile, say, say_json};
use measure::{Bench as Measure, Draws, Subject};
use process::MemoryUse;
use report::{BatchRow, Machine, Memory, Model, Oversubscribed, Report, Run, Stream, ThreadRow, Throttled};

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Thread counts to measure
    #[arg(short = 't', long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Batch sizes to measure: numbers of sequences generated at the same time, at most 64, or 1024 with --device cuda
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Length of the prompt, in tokens
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Prompt lengths of the batch rows, if different from --prompt; shortened if prompt and output exceed the model's context
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    context: Vec<u32>,
    /// Number of tokens to generate
    #[arg(long = "gen", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    generated: u32,
    /// Runs per measurement; the median is reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    repeat: u16,
    /// How the batch rows are also measured, beside greedily
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "top-p")]
    sampled: Vec<Draws>,
    /// Instead of the tables: requests of mixed lengths in parallel, as a worker runs them: chat, extract, story, or a file of
    /// JSON lines with prompt_tokens, output_tokens, temperature and top_p
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["plot", "oversubscribe", "batch", "context"])]
    workload: Option<String>,
    /// Maximum of sequences of a workload that run in parallel
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: u16,
    /// Output head: screened, full, q8 or q6
    #[arg(long, value_name = "NAME", default_value_t = Head::Screened)]
    head: Head,
    /// How keys and values are stored: f16 or int8
    #[arg(long, value_name = "NAME", default_value_t = Kv::F16)]
    kv: Kv,
    /// What computes: cpu, or cuda for an NVIDIA card (experimental: no card has run it yet)
    #[arg(long, value_name = "NAME", default_value_t = Device::Cpu)]
    device: Device,
    /// Ternary kernel; `all` prints a table of every kernel and instruction set of this machine
    #[arg(long, value_name = "NAME", default_value = "auto")]
    kernel: String,
    /// Do not use huge pages
    #[arg(long)]
    no_huge_pages: bool,
    /// Also measure thread counts above what quota, affinity and cores allow, and the cost of twice as many threads
    #[arg(long)]
    oversubscribe: bool,
    /// Price of this machine per hour; also prints $ per 1M tokens
    #[arg(long, value_name = "X", value_parser = price)]
    price_usd_per_hour: Option<f64>,
    /// Exit with 0 even if the CPU quota throttled the process; the report still says so
    #[arg(long)]
    allow_throttled: bool,
    /// Write a plot of rates and ceilings to an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Overwrite the file of --plot if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if (0.0..=10_000.0).contains(&price) => Ok(price),
        _ => Err("expected dollars from 0 to 10000".to_owned()),
    }
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = ModelFile::open(self.model.as_deref())?;
        let (kernel, all_kernels) = match self.kernel.as_str() {
            "all" => (KernelChoice::Auto, true),
            name => (name.parse::<KernelChoice>()?, false),
        };
        let workload = self.workload.as_deref().map(workload::Workload::parse).transpose()?;
        // An impossible place is found out before the measuring.
        let plot = self.plot.as_deref();
        let plot = plot.map(|path| WholeFile::create(path, Existing::forced(self.force))).transpose()?;
        let topology = Topology::read();
        let before = host::throttling();
        let measure = Measure {
            model: &model,
            prompt: self.prompt as usize,
            generated: self.generated as usize,
            repeat: self.repeat.into(),
            head: self.head,
            kv: self.kv,
            device: self.device,
            kernel,
            huge_pages: !self.no_huge_pages,
            price_usd_per_hour: self.price_usd_per_hour,
            sampled: &self.sampled,
        };

        let found = match workload {
            Some(workload) => self.through(&measure, &topology, &workload)?,
            None => self.tables(&measure, &topology)?,
        };
        let Found { facts: (info, used, first_touch_gb_s), threads, batch, workload, rates } = found;
        let count = best_of(&threads).map_or(topology.usable_threads, |row| row.threads);
        let memory = Memory {
            load_s: info.load_s,
            first_touch_gb_s,
            weights_bytes: info.weights_bytes,
            kv_bytes_max: info.kv_bytes,
            resident_bytes: used.resident_bytes,
            anonymous_bytes: used.anonymous_bytes,
            file_bytes: used.file_bytes,
        };
        let kernels = if all_kernels { kernel_rows(&measure, count)? } else { Vec::new() };
        let oversubscribed =
            if self.oversubscribe { Some(oversubscribed(&measure, &topology, &threads)?) } else { None };
        let throttling = Throttled::between(before, host::throttling());
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            model: Model {
                path: model.path.display().to_string(),
                head: info.head.to_string(),
                numerics: info.numerics,
                bytes_per_token: info.bytes_per_token,
                macs_per_token: info.macs_per_token,
            },
            machine: Machine {
                cpu: topology.cpu_model,
                isa: info.isa.to_string(),
                kernel: info.kernel.to_string(),
                device: info.device,
                cores: topology.physical_cores,
                quota: topology.quota_cpus,
                read_gb_s: rates.read_gb_s,
                mac_per_s: rates.mac_per_s,
                huge_pages: topology.transparent_huge_pages,
            },
            memory,
            threads,
            batch,
            workload,
            kernels,
            oversubscribed,
            quotable: throttling.periods == 0,
            throttling,
        };
        if let Some(mut plot) = plot {
            plot.line(plot::svg(&report).trim_end())?;
            plot.publish()?;
        }
        if self.json { say_json(&report) } else { say(&show::tables(&report)) }?;
        if !report.quotable && !self.allow_throttled {
            bail!("{} (--allow-throttled makes the command succeed)", show::not_quotable(&report));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// A workload, by as many threads as a worker takes unless one number is given.
    fn through(
        &self,
        measure: &Measure<'_>,
        topology: &Topology,
        workload: &workload::Workload,
    ) -> anyhow::Result<Found> {
        let threads = match self.threads.as_slice() {
            &[threads] => threads.into(),
            _ => topology.default_threads(),
        };
        eprintln!("measuring a workload with {threads} thread(s)");
        let (subject, run) = workload.run(measure, threads, self.slots.into())?;
        let rates = ceiling::Rates { read_gb_s: run.read_gb_s, mac_per_s: run.mac_per_s };
        Ok(Found {
            facts: facts(&subject),
            threads: Vec::new(),
            batch: Vec::new(),
            workload: Some(run),
            rates,
        })
    }

    /// The tables by threads and by sequences.
    fn tables(&self, measure: &Measure<'_>, topology: &Topology) -> anyhow::Result<Found> {
        let (threads, first) = self.thread_rows(measure, topology)?;
        let best = best_of(&threads).map(|row| (row.threads, row.read_gb_s.median, row.mac_per_s.median));
        let count = best.map_or(topology.usable_threads, |(threads, ..)| threads);
        let facts = match first {
            Some(first) => first,
            None => facts(&measure.single(count)?),
        };
        let (batch, rates) = self.batch_rows(measure, count)?;
        let rates = best.map_or(rates, |(_, read_gb_s, mac_per_s)| ceiling::Rates { read_gb_s, mac_per_s });
        Ok(Found { facts, threads, batch, workload: None, rates })
    }

    /// The rows, and the facts of the first engine that was measured, when the process held nothing else.
    fn thread_rows(
        &self,
        measure: &Measure<'_>,
        topology: &Topology,
    ) -> anyhow::Result<(Vec<ThreadRow>, Option<Facts>)> {
        let mut first = None;
        let mut rows = Vec::new();
        for threads in self.threads.iter().copied().map(usize::from) {
            if threads > topology.usable_threads && !self.oversubscribe {
                rows.push(ThreadRow::Refused { threads, refused: refusal(topology) });
                continue;
            }
            eprintln!("measuring {threads} thread(s)");
            let mut subject = measure.single(threads)?;
            rows.push(ThreadRow::Measured(Box::new(measure.stream(&mut subject)?)));
            first.get_or_insert_with(|| facts(&subject));
        }
        Ok((rows, first))
    }

    fn batch_rows(
        &self,
        measure: &Measure<'_>,
        threads: usize,
    ) -> anyhow::Result<(Vec<BatchRow>, ceiling::Rates)> {
        let batches: Vec<usize> = self.batch.iter().copied().map(usize::from).collect();
        let contexts: Vec<usize> = match self.context.as_slice() {
            [] => vec![measure.prompt],
            contexts => contexts.iter().map(|&tokens| tokens as usize).collect(),
        };
        let mut subject = measure.several(threads, &batches, &contexts)?;
        let mut rows = Vec::new();
        for &context in &contexts {
            for &batch in &batches {
                let prompt = measure.prompt_that_fits(batch, context);
                eprintln!("measuring a batch of {batch} with prompts of {prompt} and {threads} thread(s)");
                rows.push(match measure.batch(&mut subject, batch, prompt) {
                    Ok(row) => BatchRow::Measured(Box::new(row)),
                    Err(why) => BatchRow::Refused {
                        batch,
                        prompt,
                        generated: measure.generated,
                        refused: format!("{why:#}"),
                    },
                });
            }
        }
        let rates = measure.rates_alone(&mut subject);
        Ok((rows, rates))
    }
}

/// What was measured.
struct Found {
    facts: Facts,
    threads: Vec<ThreadRow>,
    batch: Vec<BatchRow>,
    workload: Option<Run>,
    rates: ceiling::Rates,
}

/// What an engine is, what the process held when it was loaded, and how fast fresh memory came.
type Facts = (Info, MemoryUse, f64);

fn facts(subject: &Subject) -> Facts {
    (subject.info().clone(), subject.memory, subject.first_touch_gb_s())
}

fn best_of(rows: &[ThreadRow]) -> Option<&Stream> {
    let measured = rows.iter().filter_map(|row| match row {
        ThreadRow::Measured(row) => Some(&**row),
        ThreadRow::Refused { .. } => None,
    });
    measured.max_by(|a, b| a.decode_tok_s.total_cmp(&b.decode_tok_s))
}

fn kernel_rows(measure: &Measure<'_>, threads: usize) -> anyhow::Result<Vec<report::KernelRow>> {
    let mut rows = Vec::new();
    for isa in Isa::available() {
        for kernel in KernelChoice::ALL.into_iter().filter(|kernel| kernel.runs(&measure.model.hyper)) {
            eprintln!("measuring {isa}, kernel {kernel}");
            rows.push(measure.kernel_row(threads, isa, kernel)?);
        }
    }
    Ok(rows)
}

/// Twice as many threads as can run at once, against as many as can.
fn oversubscribed(
    measure: &Measure<'_>,
    topology: &Topology,
    rows: &[ThreadRow],
) -> anyhow::Result<Oversubscribed> {
    let usable = topology.usable_threads;
    let known = rows.iter().find_map(|row| match row {
        ThreadRow::Measured(row) if row.threads == usable => Some(row.decode_tok_s),
        _ => None,
    });
    let fitting = match known {
        Some(known) => known,
        None => measure.decoding(&mut measure.single(usable)?)?.median,
    };
    eprintln!("measuring {} thread(s) on {usable} usable core(s)", 2 * usable);
    let decode_tok_s = measure.decoding(&mut measure.single(2 * usable)?)?;
    let cost_percent = 100.0 * (1.0 - decode_tok_s.median / fitting);
    Ok(Oversubscribed { threads: 2 * usable, decode_tok_s, cost_percent })
}

/// Why more threads are not measured, in terms of what binds.
fn refusal(topology: &Topology) -> String {
    let usable = topology.usable_threads;
    let quota = topology.quota_cpus.map_or(String::new(), |cpus| format!(", a quota of {cpus:.2} CPUs"));
    format!(
        "only {usable} thread(s) can run at the same time: {} CPUs by affinity, {} physical cores{quota}",
        topology.cpus.len(),
        topology.physical_cores
    )
}
