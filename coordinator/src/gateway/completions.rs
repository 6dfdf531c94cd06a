//! `/v1/completions` and `/v1/chat/completions`: single jobs for somebody who waits.
//!
//! They take the same way as a batch's jobs, in the interactive lane: through the ledger, a worker's queue, RESULTS. The
//! gateway listens for tokens and for the committed answer, and cancels the job when its caller hangs up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use ternfleet_proto::bus::{Bus, BusStream, Note};
use ternfleet_proto::message::{BatchRef, JobCreate, JobResult, Outcome, TokenChunk};
use ternfleet_proto::openai::{self, Endpoint, Single};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{BatchId, JobKey, TenantId, codec};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::leaders::Asking;
use super::{Gateway, models, random_id};

/// A leader that lives answers sooner.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Events between the job and its caller's socket. A caller that reads slowly fills it, and is then waited for.
const EVENTS_WAITING_MAX: usize = 256;

pub(super) async fn completion(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Response> {
    run(gateway, tenant, Endpoint::Completions, headers, body).await
}

pub(super) async fn chat(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Response> {
    run(gateway, tenant, Endpoint::ChatCompletions, headers, body).await
}

async fn run(
    gateway: Gateway,
    tenant: TenantId,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Response> {
    let prefix = match endpoint {
        Endpoint::Completions => "cmpl-",
        Endpoint::ChatCompletions => "chatcmpl-",
    };
    let batch: BatchId =
        random_id(prefix).parse().expect("because a prefix and hexadecimal digits make a valid id");
    let job = JobKey { batch, index: 0 };
    let mut single = openai::parse_single(endpoint, &body, &job)?;
    single.line.model = models::chosen(&gateway, single.line.model.take()).await?;
    let wants_stream = single.generation.stream;
    let patience = Duration::from_secs(gateway.limits().completion_timeout_s);
    // Both subscriptions stand before the job exists, so nothing can be missed.
    let bus = gateway.bus_handle();
    let done = bus.subscribe(&table::done(&job)).await?;
    let tokens = if wants_stream { Some(bus.subscribe(&table::tokens(&job)).await?) } else { None };
    let create = JobCreate {
        tenant: tenant.clone(),
        batch: job.batch.clone(),
        line: single.line.clone(),
        generation: single.generation.clone(),
        deadline: gateway.clock().wall().plus(patience),
        traceparent: super::traceparent(&headers),
        again: false,
    };
    let asking = gateway.shared.leaders.watch();
    let guard = HangUp { bus, tenant, job, answered: false };
    let again = JobCreate { again: true, ..create.clone() };
    // A leader that dies before it answers may have begun the job or not: the next one is asked whether it is there.
    if let Err(error) = gateway.ask_within::<_, ()>(ApiVerb::JobCreate, &create, ASK_WITHIN).await {
        if error.is_refusal() {
            guard.over();
            return Err(error);
        }
        gateway.ask::<_, ()>(ApiVerb::JobCreate, &again).await?;
    }
    let (again, until) = (codec::encode(&again), Instant::now() + patience);
    let waiting = Waiting { guard, done, again, asking, until };
    match tokens {
        Some(tokens) => Ok(waiting.stream(tokens, single).into_response()),
        None => waiting.answer(&single).await,
    }
}

/// Cancels the job when it is dropped before an answer came: the caller has hung up or run out of patience.
struct HangUp {
    bus: Arc<dyn Bus>,
    tenant: TenantId,
    job: JobKey,
    answered: bool,
}

impl HangUp {
    /// There is nothing to cancel.
    fn over(mut self) {
        self.answered = true;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let (bus, request) =
            (Arc::clone(&self.bus), BatchRef { tenant: self.tenant.clone(), id: self.job.batch.clone() });
        // The order is one message, and the job's deadline ends it if this one is lost.
        tokio::spawn(async move {
            let order = codec::encode(&request);
            let asked = bus.request(&table::api(ApiVerb::BatchCancel), order, Duration::from_secs(5)).await;
            if let Err(error) = asked {
                tracing::warn!(batch = %request.id, %error, "could not cancel a completion whose caller hung up");
            }
        });
    }
}

struct Waiting {
    guard: HangUp,
    done: BusStream<Note>,
    /// The question that is asked again, encoded, and when.
    again: Bytes,
    asking: Asking,
    until: Instant,
}

impl Waiting {
    /// Waits for the answer and not for the leader: whoever leads is asked again from time to time, and takes the job
    /// over, or tells an answer that was not heard.
    async fn committed(&mut self) -> ApiResult<JobResult> {
        let waits = async {
            loop {
                tokio::select! {
                    biased;
                    note = self.done.next() => return note,
                    () = self.asking.due() => {
                        let bus = Arc::clone(&self.guard.bus);
                        let (subject, again) = (table::api(ApiVerb::JobCreate), self.again.clone());
                        tokio::spawn(async move { bus.request(&subject, again, ASK_WITHIN).await });
                    }
                }
            }
        };
        let note = match timeout_at(self.until, waits).await {
            Ok(Some(note)) => note,
            Ok(None) => {
                return Err(ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "bus_closed",
                    "The bus is closing.",
                ));
            }
            Err(_) => {
                let message = "No answer in time: the fleet is busy or has no worker for this model.";
                return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message));
            }
        };
        self.guard.answered = true;
        codec::decode(&note.payload)
            .map_err(|e| ApiError::new(StatusCode::BAD_GATEWAY, "version_mismatch", e.to_string()))
    }

    async fn answer(mut self, single: &Single) -> ApiResult<Response> {
        let result = self.committed().await?;
        match &result.outcome {
            Outcome::Failed(failure) => Err(failure.clone().into()),
            Outcome::Text(_) => Ok(Json(openai::single_body(&result, single)).into_response()),
        }
    }

    /// Tokens as OpenAI's chunks, then the finish reason, the usage if it was asked for, and `[DONE]`.
    fn stream(self, tokens: BusStream<Note>, single: Single) -> impl IntoResponse {
        let (events, receiver) = mpsc::channel::<Event>(EVENTS_WAITING_MAX);
        tokio::spawn(self.follow(tokens, single, events));
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|event| (Ok::<_, Infallible>(event), receiver))
        });
        Sse::new(stream).keep_alive(KeepAlive::default())
    }

    /// Ends when the answer is told or the caller is gone; the guard cancels in the second case.
    async fn follow(mut self, mut tokens: BusStream<Note>, single: Single, events: mpsc::Sender<Event>) {
        let mut told = Told::default();
        let head = openai::first_chunk(&single, &self.guard.job);
        if let Some(head) = head
            && events.send(Event::default().data(head.to_string())).await.is_err()
        {
            return;
        }
        loop {
            tokio::select! {
                biased;
                Some(note) = tokens.next() => {
                    let Ok(chunk) = codec::decode::<TokenChunk>(&note.payload) else { continue };
                    let Some(chunk) = told.accept(chunk) else { continue };
                    let body = openai::token_chunk(&single, &self.guard.job, &chunk);
                    if events.send(Event::default().data(body.to_string())).await.is_err() {
                        return;
                    }
                }
                result = self.committed() => {
                    let last = match result {
                        Ok(result) => told.ending(&single, &result),
                        Err(error) => vec![error.body().to_string()],
                    };
                    for data in last {
                        if events.send(Event::default().data(data)).await.is_err() {
                            return;
                        }
                    }
                    return;
                }
                () = events.closed() => return,
            }
        }
    }
}

/// What the caller has read so far. Core messages may be lost, doubled by a resumed job, or come late; the committed
/// text mends each of these.
#[derive(Debug, Default)]
struct Told {
    tokens: u32,
    text: String,
}

impl Told {
    /// A chunk that goes on exactly where the caller stands; others are left to the ending.
    fn accept(&mut self, chunk: TokenChunk) -> Option<TokenChunk> {
        if chunk.position != self.tokens {
            return None;
        }
        self.tokens += chunk.count;
        self.text.push_str(&chunk.text);
        Some(chunk)
    }

    /// What is still to be said once the answer is committed: the rest of the text, the reason, the usage, the end.
    fn ending(&self, single: &Single, result: &JobResult) -> Vec<String> {
        let mut events = Vec::new();
        match &result.outcome {
            Outcome::Failed(failure) => events.push(ApiError::from(failure.clone()).body().to_string()),
            Outcome::Text(generated) => {
                let rest = generated.text.strip_prefix(self.text.as_str()).unwrap_or_default();
                if !rest.is_empty() {
                    let chunk = TokenChunk {
                        job: result.job.clone(),
                        epoch: result.epoch,
                        position: self.tokens,
                        count: result.usage.completion_tokens.saturating_sub(self.tokens),
                        text: rest.to_owned(),
                        logprobs: generated.logprobs.get(self.tokens as usize..).unwrap_or_default().to_vec(),
                    };
                    events.push(openai::token_chunk(single, &result.job, &chunk).to_string());
                }
                events.push(openai::last_chunk(single, result).to_string());
                if let Some(usage) = openai::usage_chunk(single, result) {
                    events.push(usage.to_string());
                }
            }
        }
        events.push("[DONE]".to_owned());
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_proto::Epoch;

    fn chunk(position: u32, count: u32, text: &str) -> TokenChunk {
        let job = JobKey { batch: "cmpl-1".parse().unwrap(), index: 0 };
        TokenChunk { job, epoch: Epoch(1), position, count, text: text.into(), logprobs: Vec::new() }
    }

    #[test]
    fn a_stream_shows_no_gap_and_no_repeat() {
        let mut told = Told::default();
        assert!(told.accept(chunk(0, 2, "Once upon")).is_some());
        assert!(told.accept(chunk(0, 2, "Once upon")).is_none(), "a repeat after resumption");
        assert!(told.accept(chunk(5, 1, " lived")).is_none(), "a gap waits for the committed text");
        assert!(told.accept(chunk(2, 1, " a")).is_some());
        assert_eq!(told.text, "Once upon a");
    }
}
