//! Counting the tokens of prompts: a worker has the tokenizer, callers may not ask it themselves.

use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{CountAsk, CountTokens, Refusal, RefusalCode, Reply};
use ternfleet_proto::{WorkerId, codec, table};

use super::reply::ReplyTo;

/// A worker answers between two questions of this kind, whatever its engine does.
const WORKER_TIMEOUT: Duration = Duration::from_secs(2);

/// Passes the question on to `worker`, and what it says back to who asked.
pub(super) async fn answer(bus: Arc<dyn Bus>, worker: Option<WorkerId>, ask: CountTokens, reply: ReplyTo) {
    let answer: Reply<Vec<Option<u32>>> = counted(&*bus, worker, CountAsk { prompts: ask.prompts })
        .await
        .map_err(|message| Refusal { code: RefusalCode::Unavailable, message, retry_after_ms: Some(1000) });
    reply.send(&*bus, &answer).await;
}

async fn counted(bus: &dyn Bus, worker: Option<WorkerId>, ask: CountAsk) -> Result<Vec<Option<u32>>, String> {
    let worker = worker.ok_or("no worker is live")?;
    let said = bus.request(&table::count(&worker), codec::encode(&ask), WORKER_TIMEOUT).await;
    codec::decode(&said.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
