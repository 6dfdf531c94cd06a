//! The dead-man timer: a pod that nobody commands any more ends itself, so that its bill ends too.
//!
//! Orders and work are signs of life. When there have been none for a while, the worker asks the coordinator
//! something cheap, and any answer will do; a fleet may be idle for hours with its coordinator well.
//!
//! A pod that cannot end itself keeps costing money while nobody looks. So it tries forever, and says so each time
//! in a heartbeat that whoever leads by then makes an alarm of.

use std::sync::Arc;
use std::time::Duration;

use std::fmt::Display;

use bytes::Bytes;
use futures::future::BoxFuture;
use ternfleet_proto::message::{Heartbeat, WorkerCounters, WorkerState};
use ternfleet_proto::{Bus, MonoMs, TimeMs, WorkerId, codec, table};
use tokio_util::sync::CancellationToken;

/// After the first failure to end the pod; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Ask whether anybody is there.
    Ask,
    /// Nobody is: hand everything back and end.
    End,
}

#[derive(Debug)]
pub(super) struct DeadMan {
    /// `None` never ends the worker.
    silence_max: Option<Duration>,
    heard_at: MonoMs,
    asked_at: MonoMs,
}

impl DeadMan {
    pub(super) fn new(now: MonoMs, silence_max: Option<Duration>) -> DeadMan {
        DeadMan { silence_max, heard_at: now, asked_at: now }
    }

    /// A sign of life.
    pub(super) fn heard(&mut self, now: MonoMs) {
        self.heard_at = now;
    }

    /// Asks four times before it ends.
    pub(super) fn due(&mut self, now: MonoMs) -> Due {
        let Some(most) = self.silence_max else { return Due::Nothing };
        let silence = now.since(self.heard_at);
        if silence >= most {
            return Due::End;
        }
        let pause = most / 5;
        if silence >= pause && now.since(self.asked_at) >= pause {
            self.asked_at = now;
            return Due::Ask;
        }
        Due::Nothing
    }
}

/// Only a leader answers.
pub(super) async fn ask(bus: Arc<dyn Bus>, worker: WorkerId, patience: Duration) -> bool {
    bus.request(&table::ping(&worker), Bytes::new(), patience).await.is_ok()
}

/// Tries to end the pod until that works or `shutdown`; `tell` hears of each failure, with their number.
pub(super) async fn insist<E: Display>(
    mut end: impl FnMut() -> BoxFuture<'static, Result<(), E>>,
    mut tell: impl FnMut(u64) -> BoxFuture<'static, ()>,
    shutdown: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    for failures in 1.. {
        let Err(fault) = end().await else { return };
        tracing::error!(%fault, failures, "this pod cannot terminate itself and still costs money: \
                                           terminate it by hand");
        tell(failures).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (2 * pause).min(PAUSE_MAX),
            () = shutdown.cancelled() => return,
        }
    }
}

/// The report of a worker that has ended while its pod still runs.
pub(super) async fn tell(bus: Arc<dyn Bus>, at: TimeMs, profile: Heartbeat, failures: u64) {
    let counters = WorkerCounters { dead_man_failures: failures, ..WorkerCounters::default() };
    let beat = Heartbeat { state: WorkerState::Gone, counters, at, ..profile };
    // Perhaps nobody is there to hear it; the next one follows.
    let _ = bus.send(&table::heartbeat(&beat.worker), codec::encode(&beat)).await;
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_end_itself_tries_for_ever_and_says_so() {
        let begun = tokio::time::Instant::now();
        let (mut answers, mut told) =
            (vec![Ok(()), Err("refused"), Err("refused"), Err("no route")], Vec::new());
        let end = || {
            let answer = answers.pop().expect("because it stops at the first success");
            async move { answer }.boxed()
        };
        let tell = |failures| {
            told.push(failures);
            async {}.boxed()
        };
        insist(end, tell, CancellationToken::new()).await;
        assert_eq!(told, [1, 2, 3]);
        assert_eq!(begun.elapsed().as_secs(), 30 + 60 + 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_ends_the_trying() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        insist(|| async { Err("refused") }.boxed(), |_| async {}.boxed(), shutdown).await;
    }

    const MOST: Duration = Duration::from_secs(100);

    fn after(seconds: u64) -> MonoMs {
        MonoMs(1000 + seconds * 1000)
    }

    #[test]
    fn silence_is_asked_about_before_it_ends_the_worker() {
        let mut timer = DeadMan::new(after(0), Some(MOST));
        let dues: Vec<Due> = (0..=100).map(|second| timer.due(after(second))).collect();
        assert_eq!(dues.iter().filter(|due| **due == Due::Ask).count(), 4);
        assert_eq!((dues[99], dues[100]), (Due::Nothing, Due::End));
    }

    #[test]
    fn a_sign_of_life_starts_the_time_anew() {
        let mut timer = DeadMan::new(after(0), Some(MOST));
        timer.heard(after(90));
        assert_ne!(timer.due(after(150)), Due::End);
        assert_eq!(timer.due(after(190)), Due::End);
    }

    #[test]
    fn without_a_limit_nothing_ends() {
        let mut timer = DeadMan::new(after(0), None);
        assert_eq!(timer.due(after(1_000_000)), Due::Nothing);
    }
}
