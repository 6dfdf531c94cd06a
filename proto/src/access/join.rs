//! How a new pod gets in: a token with a short life, exchanged for credentials whose private keys never leave the pod.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;

use super::credentials::Credentials;
use super::{AccessError, Issuer, unusable};
use crate::id::{TimeMs, WorkerId};
use crate::message::{JoinGrant, JoinRequest};
use crate::table::Role;

const PREFIX: &str = "tfjoin_";

/// Begins the name of a token that was made for one order.
const ORDER: &str = "order-";
/// Begins the name of what such a pod keeps.
const RENTED: &str = "rented-";

/// Who asks to be let in, as the name in its token says, which the server holds it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joiner<'a> {
    /// A rented pod with the token of its order: good for one pod, once.
    Order { pod: &'a str },
    /// A rented pod that was let in before.
    Rented { pod: &'a str },
    /// A pod of somebody else's, or a worker.
    Other,
}

impl<'a> Joiner<'a> {
    pub fn parse(name: &'a str) -> Joiner<'a> {
        match (name.strip_prefix(ORDER), name.strip_prefix(RENTED)) {
            (Some(pod), _) => Joiner::Order { pod },
            (_, Some(pod)) => Joiner::Rented { pod },
            _ => Joiner::Other,
        }
    }

    /// The rented pod that the name is bound to.
    pub fn pod(self) -> Option<&'a str> {
        match self {
            Joiner::Order { pod } | Joiner::Rented { pod } => Some(pod),
            Joiner::Other => None,
        }
    }

    /// What the pod of an order is called once it is in.
    pub fn rented_name(pod: &str) -> String {
        format!("{RENTED}{pod}")
    }
}

/// One line that lets its bearer ask for a worker's credentials, and do nothing else, until it expires.
#[derive(Debug, Clone)]
pub struct JoinToken(Credentials);

impl JoinToken {
    /// Makes one.
    ///
    /// # Errors
    /// As [`Issuer::token`].
    pub fn make(issuer: &Issuer, name: &str, now: TimeMs, life: Duration) -> Result<JoinToken, AccessError> {
        issuer.user(Role::Joiner, name, now, life).map(JoinToken)
    }

    /// Makes one for the pod of one order.
    ///
    /// # Errors
    /// As [`Issuer::token`].
    pub fn for_order(
        issuer: &Issuer,
        pod: &str,
        now: TimeMs,
        life: Duration,
    ) -> Result<JoinToken, AccessError> {
        JoinToken::make(issuer, &format!("{ORDER}{pod}"), now, life)
    }

    /// Reads the line.
    ///
    /// # Errors
    /// When it is no join token.
    pub fn parse(line: &str) -> Result<JoinToken, AccessError> {
        let what = "the join token";
        let body = line.trim().strip_prefix(PREFIX);
        let body = body.ok_or_else(|| unusable(what, format!("it does not begin with {PREFIX}")))?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|reason| unusable(what, reason))?;
        let text = String::from_utf8(bytes).map_err(|reason| unusable(what, reason))?;
        let (token, seed) = text.split_once('\n').ok_or_else(|| unusable(what, "it is cut off"))?;
        let credentials = Credentials::from_parts(token, seed)?;
        if credentials.holder()?.role != Role::Joiner {
            return Err(unusable(what, "it is for another role"));
        }
        Ok(JoinToken(credentials))
    }

    /// The line. It is a secret for as long as it lives.
    pub fn line(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(format!("{}\n{}", self.0.token(), self.0.seed())))
    }

    pub fn credentials(&self) -> &Credentials {
        &self.0
    }
}

/// What a pod keeps between two starts of its worker: credentials to ask again, longer-lived than a join token.
#[derive(Debug, Clone)]
pub struct PodFile(pub Credentials);

/// Keys that a worker has made and not yet had signed.
pub struct Asking {
    worker: WorkerId,
    worker_key: KeyPair,
    pod_key: KeyPair,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Asking {
    pub fn new(worker: WorkerId) -> Asking {
        Asking { worker, worker_key: KeyPair::new_user(), pod_key: KeyPair::new_user() }
    }

    /// What to ask: public keys alone.
    pub fn request(&self) -> JoinRequest {
        JoinRequest {
            worker: self.worker.clone(),
            worker_key: self.worker_key.public_key(),
            pod_key: Some(self.pod_key.public_key()),
            facts: None,
        }
    }

    /// Puts tokens and keys together.
    ///
    /// # Errors
    /// When the tokens are not for these keys.
    pub fn granted(self, grant: JoinGrant) -> Result<(Credentials, Option<PodFile>), AccessError> {
        let seed = |key: &KeyPair| key.seed().map_err(|reason| unusable("the key", reason));
        let worker = Credentials::from_parts(&grant.worker_token, &seed(&self.worker_key)?)?;
        let pod_seed = seed(&self.pod_key)?;
        let pod = grant.pod_token.map(|token| Credentials::from_parts(&token, &pod_seed)).transpose()?;
        Ok((worker, pod.map(PodFile)))
    }
}
