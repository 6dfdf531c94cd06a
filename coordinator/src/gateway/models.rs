//! `/v1/models`: what the live workers serve; `/v1/embeddings`: a clear no.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use ternfleet_proto::message::PodView;
use ternfleet_proto::table::ApiVerb;

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, list_of};

/// One entry a model name, from the heartbeats of live workers.
async fn served(gateway: &Gateway) -> ApiResult<BTreeMap<String, Value>> {
    let pods: Vec<PodView> = gateway.ask(ApiVerb::Pods, &()).await?;
    let mut models = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| pod.live) {
        let worker = pod.heartbeat;
        models.entry(worker.model.clone()).or_insert_with(|| {
            json!({
                "id": worker.model, "object": "model", "created": worker.started_at.0 / 1000, "owned_by": "ternfleet",
                "ternfleet": {
                    "digest": worker.model_digest, "numerics": worker.numerics, "context_tokens": worker.context_tokens,
                },
            })
        });
    }
    Ok(models)
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
        "Embeddings are not served: this fleet generates text (see /v1/completions and /v1/batches).";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_served", message)
}
