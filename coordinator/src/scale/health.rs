//! Whether pods of a class come up at all. A class whose pods die before anybody hears of them costs money for nothing, so
//! it rests, each time twice as long; and a class that nobody has seen work is tried with a few pods first.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ternfleet_proto::TimeMs;

/// Deaths in a row before the first heartbeat, after which the class rests.
const DEATHS_BORNE: u32 = 2;
/// Pods of a class that nobody has seen work that may be starting at once.
const UNPROVEN_MAX: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(6 * 3600);

/// What is remembered of a class, in the bucket `scale`, so that a new leader does not start again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Pods that died before their first heartbeat, since the last one that did not.
    pub deaths: u32,
    /// Some pod of the class has worked.
    pub proven: bool,
    pub rests_until: TimeMs,
}

impl Health {
    /// A pod was heard of.
    pub fn worked(&mut self) {
        *self = Health { deaths: 0, proven: true, rests_until: TimeMs(0) };
    }

    /// A pod ended before anybody had heard of it. `rest` is the first rest.
    pub fn died(&mut self, now: TimeMs, rest: Duration) {
        self.deaths += 1;
        if let Some(doublings) = self.deaths.checked_sub(DEATHS_BORNE) {
            let rest = rest.saturating_mul(1 << doublings.min(16)).min(REST_MAX);
            self.rests_until = self.rests_until.max(now.plus(rest));
        }
    }

    pub fn rests(&self, now: TimeMs) -> bool {
        self.rests_until > now
    }

    /// How many of its pods may be starting at once; `None` is no limit.
    pub fn starting_max(&self, now: TimeMs) -> Option<u32> {
        match self {
            _ if self.rests(now) => Some(0),
            Health { deaths: 1.., .. } => Some(1),
            Health { proven: true, .. } => None,
            _ => Some(UNPROVEN_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(600);

    /// Orders of a class whose pods all die after `life_s`, in the first `hours`, looked at every 5 s.
    fn orders(hours: u64, life_s: u64) -> u32 {
        let (mut health, mut ends, mut orders) = (Health::default(), Vec::new(), 0);
        for now in (0..hours * 3600).step_by(5).map(|second| TimeMs(second * 1000)) {
            let (dead, alive): (Vec<TimeMs>, Vec<TimeMs>) = ends.into_iter().partition(|end| *end <= now);
            ends = alive;
            dead.iter().for_each(|_| health.died(now, REST));
            while (ends.len() as u32) < health.starting_max(now).unwrap_or(8).min(8) {
                ends.push(now.plus(Duration::from_secs(life_s)));
                orders += 1;
            }
        }
        orders
    }

    #[test]
    fn a_class_that_always_dies_is_ordered_at_most_six_times_in_its_first_hour() {
        for life_s in [1, 5, 60, 300, 900] {
            assert!(orders(1, life_s) <= 6, "{life_s} s: {}", orders(1, life_s));
            assert!(orders(24, life_s) <= 12, "{life_s} s: {}", orders(24, life_s));
        }
    }

    #[test]
    fn one_death_is_borne_and_one_heartbeat_clears_the_record() {
        let mut health = Health::default();
        assert_eq!(health.starting_max(TimeMs(0)), Some(UNPROVEN_MAX));
        health.died(TimeMs(0), REST);
        assert_eq!((health.rests(TimeMs(1)), health.starting_max(TimeMs(1))), (false, Some(1)));
        health.died(TimeMs(0), REST);
        assert_eq!((health.rests(TimeMs(1)), health.starting_max(TimeMs(1))), (true, Some(0)));
        assert!(!health.rests(TimeMs(600_000)));
        health.worked();
        assert_eq!(health.starting_max(TimeMs(1)), None);
    }
}
