//! The dead-man timer before there is a worker: a pod whose worker does not come up ends itself, so that its bill ends too.
//!
//! It is armed by the environment alone, before any configuration is read, since a start that fails at its first step
//! costs as much as one that fails at its last. A process that a restart policy starts again continues with the time of its
//! first start. Once the worker runs, its own timer takes over (`ternfleet_worker`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ternfleet_cloud::{EndMyself, end_myself};

/// For a rented pod that is told nothing else.
const LIMIT: Duration = Duration::from_secs(900);
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Ends the pod unless somebody says in time that it is ready.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    how: EndMyself,
    base: Option<String>,
    ready: Arc<AtomicBool>,
    /// Remembers the first start.
    mark: Option<PathBuf>,
}

impl Guard {
    /// Ends nothing.
    pub(crate) fn idle() -> Guard {
        Guard { how: EndMyself::Exit, base: None, ready: Arc::default(), mark: None }
    }

    /// Reads `TERNFLEET_END_MYSELF`, `TERNFLEET_START_LIMIT_MS` and `TERNFLEET_RUNPOD_BASE`, and starts the timer.
    pub(crate) fn arm() -> Guard {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let rented = variable("TERNFLEET_END_MYSELF").as_deref() == Some("runpod");
        let limit = variable("TERNFLEET_START_LIMIT_MS").and_then(|text| text.parse().ok());
        let limit = match limit.map(Duration::from_millis) {
            Some(limit) if !limit.is_zero() => Some(limit),
            _ => rented.then_some(LIMIT),
        };
        let name = variable("RUNPOD_POD_ID").or(variable("TERNFLEET_POD")).filter(|_| rented);
        let guard = Guard {
            how: if rented { EndMyself::Runpod } else { EndMyself::Exit },
            base: variable("TERNFLEET_RUNPOD_BASE"),
            ready: Arc::default(),
            mark: name.map(|name| std::env::temp_dir().join(format!("ternfleet-started-{name}"))),
        };
        if let Some(limit) = limit {
            let left = limit.saturating_sub(guard.since_first_start());
            let watching = guard.clone();
            std::thread::spawn(move || {
                std::thread::sleep(left);
                if !watching.is_ready() {
                    tracing::error!(
                        limit_s = limit.as_secs(),
                        "the worker did not start in time; terminating this pod"
                    );
                    watching.end();
                    std::process::exit(1);
                }
            });
        }
        guard
    }

    /// The worker runs.
    pub(crate) fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
        if let Some(mark) = &self.mark {
            // What cannot be removed ends the next start early, which is the safe side.
            let _ = std::fs::remove_file(mark);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The start failed: ends the pod, and returns when that is done. After [`Guard::ready`] it does nothing: a worker that
    /// broke is restarted.
    pub(crate) fn failed(&self, why: &anyhow::Error) {
        if !self.is_ready() && self.how != EndMyself::Exit {
            tracing::error!(why = format!("{why:#}"), "the start failed; terminating this pod");
            self.end();
        }
    }

    /// Ends the pod, and returns when that is done.
    pub(crate) fn end(&self) {
        // What a runtime takes (a thread's worth of files) may be missing for the very reason that the start failed.
        let once = || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(end_myself(self.how, self.base.as_deref()))?)
        };
        until_done(once, FIRST_PAUSE);
    }

    fn since_first_start(&self) -> Duration {
        let Some(mark) = &self.mark else { return Duration::ZERO };
        let written = std::fs::metadata(mark).and_then(|facts| facts.modified());
        match written {
            Ok(first) => SystemTime::now().duration_since(first).unwrap_or_default(),
            Err(_) => {
                // Without it each start has its own limit, and the coordinator the last word.
                let _ = std::fs::write(mark, "");
                Duration::ZERO
            }
        }
    }
}

/// Tries until it works: a pod that runs on for nothing costs money until somebody looks.
fn until_done(mut once: impl FnMut() -> anyhow::Result<()>, mut pause: Duration) {
    while let Err(fault) = once() {
        let fault = format!("{fault:#}");
        tracing::error!(
            fault,
            "this pod cannot terminate itself and still costs money: terminate it by \
                                hand"
        );
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_tried_until_it_works_whatever_is_missing() {
        let mut tries = 0;
        let once = || {
            tries += 1;
            anyhow::ensure!(tries > 3, "too many open files");
            Ok(())
        };
        until_done(once, Duration::from_millis(1));
        assert_eq!(tries, 4);
    }
}
