//! The dead-man timer: a pod that nobody commands any more ends itself, so that its bill ends too.
//!
//! Orders and work are signs of life. When there have been none for a while, the worker asks the coordinator
//! something cheap, and any answer will do; a fleet may be idle for hours with its coordinator well.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::{Bus, TimeMs, WorkerId, table};

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
    heard_at: TimeMs,
    asked_at: TimeMs,
}

impl DeadMan {
    pub(super) fn new(now: TimeMs, silence_max: Option<Duration>) -> DeadMan {
        DeadMan { silence_max, heard_at: now, asked_at: now }
    }

    /// A sign of life.
    pub(super) fn heard(&mut self, now: TimeMs) {
        self.heard_at = now;
    }

    /// Asks four times before it ends.
    pub(super) fn due(&mut self, now: TimeMs) -> Due {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(100);

    fn after(seconds: u64) -> TimeMs {
        TimeMs(1000 + seconds * 1000)
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
