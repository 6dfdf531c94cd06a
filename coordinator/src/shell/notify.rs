//! The call at the end of a batch: tried until it is taken, for some hours, and told to the ledger either way.

use std::time::Duration;

use serde_json::json;
use ternfleet_cloud::webhook::Webhook;
use ternfleet_proto::message::BatchState;
use ternfleet_proto::{Clock, openai};
use tokio::sync::mpsc;

use super::Input;
use crate::core::{BatchRecord, Event, view_of};

/// Waits between tries, about five hours in all. A new leader starts again.
const WAITS_S: [u64; 8] = [5, 30, 120, 600, 1800, 3600, 3600, 7200];

/// Calls the batch's webhook; the outcome goes to the inbox.
pub(crate) async fn call(record: BatchRecord, allow: Vec<String>, clock: Clock, inbox: mpsc::Sender<Input>) {
    let outcome = call_until_taken(&record, &allow, &clock).await;
    if let Err(reason) = &outcome {
        tracing::warn!(batch = %record.id, reason, "the webhook failed; no further retries");
    }
    let _ = inbox.send(Input::Event(Event::Notified { batch: record.id, outcome })).await;
}

async fn call_until_taken(record: &BatchRecord, allow: &[String], clock: &Clock) -> Result<(), String> {
    let url = record.options.webhook_url.as_deref().unwrap_or_default();
    let secret = record.options.webhook_secret.as_deref();
    let webhook = Webhook::new(url, secret, allow).map_err(|error| error.to_string())?;
    let mut body = body(record);
    body.sort_all_objects();
    let body = body.to_string();
    let id = format!("evt_{}", record.id);
    let mut waits_s = WAITS_S.into_iter();
    loop {
        let error = match webhook.call(&id, clock.wall().0 / 1000, body.as_bytes(), allow).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        tracing::info!(batch = %record.id, %error, "the webhook call failed; it is retried");
        let Some(wait_s) = waits_s.next().filter(|_| error.may_pass()) else {
            return Err(error.to_string());
        };
        tokio::time::sleep(Duration::from_secs(wait_s)).await;
    }
}

/// OpenAI's event, with the whole batch object where theirs has the id alone.
fn body(record: &BatchRecord) -> serde_json::Value {
    let kind = match record.state {
        BatchState::Failed => "batch.failed",
        BatchState::Expired => "batch.expired",
        BatchState::Cancelled => "batch.cancelled",
        _ => "batch.completed",
    };
    json!({
        "object": "event",
        "id": format!("evt_{}", record.id),
        "type": kind,
        "created_at": record.ended_at.unwrap_or_default().0 / 1000,
        "data": openai::batch_object(&view_of(record, record.totals)),
    })
}
