//! One file on one server: asking for a range of it, and what the many possible answers mean.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, BodyReader};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// Where a file is fetched from, and with whose leave.
pub(crate) struct Source {
    agent: Agent,
    url: String,
    host: String,
    token: Option<String>,
}

/// Never shows the token, nor what an address carries in its query.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("host", &self.host).finish_non_exhaustive()
    }
}

/// What kind of answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Just the range.
    Part { start: u64, total: u64 },
    /// The whole file: the server does not give ranges, or the file is not the one of `if_range`.
    Whole { total: Option<u64> },
}

/// An answer whose bytes are still to be read.
pub(super) struct Opened {
    pub(super) answer: Answer,
    /// Strong entity tag, else date: the same value means the same bytes.
    pub(super) validator: Option<String>,
    pub(super) body: BodyReader<'static>,
}

/// Why there are no bytes.
#[derive(Debug)]
pub(super) enum Fault {
    /// Asking again will not help.
    Final(String),
    /// It may go better later.
    Passing {
        reason: String,
        /// When the server wants to be asked again.
        after: Option<Duration>,
        /// The server has too much to do: ask less at once.
        crowded: bool,
    },
}

impl Source {
    /// `may_be_plain`: whether `http://` beyond this machine is acceptable, because a digest tells what came.
    pub(crate) fn new(url: &str, token: Option<String>, may_be_plain: bool) -> anyhow::Result<Source> {
        let uri: Uri =
            url.parse().map_err(|reason| anyhow::anyhow!("{url:?} is not an address: {reason}"))?;
        let host = uri.host().unwrap_or_default().to_owned();
        let secure = uri.scheme_str() == Some("https");
        ensure!(
            secure || uri.scheme_str() == Some("http"),
            "{url:?} is not an address to download from: it must begin with https:// (or http://)"
        );
        ensure!(!host.is_empty(), "{url:?} has no host");
        let is_here = is_here(&host);
        ensure!(
            secure || is_here || may_be_plain,
            "without a digest, a file is downloaded from {host} only over https://"
        );
        ensure!(
            secure || is_here || token.is_none(),
            "a token is not sent over http:// to {host}: use https://, or unset HF_TOKEN"
        );
        Ok(Source { agent: agent(secure), url: url.to_owned(), host, token })
    }

    /// With a token that may be seen on the way: it opens this file and little else. The digest tells what came.
    pub(crate) fn with_open_token(url: &str, token: String) -> anyhow::Result<Source> {
        Ok(Source { token: Some(token), ..Source::new(url, None, true)? })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Asks for `range`; for all of it where `if_range` is no longer what the server has.
    pub(super) fn open(&self, range: Range<u64>, if_range: Option<&str>) -> Result<Opened, Fault> {
        let mut request = self
            .agent
            .get(&self.url)
            .header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        if let Some(validator) = if_range {
            request = request.header(header::IF_RANGE, validator);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| self.fault_of(&error))?;
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, &head.headers);
        let answer = match status {
            StatusCode::PARTIAL_CONTENT => self.part_of(headers, &range)?,
            StatusCode::OK => Answer::Whole { total: number(headers, header::CONTENT_LENGTH) },
            status => return Err(self.refusal(status, headers)),
        };
        Ok(Opened { answer, validator: validator(headers), body: body.into_reader() })
    }

    fn part_of(&self, headers: &HeaderMap, asked: &Range<u64>) -> Result<Answer, Fault> {
        let told = text(headers, header::CONTENT_RANGE).unwrap_or_default();
        let parsed = content_range(told);
        match parsed {
            Some((start, end, total)) if start == asked.start && end <= asked.end && total >= end => {
                Ok(Answer::Part { start, total })
            }
            _ => Err(self.passing(format!(
                "requested bytes {}-{}, but the reply has {told:?}",
                asked.start,
                asked.end.saturating_sub(1)
            ))),
        }
    }

    /// What a status other than success means to the person who waits.
    fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Fault {
        let (host, code) = (&self.host, status.as_u16());
        match code {
            401 | 403 if self.token.is_none() => Fault::Final(format!(
                "{host} requires a login for this file ({code}): accept the model's terms there, create an \
                 access token, and pass it as HF_TOKEN"
            )),
            401 | 403 => Fault::Final(format!(
                "{host} rejects the token in HF_TOKEN ({code}): it is wrong or expired, or its owner has \
                 not accepted the model's terms"
            )),
            404 | 410 => Fault::Final(format!(
                "{host} has no such file ({code}): {}; it may have moved, or {host} is not a complete mirror",
                self.shown()
            )),
            429 | 500..=599 | 408 | 425 => {
                let after = number(headers, header::RETRY_AFTER).map(Duration::from_secs);
                let why = if code == 429 { "limits the rate of requests" } else { "has a server error" };
                Fault::Passing {
                    reason: format!("{host} {why} ({code})"),
                    after: after.map(|after| after.min(RETRY_AFTER_MAX)),
                    crowded: code == 429 || code == 503,
                }
            }
            416 => self.passing("the file is shorter than expected (416)".to_owned()),
            _ => Fault::Final(format!("{host} answers {status} for {}", self.shown())),
        }
    }

    fn fault_of(&self, error: &ureq::Error) -> Fault {
        use ureq::Error as E;
        match error {
            E::TooManyRedirects => Fault::Final(format!("{} redirects in a loop", self.host)),
            E::BadUri(_) | E::Http(_) | E::InvalidProxyUrl | E::RequireHttpsOnly(_) => {
                Fault::Final(format!("{}: {error}", self.shown()))
            }
            // A certificate does not get better by asking again.
            E::Rustls(_) | E::Tls(_) | E::Pem(_) => {
                Fault::Final(format!("no secure connection to {}: {error}", self.host))
            }
            E::Io(reason) if reason.kind() == io::ErrorKind::InvalidData => {
                Fault::Final(format!("no secure connection to {}: {reason}", self.host))
            }
            E::Io(reason) => self.passing(reason.to_string()),
            _ => self.passing(error.to_string()),
        }
    }

    pub(super) fn passing(&self, reason: String) -> Fault {
        Fault::Passing { reason: format!("{}: {reason}", self.host), after: None, crowded: false }
    }

    /// The address without its query, which may hold a signature.
    fn shown(&self) -> &str {
        self.url.split(['?', '#']).next().unwrap_or_default()
    }
}

/// Whether a host is this machine.
pub(crate) fn is_here(host: &str) -> bool {
    matches!(host, "127.0.0.1" | "localhost" | "[::1]")
}

/// From https, a redirect to http is refused.
pub(crate) fn agent(secure: bool) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(secure)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .user_agent(concat!("ternfleet/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .tls_config(TlsConfig::builder().root_certs(root_certificates()).build())
        .build();
    config.into()
}

/// The system's certificates; those that the program brings along where there are none.
fn root_certificates() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    let owned = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
    RootCerts::Specific(Arc::new(owned.collect()))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = text(headers, header::ETAG).filter(|tag| !tag.starts_with("W/"));
    strong.or_else(|| text(headers, header::LAST_MODIFIED)).map(str::to_owned)
}

/// `bytes 0-99/1000` as (first, one past the last, total).
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last.checked_add(1)?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 0-99/1000"), Some((0, 100, 1000)));
        for wrong in
            ["", "bytes */1000", "bytes 5-2/9", "0-1/2", "bytes 0-1/*", "bytes 0-18446744073709551615/1"]
        {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_crosses_no_network_in_clear_and_plain_http_needs_a_digest() {
        let refused = |url, token: Option<&str>, digest| {
            Source::new(url, token.map(str::to_owned), digest).unwrap_err().to_string()
        };
        assert!(refused("http://mirror.example/x", Some("secret"), true).contains("not sent over http"));
        assert!(refused("http://mirror.example/x", None, false).contains("only over https://"));
        assert!(refused("ftp://mirror.example/x", None, true).contains("https://"));
        let source = Source::new("https://h.example/x?sig=abc", Some("secret".into()), true).unwrap();
        assert!(!format!("{source:?}").contains("secret"));
        assert_eq!(source.shown(), "https://h.example/x");
        assert!(Source::new("http://127.0.0.1:1/x", Some("t".into()), false).is_ok());
    }
}
