//! `/v1/batches`: create, get, list, cancel, results so far, with our own fields under `ternfleet`.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use ternfleet_proto::message::{
    BatchCreate, BatchList, BatchRef, BatchSet, BatchView, ResultsPage, ResultsRequest,
};
use ternfleet_proto::openai::{self, BatchInput, batch_object, output_line};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{BatchId, TenantId, TimeMs, UsdMicro};

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, files, lists, parse_body};

const RESULTS_A_PAGE: u32 = 200;
const BATCHES_A_PAGE_MAX: usize = 100;

/// `POST /v1/batches`. `Idempotency-Key` makes a repeated call answer with the first batch.
pub(super) async fn create(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let body = openai::parse_batch(&body)?;
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let input = match body.input {
        BatchInput::File(file) => {
            files::known(&gateway, &tenant, &file).await.map_err(|error| error.about("input_file_id"))?;
            file
        }
        BatchInput::Inline(lines) => files::store_inline(&gateway, &tenant, key.as_deref(), lines).await?,
    };
    let options = body.options;
    // Only a promise needs a quote: without deadline and budget there is nothing to refuse.
    let work = match options.deadline.is_some() || options.budget_usd_micro.is_some() {
        true => Some(super::quotes::work(&gateway, &tenant, &input).await?),
        false => None,
    };
    let request = BatchCreate {
        tenant,
        idempotency_key: key.unwrap_or_else(|| gateway.random_id("http-")),
        input_object: input,
        name: body.name,
        endpoint: Some(body.endpoint),
        options,
        metadata: body.metadata,
        traceparent: super::traceparent(&headers),
        work,
    };
    let view: BatchView = gateway.ask(ApiVerb::BatchCreate, &request).await?;
    Ok(Json(batch_object(&view)))
}

pub(super) fn batch_id(text: &str) -> ApiResult<BatchId> {
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
    limit: Option<String>,
    after: Option<String>,
    order: Option<String>,
}

/// `GET /v1/batches`, newest first, paged by `after` and `limit`.
pub(super) async fn list(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Value>> {
    let limit = lists::limit(query.limit.as_deref(), 20, BATCHES_A_PAGE_MAX)? as u32;
    lists::newest_first(query.order.as_deref())?;
    let after = query.after.as_deref().map(batch_id).transpose().map_err(|error| error.about("after"))?;
    let views = batches(&gateway, &tenant, after, limit + 1).await;
    // Nothing else is named in the question.
    let mut views = views.map_err(|error| if error.is_not_found() { error.about("after") } else { error })?;
    let has_more = views.len() > limit as usize;
    views.truncate(limit as usize);
    let data: Vec<Value> = views.iter().map(batch_object).collect();
    let (first, last) = (views.first().map(|b| b.id.clone()), views.last().map(|b| b.id.clone()));
    Ok(Json(
        json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}),
    ))
}

async fn batches(
    gateway: &Gateway,
    tenant: &TenantId,
    mut after: Option<BatchId>,
    limit: u32,
) -> ApiResult<Vec<BatchView>> {
    let mut views: Vec<BatchView> = Vec::new();
    loop {
        let list = BatchList { tenant: tenant.clone(), after, limit: limit - views.len() as u32 };
        // A reply may have fewer than requested, since it is one message. Only an empty one is the end.
        let more: Vec<BatchView> = gateway.ask(ApiVerb::BatchList, &list).await?;
        let is_end = more.is_empty();
        views.extend(more);
        if is_end || views.len() >= limit as usize {
            return Ok(views);
        }
        after = views.last().map(|view| view.id.clone());
    }
}
