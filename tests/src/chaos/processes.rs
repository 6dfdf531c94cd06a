//! A process of the fleet under test: started, killed, stopped, started again.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program;

/// The wall clock of a part, as libfaketime makes it.
#[derive(Debug)]
pub(super) struct WallClock {
    library: PathBuf,
    /// By how much it is off, in the library's words.
    offset: PathBuf,
}

impl WallClock {
    /// A true one; `None` where the library (Debian's package `faketime`) is not installed.
    pub(super) fn new(offset: PathBuf) -> anyhow::Result<Option<WallClock>> {
        let Some(library) = library() else { return Ok(None) };
        let clock = WallClock { library, offset };
        clock.step_to(0)?;
        Ok(Some(clock))
    }

    /// So many seconds off the truth from now on.
    pub(super) fn step_to(&self, off_s: i64) -> std::io::Result<()> {
        // A reader never finds half of it.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{off_s:+}"))?;
        std::fs::rename(&new, &self.offset)
    }

    /// Monotonic clocks stay true. The file is read again every second.
    fn settings(&self) -> [(&'static str, &OsStr); 5] {
        [
            ("LD_PRELOAD", self.library.as_os_str()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.as_os_str()),
            ("FAKETIME_CACHE_DURATION", OsStr::new("1")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", OsStr::new("1")),
            ("DONT_FAKE_MONOTONIC", OsStr::new("1")),
        ]
    }
}

/// Where Debian keeps the library.
fn library() -> Option<PathBuf> {
    let mut folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders.find_map(|folder| {
        Some(folder.path().join("faketime/libfaketime.so.1")).filter(|path| path.is_file())
    })
}

/// One part, alive or dead. It dies with this process, whatever ends it.
#[derive(Debug)]
pub(super) struct Part {
    command: Vec<String>,
    log: PathBuf,
    clock: Option<WallClock>,
    child: Option<Child>,
    /// Since when it drains.
    draining_since: Option<Instant>,
}

impl Part {
    /// Starts a program with arguments; what it says is appended to the log.
    pub(super) fn start(
        command: Vec<String>,
        log: PathBuf,
        clock: Option<WallClock>,
    ) -> anyhow::Result<Part> {
        let mut part = Part { command, log, clock, child: None, draining_since: None };
        part.start_again()?;
        Ok(part)
    }

    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let parent = std::process::id().to_string();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command: Command = program::command(&["attached", "--parent", &parent, "--"])?;
        command.args(&self.command).env("TERNFLEET_CALIBRATE_MS", "150");
        command.envs(self.clock.iter().flat_map(WallClock::settings));
        self.draining_since = None;
        self.child = Some(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    pub(super) fn clock(&self) -> Option<&WallClock> {
        self.clock.as_ref()
    }

    /// Starts it again if it has ended by itself, rather than by [`Part::kill`].
    pub(super) fn start_if_ended(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() && !self.is_alive() { self.start_again() } else { Ok(()) }
    }

    pub(super) fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: it gives back what it has and ends.
    pub(super) fn drain(&mut self) {
        self.signal(Signal::SIGTERM);
        self.draining_since = Some(Instant::now());
    }

    /// True if it was asked to drain and has not ended since.
    pub(super) fn is_draining(&mut self) -> bool {
        self.draining_since.is_some() && self.is_alive()
    }

    /// Nothing happens to a part that is dead.
    pub(super) fn signal(&mut self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.kill();
    }
}
