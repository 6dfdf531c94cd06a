//! NATS's JWTs, version 2: <https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt>.
//! A header, claims in JSON and an Ed25519 signature over both, each in unpadded URL-safe base64.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{AccessError, unusable};
use crate::id::TimeMs;
use crate::table::{Role, permissions};

/// In which a worker may send the answer to a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Signs claims: about `subject` (a public key), named `name`, with NATS's own part in `nats`.
pub(super) fn sign(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    issued_at: TimeMs,
    expires_at: Option<TimeMs>,
    nats: Value,
) -> Result<String, AccessError> {
    let mut claims = json!({
        "iat": issued_at.0 / 1000,
        "iss": issuer.public_key(),
        "name": name,
        "sub": subject,
        "nats": nats,
    });
    if let Some(at) = expires_at {
        claims["exp"] = json!(at.0 / 1000);
    }
    let id = Sha256::digest(claims.to_string().as_bytes());
    claims["jti"] = json!(URL_SAFE_NO_PAD.encode(id));
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).map_err(|reason| unusable("the signing key", reason))?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The claims of a token. The signature is the server's business: whoever holds a token may read it.
pub(super) fn claims(token: &str) -> Result<Value, AccessError> {
    let body = token.split('.').nth(1).ok_or_else(|| unusable("the token", "it has no claims"))?;
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|reason| unusable("the token", reason))?;
    serde_json::from_slice(&bytes).map_err(|reason| unusable("the token", reason))
}

/// Fails unless `signer` has signed the token.
pub(super) fn verify(token: &str, signer: &KeyPair) -> Result<(), AccessError> {
    let (signed, signature) =
        token.rsplit_once('.').ok_or_else(|| unusable("the token", "it has no signature"))?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|reason| unusable("the token", reason))?;
    signer.verify(signed.as_bytes(), &signature).map_err(|reason| unusable("the token", reason))
}

/// The operator's part.
pub(super) fn operator(system_account: &str) -> Value {
    json!({ "type": "operator", "version": 2, "system_account": system_account })
}

/// The account's part: no limits but the server's, and one signing key a role, each with its permissions.
pub(super) fn account(signers: &[(Role, String)], revoked: &[(String, TimeMs)]) -> Value {
    let unlimited = -1;
    let keys: Vec<Value> = signers
        .iter()
        .map(|(role, key)| {
            let allowed = permissions(*role);
            let mut template = json!({
                "pub": { "allow": allowed.publish },
                "sub": { "allow": allowed.subscribe },
                "subs": unlimited, "data": unlimited, "payload": unlimited,
            });
            if allowed.answers {
                template["resp"] = json!({ "max": 1, "ttl": ANSWER_WITHIN.as_nanos() as u64 });
            }
            json!({ "kind": "user_scope", "key": key, "role": role.as_str(), "template": template })
        })
        .collect();
    let revocations: serde_json::Map<String, Value> =
        revoked.iter().map(|(key, at)| (key.clone(), json!(at.0 / 1000))).collect();
    json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": unlimited, "data": unlimited, "payload": unlimited, "imports": unlimited, "exports": unlimited,
            "wildcards": true, "conn": unlimited, "leaf": unlimited,
            "mem_storage": unlimited, "disk_storage": unlimited, "streams": unlimited, "consumer": unlimited,
            "max_ack_pending": unlimited,
        },
        "signing_keys": keys,
        "revocations": revocations,
        "default_permissions": { "pub": {}, "sub": {} },
    })
}

/// The system account's part: it exports nothing and has no JetStream.
pub(super) fn system_account() -> Value {
    json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        },
        "default_permissions": { "pub": {}, "sub": {} },
    })
}

/// A user's part: empty, since a scoped key gives the permissions. The tag tells the client its own role.
pub(super) fn user(account: &str, role: Role) -> Value {
    json!({
        "type": "user",
        "version": 2,
        "issuer_account": account,
        "pub": {},
        "sub": {},
        "tags": [format!("role:{}", role.as_str())],
    })
}
