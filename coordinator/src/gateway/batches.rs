//! `/v1/batches`: create, get, list, cancel, results so far, with our own fields under `ternfleet`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use ternfleet_proto::message::{
    BatchCreate, BatchList, BatchOptions, BatchRef, BatchSet, BatchView, Durability, ResultsPage,
    ResultsRequest,
};
use ternfleet_proto::openai::{Endpoint, batch_object, output_line};
use ternfleet_proto::table::{ApiVerb, files_bucket};
use ternfleet_proto::{BatchId, TenantId, TimeMs, UsdMicro};

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, parse_body, random_id};

const RESULTS_A_PAGE: u32 = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    input_file_id: String,
    endpoint: Endpoint,
    completion_window: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    ternfleet: OwnFields,
}

/// What OpenAI's API has no words for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OwnFields {
    name: Option<String>,
    /// Seconds since 1970, as OpenAI writes times.
    deadline: Option<u64>,
    budget_usd_micro: Option<UsdMicro>,
    priority: i8,
    durability: Option<Durability>,
    webhook_url: Option<String>,
    webhook_secret: Option<String>,
    /// Accept it even if its quote says that deadline or budget cannot be kept.
    accept_at_risk: bool,
}

/// `24h`, `90m`, `3600s`, `2d`: between a minute and 7 days (checkpoints are kept for 8).
fn window(text: &str) -> ApiResult<Duration> {
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => 0,
    };
    let count =
        text.get(..text.len().saturating_sub(1)).and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0);
    let seconds = count.saturating_mul(unit_s);
    if (60..=7 * 86_400).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let message = format!("completion_window {text:?} is not served: write \"24h\", or any of 60s to 7d.");
    Err(ApiError::invalid(message).about("completion_window"))
}

/// `POST /v1/batches`. `Idempotency-Key` makes a repeated call answer with the first batch.
pub(super) async fn create(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let body: CreateBody = parse_body(&body)?;
    let window = window(&body.completion_window)?;
    let input = body.input_file_id;
    match gateway.bus().object_length(&files_bucket(&tenant), &input).await {
        Ok(Some(_)) => {}
        Ok(None) | Err(ternfleet_proto::BusError::NotFound(_)) => {
            return Err(ApiError::not_found("file", &input).about("input_file_id"));
        }
        Err(e) => return Err(e.into()),
    }
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let own = body.ternfleet;
    // Only a promise needs a quote: without deadline and budget there is nothing to refuse.
    let work = match own.deadline.is_some() || own.budget_usd_micro.is_some() {
        true => Some(super::quotes::work(&gateway, &tenant, &input).await?),
        false => None,
    };
    let request = BatchCreate {
        tenant,
        idempotency_key: key.unwrap_or_else(|| random_id("http-")),
        input_object: input,
        name: own.name,
        endpoint: Some(body.endpoint),
        options: BatchOptions {
            deadline: own.deadline.map(|seconds| TimeMs(seconds.saturating_mul(1000))),
            completion_window_ms: Some(window.as_millis() as u64),
            budget_usd_micro: own.budget_usd_micro,
            priority: own.priority,
            durability: own.durability,
            webhook_url: own.webhook_url,
            webhook_secret: own.webhook_secret,
            accept_at_risk: own.accept_at_risk,
        },
        metadata: body.metadata.unwrap_or_default(),
        traceparent: super::traceparent(&headers),
        work,
    };
    let view: BatchView = gateway.ask(ApiVerb::BatchCreate, &request).await?;
    Ok(Json(batch_object(&view)))
}

fn batch_id(text: &str) -> ApiResult<BatchId> {
    text.parse().map_err(|_| ApiError::not_found("batch", text))
}

/// `GET /v1/batches/{id}`.
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let view: BatchView = gateway.ask(ApiVerb::BatchGet, &BatchRef { tenant, id: batch_id(&id)? }).await?;
    Ok(Json(batch_object(&view)))
}

/// `POST /v1/batches/{id}/cancel`.
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let view: BatchView = gateway.ask(ApiVerb::BatchCancel, &BatchRef { tenant, id: batch_id(&id)? }).await?;
    Ok(Json(batch_object(&view)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBody {
    budget_usd_micro: Option<UsdMicro>,
    deadline: Option<u64>,
    priority: Option<i8>,
}

/// `POST /v1/batches/{id}/ternfleet`: changes budget, deadline or priority while the batch runs.
pub(super) async fn set(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let body: SetBody = parse_body(&body)?;
    let request = BatchSet {
        tenant,
        id: batch_id(&id)?,
        budget_usd_micro: body.budget_usd_micro,
        deadline: body.deadline.map(|seconds| TimeMs(seconds.saturating_mul(1000))),
        priority: body.priority,
    };
    let view: BatchView = gateway.ask(ApiVerb::BatchSet, &request).await?;
    Ok(Json(batch_object(&view)))
}

/// `GET /v1/batches/{id}/results`: what has been answered so far, as JSON lines in the order of the answers, good and
/// error lines. A whole batch's output and error files are better once it has ended.
pub(super) async fn results(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let id = batch_id(&id)?;
    let ask = move |after: u64| {
        let request = ResultsRequest {
            tenant: tenant.clone(),
            id: id.clone(),
            after,
            limit: RESULTS_A_PAGE,
            wait_ms: 0,
        };
        let gateway = gateway.clone();
        async move { gateway.ask::<_, ResultsPage>(ApiVerb::Results, &request).await }
    };
    // The first page decides the status; later ones can only break the body off.
    let first = ask(0).await?;
    let pages = stream::unfold(Some((first, ask)), |state| async move {
        let (page, ask) = state?;
        if page.lines.is_empty() {
            return None;
        }
        let mut text = String::new();
        for result in &page.lines {
            text.push_str(&output_line(result));
            text.push('\n');
        }
        let next = match page.end {
            true => Ok(None),
            false => ask(page.next).await.map(|page| Some((page, ask))),
        };
        match next {
            Ok(next) => Some((Ok(text), next)),
            Err(error) => Some((Err(std::io::Error::other(error.body().to_string())), None)),
        }
    });
    let headers = [(header::CONTENT_TYPE, "application/jsonl"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Body::from_stream(pages)).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<u32>,
    after: Option<String>,
}

/// `GET /v1/batches`, newest first, paged by `after` and `limit`.
pub(super) async fn list(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Value>> {
    let limit = query.limit.unwrap_or(20).clamp(1, 100);
    let after = query.after.as_deref().map(batch_id).transpose()?;
    let mut views = batches(&gateway, &tenant, after, limit + 1).await?;
    let has_more = views.len() > limit as usize;
    views.truncate(limit as usize);
    let data: Vec<Value> = views.iter().map(batch_object).collect();
    let (first, last) = (views.first().map(|b| b.id.clone()), views.last().map(|b| b.id.clone()));
    Ok(Json(
        json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}),
    ))
}

/// Also used by the page's live feed.
pub(super) async fn batches(
    gateway: &Gateway,
    tenant: &TenantId,
    after: Option<BatchId>,
    limit: u32,
) -> ApiResult<Vec<BatchView>> {
    gateway.ask(ApiVerb::BatchList, &BatchList { tenant: tenant.clone(), after, limit }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_windows_are_read_with_their_unit() {
        assert_eq!(window("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(window("90m").unwrap(), Duration::from_secs(5_400));
        for bad in ["", "h", "24", "1s", "8d", "-1h", "ä"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }
}
