//! A worker of a simulation: the shell that ships, around an engine on simulated time.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::Clock;
use ternfleet_proto::message::RatePoint;
use ternfleet_worker::calibrate::Calibration;
use ternfleet_worker::engine_thread::EngineThread;
use ternfleet_worker::language::Language;
use ternfleet_worker::upstream::Upstream;
use ternfleet_worker::{Computer, Identity, LoadedModel, Options, Parts};
use tokio_util::sync::CancellationToken;

use super::generator::{Pace, STEP, SimGenerator};
use super::line::Line;
use super::scenario::WorkerPlan;
use super::upstream;

pub(super) async fn run(
    line: Line,
    place: usize,
    life: u32,
    (pod, host): (String, String),
    plan: WorkerPlan,
    pace: Arc<Pace>,
    clock: Clock,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let options = Options {
        slots: Some(plan.slots),
        price_usd_per_hour: plan.price_usd_micro_per_hour as f64 / 1e6,
        checkpoint_tokens: 8,
        calibrate_ms: 0,
        upstream_silence_s: 5,
        ..Options::default()
    };
    let identity = Identity {
        worker: format!("w{place}-{life}").parse().expect("because w and digits make an id"),
        host,
        pod,
        started_at: clock.wall(),
    };
    let (computer, model) = match plan.drives_server {
        true => match Upstream::begin_within(upstream::start(pace), &options, &shutdown).await? {
            Some((server, model)) => (Computer::Server(server), model),
            None => return Ok(()),
        },
        false => engine(&line, &plan, pace),
    };
    let parts = Parts::new(clock, identity, computer, model);
    ternfleet_worker::run_with(line.bus(), options, parts, shutdown).await
}

fn engine(line: &Line, plan: &WorkerPlan, pace: Arc<Pace>) -> (Computer, LoadedModel) {
    let said = (plan.rate_tok_s * plan.claims_percent) as f64 / 100.0;
    let model = LoadedModel {
        name: "model".to_owned(),
        digest: "digest".to_owned(),
        numerics: "numerics".to_owned(),
        language: Some(Language::Bytes),
        sampling: Default::default(),
        context: 4096,
        slots: plan.slots,
        abilities: Default::default(),
        kv_pages: 64,
        page_tokens: 16,
        threads: 1,
        isa: "simulated".to_owned(),
        device: "cpu",
        load: Duration::ZERO,
        calibration: Calibration {
            decode: vec![RatePoint { batch: plan.slots as u32, tok_s: said }],
            ..Calibration::default()
        },
        canary: "c1-same".to_owned(),
        notes: Vec::new(),
    };
    let engine = EngineThread::simulated(Box::new(SimGenerator::new(pace, line.network.clone())), STEP);
    (Computer::Engine(engine), model)
}
