//! People who have batches and completions answered: they upload, submit, cancel and raise budgets, by the calls that the
//! command line makes or over HTTP, and ask again for as long as nobody answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{
    BatchCreate, BatchOptions, BatchRef, BatchSet, BatchState, BatchView, RefusalCode, Reply,
};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TenantId, TimeMs, UsdMicro, codec};

use super::check::{id_of, tenant};
use super::http::{Answer, Client, Question};
use super::inputs;
use super::line::Line;
use super::network::Network;
use super::scenario::{BatchPlan, CompletionPlan};

const ASK_AGAIN: Duration = Duration::from_millis(500);
const JSON: &str = "content-type: application/json\r\n";
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

/// Has a single completion answered over HTTP, or goes away.
pub(super) async fn complete(network: Network, client: Client, number: usize, plan: CompletionPlan) {
    tokio::time::sleep(Duration::from_millis(plan.at_ms)).await;
    let seed = inputs::completion_seed(number);
    let body = json!({
        "prompt": "tell me", "max_tokens": inputs::COMPLETION_TOKENS, "seed": seed, "stream": plan.streamed,
    });
    let body = body.to_string();
    let question = Question { method: "POST", path: "/v1/completions", headers: JSON, body: &body };
    let began = tokio::time::Instant::now();
    while began.elapsed() < COMPLETION_WITHIN {
        let answer = match plan.leaves_after_ms {
            Some(ms) => match tokio::time::timeout(Duration::from_millis(ms), client.once(question)).await {
                Ok(answer) => answer,
                Err(_) => return,
            },
            None => client.once(question).await,
        };
        match answer {
            Some((200, body)) => {
                let told = if plan.streamed { streamed(&body) } else { whole(&body) };
                match told {
                    Told::Text { id, text } => {
                        let now_ms = network.now_ms();
                        let (now, calm) = (TimeMs(now_ms), TimeMs(now_ms - network.calm_ms()));
                        return network.check().completed(&id, &text, seed, now, calm);
                    }
                    Told::Failed => return,
                    Told::Broken => {}
                }
            }
            Some((429 | 503 | 504, _)) | None => {}
            Some((404, body)) if body.contains("model") => {}
            Some((status, body)) => {
                return network.check().fail(format!("G1: a completion was answered with {status}: {body}"));
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// What a caller was told.
enum Told {
    Text {
        id: String,
        text: String,
    },
    Failed,
    /// The connection ended before the answer did.
    Broken,
}

fn whole(body: &str) -> Told {
    let Ok(body) = serde_json::from_str::<Value>(body) else { return Told::Broken };
    let (id, text) = (body["id"].as_str(), body["choices"][0]["text"].as_str());
    match id.zip(text) {
        Some((id, text)) => Told::Text { id: id.to_owned(), text: text.to_owned() },
        None => Told::Failed,
    }
}

fn streamed(body: &str) -> Told {
    let (mut id, mut text) = (String::new(), String::new());
    for event in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if event == "[DONE]" {
            return Told::Text { id, text };
        }
        let Ok(event) = serde_json::from_str::<Value>(event) else { return Told::Broken };
        if event.get("error").is_some() {
            return Told::Failed;
        }
        event["id"].as_str().unwrap_or_default().clone_into(&mut id);
        text.push_str(event["choices"][0]["text"].as_str().unwrap_or_default());
    }
    Told::Broken
}

/// Has one batch answered over HTTP, and reads its files.
pub(super) async fn over_http(network: Network, client: Client, place: usize, plan: BatchPlan) {
    tokio::time::sleep(Duration::from_millis(plan.at_ms)).await;
    let id = id_of(place, &TenantId::default_tenant());
    let text = inputs::lines(place, &plan);
    let form = format!(
        "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--edge\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{text}\r\n--edge--\r\n"
    );
    let headers = "content-type: multipart/form-data; boundary=edge\r\n";
    let upload = Question { method: "POST", path: "/v1/files", headers, body: &form };
    let file = json_of(&network, "an upload", client.ask(upload).await);
    let body = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h",
        "ternfleet": {"priority": plan.priority},
    });
    let (headers, body) = (format!("{JSON}idempotency-key: batch-{place}\r\n"), body.to_string());
    let create = Question { method: "POST", path: "/v1/batches", headers: &headers, body: &body };
    let made = json_of(&network, "a creation", client.ask(create).await);
    if made["id"].as_str() != Some(id.as_str()) {
        network.check().fail(format!("J1: {id} was accepted as {made}"));
    }
    network.check().accepted(&id);
    let path = format!("/v1/batches/{id}");
    if let Some(cancel_at_ms) = plan.cancel_at_ms {
        tokio::time::sleep(Duration::from_millis(cancel_at_ms.saturating_sub(plan.at_ms))).await;
        network.check().ending(&id);
        let path = format!("{path}/cancel");
        // A refusal says that the batch has ended already.
        client.ask(Question { method: "POST", path: &path, headers: JSON, body: "" }).await;
    }
    let ended = loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let batch = json_of(&network, "a look", client.ask(get(&path)).await);
        if !matches!(
            batch["status"].as_str(),
            Some("validating" | "in_progress" | "finalizing" | "cancelling")
        ) {
            break batch;
        }
    };
    let mut seen = BTreeSet::new();
    for file in ["output_file_id", "error_file_id"] {
        let Some(file) = ended[file].as_str() else { continue };
        let path = format!("/v1/files/{file}/content");
        let (status, content) = client.ask(get(&path)).await;
        if status != 200 {
            network.check().fail(format!("G1: the content of {file} was answered with {status}: {content}"));
        }
        for line in content.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let number = line["custom_id"].as_str().and_then(|id| id.strip_prefix("line-")?.parse().ok());
            let text = line["response"]["body"]["choices"][0]["text"].as_str();
            if let (Some(index), Some(text)) = (number, text) {
                network.check().written(place, plan.tokens_max as usize, index, text);
            }
            if number.is_some() && !seen.insert(number) {
                network.check().fail(format!("G2: {id} holds two answers to {}", line["custom_id"]));
            }
        }
    }
}

fn get(path: &str) -> Question<'_> {
    Question { method: "GET", path, headers: "", body: "" }
}

/// The body of an answer that must be good.
fn json_of(network: &Network, what: &str, (status, body): Answer) -> Value {
    if status != 200 {
        network.check().fail(format!("G1: {what} was answered with {status}: {body}"));
    }
    serde_json::from_str(&body).unwrap_or_default()
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
