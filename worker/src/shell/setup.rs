//! From options and a loaded model to what the core is told.

use std::time::Duration;

use ternfleet_proto::message::{Heartbeat, WorkerCounters, WorkerState};
use ternfleet_proto::{LeaderRevision, TimeMs};

use crate::core::Config;
use crate::identity::Identity;
use crate::model::LoadedModel;
use crate::options::Options;

pub(super) fn config(
    options: &Options,
    identity: &Identity,
    model: &LoadedModel,
    keeps_text: bool,
) -> Config {
    let profile = Heartbeat {
        worker: identity.worker.clone(),
        pod: identity.pod.clone(),
        host: identity.host.clone(),
        pod_class: options.pod_class.clone(),
        price_usd_micro_per_hour: options.price(),
        state: WorkerState::Ready,
        model: model.name.clone(),
        model_digest: model.digest.clone(),
        numerics: model.numerics.clone(),
        context_tokens: model.context as u32,
        slots: model.slots as u32,
        slots_in_use: 0,
        kv_pages: model.kv_pages as u32,
        kv_pages_free: model.kv_pages as u32,
        checkpoint_age_ms: 0,
        threads: model.threads as u32,
        isa: model.isa.clone(),
        calibration: model.calibration.decode.clone(),
        prefill_tok_s: model.calibration.prefill_tok_s,
        decode_tok_s: model.calibration.decode_tok_s(),
        counters: WorkerCounters::default(),
        leader_seen: LeaderRevision::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: identity.started_at,
        at: TimeMs::default(),
        mono: ternfleet_proto::MonoMs::default(),
        running: Vec::new(),
        needs_queues: false,
        canary: model.canary.clone(),
        thread_scaling: model.calibration.thread_scaling.clone(),
        abilities: model.abilities,
    };
    Config {
        profile,
        slots: model.slots,
        kv_pages: model.kv_pages,
        page_tokens: model.page_tokens,
        checkpoint_tokens: options.checkpoint_tokens,
        checkpoint_every: Duration::from_millis(options.checkpoint_ms),
        heartbeat_every: Duration::from_millis(options.heartbeat_ms),
        lease_every: Duration::from_secs(2),
        held_max: Duration::from_secs(10),
        drain_max: Duration::from_millis(options.drain_ms),
        pull_expires: Duration::from_secs(5),
        keeps_text,
    }
}
