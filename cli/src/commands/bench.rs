//! `ternfleet bench`: prompt and generation by thread count, then by batch, on this machine.

mod measure;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use ternfleet_engine::host::{self, Topology};

use crate::model_file::ModelFile;
use crate::output::{say, say_json};
use measure::{Bench as Measure, Rates};

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Model file; the storyteller that ships unless given
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Thread counts to compare
    #[arg(short = 't', long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Numbers of sequences generated at once
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: Vec<u16>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens to generate
    #[arg(long = "gen", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    generated: u32,
    /// Runs of each measurement, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    repeat: u16,
    /// Measure thread counts above what quota, affinity and cores allow, too
    #[arg(long)]
    oversubscribe: bool,
    /// Print one object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    threads: Vec<ThreadRow>,
    batch: Vec<BatchRow>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    isa: String,
    cores: usize,
    /// CPUs' worth of time that the cgroup allows; `null` without a limit.
    quota: Option<f64>,
    /// For the thread count of the batch rows, as are the multiply-adds.
    read_gb_s: f64,
    mac_per_s: f64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ThreadRow {
    Measured { threads: usize, prompt_tok_s: f64, decode_tok_s: f64 },
    Refused { threads: usize, refused: String },
}

#[derive(Debug, Serialize)]
struct BatchRow {
    batch: usize,
    prompt: usize,
    #[serde(rename = "gen")]
    generated: usize,
    /// Decoding, all sequences together.
    tok_s: f64,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = ModelFile::open(self.model.as_deref())?;
        let topology = Topology::read();
        let throttled_before = host::throttling();
        let measure = Measure {
            model: &model,
            prompt: self.prompt as usize,
            generated: self.generated as usize,
            repeat: self.repeat.into(),
        };

        let mut threads = Vec::new();
        let mut best: Option<(usize, Rates)> = None;
        for count in self.threads.iter().copied().map(usize::from) {
            if count > topology.usable_threads && !self.oversubscribe {
                threads.push(ThreadRow::Refused { threads: count, refused: refusal(&topology) });
                continue;
            }
            eprintln!("measuring {count} thread(s)");
            let rates = measure.single(count)?;
            threads.push(ThreadRow::Measured {
                threads: count,
                prompt_tok_s: rates.prompt_tok_s,
                decode_tok_s: rates.decode_tok_s,
            });
            if best.as_ref().is_none_or(|(_, so_far)| rates.decode_tok_s > so_far.decode_tok_s) {
                best = Some((count, rates));
            }
        }
        // Where every count was refused, the machine's rates are still worth telling.
        let (count, rates) = match best {
            Some(best) => best,
            None => (topology.usable_threads, measure.single(topology.usable_threads)?),
        };
        let mut batch = Vec::new();
        for sequences in self.batch.iter().copied().map(usize::from) {
            eprintln!("measuring a batch of {sequences} with {count} thread(s)");
            let tok_s = measure.batch(count, sequences)?;
            batch.push(BatchRow {
                batch: sequences,
                prompt: measure.prompt,
                generated: measure.generated,
                tok_s,
            });
        }
        if host::throttling() != throttled_before {
            eprintln!("warning: the CPU quota held this process back meanwhile: do not quote these figures");
        }
        let report = Report {
            machine: Machine {
                cpu: topology.cpu_model,
                isa: rates.isa,
                cores: topology.physical_cores,
                quota: topology.quota_cpus,
                read_gb_s: rates.read_gb_s,
                mac_per_s: rates.mac_per_s,
            },
            threads,
            batch,
        };
        if self.json { say_json(&report) } else { say(&show::tables(&report, count)) }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Why more threads are not measured, in terms of what binds.
fn refusal(topology: &Topology) -> String {
    let usable = topology.usable_threads;
    let quota = topology.quota_cpus.map_or(String::new(), |cpus| format!(", a quota of {cpus:.2} CPUs"));
    format!(
        "only {usable} thread(s) can run at once here: {} CPUs by affinity, {} physical cores{quota}",
        topology.cpus.len(),
        topology.physical_cores
    )
}
