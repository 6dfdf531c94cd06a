//! What a caller may ask for, field by field, before any of it is kept. How much of it at a time is for the quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{BatchCreate, JobCreate, QUOTE_SAMPLE_MAX, Refusal, RefusalCode};
use tokio::io::BufReader;

use super::api::{refusal, unreachable};
use super::lines;
use crate::core::MODELS_MAX;
use crate::sample::note_model;

const KEY_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 256;
const ADDRESS_BYTES_MAX: usize = 2048;
/// OpenAI's own limits.
const METADATA_MAX: usize = 16;
const METADATA_KEY_BYTES_MAX: usize = 64 * 4;
const METADATA_VALUE_BYTES_MAX: usize = 512 * 4;
/// A creation waits so long for the lines of a large file to be counted; the scan after it counts the rest.
const COUNT_WITHIN: Duration = Duration::from_secs(3);
/// And so long for the models that they name.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

fn too_long(field: &str, max: usize) -> Refusal {
    refusal(RefusalCode::Invalid, format!("{field} may have {max} bytes at most"))
}

fn at_most(field: &str, text: &str, max: usize) -> Result<(), Refusal> {
    if text.len() <= max { Ok(()) } else { Err(too_long(field, max)) }
}

/// Every field of a creation.
pub(super) fn creation(create: &BatchCreate) -> Result<(), Refusal> {
    if create.idempotency_key.is_empty() {
        return Err(refusal(RefusalCode::Invalid, "idempotency_key must have 1 to 256 bytes"));
    }
    at_most("idempotency_key", &create.idempotency_key, KEY_BYTES_MAX)?;
    at_most("input_object", &create.input_object, NAME_BYTES_MAX)?;
    at_most("name", create.name.as_deref().unwrap_or_default(), NAME_BYTES_MAX)?;
    let options = &create.options;
    at_most("model", options.model.as_deref().unwrap_or_default(), NAME_BYTES_MAX)?;
    at_most("webhook_url", options.webhook_url.as_deref().unwrap_or_default(), ADDRESS_BYTES_MAX)?;
    at_most("webhook_secret", options.webhook_secret.as_deref().unwrap_or_default(), KEY_BYTES_MAX)?;
    at_most("traceparent", create.traceparent.as_deref().unwrap_or_default(), KEY_BYTES_MAX)?;
    if create.metadata.len() > METADATA_MAX {
        return Err(refusal(RefusalCode::Invalid, format!("metadata may have {METADATA_MAX} pairs at most")));
    }
    for (key, value) in &create.metadata {
        at_most("a key of metadata", key, METADATA_KEY_BYTES_MAX)?;
        at_most("a value of metadata", value, METADATA_VALUE_BYTES_MAX)?;
    }
    if create.work.as_ref().is_some_and(|work| work.models.len() > MODELS_MAX) {
        return Err(refusal(
            RefusalCode::Invalid,
            format!("work.models may have {MODELS_MAX} names at most"),
        ));
    }
    if create.work.as_ref().is_some_and(|work| work.sample.len() > QUOTE_SAMPLE_MAX) {
        let message = format!("work.sample may have {QUOTE_SAMPLE_MAX} lines at most");
        return Err(refusal(RefusalCode::Invalid, message));
    }
    Ok(())
}

/// The fields of a single job beside its request, which is as large as a message may be.
pub(super) fn job(job: &JobCreate) -> Result<(), Refusal> {
    at_most("model", job.line.model.as_deref().unwrap_or_default(), NAME_BYTES_MAX)?;
    at_most("custom_id", job.line.custom_id.as_deref().unwrap_or_default(), NAME_BYTES_MAX)?;
    at_most("traceparent", job.traceparent.as_deref().unwrap_or_default(), KEY_BYTES_MAX)
}

/// Refuses a file of too many lines, and collects the models that its lines name if `names_models`. The file is read
/// once, as far as a creation may wait: lines beyond that are checked when they are read, before any of them is kept, and
/// models beyond that are not refused; their lines wait for a worker.
pub(super) async fn content(
    bus: &Arc<dyn Bus>,
    bucket: &str,
    object: &str,
    bytes: u64,
    lines_max: u32,
    names_models: bool,
) -> Result<BTreeSet<String>, Refusal> {
    // All lines but the last have a newline, so a small file cannot have too many.
    let may_be_long = bytes > u64::from(lines_max);
    if !may_be_long && !names_models {
        return Ok(BTreeSet::new());
    }
    let content = bus.object_get(bucket, object, 0).await.map_err(|error| unreachable(&error))?;
    let mut input = BufReader::with_capacity(256 << 10, content);
    let (mut models, mut seen) = (BTreeMap::new(), 0u32);
    if names_models {
        let look = async {
            let mut line = Vec::new();
            while seen < lines_max
                && let Ok(Some(_)) = lines::next_line(&mut input, &mut line, true).await
            {
                note_model(&mut models, &line);
                seen += 1;
                tokio::task::consume_budget().await;
            }
        };
        let _ = tokio::time::timeout(LOOK_WITHIN, look).await;
    }
    if may_be_long
        && let Ok(Ok(true)) =
            tokio::time::timeout(COUNT_WITHIN, lines::is_longer(input, lines_max - seen)).await
    {
        let message = format!("the file {object:?} has more than {lines_max} lines: split it");
        return Err(refusal(RefusalCode::Invalid, message));
    }
    Ok(models.into_keys().collect())
}
