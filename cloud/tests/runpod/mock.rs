//! A server that behaves as RunPod's pods API is documented to, with faults by order: each request takes the next
//! fault of its queue. It keeps what was rented, so that a test can count.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    None,
    /// Answers with this and does nothing.
    Answer(u16, &'static str),
    /// As above, with `Retry-After`.
    RetryAfter(u16, u64),
    /// Does it, and then says nothing until the client gives up.
    DoneButSilent,
    /// Does it, and then answers with this status.
    DoneBut(u16),
    /// Does it twice (a proxy that repeated the request), and closes without an answer.
    DoneTwiceAndCut,
    /// Does it only after the next list was read: the pod shows late.
    DoneLate,
    /// Does it, and answers 201 with something else than a pod.
    DoneWithNonsense,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) pods: Vec<Value>,
    pub(crate) bodies: Vec<Value>,
    pub(crate) requests: Vec<(String, String)>,
    pub(crate) authorizations: Vec<String>,
    pub(crate) creations: VecDeque<Fault>,
    pub(crate) lists: VecDeque<Fault>,
    pub(crate) deletions: VecDeque<Fault>,
    /// Pods that show after the next list.
    pub(crate) late: Vec<Value>,
    pub(crate) page: Option<usize>,
    /// Ignores the cursor and repeats the first page forever.
    pub(crate) deaf_to_cursors: bool,
    pub(crate) next: u32,
}

pub(crate) struct Mock {
    pub(crate) base: String,
    pub(crate) state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mock {
    pub(crate) async fn start(state: State) -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _ = serve(stream, &shared).await;
                });
            }
        });
        Mock { base, state, task }
    }

    pub(crate) fn alive(&self, name: &str) -> usize {
        self.state.lock().unwrap().pods.iter().filter(|pod| pod["name"] == name).count()
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|(m, _)| m == method).count()
    }
}

/// A pod as the documents show it.
pub(crate) fn pod(id: &str, body: &Value) -> Value {
    json!({
        "id": id, "name": body["name"], "image": body["image"], "args": "", "disk": body["disk"], "ports": [],
        "env": {}, "registry": null, "status": "PROVISIONING", "actions": ["stop", "terminate"], "mounts": {},
        "gpu": body["gpu"], "cloud": "SECURE", "dataCenterId": "US-KS-2", "cudaVersion": null, "ssh": {},
        "template": null, "cost": 0.44, "locked": false, "globalNetworking": {"enabled": false}, "runtime": null,
        "createdAt": format!("2026-06-01T12:00:{:02}Z", id.len() % 60), "startedAt": null
    })
}

async fn serve(mut stream: TcpStream, shared: &Mutex<State>) -> std::io::Result<()> {
    let Some((method, path, authorization, body)) = read(&mut stream).await? else { return Ok(()) };
    let answer = {
        let mut state = shared.lock().unwrap();
        state.requests.push((method.clone(), path.clone()));
        state.authorizations.push(authorization);
        act(&mut state, &method, &path, &body)
    };
    match answer {
        Act::Reply(status, headers, body) => {
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}connection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await
        }
        Act::Stream(text) => {
            let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(text.as_bytes()).await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        }
        Act::Silence => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        }
        Act::Cut => Ok(()),
    }
}

enum Act {
    Reply(u16, String, String),
    /// Server-sent events, and then nothing for a long time.
    Stream(String),
    Silence,
    Cut,
}

fn reply(status: u16, body: &Value) -> Act {
    Act::Reply(status, String::new(), body.to_string())
}

fn problem(status: u16, detail: &str) -> Act {
    reply(status, &json!({"title": "Problem", "status": status, "detail": detail, "errors": []}))
}

fn act(state: &mut State, method: &str, path: &str, body: &Value) -> Act {
    match (method, path.split('?').next().unwrap_or(path)) {
        ("POST", "/v2/pods") => {
            state.bodies.push(body.clone());
            let fault = state.creations.pop_front().unwrap_or(Fault::None);
            let make = |state: &mut State| {
                state.next += 1;
                pod(&"p".repeat(state.next as usize), body)
            };
            match fault {
                Fault::Answer(status, detail) => problem(status, detail),
                Fault::RetryAfter(status, seconds) => {
                    Act::Reply(status, format!("retry-after: {seconds}\r\n"), "{}".to_owned())
                }
                Fault::DoneLate => {
                    let made = make(state);
                    state.late.push(made);
                    problem(504, "upstream timed out")
                }
                Fault::DoneTwiceAndCut => {
                    let (one, two) = (make(state), make(state));
                    state.pods.extend([one, two]);
                    Act::Cut
                }
                done => {
                    let made = make(state);
                    state.pods.push(made.clone());
                    match done {
                        Fault::DoneButSilent => Act::Silence,
                        Fault::DoneBut(status) => problem(status, "failed upstream"),
                        Fault::DoneWithNonsense => reply(201, &json!({"ok": true})),
                        _ => reply(201, &made),
                    }
                }
            }
        }
        ("GET", "/v2/pods") => {
            let fault = state.lists.pop_front().unwrap_or(Fault::None);
            if let Fault::Answer(status, detail) = fault {
                return problem(status, detail);
            }
            let cursor = path.split_once("cursor=").map_or(0, |(_, cursor)| cursor.parse().unwrap_or(0));
            let from = if state.deaf_to_cursors { 0 } else { cursor };
            let size = state.page.unwrap_or(usize::MAX);
            let pods: Vec<Value> = state.pods.iter().skip(from).take(size).cloned().collect();
            let next = from.saturating_add(size);
            let page = if next < state.pods.len() {
                json!({"pods": pods, "pagination": {"nextCursor": next.to_string()}})
            } else {
                json!({"pods": pods})
            };
            let late = std::mem::take(&mut state.late);
            state.pods.extend(late);
            reply(200, &page)
        }
        ("GET", "/v2/pods/p/logs") => {
            let event = |source: &str, line: &str| {
                let data = json!({"ts": "2026-06-01T12:02:03Z", "source": source, "line": line});
                format!("id: 2026-06-01T12:02:03Z\ndata: {data}\n\n")
            };
            let lines =
                [("system", "pull"), ("system", "start container"), ("container", "worker: no model")];
            Act::Stream(lines.map(|(source, line)| event(source, line)).concat())
        }
        ("DELETE", path) => {
            let id = path.rsplit('/').next().unwrap_or("").to_owned();
            let fault = state.deletions.pop_front().unwrap_or(Fault::None);
            if let Fault::Answer(status, detail) = fault {
                return problem(status, detail);
            }
            let before = state.pods.len();
            state.pods.retain(|pod| pod["id"] != id.as_str());
            match fault {
                Fault::DoneBut(status) => problem(status, "failed upstream"),
                _ if state.pods.len() < before => Act::Reply(204, String::new(), String::new()),
                _ => problem(404, "pod not found"),
            }
        }
        _ => problem(404, "no such path"),
    }
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Option<(String, String, String, Value)>> {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0u8; 4096];
        let length = stream.read(&mut part).await?;
        bytes.extend_from_slice(&part[..length]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            if length == 0 {
                return Ok(None);
            }
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
            line.and_then(|line| line.split_once(':'))
                .map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let wanted: usize = header("content-length").parse().unwrap_or(0);
        if bytes.len() >= end + 4 + wanted {
            let mut first = head.lines().next().unwrap_or("").split(' ');
            let (method, path) =
                (first.next().unwrap_or("").to_owned(), first.next().unwrap_or("").to_owned());
            let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
            return Ok(Some((method, path, header("authorization"), body)));
        }
        if length == 0 {
            return Ok(None);
        }
    }
}
