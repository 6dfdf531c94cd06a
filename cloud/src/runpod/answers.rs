//! What each answer of the API means to the caller.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::wire::ErrorBody;
use crate::http::Answer;
use crate::provider::CloudError;

/// Waited when a 429 does not say for how long.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Of a foreign text, this much is repeated.
const DETAIL_CHARS_MAX: usize = 300;

/// The fault that a refusing answer stands for. Meant for statuses that are not a success.
pub(super) fn fault(answer: &Answer, path: &str) -> CloudError {
    let detail = detail(answer);
    match answer.status {
        400 => CloudError::NoCapacity(detail),
        401 => CloudError::Unauthorized(detail),
        402 => CloudError::NoBalance(detail),
        403 => CloudError::Forbidden(detail),
        404 => CloudError::NotFound(path.split('?').next().unwrap_or(path).to_owned()),
        409 => CloudError::Conflict(detail),
        413 | 422 => CloudError::Invalid(detail),
        429 => CloudError::RateLimited { retry_after: answer.retry_after.unwrap_or(RETRY_AFTER) },
        408 | 500..=599 => CloudError::Uncertain(detail),
        status => CloudError::Protocol(format!("status {status}: {detail}")),
    }
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, CloudError> {
    serde_json::from_slice(body).map_err(|fault| CloudError::Protocol(format!("{what}: {fault}")))
}

/// The problem's own words (RFC 9457), or the status alone.
fn detail(answer: &Answer) -> String {
    let told = match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(problem) if problem.errors.is_empty() => problem.detail,
        Ok(problem) => format!("{} ({})", problem.detail, problem.errors.join("; ")),
        Err(_) => String::new(),
    };
    let told: String = told.chars().take(DETAIL_CHARS_MAX).collect();
    if told.is_empty() { format!("status {}", answer.status) } else { told }
}
