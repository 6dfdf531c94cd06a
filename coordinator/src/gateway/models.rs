//! `/v1/models`: what the live workers serve; `/v1/embeddings`: a clear no.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use ternfleet_proto::message::PodView;
use ternfleet_proto::table::ApiVerb;
use tokio::time::Instant;

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, list_of};

/// One entry a model name, from the heartbeats of live workers.
async fn served(gateway: &Gateway) -> ApiResult<BTreeMap<String, Value>> {
    let pods: Vec<PodView> = gateway.ask(ApiVerb::Pods, &()).await?;
    let mut models: BTreeMap<String, Value> = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| pod.live) {
        let worker = pod.heartbeat;
        let deterministic = worker.abilities.deterministic;
        let own = json!({
            "digest": worker.model_digest, "numerics": worker.numerics, "context_tokens": worker.context_tokens,
            "deterministic": deterministic,
        });
        match models.get_mut(&worker.model) {
            // Several kinds of engines under one name: which of them answers is not known before.
            Some(model)
                if ["digest", "numerics"].iter().any(|name| model["ternfleet"][*name] != own[*name]) =>
            {
                model["ternfleet"]["deterministic"] = false.into();
            }
            Some(_) => {}
            None => {
                let model = json!({
                    "id": worker.model, "object": "model", "created": worker.started_at.0 / 1000,
                    "owned_by": "ternfleet", "max_model_len": worker.context_tokens, "ternfleet": own,
                });
                models.insert(worker.model, model);
            }
        }
    }
    Ok(models)
}

/// How long a list of model names may be used again: a second is far below the time in which workers come and go.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// The names that are served, so that not every completion asks again.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Known {
    fn fresh(&self) -> Option<Vec<String>> {
        let names = self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        names.as_ref().filter(|(at, _)| at.elapsed() < KNOWN_FOR).map(|(_, names)| names.clone())
    }

    fn keep(&self, names: Vec<String>) {
        *self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some((Instant::now(), names));
    }
}

/// The model to run; the coordinator refuses one that nobody can serve. Where one alone is served, leaving it out means
/// that one.
pub(super) async fn chosen(gateway: &Gateway, asked: Option<String>) -> ApiResult<Option<String>> {
    if asked.is_some() {
        return Ok(asked);
    }
    let known = &gateway.shared.models;
    let mut names = known.fresh().unwrap_or_default();
    if names.is_empty() {
        names = served(gateway).await?.into_keys().collect();
        known.keep(names.clone());
    }
    Ok(names.pop().filter(|_| names.is_empty()))
}

pub(super) async fn list(State(gateway): State<Gateway>, _caller: Caller) -> ApiResult<Json<Value>> {
    Ok(list_of(served(&gateway).await?.into_values().collect()))
}

pub(super) async fn get(
    State(gateway): State<Gateway>,
    _caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let found = served(&gateway).await?.remove(&id);
    found.map(Json).ok_or_else(|| ApiError::not_found("model", &id))
}

pub(super) async fn embeddings(_caller: Caller) -> ApiError {
    let message =
        "Embeddings are not supported: this fleet generates text (see /v1/completions and /v1/batches).";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_served", message)
}
