//! A core with a clock of its own, and the few steps that most tests begin with.

use std::time::Duration;

use bytes::Bytes;
use ternfleet_proto::bus::{Delivery, Settle};
use ternfleet_proto::message::{
    Checkpoint, Control, Finish, Generation, Heartbeat, Input, JobResult, Line, Order, Prompt, Work,
    WorkerCounters, WorkerState,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::{AssignmentTag, CheckpointKey};
use ternfleet_proto::{
    Attempt, Epoch, JobKey, Lane, LeaderRevision, MonoMs, Now, TenantId, TimeMs, UsdMicro, WorkerId,
};

use crate::core::*;

pub(super) const SLOTS: usize = 4;

pub(super) fn profile() -> Heartbeat {
    Heartbeat {
        worker: "me".parse().unwrap(),
        pod: "pod".to_owned(),
        host: "host".to_owned(),
        pod_class: "class".to_owned(),
        price_usd_micro_per_hour: UsdMicro(340_000),
        state: WorkerState::Ready,
        model: "model".to_owned(),
        model_digest: "digest".to_owned(),
        numerics: "numerics".to_owned(),
        context_tokens: 1024,
        slots: SLOTS as u32,
        slots_in_use: 0,
        kv_pages: 32,
        kv_pages_free: 32,
        checkpoint_age_ms: 0,
        threads: 1,
        isa: "scalar".to_owned(),
        calibration: Vec::new(),
        prefill_tok_s: 0.0,
        decode_tok_s: 0.0,
        counters: WorkerCounters::default(),
        leader_seen: LeaderRevision(0),
        version: String::new(),
        started_at: TimeMs(0),
        at: TimeMs(0),
        mono: ternfleet_proto::MonoMs::default(),
        running: Vec::new(),
        needs_queues: false,
        canary: String::new(),
        thread_scaling: Vec::new(),
        abilities: Default::default(),
    }
}

pub(super) fn config() -> Config {
    Config {
        profile: profile(),
        slots: SLOTS,
        kv_pages: 32,
        page_tokens: 128,
        checkpoint_tokens: 8,
        checkpoint_every: Duration::from_secs(2),
        heartbeat_every: Duration::from_secs(1),
        lease_every: Duration::from_secs(2),
        held_max: Duration::from_secs(10),
        drain_max: Duration::from_millis(3500),
        pull_expires: Duration::from_secs(1),
        keeps_text: false,
    }
}

pub(super) fn job(index: u32) -> JobKey {
    JobKey { batch: "batch_a".parse().unwrap(), index }
}

pub(super) fn work(index: u32, epoch: u32) -> Work {
    Work {
        job: job(index),
        tenant: TenantId::default_tenant(),
        lane: Lane::Batch,
        epoch: Epoch(epoch),
        attempts_before: Attempt(epoch),
        leader: LeaderRevision(1),
        tag: AssignmentTag(u128::from(index)),
        checkpoint_key: CheckpointKey::default(),
        model_digest: "digest".to_owned(),
        numerics: "numerics".to_owned(),
        deadline: None,
        left_ms: None,
        tokens_estimate: 100,
        line: Line::new(Some(format!("line-{index}")), Endpoint::Completions, None),
        input: Input::Inline(Generation {
            prompt: Prompt::Tokens(vec![1, 2, 3]),
            max_tokens: Some(40),
            seed: 1,
            ..Generation::default()
        }),
        traceparent: None,
    }
}

pub(super) fn delivery(sequence: u64) -> Delivery {
    Delivery {
        stream: "WORK-0".to_owned(),
        subject: "tf.work.0.me.batch".to_owned(),
        sequence,
        payload: Bytes::new(),
        delivered: 1,
        reply: format!("reply-{sequence}"),
    }
}

pub(super) fn rival_checkpoint(index: u32, epoch: u32, generated: usize) -> Checkpoint {
    Checkpoint {
        job: job(index),
        epoch: Epoch(epoch),
        tag: None,
        attempt: Attempt(epoch + 1),
        owner: "rival".parse::<WorkerId>().unwrap(),
        host: "elsewhere".to_owned(),
        leader: LeaderRevision(1),
        model_digest: "digest".to_owned(),
        numerics: "numerics".to_owned(),
        generated: (0..generated as u32).collect(),
        logprobs: Vec::new(),
        choices: Vec::new(),
        generated_by: None,
        text: String::new(),
        claim: generated == 0,
        released: false,
        at: TimeMs(0),
    }
}

pub(super) fn completion() -> End {
    End::Complete(Box::new(Completion {
        outputs: vec![Output { text: "text".to_owned(), finish: Finish::Length, ..Output::default() }],
        cached_tokens: 0,
        prompt_tokens: None,
        asked: None,
    }))
}

pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) now: Now,
}

impl Rig {
    pub(super) fn new() -> Rig {
        Rig { core: Core::new(config()), now: Now { mono: MonoMs(1_000), wall: TimeMs(1_000_000) } }
    }

    /// One that has its queues, with both pulls outstanding.
    pub(super) fn assigned() -> Rig {
        let mut rig = Rig::new();
        rig.order(Order::Assigned { shard: 0, interactive: "me-i".to_owned(), batch: "me-b".to_owned() });
        rig
    }

    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core.on(self.now, event, &mut actions);
        actions
    }

    pub(super) fn order(&mut self, order: Order) -> Vec<Action> {
        self.on(Event::Order(Control { leader: LeaderRevision(1), order }))
    }

    pub(super) fn tick_after(&mut self, span: Duration) -> Vec<Action> {
        self.now = self.now.plus(span);
        self.on(Event::Tick { host: HostFacts::default() })
    }

    pub(super) fn pulled(&mut self, sequence: u64, work: Work) -> Vec<Action> {
        let lane = work.lane;
        self.on(Event::WorkPulled { lane, delivery: delivery(sequence), work: Ok(Box::new(work)) })
    }

    /// A job that was pulled under epoch 0, claimed and started.
    pub(super) fn running(&mut self, index: u32) -> SlotId {
        let slot = written(&self.pulled(u64::from(index) + 1, work(index, 0))).expect("a claim").0;
        let actions =
            self.on(Event::CheckpointWritten { slot, outcome: Write::Stored(100 + u64::from(index)) });
        assert!(started(&actions).is_some(), "{actions:?}");
        self.on(Event::Started { slot, prompt_tokens: 3, kept: 0 });
        slot
    }

    pub(super) fn tokens(&mut self, slot: SlotId, count: usize) -> Vec<Action> {
        let tokens = Tokens { ids: (0..count as u32).collect(), ..Tokens::default() };
        self.on(Event::Tokens { slot, tokens })
    }

    /// A job whose result is being published.
    pub(super) fn answering(&mut self, index: u32) -> (SlotId, JobResult) {
        let slot = self.running(index);
        self.tokens(slot, 3);
        let actions = self.on(Event::Ended { slot, end: completion() });
        (slot, published(&actions).expect("a result").clone())
    }
}

pub(super) fn written(actions: &[Action]) -> Option<(SlotId, Checkpoint, u64)> {
    actions.iter().find_map(|action| match action {
        Action::WriteCheckpoint { slot, checkpoint, expect, .. } => {
            Some((*slot, (**checkpoint).clone(), *expect))
        }
        _ => None,
    })
}

pub(super) fn started(actions: &[Action]) -> Option<(SlotId, Kept)> {
    actions.iter().find_map(|action| match action {
        Action::StartGeneration { slot, kept, .. } => Some((*slot, kept.clone())),
        _ => None,
    })
}

pub(super) fn published(actions: &[Action]) -> Option<&JobResult> {
    actions.iter().find_map(|action| match action {
        Action::PublishResult { result, .. } => Some(&**result),
        _ => None,
    })
}

/// Every settlement that is no extension of a lease.
pub(super) fn settled(actions: &[Action]) -> Vec<(u64, Settle)> {
    let settle = |action: &Action| match action {
        Action::Settle { delivery, how, .. } if *how != Settle::Progress => Some((delivery.sequence, *how)),
        _ => None,
    };
    actions.iter().filter_map(settle).collect()
}

pub(super) fn extended(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Settle { how: Settle::Progress, .. })).count()
}

pub(super) fn pulls(actions: &[Action]) -> Vec<(Lane, usize)> {
    let pull = |action: &Action| match action {
        Action::Pull { lane, max, .. } => Some((*lane, *max)),
        _ => None,
    };
    actions.iter().filter_map(pull).collect()
}

pub(super) fn reads(actions: &[Action]) -> Option<SlotId> {
    actions.iter().find_map(|action| match action {
        Action::ReadCheckpoint { slot, .. } => Some(*slot),
        _ => None,
    })
}

pub(super) fn cancels(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::CancelGeneration { .. }))
}

pub(super) fn publishes_anything(actions: &[Action]) -> bool {
    actions.iter().any(|action| {
        matches!(
            action,
            Action::PublishResult { .. } | Action::WriteCheckpoint { .. } | Action::SendTokens(_)
        )
    })
}
