//! `engines = "auto"`: one engine process for each socket or large cache group, not one engine across.
//!
//! The supervisor pins each child to its group of CPUs before the child starts, so that the child's engine sees only
//! those; it restarts what dies, passes the signal to end on, and runs no engine itself. Engines of one pod share
//! the pod's name, so its price counts once. Called by the command line instead of [`crate::run`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ternfleet_engine::Device;
use ternfleet_engine::host::{Cpu, Topology};
use tokio_util::sync::CancellationToken;

use crate::options::Options;

/// Cores that a cache group must have to be worth an engine of its own; smaller ones share the socket's.
const CORES_A_GROUP_MIN: usize = 8;
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Deaths within a minute after which restarting makes no sense.
const DEATHS_MAX: usize = 5;
const POLL: Duration = Duration::from_millis(50);
/// Beyond the workers' own drain.
const GRACE: Duration = Duration::from_millis(500);

/// The groups to supervise if `options` ask for several engines and this machine is one for them.
pub fn wanted(options: &Options) -> Option<Vec<Vec<usize>>> {
    groups(options, &Topology::read())
}

fn groups(options: &Options, topology: &Topology) -> Option<Vec<Vec<usize>>> {
    // A server has the whole machine to itself, and one engine has a card.
    let computes_here = options.engine != "openai" && options.device == Device::Cpu.name();
    let groups = if options.engines == "auto" && computes_here { split(topology) } else { Vec::new() };
    (groups.len() > 1).then_some(groups)
}

/// The CPUs of each engine that this machine should run; one group means that one process does it all.
pub fn split(topology: &Topology) -> Vec<Vec<usize>> {
    let whole = || vec![topology.cpus.iter().map(|cpu| cpu.id).collect()];
    // A quota below the cores is shared by all groups: splitting would only make the engines wait for one another.
    if topology.quota_cpus.is_some_and(|quota| quota < topology.physical_cores as f64) {
        return whole();
    }
    let group = |key: fn(&Cpu) -> (usize, usize)| {
        let mut groups: BTreeMap<(usize, usize), Vec<&Cpu>> = BTreeMap::new();
        topology.cpus.iter().for_each(|cpu| groups.entry(key(cpu)).or_default().push(cpu));
        groups.into_values().collect::<Vec<_>>()
    };
    let cores = |cpus: &[&Cpu]| {
        let mut cores: Vec<(usize, usize)> = cpus.iter().map(|cpu| (cpu.socket, cpu.core)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.len()
    };
    let by_cache = group(|cpu| (cpu.socket, cpu.l3_group));
    let large = by_cache.iter().all(|cpus| cores(cpus) >= CORES_A_GROUP_MIN);
    let groups = if large { by_cache } else { group(|cpu| (cpu.socket, 0)) };
    match groups.len() {
        0 | 1 => whole(),
        _ => groups.into_iter().map(|cpus| cpus.into_iter().map(|cpu| cpu.id).collect()).collect(),
    }
}

/// One engine process and the CPUs that it may use.
struct Engine {
    number: usize,
    cpus: Vec<usize>,
    child: Option<Child>,
    start_at: Instant,
}

/// Runs this program once for each group with `--engines 1`, until `shutdown`. Blocks.
/// `arguments` is the command line of the whole, without the program.
pub fn supervise(
    groups: Vec<Vec<usize>>,
    arguments: &[OsString],
    options: &Options,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let arguments = arguments_of_a_child(arguments.iter().cloned());
    let mut engines: Vec<Engine> = groups
        .into_iter()
        .enumerate()
        .map(|(number, cpus)| Engine { number, cpus, child: None, start_at: Instant::now() })
        .collect();
    let mut deaths: Vec<Instant> = Vec::new();
    let outcome = loop {
        if shutdown.is_cancelled() {
            break Ok(());
        }
        if let Err(fault) = look_after(&mut engines, &arguments, options, &mut deaths) {
            break Err(fault);
        }
        std::thread::sleep(POLL);
    };
    end_all(&mut engines, Duration::from_millis(options.drain_ms) + GRACE);
    outcome
}

fn look_after(
    engines: &mut [Engine],
    arguments: &[OsString],
    options: &Options,
    deaths: &mut Vec<Instant>,
) -> anyhow::Result<()> {
    for engine in engines {
        match &mut engine.child {
            Some(child) => {
                if let Some(status) = child.try_wait().context("cannot wait for an engine process")? {
                    engine.child = None;
                    note_death(engine, status, deaths)?;
                }
            }
            None if Instant::now() >= engine.start_at => start(engine, arguments, options)?,
            None => {}
        }
    }
    Ok(())
}

fn note_death(engine: &mut Engine, status: ExitStatus, deaths: &mut Vec<Instant>) -> anyhow::Result<()> {
    let now = Instant::now();
    deaths.retain(|died| now.duration_since(*died) < Duration::from_secs(60));
    deaths.push(now);
    if deaths.len() > DEATHS_MAX {
        bail!("engine processes died {} times within a minute, the last with {status}", deaths.len());
    }
    tracing::error!(engine = engine.number, %status, "an engine process died; restarting it");
    engine.start_at = now + RESTART_DELAY;
    Ok(())
}

/// A child inherits the affinity of the thread that starts it.
fn start(engine: &mut Engine, arguments: &[OsString], options: &Options) -> anyhow::Result<()> {
    let myself = Pid::from_raw(0);
    let before = sched_getaffinity(myself).context("the CPU affinity cannot be read")?;
    let mut cpus = CpuSet::new();
    for &cpu in &engine.cpus {
        cpus.set(cpu).with_context(|| format!("CPU {cpu} does not fit into an affinity mask"))?;
    }
    if let Err(fault) = sched_setaffinity(myself, &cpus) {
        tracing::warn!(%fault, engine = engine.number, "an engine process could not be bound to its CPUs");
    }
    let mut command = Command::new(std::env::current_exe().context("the path of this program is not known")?);
    command.args(arguments);
    if let Some(mut address) = options.http {
        if address.port() != 0 {
            address.set_port(address.port().saturating_add(engine.number as u16));
        }
        command.args(["--set", &format!("http={address}")]);
    }
    let started = command.spawn().context("an engine process cannot be started");
    if let Err(fault) = sched_setaffinity(myself, &before) {
        tracing::warn!(%fault, "the supervisor's own affinity could not be restored");
    }
    let child = started?;
    tracing::info!(
        engine = engine.number,
        pid = child.id(),
        cpus = engine.cpus.len(),
        "engine process started"
    );
    engine.child = Some(child);
    Ok(())
}

/// Asks every child to drain, waits so long, then insists.
fn end_all(engines: &mut [Engine], most: Duration) {
    let mut children: Vec<&mut Child> =
        engines.iter_mut().filter_map(|engine| engine.child.as_mut()).collect();
    for child in &children {
        if let Ok(pid) = i32::try_from(child.id()) {
            // One that is gone already needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
    let deadline = Instant::now() + most;
    while Instant::now() < deadline && children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
        std::thread::sleep(POLL);
    }
    for child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The same command line, as one engine.
fn arguments_of_a_child(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if std::mem::take(&mut skip) {
            continue;
        }
        if argument == "--engines" {
            skip = true;
        } else if !argument.to_string_lossy().starts_with("--engines=") {
            kept.push(argument);
        }
    }
    kept.extend(["--engines".into(), "1".into(), "--supervised".into()]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many sockets of so many cache groups of so many cores, two threads a core.
    fn machine(sockets: usize, groups: usize, cores: usize) -> Topology {
        let mut topology = Topology::read();
        topology.cpus.clear();
        for socket in 0..sockets {
            for core in 0..groups * cores {
                for sibling in 0..2 {
                    let id = (socket * groups * cores + core) * 2 + sibling;
                    topology.cpus.push(Cpu { id, socket, core, l3_group: socket * groups + core / cores });
                }
            }
        }
        topology.physical_cores = sockets * groups * cores;
        topology.quota_cpus = None;
        topology
    }

    fn sizes(topology: &Topology) -> Vec<usize> {
        split(topology).iter().map(Vec::len).collect()
    }

    #[test]
    fn every_socket_gets_its_own_engine() {
        assert_eq!(sizes(&machine(2, 1, 16)), [32, 32]);
    }

    #[test]
    fn one_engine_has_the_card_of_a_machine_and_one_server_all_of_it() {
        let two = machine(2, 1, 16);
        let options = Options { engines: "auto".to_owned(), ..Options::default() };
        assert_eq!(groups(&options, &two).unwrap().len(), 2);
        assert_eq!(groups(&Options { device: "cuda".to_owned(), ..options.clone() }, &two), None);
        assert_eq!(groups(&Options { engine: "openai".to_owned(), ..options }, &two), None);
    }

    #[test]
    fn large_cache_groups_get_their_own_engine_and_small_ones_share() {
        assert_eq!(sizes(&machine(1, 2, 8)), [16, 16]);
        assert_eq!(sizes(&machine(1, 4, 4)), [32]);
        assert_eq!(sizes(&machine(2, 4, 4)), [32, 32]);
    }

    #[test]
    fn a_quota_below_the_cores_is_not_split() {
        let mut topology = machine(2, 1, 16);
        topology.quota_cpus = Some(7.65);
        assert_eq!(sizes(&topology), [64]);
    }

    #[test]
    fn no_cpu_is_lost_or_given_twice() {
        let topology = machine(2, 2, 8);
        let mut all: Vec<usize> = split(&topology).concat();
        all.sort_unstable();
        assert_eq!(all, (0..topology.cpus.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_child_runs_the_same_command_as_one_engine() {
        let given = ["worker", "--engines", "auto", "--slots", "4", "--engines=auto"].map(OsString::from);
        let expected = ["worker", "--slots", "4", "--engines", "1", "--supervised"].map(OsString::from);
        assert_eq!(arguments_of_a_child(given.into_iter()), expected);
    }
}
