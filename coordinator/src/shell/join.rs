//! The door of a fleet with permissions: who may have a worker's credentials.

use std::time::Duration;

use anyhow::Context;
use ternfleet_proto::TimeMs;
use ternfleet_proto::access::Issuer;
use ternfleet_proto::message::{JoinGrant, JoinRequest, Refusal, RefusalCode, Reply};
use ternfleet_proto::table::Role;

use super::grants::{Granted, Grants};
use crate::Options;
use crate::core::Fleet;

/// Lets pods in.
pub(super) struct Door {
    issuer: Option<Issuer>,
    worker_life: Duration,
    pod_life: Duration,
}

impl Door {
    /// Reads the signing keys, if there are any.
    pub(super) fn open(options: &Options) -> anyhow::Result<Door> {
        let issuer = match &options.issuer_file {
            None => None,
            Some(path) => {
                let said = || format!("the signing keys in {} cannot be used", path.display());
                let text = std::fs::read_to_string(path).with_context(said)?;
                Some(Issuer::parse(&text).with_context(said)?)
            }
        };
        Ok(Door {
            issuer,
            worker_life: Duration::from_millis(options.worker_token_ms),
            pod_life: Duration::from_millis(options.pod_token_ms),
        })
    }

    /// There are permissions, so that names can be relied on.
    pub(super) fn is_closed(&self) -> bool {
        self.issuer.is_some()
    }

    /// `asker` is what the server let it publish as, so it is believed: a worker that renews its own token, or somebody
    /// with a join token, who may be anybody new.
    pub(super) fn answer(
        &self,
        now: TimeMs,
        asker: &str,
        request: &JoinRequest,
        fleet: &Fleet,
        grants: &Grants,
    ) -> Reply<(JoinGrant, Option<Granted>)> {
        let refuse = |code, message: String| Err(Refusal { code, message, retry_after_ms: None });
        let Some(issuer) = &self.issuer else {
            let message = "this coordinator has no signing keys: set issuer_file".to_owned();
            return refuse(RefusalCode::Invalid, message);
        };
        let worker = &request.worker;
        let renews = asker == worker.as_str();
        // A name is known from its grant as well: right after a takeover nobody has been heard of yet.
        if !renews && (fleet.slot(worker).is_some() || grants.knows(worker)) {
            return refuse(RefusalCode::Conflict, format!("there is a worker {worker} already"));
        }
        let signed = issuer.token(Role::Worker, worker.as_str(), &request.worker_key, now, self.worker_life);
        // A worker does not get a second way in: only whoever had one keeps one.
        let pod_file = request.pod_key.as_ref().map(|key| format!("pod-{}", short(key)));
        let pod = request
            .pod_key
            .as_ref()
            .zip(pod_file.as_ref())
            .filter(|_| !renews)
            .map(|(key, name)| issuer.token(Role::Joiner, name, key, now, self.pod_life));
        match (signed, pod.transpose()) {
            (Ok(worker_token), Ok(pod_token)) => {
                tracing::info!(%worker, asker, key = request.worker_key, renews, "credentials issued");
                let pod_file = pod_token.is_some().then_some(pod_file).flatten();
                let granted = if renews { None } else { grants.grant(asker, request, pod_file, fleet) };
                let expires_at = now.plus(self.worker_life);
                Ok((JoinGrant { worker_token, pod_token, expires_at }, granted))
            }
            (Err(fault), _) | (_, Err(fault)) => refuse(RefusalCode::Invalid, fault.to_string()),
        }
    }
}

/// Part of a public key that tells pods apart. A key that is too short is refused later, by the issuer.
fn short(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::access::{Asking, Site};

    use super::*;

    fn door() -> Door {
        let issuer = Site::new(TimeMs::now()).issuer().file(&[Role::Worker, Role::Joiner]);
        Door {
            issuer: Some(Issuer::parse(&issuer).unwrap()),
            worker_life: Duration::from_secs(60),
            pod_life: Duration::from_secs(600),
        }
    }

    #[test]
    fn a_new_pod_gets_a_workers_token_and_one_to_come_back_with() {
        let asking = Asking::new("w-1".parse().unwrap());
        let grant = door()
            .answer(TimeMs(5_000), "token-a", &asking.request(), &Fleet::default(), &Grants::new(true))
            .unwrap()
            .0;
        assert_eq!(grant.expires_at, TimeMs(65_000));
        let (worker, pod) = asking.granted(grant).unwrap();
        let (worker, pod) = (worker.holder().unwrap(), pod.unwrap().0.holder().unwrap());
        assert_eq!((worker.name.as_str(), worker.role), ("w-1", Role::Worker));
        assert_eq!((pod.role, pod.expires_at), (Role::Joiner, Some(TimeMs(605_000))));
    }

    #[test]
    fn a_worker_that_renews_gets_no_second_way_in() {
        let asking = Asking::new("w-1".parse().unwrap());
        let grant = door()
            .answer(TimeMs(0), "w-1", &asking.request(), &Fleet::default(), &Grants::new(true))
            .unwrap()
            .0;
        assert_eq!(grant.pod_token, None);
    }

    #[test]
    fn nobody_becomes_the_coordinator() {
        let asking = Asking::new("coordinator".parse().unwrap());
        let refused = door()
            .answer(TimeMs(0), "token-a", &asking.request(), &Fleet::default(), &Grants::new(true))
            .unwrap_err();
        assert!(refused.message.contains("coordinator"), "{refused}");
    }

    #[test]
    fn a_name_that_was_granted_is_not_given_again_even_if_nobody_was_heard_of() {
        let mut grants = Grants::new(true);
        let facts = ternfleet_proto::message::WorkerFacts {
            pod: "pod-1".to_owned(),
            host: "host-1".to_owned(),
            pod_class: "c".to_owned(),
            price_usd_micro_per_hour: ternfleet_proto::UsdMicro(1),
        };
        let asked =
            || JoinRequest { facts: Some(facts.clone()), ..Asking::new("w-1".parse().unwrap()).request() };
        let (_, granted) = door().answer(TimeMs(0), "token-a", &asked(), &Fleet::default(), &grants).unwrap();
        grants.note(granted.unwrap());
        // A new leader: it knows the grants and has heard of no worker.
        let refused = door().answer(TimeMs(0), "pod-x", &asked(), &Fleet::default(), &grants).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Conflict);
        assert!(door().answer(TimeMs(0), "w-1", &asked(), &Fleet::default(), &grants).is_ok(), "it renews");
    }
}
