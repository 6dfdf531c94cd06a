//! `/v1/completions`, `/v1/chat/completions` and `/v1/responses`: single jobs for somebody who waits.
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
use ternfleet_proto::openai::{self, Endpoint, Single, Spoken, Told};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{BatchId, JobKey, TenantId, codec};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::leaders::Asking;
use super::{Gateway, models};

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

pub(super) async fn response(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Response> {
    run(gateway, tenant, Endpoint::Responses, headers, body).await
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
        Endpoint::Responses => "resp_",
    };
    let batch: BatchId =
        gateway.random_id(prefix).parse().expect("because a prefix and hexadecimal digits make a valid id");
    let job = JobKey { batch, index: 0 };
    let mut single = openai::parse_single(endpoint, &body, &job)?;
    if let Err(failure) = gateway.shared.constraints.check(&single.generation).await {
        let error = ApiError::from(failure);
        return Err(match single.held_by {
            Some(field) => error.about(field),
            None => error,
        });
    }
    single.line.model = models::chosen(&gateway, single.line.model.take()).await?;
    let wants_stream = single.generation.stream;
    let patience = Duration::from_secs(gateway.limits().completion_timeout_s);
    // Both subscriptions exist before the job does, so nothing can be missed.
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
        wait_for_model: false,
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
        Some(tokens) => {
            let told = Told::new(single, waiting.guard.job.clone());
            waiting.stream(tokens, told).await
        }
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
                tracing::warn!(batch = %request.id, %error, "could not cancel a completion whose caller \
                                                             disconnected");
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
    /// Waits for the answer and not for the leader: whoever leads is asked again periodically, and takes the job
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
                let message = "No answer in time: the fleet is busy, or no worker serves this model.";
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
    ///
    /// Nothing is answered before the first of them: until a worker has taken the job it may be refused, and a refusal is a
    /// status and no event.
    async fn stream(mut self, mut tokens: BusStream<Note>, mut told: Told) -> ApiResult<Response> {
        let first = loop {
            tokio::select! {
                biased;
                Some(note) = tokens.next() => {
                    let Ok(chunk) = codec::decode::<TokenChunk>(&note.payload) else { continue };
                    let spoken = told.accept(&chunk);
                    if !spoken.is_empty() {
                        break spoken;
                    }
                }
                result = self.committed() => {
                    let result = result?;
                    if let Outcome::Failed(failure) = &result.outcome {
                        return Err(failure.clone().into());
                    }
                    break told.ending(&result);
                }
            }
        };
        let (events, receiver) = mpsc::channel::<Event>(EVENTS_WAITING_MAX);
        tokio::spawn(self.follow(first, tokens, told, events));
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|event| (Ok::<_, Infallible>(event), receiver))
        });
        Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
    }

    /// Ends when the answer is told or the caller is gone; the guard cancels in the second case.
    async fn follow(
        mut self,
        first: Vec<Spoken>,
        mut tokens: BusStream<Note>,
        mut told: Told,
        events: mpsc::Sender<Event>,
    ) {
        if say(&events, first).await.is_err() {
            return;
        }
        while !self.guard.answered {
            let spoken = tokio::select! {
                biased;
                Some(note) = tokens.next() => match codec::decode::<TokenChunk>(&note.payload) {
                    Ok(chunk) => told.accept(&chunk),
                    Err(_) => continue,
                },
                result = self.committed() => match result {
                    Ok(result) => match &result.outcome {
                        Outcome::Text(_) => told.ending(&result),
                        Outcome::Failed(failure) => vec![fault(&failure.clone().into())],
                    },
                    Err(error) => {
                        let _ = say(&events, vec![fault(&error)]).await;
                        return;
                    }
                },
                () = events.closed() => return,
            };
            if say(&events, spoken).await.is_err() {
                return;
            }
        }
        if told.says_done() {
            let _ = events.send(Event::default().data("[DONE]")).await;
        }
    }
}

/// An error inside of a stream that has begun.
fn fault(error: &ApiError) -> Spoken {
    Spoken { event: None, data: openai::json_line(&error.body()) }
}

async fn say(events: &mpsc::Sender<Event>, spoken: Vec<Spoken>) -> Result<(), mpsc::error::SendError<Event>> {
    for Spoken { event, data } in spoken {
        let said = Event::default().data(data);
        events.send(event.map_or(said.clone(), |name| said.event(name))).await?;
    }
    Ok(())
}
