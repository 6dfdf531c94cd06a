//! What a fleet has cost since it began, and the pods that it lost: the part that outlives pods and leaders. The leader
//! stores it in the bucket `control`. What the scaler rented has a ledger of its own (`shell::scaler`); here is the rest.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use ternfleet_proto::message::{Heartbeat, LostPod};
use ternfleet_proto::{TimeMs, UsdMicro};

/// Lost pods that are shown; older ones are in the audit log.
const LOST_MAX: usize = 64;

/// Days since 1970, UTC.
pub(crate) fn day_of(time: TimeMs) -> u64 {
    time.0 / 86_400_000
}

/// Money and lost pods, as stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// When the first leader began to count.
    pub since: Option<TimeMs>,
    /// Spent on pods that the scaler did not rent.
    pub unrented_usd_micro: UsdMicro,
    /// Days since 1970, UTC, of the next figure.
    day: u64,
    today_usd_micro: UsdMicro,
    /// The latest last.
    pub lost: VecDeque<LostPod>,
    /// Since it was last stored.
    #[serde(skip)]
    changed: bool,
}

impl Account {
    /// Adds what was spent since the last time; negative where it has turned out to be the scaler's.
    pub(super) fn spend(&mut self, now: TimeMs, usd: UsdMicro) {
        if self.since.is_none() {
            (self.since, self.changed) = (Some(now), true);
        }
        let day = day_of(now);
        if day != self.day {
            (self.day, self.today_usd_micro) = (day, UsdMicro::ZERO);
        }
        self.changed |= usd != UsdMicro::ZERO;
        self.unrented_usd_micro += usd;
        self.today_usd_micro += usd;
    }

    /// Spent since midnight on pods that the scaler did not rent.
    pub fn today(&self, now: TimeMs) -> UsdMicro {
        if self.day == day_of(now) { self.today_usd_micro } else { UsdMicro::ZERO }
    }

    pub(super) fn lose(&mut self, lost: LostPod) {
        self.dismiss(&lost.pod);
        if self.lost.len() == LOST_MAX {
            self.lost.pop_front();
        }
        self.lost.push_back(lost);
        self.changed = true;
    }

    /// A pod has come: it is a lost one that is back, or takes the place of the one of its class that was lost first.
    pub(super) fn welcome(&mut self, beat: &Heartbeat) {
        if self.dismiss(&beat.pod) {
            return;
        }
        let replaced = |lost: &LostPod| {
            lost.class == beat.pod_class && lost.model == beat.model && lost.at < beat.started_at
        };
        if let Some(place) = self.lost.iter().position(replaced) {
            self.lost.remove(place);
            self.changed = true;
        }
    }

    /// True if there was such a pod.
    pub(super) fn dismiss(&mut self, pod: &str) -> bool {
        let before = self.lost.len();
        self.lost.retain(|lost| lost.pod != pod);
        let found = before != self.lost.len();
        self.changed |= found;
        found
    }

    /// To be stored, if it has changed since the last time.
    pub(super) fn take_change(&mut self) -> Option<Account> {
        std::mem::take(&mut self.changed).then(|| self.clone())
    }
}
