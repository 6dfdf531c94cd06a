//! `/v1/models`: what the live workers serve; `/v1/embeddings`: a clear no.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use ternfleet_proto::message::ModelView;

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, list_of, live};

fn entry(model: &ModelView) -> Value {
    json!({
        "id": model.model, "object": "model", "created": model.since.0 / 1000, "owned_by": "ternfleet",
        "max_model_len": model.context_tokens,
        "ternfleet": {
            "digest": model.digest, "numerics": model.numerics, "context_tokens": model.context_tokens,
            "deterministic": model.deterministic,
        },
    })
}

/// The model to run; the coordinator refuses one that nobody can serve. Where one alone is served, leaving it out means
/// that one.
pub(super) async fn chosen(gateway: &Gateway, asked: Option<String>) -> ApiResult<Option<String>> {
    if asked.is_some() {
        return Ok(asked);
    }
    let fleet = live::fleet(gateway).await?;
    Ok(match fleet.models.as_slice() {
        [only] => Some(only.model.clone()),
        _ => None,
    })
}

pub(super) async fn list(State(gateway): State<Gateway>, _caller: Caller) -> ApiResult<Json<Value>> {
    let fleet = live::fleet(&gateway).await?;
    Ok(list_of(fleet.models.iter().map(entry).collect()))
}

pub(super) async fn get(
    State(gateway): State<Gateway>,
    _caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let fleet = live::fleet(&gateway).await?;
    let found = fleet.models.iter().find(|model| model.model == id);
    found.map(|model| Json(entry(model))).ok_or_else(|| ApiError::not_found("model", &id))
}

pub(super) async fn embeddings(_caller: Caller) -> ApiError {
    let message =
        "Embeddings are not supported: this fleet generates text (see /v1/completions and /v1/batches).";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_served", message)
}
