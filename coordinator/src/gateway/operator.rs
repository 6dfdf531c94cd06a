//! What is the operator's alone: what is rented and within which limits (`/api/scale`), and which lost pods are still
//! shown. Where there are keys, one with `operator = true` is asked for.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use ternfleet_proto::message::{PodRef, ScaleDials, ScaleView};
use ternfleet_proto::table::ApiVerb;

use super::auth::Operator;
use super::error::ApiResult;
use super::{Gateway, live, parse_body};

/// `GET /api/scale`: what is rented, what the plan does next, and why.
pub(super) async fn show(State(gateway): State<Gateway>, _operator: Operator) -> ApiResult<Json<Value>> {
    Ok(Json(json!(*live::scale(&gateway).await?)))
}

/// `POST /api/scale`: changes the limits that are given, and keeps them.
pub(super) async fn set(
    State(gateway): State<Gateway>,
    _operator: Operator,
    body: Bytes,
) -> ApiResult<Json<ScaleView>> {
    let view = gateway.ask(ApiVerb::ScaleSet, &parse_body::<ScaleDials>(&body)?).await?;
    live::forget_scale(&gateway).await;
    Ok(Json(view))
}

/// `POST /api/scale/plan`: what would be done within these limits; changes nothing.
pub(super) async fn plan(
    State(gateway): State<Gateway>,
    _operator: Operator,
    body: Bytes,
) -> ApiResult<Json<ScaleView>> {
    Ok(Json(gateway.ask(ApiVerb::ScalePlan, &parse_body::<ScaleDials>(&body)?).await?))
}

/// `DELETE /api/pods/lost/{pod}`: a lost pod is shown no longer.
pub(super) async fn dismiss(
    State(gateway): State<Gateway>,
    _operator: Operator,
    Path(pod): Path<String>,
) -> ApiResult<Json<Value>> {
    gateway.ask::<_, ()>(ApiVerb::PodDismiss, &PodRef { pod: pod.clone() }).await?;
    Ok(Json(json!({ "pod": pod, "dismissed": true })))
}
