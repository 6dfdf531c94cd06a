//! A server with OpenAI's API behind a worker of a simulation: in the worker's process, over connections in memory, with the
//! letters of the simulated engine at the worker's speed. It ends with the process, as one that the worker started does.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use ternfleet_cloud::http::Dial;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::chance::mix;
use super::generator::{Pace, ids_of};

const SOCKET_BYTES: usize = 64 << 10;
/// A server that breaks off does so after so many tokens.
const BROKEN_AFTER: usize = 3;
/// How often a stream looks whether its server has died.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PROMPT: &str = "tell me";

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It takes no connections, and those that it had are broken.
    Dead,
    /// It takes requests, and sends nothing.
    Hangs,
    /// 429.
    Busy,
    /// Every third stream, about, breaks after some tokens.
    BreaksOff,
}

/// A server that runs: its fate, and how many answers are under way.
#[derive(Debug)]
struct Server {
    pace: Arc<Pace>,
    running: Mutex<usize>,
    streams: AtomicU64,
}

impl Server {
    fn misbehaves(&self, how: Misbehaviour) -> bool {
        self.pace.server.lock().expect("because no holder of this lock panics").contains(&how)
    }

    fn running(&self, change: impl FnOnce(&mut usize)) -> usize {
        let mut running = self.running.lock().expect("because no holder of this lock panics");
        change(&mut running);
        *running
    }

    /// Until the next token of one of the answers, which share the speed; an error if the server has died.
    async fn next_token(&self) -> io::Result<()> {
        let tok_s = self.pace.tok_s.load(Ordering::Relaxed).max(1);
        let mut left = Duration::from_millis(1_000 * self.running(|_| {}).max(1) as u64 / tok_s);
        loop {
            if self.misbehaves(Misbehaviour::Dead) {
                return Err(io::Error::other("dead"));
            }
            let hangs = self.misbehaves(Misbehaviour::Hangs);
            if left.is_zero() && !hangs {
                return Ok(());
            }
            let part = if hangs { LOOK_EVERY } else { left.min(LOOK_EVERY) };
            tokio::time::sleep(part).await;
            if !hangs {
                left -= part;
            }
        }
    }
}

/// Counts an answer that is under way for as long as it lives.
struct Running(Arc<Server>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running(|running| *running -= 1);
    }
}

struct Door(mpsc::UnboundedReceiver<DuplexStream>);

impl axum::serve::Listener for Door {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(connection) => (connection, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a server in this process; answers the way to it.
pub(super) fn start(pace: Arc<Pace>) -> Dial {
    let (door, connections) = mpsc::unbounded_channel();
    let server = Arc::new(Server { pace, running: Mutex::new(0), streams: AtomicU64::new(0) });
    let router = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(|| async { refused("no chats here") }))
        .with_state(Arc::clone(&server));
    tokio::spawn(async move {
        let _ = axum::serve(Door(connections), router).await;
    });
    Arc::new(move || {
        if server.misbehaves(Misbehaviour::Dead) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(SOCKET_BYTES);
        door.send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(ours)
    })
}

async fn models() -> Json<Value> {
    let model = json!({ "id": "model", "object": "model", "owned_by": "vllm", "max_model_len": 4096 });
    Json(json!({ "object": "list", "data": [model] }))
}

fn refused(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": { "message": why, "code": 400 } }))).into_response()
}

/// What a prompt that was continued ends with: the letters that stand after ours and its number.
fn kept(prompt: &str) -> &str {
    let rest = prompt.strip_prefix(PROMPT).unwrap_or_default();
    rest.strip_prefix(' ').map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

async fn completions(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return refused("no JSON") };
    let able = ["max_tokens", "temperature", "top_p", "seed", "model", "prompt", "stream", "stream_options"];
    let able = |name: &String| able.contains(&name.as_str()) || name == "return_token_ids";
    if let Some(unknown) = body.as_object().and_then(|body| body.keys().find(|name| !able(name))) {
        return refused(&format!("{unknown} is not supported"));
    }
    let prompt = match &body["prompt"] {
        Value::String(text) => text.clone(),
        Value::Array(ids) => {
            ids.iter().filter_map(|id| char::from_u32(id.as_u64()?.try_into().ok()?)).collect()
        }
        _ => return refused("no prompt"),
    };
    if server.misbehaves(Misbehaviour::Busy) {
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], "busy").into_response();
    }
    let prompt_ids: Vec<u32> = prompt.chars().map(u32::from).collect();
    let kept = kept(&prompt).len();
    let left = body["max_tokens"].as_u64().unwrap_or(16) as usize;
    let seed = body["seed"].as_i64().unwrap_or(0) as u64;
    let mut ids = ids_of(seed, left + kept);
    let ids = ids.split_off(kept.min(ids.len()));
    let usage = json!({ "prompt_tokens": prompt_ids.len(), "completion_tokens": ids.len() });
    let choice = |ids: &[u32], first: bool, ends: bool| {
        let text: String = ids.iter().filter_map(|id| char::from_u32(*id)).collect();
        let mut choice = json!({
            "index": 0, "text": text, "token_ids": ids, "finish_reason": ends.then_some("stop"),
        });
        if first {
            choice["prompt_token_ids"] = json!(prompt_ids);
        }
        json!({ "id": "x", "choices": [choice] })
    };
    server.running(|running| *running += 1);
    let running = Running(Arc::clone(&server));
    if body["stream"] != true {
        for _ in 0..ids.len() {
            if server.next_token().await.is_err() {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            }
        }
        let mut whole = choice(&ids, true, true);
        whole["usage"] = usage;
        return Json(whole).into_response();
    }
    let breaks = mix(server.streams.fetch_add(1, Ordering::Relaxed)).is_multiple_of(3);
    let mut events: Vec<Option<Value>> =
        (0..ids.len()).map(|n| Some(choice(&ids[n..=n], n == 0, n + 1 == ids.len()))).collect();
    if ids.is_empty() {
        events.push(Some(choice(&[], true, true)));
    }
    events.push(Some(json!({ "choices": [], "usage": usage })));
    events.push(None);
    let stream = futures::stream::unfold(
        (events.into_iter(), 0, running),
        move |(mut events, n, running)| async move {
            let event = events.next()?;
            let is_token = event.as_ref().is_some_and(|event| event.get("usage").is_none());
            let server = &running.0;
            let said = match is_token {
                true => server.next_token().await,
                false => Ok(()),
            };
            let breaks = breaks && n >= BROKEN_AFTER && server.misbehaves(Misbehaviour::BreaksOff);
            let said = said.and_then(|()| if breaks { Err(io::Error::other("cut")) } else { Ok(()) });
            let text = match event {
                Some(event) => format!("data: {event}\n\n"),
                None => "data: [DONE]\n\n".to_owned(),
            };
            Some((said.map(|()| text), (events, n + 1, running)))
        },
    );
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}
