//! HTTP for object stores, by the client that downloads models: the same certificates, proxies and timeouts.

use std::io;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use ureq::http::{Method, Request, Response};

use crate::fetch;

/// Makes connections; over plain HTTP only to this machine or where the environment allows it (`AWS_ALLOW_HTTP`).
#[derive(Debug)]
pub(super) struct Wire;

#[derive(Debug)]
struct Connected {
    agent: ureq::Agent,
    may_be_plain: bool,
}

impl HttpConnector for Wire {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        let may_be_plain = allowed.is_some_and(|allowed| allowed == "true");
        Ok(HttpClient::new(Connected { agent: fetch::agent(false), may_be_plain }))
    }
}

#[async_trait]
impl HttpService for Connected {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let is_plain = head.uri.scheme_str() != Some("https");
        if is_plain && !self.may_be_plain && !fetch::is_here(head.uri.host().unwrap_or_default()) {
            let reason = io::Error::other("the address is http://, and AWS_ALLOW_HTTP is not true");
            return Err(HttpError::new(HttpErrorKind::Decode, reason));
        }
        let body = body.collect().await?.to_bytes();
        let agent = self.agent.clone();
        let call = move || {
            let has_body = !matches!(head.method, Method::GET | Method::HEAD | Method::DELETE);
            let response = match has_body {
                true => agent.run(Request::from_parts(head, &body[..]))?,
                false => agent.run(Request::from_parts(head, ()))?,
            };
            let (head, body) = response.into_parts();
            let body = body.into_with_config().limit(u64::MAX).read_to_vec()?;
            Ok(Response::from_parts(head, HttpResponseBody::from(body)))
        };
        let called = tokio::task::spawn_blocking(call).await;
        let called = called.map_err(|fault| HttpError::new(HttpErrorKind::Unknown, fault))?;
        called.map_err(|fault: ureq::Error| HttpError::new(kind(&fault), fault))
    }
}

/// What may go better when it is asked again.
fn kind(fault: &ureq::Error) -> HttpErrorKind {
    match fault {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Io(reason) if reason.kind() == io::ErrorKind::InvalidData => HttpErrorKind::Decode,
        ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Decode,
    }
}
