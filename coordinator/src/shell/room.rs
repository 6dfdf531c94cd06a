//! Whether RESULTS has room for the answers of new work: what is accepted is answered.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::bus::{Bus, StreamFacts};
use ternfleet_proto::message::{Refusal, RefusalCode};
use ternfleet_proto::table;
use tokio::sync::mpsc;

use super::Input;

const EVERY: Duration = Duration::from_secs(1);
/// The rest is for the answers of what is accepted already.
const NEARLY_FULL_RATIO: f64 = 0.95;

/// Why nothing is accepted now, if that is so.
fn refusal(results: StreamFacts) -> Option<Refusal> {
    let max = results.bytes_max?;
    let message = format!(
        "the answers stored in NATS take {} of {max} bytes (streams.results_bytes_max), and nothing new is \
         accepted: wait until old batches are deleted (retention.files_ms), or raise the limit",
        results.bytes
    );
    let full = results.bytes as f64 >= NEARLY_FULL_RATIO * max as f64;
    full.then_some(Refusal { code: RefusalCode::Busy, message, retry_after_ms: Some(60_000) })
}

/// Looks for as long as the inbox is open, and says what changes.
pub(super) async fn watch(bus: Arc<dyn Bus>, inbox: mpsc::Sender<Input>) {
    let mut was_full = false;
    while !inbox.is_closed() {
        if let Ok(facts) = bus.stream_facts(table::RESULTS).await {
            let refusal = refusal(facts);
            if was_full != refusal.is_some() {
                was_full = refusal.is_some();
                match &refusal {
                    Some(refusal) => tracing::error!("{refusal}"),
                    None => tracing::info!("RESULTS has room again"),
                }
            }
            let _ = inbox.send(Input::Room(refusal)).await;
        }
        tokio::time::sleep(EVERY).await;
    }
}
