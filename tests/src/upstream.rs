//! A server with OpenAI's API that makes its letters up, and misbehaves on demand in every way that servers do.
//!
//! The letter at a place depends on the seed and the place alone, counted from the beginning of the prompt: so an output
//! that is resumed by ids comes to the same text as one that was never interrupted.

#![allow(clippy::unwrap_used, missing_docs)] // A helper of tests: it may panic as they may.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// What goes wrong with a streamed request, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 429, with a second to wait.
    Busy,
    /// 500.
    Failing,
    /// 400, by the prompt's length.
    TooLong,
    /// An event that is no JSON.
    NoJson,
    /// An answer without choices.
    NoChoices,
    /// The connection breaks after so many tokens.
    Half(usize),
    /// The stream ends in good order after so many tokens, without a reason.
    NoEnd(usize),
    /// An error instead of the rest after so many tokens.
    Error(usize),
    /// It ends for a reason that no answer should have.
    OddReason,
}

#[derive(Debug)]
pub struct Manner {
    /// Tells ids, and takes them as prompts.
    pub ids: bool,
    /// Between two tokens.
    pub step: Duration,
    pub model: &'static str,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner { ids: true, step: Duration::ZERO, model: "letters" }
    }
}

#[derive(Debug, Default)]
struct Now {
    faults: VecDeque<Fault>,
    /// No token comes, although its models are listed.
    hangs: bool,
    /// Lists another model than at the start.
    changed: bool,
    /// Bodies of streamed requests.
    asked: Vec<Value>,
}

/// A running server.
#[derive(Debug)]
pub struct TestServer {
    pub address: SocketAddr,
    manner: Arc<Manner>,
    now: Arc<Mutex<Now>>,
    /// Its listener, and what ends the answers that are under way.
    task: Option<(tokio::task::JoinHandle<()>, CancellationToken)>,
}

#[derive(Clone)]
struct Shared {
    manner: Arc<Manner>,
    now: Arc<Mutex<Now>>,
    death: CancellationToken,
}

impl TestServer {
    pub async fn start(manner: Manner) -> io::Result<TestServer> {
        let (manner, now) = (Arc::new(manner), Arc::default());
        let mut server = TestServer { address: ([127, 0, 0, 1], 0).into(), manner, now, task: None };
        server.revive().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The next streamed requests fare so.
    pub fn will(&self, faults: impl IntoIterator<Item = Fault>) {
        self.now.lock().unwrap().faults.extend(faults);
    }

    pub fn hang(&self, hangs: bool) {
        self.now.lock().unwrap().hangs = hangs;
    }

    pub fn change(&self) {
        self.now.lock().unwrap().changed = true;
    }

    /// Bodies of the streamed requests so far.
    pub fn asked(&self) -> Vec<Value> {
        self.now.lock().unwrap().asked.clone()
    }

    /// Breaks every connection, and takes none.
    pub async fn die(&mut self) {
        if let Some((task, death)) = self.task.take() {
            death.cancel();
            task.abort();
            let _ = task.await;
        }
    }

    /// Takes connections at its address again.
    pub async fn revive(&mut self) -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let death = CancellationToken::new();
        let shared = Shared { manner: self.manner.clone(), now: self.now.clone(), death: death.clone() };
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/version", get(|| async { Json(json!({ "version": "1.2" })) }))
            .route("/v1/completions", post(completions))
            .route("/v1/chat/completions", post(chat))
            .with_state(shared);
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        self.task = Some((task, death));
        Ok(())
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some((task, death)) = &self.task {
            death.cancel();
            task.abort();
        }
    }
}

async fn models(State(shared): State<Shared>) -> Json<Value> {
    let root = if shared.now.lock().unwrap().changed { "other" } else { "letters" };
    let model = json!({
        "id": shared.manner.model, "object": "model", "owned_by": "vllm", "root": root, "max_model_len": 4096,
    });
    Json(json!({ "object": "list", "data": [model] }))
}

async fn completions(State(shared): State<Shared>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt: Option<Vec<u32>> = match &body["prompt"] {
        Value::String(text) => Some(text.bytes().map(u32::from).collect()),
        Value::Array(ids) if shared.manner.ids => {
            Some(ids.iter().filter_map(|id| id.as_u64()).map(|id| id as u32).collect())
        }
        _ => None,
    };
    match prompt {
        Some(prompt) => answer(shared, body, prompt, false).await,
        None => refused("the prompt must be a string"),
    }
}

async fn chat(State(shared): State<Shared>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let text: String =
        body["messages"].as_array().unwrap().iter().filter_map(|one| one["content"].as_str()).collect();
    answer(shared, body, text.bytes().map(u32::from).collect(), true).await
}

fn refused(why: &str) -> Response {
    let body = json!({ "error": { "message": why, "type": "BadRequestError", "code": 400 } });
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// The letter at a place.
pub fn letter(seed: u64, place: usize) -> u32 {
    let mixed =
        (seed ^ (place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    u32::from(b'a') + ((mixed >> 33) % 26) as u32
}

/// The text that a prompt of so many bytes gets.
pub fn text(seed: u64, prompt: usize, tokens: usize) -> String {
    (prompt..prompt + tokens).map(|place| char::from(letter(seed, place) as u8)).collect()
}

async fn answer(shared: Shared, body: Value, prompt: Vec<u32>, is_chat: bool) -> Response {
    for unknown in
        ["response_format", "structured_outputs", "tools", "logprobs", "logit_bias", "top_k", "min_p"]
    {
        if !body[unknown].is_null() {
            return refused(&format!("{unknown} is not supported"));
        }
    }
    if body["n"].as_u64().unwrap_or(1) > 1 {
        return refused("n must be 1");
    }
    let stream = body["stream"] == true;
    let (fault, hangs) = {
        let mut now = shared.now.lock().unwrap();
        if stream {
            now.asked.push(body.clone());
        }
        (if stream { now.faults.pop_front() } else { None }, now.hangs)
    };
    if hangs {
        shared.death.cancelled().await;
    }
    let tokens = body["max_tokens"].as_u64().unwrap_or(16) as usize;
    let seed = body["seed"].as_i64().unwrap_or(0) as u64;
    let with_ids = shared.manner.ids && body["return_token_ids"] == true;
    match fault {
        Some(Fault::Busy) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], "busy").into_response();
        }
        Some(Fault::Failing) => return (StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response(),
        Some(Fault::TooLong) => {
            return refused("This model's maximum context length is 4096 tokens, you asked for more");
        }
        _ => {}
    }
    let usage = json!({ "prompt_tokens": prompt.len(), "completion_tokens": tokens });
    let say = Say { is_chat, with_ids, prompt: prompt.clone() };
    if !stream {
        let ids: Vec<u32> = (0..tokens).map(|n| letter(seed, prompt.len() + n)).collect();
        let mut whole = say.said(&ids, true, Some("length"));
        if is_chat {
            let delta = whole["choices"][0].as_object_mut().unwrap().remove("delta").unwrap();
            whole["choices"][0]["message"] = delta;
        }
        whole["usage"] = usage;
        return Json(whole).into_response();
    }
    let mut events: Vec<Result<String, io::Error>> = Vec::new();
    let event = |value: &Value| Ok(format!("data: {value}\n\n"));
    let last = match fault {
        Some(Fault::Half(most) | Fault::NoEnd(most) | Fault::Error(most)) => most.min(tokens),
        _ => tokens,
    };
    for n in 0..last {
        let ends = n + 1 == tokens;
        let reason = if fault == Some(Fault::OddReason) { "content_filter" } else { "length" };
        events.push(event(&say.said(&[letter(seed, prompt.len() + n)], n == 0, ends.then_some(reason))));
    }
    match fault {
        Some(Fault::Half(_)) => events.push(Err(io::Error::other("cut"))),
        Some(Fault::NoEnd(_)) => events.push(Ok("data: [DONE]\n\n".to_owned())),
        Some(Fault::Error(_)) => events.push(event(&json!({ "error": { "message": "boom", "code": 500 } }))),
        Some(Fault::NoJson) => events = vec![Ok("data: {no json\n\n".to_owned())],
        Some(Fault::NoChoices) => events = vec![event(&json!({ "surprise": true }))],
        _ => {
            events.push(event(&json!({ "choices": [], "usage": usage })));
            events.push(Ok("data: [DONE]\n\n".to_owned()));
        }
    }
    let (step, death) = (shared.manner.step, shared.death);
    let paced = futures::stream::iter(events).then(move |event| {
        let death = death.clone();
        async move {
            tokio::select! {
                () = death.cancelled() => Err(io::Error::other("dead")),
                () = tokio::time::sleep(step), if !step.is_zero() => event,
                () = std::future::ready(()), if step.is_zero() => event,
            }
        }
    });
    let body = Body::from_stream(paced);
    ([("content-type", "text/event-stream")], body).into_response()
}

struct Say {
    is_chat: bool,
    with_ids: bool,
    prompt: Vec<u32>,
}

impl Say {
    fn said(&self, ids: &[u32], first: bool, reason: Option<&str>) -> Value {
        let text: String = ids.iter().map(|&id| char::from(id as u8)).collect();
        let mut choice = match self.is_chat {
            true => json!({ "index": 0, "delta": { "content": text }, "finish_reason": reason }),
            false => json!({ "index": 0, "text": text, "finish_reason": reason }),
        };
        if self.with_ids {
            choice["token_ids"] = json!(ids);
            if first {
                choice["prompt_token_ids"] = json!(self.prompt);
            }
        }
        json!({ "id": "x", "choices": [choice] })
    }
}
