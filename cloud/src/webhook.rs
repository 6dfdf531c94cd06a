//! One signed request to an address that a tenant chose: the call at the end of a batch.
//!
//! A tenant must not make the coordinator talk to machines that the tenant cannot reach. So the name is looked up
//! once, each address it has is held against the ranges that belong to no public host, and the connection goes to the
//! very address that was looked at. No redirect is followed, and nothing of the answer but its status is kept.
//!
//! Signatures follow Standard Webhooks (<https://www.standardwebhooks.com>), which OpenAI's clients verify too.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::{Host, Url};

use crate::http::Server;

/// The whole call, from looking up the name to the answer's last byte.
const TIMEOUT: Duration = Duration::from_secs(15);
const URL_BYTES_MAX: usize = 2048;
/// What Standard Webhooks allows for a key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Why a call cannot be made, or did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Address or secret are of no use; no repetition helps.
    #[error("{0}")]
    Unusable(String),
    /// The address leads into a network that callers may not reach through us.
    #[error(
        "{host} is {address}, which is not a public address: the operator can allow it in the \
         coordinator's webhooks.allow"
    )]
    NotPublic { host: String, address: IpAddr },
    /// The receiver wants no more calls (410).
    #[error("the receiver no longer exists (410)")]
    Gone,
    /// Worth another try.
    #[error("{0}")]
    Failed(String),
}

impl WebhookError {
    /// True if the same call may succeed later.
    pub fn may_pass(&self) -> bool {
        // A name may lead elsewhere tomorrow, and is looked at again then.
        matches!(self, WebhookError::Failed(_) | WebhookError::NotPublic { .. })
    }
}

/// Where to call, and the key to sign with.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    url: Url,
    key: Option<Vec<u8>>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl Webhook {
    /// `https://host[:port]/path`; the secret as Standard Webhooks writes it, `whsec_` and base64. `allow` names hosts
    /// (`host` or `host:port`) that may be private, and spoken to by `http://`.
    ///
    /// # Errors
    /// What is wrong with address or secret, for the person who gave it.
    pub fn new(url: &str, secret: Option<&str>, allow: &[String]) -> Result<Webhook, WebhookError> {
        let unusable =
            |why: &str| WebhookError::Unusable(format!("the webhook {url:?} cannot be called: {why}"));
        if url.len() > URL_BYTES_MAX {
            return Err(WebhookError::Unusable(format!("a webhook may have {URL_BYTES_MAX} bytes at most")));
        }
        let parsed = Url::parse(url).map_err(|reason| unusable(&reason.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(unusable(
                "a name and password in the address would appear in logs; use a signature \
                                 instead",
            ));
        }
        let webhook = Webhook { url: parsed, key: secret.map(key_of).transpose()? };
        let Some(host) = webhook.url.host() else { return Err(unusable("it has no host")) };
        let allowed = webhook.is_allowed(allow);
        match webhook.url.scheme() {
            "https" => {}
            "http" if allowed => {}
            "http" => return Err(unusable("it must begin with https://")),
            _ => return Err(unusable("only https:// is supported")),
        }
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        if let Some(address) = address.filter(|address| !allowed && !is_public(*address)) {
            return Err(WebhookError::NotPublic { host: host.to_string(), address });
        }
        Ok(webhook)
    }

    /// Posts the body once. `id` is the same at every repetition, so that the receiver can tell one from a second event.
    ///
    /// # Errors
    /// Anything but a 2xx answer.
    pub async fn call(
        &self,
        id: &str,
        now_s: u64,
        body: &[u8],
        allow: &[String],
    ) -> Result<(), WebhookError> {
        let called = tokio::time::timeout(TIMEOUT, self.call_unbounded(id, now_s, body, allow)).await;
        called.unwrap_or_else(|_| Err(WebhookError::Failed(format!("no reply within {TIMEOUT:?}"))))
    }

    async fn call_unbounded(
        &self,
        id: &str,
        now_s: u64,
        body: &[u8],
        allow: &[String],
    ) -> Result<(), WebhookError> {
        let failed = |reason: String| WebhookError::Failed(reason);
        let secure = self.url.scheme() == "https";
        let address = self.look_up(allow).await?;
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let server = Server::pinned(host, address, secure, TIMEOUT).map_err(|e| failed(e.to_string()))?;
        let mut path = self.url.path().to_owned();
        if let Some(query) = self.url.query() {
            path = format!("{path}?{query}");
        }
        let mut headers = vec![("webhook-id", id.to_owned()), ("webhook-timestamp", now_s.to_string())];
        if let Some(key) = &self.key {
            headers.push(("webhook-signature", signature(key, id, now_s, body)));
        }
        let answer = server.post(&path, &headers, body.to_vec()).await.map_err(|e| failed(e.to_string()))?;
        match answer.status {
            200..=299 => Ok(()),
            410 => Err(WebhookError::Gone),
            status => Err(failed(format!("{host} replied {status}"))),
        }
    }

    /// The one address that will be connected to. A name with any private address is refused as a whole.
    async fn look_up(&self, allow: &[String]) -> Result<SocketAddr, WebhookError> {
        let port = self.url.port_or_known_default().unwrap_or(443);
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|reason| WebhookError::Failed(format!("{host} is not found: {reason}")))?.collect();
        if !self.is_allowed(allow)
            && let Some(private) = found.iter().find(|address| !is_public(address.ip()))
        {
            return Err(WebhookError::NotPublic { host, address: private.ip() });
        }
        found.first().copied().ok_or_else(|| WebhookError::Failed(format!("{host} has no address")))
    }

    fn is_allowed(&self, allow: &[String]) -> bool {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or_default();
        allow.iter().any(|entry| *entry == host || *entry == format!("{host}:{port}"))
    }
}

fn key_of(secret: &str) -> Result<Vec<u8>, WebhookError> {
    let key = STANDARD.decode(secret.trim().trim_start_matches("whsec_")).ok();
    key.filter(|key| KEY_BYTES.contains(&key.len())).ok_or_else(|| {
        WebhookError::Unusable(
            "the webhook's secret must be whsec_ followed by the base64 of 24 to 64 bytes: create one with \
             `echo whsec_$(openssl rand -base64 32)`"
                .to_owned(),
        )
    })
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
fn signature(key: &[u8], id: &str, now_s: u64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{now_s}.").into_bytes();
    signed.extend_from_slice(body);
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), &signed);
    format!("v1,{}", STANDARD.encode(tag))
}

/// False for every range that the registries of special-purpose addresses (RFC 6890 and its updates) set apart.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18);
    !special
}

/// Global unicast alone, without the ranges that stand for an IPv4 address behind a gateway.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let special = (a == 0x2001 && (b < 0x0200 || b == 0x0db8)) || a == 0x2002 || (a == 0x3fff && b < 0x1000);
    a & 0xe000 == 0x2000 && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_no_public_host_are_refused_in_every_spelling() {
        for url in [
            "https://127.0.0.1/x",
            "https://127.1/x",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://0/",
            "https://10.0.0.8/",
            "https://172.16.3.4:8443/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data",
            "https://100.64.0.1/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[fe80::1]/",
            "https://[fc00::1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
        ] {
            let refused = Webhook::new(url, None, &[]);
            assert!(matches!(refused, Err(WebhookError::NotPublic { .. })), "{url}: {refused:?}");
        }
        for url in ["https://1.1.1.1/", "https://[2606:4700::1111]/", "https://hooks.example.com/a?b=c"] {
            Webhook::new(url, None, &[]).unwrap();
        }
    }

    #[test]
    fn clear_text_and_other_schemes_are_refused_unless_the_operator_names_the_host() {
        for url in
            ["http://hooks.example.com/", "ftp://a.b/", "file:///etc/passwd", "gopher://x/", "hooks", ""]
        {
            assert!(matches!(Webhook::new(url, None, &[]), Err(WebhookError::Unusable(_))), "{url}");
        }
        let allow = ["127.0.0.1:9000".to_owned(), "hooks.internal".to_owned()];
        Webhook::new("http://127.0.0.1:9000/done", None, &allow).unwrap();
        Webhook::new("http://hooks.internal:81/done", None, &allow).unwrap();
        assert!(Webhook::new("http://127.0.0.1:9001/done", None, &allow).is_err(), "another port");
        assert!(Webhook::new("https://user:secret@hooks.internal/", None, &allow).is_err());
    }

    #[tokio::test]
    async fn a_name_that_leads_into_this_machine_is_refused_when_it_is_looked_up() {
        let webhook = Webhook::new("https://localhost/", None, &[]).unwrap();
        let refused = webhook.call("batch_1", 1, b"{}", &[]).await;
        assert!(matches!(refused, Err(WebhookError::NotPublic { .. })), "{refused:?}");
    }

    /// The example of the specification's own test suite.
    #[test]
    fn the_signature_is_the_one_of_standard_webhooks() {
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed =
            signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_of_another_form_is_told_apart() {
        for secret in ["", "whsec_", "hunter2", "whsec_!!!!", "whsec_c2hvcnQ="] {
            assert!(matches!(key_of(secret), Err(WebhookError::Unusable(_))), "{secret}");
        }
    }
}
