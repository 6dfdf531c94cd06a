//! Spans to a collector, by OTLP over HTTP: when the program was built with the feature `otlp` and
//! `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) names one, as OpenTelemetry has it.
//!
//! Plain HTTP alone: a collector runs beside its programs and speaks TLS for them.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing_opentelemetry::OpenTelemetryLayer;

const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Sends what is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Export(SdkTracerProvider);

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            eprintln!("the last spans were not sent: {error}");
        }
    }
}

/// The layer that makes spans, and the guard that sends the last ones.
pub(crate) fn layer<S>(service: &'static str) -> anyhow::Result<(OpenTelemetryLayer<S, SdkTracer>, Export)>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    let exporter = SpanExporter::builder().with_http().with_http_client(Plain).build()?;
    let resource = Resource::builder().with_service_name(service).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("ternfleet"))
        .with_location(false)
        .with_threads(false);
    Ok((layer, Export(provider)))
}

/// One request a connection, on the exporter's own thread: a batch of spans goes out every few seconds.
#[derive(Debug)]
struct Plain;

#[async_trait]
impl HttpClient for Plain {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Ok(post(&request)?)
    }
}

fn post(request: &Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
    let uri = request.uri();
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(|| {
        anyhow::anyhow!("{uri} is not http://: send spans to a collector on this machine or network")
    })?;
    let port = authority.port_u16().unwrap_or(80);
    let address = (authority.host(), port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| anyhow::anyhow!("{authority} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut head = format!("{} {path} HTTP/1.0\r\nHost: {authority}\r\n", request.method());
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str()?));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", request.body().len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(request.body())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.ok_or_else(|| anyhow::anyhow!("{authority} does not speak HTTP"))?;
    let status = std::str::from_utf8(&answer[..end])?.split(' ').nth(1).unwrap_or_default().parse::<u16>()?;
    Ok(Response::builder().status(status).body(Bytes::from(answer.split_off(end + 4)))?)
}
