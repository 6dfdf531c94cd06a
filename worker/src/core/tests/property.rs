//! Random event sequences: a bus that loses, doubles and refuses, rivals that claim, orders at any time.
//!
//! The environment here answers what the core asks, now or later, truly or not at all, and checks after each step:
//! no ack before a stored result or a cause to drop the job; never two generations of one job; nothing published for a
//! job that was fenced, revoked or cancelled; nothing after the exit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use ternfleet_proto::bus::Settle;
use ternfleet_proto::message::{Checkpoint, Control, JobResult, Order, Work};
use ternfleet_proto::{Epoch, JobKey, Lane, LeaderRevision};

use super::rig::*;
use crate::core::*;

/// What chance does next; the numbers choose among what is possible.
#[derive(Debug, Clone)]
enum Step {
    Deliver {
        index: u32,
    },
    Redeliver {
        pick: usize,
    },
    /// Lets a pending operation end: well, unheard but done, or unheard and not done.
    Finish {
        pick: usize,
        how: u8,
    },
    Generate {
        pick: usize,
        count: usize,
    },
    Complete {
        pick: usize,
    },
    Rival {
        index: u32,
    },
    Move {
        index: u32,
    },
    Cancel,
    Wait {
        ms: u64,
    },
    Bus {
        up: bool,
    },
    Signal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..6).prop_map(|index| Step::Deliver { index }),
        2 => (0usize..8).prop_map(|pick| Step::Redeliver { pick }),
        24 => (0usize..16, 0u8..10).prop_map(|(pick, how)| Step::Finish { pick, how }),
        10 => (0usize..8, 1usize..12).prop_map(|(pick, count)| Step::Generate { pick, count }),
        4 => (0usize..8).prop_map(|pick| Step::Complete { pick }),
        1 => (0u32..6).prop_map(|index| Step::Rival { index }),
        1 => (0u32..6).prop_map(|index| Step::Move { index }),
        1 => Just(Step::Cancel),
        6 => (1u64..4000).prop_map(|ms| Step::Wait { ms }),
        1 => any::<bool>().prop_map(|up| Step::Bus { up }),
        1 => Just(Step::Signal),
    ]
}

/// An operation that the core waits for.
#[derive(Debug, Clone)]
enum Pending {
    Read { slot: SlotId, job: JobKey },
    Write { slot: SlotId, checkpoint: Checkpoint, expect: u64 },
    Start { slot: SlotId, work: Box<Work>, kept: usize },
    Publish { slot: SlotId, result: JobResult },
    ReadResult { slot: SlotId, job: JobKey },
    Ack { slot: SlotId },
    Cancelled { slot: SlotId },
}

struct World {
    rig: Rig,
    sequence: u64,
    checkpoints: BTreeMap<JobKey, (u64, Checkpoint)>,
    results: BTreeMap<JobKey, JobResult>,
    /// Assignments so far, by job.
    epochs: BTreeMap<JobKey, u32>,
    delivered: Vec<(u64, Work)>,
    pending: Vec<Pending>,
    /// Live generations, from start to end.
    generating: BTreeMap<SlotId, JobKey>,
    /// Jobs and epochs that the core has a cause to drop.
    void: BTreeSet<(JobKey, Epoch)>,
    /// Slots whose generation the core cancelled, which may publish no tokens.
    cancelled_batch: bool,
    exited: bool,
}

impl World {
    fn new() -> World {
        World {
            rig: Rig::assigned(),
            sequence: 0,
            checkpoints: BTreeMap::new(),
            results: BTreeMap::new(),
            epochs: BTreeMap::new(),
            delivered: Vec::new(),
            pending: Vec::new(),
            generating: BTreeMap::new(),
            void: BTreeSet::new(),
            cancelled_batch: false,
            exited: false,
        }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Deliver { index } => {
                let epoch = self.epochs.get(&job(index)).copied().unwrap_or(0);
                let sequence = self.next();
                let work = work(index, epoch);
                self.delivered.push((sequence, work.clone()));
                let actions = self.rig.pulled(sequence, work);
                self.check(actions);
            }
            Step::Redeliver { pick } => {
                if !self.delivered.is_empty() {
                    let (sequence, work) = self.delivered[pick % self.delivered.len()].clone();
                    let actions = self.rig.pulled(sequence, work);
                    self.check(actions);
                }
            }
            Step::Finish { pick, how } => {
                if !self.pending.is_empty() {
                    let pending = self.pending.remove(pick % self.pending.len());
                    self.finish(pending, how);
                }
            }
            Step::Generate { pick, count } => {
                if let Some(slot) = self.pick_generating(pick) {
                    let actions = self.rig.tokens(slot, count);
                    self.check(actions);
                }
            }
            Step::Complete { pick } => {
                if let Some(slot) = self.pick_generating(pick) {
                    self.generating.remove(&slot);
                    let actions = self.rig.on(Event::Ended { slot, end: completion() });
                    self.check(actions);
                }
            }
            Step::Rival { index } => {
                let epoch = self.move_away(index);
                let sequence = self.next();
                self.checkpoints.insert(job(index), (sequence, rival_checkpoint(index, epoch, 0)));
                *self.epochs.entry(job(index)).or_default() += 1;
            }
            Step::Move { index } => {
                let epoch = Epoch(self.move_away(index) - 1);
                let actions = self.rig.order(Order::Revoke { job: job(index), epoch });
                self.check(actions);
            }
            Step::Cancel => {
                for index in 0..6 {
                    for epoch in 0..=self.epochs.get(&job(index)).copied().unwrap_or(0) {
                        self.void.insert((job(index), Epoch(epoch)));
                    }
                }
                self.cancelled_batch = true;
                let actions = self.rig.order(Order::Cancel { batch: job(0).batch });
                self.check(actions);
            }
            Step::Wait { ms } => {
                let actions = self.rig.tick_after(Duration::from_millis(ms));
                self.check(actions);
            }
            Step::Bus { up } => {
                let actions = self.rig.on(Event::Bus { up });
                self.check(actions);
            }
            Step::Signal => {
                let actions = self.rig.on(Event::Signal);
                self.check(actions);
            }
        }
    }

    /// The job goes to a new epoch; answers the new one.
    fn move_away(&mut self, index: u32) -> u32 {
        let epoch = self.epochs.entry(job(index)).or_default();
        for old in 0..=*epoch {
            self.void.insert((job(index), Epoch(old)));
        }
        *epoch += 1;
        *epoch
    }

    fn pick_generating(&self, pick: usize) -> Option<SlotId> {
        let waits = |slot: &SlotId| {
            self.pending.iter().any(
                |p| matches!(p, Pending::Cancelled { slot: s } | Pending::Start { slot: s, .. } if s == slot),
            )
        };
        let slots: Vec<SlotId> = self.generating.keys().copied().filter(|slot| !waits(slot)).collect();
        (!slots.is_empty()).then(|| slots[pick % slots.len()])
    }

    /// 0 to 6 end well, 7 and 8 are done unheard, 9 is not done.
    fn finish(&mut self, pending: Pending, how: u8) {
        let (done, heard) = (how != 9, how < 7);
        let event = match pending {
            Pending::Read { slot, job } => {
                let found = self.checkpoints.get(&job).cloned().map_or(Read::Nothing, Read::Found);
                Event::CheckpointRead { slot, outcome: if heard { found } else { Read::Unreachable } }
            }
            Pending::Write { slot, checkpoint, expect } => {
                let last = self.checkpoints.get(&checkpoint.job).map_or(0, |(sequence, _)| *sequence);
                let outcome = if last == expect && done {
                    let sequence = self.next();
                    self.checkpoints.insert(checkpoint.job.clone(), (sequence, checkpoint));
                    Write::Stored(sequence)
                } else {
                    Write::Conflict
                };
                Event::CheckpointWritten { slot, outcome: if heard { outcome } else { Write::Unreachable } }
            }
            Pending::Start { slot, work, kept } => {
                if how == 9 {
                    self.generating.remove(&slot);
                    Event::StartFailed { slot, why: StartFailure::Transient("chance".to_owned()) }
                } else {
                    drop(work);
                    Event::Started { slot, prompt_tokens: 3, kept: kept as u32 }
                }
            }
            Pending::Publish { slot, result } => {
                let outcome = if self.results.contains_key(&result.job) {
                    Write::Conflict
                } else if done {
                    self.results.insert(result.job.clone(), result);
                    Write::Stored(self.next())
                } else {
                    Write::Full
                };
                Event::ResultWritten {
                    slot,
                    outcome: if heard || !done { outcome } else { Write::Unreachable },
                }
            }
            Pending::ReadResult { slot, job } => {
                let found = self.results.get(&job).cloned().map_or(Read::Nothing, Read::Found);
                Event::ResultRead { slot, outcome: if heard { found } else { Read::Unreachable } }
            }
            Pending::Ack { slot } => {
                let outcome = if heard { Settled::Done } else { Settled::Unreachable };
                Event::Settled { slot, outcome }
            }
            Pending::Cancelled { slot } => {
                self.generating.remove(&slot);
                self.pending.retain(|p| !matches!(p, Pending::Start { slot: s, .. } if *s == slot));
                Event::Ended { slot, end: End::Cancelled }
            }
        };
        let actions = self.rig.on(event);
        self.check(actions);
    }

    fn check(&mut self, actions: Vec<Action>) {
        assert!(!self.exited || actions.is_empty(), "after the exit: {actions:?}");
        for action in actions {
            match action {
                Action::ReadCheckpoint { slot, job, .. } => self.pending.push(Pending::Read { slot, job }),
                Action::WriteCheckpoint { slot, checkpoint, expect, .. } => {
                    assert!(!self.cancelled_batch, "a cancelled batch wrote a checkpoint");
                    self.pending.push(Pending::Write { slot, checkpoint: *checkpoint, expect });
                }
                Action::StartGeneration { slot, work, kept } => {
                    let twice = self.generating.values().any(|running| *running == work.job);
                    assert!(!twice, "two generations of {}", work.job);
                    self.generating.insert(slot, work.job.clone());
                    self.pending.push(Pending::Start { slot, work, kept: kept.ids.len() });
                }
                Action::CancelGeneration { slot } => {
                    assert!(self.generating.contains_key(&slot), "nothing to cancel in {slot:?}");
                    self.pending.push(Pending::Cancelled { slot });
                }
                Action::PublishResult { slot, result } => {
                    assert!(!self.cancelled_batch, "a cancelled batch published a result");
                    self.pending.push(Pending::Publish { slot, result: *result });
                }
                Action::ReadResult { slot, job, .. } => self.pending.push(Pending::ReadResult { slot, job }),
                Action::Settle { slot, delivery, how } => {
                    if how == Settle::Ack {
                        self.check_ack(delivery.sequence);
                    }
                    if let Some(slot) = slot {
                        self.pending.push(Pending::Ack { slot });
                    }
                }
                Action::Exit => self.exited = true,
                Action::Pull { max, .. } => assert!(max <= SLOTS),
                Action::SendHeartbeat(beat) => {
                    assert!(beat.slots_in_use as usize <= SLOTS, "{} slots in use", beat.slots_in_use);
                }
                Action::SendTokens(_) | Action::Note(_) => {}
            }
        }
        assert!(self.rig.core.slots_in_use() <= SLOTS);
    }

    /// An ack needs a stored result, or a cause: a later epoch exists, or the batch was cancelled.
    fn check_ack(&self, sequence: u64) {
        let (_, work) = self.delivered.iter().find(|(s, _)| *s == sequence).expect("it was delivered");
        let stored = self.results.contains_key(&work.job);
        let void = self.cancelled_batch || self.void.contains(&(work.job.clone(), work.epoch));
        assert!(stored || void, "acknowledged without a result: {} epoch {}", work.job, work.epoch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_an_invariant(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
    }

    #[test]
    fn when_faults_stop_every_delivered_job_is_answered_or_void(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            if !matches!(step, Step::Signal | Step::Cancel | Step::Bus { .. }) {
                world.take(step);
            }
        }
        // Deliver what is current once more, as the server would after the ack wait, then let all end well.
        for round in 0..600 {
            if round % 100 == 0 {
                let current: Vec<u32> = (0..6)
                    .filter(|&index| !world.results.contains_key(&job(index)))
                    .filter(|&index| world.delivered.iter().any(|(_, work)| work.job == job(index)))
                    .collect();
                current.into_iter().for_each(|index| world.take(Step::Deliver { index }));
            }
            for pick in 0..8 {
                world.take(Step::Complete { pick });
            }
            while !world.pending.is_empty() {
                world.take(Step::Finish { pick: 0, how: 0 });
            }
            world.take(Step::Wait { ms: 700 });
        }
        for (_, work) in &world.delivered {
            let rival = world.checkpoints.get(&work.job).is_some_and(|(_, c)| c.owner.as_str() == "rival");
            prop_assert!(world.results.contains_key(&work.job) || rival, "{} was never answered", work.job);
        }
        prop_assert_eq!(world.rig.core.slots_in_use(), 0);
        prop_assert_eq!(world.rig.core.answering(), 0);
    }
}

#[test]
fn stale_orders_change_nothing() {
    let mut rig = Rig::assigned();
    rig.on(Event::Order(Control { leader: LeaderRevision(9), order: Order::Identify }));
    let slot = rig.running(0);
    rig.on(Event::Order(Control { leader: LeaderRevision(8), order: Order::Cancel { batch: job(0).batch } }));
    rig.tokens(slot, 1);
    assert!(published(&rig.on(Event::Ended { slot, end: completion() })).is_some());
    let _ = rig.on(Event::PullEnded { lane: Lane::Interactive, outcome: PullOutcome::Served });
}
