//! Being asked to end: the first SIGINT, SIGTERM or SIGHUP asks, the second one insists.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct Stops {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stops {
    /// Takes the signals over; must be called inside a runtime.
    pub(crate) fn listen() -> anyhow::Result<Stops> {
        let take = |kind| signal(kind).context("cannot listen for signals");
        Ok(Stops {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Cancels `shutdown` at the first signal and ends the process at the second, for services that drain.
pub(crate) fn drain_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut stops = Stops::listen()?;
    tokio::spawn(async move {
        stops.next().await;
        tracing::info!("draining; a second signal exits at once");
        shutdown.cancel();
        stops.next().await;
        std::process::exit(crate::exit::INTERRUPTED.into());
    });
    Ok(())
}

/// Runs `work` on a runtime of the calling thread alone.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(work);
    // A read of standard input cannot be cancelled; nothing waits for it.
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome
}
