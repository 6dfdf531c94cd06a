//! Providers of pods behind one small trait: `local` starts worker processes on this machine, `runpod` rents pods.
//!
//! No policy lives here: which pod, when and for whose money is the coordinator's business. A provider does what it
//! is told, once, and says exactly what happened. The one thing that it takes care of by itself is that a creation
//! whose answer was lost does not rent twice.
//!
//! Architecture Invariant: this crate imports nothing of ours. Of it the worker uses only [`end_myself`].

pub mod http;
pub mod local;
mod provider;
pub mod runpod;
pub mod start;
pub mod time;
pub mod webhook;

pub use provider::{
    Availability, Bill, CloudError, Compute, Hardware, Mount, Offer, Order, Place, PodId, Provider,
    PublicPort, Rented, Status, Tier,
};

/// How a pod ends itself when nobody commands it any more. A stopped pod still pays for its disk, so it is
/// terminated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndMyself {
    /// Leave the process; the machine belongs to somebody.
    #[default]
    Exit,
    /// Terminate the RunPod pod that this process runs in, by the key that the pod was given.
    Runpod,
}

/// Ends the pod that this process runs in. With [`EndMyself::Exit`] there is nothing to do but to leave. `runpod_base` is
/// another address than RunPod's own.
///
/// # Errors
/// Whether a key scoped to a pod may terminate it is not documented by the provider, so a refusal is possible: the
/// caller raises an alarm and exits all the same.
pub async fn end_myself(how: EndMyself, runpod_base: Option<&str>) -> Result<(), CloudError> {
    match how {
        EndMyself::Exit => Ok(()),
        EndMyself::Runpod => runpod::end_this_pod(runpod_base, |name| std::env::var(name).ok()).await,
    }
}
