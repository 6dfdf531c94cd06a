//! `ternfleet attached [--parent PID] [--cpus LIST] -- PROGRAM ARGS…`: runs a program that ends when its parent does.
//!
//! Used by `up` for every child, nats-server included; rented pods on this machine are bound to CPUs alone. The kernel's mark (`PR_SET_PDEATHSIG`) and the set of CPUs both
//! survive the `exec` into the program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

#[derive(Debug, Args)]
pub(crate) struct Attached {
    /// End with this process, which must be the parent; without it the program keeps running
    #[arg(long)]
    parent: Option<i32>,
    /// Logical CPUs on which it runs
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Program and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

impl Attached {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(parent) = self.parent {
            set_pdeathsig(Signal::SIGKILL).context("cannot set the parent-death signal")?;
            // The parent may have ended before the mark was set.
            if getppid() != Pid::from_raw(parent) {
                bail!("process {parent} is not the parent of this one");
            }
        }
        if let Err(error) = confine(&self.cpus) {
            eprintln!("warning: cannot pin to CPUs {:?}: {error}", self.cpus);
        }
        let (program, arguments) = self.command.split_first().context("no program given")?;
        let error = std::process::Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
    }
}

fn confine(cpus: &[usize]) -> nix::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}
