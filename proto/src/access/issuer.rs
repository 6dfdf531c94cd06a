//! Making tokens for users: what a coordinator needs to let pods in, and nothing more.

use std::time::Duration;

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use super::credentials::{Credentials, Holder, holder_of};
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
            return Err(unusable("the key", "it is not a user's public key"));
        }
        let signer = self.keys.iter().find(|(of, _)| *of == role);
        let (_, signer) = signer
            .ok_or_else(|| unusable("the issuer", format!("it has no key for the role {}", role.as_str())))?;
        jwt::sign(signer, user_key, name, now, Some(now.plus(life)), jwt::user(&self.account, role))
    }

    /// Whom a token speaks of, if this issuer made it for `role` and it still lives. For whoever shows one over HTTP: of a
    /// NATS client the server makes sure itself.
    ///
    /// # Errors
    /// When it is somebody else's, of another role, or has expired.
    pub fn verify(&self, role: Role, token: &str, now: TimeMs) -> Result<Holder, AccessError> {
        let signer = self.keys.iter().find(|(of, _)| *of == role);
        let (_, signer) = signer.ok_or_else(|| unusable("the token", "it was signed by an unknown key"))?;
        jwt::verify(token, signer)?;
        let holder = holder_of(token)?;
        if holder.role != role {
            return Err(unusable("the token", "it is for another role"));
        }
        if holder.expires_at.is_some_and(|at| at <= now) {
            return Err(unusable("the token", "it has expired"));
        }
        Ok(holder)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{JoinToken, Site};

    #[test]
    fn a_token_is_believed_only_if_this_fleet_signed_it_for_the_role_and_it_lives() {
        let (ours, theirs) = (Site::new(TimeMs(0)).issuer(), Site::new(TimeMs(0)).issuer());
        let life = Duration::from_secs(60);
        let token = |issuer: &Issuer| {
            JoinToken::for_order(issuer, "f-a-0", TimeMs(0), life).unwrap().credentials().token()
        };
        let holder = ours.verify(Role::Joiner, &token(&ours), TimeMs(1_000)).unwrap();
        assert_eq!(holder.name, "order-f-a-0");
        assert!(ours.verify(Role::Joiner, &token(&ours), TimeMs(61_000)).is_err(), "expired");
        assert!(ours.verify(Role::Joiner, &token(&theirs), TimeMs(1_000)).is_err(), "another fleet's");
        let worker = ours.user(Role::Worker, "w-1", TimeMs(0), life).unwrap().token();
        assert!(ours.verify(Role::Joiner, &worker, TimeMs(1_000)).is_err(), "another role");
        let mut forged = token(&ours);
        forged.replace_range(40..41, if &forged[40..41] == "A" { "B" } else { "A" });
        assert!(ours.verify(Role::Joiner, &forged, TimeMs(1_000)).is_err(), "changed");
        for broken in ["", "a", "a.b", "a.b.c"] {
            assert!(ours.verify(Role::Joiner, broken, TimeMs(1_000)).is_err());
        }
    }
}
