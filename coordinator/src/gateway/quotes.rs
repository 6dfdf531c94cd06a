//! `/v1/quotes`: what an uploaded file would cost and when it would be done.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use ternfleet_proto::message::{QUOTE_SAMPLE_MAX, Quote, QuoteAsk, WorkSample};
use ternfleet_proto::table::{self, ApiVerb, files_bucket};
use ternfleet_proto::{BusError, TenantId, TimeMs, UsdMicro};
use tokio::io::BufReader;

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::{Gateway, parse_body};
use crate::sample;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuoteBody {
    input_file_id: String,
    /// Seconds since 1970, as OpenAI writes times.
    #[serde(default)]
    deadline: Option<u64>,
    #[serde(default)]
    budget_usd_micro: Option<UsdMicro>,
    #[serde(default)]
    classes: Vec<String>,
}

/// `POST /v1/quotes`. A quote that cannot be kept is an answer like any other: `kept` is false and `binds` says why.
pub(super) async fn create(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let body: QuoteBody = parse_body(&body)?;
    let work = work(&gateway, &tenant, &body.input_file_id).await?;
    let ask = QuoteAsk {
        tenant,
        work,
        deadline: body.deadline.map(|seconds| TimeMs(seconds.saturating_mul(1000))),
        budget_usd_micro: body.budget_usd_micro,
        classes: body.classes,
    };
    let quote: Quote = gateway.ask(ApiVerb::Quote, &ask).await?;
    let mut answer = serde_json::to_value(&quote)
        .map_err(|error| ApiError::invalid(format!("The quote cannot be written: {error}")))?;
    answer["object"] = "ternfleet.quote".into();
    Ok(Json(answer))
}

/// Reads an uploaded file once and counts the prompts of some of its lines.
pub(super) async fn work(gateway: &Gateway, tenant: &TenantId, file: &str) -> ApiResult<WorkSample> {
    let content = match gateway.bus().object_get(&files_bucket(tenant), file, 0).await {
        Ok(content) => content,
        Err(BusError::NotFound(_)) => return Err(ApiError::not_found("file", file).about("input_file_id")),
        Err(error) => return Err(error.into()),
    };
    let sample = sample::read(&mut BufReader::with_capacity(256 << 10, content), QUOTE_SAMPLE_MAX)
        .await
        .map_err(|error| BusError::Unreachable(error.to_string()))?;
    Ok(sample.counted_by_fleet(gateway.bus(), &table::api(ApiVerb::Count), tenant).await)
}
