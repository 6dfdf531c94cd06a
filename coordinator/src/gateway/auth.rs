//! API keys: who calls, and on whose account.
//!
//! Keys are 32 random bytes, so a plain BLAKE3 of the key is safe at rest: there is nothing to guess. Without a key
//! file the gateway serves everybody as the default tenant, which is right on loopback and nowhere else; the shell
//! refuses to listen elsewhere without keys.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{StatusCode, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use ternfleet_proto::TenantId;

use super::Gateway;
use super::error::ApiError;

/// The tenant of a request, put there by [`require_key`].
#[derive(Debug, Clone)]
pub(super) struct Caller(pub TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| {
            ApiError::new(StatusCode::UNAUTHORIZED, "no_key", "This request carries no API key.")
        })
    }
}

/// Whoever may change what the fleet rents: everybody where there are no keys, else the keys that say so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator;

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Operator>().copied().ok_or_else(|| {
            let message = "Only operators may do this: use a key with `operator = true` in the key file \
                           (`ternfleet key new --operator`).";
            ApiError::new(StatusCode::FORBIDDEN, "not_an_operator", message)
        })
    }
}

/// Whom a key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    tenant: TenantId,
    operator: bool,
}

/// The keys of a fleet, hashed.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    entries: Arc<Vec<(blake3::Hash, Holder)>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    tenant: TenantId,
    blake3: String,
    /// May change what the fleet rents, and see it.
    #[serde(default)]
    operator: bool,
}

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read the key file {path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error(
        "the key file {path} is not valid: {reason}; each entry reads `[[key]]`, `tenant = …`, `blake3 = …`"
    )]
    Invalid { path: String, reason: String },
}

impl Keys {
    /// Reads `[[key]]` tables with `tenant` and `blake3` (64 hex digits).
    pub fn read(path: &Path) -> Result<Keys, KeyFileError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| KeyFileError::Unreadable { path: shown.clone(), source })?;
        let invalid = |reason: String| KeyFileError::Invalid { path: shown.clone(), reason };
        let file: KeyFile = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        let mut entries = Vec::with_capacity(file.key.len());
        for entry in file.key {
            let hash = blake3::Hash::from_hex(&entry.blake3)
                .map_err(|e| invalid(format!("tenant {}: blake3: {e}", entry.tenant)))?;
            entries.push((hash, Holder { tenant: entry.tenant, operator: entry.operator }));
        }
        Ok(Keys { entries: Arc::new(entries) })
    }

    pub fn is_open(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whom a key stands for. Every entry is compared, in constant time each (`blake3::Hash` compares so), and the
    /// loop does not stop at a match: time tells nothing about which keys exist.
    fn holder(&self, key: &str) -> Option<Holder> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = None;
        for (known, holder) in self.entries.iter() {
            if *known == hash {
                found = Some(holder.clone());
            }
        }
        found
    }
}

/// Middleware: puts the [`Caller`] into the request, or answers 401.
pub(super) async fn require_key(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Response {
    let holder = if gateway.keys().is_open() {
        Some(Holder { tenant: TenantId::default_tenant(), operator: true })
    } else {
        let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        header
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|key| gateway.keys().holder(key.trim()))
    };
    match holder {
        Some(Holder { tenant, operator }) => {
            if operator {
                request.extensions_mut().insert(Operator);
            }
            request.extensions_mut().insert(Caller(tenant));
            next.run(request).await
        }
        None => ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "Incorrect or missing API key: send `Authorization: Bearer <key>`; create keys with `ternfleet \
             key new`.",
        )
        .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn a_key_finds_its_tenant_and_no_other_key_does() {
        let hash = blake3::hash(b"tf-secret").to_hex();
        let keys =
            Keys::read(file(&format!("[[key]]\ntenant = \"acme\"\nblake3 = \"{hash}\"\n")).path()).unwrap();
        let acme = Holder { tenant: "acme".parse().unwrap(), operator: false };
        assert_eq!(keys.holder("tf-secret"), Some(acme), "no key is an operator's unless it says so");
        assert_eq!(keys.holder("tf-secres"), None);
        assert_eq!(keys.holder(""), None);
    }

    #[test]
    fn a_broken_key_file_says_what_it_should_hold() {
        let error = Keys::read(file("[[key]]\ntenant = \"a b\"\nblake3 = \"00\"\n").path()).unwrap_err();
        assert!(error.to_string().contains("tenant"), "{error}");
    }
}
