//! Errors of the HTTP gateway in OpenAI's shape: `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use ternfleet_proto::message::{Failure, FailureCode, Refusal, RefusalCode};
use ternfleet_proto::{BusError, openai};

use super::Gateway;

/// What a caller is told. `code` is for programs and stays the same; `message` is for people.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after_s: Option<u64>,
}

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after_s: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(super) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("No {what} {id:?} exists for this key."))
    }

    #[must_use]
    pub(super) fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Somebody has decided; anything else may have happened or not.
    pub(super) fn is_refusal(&self) -> bool {
        self.status != StatusCode::SERVICE_UNAVAILABLE && self.status != StatusCode::BAD_GATEWAY
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// OpenAI's error families, which its clients turn into exception classes.
    fn family(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body, also used as an event inside a stream that has begun.
    pub(super) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message, "type": self.family(), "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), code = self.code, message = %self.message, "request failed");
        }
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal.code {
            RefusalCode::Invalid => (StatusCode::BAD_REQUEST, "invalid_request"),
            RefusalCode::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            RefusalCode::Conflict => (StatusCode::CONFLICT, "conflict"),
            RefusalCode::Busy => (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded"),
            RefusalCode::Unaffordable => (StatusCode::BAD_REQUEST, "cannot_be_kept"),
            RefusalCode::NotDurable => (StatusCode::BAD_REQUEST, "not_durable"),
            RefusalCode::ModelNotFound => (StatusCode::NOT_FOUND, "model_not_found"),
            RefusalCode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        };
        let retry_after_s = refusal.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1));
        let param = (refusal.code == RefusalCode::ModelNotFound).then(|| "model".to_owned());
        Self { retry_after_s, param, ..Self::new(status, code, refusal.message) }
    }
}

/// The framework's own refusals (a body that is too long, a query or a form that cannot be read) come as plain text;
/// callers get them in the same shape as ours.
pub(super) async fn in_our_shape(State(gateway): State<Gateway>, response: Response) -> Response {
    const TEXT_BYTES_MAX: usize = 4096;
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("text/plain")));
    let status = response.status();
    if !plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), TEXT_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "wrong_content_type",
        status if status.is_client_error() => "invalid_request",
        _ => "internal",
    };
    let message = match status {
        StatusCode::PAYLOAD_TOO_LARGE => format!(
            "The body has more than {} bytes, the limit: upload a larger batch as a file.",
            gateway.limits().body_bytes_max
        ),
        _ if text.is_empty() => status.to_string(),
        _ => format!("{text}."),
    };
    ApiError::new(status, code, message).into_response()
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        let (status, code) = match &error {
            BusError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            BusError::Exists(_) | BusError::WrongLastSequence => (StatusCode::CONFLICT, "conflict"),
            BusError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
            BusError::Unreachable(_) => (StatusCode::SERVICE_UNAVAILABLE, "bus_unreachable"),
            BusError::Refused(_) => (StatusCode::BAD_GATEWAY, "bus_refused"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let (status, code) = match failure.code {
            FailureCode::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
            FailureCode::PromptTooLong => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
            FailureCode::ModelNotFound => (StatusCode::NOT_FOUND, "model_not_found"),
            FailureCode::BatchExpired => (StatusCode::GATEWAY_TIMEOUT, "expired"),
            FailureCode::BatchCancelled => (StatusCode::CONFLICT, "cancelled"),
            FailureCode::ConstraintDeadEnd => (StatusCode::UNPROCESSABLE_ENTITY, "constraint_dead_end"),
            FailureCode::NotFinite => (StatusCode::INTERNAL_SERVER_ERROR, "not_finite"),
            FailureCode::Poison | FailureCode::WorkerFault | FailureCode::HostFault => {
                (StatusCode::INTERNAL_SERVER_ERROR, "worker_fault")
            }
        };
        let error = Self::new(status, code, failure.message);
        match openai::param(&error.message).map(str::to_owned) {
            Some(param) => error.about(param),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_which_field_it_is_about() {
        let failure = |message: &str| Failure { code: FailureCode::InvalidRequest, message: message.into() };
        let body = ApiError::from(failure("`top_p` must be above 0")).body();
        assert_eq!(body["error"]["param"], "top_p");
        assert_eq!(
            ApiError::from(failure("the body is not JSON")).body()["error"]["param"],
            serde_json::Value::Null
        );
    }

    #[test]
    fn a_spent_quota_says_when_to_come_back() {
        let refusal = Refusal {
            code: RefusalCode::Busy,
            message: "the queue of this tenant is full".into(),
            retry_after_ms: Some(1_200),
        };
        let response = ApiError::from(refusal).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
    }
}
