//! Getting a worker's credentials from the coordinator, and renewing them before they run out.

use std::time::Duration;

use super::{ConnectOptions, NatsBus};
use crate::access::{Asking, Credentials, PodFile};
use crate::bus::{Bus, BusError, Result};
use crate::id::{TimeMs, WorkerId};
use crate::message::{JoinGrant, JoinRequest, RefusalCode, Reply, WorkerFacts};
use crate::{codec, table};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// No coordinator answers while one takes over from another; a fleet without any is told apart by then.
const TRIES: u32 = 30;

/// What a pod has once it is in.
#[derive(Debug)]
pub struct Joined {
    pub credentials: Credentials,
    pub pod: Option<PodFile>,
    pub expires_at: TimeMs,
}

/// Exchanges a join token, or what a pod has kept of an earlier one, for the credentials of `worker`.
///
/// # Errors
/// [`BusError::Refused`] when the token has expired or the coordinator says no, [`BusError::Unreachable`] when nobody
/// answers.
pub async fn join(
    options: &ConnectOptions,
    with: &Credentials,
    worker: WorkerId,
    facts: WorkerFacts,
) -> Result<Joined> {
    let unusable = |fault: crate::access::AccessError| BusError::Refused(fault.to_string());
    let holder = with.holder().map_err(unusable)?;
    let bus = NatsBus::connect_as(options, Some(with)).await?;
    let asking = Asking::new(worker);
    let request = JoinRequest { facts: Some(facts), ..asking.request() };
    let granted = tokio::select! {
        biased;
        granted = ask(&bus, &holder.name, &request) => granted,
        () = run_out(holder.expires_at) => {
            Err(BusError::Refused(format!("the token of {} has expired", holder.name)))
        }
    };
    bus.close().await;
    let granted = granted?;
    let expires_at = granted.expires_at;
    let (credentials, pod) = asking.granted(granted).map_err(unusable)?;
    Ok(Joined { credentials, pod, expires_at })
}

/// Has the token of a running worker signed again; answers when that one runs out.
///
/// # Errors
/// As [`join`].
pub async fn renew(bus: &dyn Bus, credentials: &Credentials) -> Result<TimeMs> {
    let unusable = |fault: crate::access::AccessError| BusError::Refused(fault.to_string());
    let name = credentials.holder().map_err(unusable)?.name;
    let worker: WorkerId =
        name.parse().map_err(|fault: crate::id::IdError| BusError::Refused(fault.to_string()))?;
    let request = JoinRequest { worker, worker_key: credentials.public_key(), pod_key: None, facts: None };
    let granted = ask(bus, &name, &request).await?;
    credentials.renew(granted.worker_token).map_err(unusable)?;
    Ok(granted.expires_at)
}

/// The server lets nobody in from then on. Its clock decides, not ours: an answer under way is waited for.
async fn run_out(expires_at: Option<TimeMs>) {
    match expires_at {
        Some(at) => tokio::time::sleep(at.since(TimeMs::now()) + ANSWER_WITHIN).await,
        None => std::future::pending().await,
    }
}

async fn ask(bus: &dyn Bus, name: &str, request: &JoinRequest) -> Result<JoinGrant> {
    let subject = table::join(name);
    let mut tries = 0;
    loop {
        tries += 1;
        let waits = match bus.request(&subject, codec::encode(request), ANSWER_WITHIN).await {
            Ok(answer) => match codec::decode::<Reply<JoinGrant>>(&answer) {
                Ok(Ok(grant)) => return Ok(grant),
                Ok(Err(refusal)) if refusal.code == RefusalCode::Unavailable => {
                    BusError::Unreachable(refusal.message)
                }
                Ok(Err(refusal)) => return Err(BusError::Refused(refusal.message)),
                Err(fault) => return Err(BusError::Refused(format!("the coordinator's reply: {fault}"))),
            },
            Err(fault @ BusError::Unreachable(_)) => fault,
            Err(fault) => return Err(fault),
        };
        if tries >= TRIES {
            return Err(waits);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
