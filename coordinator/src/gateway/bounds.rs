//! What a caller may make the gateway hold: bytes around a form's file, seconds that a body may take, readers of the
//! live page. Connections are bounded in `http`, jobs by the coordinator's quotas.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::multipart::Field;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt, stream};
use ternfleet_proto::message::{Refusal, RefusalCode};
use ternfleet_proto::{TenantId, table};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout};

use super::Gateway;
use super::error::{ApiError, ApiResult};
use crate::counted::{Counted, Counts};

/// Bytes of a form that are not its file's content: boundaries, part headers, small fields, and what has been read
/// ahead.
const FORM_BYTES_MAX: u64 = 1 << 20;
const SMALL_FIELD_BYTES_MAX: usize = 1024;
/// A body that brings nothing for so long is given up.
const BODY_SILENCE_MAX: Duration = Duration::from_secs(20);
/// After so long a body must have come at least at [`BODY_RATE_MIN`] on average.
const BODY_GRACE: Duration = Duration::from_secs(30);
/// Bytes a second.
const BODY_RATE_MIN: f64 = 1024.0;
/// The quota is looked at again after so many bytes of an upload.
const QUOTA_EVERY_BYTES: u64 = 16 << 20;

/// A form whose every part but the file's content is small.
pub(super) struct Form {
    parts: Multipart,
    /// Bytes of the body that may have been read: those handed on as content, and the rest of the form.
    allowed: Arc<AtomicU64>,
}

impl Form {
    pub(super) async fn of(request: Request) -> ApiResult<Form> {
        let allowed = Arc::new(AtomicU64::new(FORM_BYTES_MAX));
        let (head, body) = request.into_parts();
        let body = Body::from_stream(within(body.into_data_stream(), Arc::clone(&allowed)));
        let parts = Multipart::from_request(Request::from_parts(head, body), &())
            .await
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Form { parts, allowed })
    }

    pub(super) async fn next(&mut self) -> ApiResult<Option<Field<'_>>> {
        self.parts.next_field().await.map_err(broken)
    }

    /// To be told how much of the file was taken.
    pub(super) fn allowed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.allowed)
    }
}

fn broken(error: axum::extract::multipart::MultipartError) -> ApiError {
    ApiError::invalid(format!("The upload was interrupted: {error}"))
}

/// A field of a few characters.
pub(super) async fn small_field(name: &str, mut field: Field<'_>) -> ApiResult<String> {
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        if text.len() + chunk.len() > SMALL_FIELD_BYTES_MAX {
            let message = format!("The form field {name:?} is longer than {SMALL_FIELD_BYTES_MAX} bytes.");
            return Err(ApiError::invalid(message).about(name));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text)
        .map_err(|_| ApiError::invalid(format!("The form field {name:?} is not UTF-8.")).about(name))
}

/// The stream, broken off where it is longer than allowed.
fn within<S, E>(body: S, allowed: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes, axum::BoxError>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Into<axum::BoxError>,
{
    let mut read = 0u64;
    body.map(move |chunk| {
        let chunk = chunk.map_err(Into::into)?;
        read += chunk.len() as u64;
        if read > allowed.load(Ordering::Relaxed) {
            return Err("the form is larger than a file with its fields may be".into());
        }
        Ok(chunk)
    })
}

/// Middleware: a body that stops coming, or comes too slowly, breaks off.
pub(super) async fn patiently(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let begin = (body.into_data_stream(), Instant::now(), 0u64);
    let body = stream::unfold(Some(begin), |state| async move {
        let (mut chunks, began, mut bytes) = state?;
        let slow = || -> axum::BoxError { "the body arrives too slowly".into() };
        let chunk = match timeout(BODY_SILENCE_MAX, chunks.next()).await {
            Err(_) => return Some((Err(slow()), None)),
            Ok(chunk) => chunk?,
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error.into()), None)),
        };
        bytes += chunk.len() as u64;
        let took = began.elapsed();
        if took > BODY_GRACE && (bytes as f64) < BODY_RATE_MIN * took.as_secs_f64() {
            return Some((Err(slow()), None));
        }
        Some((Ok::<Bytes, axum::BoxError>(chunk), Some((chunks, began, bytes))))
    });
    next.run(Request::from_parts(head, Body::from_stream(body))).await
}

/// The tenant's quota of stored bytes, looked at while a file arrives.
pub(super) struct StoredQuota<'a> {
    gateway: &'a Gateway,
    tenant: &'a TenantId,
    look_at: u64,
}

impl<'a> StoredQuota<'a> {
    pub(super) fn new(gateway: &'a Gateway, tenant: &'a TenantId) -> Self {
        Self { gateway, tenant, look_at: 0 }
    }

    /// After `bytes` of the file. What is stored of it already counts like everything else of the tenant.
    pub(super) async fn check(&mut self, bytes: u64) -> ApiResult<()> {
        if bytes < self.look_at {
            return Ok(());
        }
        self.look_at = bytes + QUOTA_EVERY_BYTES;
        let limit = self.gateway.shared.stored_bytes_max;
        let stream = table::object_stream(&table::files_bucket(self.tenant));
        let stored = self.gateway.bus().stream_facts(&stream).await?.bytes;
        if stored <= limit {
            return Ok(());
        }
        let message = format!(
            "The files of tenant {} take {stored} bytes, with what has arrived of this one; the limit is \
             {limit}: \
             delete files, or wait until old batches are deleted.",
            self.tenant
        );
        let refusal = Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(3_600_000) };
        Err(refusal.into())
    }
}

/// Ends a stream of bytes: well if all of them came, with an error if whoever sent them went away.
pub(super) struct Ending(pub(super) Arc<AtomicBool>);

impl AsyncRead for Ending {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(match self.0.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        })
    }
}

/// Readers of endless answers, counted by tenant.
#[derive(Debug, Default)]
pub(super) struct Readers(Counts<TenantId>);

impl Readers {
    pub(super) fn admit(&self, tenant: &TenantId, max: usize) -> ApiResult<Counted<TenantId>> {
        self.0.take_within(tenant.clone(), max, usize::MAX).ok_or_else(|| {
            let message = format!("{max} streams of tenant {tenant} are open, the limit of this gateway.");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_form_is_read_no_further_than_its_file_and_a_little_more() {
        let allowed = Arc::new(AtomicU64::new(10));
        let chunks = stream::iter((0..4).map(|_| Ok::<_, axum::BoxError>(Bytes::from_static(b"12345"))));
        let read: Vec<bool> = within(chunks, Arc::clone(&allowed)).map(|chunk| chunk.is_ok()).collect().await;
        assert_eq!(read, [true, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let drops = stream::unfold(0u32, |n| async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok::<_, axum::BoxError>(Bytes::from_static(b"x")), n + 1))
        });
        let app = axum::Router::new()
            .route("/", axum::routing::post(async |body: Bytes| body.len().to_string()))
            .layer(axum::middleware::from_fn(patiently));
        let request = Request::post("/").body(Body::from_stream(drops)).unwrap();
        let began = Instant::now();
        let app = hyper_util::service::TowerToHyperService::new(app);
        let answer = hyper::service::Service::call(&app, request).await.unwrap();
        assert!(answer.status().is_client_error(), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }

    #[test]
    fn a_tenant_has_so_many_streams_and_no_more() {
        let (readers, tenant) = (Readers::default(), TenantId::default_tenant());
        let first = readers.admit(&tenant, 1).unwrap();
        assert!(readers.admit(&tenant, 1).is_err());
        drop(first);
        assert!(readers.admit(&tenant, 1).is_ok());
    }
}
