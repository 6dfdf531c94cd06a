//! The HTTP gateway: OpenAI's files, batches and completions, and the page at `/`.
//!
//! It is a caller like any other: everything goes over the bus (`tf.api.*`, object buckets), nothing is read out of
//! the coordinator's core. So it serves on a standby as well as on the leader, and could run as a process of its own.

mod auth;
mod batches;
mod bounds;
mod completions;
mod cors;
mod error;
mod files;
mod history;
mod leaders;
mod lists;
mod live;
mod models;
mod operator;
mod page;
mod quotes;
mod resubmit;
mod rows;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use ternfleet_proto::message::Reply;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::trace::{self, TraceContext};
use ternfleet_proto::{Bus, Clock, codec};

use crate::constraints::Constraints;
use crate::entropy::Entropy;
pub use auth::{KeyFileError, Keys};
use error::{ApiError, ApiResult};

/// How long the coordinator may take to answer a question; a takeover by a standby fits inside.
const ASK_TIMEOUT: Duration = Duration::from_secs(8);

/// Settings of the gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayOptions {
    /// File of API keys; without one everybody is the default tenant.
    pub keys_file: Option<PathBuf>,
    /// Listen beyond this machine although there are no keys.
    pub serve_without_keys: bool,
    /// Largest upload in bytes.
    pub file_bytes_max: u64,
    /// Largest JSON body in bytes.
    pub body_bytes_max: usize,
    /// Origins (`https://app.example.com`) whose pages may call this API; none unless listed.
    pub cors_origins: Vec<String>,
    /// A single completion is given up after this many seconds.
    pub completion_timeout_s: u64,
    /// Connections at a time; one address may have half of them.
    pub connections_max: usize,
    /// Readers of the live page at a time, of one tenant.
    pub live_readers_max: usize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            keys_file: None,
            serve_without_keys: false,
            file_bytes_max: 4 << 30,
            body_bytes_max: 8 << 20,
            cors_origins: Vec::new(),
            completion_timeout_s: 600,
            connections_max: 1024,
            live_readers_max: 64,
        }
    }
}

/// Settings that a gateway cannot be made with.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(
        "gateway.cors_origins: {0:?} is not an origin; write scheme, host and port, like \
         https://app.example.com"
    )]
    Origin(String),
}

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    bus: Arc<dyn Bus>,
    keys: Keys,
    options: GatewayOptions,
    clock: Clock,
    /// Quota of a tenant's files, kept while they arrive.
    stored_bytes_max: u64,
    leaders: leaders::Leaders,
    live: live::Live,
    constraints: Constraints,
    entropy: Entropy,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Reads the key file; one that cannot be used is an error: without keys, anybody would be let in.
    pub fn new(
        bus: Arc<dyn Bus>,
        options: GatewayOptions,
        stored_bytes_max: u64,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Gateway, GatewayError> {
        if let Some(bad) = options.cors_origins.iter().find(|origin| !cors::is_origin(origin)) {
            return Err(GatewayError::Origin(bad.clone()));
        }
        let keys = match &options.keys_file {
            Some(path) => Keys::read(path)?,
            None => Keys::default(),
        };
        let shared = Shared {
            bus,
            keys,
            options,
            stored_bytes_max,
            clock,
            leaders: leaders::Leaders::new(entropy.clone()),
            live: live::Live::default(),
            constraints: Constraints::default(),
            entropy,
        };
        Ok(Gateway { shared: Arc::new(shared) })
    }

    /// True when no key is asked for.
    pub fn is_open(&self) -> bool {
        self.shared.keys.is_open()
    }

    fn bus(&self) -> &dyn Bus {
        &*self.shared.bus
    }

    fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    fn bus_handle(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.shared.bus)
    }

    /// `prefix` and 96 random bits in hexadecimal.
    fn random_id(&self, prefix: &str) -> String {
        self.shared.entropy.id(prefix)
    }

    fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    fn limits(&self) -> &GatewayOptions {
        &self.shared.options
    }

    /// Asks the leading coordinator.
    async fn ask<Q: Serialize, A: DeserializeOwned>(&self, verb: ApiVerb, question: &Q) -> ApiResult<A> {
        self.ask_within(verb, question, ASK_TIMEOUT).await
    }

    async fn ask_within<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: ApiVerb,
        question: &Q,
        patience: Duration,
    ) -> ApiResult<A> {
        let payload = self.bus().request(&table::api(verb), codec::encode(question), patience).await?;
        let reply: Reply<A> = codec::decode(&payload).map_err(|e| {
            ApiError::new(
                StatusCode::BAD_GATEWAY,
                "version_mismatch",
                format!("The coordinator's reply: {e}"),
            )
        })?;
        Ok(reply?)
    }

    /// What the gateway does besides answering, for as long as it is polled: it samples speed and spending for the page's
    /// charts, and listens for new leaders.
    pub async fn watch(self) {
        tokio::join!(history::sample(self.clone()), self.shared.leaders.follow(self.bus()));
    }

    /// Every route of the gateway, with its limits, keys and request ids.
    pub fn routes(&self) -> Router {
        let body_limit = DefaultBodyLimit::max(self.limits().body_bytes_max);
        let v1 = Router::new()
            .route("/v1/files", get(files::list).post(files::upload).layer(DefaultBodyLimit::disable()))
            .route("/v1/files/{id}", get(files::get).delete(files::delete))
            .route("/v1/files/{id}/content", get(files::content))
            .route("/v1/batches", get(batches::list).post(batches::create))
            .route("/v1/batches/{id}", get(batches::get))
            .route("/v1/batches/{id}/cancel", post(batches::cancel))
            .route("/v1/batches/{id}/results", get(batches::results))
            .route("/v1/batches/{id}/ternfleet", post(batches::set))
            .route("/v1/quotes", post(quotes::create))
            .route("/v1/completions", post(completions::completion))
            .route("/v1/chat/completions", post(completions::chat))
            .route("/v1/responses", post(completions::response))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{id}", get(models::get))
            .route("/v1/embeddings", post(models::embeddings))
            .route("/api/overview", get(live::overview))
            .route("/api/live", get(live::stream))
            .route("/api/batches", get(rows::batches))
            .route("/api/batches/{id}/lines", get(rows::lines))
            .route("/api/batches/{id}/resubmit", post(resubmit::create))
            .route("/api/pods/history", get(live::pod_history))
            .route("/api/pods/lost/{pod}", delete(operator::dismiss))
            .route("/api/scale", get(operator::show).post(operator::set))
            .route("/api/scale/plan", post(operator::plan))
            .layer(body_limit)
            .layer(middleware::from_fn(bounds::patiently))
            .layer(middleware::from_fn_with_state(self.clone(), auth::require_key));
        Router::new()
            .merge(v1)
            .route("/", get(page::index))
            .route("/page/{file}", get(page::asset))
            .route("/openapi.json", get(page::openapi))
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::map_response_with_state(self.clone(), error::in_our_shape))
            .layer(middleware::from_fn_with_state(self.clone(), cors::allow))
            .layer(middleware::from_fn_with_state(self.clone(), name_request))
            .with_state(self.clone())
    }
}

async fn unknown(request: Request) -> ApiError {
    let message = format!("Nothing is served at {}; see /openapi.json for all paths.", request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{} does not support the method {}.", request.uri().path(), request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}

/// Gives each request an id: the caller's `x-request-id` if it is plain, else a new one.
async fn name_request(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let name = HeaderName::from_static("x-request-id");
    let given = request
        .headers()
        .get(&name)
        .filter(|v| v.len() <= 64 && v.as_bytes().iter().all(u8::is_ascii_graphic));
    let id = given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&gateway.random_id("req_"))
            .expect("because ids are made of ASCII letters and digits")
    });
    let mut response = next.run(request).await;
    response.headers_mut().insert(name, id);
    response
}

/// Parses a JSON body; what is wrong is told with its place.
fn parse_body<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("The body is invalid: {e}")))
}

/// The caller's trace context; what is none is passed over, as the standard asks.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let sent = headers.get(trace::HEADER)?.to_str().ok();
    Some(TraceContext::of(sent)?.to_string())
}

/// A JSON answer of a list, as OpenAI writes it.
fn list_of(data: Vec<serde_json::Value>) -> Json<serde_json::Value> {
    Json(serde_json::json!({"object": "list", "data": data}))
}
