//! Requests to the server: JSON there, JSON or a stream of events back, and what each kind of failure means.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use ternfleet_cloud::http::{HttpError, Secret, Server, Streamed};
use ternfleet_proto::message::{Failure, FailureCode};

/// Of the small questions: which models, whether it is there.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// The first piece of an answer may take so many times as long as the others.
const QUEUED: u32 = 10;
/// Longest event of a stream.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// As much of a server's text as goes into a message.
const SHOWN_CHARS: usize = 300;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Trouble {
    /// The request is at fault: it would fail again.
    Refused(Failure),
    /// Not now; after so long, if the server says it.
    Busy(Option<Duration>),
    /// The server is away, or breaks off, or answers what no server should.
    Broken(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused(failure) => f.write_str(&failure.message),
            Trouble::Busy(_) => f.write_str("the server takes no more requests now"),
            Trouble::Broken(what) => f.write_str(what),
        }
    }
}

/// A server, and the model to ask it for.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    server: Server,
    /// `https://host:port`, for people.
    address: String,
    /// Path before `/models`, such as `/v1`.
    base: String,
    model: String,
    /// Between two pieces of a stream.
    silence: Duration,
}

impl Client {
    pub(super) fn new(address: &str, key: Option<String>, silence: Duration) -> anyhow::Result<Client> {
        let (scheme, rest) = address.split_once("://").context("upstream is no address")?;
        let (host, base) = rest.split_once('/').unwrap_or((rest, "v1"));
        let base = format!("/{}", base.trim_matches('/'));
        let base = if base == "/" { String::new() } else { base };
        let server = Server::new(&format!("{scheme}://{host}"), key.map(Secret::new), ASK_WITHIN)?;
        let address = format!("{scheme}://{host}{base}");
        Ok(Client { server, address, base, model: String::new(), silence })
    }

    pub(super) fn of_model(&self, model: &str) -> Client {
        Client { model: model.to_owned(), ..self.clone() }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The entries of `/models`.
    pub(super) async fn models(&self) -> Result<Vec<Value>, Trouble> {
        let answer = self.server.get(&format!("{}/models", self.base)).await.map_err(broken)?;
        let told = read(answer.status, answer.retry_after, &answer.body)?;
        told["data"]
            .as_array()
            .cloned()
            .ok_or_else(|| Trouble::Broken("the server lists no models under `data`".to_owned()))
    }

    /// Something beside the API, from the root of the server; nothing if it is not there.
    pub(super) async fn beside(&self, path: &str) -> Option<Value> {
        let answer = self.server.get(path).await.ok()?;
        (answer.status == 200).then(|| serde_json::from_slice(&answer.body).ok())?
    }

    /// Asks for a whole answer.
    pub(super) async fn ask(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        let mut stream = self.open(path, body).await?;
        let mut whole = Vec::new();
        while let Some(bytes) = self.patiently(stream.next()).await? {
            whole.extend_from_slice(&bytes.map_err(broken)?);
            if whole.len() > EVENT_BYTES_MAX {
                return Err(Trouble::Broken("the server's answer does not end".to_owned()));
            }
        }
        read(200, None, &whole)
    }

    /// Asks for an answer as it comes.
    pub(super) async fn stream(&self, path: &str, body: &Value) -> Result<Events, Trouble> {
        let mut body = body.clone();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let stream = self.open(path, &body).await?;
        Ok(Events { stream, read: Vec::new(), at: 0, begun: false, silence: self.silence })
    }

    /// Sends a request; its answer is good, and what comes is its body.
    async fn open(&self, path: &str, body: &Value) -> Result<Streamed, Trouble> {
        let mut body = body.clone();
        body["model"] = self.model.as_str().into();
        let path = format!("{}{path}", self.base);
        let opened = self.server.open(&path, body.to_string().into_bytes());
        // A server may let requests wait until it has room. Whether it hangs is seen by all of them together.
        let mut stream = silent_for(self.silence * QUEUED, opened).await?.map_err(broken)?;
        if stream.status == 200 {
            return Ok(stream);
        }
        let mut said = Vec::new();
        while let Some(Ok(bytes)) = self.patiently(stream.next()).await? {
            said.extend_from_slice(&bytes);
            if said.len() > EVENT_BYTES_MAX {
                break;
            }
        }
        Err(refusal(stream.status, stream.retry_after, &said))
    }

    async fn patiently<T>(&self, what: impl Future<Output = T>) -> Result<T, Trouble> {
        silent_for(self.silence, what).await
    }
}

async fn silent_for<T>(most: Duration, what: impl Future<Output = T>) -> Result<T, Trouble> {
    tokio::time::timeout(most, what)
        .await
        .map_err(|_| Trouble::Broken(format!("the server sent nothing for {} s", most.as_secs())))
}

/// A stream of events that is read.
#[derive(Debug)]
pub(super) struct Events {
    stream: Streamed,
    read: Vec<u8>,
    /// Where the next event begins.
    at: usize,
    begun: bool,
    silence: Duration,
}

impl Events {
    /// The next event; `None` after `[DONE]`.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, Trouble> {
        loop {
            while let Some(line) = self.line() {
                let Some(data) = line.strip_prefix("data:") else { continue };
                let data = data.trim();
                if data == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(data).map_err(|_| nonsense(data))?;
                if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
                    let status = error["code"].as_u64().unwrap_or(500);
                    return Err(refusal(u16::try_from(status).unwrap_or(500), None, data.as_bytes()));
                }
                self.begun = true;
                return Ok(Some(event));
            }
            let most = if self.begun { self.silence } else { self.silence * QUEUED };
            let Some(bytes) = silent_for(most, self.stream.next()).await? else {
                return Err(Trouble::Broken("the server's stream ended in the middle".to_owned()));
            };
            self.read.drain(..std::mem::take(&mut self.at));
            self.read.extend_from_slice(&bytes.map_err(broken)?);
            if self.read.len() > EVENT_BYTES_MAX {
                return Err(Trouble::Broken("an event of the server's stream does not end".to_owned()));
            }
        }
    }

    /// The next whole line.
    fn line(&mut self) -> Option<String> {
        let rest = &self.read[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.at += end + 1;
        Some(line)
    }
}

fn broken(error: HttpError) -> Trouble {
    Trouble::Broken(error.to_string())
}

fn nonsense(data: &str) -> Trouble {
    Trouble::Broken(format!("the server's answer is no JSON: {:?}", clipped(data)))
}

fn read(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Result<Value, Trouble> {
    if status != 200 {
        return Err(refusal(status, retry_after, body));
    }
    serde_json::from_slice(body).map_err(|_| nonsense(&String::from_utf8_lossy(body)))
}

/// What a status that is not 200 means, with the server's own words.
fn refusal(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Trouble {
    let text = String::from_utf8_lossy(body).into_owned();
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = ["/error/message", "/message", "/detail", "/error"]
        .iter()
        .find_map(|place| value.pointer(place)?.as_str().map(str::to_owned))
        .unwrap_or(text);
    let said = clipped(said.trim());
    match status {
        400 | 413 | 422 => {
            let long = ["context length", "context size", "context_length", "too long", "maximum context"];
            let words = String::from_utf8_lossy(body).to_lowercase();
            let code = match long.iter().any(|part| words.contains(part)) {
                true => FailureCode::PromptTooLong,
                false => FailureCode::InvalidRequest,
            };
            Trouble::Refused(Failure { code, message: format!("the model's server refuses it: {said}") })
        }
        408 | 425 | 429 | 503 | 529 => Trouble::Busy(retry_after),
        401 | 403 => Trouble::Broken(format!("the server does not accept the key (status {status}): {said}")),
        _ => Trouble::Broken(format!("the server answers with status {status}: {said}")),
    }
}

pub(super) fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whose_fault_it_is() {
        let long = br#"{"error":{"message":"This model's maximum context length is 10 tokens","code":400}}"#;
        let Trouble::Refused(failure) = refusal(400, None, long) else { panic!("refused") };
        assert_eq!(failure.code, FailureCode::PromptTooLong);
        assert!(failure.message.ends_with("is 10 tokens"), "{}", failure.message);
        let Trouble::Refused(failure) = refusal(422, None, br#"{"detail":"no"}"#) else { panic!("refused") };
        assert_eq!(failure.code, FailureCode::InvalidRequest);
        let after = Some(Duration::from_secs(3));
        assert_eq!(refusal(429, after, b""), Trouble::Busy(after));
        assert!(matches!(refusal(500, None, b"oops"), Trouble::Broken(what) if what.ends_with("500: oops")));
        assert!(matches!(refusal(401, None, b""), Trouble::Broken(what) if what.contains("key")));
    }

    #[test]
    fn the_address_has_a_path_or_gets_the_usual_one() {
        let address = |text: &str| Client::new(text, None, Duration::ZERO).map(|client| client.address);
        for (text, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
            ("https://example.com/openai/v1", "https://example.com/openai/v1"),
            ("https://example.com/", "https://example.com"),
        ] {
            assert_eq!(address(text).unwrap(), expected);
        }
        assert!(address("http://example.com/v1").is_err(), "a key must not cross a network in clear");
    }
}
