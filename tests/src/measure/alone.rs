//! The coordinator's decisions alone: no bus, no clock, no disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use ternfleet_coordinator::core::{
    Action, Answer, BatchFacts, BatchRecord, Content, Core, Event, Fed, Lead, Limits, Outputs, Task, Verdict,
};
use ternfleet_proto::message::{
    Abilities, BatchCreate, BatchOptions, Durability, Generation, Input, Line, Prompt,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{Attempt, LeaderRevision, MonoMs, Now, TenantId, TimeMs, WorkerId};

use super::peak_mib;
use super::process::resident_mib;
use crate::instant::{Manner, first_beat};

/// Beats in a turn; every worker beats once a virtual second, and a turn takes 20 ms of that.
const BEATS_A_TURN: usize = 200;

/// Lines of a batch, at most.
const LINES_A_BATCH: u32 = 1_000_000;
/// Batches that are open at a time.
const OPEN_MAX: usize = 3;

/// So many jobs, a million in a batch and three batches at a time, through so many workers that answer at once. Only the
/// time inside the core counts.
///
/// # Errors
/// When not every job is answered.
pub fn core_alone(jobs: u32, workers: usize) -> anyhow::Result<()> {
    let mut core = Core::new(AssignmentKey([7; 32]), Limits::default());
    let mut measured = Measured::default();
    let mut now = Now { mono: MonoMs(1_000), wall: TimeMs(1_000_000) };
    let lead = Lead { revision: LeaderRevision(1), term: 1 };
    let mut actions = measured.tell(&mut core, now, vec![Event::Lead(lead)]);
    let mut beats = Vec::new();
    for n in 0..workers {
        let worker: WorkerId = format!("w{n}").parse()?;
        let manner = Manner { host: format!("h{n}"), slots: 8, rate_tok_s: 240.0, ..Manner::default() };
        let mut beat = first_beat(&worker, &manner, now.wall);
        beat.leader_seen = lead.revision;
        let known = Event::Heartbeat(Box::new(beat.clone()));
        actions.extend(measured.tell(&mut core, now, vec![known, Event::Registered { worker, shard: 0 }]));
        beats.push(beat);
    }

    measured = Measured::default();
    let (mut sequence, mut beating) = (0u64, 0);
    let (mut begun, mut open, mut shown) = (0u32, Vec::new(), 0);
    loop {
        let mut events = Vec::new();
        open.retain(|batch| core.batch(*batch).is_some_and(|batch| !batch.is_ended()));
        while open.len() < OPEN_MAX && begun < jobs {
            let lines = LINES_A_BATCH.min(jobs - begun);
            let record = record(now.wall, begun, lines);
            let id = record.id.clone();
            begun += lines;
            actions.extend(measured.tell(&mut core, now, vec![Event::BatchKnown(Box::new(record))]));
            let batch = core.find(&id).ok_or_else(|| anyhow::anyhow!("the batch is not known"))?;
            actions.extend(measured.tell(&mut core, now, vec![Event::Scanned { batch, lines }]));
            open.push(batch);
        }
        if open.is_empty() {
            break;
        }
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Read { batch, from, lines, .. } => {
                    let all = core.batch(batch).and_then(|batch| batch.record.lines).unwrap_or(0);
                    let to = (from + lines).min(all);
                    let fed = |index| Fed { index, content: Content::Good(Arc::new(task(index))) };
                    let lines = (from..to).map(fed).collect();
                    events.push(Event::Lines { batch, lines, next: to, end: to == all });
                }
                Action::Write { batch } => {
                    let outputs = Outputs { answers_object: Some("a".to_owned()), ..Outputs::default() };
                    events.push(Event::Written { batch, outputs: Ok(outputs) });
                }
                // As soon as the record is stored.
                Action::Record(record) if record.state.is_terminal() => {
                    let (batch, tenant) = (record.id.clone(), record.tenant.clone());
                    events.push(Event::Archived { batch, tenant });
                }
                Action::Hand(hand) => {
                    sequence += 1;
                    events.push(Event::Handed {
                        job: hand.job,
                        epoch: hand.work.epoch,
                        sequence: Some(sequence),
                    });
                    let answer = Answer {
                        job: hand.work.job,
                        epoch: hand.work.epoch,
                        attempt: Attempt(1),
                        worker: hand.worker,
                        tag: hand.work.tag,
                        verdict: Verdict::Good { ids_digest: 1 },
                        fault: None,
                        prompt_tokens: 5,
                        completion_tokens: 10,
                        repeated_tokens: 0,
                        engine_us: 60_000,
                        cached_tokens: 0,
                        model: None,
                        rejected: None,
                        nondeterministic: false,
                        finished_at: now.wall,
                    };
                    events.push(Event::Answer { sequence, answer: Box::new(answer) });
                }
                _ => {}
            }
        }
        for _ in 0..BEATS_A_TURN.min(workers) {
            let beat = &mut beats[beating % workers];
            beat.at = now.wall;
            beat.mono = now.mono;
            events.push(Event::Heartbeat(Box::new(beat.clone())));
            beating += 1;
        }
        now = now.plus(Duration::from_millis(20));
        events.extend([Event::Tick, Event::Turn]);
        actions.extend(measured.tell(&mut core, now, events));
        if jobs > LINES_A_BATCH && sequence / (u64::from(jobs) / 10) > shown {
            shown += 1;
            println!("{sequence} jobs: this process holds {} MiB", resident_mib(std::process::id()));
        }
        ensure!(measured.took < Duration::from_secs(7_200), "{sequence} jobs answered");
    }
    ensure!(core.counts.committed[0] == u64::from(jobs), "{:?} answered", core.counts.committed);
    let Measured { events, took, longest } = measured;
    println!(
        "{jobs} jobs, {workers} workers: {events} events in {:.2} s inside the core, {:.0} events/s, {:.0} jobs/s, a turn \
         took {longest:?} at most; this process held {} MiB at most",
        took.as_secs_f64(),
        events as f64 / took.as_secs_f64(),
        f64::from(jobs) / took.as_secs_f64(),
        peak_mib(std::process::id())
    );
    Ok(())
}

#[derive(Debug, Default)]
struct Measured {
    events: u64,
    took: Duration,
    /// Of the turns.
    longest: Duration,
}

impl Measured {
    fn tell(&mut self, core: &mut Core, now: Now, events: Vec<Event>) -> Vec<Action> {
        self.events += events.len() as u64;
        let mut actions = Vec::new();
        let began = Instant::now();
        for event in events {
            core.on(now, event, &mut actions);
        }
        self.took += began.elapsed();
        self.longest = self.longest.max(began.elapsed());
        actions
    }
}

fn record(now: TimeMs, number: u32, jobs: u32) -> BatchRecord {
    let create = BatchCreate {
        tenant: TenantId::default_tenant(),
        idempotency_key: format!("measured-{number}"),
        input_object: "in".to_owned(),
        name: None,
        endpoint: None,
        options: BatchOptions::default(),
        metadata: Default::default(),
        traceparent: None,
        work: None,
    };
    let bytes = u64::from(jobs) * 100;
    let facts = BatchFacts {
        input_bytes: bytes,
        stored_bytes: bytes,
        results_after: 0,
        durability: Durability::Stored,
        replicas: 1,
    };
    BatchRecord::new(now, &create, facts)
}

fn task(index: u32) -> Task {
    let generation = Generation {
        prompt: Prompt::Text(format!("prompt {index}")),
        max_tokens: Some(16),
        seed: 1,
        ..Generation::default()
    };
    let line = Line::new(Some(format!("c{index}")), Endpoint::Completions, None);
    let (constrained, wanted, start) = (false, None, None);
    let input = Input::Inline(generation);
    let needs = Abilities::NONE;
    Task { line, input, constrained, needs, tokens_estimate: 20, bytes: 420, wanted, start }
}
