//! Coordinators: the real core, the lease, the replay of RESULTS, and the shell's operations on the simulated server.

use std::collections::{BTreeMap, VecDeque};

use ternfleet_coordinator::core::{
    Action, Answer, Batch, BatchRecord, BatchSlot, Core, Event, HandOut, JobRef, Limits, Outputs,
};
use ternfleet_proto::bus::{BusError, Publish};
use ternfleet_proto::message::{Control, Heartbeat, JobResult, Order};
use ternfleet_proto::{BatchId, LeaderRevision, TimeMs, codec, table};

use super::super::JetStream;
use super::super::scenario::BatchPlan;
use super::inputs::{read_lines, trace_of};
use super::{Life, Occurrence, World};

/// Far more than in production, so that audits meet every fault.
const AUDIT_SHARE_PPM: u32 = 200_000;
const TICK_MS: u64 = 200;
const READ_EVERY_MS: u64 = 10;
/// As the shell: so many attempts, then the assignment is started again.
const HAND_ATTEMPTS: u32 = 20;
/// As the shell: how long the checkpoints of a batch stay whose jobs were moved.
const FENCE_STANDS_MS: u64 = 60_000;
pub(super) const WAIT_MS: u64 = 150;

/// A request on its way to the server, and what is done again until it is answered.
#[derive(Debug, Clone)]
pub(super) enum Duty {
    AskForLease {
        asked_at: TimeMs,
    },
    CountTerm {
        revision: u64,
        renewed_at: TimeMs,
    },
    RenewLease,
    /// The first entry of the books, which are written one after the other.
    Book {
        attempt: u32,
    },
    Action {
        action: Box<Action>,
        leader: LeaderRevision,
        attempt: u32,
    },
}

/// Where a coordinator stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Reading what is there; done when this sequence of RESULTS is reached.
    Warming {
        until: u64,
    },
    Standby,
    Leading {
        lease_revision: u64,
        renewed_at: TimeMs,
        leader: LeaderRevision,
    },
}

#[derive(Debug)]
pub(super) struct CoordinatorNode {
    place: usize,
    lives: u32,
    core: Option<Core>,
    pub(super) role: Role,
    pub(super) next_result: u64,
    /// Records and audit entries still to be written, oldest first, and the revisions of records last seen.
    pub(super) books: VecDeque<(LeaderRevision, Action)>,
    pub(super) revisions: BTreeMap<BatchId, u64>,
    pub(super) paused: u32,
    pub(super) cut: u32,
    pub(super) skew_ms: i64,
}

impl CoordinatorNode {
    pub(super) fn off(place: usize) -> CoordinatorNode {
        CoordinatorNode {
            place,
            lives: 0,
            core: None,
            role: Role::Standby,
            next_result: 1,
            books: VecDeque::new(),
            revisions: BTreeMap::new(),
            paused: 0,
            cut: 0,
            skew_ms: 0,
        }
    }

    pub(super) fn stop(&mut self) {
        self.core = None;
        self.books.clear();
        self.revisions.clear();
    }

    pub(super) fn batch(&self, id: &BatchId) -> Option<&Batch> {
        let core = self.core.as_ref()?;
        core.batch(core.find(id)?)
    }

    pub(super) fn in_flight(&self, id: &BatchId) -> u32 {
        let core = self.core.as_ref();
        core.and_then(|core| Some(core.flights().committed(core.find(id)?).jobs)).unwrap_or(0)
    }

    pub(super) fn leads(&self) -> bool {
        self.core.is_some() && matches!(self.role, Role::Leading { .. })
    }

    pub(super) fn reachable(&self) -> bool {
        self.cut == 0 && self.paused == 0
    }

    pub(super) fn life(&self) -> Option<Life> {
        self.core.is_some().then_some(Life { place: self.place, number: self.lives })
    }

    pub(super) fn find(&self, batch: &BatchId) -> Option<BatchSlot> {
        self.core.as_ref()?.find(batch)
    }

    fn lives_as(&self, life: Life) -> bool {
        self.core.is_some() && self.lives == life.number
    }
}

pub(in super::super) fn stored_record(net: &mut JetStream, now: TimeMs, id: &BatchId) -> Option<BatchRecord> {
    let entry = net.kv_get(now, table::KV_BATCHES, id.as_str()).ok()??;
    codec::decode(&entry.value).ok()
}

pub(super) fn stored_records(net: &mut JetStream, now: TimeMs) -> Vec<BatchRecord> {
    let entries = net.kv_entries(now, table::KV_BATCHES).unwrap_or_default();
    let mut records: Vec<BatchRecord> =
        entries.iter().filter_map(|entry| codec::decode(&entry.value).ok()).collect();
    records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    records
}

impl World {
    /// The process comes up: what is stored is read, then the lease is asked for.
    pub(super) fn start_coordinator(&mut self, place: usize) {
        let node = &self.coordinators[place];
        if node.core.is_some() {
            return;
        }
        if node.cut > 0 || self.server_down > 0 {
            self.at(500, Occurrence::StartCoordinator(place));
            return;
        }
        let records = stored_records(&mut self.net, self.now);
        let end = self.net.stream_facts(table::RESULTS).map_or(0, |facts| facts.last_sequence);
        let live = records.iter().filter(|record| !record.state.is_terminal());
        let from = live.map(|record| record.results_after).min().unwrap_or(end) + 1;
        let limits =
            Limits { text_bytes_max: 64 << 20, audit_share_ppm: AUDIT_SHARE_PPM, ..Limits::default() };
        let node = &mut self.coordinators[place];
        node.lives += 1;
        node.core = Some(Core::new(self.key.clone(), limits));
        node.next_result = from;
        node.role = Role::Warming { until: end };
        let life = Life { place, number: node.lives };
        for record in records {
            self.coordinator_on(life, Event::BatchKnown(Box::new(record)));
        }
        self.at(1, Occurrence::ReadResults(life));
        self.at(TICK_MS, Occurrence::CoordinatorTick(life));
    }

    pub(super) fn coordinator_tick(&mut self, life: Life) {
        if !self.coordinators[life.place].lives_as(life) {
            return;
        }
        self.at(TICK_MS, Occurrence::CoordinatorTick(life));
        if self.coordinators[life.place].paused == 0 {
            self.coordinator_on(life, Event::Tick);
            self.turn(life);
            self.check.violations(self.coordinators[life.place].core.as_ref());
        }
    }

    pub(super) fn coordinator_event(&mut self, life: Life, event: Event) {
        if !self.coordinators[life.place].lives_as(life) {
            return;
        }
        if self.coordinators[life.place].paused > 0 {
            self.at(20, Occurrence::CoordinatorEvent(life, Box::new(event)));
            return;
        }
        self.coordinator_on(life, event);
        self.turn(life);
    }

    pub(super) fn coordinator_on(&mut self, life: Life, event: Event) {
        let now = self.skewed(self.coordinators[life.place].skew_ms);
        let Some(core) = self.coordinators[life.place].core.as_mut() else { return };
        let mut actions = Vec::new();
        core.on(now, event, &mut actions);
        for action in actions {
            self.coordinator_action(life, action);
        }
    }

    /// R1: looking again and again at the same state soon finds nothing more to hand out.
    pub(super) fn turn(&mut self, life: Life) {
        let now = self.skewed(self.coordinators[life.place].skew_ms);
        for look in 1.. {
            let Some(core) = self.coordinators[life.place].core.as_mut() else { return };
            let mut actions = Vec::new();
            core.on(now, Event::Turn, &mut actions);
            let hands = actions.iter().filter(|action| matches!(action, Action::Hand(_))).count();
            for action in actions {
                self.coordinator_action(life, action);
            }
            if hands == 0 {
                return;
            }
            self.check.planned_again(look);
        }
    }

    fn coordinator_action(&mut self, life: Life, action: Action) {
        let Role::Leading { leader, .. } = self.coordinators[life.place].role else { return };
        match action {
            Action::Scan { batch } => {
                let Some(lines) = self.plan_of(life, batch).map(|plan| plan.lines) else { return };
                self.at(5, Occurrence::CoordinatorEvent(life, Box::new(Event::Scanned { batch, lines })));
            }
            Action::Read { batch, from, lines, skip } => {
                let Some(plan) = self.plan_of(life, batch) else { return };
                let event = read_lines(&plan, batch, from, lines, &skip);
                self.at(3, Occurrence::CoordinatorEvent(life, Box::new(event)));
            }
            Action::Write { batch } => {
                let outputs = Ok(Outputs { output_object: Some("output".into()), error_object: None });
                self.at(20, Occurrence::CoordinatorEvent(life, Box::new(Event::Written { batch, outputs })));
            }
            Action::Tell { worker, order } => {
                if let Order::Revoke { job, epoch } = &order {
                    self.check.revoked(job, *epoch);
                }
                if let Order::Cancel { batch } = &order {
                    self.check.ending(batch);
                }
                if self.coordinators[life.place].cut == 0 && self.server_down == 0 {
                    let copies = 1 + u32::from(self.doubling > 0);
                    for _ in 0..copies {
                        let delay = self.latency();
                        let control = Control { leader, order: order.clone() };
                        self.at(delay, Occurrence::Order(worker.clone(), control));
                    }
                }
            }
            Action::StopReading { .. } | Action::ClearWork | Action::Announce { .. } => {}
            Action::Record(_) | Action::Audit(_) => {
                let node = &mut self.coordinators[life.place];
                node.books.push_back((leader, action));
                if node.books.len() == 1 {
                    let delay = self.latency();
                    self.at(delay, Occurrence::CoordinatorDuty(life, Duty::Book { attempt: 0 }));
                }
            }
            action => {
                let fenced = matches!(action, Action::Forget { fenced: true, .. });
                let delay = if fenced { FENCE_STANDS_MS } else { self.latency() };
                let duty = Duty::Action { action: Box::new(action), leader, attempt: 0 };
                self.at(delay, Occurrence::CoordinatorDuty(life, duty));
            }
        }
    }

    fn plan_of(&self, life: Life, slot: BatchSlot) -> Option<BatchPlan> {
        let core = self.coordinators[life.place].core.as_ref()?;
        self.plans.get(&core.batch(slot)?.record.id).cloned()
    }

    /// RESULTS in stream order; with everything read that was there at the start, the lease is asked for.
    pub(super) fn read_results(&mut self, life: Life) {
        if !self.coordinators[life.place].lives_as(life) {
            return;
        }
        self.at(READ_EVERY_MS, Occurrence::ReadResults(life));
        let node = &self.coordinators[life.place];
        if node.paused > 0 || node.cut > 0 || self.server_down > 0 {
            return;
        }
        for _ in 0..64 {
            let from = self.coordinators[life.place].next_result;
            let found = self.net.next_message(table::RESULTS, table::results_all(), from).ok().flatten();
            let Some(message) = found else { break };
            self.coordinators[life.place].next_result = message.sequence + 1;
            let Ok(result) = codec::decode::<JobResult>(&message.payload) else { continue };
            self.learn(life, &result.job.batch);
            let answer = Box::new(Answer::from(&result));
            self.coordinator_on(life, Event::Answer { sequence: message.sequence, answer });
            let core = self.coordinators[life.place].core.as_ref();
            self.check.agrees(core, &result.job);
        }
        self.turn(life);
        let node = &mut self.coordinators[life.place];
        if let Role::Warming { until } = node.role
            && node.next_result > until
        {
            node.role = Role::Standby;
            self.at(0, Occurrence::CoordinatorDuty(life, Duty::AskForLease { asked_at: self.now }));
        }
    }

    /// A standby may hear an answer before it hears of the batch.
    fn learn(&mut self, life: Life, batch: &BatchId) {
        if self.coordinators[life.place].find(batch).is_none()
            && let Some(record) = stored_record(&mut self.net, self.now, batch)
        {
            self.coordinator_on(life, Event::BatchKnown(Box::new(record)));
        }
    }

    pub(super) fn hear_beat(&mut self, beat: Heartbeat) {
        for place in 0..self.coordinators.len() {
            let node = &self.coordinators[place];
            // Nothing waits for a stopped process forever; here nothing waits at all.
            if let (Some(life), 0, 0) = (node.life(), node.cut, node.paused) {
                self.coordinator_event(life, Event::Heartbeat(Box::new(beat.clone())));
            }
        }
    }

    pub(super) fn coordinator_duty(&mut self, life: Life, duty: Duty) {
        if !self.coordinators[life.place].lives_as(life) {
            return;
        }
        if self.coordinators[life.place].paused > 0 {
            self.at(20, Occurrence::CoordinatorDuty(life, duty));
            return;
        }
        match duty {
            Duty::AskForLease { asked_at } => self.ask_for_lease(life, asked_at),
            Duty::CountTerm { revision, renewed_at } => self.count_term(life, revision, renewed_at),
            Duty::RenewLease => self.renew_lease(life),
            Duty::Book { attempt } => self.keep_books(life, attempt),
            Duty::Action { action, leader, attempt } => self.perform(life, *action, leader, attempt),
        }
    }

    /// An operation of the leader, as its shell does it: again and again while nobody answers.
    fn perform(&mut self, life: Life, action: Action, leader: LeaderRevision, attempt: u32) {
        let cut = self.coordinators[life.place].cut > 0;
        let done = match &action {
            Action::Hand(hand) => self.hand_over(life, cut, hand, attempt),
            Action::Withdraw { job, key, epoch, shard, sequence } => {
                let (stream, subject) = (table::work_stream(*shard), table::checkpoint(key));
                self.check.revoked(key, *epoch);
                let read = self.attempt(cut, |net, now| {
                    if let Some(sequence) = sequence {
                        net.delete_message(&stream, *sequence)?;
                    }
                    net.last_on_subject(now, table::CHECKPOINTS, &subject)
                });
                read.map(|last| {
                    let trace = last.and_then(|message| self.key.checkpoint_key(key).open(&message.payload));
                    let trace = trace.map(trace_of);
                    self.answer_to(life, Event::Withdrawn { job: *job, epoch: *epoch, trace });
                })
            }
            Action::Answer(result) => {
                let subject = table::result(&result.tenant, &result.job, &result.worker);
                let how = Publish { expect_last_on_subject: Some(0), ..Publish::default() };
                let payload = codec::encode(&**result);
                let stored = self.attempt(cut, |net, now| net.publish(now, &subject, payload, &how));
                self.check.results(&self.net);
                match stored {
                    Err(BusError::WrongLastSequence) => Ok(()),
                    other => other.map(drop),
                }
            }
            Action::Discard { sequence } => {
                self.attempt(cut, |net, _| net.delete_message(table::RESULTS, *sequence)).map(drop)
            }
            Action::Register { worker, shard } => {
                let consumers = table::work_consumers(*shard, worker);
                let made = self.attempt(cut, |net, _| {
                    net.ensure_stream(&table::work_stream_spec(*shard, 1))?;
                    consumers.iter().try_for_each(|consumer| net.ensure_consumer(consumer))
                });
                let event = Event::Registered { worker: worker.clone(), shard: *shard };
                made.map(|()| self.answer_to(life, event))
            }
            Action::Retire { worker, shard } => {
                let consumers = table::work_consumers(*shard, worker);
                self.attempt(cut, |net, _| {
                    for consumer in &consumers {
                        // It may be gone already.
                        let _ = net.delete_consumer(&consumer.stream, &consumer.name);
                        net.purge(&consumer.stream, &consumer.filter)?;
                    }
                    Ok(())
                })
            }
            Action::Forget { batch, .. } => {
                let filter = table::checkpoints_of(batch);
                self.attempt(cut, |net, _| net.purge(table::CHECKPOINTS, &filter)).map(drop)
            }
            Action::Dead { tenant, key, .. } => {
                self.tally.dead += 1;
                let subject = table::dead(tenant, key);
                let how = Publish::default();
                self.attempt(cut, |net, now| net.publish(now, &subject, "dead".into(), &how)).map(drop)
            }
            _ => Ok(()),
        };
        if let Err(BusError::Unreachable(_) | BusError::Full { .. }) = done {
            let wait = WAIT_MS * u64::from(attempt + 1).min(13);
            let duty = Duty::Action { action: Box::new(action), leader, attempt: attempt + 1 };
            self.at(wait, Occurrence::CoordinatorDuty(life, duty));
        }
    }

    fn hand_over(
        &mut self,
        life: Life,
        cut: bool,
        hand: &HandOut,
        attempt: u32,
    ) -> ternfleet_proto::bus::Result<()> {
        let HandOut { job, shard, worker, work } = hand;
        let subject = table::work(*shard, worker, work.lane);
        let id = table::work_message_id(&work.job, work.epoch);
        let how = Publish { message_id: Some(id), ..Publish::default() };
        let payload = codec::encode(work);
        let handed = |job: JobRef, sequence| Event::Handed { job, epoch: work.epoch, sequence };
        if attempt >= HAND_ATTEMPTS {
            self.answer_to(life, handed(*job, None));
            return Ok(());
        }
        match self.attempt(cut, |net, now| net.publish(now, &subject, payload, &how)) {
            Ok(stored) => self.answer_to(life, handed(*job, Some(stored.sequence))),
            Err(unreachable @ BusError::Unreachable(_)) => return Err(unreachable),
            Err(_) => self.answer_to(life, handed(*job, None)),
        }
        Ok(())
    }

    fn answer_to(&mut self, life: Life, event: Event) {
        let delay = self.latency();
        self.at(delay, Occurrence::CoordinatorEvent(life, Box::new(event)));
    }

    /// Standbys hear of a stored record and read it.
    pub(super) fn follow(&mut self, from: Life, id: &BatchId) {
        let Some(record) = stored_record(&mut self.net, self.now, id) else { return };
        for place in 0..self.coordinators.len() {
            let node = &self.coordinators[place];
            if place == from.place || node.leads() || !node.reachable() {
                continue;
            }
            if let Some(life) = node.life() {
                let event = Event::BatchKnown(Box::new(record.clone()));
                self.at(2, Occurrence::CoordinatorEvent(life, Box::new(event)));
            }
        }
    }
}
