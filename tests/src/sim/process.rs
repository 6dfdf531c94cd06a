//! One process of the fleet: a real shell on a runtime of its own, with simulated time.
//!
//! Each process has a runtime with a paused clock, on one thread. A turn lets its time pass up to a moment: all timers
//! until then fire in order. A process that is paused has no turns, and finds that time has jumped when it goes on. A
//! process that is killed loses its runtime, and every task with it.

use std::time::Duration;

use ternfleet_proto::{Clock, TimeMs};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) struct Process {
    runtime: Option<Runtime>,
    main: JoinHandle<anyhow::Result<()>>,
    /// By its own clock.
    began: Instant,
    began_ms: u64,
    /// Its time has passed up to here.
    at_ms: u64,
    pub(super) clock: Clock,
    /// Asks it to end, as a signal does.
    pub(super) shutdown: CancellationToken,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("at_ms", &self.at_ms).finish_non_exhaustive()
    }
}

impl Process {
    /// Starts one at `now_ms`, with a wall clock that says `wall`. `main` is called inside its runtime.
    pub(super) fn start<F>(
        now_ms: u64,
        wall: TimeMs,
        main: impl FnOnce(Clock, CancellationToken) -> F,
    ) -> Process
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let mut builder = Builder::new_current_thread();
        let built = builder.enable_time().start_paused(true).max_blocking_threads(1).build();
        let runtime = built.unwrap_or_else(|fault| panic!("no runtime: {fault}"));
        let entered = runtime.enter();
        let (clock, shutdown) = (Clock::simulated(wall), CancellationToken::new());
        let began = Instant::now();
        let main = runtime.spawn(main(clock.clone(), shutdown.clone()));
        drop(entered);
        Process { runtime: Some(runtime), main, began, began_ms: now_ms, at_ms: now_ms, clock, shutdown }
    }

    /// Lets its time pass from `from_ms`, where it jumps to if it had no turns, up to `to_ms`.
    pub(super) fn turn(&mut self, from_ms: u64, to_ms: u64) {
        let Some(runtime) = &self.runtime else { return };
        let missed = Duration::from_millis(from_ms.saturating_sub(self.at_ms));
        let until = self.began + Duration::from_millis(to_ms - self.began_ms);
        runtime.block_on(async {
            if !missed.is_zero() {
                tokio::time::advance(missed).await;
            }
            tokio::time::sleep_until(until).await;
        });
        self.at_ms = to_ms;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.main.is_finished()
    }

    /// The same; a panic that ended it continues here. To be asked until it has ended.
    pub(super) fn ended(&mut self) -> bool {
        let Some(runtime) = self.runtime.as_ref().filter(|_| self.main.is_finished()) else { return false };
        if let Err(panic) = runtime.block_on(&mut self.main) {
            std::panic::resume_unwind(panic.into_panic());
        }
        true
    }
}

impl Drop for Process {
    /// As by `kill -9`.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
