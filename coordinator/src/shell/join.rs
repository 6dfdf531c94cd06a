//! Admission to a fleet with permissions: who may have a worker's credentials.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ternfleet_proto::access::{Issuer, Joiner};
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{JoinGrant, JoinRequest, RefusalCode, Reply, StartFailed, WorkerFacts};
use ternfleet_proto::table::Role;
use ternfleet_proto::{Now, codec, table};

use super::api::refusal;
use super::grants::{Granted, Grants};
use crate::Options;
use crate::core::{Fleet, LeasePhase, Money};

/// A used token is remembered for so long after it has expired.
const USED_BEYOND: Duration = Duration::from_secs(3600);

/// Reads signing keys.
pub(crate) fn read_issuer(path: &Path) -> anyhow::Result<Issuer> {
    let said = || format!("the signing keys in {} cannot be used", path.display());
    let text = std::fs::read_to_string(path).with_context(said)?;
    Issuer::parse(&text).with_context(said)
}

/// Whether the start of a pod that publishes under this name may have failed: one whose worker runs has started.
fn may_have_failed(name: &str, money: &Money) -> bool {
    let pod = Joiner::parse(name).pod().unwrap_or(name);
    money.pods().get(pod).is_none_or(|pod| pod.workers.is_empty())
}

/// What whoever is let in gets.
#[derive(Debug)]
pub(super) struct LetIn {
    pub(super) grant: JoinGrant,
    /// Who it is from now on.
    pub(super) granted: Option<Granted>,
    /// Only if this token was not used before.
    pub(super) once: Option<UsedToken>,
}

/// The record that a token was used.
#[derive(Debug)]
pub(super) struct UsedToken {
    name: String,
    /// Whoever asks again with the same key is the same pod, whose answer was lost.
    worker_key: String,
    life: Duration,
}

impl UsedToken {
    /// Writes the record, by compare-and-set; refuses when another has used the token.
    pub(super) async fn claim(self, bus: &Arc<dyn Bus>, grant: JoinGrant) -> Reply<JoinGrant> {
        let key = format!("joined.{}", self.name);
        let value = codec::encode(&self.worker_key);
        let by = match bus.kv_create(table::KV_CONTROL, &key, value, Some(self.life)).await {
            Ok(_) => return Ok(grant),
            Err(BusError::Exists(_)) => bus.kv_get(table::KV_CONTROL, &key).await,
            Err(error) => Err(error),
        };
        match by {
            Ok(Some(entry))
                if codec::decode::<String>(&entry.value).is_ok_and(|by| by == self.worker_key) =>
            {
                Ok(grant)
            }
            Ok(_) => {
                tracing::warn!(token = self.name, "a join token was presented a second time, by another pod");
                let message = "this join token has been used: it is valid for one pod, once";
                Err(refusal(RefusalCode::Conflict, message))
            }
            Err(error) => {
                let message = format!("it is not known whether this token was used: {error}");
                Err(refusal(RefusalCode::Unavailable, message))
            }
        }
    }
}

/// Issues credentials to pods and workers.
pub(super) struct Admission {
    issuer: Option<Issuer>,
    worker_life: Duration,
    pod_life: Duration,
    /// Of the tokens of orders.
    order_life: Duration,
}

impl Admission {
    /// Reads the signing keys, if there are any.
    pub(super) fn of(options: &Options) -> anyhow::Result<Admission> {
        let issuer = options.issuer_file.as_deref().map(read_issuer).transpose()?;
        Ok(Admission {
            issuer,
            worker_life: Duration::from_millis(options.worker_token_ms),
            pod_life: Duration::from_millis(options.pod_token_ms),
            order_life: Duration::from_secs_f64(options.scale.ready_limit_s),
        })
    }

    /// There are permissions, so that names can be relied on.
    pub(super) fn has_permissions(&self) -> bool {
        self.issuer.is_some()
    }

    /// `asker` is what the server let it publish as, so it is believed: a worker that renews its own token, or somebody
    /// with a join token, who may be anybody new. The token of an order lets in the pod of that order, once, while its
    /// lease lasts.
    pub(super) fn answer(
        &self,
        now: Now,
        asker: &str,
        request: &JoinRequest,
        fleet: &Fleet,
        money: &Money,
        grants: &Grants,
    ) -> Reply<LetIn> {
        let Some(issuer) = &self.issuer else {
            let message = "this coordinator has no signing keys: set issuer_file";
            return Err(refusal(RefusalCode::Invalid, message));
        };
        let worker = &request.worker;
        let renews = asker == worker.as_str();
        // A name is known from its grant as well: right after a takeover nobody has been heard of yet.
        if !renews && (fleet.slot(worker).is_some() || grants.knows(worker)) {
            return Err(refusal(RefusalCode::Conflict, format!("worker {worker} already exists")));
        }
        let joiner = Joiner::parse(asker);
        let mut ordered = None;
        if let Some(name) = joiner.pod() {
            let unknown = || format!("no order of {name} is known (yet)");
            let Some(pod) = money.pods().get(name) else {
                return Err(refusal(RefusalCode::Unavailable, unknown()));
            };
            match pod.lease() {
                None => return Err(refusal(RefusalCode::Unavailable, unknown())),
                Some(LeasePhase::Drain) => {
                    return Err(refusal(RefusalCode::Conflict, format!("{name} is being returned")));
                }
                Some(LeasePhase::Boot | LeasePhase::Work) => {}
            }
            ordered = Some(WorkerFacts {
                pod: name.to_owned(),
                host: request
                    .facts
                    .as_ref()
                    .map_or(name, |facts| facts.host.as_str())
                    .chars()
                    .take(100)
                    .collect(),
                pod_class: pod.class.clone(),
                price_usd_micro_per_hour: pod.bill.price(),
            });
        }
        let signed =
            issuer.token(Role::Worker, worker.as_str(), &request.worker_key, now.wall, self.worker_life);
        // A worker does not get a second way in: only whoever had one keeps one.
        let pod_file = request.pod_key.as_ref().map(|key| match joiner.pod() {
            Some(name) => Joiner::rented_name(name),
            None => format!("pod-{}", short(key)),
        });
        let pod = request
            .pod_key
            .as_ref()
            .zip(pod_file.as_ref())
            .filter(|_| !renews)
            .map(|(key, name)| issuer.token(Role::Joiner, name, key, now.wall, self.pod_life));
        match (signed, pod.transpose()) {
            (Ok(worker_token), Ok(pod_token)) => {
                tracing::info!(%worker, asker, key = request.worker_key, renews, "credentials issued");
                let pod_file = pod_token.is_some().then_some(pod_file).flatten();
                let granted = if renews {
                    None
                } else {
                    grants.grant(now.mono, asker, request, pod_file, fleet, ordered)
                };
                let grant =
                    JoinGrant { worker_token, pod_token, expires_at: now.wall.plus(self.worker_life) };
                let once = matches!(joiner, Joiner::Order { .. }).then(|| UsedToken {
                    name: asker.to_owned(),
                    worker_key: request.worker_key.clone(),
                    life: self.order_life + USED_BEYOND,
                });
                Ok(LetIn { grant, granted, once })
            }
            (Err(fault), _) | (_, Err(fault)) => Err(refusal(RefusalCode::Invalid, fault.to_string())),
        }
    }
}

/// Part of a public key that tells pods apart. A key that is too short is refused later, by the issuer.
fn short(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

impl super::Service {
    /// A pod's report that its start failed goes to the scaler, unless its worker runs.
    pub(super) fn start_failed(&self, name: String, said: StartFailed) {
        let hands = self.hands.as_ref().filter(|_| may_have_failed(&name, self.core.money()));
        if let Some(scaler) = hands.and_then(|hands| hands.scaler.as_ref()) {
            let _ = scaler.failed_starts.send((name, said));
        }
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::access::{Asking, Site};
    use ternfleet_proto::{MonoMs, TimeMs, UsdMicro};

    use super::*;
    use crate::core::{Lease, WorkerSlot};

    fn admission() -> Admission {
        let issuer = Site::new(TimeMs::now()).issuer().file(&[Role::Worker, Role::Joiner]);
        Admission {
            issuer: Some(Issuer::parse(&issuer).unwrap()),
            worker_life: Duration::from_secs(60),
            pod_life: Duration::from_secs(600),
            order_life: Duration::from_secs(900),
        }
    }

    /// What a coordinator answers that has heard of no worker and rents nothing.
    fn answer(wall: TimeMs, asker: &str, request: &JoinRequest, grants: &Grants) -> Reply<LetIn> {
        let now = Now { wall, mono: MonoMs(0) };
        admission().answer(now, asker, request, &Fleet::default(), &Money::default(), grants)
    }

    #[test]
    fn the_token_of_an_order_lets_in_the_pod_of_that_order_while_its_lease_lasts() {
        let (admission, asking) = (admission(), Asking::new("f-a-0-x".parse().unwrap()));
        let fleet = Fleet::default();
        let mut money = Money::default();
        let grants = Grants::new(true, MonoMs(0));
        let answer = |asker: &str, asking: &Asking, money: &Money| {
            admission.answer(Now::default(), asker, &asking.request(), &fleet, money, &grants)
        };
        let refused = answer("order-f-a-0", &asking, &money).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Unavailable, "the order may be known in a moment");
        let (pod, class) = ("f-a-0".to_owned(), "a".to_owned());
        let lease = Lease { pod, class, price_usd_micro_per_hour: UsdMicro(1), since: TimeMs(0) };
        money.leased(Now::default(), &lease);
        let LetIn { grant, granted, once } = answer("order-f-a-0", &asking, &money).unwrap();
        assert!(
            format!("{granted:?}").contains("pod: \"f-a-0\""),
            "what was ordered, not what is claimed: {granted:?}"
        );
        let token = once.unwrap();
        assert_eq!((token.name.as_str(), token.life.as_secs()), ("order-f-a-0", 900 + 3600));
        let (_, kept) = asking.granted(grant).unwrap();
        // What the pod keeps is bound to it, too.
        let name = kept.unwrap().0.holder().unwrap().name;
        assert_eq!(Joiner::parse(&name), Joiner::Rented { pod: "f-a-0" });
        let again = Asking::new("f-a-0-y".parse().unwrap());
        assert!(answer(&name, &again, &money).is_ok());
        assert!(may_have_failed("order-f-a-0", &money), "nobody has heard of its worker");
        money.join(Now::default(), WorkerSlot(1), "f-a-0", UsdMicro(1), "a");
        assert!(!may_have_failed("order-f-a-0", &money), "whoever says so is somebody else");
        money.lease_ending(MonoMs(0), "f-a-0");
        let refused = answer(&name, &again, &money).unwrap_err();
        assert!(refused.message.contains("being returned"), "{refused}");
    }

    #[test]
    fn a_new_pod_gets_a_workers_token_and_one_to_come_back_with() {
        let asking = Asking::new("w-1".parse().unwrap());
        let let_in = answer(TimeMs(5_000), "token-a", &asking.request(), &Grants::new(true, MonoMs(0)));
        let grant = let_in.unwrap().grant;
        assert_eq!(grant.expires_at, TimeMs(65_000));
        let (worker, pod) = asking.granted(grant).unwrap();
        let (worker, pod) = (worker.holder().unwrap(), pod.unwrap().0.holder().unwrap());
        assert_eq!((worker.name.as_str(), worker.role), ("w-1", Role::Worker));
        assert_eq!((pod.role, pod.expires_at), (Role::Joiner, Some(TimeMs(605_000))));
    }

    #[test]
    fn a_worker_that_renews_gets_no_second_way_in() {
        let asking = Asking::new("w-1".parse().unwrap());
        let let_in = answer(TimeMs(0), "w-1", &asking.request(), &Grants::new(true, MonoMs(0)));
        assert_eq!(let_in.unwrap().grant.pod_token, None);
    }

    #[test]
    fn nobody_becomes_the_coordinator() {
        let asking = Asking::new("coordinator".parse().unwrap());
        let refused =
            answer(TimeMs(0), "token-a", &asking.request(), &Grants::new(true, MonoMs(0))).unwrap_err();
        assert!(refused.message.contains("coordinator"), "{refused}");
    }

    #[test]
    fn a_name_that_was_granted_is_not_given_again_even_if_nobody_was_heard_of() {
        let mut grants = Grants::new(true, MonoMs(0));
        let facts = WorkerFacts {
            pod: "pod-1".to_owned(),
            host: "host-1".to_owned(),
            pod_class: "c".to_owned(),
            price_usd_micro_per_hour: UsdMicro(1),
        };
        let asked =
            || JoinRequest { facts: Some(facts.clone()), ..Asking::new("w-1".parse().unwrap()).request() };
        let let_in = answer(TimeMs(0), "token-a", &asked(), &grants).unwrap();
        grants.note(let_in.granted.unwrap());
        // A new leader: it knows the grants and has heard of no worker.
        let refused = answer(TimeMs(0), "pod-x", &asked(), &grants).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Conflict);
        assert!(answer(TimeMs(0), "w-1", &asked(), &grants).is_ok(), "it renews");
    }
}
