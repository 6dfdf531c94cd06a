//! Making tokens for users: what a coordinator needs to let pods in, and nothing more.

use std::time::Duration;

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use super::{AccessError, jwt, unusable};
use crate::id::{TimeMs, WorkerId};
use crate::table::Role;

/// The one name that is the coordinator's in every role.
const RESERVED: &str = "coordinator";

/// Signing keys of one account, by role. Whoever holds it can make users of these roles and of no other.
#[derive(Debug)]
pub struct Issuer {
    account: String,
    keys: Vec<(Role, KeyPair)>,
}

/// As the file holds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuerFile {
    account: String,
    signing_seeds: Vec<(String, String)>,
}

impl Issuer {
    pub(super) fn new(account: String, keys: Vec<(Role, KeyPair)>) -> Issuer {
        Issuer { account, keys }
    }

    /// Reads what [`Issuer::file`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Issuer, AccessError> {
        let what = "the issuer file";
        let file: IssuerFile = serde_json::from_str(text).map_err(|reason| unusable(what, reason))?;
        let keys = file.signing_seeds.iter().map(|(role, seed)| {
            let role = Role::parse(role).ok_or_else(|| unusable(what, format!("no role {role:?}")))?;
            Ok((role, KeyPair::from_seed(seed).map_err(|reason| unusable(what, reason))?))
        });
        Ok(Issuer { account: file.account, keys: keys.collect::<Result<_, AccessError>>()? })
    }

    /// The text of a file with the seeds of some roles.
    pub fn file(&self, roles: &[Role]) -> String {
        let kept = self.keys.iter().filter(|(role, _)| roles.contains(role));
        let signing_seeds = kept
            .map(|(role, key)| {
                let seed = key.seed().expect("because signing keys are made with their seed");
                (role.as_str().to_owned(), seed)
            })
            .collect();
        let file = IssuerFile { account: self.account.clone(), signing_seeds };
        serde_json::to_string_pretty(&file).expect("because the file holds only strings") + "\n"
    }

    /// A token for somebody else's key.
    ///
    /// # Errors
    /// When the issuer has no key for the role, the key is no user's, or the name is the coordinator's.
    pub fn token(
        &self,
        role: Role,
        name: &str,
        user_key: &str,
        now: TimeMs,
        life: Duration,
    ) -> Result<String, AccessError> {
        // Names become tokens of subjects: the rule of ids is the rule of names.
        name.parse::<WorkerId>().map_err(|reason| unusable("the name", reason))?;
        if role != Role::Coordinator && name == RESERVED {
            return Err(AccessError::Reserved(name.to_owned()));
        }
        let is_user = user_key.starts_with('U') && KeyPair::from_public_key(user_key).is_ok();
        if !is_user {
            return Err(unusable("the key", "it is no user's public key"));
        }
        let signer = self.keys.iter().find(|(of, _)| *of == role);
        let (_, signer) = signer
            .ok_or_else(|| unusable("the issuer", format!("it has no key for the role {}", role.as_str())))?;
        jwt::sign(signer, user_key, name, now, Some(now.plus(life)), jwt::user(&self.account, role))
    }

    /// A new user with a key of its own.
    ///
    /// # Errors
    /// As [`Issuer::token`].
    pub fn user(
        &self,
        role: Role,
        name: &str,
        now: TimeMs,
        life: Duration,
    ) -> Result<Credentials, AccessError> {
        let key = KeyPair::new_user();
        let token = self.token(role, name, &key.public_key(), now, life)?;
        Ok(Credentials::new(token, key))
    }
}
