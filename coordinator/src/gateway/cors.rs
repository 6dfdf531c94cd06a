//! Cross-origin requests: pages of the origins that the configuration lists may call this API, and no others.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Gateway;

const METHODS: &str = "GET, POST, DELETE, OPTIONS";
/// The headers that the API's callers send when they ask for none in particular.
const HEADERS: &str = "authorization, content-type, idempotency-key, x-request-id";
const EXPOSED: &str = "x-request-id, retry-after";
const REMEMBERED_S: &str = "600";

/// An origin as browsers send it: scheme, host and port, nothing else.
pub(super) fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    rest.is_some_and(|host| !host.is_empty() && host.bytes().all(plain))
}

/// Middleware: answers preflights of listed origins, and lets them read the answers.
pub(super) async fn allow(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let listed = &gateway.limits().cors_origins;
    if listed.is_empty() {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let origin = origin.filter(|origin| listed.iter().any(|known| known.as_bytes() == origin.as_bytes()));
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some();
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = match &origin {
        Some(_) if asked && request.method() == Method::OPTIONS => {
            let mut response = StatusCode::NO_CONTENT.into_response();
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
            // Clients add headers of their own (x-stainless-… of the openai package): what is sent decides nothing here.
            let wanted = wanted.unwrap_or_else(|| HeaderValue::from_static(HEADERS));
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(REMEMBERED_S));
            response
        }
        _ => next.run(request).await,
    };
    tell(response.headers_mut(), origin);
    response
}

fn tell(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        for good in ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in ["*", "null", "app.example.com", "https://", "https://a.example/path", "https://A.example"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
