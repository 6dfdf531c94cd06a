//! Who leads, as far as the gateway needs to know it: that somebody else does now.
//!
//! A new leader greets the fleet (`tf.fleet.control.all`); callers who wait for an answer then ask again. The greeting may
//! be lost, so they ask periodically without it too.

use std::time::Duration;

use futures::StreamExt;
use ternfleet_proto::LeaderRevision;
use ternfleet_proto::message::Control;
use ternfleet_proto::{Bus, codec, table};
use tokio::sync::watch;

use crate::entropy::Entropy;

/// Between two questions of one caller about a job that is not answered, without a new leader.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// All who wait ask a new leader within so long, not at once.
const SPREAD_MS: u64 = 300;

/// The highest leader that was heard of.
#[derive(Debug)]
pub(super) struct Leaders {
    highest: watch::Sender<LeaderRevision>,
    entropy: Entropy,
}

impl Leaders {
    pub(super) fn new(entropy: Entropy) -> Self {
        Self { highest: watch::channel(LeaderRevision::default()).0, entropy }
    }

    /// Listens forever.
    pub(super) async fn follow(&self, bus: &dyn Bus) {
        loop {
            if let Ok(mut notes) = bus.subscribe(table::control_all()).await {
                while let Some(note) = notes.next().await {
                    let Ok(control) = codec::decode::<Control>(&note.payload) else { continue };
                    self.highest.send_if_modified(|highest| {
                        let newer = control.leader > *highest;
                        *highest = control.leader.max(*highest);
                        newer
                    });
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(super) fn watch(&self) -> Asking {
        Asking { leaders: self.highest.subscribe(), entropy: self.entropy.clone() }
    }
}

/// When one caller is to ask again.
#[derive(Debug)]
pub(super) struct Asking {
    leaders: watch::Receiver<LeaderRevision>,
    entropy: Entropy,
}

impl Asking {
    /// Safe to drop and call again.
    pub(super) async fn due(&mut self) {
        tokio::select! {
            biased;
            changed = self.leaders.changed() => {
                if changed.is_err() {
                    // The gateway is going.
                    std::future::pending::<()>().await;
                }
                let mut byte = [0u8; 1];
                self.entropy.fill(&mut byte);
                tokio::time::sleep(Duration::from_millis(u64::from(byte[0]) * SPREAD_MS / 255)).await;
            }
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}
