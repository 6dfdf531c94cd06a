//! One HTTP request over one connection, with a deadline: enough for an API that is asked a few times a minute.
//!
//! HTTPS by rustls with the root certificates of public authorities and of the system; plain HTTP only to this machine, for mock servers. No pool,
//! no redirects (a redirect would carry the key elsewhere), no retry: the caller knows what may be repeated.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A stream's first bytes may take this long.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(5);
/// Nobody waits longer for a stream to fall silent.
const STREAM_WITHIN: Duration = Duration::from_secs(8);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A secret that is sent and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The request never left: nothing can have happened.
    #[error("cannot connect to {host}: {reason}")]
    NotSent { host: String, reason: String },
    /// It may have been carried out.
    #[error("no complete reply from {host}: {reason}")]
    Lost { host: String, reason: String },
    /// The address is none.
    #[error("{0}")]
    Address(String),
}

/// An answer that is read as it comes. Dropping it ends the connection.
#[derive(Debug)]
pub struct Streamed {
    pub status: u16,
    pub retry_after: Option<Duration>,
    host: String,
    body: Incoming,
    connection: AbortHandle,
}

impl Streamed {
    /// The next bytes; `None` at the end of a whole answer.
    pub async fn next(&mut self) -> Option<Result<Bytes, HttpError>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                    _ => {}
                },
                Err(reason) => {
                    let lost = HttpError::Lost { host: self.host.clone(), reason: told(&reason) };
                    return Some(Err(lost));
                }
            }
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// How much of an answer is read.
#[derive(Debug, Clone, Copy)]
enum Reading {
    Whole,
    /// A stream that stays open: what has come when it has been quiet for so long, or has so many bytes.
    UntilQuiet {
        bytes_max: usize,
        quiet: Duration,
    },
}

/// A server and the key to it.
#[derive(Clone)]
pub struct Server {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    key: Option<Secret>,
    timeout: Duration,
    /// Connected to in place of what the host's name would lead to.
    address: Option<SocketAddr>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Server {
    /// `https://host[:port]`, or `http://` to this machine only: a key must not cross a network in clear.
    pub fn new(base: &str, key: Option<Secret>, timeout: Duration) -> Result<Server, HttpError> {
        let wrong = |why: &str| HttpError::Address(format!("{base:?} is not a valid address: {why}"));
        let (secure, rest) = match (base.strip_prefix("https://"), base.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong("it must begin with https://")),
        };
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
            return Err(wrong("it must be a host without a path"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong("the port is not a number"))?),
            None => (authority, if secure { 443 } else { 80 }),
        };
        if !secure && !matches!(host, "127.0.0.1" | "localhost") {
            return Err(wrong("http:// is allowed only for this machine"));
        }
        let tls = if secure { Some(tls_settings()?) } else { None };
        Ok(Server { host: host.to_owned(), port, tls, key, timeout, address: None })
    }

    /// A server whose address has been looked up, and looked at, by the caller: its name is in `Host`, and is what
    /// its certificate must say.
    pub(crate) fn pinned(
        host: &str,
        address: SocketAddr,
        secure: bool,
        timeout: Duration,
    ) -> Result<Server, HttpError> {
        let tls = if secure { Some(tls_settings()?) } else { None };
        let port = address.port();
        Ok(Server { host: host.to_owned(), port, tls, key: None, timeout, address: Some(address) })
    }

    /// Sends one request; `path` begins with a slash and may carry a query. Any status is an answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Answer, HttpError> {
        self.ask(self.request(method, path, body)?, Reading::Whole).await
    }

    /// Reads what a stream of server-sent events has to tell by now.
    pub async fn listen(&self, path: &str, bytes_max: usize, quiet: Duration) -> Result<Answer, HttpError> {
        let mut request = self.request(Method::GET, path, None)?;
        let stream = hyper::header::HeaderValue::from_static("text/event-stream");
        request.headers_mut().insert(hyper::header::ACCEPT, stream);
        self.ask(request, Reading::UntilQuiet { bytes_max, quiet }).await
    }

    /// Posts JSON and answers with the head of what comes, so that the rest can be read piece by piece. Only the
    /// connection has a limit of time: how long the head and each piece may take is the caller's to say.
    pub async fn open(&self, path: &str, body: Vec<u8>) -> Result<Streamed, HttpError> {
        let request = self.request(Method::POST, path, Some(body))?;
        let (mut sender, connection) = match self.connect().await? {
            Connected::Plain(stream) => self.begin(stream).await?,
            Connected::Secure(stream) => self.begin(stream).await?,
        };
        let task = tokio::spawn(connection);
        let connection = task.abort_handle();
        let response = sender.send_request(request).await.map_err(|reason| {
            connection.abort();
            self.lost(&told(&reason))
        })?;
        Ok(Streamed {
            status: response.status().as_u16(),
            retry_after: retry_after(&response),
            host: self.host.clone(),
            body: response.into_body(),
            connection,
        })
    }

    /// A connection that is driven by whoever owns the future.
    async fn begin<S>(&self, stream: S) -> Result<(SendRequest<Full<Bytes>>, Driven), HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|reason| self.not_sent(&reason.to_string()))?;
        let driven: Driven = Box::pin(async move {
            // A connection that breaks shows at its answer.
            let _ = connection.await;
        });
        Ok((sender, driven))
    }

    /// Reads; any status is an answer.
    pub async fn get(&self, path: &str) -> Result<Answer, HttpError> {
        self.send(Method::GET, path, None).await
    }

    /// Posts JSON with headers of its own; any status is an answer.
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Result<Answer, HttpError> {
        let mut request = self.request(Method::POST, path, Some(body))?;
        for (name, value) in headers {
            let value = hyper::header::HeaderValue::from_str(value).map_err(|_| {
                HttpError::Address(format!(
                    "{name} contains characters that are not allowed \
                                                         in a header"
                ))
            })?;
            request.headers_mut().insert(*name, value);
        }
        self.ask(request, Reading::Whole).await
    }

    async fn ask(&self, request: Request<Full<Bytes>>, reading: Reading) -> Result<Answer, HttpError> {
        match self.connect().await? {
            Connected::Plain(stream) => self.exchange(stream, request, reading).await,
            Connected::Secure(stream) => self.exchange(stream, request, reading).await,
        }
    }

    async fn connect(&self) -> Result<Connected, HttpError> {
        let connected = async {
            match self.address {
                Some(address) => TcpStream::connect(address).await,
                None => TcpStream::connect((self.host.as_str(), self.port)).await,
            }
        };
        let stream = tokio::time::timeout(self.timeout, connected)
            .await
            .map_err(|_| self.not_sent("timed out"))?
            .map_err(|reason| self.not_sent(&reason.to_string()))?;
        match &self.tls {
            None => Ok(Connected::Plain(stream)),
            Some(settings) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|_| HttpError::Address(format!("{} is not a host name", self.host)))?;
                let connector = TlsConnector::from(Arc::clone(settings));
                let stream = tokio::time::timeout(self.timeout, connector.connect(name, stream))
                    .await
                    .map_err(|_| self.not_sent("timed out"))?
                    .map_err(|reason| self.not_sent(&reason.to_string()))?;
                Ok(Connected::Secure(Box::new(stream)))
            }
        }
    }

    async fn exchange<S>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
        reading: Reading,
    ) -> Result<Answer, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let talk = async {
            let (mut sender, connection) = self.begin(stream).await?;
            // The connection is driven here, beside the request, so that no task outlives the call.
            let asked = async {
                let response =
                    sender.send_request(request).await.map_err(|reason| self.lost(&reason.to_string()))?;
                let status = response.status().as_u16();
                let retry_after = retry_after(&response);
                let body = match reading {
                    Reading::UntilQuiet { bytes_max, quiet } if status == 200 => {
                        until_quiet(response.into_body(), bytes_max, quiet).await
                    }
                    _ => {
                        let whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
                        whole.map_err(|reason| self.lost(&reason.to_string()))?.to_bytes()
                    }
                };
                Ok(Answer { status, retry_after, body })
            };
            tokio::pin!(asked);
            tokio::select! {
                answer = &mut asked => answer,
                _ = connection => asked.await,
            }
        };
        let patience = match reading {
            Reading::Whole => self.timeout,
            Reading::UntilQuiet { .. } => self.timeout + STREAM_WITHIN + FIRST_BYTES_WITHIN,
        };
        tokio::time::timeout(patience, talk).await.map_err(|_| self.lost("timed out"))?
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, self.authority())
            .header(hyper::header::ACCEPT, "application/json")
            .header(hyper::header::CONNECTION, "close")
            .header(hyper::header::USER_AGENT, concat!("ternfleet/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            let mut value = hyper::header::HeaderValue::from_str(&format!("Bearer {}", key.reveal()))
                .map_err(|_| {
                    HttpError::Address(
                        "the key contains characters that are not allowed in a \
                                                 header"
                            .to_owned(),
                    )
                })?;
            value.set_sensitive(true);
            request = request.header(hyper::header::AUTHORIZATION, value);
        }
        if body.is_some() {
            request = request.header(hyper::header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|reason| HttpError::Address(format!("{path:?}: {reason}")))
    }

    /// Host and port as `Host` has them: without the port that the scheme implies.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let implied = if self.tls.is_some() { 443 } else { 80 };
        if self.port == implied { host } else { format!("{host}:{}", self.port) }
    }

    fn not_sent(&self, reason: &str) -> HttpError {
        HttpError::NotSent { host: self.host.clone(), reason: reason.to_owned() }
    }

    fn lost(&self, reason: &str) -> HttpError {
        HttpError::Lost { host: self.host.clone(), reason: reason.to_owned() }
    }
}

/// An open connection.
enum Connected {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// The work of a connection.
type Driven = Pin<Box<dyn Future<Output = ()> + Send>>;

fn retry_after(response: &hyper::Response<Incoming>) -> Option<Duration> {
    let header = response.headers().get(hyper::header::RETRY_AFTER)?;
    header.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// An error with what is behind it: hyper's own texts say only where it was noticed.
fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What comes before a pause, an end or a fault: of a stream of lines each part is worth having.
async fn until_quiet(mut body: Incoming, bytes_max: usize, quiet: Duration) -> Bytes {
    let mut read = Vec::new();
    let mut patience = FIRST_BYTES_WITHIN;
    let begun = std::time::Instant::now();
    while read.len() < bytes_max && begun.elapsed() < STREAM_WITHIN {
        let Ok(Some(Ok(frame))) = tokio::time::timeout(patience, body.frame()).await else { break };
        if let Some(data) = frame.data_ref() {
            read.extend_from_slice(data);
            patience = quiet;
        }
    }
    read.truncate(bytes_max);
    read.into()
}

fn root_certificates() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(loaded.certs);
    // An image may come without any; those of public authorities are built in.
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots
}

fn tls_settings() -> Result<Arc<ClientConfig>, HttpError> {
    let roots = root_certificates();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let settings = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|reason| HttpError::Address(reason.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(settings))
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where certificates of the system are looked for, in a process of its own: its variables are nobody else's.
    #[test]
    fn public_authorities_are_known_where_the_system_has_no_certificates() {
        const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
        const NOTHING: &str = "/nowhere/at/all";
        if VARIABLES.iter().all(|name| std::env::var(name).is_ok_and(|path| path == NOTHING)) {
            assert!(rustls_native_certs::load_native_certs().certs.is_empty(), "the system has none");
            let roots = root_certificates();
            assert_eq!(roots.len(), webpki_roots::TLS_SERVER_ROOTS.len());
            assert!(roots.len() > 50, "{} certificates", roots.len());
            return;
        }
        let name = std::thread::current().name().expect("because tests run under their names").to_owned();
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &name]).envs(VARIABLES.map(|name| (name, NOTHING)));
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
