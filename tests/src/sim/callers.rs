//! People who have batches answered: they upload, submit, cancel and raise budgets by the calls that the command line
//! makes, and ask again for as long as nobody answers.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{
    BatchCreate, BatchOptions, BatchRef, BatchSet, BatchState, BatchView, Generation, JobCreate, JobResult,
    Prompt, RefusalCode, Reply,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{BatchId, Clock, JobKey, UsdMicro, codec};

use super::check::{id_of, tenant};
use super::inputs;
use super::line::Line;
use super::scenario::BatchPlan;

const ASK_AGAIN: Duration = Duration::from_millis(500);
const COMPLETION_TOKENS: u32 = 20;
const COMPLETION_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Has one batch answered.
pub(super) async fn run(line: Line, place: usize, plan: BatchPlan) {
    tokio::time::sleep(Duration::from_millis(plan.at_ms)).await;
    let (tenant, network) = (tenant(plan.tenant), line.network.clone());
    let id = id_of(place, &tenant);
    let bus = line.bus();
    let object = format!("input-{place}.jsonl");
    let text = inputs::lines(place, &plan);
    loop {
        let made = bus.ensure_objects(&table::files_spec(&tenant, 1)).await;
        let content = Box::pin(std::io::Cursor::new(text.clone().into_bytes()));
        if made.is_ok() && bus.object_put(&table::files_bucket(&tenant), &object, content).await.is_ok() {
            break;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    let create = BatchCreate {
        tenant: tenant.clone(),
        idempotency_key: format!("batch-{place}"),
        input_object: object,
        name: None,
        endpoint: None,
        options: BatchOptions {
            completion_window_ms: plan.window_ms,
            budget_usd_micro: plan.budget_usd_micro.map(UsdMicro),
            priority: plan.priority,
            ..BatchOptions::default()
        },
        metadata: Default::default(),
        traceparent: None,
        work: None,
    };
    loop {
        match ask::<BatchView>(&bus, ApiVerb::BatchCreate, &create).await {
            Ok(view) if view.id == id => break,
            Ok(view) => network.check().fail(format!("J1: {id} was accepted as {}", view.id)),
            Err(refused) => network.check().fail(format!("J1: {id} was refused: {refused}")),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    network.check().accepted(&id);
    let this = BatchRef { tenant: tenant.clone(), id: id.clone() };
    if let Some(cancel_at_ms) = plan.cancel_at_ms {
        tokio::time::sleep(Duration::from_millis(cancel_at_ms.saturating_sub(plan.at_ms))).await;
        network.check().ending(&id);
        // A refusal says that the batch has ended already.
        let _ = ask::<BatchView>(&bus, ApiVerb::BatchCancel, &this).await;
    }
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let Ok(view) = ask::<BatchView>(&bus, ApiVerb::BatchGet, &this).await else { continue };
        if view.state.is_terminal() {
            return;
        }
        if let (BatchState::PausedBudget, Some(budget)) = (view.state, view.options.budget_usd_micro) {
            let more = BatchSet {
                tenant: tenant.clone(),
                id: id.clone(),
                budget_usd_micro: Some(UsdMicro(budget.0 * 4 + 10_000)),
                deadline: None,
                priority: None,
            };
            let _ = ask::<BatchView>(&bus, ApiVerb::BatchSet, &more).await;
        }
    }
}

/// Asks for a completion outside of any file, as the gateway does, until it is answered or its time is over.
pub(super) async fn complete(line: Line, clock: Clock, number: usize, at_ms: u64) {
    tokio::time::sleep(Duration::from_millis(at_ms)).await;
    let (network, bus) = (line.network.clone(), line.bus());
    let batch: BatchId = format!("cmpl-{number}").parse().expect("because letters and digits make an id");
    let key = JobKey { batch: batch.clone(), index: 0 };
    let Ok(mut answers) = bus.subscribe(&table::done(&key)).await else { return };
    let seed = inputs::completion_seed(number);
    let mut create = JobCreate {
        tenant: tenant(0),
        batch,
        line: ternfleet_proto::message::Line::new(None, Endpoint::Completions, None),
        generation: Generation {
            prompt: Prompt::Text("tell me".to_owned()),
            max_tokens: Some(COMPLETION_TOKENS),
            seed,
            ..Generation::default()
        },
        deadline: clock.wall().plus(COMPLETION_WITHIN),
        traceparent: None,
        again: false,
        wait_for_model: false,
    };
    let began = tokio::time::Instant::now();
    while began.elapsed() < COMPLETION_WITHIN {
        let asked =
            bus.request(&table::api(ApiVerb::JobCreate), codec::encode(&create), ASK_AGAIN * 10).await;
        // A question that nobody answered may have been heard.
        create.again |= asked.is_ok();
        match tokio::time::timeout(ASK_AGAIN * 4, answers.next()).await {
            Ok(Some(note)) => {
                if let Ok(result) = codec::decode::<JobResult>(&note.payload) {
                    network.check().completed(&result, seed, COMPLETION_TOKENS as usize);
                }
                return;
            }
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

/// Asks until somebody answers.
async fn ask<A: DeserializeOwned>(
    bus: &Arc<dyn Bus>,
    verb: ApiVerb,
    question: &(impl Serialize + Sync),
) -> Result<A, String> {
    loop {
        let payload = codec::encode(question);
        if let Ok(answer) = bus.request(&table::api(verb), payload, Duration::from_secs(5)).await {
            match codec::decode::<Reply<A>>(&answer).map_err(|fault| fault.to_string())? {
                Ok(answer) => return Ok(answer),
                Err(refusal) if refusal.code != RefusalCode::Unavailable => return Err(refusal.message),
                Err(_) => {}
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
