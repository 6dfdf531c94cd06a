//! Work that takes milliseconds of computing, kept away from the threads that serve the network.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on a thread of its own. A runtime with one thread, which is what a simulation has, runs it in place: what
/// happens there must not depend on how threads are scheduled.
///
/// # Errors
/// When `work` panics.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => spawn_blocking(work).await,
    }
}
