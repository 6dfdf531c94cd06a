//! `ternfleet topology`: what the engine sees of this machine, and what it would do.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use ternfleet_engine::Isa;
use ternfleet_engine::host::{MAX_DEFAULT_THREADS, Topology};

use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct TopologyCommand {
    /// Print one object
    #[arg(long)]
    json: bool,
}

impl TopologyCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let seen = Topology::read();
        let threads = seen.usable_threads.min(MAX_DEFAULT_THREADS);
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
    json!({
        "cpu": seen.cpu_model,
        "cpus": cpus,
        "online_cpus": seen.online_cpus,
        "sockets": seen.sockets,
        "l3_groups": seen.l3_groups,
        "l3_bytes": seen.l3_bytes,
        "physical_cores": seen.physical_cores,
        "quota_cpus": seen.quota_cpus,
        "isas": names,
        "transparent_huge_pages": seen.transparent_huge_pages,
        "memory_bytes": seen.memory_bytes,
        "memory_limit_bytes": seen.memory_limit_bytes,
        "usable_threads": seen.usable_threads,
        "plan": {"threads": pins.len(), "pinned_to": pins, "isa": isa.name()},
    })
}

fn in_words(seen: &Topology, isa: Isa, pins: &[usize]) -> String {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let quota = seen.quota_cpus.map_or("none".to_owned(), |cpus| format!("{cpus:.2} CPUs"));
    let limit = seen.memory_limit_bytes.map_or(String::new(), |bytes| format!(", limited to {}", gib(bytes)));
    let isas: Vec<&str> = seen.isas.iter().map(|isa| isa.name()).collect();
    let list = |ids: &[usize]| ids.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let allowed: Vec<usize> = seen.cpus.iter().map(|cpu| cpu.id).collect();
    [
        format!("cpu            {}", seen.cpu_model),
        format!(
            "affinity       {} of {} logical CPUs: {}",
            seen.cpus.len(),
            seen.online_cpus,
            list(&allowed)
        ),
        format!("physical cores {} on {} socket(s)", seen.physical_cores, seen.sockets),
        format!(
            "last cache     {} group(s) of {:.1} MiB",
            seen.l3_groups,
            seen.l3_bytes as f64 / f64::from(1 << 20)
        ),
        format!("quota          {quota}"),
        format!("memory         {}{limit}", gib(seen.memory_bytes)),
        format!("huge pages     {}", seen.transparent_huge_pages),
        format!("instructions   {}", isas.join(" ")),
        format!("would run      {} thread(s) pinned to {}, with {isa}", pins.len(), list(pins)),
    ]
    .join("\n")
}
