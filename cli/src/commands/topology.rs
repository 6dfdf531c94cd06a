//! `ternfleet topology`: what the engine sees of this machine, and what it would do.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use ternfleet_engine::Isa;
use ternfleet_engine::host::{Cpu, MAX_DEFAULT_THREADS, Topology};
use ternfleet_worker::engines;

use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct TopologyCommand {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl TopologyCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let seen = Topology::read();
        let threads = seen.default_threads();
        let pins: Vec<usize> = seen.pin_order().into_iter().take(threads).collect();
        let isa = Isa::detect()?;
        if self.json {
            say_json(&as_json(&seen, isa, &pins))?;
        } else {
            say(&in_words(&seen, isa, &pins))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn as_json(seen: &Topology, isa: Isa, pins: &[usize]) -> serde_json::Value {
    let names: Vec<&str> = seen.isas.iter().map(|isa| isa.name()).collect();
    let cpus: Vec<_> = seen
        .cpus
        .iter()
        .map(|cpu| json!({"id": cpu.id, "socket": cpu.socket, "core": cpu.core, "l3_group": cpu.l3_group}))
        .collect();
    let groups = engines::split(seen);
    json!({
        "cpu": seen.cpu_model,
        "cpus": cpus,
        "online_cpus": seen.online_cpus,
        "sockets": seen.sockets,
        "l3_groups": seen.l3_groups,
        "l3_bytes": seen.l3_bytes,
        "physical_cores": seen.physical_cores,
        "smt_siblings": siblings(seen),
        "quota_cpus": seen.quota_cpus,
        "isas": names,
        "transparent_huge_pages": seen.transparent_huge_pages,
        "memory_bytes": seen.memory_bytes,
        "memory_limit_bytes": seen.memory_limit_bytes,
        "usable_threads": seen.usable_threads,
        "plan": {"threads": pins.len(), "pinned_to": pins, "isa": isa.name(), "engines_auto": groups},
    })
}

/// The logical CPUs of each core that has several in this process's mask.
fn siblings(seen: &Topology) -> Vec<Vec<usize>> {
    let mut cpus: Vec<&Cpu> = seen.cpus.iter().collect();
    cpus.sort_by_key(|cpu| (cpu.socket, cpu.core, cpu.id));
    let cores = cpus.chunk_by(|a, b| (a.socket, a.core) == (b.socket, b.core));
    let several = cores.filter(|core| core.len() > 1);
    several.map(|core| core.iter().map(|cpu| cpu.id).collect()).collect()
}

/// What bounds the number of threads.
fn bound(seen: &Topology) -> &'static str {
    let quota = seen.quota_cpus.map_or(usize::MAX, |cpus| cpus.floor().max(1.0) as usize);
    match seen.usable_threads {
        threads if threads > MAX_DEFAULT_THREADS => "more than 16 are not faster",
        threads if threads == quota && quota < seen.physical_cores => "the quota",
        threads if threads == seen.physical_cores => "one thread per physical core",
        _ => "the affinity",
    }
}

fn in_words(seen: &Topology, isa: Isa, pins: &[usize]) -> String {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let quota = seen.quota_cpus.map_or("none".to_owned(), |cpus| format!("{cpus:.2} CPUs"));
    let limit = seen.memory_limit_bytes.map_or(String::new(), |bytes| format!(", limited to {}", gib(bytes)));
    let isas: Vec<&str> = seen.isas.iter().map(|isa| isa.name()).collect();
    let pairs = siblings(seen);
    let smt = if pairs.is_empty() {
        "no SMT siblings".to_owned()
    } else {
        format!("{} with SMT siblings", pairs.len())
    };
    let list = |ids: &[usize]| ids.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let groups = engines::split(seen);
    let engines = match groups.as_slice() {
        [_] => "one engine process".to_owned(),
        groups => {
            let each =
                groups.iter().map(|cpus| format!("CPUs {}", list(cpus))).collect::<Vec<_>>().join("; ");
            format!("{} engine processes: {each}", groups.len())
        }
    };
    let allowed: Vec<usize> = seen.cpus.iter().map(|cpu| cpu.id).collect();
    [
        format!("cpu            {}", seen.cpu_model),
        format!(
            "affinity       {} of {} logical CPUs: {}",
            seen.cpus.len(),
            seen.online_cpus,
            list(&allowed)
        ),
        format!("physical cores {} on {} socket(s), {smt}", seen.physical_cores, seen.sockets),
        format!(
            "last cache     {} group(s) of {:.1} MiB",
            seen.l3_groups,
            seen.l3_bytes as f64 / f64::from(1 << 20)
        ),
        format!("quota          {quota}"),
        format!("memory         {}{limit}", gib(seen.memory_bytes)),
        format!("huge pages     {}", seen.transparent_huge_pages),
        format!("instructions   {}", isas.join(" ")),
        format!(
            "engine         {} thread(s) pinned to {}, with {isa}: {}",
            pins.len(),
            list(pins),
            bound(seen)
        ),
        format!("engines auto   {engines}"),
    ]
    .join("\n")
}
