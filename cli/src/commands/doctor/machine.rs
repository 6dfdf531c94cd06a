//! This machine: cores and what confines them, memory, instruction set, the model file and its manifest.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use ternfleet_engine::Isa;
use ternfleet_engine::host::{Topology, throttling};
use ternfleet_engine::model_file;

use super::Finding;
use crate::locate;

/// A coordinator holds a connection for each streaming client.
const OPEN_FILES_WANTED: u64 = 1024;

pub(super) fn look(model: Option<&Path>) -> Vec<Finding> {
    let seen = Topology::read();
    let mut found = vec![cores(&seen), instructions(&seen), gpu()];
    found.extend(throttled());
    found.push(open_files());
    found.extend(model_findings(model, &seen));
    found
}

fn cores(seen: &Topology) -> Finding {
    let allowed = seen.cpus.len();
    let quota = seen.quota_cpus.map_or("no quota".to_owned(), |cpus| format!("a quota of {cpus:.2} CPUs"));
    let detail = format!(
        "{} usable threads: {allowed} of {} logical CPUs allowed, {} physical cores, {quota}",
        seen.usable_threads, seen.online_cpus, seen.physical_cores
    );
    match seen.quota_cpus {
        Some(cpus) if cpus < 1.0 => Finding::warning(
            "cpu",
            detail,
            "less than one CPU: the engine is throttled in each period; raise the container's CPU limit to \
             a whole number",
        ),
        Some(cpus) if cpus.fract() > 0.01 => Finding::warning(
            "cpu",
            detail,
            "the quota is not a whole number, and the fraction is wasted: set the container's CPU limit to \
             a whole number",
        ),
        _ => Finding::ok("cpu", detail),
    }
}

fn instructions(seen: &Topology) -> Finding {
    match Isa::detect() {
        Ok(Isa::Scalar) => Finding::warning(
            "instructions",
            format!("{} has no vector instructions that the kernels use", seen.cpu_model),
            "generation uses portable code and is many times slower; choose a machine with AVX2 or AVX-512",
        ),
        Ok(isa) => Finding::ok("instructions", format!("{isa} on {}", seen.cpu_model)),
        Err(reason) => Finding::fault(
            "instructions",
            reason.to_string(),
            "unset TERNFLEET_ISA, or set it to one that `ternfleet topology` lists",
        ),
    }
}

/// Needed by no worker that does not ask for it, so its absence is no fault.
fn gpu() -> Finding {
    match ternfleet_engine::inspect_card() {
        Ok(card) => Finding::ok(
            "gpu",
            format!(
                "{}, {:.1} GiB free; the self-test of all kernels gives the bits of the CPU; it reads {:.0} GB/s, does {:.1} T \
                 multiply-adds/s and begins a launch each {:.1} µs (experimental)",
                card.name,
                card.free_bytes as f64 / f64::from(1 << 30),
                card.rates.read_gb_s,
                card.rates.mac_per_s / 1e12,
                card.rates.launch_us
            ),
        ),
        Err(reason) if Path::new("/dev/nvidiactl").exists() => Finding::warning(
            "gpu",
            "there is an NVIDIA driver, and it is not used",
            format!("{reason} (experimental: docs/gpu.md)"),
        ),
        Err(reason) => Finding::ok("gpu", format!("none: {reason}")),
    }
}

fn throttled() -> Option<Finding> {
    let seen = throttling()?;
    let seconds = seen.throttled_us as f64 / 1e6;
    let detail = format!(
        "this control group was throttled by its quota in {} periods, {seconds:.1} s in total",
        seen.periods
    );
    Some(if seen.periods == 0 {
        Finding::ok("throttling", "never throttled by a quota")
    } else {
        Finding::warning("throttling", detail, "use no more --threads than the quota has CPUs")
    })
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < OPEN_FILES_WANTED => Finding::warning(
            "open files",
            format!("at most {soft} open files"),
            format!(
                "a busy coordinator needs more: `ulimit -n {OPEN_FILES_WANTED}` or LimitNOFILE= in its unit"
            ),
        ),
        Ok((soft, _)) => Finding::ok("open files", format!("at most {soft}")),
        Err(reason) => {
            Finding::unknown("open files", reason.to_string(), "the system does not report it; nothing to do")
        }
    }
}

fn model_findings(named: Option<&Path>, seen: &Topology) -> Vec<Finding> {
    let path = match locate::model(named) {
        Ok(path) => path,
        Err(reason) if named.is_some() => {
            return vec![Finding::fault("model", reason.to_string(), "pass a GGUF file with --model PATH")];
        }
        Err(reason) => {
            return vec![Finding::unknown("model", format!("{reason:#}"), "pass a model with --model")];
        }
    };
    let report = match model_file::inspect(&path) {
        Ok(report) => report,
        Err(reason) => {
            let fix = format!("{} cannot be read as a model file: download it again", path.display());
            return vec![Finding::fault("model", reason.to_string(), fix)];
        }
    };
    let mut found = Vec::new();
    if report.faults.is_empty() {
        found.push(Finding::ok("model", format!("{}, {:.1} MB", path.display(), report.bytes as f64 / 1e6)));
    } else {
        let fix = format!("see `ternfleet model inspect {}` for details", path.display());
        found.push(Finding::fault("model", report.faults.join("; "), fix));
    }
    found.push(match &report.manifest {
        None => Finding::warning(
            "manifest",
            "no manifest.toml next to the model: tokenizer and chat template are inferred from the file",
            "put the model's manifest next to it; models/ has manifests of known models",
        ),
        Some(name) if report.disagreements.is_empty() => {
            Finding::ok("manifest", format!("{name} agrees with the file"))
        }
        Some(name) => Finding::fault(
            "manifest",
            format!("{name}: {}", report.disagreements.join("; ")),
            "the file does not match its manifest: download it again from the address in the manifest",
        ),
    });
    let shown = |bytes: u64| match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    };
    let usable = seen.usable_memory_bytes();
    // Weights, packed once more for the kernels in the worst case, and as much again for the cache.
    found.push(if report.bytes.saturating_mul(2) > usable {
        Finding::warning(
            "memory",
            format!("{} for a model of {}", shown(usable), shown(report.bytes)),
            "a worker may be killed for lack of memory: raise the container's memory limit",
        )
    } else {
        Finding::ok("memory", format!("{} for a model of {}", shown(usable), shown(report.bytes)))
    });
    found
}
