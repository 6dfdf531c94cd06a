//! What a client connects with: a token and the seed of its key, as in a `.creds` file.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use nkeys::KeyPair;

use super::{AccessError, jwt, unusable};
use crate::id::TimeMs;
use crate::table::Role;

/// Token and key of one user. Clones share the token, so that a renewed one serves the next reconnection.
#[derive(Clone)]
pub struct Credentials {
    token: Arc<RwLock<String>>,
    key: Arc<KeyPair>,
}

/// Whom a token speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub role: Role,
    /// Public key.
    pub key: String,
    pub expires_at: Option<TimeMs>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("key", &self.key.public_key()).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(token: String, key: KeyPair) -> Credentials {
        Credentials { token: Arc::new(RwLock::new(token)), key: Arc::new(key) }
    }

    /// A token for a key whose public half is `key`'s.
    ///
    /// # Errors
    /// When the token is for another key, or cannot be read.
    pub fn from_parts(token: &str, seed: &str) -> Result<Credentials, AccessError> {
        let key = KeyPair::from_seed(seed).map_err(|reason| unusable("the key's seed", reason))?;
        let credentials = Credentials::new(token.to_owned(), key);
        let holder = credentials.holder()?;
        if holder.key != credentials.key.public_key() {
            return Err(unusable("the credentials", "token and seed belong to different keys"));
        }
        Ok(credentials)
    }

    /// Reads the text of a `.creds` file: the token and the seed, each between lines of dashes.
    ///
    /// # Errors
    /// When a part is missing or not usable.
    pub fn parse(text: &str) -> Result<Credentials, AccessError> {
        let mut parts = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut after = |title: &str| {
            parts.find(|line| line.starts_with("---") && line.contains(title) && line.contains("BEGIN"))?;
            parts.next()
        };
        let token =
            after("NATS USER JWT").ok_or_else(|| unusable("the credentials", "they hold no token"))?;
        let seed = after("USER NKEY SEED").ok_or_else(|| unusable("the credentials", "they hold no seed"))?;
        Credentials::from_parts(token, seed)
    }

    /// The text of a `.creds` file. It holds the seed: keep it readable by its owner alone.
    pub fn file(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            self.token(),
            self.seed(),
        )
    }

    pub fn token(&self) -> String {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn public_key(&self) -> String {
        self.key.public_key()
    }

    pub(super) fn seed(&self) -> String {
        self.key.seed().expect("because these keys are made with their seed")
    }

    /// Replaces the token; connections use it from their next reconnection on.
    ///
    /// # Errors
    /// When it is for another key.
    pub fn renew(&self, token: String) -> Result<(), AccessError> {
        if holder_of(&token)?.key != self.public_key() {
            return Err(unusable("the new token", "it is for another key"));
        }
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
        Ok(())
    }

    /// Signs what the server asks to have signed.
    ///
    /// # Errors
    /// When the key has no private half.
    pub fn sign(&self, nonce: &[u8]) -> Result<Vec<u8>, AccessError> {
        self.key.sign(nonce).map_err(|reason| unusable("the key", reason))
    }

    /// Whom the token speaks of.
    ///
    /// # Errors
    /// When it is not one of ours.
    pub fn holder(&self) -> Result<Holder, AccessError> {
        holder_of(&self.token())
    }
}

pub(super) fn holder_of(token: &str) -> Result<Holder, AccessError> {
    let claims = jwt::claims(token)?;
    let text = |key: &str| {
        claims[key].as_str().map(str::to_owned).ok_or_else(|| unusable("the token", format!("no {key}")))
    };
    let tags = claims["nats"]["tags"].as_array().into_iter().flatten();
    let role = tags
        .filter_map(|tag| Role::parse(tag.as_str()?.strip_prefix("role:")?))
        .next()
        .ok_or_else(|| unusable("the token", "it has no role of a fleet"))?;
    let expires_at = claims["exp"].as_u64().map(|seconds| TimeMs(seconds * 1000));
    Ok(Holder { name: text("name")?, role, key: text("sub")?, expires_at })
}
